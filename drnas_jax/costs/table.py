"""The cost `table`: seconds of a final network, the sum of layers that were measured one by one."""

import csv
import dataclasses
import functools
import math
from pathlib import Path

from drnas_jax.config import at_least, field
from drnas_jax.costs.base import AdditiveCost, Cost, with_operation
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.nn.layers import COLUMNS, REST, network_layers
from drnas_jax.spaces import uniform_genotypes
from drnas_jax.spaces.base import NetworkSpec, Space

_MEASURE = "`python -m drnas_jax.tools.bench operations --config=... --file=...`"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the cost."""

    file: str = field("", "CSV file of operation, input shape and seconds.", content=True)
    batch: int = field(1, "Images of a batch, as they were measured.", at_least(1))


class MeasuredTable(AdditiveCost):
    """The time of a final network in evaluation mode, according to a table of its layers.

    In a space whose nodes keep all edges, each operation counts with its own time, even if the
    network's program shares work among edges that read the same input.
    """

    unit = "seconds"

    def __init__(self, options: Options):
        super().__init__()
        self.options = options
        self._rows = read_table(options.file)
        self._known: dict[tuple[str, NetworkSpec], float] = {}

    def exact(self, space: Space, network: NetworkSpec) -> float:
        """Returns the seconds of one batch.

        Raises:
          UserError: The table lacks a layer of the network.
        """
        seconds = functools.partial(self._seconds, space, network)
        if any(cell.keep for cell in space.cells.values()):
            return seconds(network.genotype)
        first = uniform_genotypes(space)[0]
        total = seconds(first)
        for cell_type, cell in space.cells.items():
            names = {
                (target, source): name
                for target, node in enumerate(network.genotype.cell(cell_type), cell.inputs)
                for name, source in node
            }
            for row, edge in enumerate(cell.edges):
                name = names[edge.target, edge.source]
                changed = with_operation(space, first, cell_type, row, name)
                total += seconds(changed) - seconds(first)
        return total

    def _seconds(self, space: Space, network: NetworkSpec, genotype: Genotype) -> float:
        """Returns the sum over the layers of a network, and the time of what is in no layer."""
        spec = dataclasses.replace(network, genotype=genotype, auxiliary=False)
        key = space.name, spec
        if key not in self._known:
            module = space.network(spec, backend.PLAIN)
            layers, _ = network_layers(module, spec.image, self.options.batch)
            total = self._row(*REST)
            for layer, times in layers.items():
                total += times * self._row(*layer)
            self._known[key] = total
        return self._known[key]

    def _row(self, operation: str, shape: str) -> float:
        try:
            return self._rows[operation, shape]
        except KeyError:
            place = f" for an input of shape {shape}" if shape else ""
            raise UserError(
                f"cost.options.file is {self.options.file!r}, which has no row for the operation "
                f"{operation!r}{place}: measure all of them with {_MEASURE} and the same "
                "data, retrain.channels, retrain.cells and batch"
            ) from None


def read_table(file: str) -> dict[tuple[str, str], float]:
    """Reads a table of measured layers: seconds by operation and input shape.

    Raises:
      UserError: The file does not exist or is not such a table; the message names the line.
    """
    if not file:
        raise UserError(f"cost.options.file is '': give the table that {_MEASURE} writes")
    path = Path(file).expanduser()
    try:
        with path.open(newline="", encoding="utf-8") as opened:
            lines = list(csv.reader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cost.options.file is {file!r}, which cannot be read ({error}): give the table that "
            f"{_MEASURE} writes"
        ) from error
    if not lines or tuple(lines[0]) != COLUMNS:
        found = ",".join(lines[0])[:80] if lines else "nothing"
        raise UserError(f"{file}, line 1 is {found!r}: expected the columns {','.join(COLUMNS)}")
    rows = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            operation, shape, text = line
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise UserError(
                f"{file}, line {number} is {','.join(line)[:80]!r}: expected an operation, the "
                "shape of its input, and its seconds"
            )
        rows[operation, shape] = seconds
    return rows


def create(options: Options) -> Cost:
    """Returns the cost."""
    return MeasuredTable(options)
