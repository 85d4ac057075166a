"""Imports weights of the authors' PyTorch code, as the function `from_torch` and as a command.

    python -m drnas_jax.tools.torch_import run IN.npz OUT.npz

The command runs a network once. IN.npz contains a state_dict (`w:NAME`), images x [b, h, w, c] and
labels y [b]; for a supernet also the mixing weights (`mix`, or `mix_normal` and `mix_reduce`), for
a pruned supernet its masks (`mask*`), and for a final network the name of its `genotype`. OUT.npz
receives logits, loss, gradients (`g:NAME`, `grad_mix*`) and running statistics after a training
pass (`after:NAME`), in the names and layouts of PyTorch.
"""

import dataclasses
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.phases.search.stages import resized_spec
from drnas_jax.spaces import Cell, NetworkSpec, Space, SupernetSpec, darts, nasbench201
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.tools.torch_names import (
    Link,
    State,
    darts_links,
    nasbench201_links,
    to_torch,
    to_variables,
)
from drnas_jax.training import compiler
from drnas_jax.training.losses import training_loss

# Names of the published cells in the reference (the authors' PyTorch code), and here.
GENOTYPES = {
    "DrNAS_cifar10": "drnas_cifar10",
    "DrNAS_imagenet": "drnas_imagenet",
    "DARTS_V1": "darts_v1",
    "DARTS_V2": "darts_v2",
    "PC_DARTS_cifar": "pc_darts_cifar",
    "PC_DARTS_image": "pc_darts_imagenet",
}
AUXILIARY_WEIGHT = 0.4  # weight of the auxiliary loss in the reference
_STATISTICS = ("running_mean", "running_var")
# Tensors of a state_dict that have no effect on a network's outputs.
_IGNORED = re.compile(r".*num_batches_tracked|_?(arch_parameters|alphas?)(_.*)?")

Masks = Mapping[str, np.ndarray]
Mix = dict[str, jax.Array]

_CELL = re.compile(r"cells\.(\d+)\.")
_FIRST_CELL_NORM = re.compile(
    r"cells\.0\.(edges\.[^.]+\.\d+|_ops\.\d+\._ops\.\d+)\.(op\.\d+|bn)\.running_mean"
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network of the reference, as a module of this package.

    Attributes:
      module: Supernet or final network of a `Space`.
      variables: Weights and running statistics of the module.
      links: Correspondence of tensors and arrays.
      masks: Operations that a supernet keeps, by cell type, bool [e, o] over all operations; None
        for a final network.
    """

    module: nn.Module
    variables: Any
    links: list[Link]
    masks: Masks | None = None


def from_torch(
    state: State, genotype: Genotype | None = None, masks: Masks | None = None
) -> Imported:
    """Builds the network of a state_dict, with its weights.

    The sizes of the network and K follow from the shapes of the tensors.

    Args:
      state: Tensors by name.
      genotype: Genotype of a final network of the DARTS space, whose edges are not in a state_dict.
      masks: Operations that a pruned supernet keeps, by cell type, bool [e, o] over all operations.

    Raises:
      UserError: The tensors are not those of a network of the reference.
    """
    cells = 1 + max((int(match[1]) for match in map(_CELL.match, state) if match), default=-1)
    if not cells:
        raise UserError("the state_dict is of no known network: it has no tensor 'cells.0...'")
    classes = len(_tensor(state, "classifier.bias"))
    if any(name.startswith("cells.0.edges.") for name in state):
        return _nasbench201_supernet(state, cells, classes, masks)
    if any(name.startswith("cells.0._ops.0._ops.") for name in state):
        return _darts_supernet(state, cells, classes, masks)
    if genotype is None:
        raise UserError(
            "the state_dict of a final network does not contain its edges: give its genotype"
        )
    return _darts_network(state, cells, classes, genotype)


def _nasbench201_supernet(state: State, depth: int, classes: int, masks: Masks | None) -> Imported:
    space, channels, per_stage = (
        nasbench201.create(),
        len(_tensor(state, "stem.0.weight")),
        (depth - 2) // 3,
    )
    masks, cells = _kept_operations(space, masks)
    k = _partial_channels(state, channels)
    spec = SupernetSpec(cells, channels, per_stage, classes, (8, 8, 3), k)
    links = nasbench201_links(per_stage, spec.cell("cell").edges)
    all_links = nasbench201_links(per_stage, nasbench201.CELL.edges)
    return _filled(space.supernet(spec, _backend()), state, links, all_links, 8, masks)


def _darts_supernet(state: State, depth: int, classes: int, masks: Masks | None) -> Imported:
    channels, stem = _darts_shape(state, depth)
    space = darts.create(darts.Options(stem))
    masks, cells = _kept_operations(space, masks)
    first, side = channels * (2 if depth // 3 == 0 else 1), 2 * darts.STEMS[stem]
    k = _partial_channels(state, first)
    spec = SupernetSpec(cells, channels, depth, classes, (side, side, 3), k)
    links, all_links = (
        darts_links(channels, depth, stem, {t: cell.edges for t, cell in pairs}, network=False)
        for pairs in (cells, space.cells.items())
    )
    return _filled(space.supernet(spec, _backend()), state, links, all_links, side, masks)


def _darts_network(state: State, depth: int, classes: int, genotype: Genotype) -> Imported:
    channels, stem = _darts_shape(state, depth)
    space, side = darts.create(darts.Options(stem)), {"cifar": 32, "imagenet": 224}[stem]
    spaces.check_genotype(genotype, space)
    auxiliary = "auxiliary_head.classifier.weight" in state
    spec = NetworkSpec(genotype, channels, depth, classes, (side, side, 3), auxiliary)
    edges = dict(darts.genotype_edges(genotype))
    links = darts_links(channels, depth, stem, edges, network=True, auxiliary=auxiliary)
    return _filled(space.network(spec, _backend()), state, links, links, side, None)


def _filled(
    module: nn.Module,
    state: State,
    links: list[Link],
    all_links: list[Link],
    side: int,
    masks: Masks | None,
) -> Imported:
    """Fills a module with the tensors of a state_dict.

    Args:
      module: Supernet or final network.
      state: Tensors by name.
      links: Links of the module.
      all_links: Links of the module without pruning; the state_dict may contain their tensors.
      side: Height and width of an image that the module accepts.
      masks: Operations that a supernet keeps, or None.
    """
    known = {link.name for link in all_links}
    for name in state:
        if name not in known and not _IGNORED.fullmatch(name):
            raise UserError(f"the state_dict holds {name!r}, which the inferred network lacks")
    mix = {
        cell_type: jnp.ones((len(mask), max(mask.sum(1))))
        for cell_type, mask in (masks or {}).items()
    }
    arguments = (jnp.zeros((1, side, side, 3)), *([mix] if masks else []), False)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
    return Imported(module, to_variables(links, state, like), links, masks)


def _backend() -> backend.Backend:
    return backend.for_platform(jax.default_backend())


def _tensor(state: State, name: str) -> np.ndarray:
    if name not in state:
        raise UserError(f"the state_dict is of no known network: it lacks {name!r}")
    return np.asarray(state[name])


def _darts_shape(state: State, cells: int) -> tuple[int, str]:
    """Returns the number of channels C, and the kind of stem."""
    width = len(_tensor(state, "cells.0.preprocess1.op.1.weight"))
    stem = "imagenet" if "stem0.0.weight" in state else "cifar"
    return width // (2 if cells // 3 == 0 else 1), stem


def _partial_channels(state: State, channels: int) -> int:
    """Returns K, from the channels of the first cell and of its operations."""
    for name in state:
        if _FIRST_CELL_NORM.fullmatch(name):
            return max(channels // len(state[name]), 1)
    raise UserError("the state_dict is of no known network: its first cell has no operations")


def _kept_operations(
    space: Space, masks: Masks | None
) -> tuple[Masks, tuple[tuple[str, Cell], ...]]:
    """Returns the masks, which are all True if none are given, and the cells that remain."""
    shapes = {cell_type: cell.shape for cell_type, cell in space.cells.items()}
    if masks is None:
        masks = {cell_type: np.ones(shape, bool) for cell_type, shape in shapes.items()}
    if {cell_type: np.shape(mask) for cell_type, mask in masks.items()} != shapes:
        raise UserError(f"the masks do not have the shapes {shapes}")
    if any(np.asarray(mask).dtype != bool for mask in masks.values()):
        raise UserError("the masks are not of bools")
    columns = {cell_type: [np.flatnonzero(row) for row in masks[cell_type]] for cell_type in shapes}
    spec = SupernetSpec(tuple(space.cells.items()), 1, 1, 1, (1, 1, 1))
    return masks, resized_spec(spec, columns, partial_channels=1).cells


def run(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a network of the reference in evaluation and in training, with gradients.

    Args:
      values: Arrays of IN.npz by name, see the module's docstring.

    Returns:
      Arrays of OUT.npz by name.

    Raises:
      UserError: An array is missing or does not fit.
    """
    for name, value in values.items():
        used = name in ("x", "y") or name.startswith(("w:", "mask", "mix"))
        if used and value.dtype.kind not in "biuf":
            raise UserError(f"{name!r} is an array of {value.dtype}: expected numbers")
    state = {name[2:]: value for name, value in values.items() if name.startswith("w:")}
    imported = from_torch(state, _genotype(values), _by_cell_type(values, "mask"))
    for name in ("x", "y"):
        if name not in values:
            raise UserError(f"the file lacks {name!r}")
    x, y = jnp.asarray(values["x"], jnp.float32), jnp.asarray(values["y"], jnp.int32)
    if x.ndim != 4 or x.shape[-1] != 3 or y.shape != x.shape[:1]:
        raise UserError(
            f"x has the shape {x.shape} and y {y.shape}: expected images [b, h, w, 3], labels [b]"
        )
    mix = _select(_by_cell_type(values, "mix"), imported.masks)
    options = compiler.options(jax.default_backend(), once=True)
    program = jax.jit(partial(_evaluated_and_trained, imported.module), compiler_options=options)
    with jax.default_matmul_precision("highest"):
        evaluated, trained = program(imported.variables, mix, x, y)
    (loss, (logits, auxiliary, statistics)), (params_gradient, mix_gradient) = trained
    out = {"logits_eval": evaluated, "logits_train": logits, "loss": loss}
    if auxiliary is not None:
        out["logits_aux"] = auxiliary
    gradients = _zeros(state) | to_torch(imported.links, {"params": params_gradient}, state)
    after = _running(state) | to_torch(imported.links, {"batch_stats": statistics}, state)
    out |= {f"g:{name}": value for name, value in gradients.items()}
    out |= {f"after:{name}": value for name, value in after.items()}
    for cell_type, mask in (imported.masks or {}).items():
        key = "grad_mix" if cell_type == "cell" else f"grad_mix_{cell_type}"
        out[key] = _unselect(mix_gradient[cell_type], mask)
    return {name: np.asarray(value) for name, value in out.items()}


def _apply(module: nn.Module, variables: Any, mix: Mix, x: jax.Array, train: bool) -> Any:
    """Returns ((logits, auxiliary logits or None), running statistics)."""
    mixes = [mix] if mix else []  # a final network has none
    output, updated = module.apply(variables, x, *mixes, train, mutable=["batch_stats"])
    return (output if isinstance(output, tuple) else (output, None)), updated["batch_stats"]


def _evaluated_and_trained(module: nn.Module, variables: Any, mix: Mix, x: Any, y: Any) -> Any:
    (logits, _), _ = _apply(module, variables, mix, x, False)
    return logits, _trained(module, variables, mix, x, y)


def _trained(module: nn.Module, variables: Any, mix: Mix, x: jax.Array, y: jax.Array) -> Any:
    """Returns ((loss, (logits, auxiliary logits, running statistics)), gradients (params, mix))."""

    def loss_of(params: Any, mix: Mix) -> Any:
        (logits, auxiliary), statistics = _apply(
            module, {**variables, "params": params}, mix, x, True
        )
        loss = training_loss(logits, auxiliary, y, 0.0, AUXILIARY_WEIGHT)
        return loss, (logits, auxiliary, statistics)

    gradients = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    return gradients(variables["params"], mix)


def _by_cell_type(values: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray] | None:
    """Returns the masks or mixing weights by cell type, or None if there are none.

    Args:
      values: Arrays of IN.npz by name.
      what: `mask` or `mix`, the beginning of their names.
    """
    keys = {"cell": what, "normal": f"{what}_normal", "reduce": f"{what}_reduce"}
    return {name: values[key] for name, key in keys.items() if key in values} or None


def _select(mix: dict[str, np.ndarray] | None, masks: Masks | None) -> Mix:
    """Returns the mixing weights of the operations that are kept, by cell type [e, o]."""
    if masks is None:
        return {}
    shapes = {cell_type: np.shape(mask) for cell_type, mask in masks.items()}
    if (
        mix is None
        or {cell_type: np.shape(weights) for cell_type, weights in mix.items()} != shapes
    ):
        raise UserError(f"the mixing weights (mix, mix_normal, mix_reduce) must have {shapes}")
    return {
        cell_type: jnp.asarray(
            np.take_along_axis(mix[cell_type], _columns(mask), axis=1), jnp.float32
        )
        for cell_type, mask in masks.items()
    }


def _columns(mask: np.ndarray) -> np.ndarray:
    """Returns the columns of the kept operations, [e, o], padded with columns of pruned ones."""
    return np.argsort(~mask, axis=1, kind="stable")[:, : max(mask.sum(axis=1))]


def _unselect(gradient: jax.Array, mask: np.ndarray) -> np.ndarray:
    full = np.zeros(mask.shape, np.float32)
    np.put_along_axis(full, _columns(mask), np.asarray(gradient), axis=1)
    return full


def _zeros(state: State) -> dict[str, np.ndarray]:
    return {
        name: np.zeros(np.shape(value), np.float32)
        for name, value in state.items()
        if not name.endswith((*_STATISTICS, "num_batches_tracked"))
    }


def _running(state: State) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if name.endswith(_STATISTICS)}


def _genotype(values: Mapping[str, np.ndarray]) -> Genotype | None:
    if "genotype" not in values:
        return None
    name = str(values["genotype"])
    if GENOTYPES.get(name, name) not in PUBLISHED:
        raise UserError(f"unknown genotype {name!r}: expected one of {', '.join(GENOTYPES)}")
    return PUBLISHED[GENOTYPES.get(name, name)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      Exit code: 0, or 2 after a mistake in the command line or the file.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 3 or arguments[0] != "run":
            raise UserError("usage: python -m drnas_jax.tools.torch_import run IN.npz OUT.npz")
        out = run(_load(arguments[1]))
        try:
            with zipfile.ZipFile(arguments[2], "w") as archive:  # np.savez reserves names
                for name, value in out.items():
                    with archive.open(f"{name}.npy", "w") as file:
                        np.lib.format.write_array(file, value)
        except OSError as error:
            raise UserError(f"{arguments[2]} cannot be written: {error.strerror}") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# Errors of NumPy and zipfile for damaged files, such as an unknown compression (RuntimeError) or a
# shape that exceeds the memory.
_DAMAGED = (
    *(OSError, ValueError, EOFError, RuntimeError, AttributeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        # Opened here, since NumPy does not close a damaged file that it opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
