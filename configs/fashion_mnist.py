"""DrNAS on the NAS-Bench-201 space with Fashion-MNIST: 70,000 real images from a Debian package.

    python -m drnas_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

The four files of Fashion-MNIST are read from the folder into which Debian's package
dataset-fashion-mnist puts them (`apt-get install dataset-fashion-mnist`). On other systems, download them
from github.com/zalandoresearch/fashion-mnist and name their folder by `--config.data.dir=DIR`.
`--config.genotype=random --phases=retrain,evaluate` retrains a random cell in the same way.

| variant | description | time, and test accuracy |
|---|---|---|
| full, the default | C 16, N 5, 28x28 pixels, 50 + 50 epochs, 200 of retraining; for a GPU | not measured |
| cpu | a proxy: C 8, N 3, 12x12 pixels, 10 epochs; then C 16, N 1, 8 epochs | 48 and 56 minutes on one CPU core, shared with other programs; 89.86 and 89.72 % (719bee9, AMD EPYC, 2026-11-30) |
| smoke | the same program: C 4, N 1, 8x8 pixels | 1 to 2 minutes on 2 CPU cores |

For example `--config=configs/fashion_mnist.py:cpu`.
"""  # noqa: E501

from ml_collections import ConfigDict

from drnas_jax.config import defaults, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe in one of its variants."""
    (size,) = parse_variant(variant, ("full", "cpu", "smoke"))
    config = defaults()
    config.data.update(
        dict(name="idx", dir="/usr/share/datasets/fashion-mnist", crop_padding=2, flip="yes")
    )
    if size in ("", "full"):
        config.retrain.update(dict(batch_size=256, nesterov=True))
    if size == "cpu":
        config.data.update(dict(image_size=12, crop_padding=1))
        config.arch.lr = 4e-3  # higher than the default, since there are ten times fewer steps
        config.search.update(
            dict(
                channels=8,
                cells=3,
                lr=0.1,
                epochs=(10,),
                partial_channels=(1,),
                operations=(5,),
                warmup_epochs=(6,),
            )
        )
        config.retrain.update(dict(cells=1, epochs=8))
    if size == "smoke":
        config.data.update(dict(image_size=8, crop_padding=1))
        config.search.update(
            dict(
                channels=4,
                cells=1,
                batch_size=1000,
                epochs=(1, 1),
                partial_channels=(2, 1),
                warmup_epochs=(0, 0),
            )
        )
        config.retrain.update(dict(channels=4, cells=1, batch_size=1000, epochs=2))
    return config
