"""DrNAS on the space of NAS-Bench-Macro with CIFAR-10: the operation of each of eight layers.

    python -m drnas_jax.main --config=configs/nasbench_macro.py --workdir=runs/nasbench_macro

The benchmark trained all 6,561 networks of this space: the best has a test accuracy of 93.13 %, and
22222222, the largest operation in every layer, 92.95 %. True accuracies and costs come from a CSV
file of the benchmark, which `table.file` names; otherwise nasbench_macro/nasbench_macro_cifar10.csv
beside the data directory is used. Retraining has the benchmark's batches and number of epochs.
`--config.genotype=22212220 --phases=retrain,evaluate` retrains a known network.

| variant | description | time, and test accuracy |
|---|---|---|
| full, the default | C 32 and 32x32 pixels, as in the benchmark, 50 epochs of search and 50 of retraining; for a GPU | not measured |
| cpu | a proxy: C 8, 17x17 pixels, 10 epochs; then C 32, 5 epochs | search: 32 to 35 minutes on 1 CPU core; retraining and its accuracy not measured |
| smoke | the same program on handwritten digits, no download | about 1 minute on 2 CPU cores, 1 to 2 if they are busy |

For example `--config=configs/nasbench_macro.py:cpu`. The sides of 17 pixels become 9, 5 and 3 in
the three stages. With 16 the last stage would have 2x2 pixels, where large filters look useless;
more than 17 pixels or more channels would leave time for too few epochs. Costs, and so a budget such
as `--config.cost.name=macs --config.cost.target=60e6`, are those of the benchmark's networks, with
C 32 and 32x32 pixels.
"""  # noqa: E501

from ml_collections import ConfigDict

from drnas_jax.config import defaults, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe in one of its variants."""
    (size,) = parse_variant(variant, ("full", "cpu", "smoke"))
    config = defaults()
    config.space = "macro"
    config.search.update(
        dict(
            channels=32,
            cells=8,
            epochs=(50,),
            partial_channels=(1,),
            operations=(3,),
            warmup_epochs=(10,),
        )
    )
    config.retrain.update(dict(channels=32, cells=8, batch_size=256, epochs=50, nesterov=True))
    if size == "cpu":
        config.data.update(dict(image_size=17, crop_padding=2))
        config.cost.image_size = 32
        config.arch.lr = 6e-3  # higher than the default, since there are ten times fewer steps
        config.search.update(dict(channels=8, lr=0.1, epochs=(10,), warmup_epochs=(3,)))
        config.retrain.update(dict(batch_size=64, epochs=5))
    if size == "smoke":
        config.data.update(dict(name="digits", crop_padding=1))
        config.search.update(dict(channels=4, batch_size=32, epochs=(2,), warmup_epochs=(1,)))
        config.retrain.update(dict(channels=4, batch_size=32, epochs=2))
    return config
