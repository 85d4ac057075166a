"""Formats in which a trained network leaves the project, one module each; see `base.Format`."""
