"""Penalties on architecture parameters, one module each; see `base.Penalty` for their interface."""
