"""Tables of true accuracies: which one a run has, and where its file is."""

import os
from pathlib import Path
from types import ModuleType

from drnas_jax import components
from drnas_jax.config import Config
from drnas_jax.errors import UserError
from drnas_jax.tables.base import Table

__all__ = ["Table", "locate", "names", "open_table"]


def names() -> list[str]:
    """Returns the names of the bundled tables."""
    return components.names("table")


def open_table(config: Config) -> Table | None:
    """Opens the table of true accuracies that a run has.

    Returns:
      The table, or None if the run has none.

    Raises:
      UserError: The config names a table or a file that does not exist, or the file is damaged.
    """
    located = locate(config)
    if located is None:
        return None
    _, file = located
    name = _name(config)
    return components.create("table", name, config.table.options, file, field="table.name")


def locate(config: Config) -> tuple[ModuleType, str] | None:
    """Finds the table of a run and its file without reading the file.

    The table is the one that `config.table.name` names, or else the bundled table of the search
    space, see `components.table_of`. Its file is `config.table.file`, or else the table's `FILE`
    beside the data directory.

    Returns:
      The module of the table and the path of its file (empty if the table needs none), or None if
      the run has no table.

    Raises:
      UserError: The config names a table or a file that does not exist.
    """
    name, file = _name(config), config.table.file
    if not name:
        if file:
            raise UserError(
                f"table.file is {file!r}, but the space {config.space} has no bundled table: set "
                "table.name to the table that reads this file"
            )
        return None
    module = components.find("table", name, "table.name")
    if file:
        path = os.path.expanduser(file)
        if not os.path.isfile(path):
            raise UserError(f"table.file is {file!r}, and there is no such file: correct the path")
        return module, path
    relative = getattr(module, "FILE", "")
    if not relative:
        return module, ""
    beside = Path(os.path.expanduser(config.data.dir)).absolute().parent / relative
    if config.data.dir and beside.is_file():
        return module, str(beside)
    if config.table.name:
        raise UserError(
            f"table.name is {name!r}, and there is no {relative} beside the data directory "
            f"{config.data.dir!r}: set table.file"
        )
    return None


def _name(config: Config) -> str:
    """Returns the name of a run's table, or an empty string if it has none."""
    return config.table.name or components.table_of(components.short_name(config.space))
