"""DrNAS on the DARTS space with CIFAR-10.

    python -m drnas_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The paper reports a test error of 2.46 +- 0.03 % for the cell it found (4.1M parameters, 0.6 GPU
days of search). `--config.genotype=drnas_cifar10 --phases=retrain,evaluate` retrains that cell.

| variant | description | time, and test accuracy |
|---|---|---|
| (none) | 25 + 25 epochs, K 6 to 4, operations 7 to 4; 600 epochs of retraining | not measured |
| cifar100 | the same with CIFAR-100 | not measured |
| cpu | a proxy: C 8, 5 cells, 16x16 pixels | 14 to 18 minutes on 2 CPU cores, 0.63 to 0.65 |
| smoke | the same program: 3 cells, 8x8 pixels | 2 to 4 minutes on 2 CPU cores |

For example `--config=configs/cifar10.py:cpu`.
"""

from ml_collections import ConfigDict

from drnas_jax.config import defaults
from drnas_jax.errors import check_choice


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe or one of its variants."""
    check_choice("variant", variant or "full", ("full", "cifar100", "cpu", "smoke"))
    config = defaults()
    config.space = "darts"
    config.arch.lr = 6e-4
    config.search.update(
        dict(
            channels=36,
            cells=20,
            batch_size=64,
            epochs=(25, 25),
            partial_channels=(6, 4),
            operations=(7, 4),
            warmup_epochs=(10, 10),
            lr=0.1,
            lr_end=0.0,
        )
    )
    config.retrain.update(
        dict(
            channels=36,
            cells=20,
            batch_size=64,
            epochs=600,
            lr=0.025,
            weight_decay=3e-4,
            clip=5.0,
            cutout=16,
            drop_path=0.3,
            auxiliary_weight=0.4,
        )
    )
    if variant == "cifar100":
        config.data.name = "cifar100"
    if variant == "cpu":
        config.data.update(dict(image_size=16, crop_padding=2))
        config.arch.lr = 3e-3  # higher, since there are ten times fewer steps
        config.search.update(
            dict(channels=8, cells=5, epochs=(2, 2), partial_channels=(4, 2), warmup_epochs=(1, 0))
        )
        config.retrain.update(dict(channels=8, cells=5, epochs=3, lr=0.1, cutout=4, drop_path=0.0))
    if variant == "smoke":
        config.data.update(dict(image_size=8, crop_padding=1))
        config.search.update(
            dict(
                channels=4,
                cells=3,
                batch_size=1000,
                epochs=(1, 1),
                partial_channels=(2, 1),
                warmup_epochs=(0, 0),
            )
        )
        config.retrain.update(dict(channels=4, cells=3, batch_size=1000, epochs=2, cutout=2))
    if variant in ("cpu", "smoke"):
        config.retrain.auxiliary_weight = 0.0  # the head needs images of 32x32
    return config
