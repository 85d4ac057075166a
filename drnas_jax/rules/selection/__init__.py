"""Rules that choose the genotype, one module each; see `rules.base` for their interface."""
