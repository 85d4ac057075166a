"""Costs of operations, one module each; `base.Cost` describes their interface."""
