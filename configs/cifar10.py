"""DrNAS on the DARTS space, or its subspaces S1 to S4, with CIFAR-10.

    python -m drnas_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The paper reports a test error of 2.46 +- 0.03 % for the cell it found (4.1M parameters, 0.6 GPU
days of search). `--config.genotype=drnas_cifar10 --phases=retrain,evaluate` retrains that cell.

| variant | description | time, and test accuracy |
|---|---|---|
| full, the default | 25 + 25 epochs, K 6 to 4, operations 7 to 4; 600 epochs of retraining | not measured |
| cifar100 | the same with CIFAR-100 | not measured |
| cpu | a proxy: C 8, 5 cells, 16x16 pixels | 14 to 18 minutes on 2 CPU cores, 0.63 to 0.65 |
| smoke | the same program: 3 cells, 8x8 pixels | 2 to 4 minutes on 2 CPU cores |

For example `--config=configs/cifar10.py:cpu`.

A subspace of arXiv 1909.09656 may follow, as in `--config=configs/cifar10.py:cpu,s1`: `s1`, `s2`,
`s3` or `s4`. It is searched in one stage, because its edges have two operations (S3: three).

| variant | description | time, and test accuracy |
|---|---|---|
| s1 | 50 epochs with K 4; 600 epochs of retraining; `s2` to `s4` alike | not measured |
| cpu,s1 | the proxy, 4 epochs, K 2; `s2` to `s4` alike | estimated: 11 (s1) to 17 minutes (s4) |
| smoke,s1 | the small program, 2 epochs; `s2` to `s4` alike | not measured |

The estimate is in minutes of one of 2 CPU cores of an AMD EPYC (jax 0.10.2, 2026-11-30), that other
programs used as well. It is made of process times of single steps, measured by
`python -m drnas_jax.tools.bench step` and `retrain`: 0.16 s (s1), 0.39 s (s4) and 0.13 s. The whole
runs were not made, so there is no accuracy.
"""  # noqa: E501

from ml_collections import ConfigDict

from drnas_jax.config import defaults, parse_variant

SIZES = ("full", "cifar100", "cpu", "smoke")
SUBSPACES = ("s1", "s2", "s3", "s4")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe in one of its variants."""
    size, subspace = parse_variant(variant, SIZES, SUBSPACES)
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
    if size == "cifar100":
        config.data.name = "cifar100"
    if size == "cpu":
        config.data.update(dict(image_size=16, crop_padding=2))
        config.arch.lr = 3e-3  # higher, since there are ten times fewer steps
        config.search.update(
            dict(channels=8, cells=5, epochs=(2, 2), partial_channels=(4, 2), warmup_epochs=(1, 0))
        )
        config.retrain.update(dict(channels=8, cells=5, epochs=3, lr=0.1, cutout=4, drop_path=0.0))
    if size == "smoke":
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
    if size in ("cpu", "smoke"):
        config.retrain.auxiliary_weight = 0.0  # the head needs images of 32x32
    if subspace:
        _restrict(config, subspace, size)
    return config


def _restrict(config: ConfigDict, subspace: str, size: str) -> None:
    """Changes the recipe to one of the spaces S1 to S4, which is searched in a single stage."""
    config.space = f"darts_{subspace}"
    search = config.search
    search.operations = (3 if subspace == "s3" else 2,)
    search.partial_channels = ({"cpu": 2, "smoke": 1}.get(size, 4),)
    search.epochs, search.warmup_epochs = (sum(search.epochs),), search.warmup_epochs[:1]
