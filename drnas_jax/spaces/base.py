"""The interface of search spaces: cells, a supernet that mixes operations, and a final network.

Shapes: `b` batch, `h w` height and width, `c` channels, `e` edges, `o` operations.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn.backend import Backend
from drnas_jax.training.random_keys import host_generator

# Mixing weights by cell type, float32 [e, o]; 0 beyond the end of an edge's list of primitives.
Mix = Mapping[str, jax.Array]
Scores = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Edge:
    """An edge of a cell, a layer of a chain, or one decision inside a block.

    Attributes:
      target: Number of the node that the edge leads to, as in genotype.json: the cell's inputs
        come first, then its nodes.
      source: Number of the input or node that the edge leaves.
      primitives: Names of the operations that the edge still mixes, in the order of the columns of
        its mixing weights.
    """

    target: int
    source: int
    primitives: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the edge in tables and figures, for example `3<-1`."""
        return f"{self.target}<-{self.source}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """The edges of one cell type.

    Attributes:
      edges: Edges in the order of the rows of the mixing weights; edges that lead to the same node
        follow each other.
      inputs: Number of the cell's inputs.
      keep: Number of edges that each node of the final network keeps (2 in DARTS), or None if it
        keeps all of them.
    """

    edges: tuple[Edge, ...]
    inputs: int = 1
    keep: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [e, o] of the mixing weights; o is the length of the longest edge."""
        return len(self.edges), max(len(edge.primitives) for edge in self.edges)

    @functools.cached_property
    def mask(self) -> np.ndarray | None:
        """Mask, bool [e, o], False beyond the end of an edge's list; None if all are True."""
        lengths = np.array([len(edge.primitives) for edge in self.edges])
        if (lengths == lengths[0]).all():
            return None
        return np.arange(lengths.max()) < lengths[:, None]


@dataclasses.dataclass(frozen=True)
class SupernetSpec:
    """All values that a supernet's module depends on; only a new stage changes them.

    Attributes:
      cells: Pairs of a cell type and its cell.
      channels: Number of channels C of the first cell.
      depth: Number of cells; each space documents which cells it counts.
      classes: Number of outputs.
      image: Shape [h, w, c] of an image.
      partial_channels: K; 1/K of the channels pass through the operations.
    """

    cells: tuple[tuple[str, Cell], ...]
    channels: int
    depth: int
    classes: int
    image: tuple[int, int, int]
    partial_channels: int = 1

    def cell(self, cell_type: str) -> Cell:
        """Returns the cell of one type."""
        return dict(self.cells)[cell_type]


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """All values that a final network's module depends on.

    Attributes:
      genotype: Genotype of the cells.
      channels: Number of channels C of the first cell.
      depth: Number of cells, counted as in SupernetSpec.
      classes: Number of outputs.
      image: Shape [h, w, c] of an image.
      auxiliary: Whether a second classifier in the middle of the network helps its training.
      drop_path: Probability of dropping a path at the end of training; 0 if none is ever dropped.
    """

    genotype: Genotype
    channels: int
    depth: int
    classes: int
    image: tuple[int, int, int]
    auxiliary: bool = False
    drop_path: float = 0.0


class Space:
    """A search space. A subclass sets `name` and `cells`, and defines `supernet` and `network`.

    A module that provides a space has a function `create([options]) -> Space`.

    Attributes:
      name: Name of the space in genotype.json: letters, digits and `_`.
      cells: Cells with all operations, by cell type.
    """

    name: str
    cells: Mapping[str, Cell]

    def check(self, spec: SupernetSpec | NetworkSpec) -> None:
        """Raises UserError if the space cannot build this supernet or network.

        The default refuses an auxiliary head and dropped paths, which most spaces do not have. A
        space that needs certain image sizes or channels checks them here, because this is called
        for every stage and for the final network before any work begins.

        Args:
          spec: Spec of the supernet or of the final network.
        """
        if isinstance(spec, SupernetSpec):
            return
        for value, field, what in (
            (spec.auxiliary and "more than 0", "auxiliary_weight", "have no auxiliary head"),
            (spec.drop_path, "drop_path", "drop no path"),
        ):
            if value:
                raise UserError(
                    f"retrain.{field} is {value}, but networks of the space {self.name} {what}: "
                    "set it to 0"
                )

    def supernet(self, spec: SupernetSpec, backend: Backend) -> nn.Module:
        """Returns a module called as (x [b, h, w, c], mix, train) -> logits [b, classes].

        `mix` contains the mixing weights by cell type, float32 [e, o]; the supernet does not see
        the architecture parameters. Every operation on every edge has separate parameters, see
        `resize`. The random streams `dropout` and `noise` are available in every call.

        Args:
          spec: Spec of the supernet at this stage.
          backend: Kernels for this device. A space may use them or plain Flax layers.
        """
        raise NotImplementedError

    def network(self, spec: NetworkSpec, backend: Backend) -> nn.Module:
        """Returns a module called as (x [b, h, w, c], train) -> logits [b, classes].

        If `spec.auxiliary` is set, it returns a pair in training: the logits, and the logits of the
        auxiliary head. If `spec.drop_path` is set, it takes the current rate as a third argument in
        training, and the random stream `drop_path` is available. The streams `dropout` and `noise`
        are always available.

        Args:
          spec: Spec of the final network.
          backend: Kernels for this device. A space may use them or plain Flax layers.
        """
        raise NotImplementedError

    def derive(self, scores: Scores, spec: SupernetSpec) -> Genotype:
        """Discretises: takes the best operation of each edge, and the best edges of each node.

        If a node keeps only some of its edges, they are ranked by their best operation, and the
        operation `none` never wins (DARTS, arXiv 1806.09055, section 2.4).

        Args:
          scores: Score of each operation by cell type [e, o], for example the mean mixing weights.
          spec: Spec of the supernet, with the remaining operations of each edge.
        """
        return Genotype(
            self.name,
            tuple((cell_type, _best(scores[cell_type], cell)) for cell_type, cell in spec.cells),
        )

    def resize(self, tree: Any, like: Any, old: SupernetSpec, new: SupernetSpec, seed: int) -> Any:
        """Fits a tree of arrays of the supernet `old` to the smaller or wider supernet `new`.

        It is called for each collection of variables and for each tree in the optimiser's state
        that is shaped like the parameters. The default removes the arrays that are not in `like`
        (those of pruned operations) and lengthens each axis that is too short by copies of randomly
        chosen channels. The axes of one operation that have the same old and new length use the
        same choice, so that a channel is copied in all of the operation's arrays.

        Args:
          tree: Nested dicts of arrays; some leaves may be `optax.MaskedNode`.
          like: Shapes of the arrays in the new supernet, nested in the same way.
          old: Spec of the supernet before.
          new: Spec of the supernet after.
          seed: Seed of the copies, another one for each stage of each run.
        """
        del new
        primitives = {
            name for _, cell in old.cells for edge in cell.edges for name in edge.primitives
        }

        def fit(tree: Any, like: Any, path: str, operation: str) -> Any:
            if isinstance(tree, optax.MaskedNode):
                return tree
            if not isinstance(tree, Mapping):
                return _lengthen(np.asarray(tree), like.shape, seed, operation)
            return {
                name: fit(
                    value,
                    like[name],
                    f"{path}/{name}",
                    operation or (f"{path}/{name}" if name in primitives else ""),
                )
                for name, value in tree.items()
                if name in like
            }

        return fit(tree, like, "", "")

    def describe(self, genotype: Genotype) -> str:
        """Returns one line about the genotype, for example `normal: conv(0) + skip(1), ...`."""
        cells = []
        for cell_type, cell in genotype.cells:
            nodes = (" + ".join(f"{name}({source})" for name, source in node) for node in cell)
            cells.append(f"{cell_type}: {', '.join(nodes)}")
        return "; ".join(cells)


def _best(scores: np.ndarray, cell: Cell) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Returns the nodes of a genotype's cell, see Space.derive."""
    nodes = []
    rows = range(len(cell.edges))
    for _, group in itertools.groupby(rows, lambda row: cell.edges[row].target):
        best = {}  # row -> score and name of its best operation
        for row in group:
            names = cell.edges[row].primitives
            values = np.array(scores[row][: len(names)], np.float64)
            if cell.keep is not None and "none" in names:
                values[names.index("none")] = -np.inf
            best[row] = (values.max(), names[int(np.argmax(values))])
        ranked = sorted(best, key=lambda row: -best[row][0])[: cell.keep]
        nodes.append(tuple((best[row][1], cell.edges[row].source) for row in sorted(ranked)))
    return tuple(nodes)


def _lengthen(array: np.ndarray, shape: tuple[int, ...], seed: int, operation: str) -> np.ndarray:
    """Appends random copies to each axis that is too short, the same ones within an operation."""
    for axis, (length, wanted) in enumerate(zip(array.shape, shape, strict=True)):
        if wanted < length:
            raise ValueError(
                f"an array of shape {array.shape} cannot shrink to {shape}: the space must "
                "define `resize`"
            )
        if wanted > length:
            generator = host_generator(seed, f"widen/{operation}", length, wanted)
            extra = generator.integers(length, size=wanted - length)
            array = np.take(array, np.concatenate([np.arange(length), extra]), axis)
    return array


def one_hot(cells: Mapping[str, Cell], genotype: Genotype) -> dict[str, np.ndarray]:
    """Returns the mixing weights at which a supernet computes one genotype's cells.

    With partial channels (K > 1) the channels that bypass the operations still pass along every
    edge.

    Args:
      cells: Cells of the supernet by cell type.
      genotype: Genotype of the same space.

    Returns:
      Mixing weights 0 or 1 by cell type, float32 [e, o].

    Raises:
      UserError: The supernet lacks an edge of the genotype, or an operation on it.
    """
    mix = {}
    for cell_type, cell in cells.items():
        weights = np.zeros(cell.shape, np.float32)
        rows = {(edge.target, edge.source): row for row, edge in enumerate(cell.edges)}
        for target, node in enumerate(genotype.cell(cell_type), start=cell.inputs):
            for name, source in node:
                row = rows.get((target, source))
                if row is None or name not in cell.edges[row].primitives:
                    raise UserError(
                        f"the supernet has no operation {name!r} on the edge {target}<-{source} "
                        f"of its {cell_type} cell: take a genotype of the same space and stage"
                    )
                weights[row, cell.edges[row].primitives.index(name)] = 1
        mix[cell_type] = weights
    return mix


def check_divisible(image: tuple[int, ...], divisor: int) -> None:
    """Raises UserError unless the image's height and width are multiples of `divisor`."""
    height, width = image[:2]
    if height % divisor or width % divisor:
        raise UserError(
            f"the images are {height}x{width} pixels, and their sides must be divisible by "
            f"{divisor}: set data.image_size"
        )
