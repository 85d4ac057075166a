"""Progressive DrNAS on the handwritten digits of scikit-learn: the smallest recipe, no download.

    python -m drnas_jax.main --config=configs/digits.py --workdir=runs/digits

The search has two stages (K 4 to 2, operations 5 to 3). Then the cell it found is retrained, and
tested on 359 images that neither phase used.

| variant | description | time on 2 CPU cores | test accuracy |
|---|---|---|---|
| full, the default | the run of `make demo` | 1 to 2 minutes | 0.992 to 0.997 |
| smoke | the same program with fewer channels and epochs | about 1 minute | not measured |
"""

from ml_collections import ConfigDict

from drnas_jax.config import defaults, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe in one of its variants."""
    (size,) = parse_variant(variant, ("full", "smoke"))
    config = defaults()
    config.data.update(dict(name="digits", crop_padding=1))
    config.arch.lr = 3e-3
    config.search.update(
        dict(channels=16, cells=1, batch_size=32, epochs=(15, 15), warmup_epochs=(3, 3))
    )
    config.retrain.update(dict(channels=32, cells=1, batch_size=32, epochs=80))
    if size == "smoke":
        config.search.update(dict(channels=8, epochs=(2, 2), warmup_epochs=(0, 0)))
        config.retrain.update(dict(channels=8, epochs=3))
    return config
