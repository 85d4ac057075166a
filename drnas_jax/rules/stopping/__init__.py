"""Rules that may end a search early, one module each; see `rules.base` for their interface."""
