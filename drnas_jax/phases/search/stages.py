"""Progressive learning (DrNAS paper): prune and widen, pure functions from state to state.

They know a supernet's parameters by the convention of `drnas_jax.spaces.base.Space` alone: banks
of a primitive with leading axes (cells, edges that keep it). Momentum and other optimiser state
shaped like parameters or like alpha follow.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from drnas_jax.config import SearchConfig, Stage
from drnas_jax.errors import UserError
from drnas_jax.phases.search.state import SearchState
from drnas_jax.spaces import Space, Structure, all_operations

Bank = dict[str, Any]
BankRule = Callable[[str, str, tuple[str, ...], Bank], Bank | None]


def stage_at(stages: Sequence[Stage], epoch: int) -> tuple[int, bool]:
    """The stage (from 0) of an epoch (from 0), and whether alpha is frozen in it."""
    for number, stage in enumerate(stages):
        if epoch < stage.epochs:
            return number, epoch < stage.warmup_epochs
        epoch -= stage.epochs
    raise IndexError("the search has no such epoch")


def first_structure(space: Space, config: SearchConfig, classes: int, stem: str) -> Structure:
    """The structure of the first stage: all operations on every edge.

    Raises:
      UserError: the config keeps another number of operations in its first stage, or one alone
        where nodes choose their edges.
    """
    if config.operations[0] != len(space.PRIMITIVES):
        raise UserError(
            f"search.operations starts with {config.operations[0]}: the first stage keeps all "
            f"{len(space.PRIMITIVES)} operations of the space ({', '.join(space.PRIMITIVES)})"
        )
    if min(config.operations) == 1 and _selects_edges(space):
        raise UserError(
            f"search.operations is {config.operations}: this space chooses edges by the weights of "
            "their operations, which with one operation are all equal; keep at least 2"
        )
    return Structure(
        config.channels,
        config.cells,
        classes,
        config.partial_channels[0],
        tuple(all_operations(space).items()),
        stem,
    )


def _selects_edges(space: Space) -> bool:
    """Whether a cell has less edges than the supernet."""
    operations = all_operations(space)
    equal = {
        cell_type: np.ones((len(kept), len(kept[0]))) for cell_type, kept in operations.items()
    }
    cells = space.derive(equal, operations).cells
    found = sum(len(node) for _, cell in cells for node in cell)
    return found < sum(len(edges) for edges in space.EDGES.values())


def prune(
    space: Space, state: SearchState, structure: Structure, count: int
) -> tuple[SearchState, Structure]:
    """Keeps the `count` operations of largest alpha on each edge; the others leave the arrays.

    Args:
      space: of the supernet.
      state: before.
      structure: before.
      count: operations to keep on each edge.

    Returns:
      The smaller state (weights, statistics, alpha and both optimisers' moments) and structure.
    """
    columns = {  # of alpha, in the order of primitives; the first of equal ones is kept
        cell_type: np.sort(np.argsort(-np.asarray(rows), axis=1, kind="stable")[:, :count], axis=1)
        for cell_type, rows in state.alpha.items()
    }
    operations = tuple(
        (
            cell_type,
            tuple(
                tuple(kept[column] for column in chosen)
                for kept, chosen in zip(edges, columns[cell_type], strict=True)
            ),
        )
        for cell_type, edges in structure.operations
    )
    smaller = dataclasses.replace(structure, operations=operations)

    def keep_rows(cell_type: str, name: str, _: tuple[str, ...], bank: Bank) -> Bank | None:
        pairs = zip(structure.kept(cell_type), smaller.kept(cell_type), strict=True)
        held = [
            after
            for edge, (before, after) in enumerate(pairs)
            if name in before and space.has_row(cell_type, edge, name)
        ]
        rows = [row for row, after in enumerate(held) if name in after]
        return jax.tree.map(lambda array: array[:, np.array(rows)], bank) if rows else None

    def keep_columns(tree: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        return {
            cell_type: np.take_along_axis(np.asarray(rows), columns[cell_type], axis=1)
            for cell_type, rows in tree.items()
        }

    return (
        state.replace(
            alpha=keep_columns(state.alpha),
            alpha_opt=_map_dicts(keep_columns, state.alpha_opt),
            **_map_weights(space, state, keep_rows),
        ),
        smaller,
    )


def widen(
    space: Space, state: SearchState, structure: Structure, partial_channels: int, seed: int
) -> tuple[SearchState, Structure]:
    """Lets 1/K' instead of 1/K of the channels through the operations.

    New channels are copies of old ones chosen at random, in weights, statistics and momentum
    alike, and not rescaled; within an operation the copied indices stay aligned.

    Args:
      space: of the supernet.
      state: before.
      structure: before.
      partial_channels: K'.
      seed: of the copies.
    """
    before = structure.partial_channels

    def copies(path: tuple[str, ...], label: str, shape: tuple[int, ...], old: int) -> np.ndarray:
        # By path and label: the weights, the statistics and the momentum of a bank agree.
        stream = np.random.SeedSequence([seed, *"/".join((*path, label)).encode()])
        new = old * before // partial_channels
        extra = np.random.Generator(np.random.Philox(stream)).integers(
            old, size=(*shape, new - old)
        )
        return np.concatenate([np.broadcast_to(np.arange(old), (*shape, old)), extra], axis=-1)

    def lengthen(_: str, name: str, path: tuple[str, ...], bank: Bank) -> Bank:
        longer = {}
        for leaf, array in bank.items():
            array = np.asarray(array)
            for axis, label in space.CHANNEL_AXES[name][leaf].items():
                index = copies(path, label, array.shape[:2], array.shape[axis])
                spread = list(array.shape[:2]) + [1] * (array.ndim - 2)
                spread[axis] = index.shape[-1]
                array = np.take_along_axis(array, index.reshape(spread), axis=axis)
            longer[leaf] = array
        return longer

    wider = dataclasses.replace(structure, partial_channels=partial_channels)
    return state.replace(**_map_weights(space, state, lengthen)), wider


def advance(
    space: Space,
    state: SearchState,
    structure: Structure,
    config: SearchConfig,
    stage: int,
    seed: int,
) -> tuple[SearchState, Structure]:
    """From the end of one stage to the start of the next, which is `stage` (from 0).

    `seed` is that of the run; the channels of each stage are copied by another one.
    """
    target = config.stages[stage]
    state, structure = prune(space, state, structure, target.operations)
    if target.partial_channels != structure.partial_channels:
        state, structure = widen(space, state, structure, target.partial_channels, seed + stage)
    return state, structure


def _map_weights(space: Space, state: SearchState, rule: BankRule) -> dict[str, Any]:
    """Applies a rule to every bank of the weights, the statistics and the momentum."""

    def mapped(tree: Any) -> Any:
        return _map_banks(space, rule, tree)

    return {
        "params": mapped(state.params),
        "batch_stats": mapped(state.batch_stats),
        "weight_opt": _map_dicts(mapped, state.weight_opt),
    }


def _map_banks(
    space: Space, rule: BankRule, tree: Any, cell_type: str = "", path: tuple[str, ...] = ()
) -> Any:
    if not isinstance(tree, dict):
        return tree
    out = {}
    for key, value in tree.items():
        if key in space.PRIMITIVES:
            value = rule(cell_type, key, (*path, key), value)
        else:
            inside = next((t for t in space.EDGES if key.split("_")[0] == t), cell_type)
            value = _map_banks(space, rule, value, inside, (*path, key))
        if value is not None and not (isinstance(value, dict) and not value):
            out[key] = value
    return out


def _map_dicts(function: Callable[[dict], dict], tree: Any) -> Any:
    """Applies a function to every dict in an optimiser state: those are shaped like parameters."""
    return jax.tree.map(
        lambda node: function(node) if isinstance(node, dict) else node,
        tree,
        is_leaf=lambda node: isinstance(node, dict),
    )
