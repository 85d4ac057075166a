"""DrNAS on the DARTS space with ImageNet.

    python -m drnas_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

The paper reports a top-1 test error of 23.7 % for the cell it found (5.7M parameters). At C 48 that
cell needs 624M multiply-adds, more than the 600M of the mobile setting.
`--config.genotype=drnas_imagenet --phases=retrain,evaluate` retrains it.

| variant | description | time |
|---|---|---|
| full, the default | 25 + 25 epochs, K 6 to 3, operations 7 to 4; 250 epochs of retraining | not measured |
| smoke | the same program for a few hundred images | 1.5 to 3 minutes on 2 CPU cores |
"""  # noqa: E501

from ml_collections import ConfigDict

from drnas_jax.config import defaults, parse_variant


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe in one of its variants."""
    (size,) = parse_variant(variant, ("full", "smoke"))
    config = defaults()
    config.space = "darts"
    config.space_options = dict(stem="imagenet")
    config.checkpoint_steps = 500
    config.data.update(
        dict(
            name="imagenet2012",
            image_size=224,
            crop="resized",
            crop_padding=0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
    )
    config.arch.update(dict(lr=6e-3, clip=5.0))
    config.search.update(
        dict(
            channels=48,
            cells=14,
            batch_size=512,
            train_fraction=0.1,
            alpha_fraction=0.025,
            split_by_class=True,
            epochs=(25, 25),
            partial_channels=(6, 3),
            operations=(7, 4),
            warmup_epochs=(10, 10),
            lr=0.5,
            lr_end=0.0,
            lr_warmup_epochs=5,
        )
    )
    config.retrain.update(
        dict(
            channels=48,
            cells=14,
            batch_size=768,
            epochs=250,
            lr=0.5,
            lr_schedule="linear",
            lr_warmup_epochs=5,
            weight_decay=3e-5,
            clip=5.0,
            color_jitter=(0.4, 0.4, 0.4, 0.2),
            label_smoothing=0.1,
            auxiliary_weight=0.4,
        )
    )
    if size == "smoke":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Turns the recipe into its smoke variant."""
    config.search.update(
        dict(
            channels=6,
            cells=3,
            batch_size=32,
            train_fraction=0.8,
            alpha_fraction=0.0,
            split_by_class=False,
            epochs=(1, 1),
            warmup_epochs=(0, 0),
            lr=0.1,
            lr_warmup_epochs=0,
        )
    )
    config.retrain.update(
        dict(channels=8, cells=3, batch_size=32, epochs=2, lr=0.1, lr_warmup_epochs=0)
    )
