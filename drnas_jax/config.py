"""The schema of a run's config: every field once, with its default, its meaning and its check.

A recipe starts from `defaults()`, an ml_collections ConfigDict, and `from_config_dict` turns that
into a frozen `Config`, in which every value is checked; each error names its field.

A component (a search space, a mixing distribution, ...) may have options of its own. Its module
defines them as a frozen dataclass `Options`, whose fields have defaults and are of the types
`bool`, `int`, `float`, `str` or a tuple of one of these, as in `tuple[int, ...]`:

    from drnas_jax.config import at_least, field

    @dataclasses.dataclass(frozen=True)
    class Options:
        patch: int = field(4, "Side of a patch in pixels.", at_least(1))
        heads: int = 2  # a plain default works too
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from drnas_jax import components
from drnas_jax.errors import UserError

# Takes a value, or each item of a tuple; returns what was expected instead, or None if it is fine.
Check = Callable[[Any], str | None]


def at_least(low: float) -> Check:
    """Returns the check that a number is `low` or more."""
    return lambda value: None if value >= low else f"at least {low}"


def more_than(low: float) -> Check:
    """Returns the check that a number is more than `low`."""
    return lambda value: None if value > low else f"more than {low}"


def less_than(high: float) -> Check:
    """Returns the check that a number is less than `high`."""
    return lambda value: None if value < high else f"less than {high}"


def at_most(high: float) -> Check:
    """Returns the check that a number is `high` or less."""
    return lambda value: None if value <= high else f"at most {high}"


def choices(*allowed: str) -> Check:
    """Returns the check that a text is one of those given."""
    return lambda value: None if value in allowed else f"one of {', '.join(allowed)}"


@dataclasses.dataclass(frozen=True)
class Component:
    """Says of a field that its value names a component.

    Attributes:
      kind: Key of `components.KINDS`.
      options: Name of the field of the same group that holds the component's options.
      none: Value that stands for no component, or None if there must be one.
      others: Whether other words than the names of bundled components are accepted too, as the
        names of TFDS data sets are. They have no options.
    """

    kind: str
    options: str
    none: str | None = None
    others: bool = False


def field(default: Any, meaning: str, *checks: Check, component: Component | None = None) -> Any:
    """Declares a field of the schema or of a component's `Options`.

    Args:
      default: Value that the field has if none is given.
      meaning: One sentence for `--help`.
      *checks: What a value, or each item of a tuple, must satisfy.
      component: Set if the value names a component.
    """
    metadata = dict(meaning=meaning, checks=checks, component=component)
    return dataclasses.field(default=default, metadata=metadata)


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
        "What an unreadable image does: 'error', or 'skip' (a streamed one is replaced).",
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
        "Penalty on alpha: 'l2', 'kl' (Dirichlet only), 'none', or your own module.",
        component=Component("penalty", "regulariser_options", none="none"),
    )
    regulariser_options: Hashable = field(None, "Options of the penalty.")
    strength: float = field(1e-3, "Factor of the penalty.", at_least(0))


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
        5, "Cells in each stage of the network (NAS-Bench-201's N), or in all (DARTS).", at_least(1)
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


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
    """Training of the derived network from scratch."""

    channels: int = field(16, "Channels C of the first cell.", at_least(1))
    cells: int = field(5, "Cells, counted as in search.cells.", at_least(1))
    batch_size: int = field(64, "Images of a batch, over all devices.", at_least(1))
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


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the work is done; results change only by rounding."""

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


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """The table of true accuracies."""

    name: str = field(
        "",
        "Table: a bundled one, or your own module; empty: the bundled one with the space's name.",
        component=Component("table", "options", none=""),
    )
    file: str = field("", "File of the table; empty: looked for beside data.dir.")
    options: Hashable = field(None, "Options of the table.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. It is hashable, and two are equal if all their fields are."""

    seed: int = field(0, "Seed of all randomness of the run.", at_least(0))
    seeds: int = field(
        1,
        "Number of runs: with this seed and those after it, each in its own workdir.",
        at_least(1),
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
        "", "Directory of checkpoints to evaluate; empty: that of the run's own retraining."
    )
    checkpoint_steps: int = field(
        0, "Steps between additional checkpoints; 0: only one after each epoch.", at_least(0)
    )
    data: DataConfig = DataConfig()
    arch: ArchConfig = ArchConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    cost: CostConfig = CostConfig()
    compute: ComputeConfig = ComputeConfig()
    table: TableConfig = TableConfig()

    def of_each_seed(self) -> "list[Config]":
        """Returns the single runs that `seeds` asks for."""
        seeds = range(self.seed, self.seed + self.seeds)
        return [dataclasses.replace(self, seed=seed, seeds=1) for seed in seeds]

    def component_names(self) -> dict[str, str]:
        """Returns the name of every component that the run uses, by the field that names it."""
        values = {name: _get(self, name) for name in COMPONENTS}
        if not values["table.name"] and self.space in components.names("table"):
            values["table.name"] = self.space
        return {name: value for name, value in values.items() if value != COMPONENTS[name].none}


GROUPS: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(Config).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}


def schema() -> Iterator[tuple[str, dataclasses.Field]]:
    """Yields the full name, such as `search.lr`, and the declaration of every field."""
    for declared in dataclasses.fields(Config):
        if declared.name in GROUPS:
            for inner in dataclasses.fields(GROUPS[declared.name]):
                yield f"{declared.name}.{inner.name}", inner
        else:
            yield declared.name, declared


# Fields that name a component, by their full names.
COMPONENTS: dict[str, Component] = {
    name: declared.metadata["component"]
    for name, declared in schema()
    if declared.metadata["component"]
}
# Fields that hold options, by their full names -> the field that names the component.
OPTIONS: dict[str, str] = {
    f"{name.rpartition('.')[0]}.{component.options}".lstrip("."): name
    for name, component in COMPONENTS.items()
}
# Fields that may change between the phases of a run: where things are stored and how the work is
# done, which leaves the result as it is, and what else is evaluated in the same workdir.
FREE = (
    *("data.dir", "data.download", "data.workers", "table.file"),
    *("checkpoint", "checkpoint_steps"),
)
# The fields that only one phase reads, by their beginnings: they may change until it begins.
OF_PHASE = {"search": ("search.", "arch.", "cost."), "retrain": ("retrain.", "genotype")}


def defaults() -> ConfigDict:
    """Returns all fields with their defaults, as a ConfigDict in which only these can be set.

    A recipe sets the options of a component after its name, either way:

        config.space = "my_spaces/vit.py"
        config.space_options = dict(patch=4)
        config.space_options.patch = 4
    """
    return to_config_dict(plain(Config()))


def to_config_dict(values: Mapping[str, Any]) -> ConfigDict:
    """Returns nested values as a ConfigDict that is locked, except for the groups of options."""
    config = ConfigDict(values)
    config.lock()
    for name in OPTIONS:
        _get(config, name).unlock()
    return config


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Checks a ConfigDict, or a plain nested mapping, and returns it as a frozen Config.

    Fields that are not given have their defaults.

    Raises:
      UserError: A field is unknown, of the wrong type or out of range, or names a component that
        does not exist.
    """
    config = build(values)
    _check(config)
    return config


def build(values: Mapping[str, Any]) -> Config:
    """Does what `from_config_dict` does, except for the checks that compare several fields."""
    config = Config(**_values(Config, values, ""))
    used = config.component_names()
    for name in OPTIONS:
        config = _with_options(config, name, used.get(OPTIONS[name]))
    return config


def freeze(config: Config | Mapping[str, Any]) -> Config:
    """Returns a Config as it is and passes anything else to `from_config_dict`."""
    return config if isinstance(config, Config) else from_config_dict(config)


def plain(config: Config) -> dict[str, Any]:
    """Returns all fields as nested dicts; a component without options has an empty dict of them."""
    values = dataclasses.asdict(config)
    for name in OPTIONS:
        group, _, last = name.rpartition(".")
        owner = values[group] if group else values
        owner[last] = owner[last] or {}
    return values


def to_dict(config: Config) -> dict[str, Any]:
    """Returns all fields as they are written to config.json: nested, with lists for tuples."""
    return json.loads(json.dumps(plain(config)))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full name and the value of every field of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], begun: Iterable[str] = tuple(OF_PHASE)
) -> dict[str, str]:
    """Compares two configs, as `to_dict` gives them.

    Args:
      old: One config.
      new: Another config.
      begun: Phases that have begun; fields that only other phases read are not compared.

    Returns:
      The fields that change the result of a run, each with a text that states both values.
    """
    old_fields, new_fields = dict(leaves(old)), dict(leaves(new))
    begun = set(begun)
    if "search" in begun and (old_fields.get("cost.name") or new_fields.get("cost.name")):
        shared = {"retrain.channels", "retrain.cells"}  # the cost is that of the final network
    else:
        shared = set()
    unread = tuple(
        prefix for phase, names in OF_PHASE.items() if phase not in begun for prefix in names
    )

    def state(fields: Mapping[str, Any], name: str) -> str:
        return repr(fields[name]) if name in fields else "not set"

    return {
        name: f"{name} was {state(old_fields, name)} and is {state(new_fields, name)}"
        for name in sorted({*old_fields, *new_fields} - set(FREE))
        if state(old_fields, name) != state(new_fields, name)
        and (name in shared or not name.startswith(unread))
    }


def unknown_field(name: str, known: Iterable[str]) -> UserError:
    """Makes the error for a field that does not exist; it lists similar fields, or its group's."""
    known = list(known)
    group = name if name in OPTIONS else name.rpartition(".")[0]
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        return UserError(
            f"config field {name} is a group: set one of its fields, such as {inside[0]}"
        )
    prefix = f"{group}." if group else ""
    beside = [other.removeprefix(prefix) for other in known if other.startswith(prefix)]
    siblings = list(dict.fromkeys(other.partition(".")[0] for other in beside))
    if group in OPTIONS and not siblings:
        return UserError(
            f"unknown config field {name!r}: the component that {OPTIONS[group]} names has no "
            "options, so remove it"
        )
    last = name.rpartition(".")[2]
    near = [prefix + other for other in difflib.get_close_matches(last, siblings)]
    near += [other for other in known if other.endswith(f".{last}")]  # of another group
    if not siblings:
        near = difflib.get_close_matches(name, known, cutoff=0.75)
    if not near and not siblings:
        return UserError(f"unknown config field {name!r}: choose one of those that --help lists")
    listed = ", ".join(near or [prefix + other for other in siblings])
    return UserError(f"unknown config field {name!r}: choose one of {listed}")


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _mapping(values: Any, name: str) -> Mapping[str, Any]:
    if hasattr(values, "items"):
        return dict(values.items())
    what = f"config field {name} is {values!r}" if name else f"the config is {values!r}"
    raise UserError(f"{what}: expected a group of fields")


def _values(cls: type, given: Any, prefix: str) -> dict[str, Any]:
    """Checks the values given for a dataclass, and adds the defaults of its other fields."""
    given = _mapping(given, prefix.rstrip("."))
    fields = {declared.name: declared for declared in dataclasses.fields(cls) if declared.init}
    types = get_type_hints(cls)
    for name in given:
        if name not in fields:
            raise unknown_field(prefix + name, [prefix + known for known in fields])
    values = {}
    for name, declared in fields.items():
        if (kind := types[name]) in GROUPS.values():
            values[name] = kind(**_values(kind, given.get(name, {}), f"{name}."))
            continue
        value = given[name] if name in given else _default(declared, prefix + name)
        if prefix + name not in OPTIONS:  # `build` checks those later
            value = _convert(kind, value, prefix + name)
            _apply(declared.metadata.get("checks", ()), value, prefix + name)
        values[name] = value
    return values


def _default(declared: dataclasses.Field, name: str) -> Any:
    if declared.default is not dataclasses.MISSING:
        return declared.default
    if declared.default_factory is not dataclasses.MISSING:
        return declared.default_factory()
    raise UserError(f"config field {name} has no default: give it one in the class Options")


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Checks the type of a value; a number becomes a float where one is expected."""
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        if not isinstance(value, list | tuple):
            return (_convert(get_args(kind)[0], value, name),)
        items = enumerate(value)
        return tuple(_convert(get_args(kind)[0], item, f"{name}[{i}]") for i, item in items)
    if kind not in (bool, int, float, str):
        raise UserError(
            f"config field {name} has the type {kind}: give it one of bool, int, float and str, or "
            "a tuple of one of them, such as tuple[int, ...]"
        )
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"config field {name} is {value!r}: expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config field {name} is {value!r}: expected a finite number")
    return kind(value)


def _apply(checks: Iterable[Check], value: Any, name: str) -> None:
    items = [(name, value)]
    if isinstance(value, tuple):
        items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    for check in checks:
        for where, item in items:
            if expected := check(item):
                raise UserError(f"config field {where} is {item!r}: expected {expected}")


def _module(name: str, field_name: str) -> ModuleType | None:
    """Returns the module of a component, or None for a name that has no module."""
    kind, others = COMPONENTS[field_name].kind, COMPONENTS[field_name].others
    if others and not components.is_users(name) and name not in components.names(kind):
        return None
    return components.find(kind, name, field_name)


def _with_options(config: Config, name: str, component: str | None) -> Config:
    """Replaces the given options of a component by an instance of its `Options`.

    Args:
      config: Config in which the options are still a mapping, or None.
      name: Full name of the field with the options.
      component: Name of the component; None if the run has none.
    """
    given = _mapping(_get(config, name) or {}, name)
    module = None if component is None else _module(component, OPTIONS[name])
    options = None if module is None else components.options_type(module)
    if options is None and given:
        raise unknown_field(f"{name}.{next(iter(given))}", ())
    group, _, last = name.rpartition(".")
    changed: dict[str, Any] = {last: None if options is None else _make(options, given, name)}
    if group:
        changed = {group: dataclasses.replace(getattr(config, group), **changed)}
    return dataclasses.replace(config, **changed)


def _make(options: type, given: Mapping[str, Any], name: str) -> Any:
    values = _values(options, given, f"{name}.")
    try:
        return options(**values)
    except ValueError as error:  # of its own __post_init__
        raise UserError(f"config field {name}: {' '.join(str(error).split())}") from error


def _check(config: Config) -> None:
    if config.seed + config.seeds > 2**32:  # JAX would drop the bits above
        last = config.seed + config.seeds - 1
        raise UserError(f"config field seed goes up to {last}: expected less than {2**32}")
    _check_data(config.data)
    _check_search(config.search)
    _check_stages(config.search)
    _check_retrain(config.retrain)
    _check_warmup("search", config.search, sum(config.search.epochs))
    _check_warmup("retrain", config.retrain, config.retrain.epochs)
    _check_cost(config)


def _check_data(data: DataConfig) -> None:
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
    if search.train_fraction + search.alpha_fraction > 1:
        raise UserError(
            f"search.train_fraction is {search.train_fraction} and search.alpha_fraction "
            f"{search.alpha_fraction}: their sum is more than 1, which is all images"
        )


def _check_stages(search: SearchConfig) -> None:
    for i, stage in enumerate(search.stages):
        if search.channels % stage.partial_channels:
            raise UserError(
                f"search.partial_channels[{i}] is K = {stage.partial_channels}, which does not "
                f"divide search.channels = {search.channels}: choose a K that does"
            )
    for name in ("operations", "partial_channels"):
        values = getattr(search, name)
        if list(values) != sorted(values, reverse=True):
            raise UserError(
                f"search.{name} is {values}: a later stage cannot have more than the one before"
            )


def _check_retrain(retrain: RetrainConfig) -> None:
    jitter = retrain.color_jitter
    if len(jitter) not in (0, 4) or (jitter and (max(jitter[:3]) > 1 or jitter[3] > 0.5)):
        raise UserError(
            f"retrain.color_jitter is {jitter}: expected (brightness, contrast, saturation, hue), "
            "the first three up to 1, hue up to 0.5; or ()"
        )


def _check_warmup(phase: str, group: SearchConfig | RetrainConfig, epochs: int) -> None:
    if group.lr_warmup_epochs and group.lr_warmup_epochs >= epochs:
        raise UserError(
            f"{phase}.lr_warmup_epochs is {group.lr_warmup_epochs}: expected less than the "
            f"{epochs} epochs of the phase"
        )


def _check_cost(config: Config) -> None:
    cost = config.cost
    for name in ("weight", "target"):
        if getattr(cost, name) and not cost.name:
            raise UserError(f"cost.{name} is {getattr(cost, name)}, but cost.name is empty: set it")
    if cost.target and config.retrain.max_macs:
        raise UserError(
            f"cost.target is {cost.target} and retrain.max_macs {config.retrain.max_macs}, which "
            "both choose the size of the network: set one of them to 0"
        )
