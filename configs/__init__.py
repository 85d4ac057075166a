"""Recipes, one per file; each changes some values of `drnas_jax.config.defaults()`."""
