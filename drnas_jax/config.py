"""From a ConfigDict to frozen dataclasses: types and ranges checked once, errors name the field.

What each field means is written in `configs/base.py`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from drnas_jax.errors import UserError, check_choice


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are augmented."""

    name: str
    dir: str
    image_size: int
    crop: str
    crop_padding: int
    flip: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    memory_limit_mb: int
    workers: int
    corrupt: str


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """The mixing distribution and the optimiser of its alpha."""

    name: str
    lr: float
    b1: float
    b2: float
    clip: float
    regulariser: str
    strength: float
    temperature: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of progressive learning (DrNAS paper).

    Attributes:
      epochs: its length.
      partial_channels: K; 1/K of the channels pass through the operations.
      operations: operations kept on each edge.
      warmup_epochs: epochs at its start in which alpha stays frozen.
    """

    epochs: int
    partial_channels: int
    operations: int
    warmup_epochs: int


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The bilevel search. Fields that progress with the stages are tuples, one entry a stage."""

    channels: int
    cells: int
    batch_size: int
    train_fraction: float
    alpha_fraction: float
    split_by_class: bool
    epochs: tuple[int, ...]
    partial_channels: tuple[int, ...]
    operations: tuple[int, ...]
    warmup_epochs: tuple[int, ...]
    lr: float
    lr_end: float
    lr_schedule: str
    lr_warmup_epochs: int
    momentum: float
    weight_decay: float
    clip: float
    sync_batchnorm: bool
    sample_per_device: bool
    edge_ranking: str
    candidates: int
    candidate_batches: int
    ranked_cells: int
    hessian_batches: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order."""
        columns = (self.epochs, self.partial_channels, self.operations, self.warmup_epochs)
        return tuple(Stage(*row) for row in zip(*columns, strict=True))


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
    """Training of the derived network from scratch."""

    channels: int
    cells: int
    batch_size: int
    epochs: int
    lr: float
    lr_end: float
    lr_schedule: str
    lr_warmup_epochs: int
    momentum: float
    nesterov: bool
    weight_decay: float
    clip: float
    sync_batchnorm: bool
    cutout: int
    color_jitter: tuple[float, ...]
    label_smoothing: float
    drop_path: float
    auxiliary_weight: float
    max_macs: float


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How it is computed, which changes a result by rounding alone."""

    kernels: str
    dtype: str
    remat: str
    donate: bool


@dataclasses.dataclass(frozen=True)
class NasBench201Config:
    """The table of true accuracies."""

    table: str


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. Hashable, and equal when every field is."""

    seed: int
    seeds: int
    space: str
    stem: str
    genotype: str
    checkpoint: str
    checkpoint_steps: int
    data: DataConfig
    arch: ArchConfig
    search: SearchConfig
    retrain: RetrainConfig
    compute: ComputeConfig
    nasbench201: NasBench201Config

    def of_each_seed(self) -> "list[Config]":
        """The runs that `seeds` asks for, each by itself."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [dataclasses.replace(self, seed=seed, seeds=1) for seed in seeds]


# Where things lie and how the work is done, which leaves a run's result as it is, and what else is
# evaluated in its workdir: it may go on with others of these.
FREE = ("data.dir", "data.workers", "nasbench201.table", "checkpoint", "checkpoint_steps")


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Checks every field of a ConfigDict (or of a plain mapping) and freezes them.

    Raises:
      UserError: a field is missing, unknown, of the wrong type or out of range.
    """
    config = _build(Config, values, "")
    _check(config)
    return config


def freeze(config: Config | Mapping[str, Any]) -> Config:
    """A Config as it is, anything else through `from_config_dict`."""
    return config if isinstance(config, Config) else from_config_dict(config)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values, as they are written to config.json."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs (as plain values) give different runs, with both values."""
    old_fields, new_fields = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{name}: {old_fields.get(name)!r} there, {new_fields.get(name)!r} here"
        for name in sorted({*old_fields, *new_fields} - set(FREE))
        if old_fields.get(name) != new_fields.get(name)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise UserError(f"config field {prefix.rstrip('.')} holds {values!r}: expected a group")
    types = get_type_hints(cls)
    given = dict(values.items())
    for name in given:
        check_choice("config field", prefix + name, [prefix + known for known in types])
    missing = sorted(set(types) - set(given))
    if missing:
        raise UserError(f"config field {prefix}{missing[0]} is missing: see configs/base.py")
    return cls(**{name: _convert(kind, given[name], prefix + name) for name, kind in types.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, f"{name}.")
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(_convert(get_args(kind)[0], item, name) for item in items)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"config field {name} is {value!r}: expected {kind.__name__}")
    return kind(value)


def _check(config: Config) -> None:
    arch, search, retrain = config.arch, config.search, config.retrain
    _check_data(config.data)
    jitter = retrain.color_jitter
    if len(jitter) not in (0, 4) or (jitter and (max(jitter[:3]) > 1 or jitter[3] > 0.5)):
        raise UserError(
            f"retrain.color_jitter is {jitter}: expected (brightness, contrast, saturation, hue), "
            "the first three up to 1, hue up to 0.5; or ()"
        )
    check_choice("search.edge_ranking", search.edge_ranking, ("mean", "softmax"))
    check_choice("compute.kernels", config.compute.kernels, ("auto", "plain", "cpu", "gpu", "tpu"))
    check_choice("compute.dtype", config.compute.dtype, ("float32", "bfloat16"))
    check_choice("compute.remat", config.compute.remat, ("auto", "none", "cells", "convolutions"))
    check_choice("arch.regulariser", arch.regulariser, ("l2", "kl", "none"))
    if len(arch.temperature) != 2 or min(arch.temperature) <= 0:
        raise UserError(f"arch.temperature is {arch.temperature}: expected two positive numbers")
    _check_search(search)
    _check_training(config)
    for name, fraction in (
        ("arch.b1", arch.b1),
        ("arch.b2", arch.b2),
        ("search.momentum", search.momentum),
        ("retrain.momentum", retrain.momentum),
        ("retrain.label_smoothing", retrain.label_smoothing),
        ("retrain.drop_path", retrain.drop_path),
    ):
        if not fraction < 1:
            raise UserError(f"config field {name} is {fraction}: expected less than 1")
    if config.seeds < 1:
        raise UserError(f"config field seeds is {config.seeds}: expected at least 1")
    if config.seed + config.seeds > 2**32:  # JAX would drop the bits above
        last = config.seed + config.seeds - 1
        raise UserError(f"config field seed goes up to {last}: expected less than {2**32}")
    for name, value in _leaves(dataclasses.asdict(config)):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                _check_not_negative(name, number)
    _check_stages(search)


def _check_training(config: Config) -> None:
    """Of both phases."""
    search, retrain = config.search, config.retrain
    for phase, part, epochs in (
        ("search", search, sum(search.epochs)),
        ("retrain", retrain, retrain.epochs),
    ):
        if part.lr_warmup_epochs and part.lr_warmup_epochs >= epochs:
            raise UserError(
                f"{phase}.lr_warmup_epochs is {part.lr_warmup_epochs}: expected less than the "
                f"{epochs} epochs"
            )
        check_choice(f"{phase}.lr_schedule", part.lr_schedule, ("cosine", "linear"))
        for field in ("channels", "cells", "batch_size"):
            if getattr(part, field) < 1:
                raise UserError(f"{phase}.{field} is {getattr(part, field)}: expected at least 1")
    if retrain.epochs < 1:
        raise UserError(f"retrain.epochs is {retrain.epochs}: expected at least 1")


def _check_data(data: DataConfig) -> None:
    check_choice("data.flip", data.flip, ("auto", "yes", "no"))
    check_choice("data.crop", data.crop, ("padded", "resized"))
    check_choice("data.corrupt", data.corrupt, ("error", "skip"))
    if data.crop == "resized" and not data.image_size:
        raise UserError("data.crop is 'resized', which needs a size: set data.image_size")
    if max((*data.mean, *data.std), default=0) > 1:
        raise UserError(
            f"data.mean is {data.mean} and data.std {data.std}: expected values of pixels in 0..1; "
            "divide those of pixels in 0..255 by 255"
        )
    if len(data.mean) != len(data.std) or not all(data.std):
        raise UserError(
            f"data.mean is {data.mean} and data.std {data.std}: expected a number for each "
            "channel in both, those of data.std more than 0, or () in both to measure them"
        )


def _check_search(search: SearchConfig) -> None:
    lengths = {
        name: len(getattr(search, name))
        for name in ("epochs", "partial_channels", "operations", "warmup_epochs")
    }
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"search.{name} has {n}" for name, n in lengths.items())
        raise UserError(f"every stage needs one entry in each of its fields, but {counts}")
    if not search.epochs:
        raise UserError("search.epochs is (): the search needs at least one stage")
    if not search.candidate_batches and (search.candidates or search.ranked_cells):
        raise UserError("search.candidate_batches is 0: cells are judged on at least 1 batch")
    if not 0 < search.train_fraction < 1:
        raise UserError(
            f"search.train_fraction is {search.train_fraction}: expected more than 0 and less "
            "than 1"
        )
    if search.train_fraction + search.alpha_fraction > 1:
        raise UserError(
            f"search.train_fraction is {search.train_fraction} and search.alpha_fraction "
            f"{search.alpha_fraction}: together they are more than all images"
        )


def _check_not_negative(name: str, number: float) -> None:
    if not number >= 0 or number == float("inf"):
        raise UserError(f"config field {name} is {number}: expected a finite number, 0 or more")


def _check_stages(search: SearchConfig) -> None:
    for i, stage in enumerate(search.stages):
        if stage.epochs < 1:
            raise UserError(f"search.epochs[{i}] is {stage.epochs}: expected at least 1")
        if stage.operations < 1:
            raise UserError(f"search.operations[{i}] is {stage.operations}: expected at least 1")
        if stage.partial_channels < 1 or search.channels % stage.partial_channels:
            raise UserError(
                f"search.partial_channels[{i}] is K = {stage.partial_channels}, which does not "
                f"divide search.channels = {search.channels}: choose a K that does"
            )
    for field in ("operations", "partial_channels"):
        values = getattr(search, field)
        if list(values) != sorted(values, reverse=True):
            raise UserError(
                f"search.{field} is {values}: a later stage cannot have more than the one before"
            )
