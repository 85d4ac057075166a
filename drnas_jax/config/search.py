"""The fields of the search, and the stages that follow from them."""

import dataclasses
from collections.abc import Hashable

from drnas_jax.config.fields import (
    Component,
    at_least,
    choices,
    field,
    less_than,
    more_than,
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of progressive learning (DrNAS paper).

    Attributes:
      epochs: Number of epochs of the stage.
      partial_channels: K; 1/K of the channels pass through the operations.
      operations: Number of operations kept on each edge.
      warmup_epochs: Number of epochs at the beginning during which alpha stays frozen.
    """

    epochs: int
    partial_channels: int
    operations: int
    warmup_epochs: int


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The bilevel search. Fields that change with the stages have one entry for each stage."""

    channels: int = field(16, "Channels C of the first cell.", at_least(1))
    cells: int = field(
        5,
        "Cells in each stage of the network (NAS-Bench-201's N), or in all (DARTS), or layers.",
        at_least(1),
    )
    batch_size: int = field(64, "Images of a batch, over all devices.", at_least(1))
    train_fraction: float = field(
        0.5,
        "Share of the training images on which the weights are trained.",
        more_than(0),
        less_than(1),
    )
    alpha_fraction: float = field(
        0.0, "Share on which alpha is trained; 0: all the others.", at_least(0)
    )
    split_by_class: bool = field(False, "Whether both shares are taken within each class.")
    epochs: tuple[int, ...] = field((50, 50), "Epochs of each stage.", at_least(1))
    partial_channels: tuple[int, ...] = field(
        (4, 2), "K of each stage: 1/K of the channels pass through the operations.", at_least(1)
    )
    operations: tuple[int, ...] = field(
        (5, 3), "Operations kept on each edge in each stage.", at_least(1)
    )
    warmup_epochs: tuple[int, ...] = field(
        (10, 10), "Epochs at the beginning of each stage with alpha frozen.", at_least(0)
    )
    optimizer: str = field(
        "sgd", "Optimiser of the weights: 'sgd' or 'adamw'.", choices("sgd", "adamw")
    )
    lr: float = field(0.025, "Largest learning rate of the weights.", at_least(0))
    lr_end: float = field(0.001, "Learning rate at the end of the schedule.", at_least(0))
    lr_schedule: str = field(
        "cosine",
        "Decay of the learning rate over all stages together: 'cosine' or 'linear'.",
        choices("cosine", "linear"),
    )
    lr_warmup_epochs: int = field(
        0, "Epochs of linear warm-up, in place of the first ones of the schedule.", at_least(0)
    )
    tuning_epochs: int = field(
        0, "Last epochs, in which the learning rate's schedule starts again.", at_least(0)
    )
    tuning_lr: float = field(0.0025, "Learning rate at the start of these epochs.", at_least(0))
    momentum: float = field(0.9, "Momentum of SGD.", at_least(0), less_than(1))
    weight_decay: float = field(3e-4, "Weight decay.", at_least(0))
    clip: float = field(
        5.0, "Largest global norm of the weights' gradient; 0: not clipped.", at_least(0)
    )
    sync_batchnorm: bool = field(False, "Whether batch statistics are taken over all devices.")
    sample_per_device: bool = field(
        False, "Whether each device draws its own sample of the mixing weights."
    )
    selection: str = field(
        "mean",
        "How the result is selected: a bundled rule, or your own module.",
        component=Component("selection", "selection_options"),
    )
    selection_options: Hashable = field(None, "Options of the selection rule.")
    stopping: str = field(
        "",
        "Rule that stops the search early: a bundled one, or your own module; empty: none.",
        component=Component("stopping", "stopping_options", none=""),
    )
    stopping_options: Hashable = field(None, "Options of the stopping rule.")
    ranked_batches: int = field(
        16, "Validation batches on which each of the ranked_cells is judged.", at_least(1)
    )
    ranked_cells: int = field(
        0, "Random cells judged after each epoch, only for the history.", at_least(0)
    )
    compared_cells: int = field(
        50, "Random cells beside which the result is judged at the end; 0: none.", at_least(0)
    )
    compared_batches: int = field(
        4, "Validation batches on which each of the compared_cells is judged.", at_least(1)
    )
    hessian_batches: int = field(
        0,
        "Validation batches for the Hessian in alpha after each epoch; 0: not measured.",
        at_least(0),
    )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        columns = (self.epochs, self.partial_channels, self.operations, self.warmup_epochs)
        return tuple(Stage(*row) for row in zip(*columns, strict=True))
