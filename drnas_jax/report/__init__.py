"""One self-contained page about a run: `python -m drnas_jax.report.page DIR [DIR ...]`."""
