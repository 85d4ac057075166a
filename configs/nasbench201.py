"""DrNAS on the NAS-Bench-201 space with CIFAR-10.

    python -m drnas_jax.main --config=configs/nasbench201.py --workdir=runs/nasbench201

The paper's test accuracy of the found cell is 94.36 % (CIFAR-10; the best cell of the space has
94.37 %). Set `nasbench201.table` to a CSV of the benchmark and the evaluation looks the true
accuracy up. Variants, as in `--config=configs/nasbench201.py:plain`:

| variant | what | expected time |
|---|---|---|
| (none) | progressive: 50 + 50 epochs, K 4 to 2, operations 5 to 3 | not measured |
| plain | 100 epochs of the whole supernet, K 1 | not measured |
| cpu | a proxy: C 8, N 1, 16x16 pixels | within 30 minutes on 2 CPU cores |
| smoke | the same program on handwritten digits, no download | 1 minute on 2 CPU cores |
"""

from ml_collections import ConfigDict

from configs import base
from drnas_jax.errors import check_choice


def get_config(variant: str = "") -> ConfigDict:
    """The recipe, or one of its variants."""
    check_choice("variant", variant or "progressive", ("progressive", "plain", "cpu", "smoke"))
    config = base.get_config()
    if variant == "plain":
        config.search.update(
            dict(epochs=(100,), partial_channels=(1,), operations=(5,), warmup_epochs=(0,))
        )
    if variant in ("cpu", "smoke"):
        config.data.update(dict(image_size=16, crop_padding=2))
        config.arch.lr = 1e-3  # a tenth of the recipe's steps, so that alpha can move as far
        config.search.update(
            dict(channels=8, cells=1, epochs=(8, 8), partial_channels=(2, 1), warmup_epochs=(2, 2))
        )
        config.retrain.update(dict(cells=1, epochs=5))
    if variant == "smoke":
        config.data.update(dict(name="digits", image_size=0, crop_padding=1))
        config.search.update(dict(batch_size=32, epochs=(1, 1), warmup_epochs=(0, 0)))
        config.retrain.update(dict(channels=8, batch_size=32, epochs=2))
    return config
