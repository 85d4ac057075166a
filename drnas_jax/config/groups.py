"""The fields of a run's config, in groups; the group of the search is in `search.py`."""

import dataclasses
from collections.abc import Hashable

from drnas_jax.config.fields import (
    Component,
    at_least,
    at_most,
    choices,
    field,
    less_than,
    more_than,
)
from drnas_jax.config.search import SearchConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and their augmentation."""

    name: str = field(
        "cifar10",
        "Data set: 'cifar10', 'cifar100', any other TFDS name, a bundled source ('digits', "
        "'folder', 'idx', 'npz'), or your own module.",
        component=Component("data", "options", others=True),
    )
    options: Hashable = field(None, "Options of the data set's module.")
    dir: str = field(
        "",
        "Folder of the data set, or its .npz file; empty: the default folder of TFDS.",
    )
    download: bool = field(
        False, "Whether CIFAR-10 or CIFAR-100 is downloaded into data.dir if it is not there."
    )
    image_size: int = field(
        0, "Side in pixels to which images are resized; 0: they keep their size.", at_least(0)
    )
    crop: str = field(
        "padded",
        "Random crop: 'padded' moves the image, 'resized' cuts out and resizes a part (ImageNet).",
        choices("padded", "resized"),
    )
    crop_padding: int = field(
        4, "Black pixels added on each side for the crop 'padded'; 0: no crop.", at_least(0)
    )
    flip: str = field(
        "auto",
        "Random mirroring: 'yes', 'no', or 'auto' (yes, except for digits, letters and the like).",
        choices("auto", "yes", "no"),
    )
    mean: tuple[float, ...] = field(
        (),
        "Mean of each channel, of pixels in 0..1; empty: measured on the training images.",
        at_least(0),
    )
    std: tuple[float, ...] = field(
        (), "Standard deviation of each channel, of pixels in 0..1; empty: measured.", at_least(0)
    )
    memory_limit_mb: int = field(
        4096, "Decoded size in MB above which a data set is streamed.", at_least(0)
    )
    max_value: int = field(
        0,
        "Value of white in images of 16 bits, such as 4095 for 12 bits; 0: 65535, the full range.",
        at_least(0),
        at_most(2**16 - 1),
    )
    workers: int = field(
        0, "Processes that decode a streamed data set; 0: one for each core.", at_least(0)
    )
    corrupt: str = field(
        "error",
        "What happens with an unreadable image: 'error', or 'skip' (a stream replaces it).",
        choices("error", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """The mixing distribution and the optimiser of its architecture parameters alpha."""

    name: str = field(
        "dirichlet",
        "Mixing distribution: a bundled one, or your own module.",
        component=Component("distribution", "options"),
    )
    options: Hashable = field(None, "Options of the mixing distribution.")
    lr: float = field(3e-4, "Learning rate of Adam on alpha.", at_least(0))
    b1: float = field(0.5, "Decay rate of Adam's first moment.", at_least(0), less_than(1))
    b2: float = field(0.999, "Decay rate of Adam's second moment.", at_least(0), less_than(1))
    clip: float = field(
        0.0, "Largest global norm of alpha's gradient; 0: not clipped.", at_least(0)
    )
    regulariser: str = field(
        "l2",
        "Penalty on alpha: 'l2', 'kl' (Dirichlet only), 'beta_decay', 'none', or your own module.",
        component=Component("penalty", "regulariser_options", none="none"),
    )
    regulariser_options: Hashable = field(None, "Options of the penalty.")
    strength: float = field(1e-3, "Factor of the penalty.", at_least(0))


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
    """Training of the derived network from scratch."""

    channels: int = field(16, "Channels C of the first cell.", at_least(1))
    cells: int = field(5, "Cells, counted as in search.cells.", at_least(1))
    batch_size: int = field(64, "Images of a batch, over all devices.", at_least(1))
    train_fraction: float = field(
        1.0, "Share of the images to train on; the others validate.", more_than(0), at_most(1)
    )
    epochs: int = field(200, "Epochs.", at_least(1))
    optimizer: str = field("sgd", "Optimiser: 'sgd' or 'adamw'.", choices("sgd", "adamw"))
    lr: float = field(0.1, "Largest learning rate.", at_least(0))
    lr_end: float = field(0.0, "Learning rate at the end of the schedule.", at_least(0))
    lr_schedule: str = field(
        "cosine",
        "Decay of the learning rate: 'cosine' or 'linear'.",
        choices("cosine", "linear"),
    )
    lr_warmup_epochs: int = field(
        0, "Epochs of linear warm-up, in place of the first ones of the schedule.", at_least(0)
    )
    momentum: float = field(0.9, "Momentum of SGD.", at_least(0), less_than(1))
    nesterov: bool = field(False, "Whether the momentum of SGD is Nesterov's.")
    weight_decay: float = field(5e-4, "Weight decay.", at_least(0))
    clip: float = field(0.0, "Largest global norm of the gradient; 0: not clipped.", at_least(0))
    sync_batchnorm: bool = field(False, "Whether batch statistics are taken over all devices.")
    cutout: int = field(0, "Side in pixels of the square erased by cutout; 0: none.", at_least(0))
    color_jitter: tuple[float, ...] = field(
        (), "Jitter of brightness, contrast, saturation and hue; empty: none.", at_least(0)
    )
    label_smoothing: float = field(0.0, "Label smoothing.", at_least(0), less_than(1))
    drop_path: float = field(
        0.0,
        "Largest probability of dropping a path, rising from 0 (DARTS only).",
        at_least(0),
        less_than(1),
    )
    auxiliary_weight: float = field(
        0.0, "Weight of the auxiliary head's loss (DARTS only); 0: no such head.", at_least(0)
    )
    max_macs: float = field(
        0.0,
        "Multiply-adds allowed: replaces channels by the largest even C that fits; 0: no limit.",
        at_least(0),
    )


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """The cost of networks, and the budget of the search."""

    name: str = field(
        "",
        "Cost of a network: a bundled one, or your own module; empty: none.",
        component=Component("cost", "options", none=""),
    )
    options: Hashable = field(None, "Options of the cost.")
    weight: float = field(0.0, "Factor of the expected cost in alpha's loss.", at_least(0))
    target: float = field(0.0, "Largest cost of the result; 0: no limit.", at_least(0))
    targets: tuple[float, ...] = field(
        (), "Largest costs of several searches, each in its own workdir.", more_than(0)
    )
    image_size: int = field(
        0, "Side of the images for which the cost counts; 0: that of the data's.", at_least(0)
    )

    def image(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the shape [h, w, c] of the images for which networks cost what they cost.

        Args:
          shape: Shape [h, w, c] of the data's images.
        """
        return (self.image_size, self.image_size, shape[2]) if self.image_size else shape


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Kernels, types and memory; results change only by rounding."""

    kernels: str = field(
        "auto",
        "Backend whose kernels are used; 'auto': that of the devices.",
        choices("auto", "plain", "cpu", "gpu", "tpu"),
    )
    dtype: str = field(
        "float32",
        "Type of activations: 'float32' or 'bfloat16'; parameters are float32.",
        choices("float32", "bfloat16"),
    )
    remat: str = field(
        "auto",
        "What is stored for the gradient: 'cells' (their inputs), 'convolutions' (their results), "
        "'none' (everything); 'auto': the fastest.",
        choices("auto", "none", "cells", "convolutions"),
    )
    donate: bool = field(True, "Whether a step reuses the memory of the state before it.")
    seeds_at_once: int = field(
        0,
        "Seeds (`seeds`) searched at once by one program, halved until they fit in memory; 1: one "
        "after the other; 0: 1 on CPUs and for streamed data, else up to 8.",
        at_least(0),
    )


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """The curves of a run; histories are written in any case."""

    writers: tuple[str, ...] = field(
        ("tensorboard",),
        "Writers of the curves: 'mlflow', 'tensorboard', 'wandb', or your own modules; (): none.",
    )


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """The table of true accuracies."""

    name: str = field(
        "",
        "Table: a bundled one, or your own module; empty: the bundled one of the space, if any.",
        component=Component("table", "options", none=""),
    )
    file: str = field("", "File of the table; empty: looked for beside data.dir.")
    options: Hashable = field(None, "Options of the table.")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The files that the phase `export` writes."""

    formats: tuple[str, ...] = field(
        ("stablehlo",), "Formats: 'stablehlo', 'onnx', 'torch', or your own modules."
    )
    platforms: tuple[str, ...] = field(
        ("cpu", "cuda", "tpu"),
        "Platforms on which a StableHLO program runs: 'cpu', 'cuda', 'rocm' or 'tpu'.",
        choices("cpu", "cuda", "rocm", "tpu"),
    )
    batch_size: int = field(
        0, "Images of a batch of an exported program; 0: any number.", at_least(0)
    )
    uint8: bool = field(
        True,
        "Whether exported programs take uint8 pixels and normalise them; else float32 images that "
        "are normalised already.",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. It is hashable, and two are equal if all their fields are."""

    seed: int = field(0, "Seed of all randomness of the run.", at_least(0))
    seeds: int = field(
        1,
        "Number of runs: with this seed and those after it, each in its own workdir.",
        at_least(1),
    )
    element: int = field(
        0, "Number, from 1, of the only run of all cost.targets and seeds; 0: all.", at_least(0)
    )
    space: str = field(
        "nasbench201",
        "Search space: a bundled one, or your own module.",
        component=Component("space", "space_options"),
    )
    space_options: Hashable = field(None, "Options of the search space.")
    genotype: str = field(
        "",
        "Genotype to retrain: a file or the text of a cell, a published name, or 'random'; empty: "
        "the search's result.",
    )
    checkpoint: str = field(
        "",
        "Directory of checkpoints to evaluate or export; empty: that of the run's own retraining.",
    )
    checkpoint_steps: int = field(
        0, "Steps between additional checkpoints; 0: only one after each epoch.", at_least(0)
    )
    data: DataConfig = DataConfig()
    arch: ArchConfig = ArchConfig()
    search: SearchConfig = SearchConfig()  # noqa: RUF009, it is frozen
    retrain: RetrainConfig = RetrainConfig()
    cost: CostConfig = CostConfig()
    compute: ComputeConfig = ComputeConfig()
    metrics: MetricsConfig = MetricsConfig()
    table: TableConfig = TableConfig()
    export: ExportConfig = ExportConfig()

    def of_each_seed(self) -> "list[Config]":
        """Returns the single runs that `seeds` asks for."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [dataclasses.replace(self, seed=seed, seeds=1) for seed in seeds]
