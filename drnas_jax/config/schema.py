"""The names, components and phases of all fields of the config."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from drnas_jax import components
from drnas_jax.config.fields import Component
from drnas_jax.config.groups import Config

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


def get(config: Any, name: str) -> Any:
    """Returns the value of the field with a full name, of a Config or a ConfigDict."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


# Fields that name a component, by their full names.
COMPONENTS: dict[str, Component] = {
    name: declared.metadata["component"]
    for name, declared in schema()
    if declared.metadata["component"]
}
# Field that holds options -> field that names the component, by their full names.
OPTIONS: dict[str, str] = {
    f"{name.rpartition('.')[0]}.{component.options}".lstrip("."): name
    for name, component in COMPONENTS.items()
}
# Fields that may change at any time, because they leave each result as it is: which runs are done,
# where things are stored, how many processes read, how often a checkpoint is written, what else is
# evaluated, what is exported, where curves go, how memory is saved, and how many seeds share a
# program.
# compute.remat may change rounding, which a resumed phase reports; so may compute.seeds_at_once.
FREE = (
    *("element", "data.dir", "data.download", "data.workers", "table.file"),
    *("checkpoint", "checkpoint_steps", "table.name", "table.options"),
    *("compute.remat", "compute.donate", "compute.seeds_at_once", "metrics.writers"),
    *("export.formats", "export.platforms", "export.batch_size", "export.uint8"),
)
# Phase -> prefixes of the fields that only this phase reads. They may change until it begins.
PHASE_FIELDS = {"search": ("search.", "arch.", "cost."), "retrain": ("retrain.", "genotype")}


def component_names(config: Config) -> dict[str, str]:
    """Returns the name of every component that the run uses, by the field that names it."""
    values = {name: get(config, name) for name in COMPONENTS}
    if not values["table.name"]:
        values["table.name"] = components.table_of(config.space)
    return {name: value for name, value in values.items() if value != COMPONENTS[name].none}
