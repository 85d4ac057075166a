"""The smallest real run: progressive DrNAS on scikit-learn's handwritten digits, no download.

    python -m drnas_jax.main --config=configs/digits.py --workdir=runs/digits

Two stages (K 4 to 2, operations 5 to 3), then the found cell is retrained and judged on 360 test
images that neither saw. Expected on 2 CPU cores: 1 to 2 minutes, test accuracy 0.992 to 0.997. The
variant `:smoke` ends in about a minute.
"""

from ml_collections import ConfigDict

from drnas_jax.configs import base
from drnas_jax.errors import check_choice


def get_config(variant: str = "") -> ConfigDict:
    """The run of `make demo`, or its 'smoke' variant."""
    check_choice("variant", variant or "demo", ("demo", "smoke"))
    config = base.get_config()
    config.data.update(dict(name="digits", crop_padding=1))
    config.arch.lr = 3e-3
    config.search.update(
        dict(channels=16, cells=1, batch_size=32, epochs=(15, 15), warmup_epochs=(3, 3))
    )
    config.retrain.update(dict(channels=32, cells=1, batch_size=32, epochs=80))
    if variant == "smoke":
        config.search.update(dict(channels=8, epochs=(2, 2), warmup_epochs=(0, 0)))
        config.retrain.update(dict(channels=8, epochs=3))
    return config
