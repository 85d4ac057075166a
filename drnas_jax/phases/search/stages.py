"""Progressive learning (DrNAS): pruning and widening, as pure functions of spec and state."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from drnas_jax.config import SearchConfig, Stage
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import Cell, Space, SupernetSpec
from drnas_jax.spaces.base import one_hot
from drnas_jax.training.optimisers import map_like_params

Columns = Mapping[str, list[np.ndarray]]  # by cell type: the columns to keep on each edge


def stage_at(stages: Sequence[Stage], epoch: int) -> tuple[int, bool]:
    """Returns the stage (from 0) of an epoch (from 0), and whether alpha is frozen then."""
    for number, stage in enumerate(stages):
        if epoch < stage.epochs:
            return number, epoch < stage.warmup_epochs
        epoch -= stage.epochs
    raise IndexError("the search has no such epoch")


def first_spec(
    space: Space, config: SearchConfig, classes: int, image: tuple[int, int, int]
) -> SupernetSpec:
    """Returns the spec of the first stage's supernet, with all operations on every edge.

    Args:
      space: Search space.
      config: Config of the search.
      classes: Number of outputs.
      image: Shape [h, w, c] of an image.

    Raises:
      UserError: The first stage would have to drop operations, or a stage keeps only one operation
        per edge although nodes choose their edges by the weights of several operations.
    """
    longest = max(cell.shape[1] for cell in space.cells.values())
    if config.operations[0] < longest:
        names = {
            name: None for cell in space.cells.values() for e in cell.edges for name in e.primitives
        }
        raise UserError(
            f"search.operations starts with {config.operations[0]}: expected {longest} or more, "
            f"since the first stage keeps all operations of the space ({', '.join(names)})"
        )
    if min(config.operations) == 1 and any(cell.keep for cell in space.cells.values()):
        raise UserError(
            f"search.operations is {config.operations}: this space chooses edges by the weights of "
            "their operations, which with one operation are all equal; keep at least 2"
        )
    return SupernetSpec(
        tuple(space.cells.items()),
        config.channels,
        config.cells,
        classes,
        image,
        config.partial_channels[0],
    )


def columns_to_keep(
    scores: Mapping[str, np.ndarray],
    spec: SupernetSpec,
    count: int,
    needed: Genotype | None = None,
) -> Columns:
    """Returns the `count` columns of largest score on each edge, in the order of primitives.

    An edge with fewer operations keeps all of them; if scores are equal, the first ones stay.

    Args:
      scores: Scores by cell type [e, o].
      spec: Spec of the supernet.
      count: Largest number of operations to keep on an edge.
      needed: Genotype whose operations stay whatever their scores are, or None.
    """
    ranks = {name: np.array(scores[name], np.float64) for name, _ in spec.cells}
    if needed is not None:
        for name, first in one_hot(dict(spec.cells), needed).items():
            ranks[name][first == 1] = np.inf
    return {
        cell_type: [
            np.sort(np.argsort(-row[: len(edge.primitives)], kind="stable")[:count])
            for row, edge in zip(ranks[cell_type], cell.edges, strict=True)
        ]
        for cell_type, cell in spec.cells
    }


def resized_spec(spec: SupernetSpec, columns: Columns, partial_channels: int) -> SupernetSpec:
    """Returns the spec of a supernet with only the operations in these columns, and another K."""

    def pruned(cell_type: str, cell: Cell) -> Cell:
        edges = (
            dataclasses.replace(edge, primitives=tuple(edge.primitives[column] for column in kept))
            for edge, kept in zip(cell.edges, columns[cell_type], strict=True)
        )
        return dataclasses.replace(cell, edges=tuple(edges))

    cells = tuple((cell_type, pruned(cell_type, cell)) for cell_type, cell in spec.cells)
    return dataclasses.replace(spec, cells=cells, partial_channels=partial_channels)


def resized_state(
    space: Space,
    state: SearchState,
    old: SupernetSpec,
    new: SupernetSpec,
    columns: Columns,
    like: SearchState,
    seed: int,
) -> SearchState:
    """Returns the state with which the next stage begins, given that of the end of a stage.

    Weights, other variables, alpha and the states of both optimisers lose the entries of pruned
    operations; new channels are copies of old ones.

    Args:
      space: Search space.
      state: State before, of NumPy arrays.
      old: Spec of the supernet before.
      new: Spec of the supernet after.
      columns: Columns of alpha to keep.
      like: Shapes of a fresh state of the new supernet.
      seed: Seed of the copies.

    Raises:
      UserError: The result does not have the shapes of a fresh state, because the space resizes
        its arrays in another way, or the state of an optimiser does not follow the parameters.
    """

    def fit_weights(tree: Any, shapes: Any) -> Any:
        return space.resize(tree, shapes, old, new, seed)

    def fit_alpha(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {
            cell_type: keep_columns(tree[cell_type], cell, columns[cell_type])
            for cell_type, cell in old.cells
        }

    fit_params = functools.partial(fit_weights, shapes=like.params)
    after = state.replace(
        params=fit_params(state.params),
        variables={
            name: fit_weights(tree, like.variables[name]) for name, tree in state.variables.items()
        },
        alpha=fit_alpha(state.alpha),
        fixed=fit_alpha(state.fixed) if state.fixed else {},
        weight_opt=map_like_params(state.params, fit_params, state.weight_opt),
        alpha_opt=map_like_params(state.alpha, fit_alpha, state.alpha_opt),
    )
    _check_shapes(after, like)
    return after


def _check_shapes(state: SearchState, like: SearchState) -> None:
    """Raises UserError if a resized state differs in any shape from a fresh one."""
    resize = "correct the method `resize` of the space"
    optimiser = (
        "use one whose state is shaped like the parameters (sgd, adam, masks and "
        "multi_transform of these), and masks and labels that are functions"
    )
    for field, what, advice in (
        ("params", "the weights", resize),
        ("variables", "the other variables", resize),
        ("alpha", "the architecture parameters", "correct the distribution's `init`"),
        ("weight_opt", "the state of the weights' optimiser", optimiser),
        ("alpha_opt", "the state of alpha's optimiser", optimiser),
    ):
        found, wanted = (_shapes(getattr(each, field)) for each in (state, like))
        if found != wanted:
            name = next(path for path in {**found, **wanted} if found.get(path) != wanted.get(path))
            raise UserError(
                f"{what} cannot be taken to the next stage: {name or 'it'} has shape "
                f"{found.get(name)}, but there it needs {wanted.get(name)}; {advice}"
            )


def _shapes(tree: Any) -> dict[str, Any]:
    """Returns the shapes of all arrays, masked ones too, by their paths in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda each: isinstance(each, optax.MaskedNode)
    )
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def keep_columns(tree: Any, cell: Cell, columns: Sequence[np.ndarray]) -> Any:
    """Removes the columns of pruned operations from all leaves [e, o] of a cell's pytree.

    Args:
      tree: Pytree of arrays; leaves of another shape than the cell's [e, o] do not change.
      cell: Cell before pruning.
      columns: Columns to keep on each edge.
    """
    width = max(map(len, columns))
    # An edge with fewer columns is padded with copies of its last one, which `Cell.mask` hides.
    index = np.stack([np.pad(kept, (0, width - len(kept)), mode="edge") for kept in columns])

    def keep(leaf: Any) -> Any:
        if np.shape(leaf) != cell.shape:
            return leaf
        return np.take_along_axis(np.asarray(leaf), index, axis=1)

    return jax.tree.map(keep, tree)
