"""What lies in workdirs: all that is known of a run, whether it has ended or not."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drnas_jax import distributions, spaces
from drnas_jax.config import ArchConfig
from drnas_jax.errors import UserError
from drnas_jax.files import read_history, read_json
from drnas_jax.genotype import Genotype, from_json, load_genotype
from drnas_jax.report.exploration import Explored, explore
from drnas_jax.tables import nasbench201
from drnas_jax.tables.nasbench201 import Table
from drnas_jax.workdir import of_seed


class Run(NamedTuple):
    """What lies in a workdir.

    Attributes:
      name: what the page calls it.
      described: its config.json.
      search, retrain: the lines of both histories.
      genotype: what was evaluated, else what the search found, or None.
      result: its result.json, or None.
      table: NAS-Bench-201's, where the run can be judged by one.
    """

    name: str
    described: Mapping[str, Any]
    search: list[dict[str, Any]]
    retrain: list[dict[str, Any]]
    genotype: Genotype | None
    result: Mapping[str, Any] | None
    table: Table | None

    @property
    def title(self) -> str:
        """As a figure's legend calls it."""
        return f"{self.name}, {self.config['arch']['name']}"

    @property
    def config(self) -> Mapping[str, Any]:
        """As plain values."""
        return self.described["config"]

    def truth(self) -> Mapping[str, Any] | None:
        """What the table says of the cell."""
        cell = self.genotype
        if self.table is None or cell is None or cell.space != "nasbench201":
            return None
        return self.table.query(cell)

    def true_accuracy(self, cell: Genotype) -> float:
        """CIFAR-10 test accuracy of a cell after 200 epochs, in percent, by the table."""
        assert self.table is not None
        return self.table.accuracy(cell, "cifar10", "test", 200)

    def explored(self) -> list[Explored]:
        """The true accuracies of cells drawn after each epoch."""
        space, distribution = spaces.find(self.config["space"]), ArchConfig(**self.config["arch"])
        return explore(
            self.search, space, distributions.create(distribution).draw, self.true_accuracy
        )


def read_run(directory: str | os.PathLike[str], name: str) -> Run:
    """Reads a workdir, of a run that may still go on.

    Args:
      directory: the workdir.
      name: what the page shall call it.

    Raises:
      UserError: it is no workdir, or a file in it is damaged.
    """
    directory = Path(directory)
    described = read_json(directory / "config.json")
    if described is None or not isinstance(described.get("config"), dict):
        raise UserError(f"{directory} is no workdir: there is no config.json of a run in it")
    result, found = read_json(directory / "result.json"), directory / "search" / "genotype.json"
    genotype = load_genotype(found) if found.exists() else None
    if result:
        genotype = from_json(result.get("genotype"), str(directory / "result.json"))
    return Run(
        name=name,
        described=described,
        search=read_history(directory / "search" / "history.jsonl"),
        retrain=read_history(directory / "retrain" / "history.jsonl"),
        genotype=genotype,
        result=result,
        table=_table_of(described["config"]),
    )


def _table_of(config: Mapping[str, Any]) -> Table | None:
    """NAS-Bench-201's, where the config tells of one that is (still) there."""
    if config["space"] != "nasbench201":
        return None
    try:
        file = nasbench201.locate(config["nasbench201"]["table"], config["data"]["dir"])
    except UserError as error:
        print(f"without true accuracies: {error}", file=sys.stderr)
        return None
    return nasbench201.load(file) if file else None


def of_each_seed(workdir: Path) -> list[Path]:
    """The workdirs of a run of several seeds, as far as they were begun; of one seed, its own."""
    config = (read_json(workdir / "config.json") or {}).get("config")
    if not isinstance(config, dict) or config["seeds"] == 1:
        return [workdir]
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    paths = [of_seed(workdir, seed) for seed in seeds]
    return [path for path in paths if (path / "config.json").exists()] or [workdir]
