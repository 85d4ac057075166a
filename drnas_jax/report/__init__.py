"""The report: one self-contained page about a run, made by `python -m drnas_jax.report DIR`."""
