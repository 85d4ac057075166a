"""All that a workdir says about its run, whether the run has ended or not."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drnas_jax import distributions, spaces, tables
from drnas_jax.config import Config, elements, from_config_dict
from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.genotype import Genotype, from_json, load
from drnas_jax.phases.confusions import FILE as EVALUATION
from drnas_jax.phases.confusions import Evaluation, read_evaluation
from drnas_jax.phases.search.advice import is_cheapest, warnings_about
from drnas_jax.phases.search.comparison import Comparison
from drnas_jax.report.exploration import Explored, explore
from drnas_jax.report.fields import Fields
from drnas_jax.report.history import Edges, Epoch, read_epochs
from drnas_jax.spaces import Space
from drnas_jax.tables import Table


@dataclasses.dataclass(frozen=True)
class Result:
    """The values of a result.json that the report shows; accuracies in 0..1.

    Attributes:
      params: Number of parameters of the network.
      macs: Number of its multiply-adds for one image.
      test_accuracy: Accuracy on the test images.
      test_top5: Top-5 accuracy on the test images.
      seconds: Duration of the phases, in seconds; None if unknown.
    """

    params: int
    macs: int
    test_accuracy: float
    test_top5: float
    seconds: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of the search's result, from genotype.json.

    Attributes:
      unit: Name of the unit.
      exact: Cost of the final network.
      target: Largest cost that the config allows, or None.
      smallest: Cost of the cheapest network of the space, or None if an older version has not
        recorded it.
      largest: Cost of the largest network of the space, or None as above.
    """

    unit: str
    exact: float
    target: float | None
    smallest: float | None = None
    largest: float | None = None

    @property
    def is_cheapest(self) -> bool:
        """Whether the network is known to be the cheapest of the space."""
        if self.smallest is None or self.largest is None:
            return False
        return is_cheapest(self.exact, self.smallest, self.largest)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The facts about the search in a genotype.json.

    Attributes:
      stopped: Why a rule has stopped the search early, or an empty string.
      cost: Cost of the search's result, or None.
      compared: Comparison of the result with random cells in the supernet, or None.
      seconds: Duration of the search in seconds, or None if it has not ended.
    """

    stopped: str = ""
    cost: Cost | None = None
    compared: Comparison | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a workdir.

    Attributes:
      directory: Path of the workdir.
      name: Name of the workdir on the page.
      config: Config of the run.
      described: Contents of config.json: the config as plain values, versions and devices.
      search: Epochs of the search.
      retrain: Epochs of the retraining.
      genotype: Genotype that was evaluated, or else the one that was found, or None.
      result: Result of the evaluation, or None.
      evaluation: Confusions of the evaluated network, or None.
      provenance: What is known about the search's result.
      table: Table of true accuracies, or None.
      space: Search space.
      edges: Edges of each cell type of the search space.
    """

    directory: Path
    name: str
    config: Config
    described: Mapping[str, Any]
    search: list[Epoch]
    retrain: list[Epoch]
    genotype: Genotype | None
    result: Result | None
    evaluation: Evaluation | None
    provenance: Provenance
    table: Table | None
    space: Space
    edges: Mapping[str, Edges]

    @property
    def validation(self) -> float | None:
        """Last validation accuracy of the supernet, in 0..1, or None."""
        known = [line.valid_accuracy for line in self.search if line.valid_accuracy is not None]
        return known[-1] if known else None

    @property
    def search_seconds(self) -> float | None:
        """Duration of the search in seconds, or None if it has not ended."""
        if self.result and self.result.seconds["search"] is not None:
            return self.result.seconds["search"]
        return self.provenance.seconds

    @property
    def warnings(self) -> list[str]:
        """What speaks against the result of the search, each with a remedy."""
        cost = self.provenance.cost
        cheapest = cost is not None and cost.is_cheapest
        return warnings_about(self.config, self.provenance.compared, cheapest)

    @property
    def lacks_search(self) -> str:
        """Why numbers of the search are missing, for tables."""
        if self.config.genotype:
            return "no search"
        if self.genotype:
            return "not recorded"
        return "search not ended" if self.search else "search not begun"

    @property
    def lacks_result(self) -> str:
        """Why numbers of the retrained network are missing, for tables."""
        if not self.retrain:
            return "not retrained"
        ended = self.retrain[-1].epoch >= self.config.retrain.epochs
        return "not evaluated" if ended else "retraining not ended"

    @property
    def lacks_accuracy(self) -> str:
        """Why the true accuracy of the genotype is missing, for tables."""
        if self.table is None:
            return "no table"
        return "not in the table" if self.genotype else "no genotype yet"

    def accuracies(self, genotype: Genotype | None) -> Mapping[str, float]:
        """Returns the true test accuracies in percent by data set; empty if they are unknown."""
        if self.table is None or genotype is None:
            return {}
        return self.table.accuracies(genotype) or {}

    def accuracy(self, genotype: Genotype | None) -> float | None:
        """Returns the true test accuracy in percent on the table's main data set, or None."""
        return next(iter(self.accuracies(genotype).values()), None)

    def mean_accuracies(self) -> dict[int, float]:
        """Returns the known true accuracies of the genotypes of the mean, in percent by epoch."""
        return {
            line.epoch: accuracy
            for line in self.search
            if (accuracy := self.accuracy(line.genotype)) is not None
        }

    def explored(self) -> list[Explored]:
        """Draws cells after each epoch and looks up their true accuracies, if there is a table."""
        if self.table is None:
            return []
        arch = self.config.arch
        draw = distributions.create(arch.name, arch.options).draw
        return explore(self.search, self.space, draw, self.accuracy)

    def describe(self, genotype: Genotype) -> str:
        """Returns a genotype as one line of text, as its space writes it."""
        space = self.space
        if genotype.space != space.name:  # a checkpoint from elsewhere
            space = spaces.create(genotype.space)
        return space.describe(genotype)


def edges_of(space: Space) -> dict[str, Edges]:
    """Returns the edges of each cell type of a search space."""
    return {
        cell_type: Edges(
            tuple(edge.name for edge in cell.edges), tuple(edge.primitives for edge in cell.edges)
        )
        for cell_type, cell in space.cells.items()
    }


def read_run(directory: str | os.PathLike[str], name: str) -> Run:
    """Reads a workdir, whose run may still be going on.

    Args:
      directory: Path of the workdir.
      name: Name of the workdir on the page.

    Raises:
      UserError: It is not a workdir, or one of its files is damaged.
    """
    directory = Path(directory)
    described, config = _read_config(directory)
    space = spaces.create(config.space, config.space_options)
    edges = edges_of(space)
    genotype_file, result_file = directory / "search" / "genotype.json", directory / "result.json"
    genotype = load(genotype_file) if genotype_file.exists() else None
    values, result = read_json(result_file), None
    if values is not None:
        genotype = from_json(values.get("genotype"), f"{result_file}: genotype")
        result = _result(Fields(values, str(result_file)))
    return Run(
        directory=directory,
        name=name,
        config=config,
        described=described,
        search=read_epochs(directory / "search" / "history.jsonl", space.name, edges),
        retrain=read_epochs(directory / "retrain" / "history.jsonl", space.name, edges),
        genotype=genotype,
        result=result,
        evaluation=read_evaluation(directory / EVALUATION),
        provenance=read_provenance(genotype_file),
        table=_table_of(config),
        space=space,
        edges=edges,
    )


def elements_of(workdir: Path) -> dict[str, Path]:
    """Returns the workdirs of the runs that a config asks for, by name, see `config.elements`."""
    _, config = _read_config(workdir)
    return {name: workdir / name for name in elements(config)}


def begun_elements(workdir: Path) -> list[Path]:
    """Returns the workdirs of the runs that have begun, or the workdir itself if none has."""
    paths = elements_of(workdir).values()
    return [path for path in paths if (path / "config.json").exists()] or [workdir]


def has_targets(workdir: Path) -> bool:
    """Returns whether a workdir is that of a sweep over `cost.targets`."""
    return bool(_read_config(workdir)[1].cost.targets)


def _read_config(directory: Path) -> tuple[Mapping[str, Any], Config]:
    file = directory / "config.json"
    described = read_json(file)
    if described is None:
        raise UserError(
            f"{directory} is not a workdir, since it has no config.json: give that of a run"
        )
    fields = Fields(described, str(file))
    fields.mapping("versions")
    devices = described.get("devices")
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        raise fields.fault("devices", "a list of names")
    if not fields.mapping("config"):
        raise fields.fault("config", "the fields of a run's config")
    try:
        return described, from_config_dict(fields.mapping("config"))
    except UserError as error:
        raise UserError(f"the config in {file} cannot be used: {error}") from error


def _result(fields: Fields) -> Result:
    return Result(
        params=fields.count("params"),
        macs=fields.count("macs"),
        test_accuracy=fields.number("test_accuracy"),
        test_top5=fields.number("test_top5"),
        seconds={
            phase: fields.number_or_none(f"{phase}_seconds") for phase in ("search", "retrain")
        },
    )


def read_provenance(file: Path) -> Provenance:
    """Reads the provenance in a genotype.json; a file that does not exist says nothing.

    Raises:
      UserError: The file is damaged.
    """
    values = Fields(read_json(file) or {}, str(file)).mapping("provenance")
    provenance = Fields(values, f"{file}: provenance")
    return Provenance(
        stopped=provenance.text("stopped") if "stopped" in values else "",
        cost=_cost(Fields(provenance.mapping("cost"), f"{file}: cost")),
        compared=_compared(Fields(provenance.mapping("compared"), f"{file}: compared")),
        seconds=provenance.number_or_none("search_seconds"),
    )


def _cost(fields: Fields) -> Cost | None:
    if not fields.values:
        return None
    unit, exact = fields.text("unit"), fields.number("exact")
    names = ("target", "smallest", "largest")
    return Cost(unit, exact, *(fields.number_or_none(name) for name in names))


def _compared(fields: Fields) -> Comparison | None:
    if not fields.values:
        return None
    random = fields.numbers("random")
    return Comparison(fields.count("images"), fields.number("accuracy"), random)


def _table_of(config: Config) -> Table | None:
    """Opens the table of a run, or prints why the report does without it."""
    try:
        return tables.open_table(config)
    except UserError as error:
        print(f"the report lacks true accuracies: {error}", file=sys.stderr)
        return None
