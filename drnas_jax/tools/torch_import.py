"""Weights from the reference's PyTorch code: `from_torch`, and a command that runs them.

    python -m drnas_jax.tools.torch_import run IN.npz OUT.npz

IN.npz holds a state_dict (`w:NAME`), images x [b, h, w, c], labels y [b], the mixing weights of a
supernet (`mix`, or `mix_normal` and `mix_reduce`), of a pruned one its `mask*`, and of a final
network the name of its `genotype`. OUT.npz gets logits, loss, gradients (`g:NAME`, `grad_mix*`) and
running statistics after a training pass (`after:NAME`), by the reference's names and layouts.
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
from drnas_jax.genotype import PUBLISHED, Genotype
from drnas_jax.nn import backend
from drnas_jax.spaces import Space, Structure, darts, nasbench201
from drnas_jax.spaces.base import Operations
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

# Our names of the published cells that the reference names otherwise.
GENOTYPES = {
    "DrNAS_cifar10": "drnas_cifar10",
    "DrNAS_imagenet": "drnas_imagenet",
    "DARTS_V1": "darts_v1",
    "DARTS_V2": "darts_v2",
    "PC_DARTS_cifar": "pc_darts_cifar",
    "PC_DARTS_image": "pc_darts_imagenet",
}
AUXILIARY_WEIGHT = 0.4  # of the auxiliary loss in the reference's networks
_STATISTICS = ("running_mean", "running_var")
# Tensors of a state_dict that are no part of a network's function.
_IGNORED = re.compile(r".*num_batches_tracked|_?(arch_parameters|alphas?)(_.*)?")

Masks = Mapping[str, np.ndarray]
Mix = dict[str, jax.Array]


_CELL = re.compile(r"cells\.(\d+)\.")
_BANK_WIDTH = re.compile(
    r"cells\.0\.(edges\.[^.]+\.\d+|_ops\.\d+\._ops\.\d+)\.(op\.\d+|bn)\.running_mean"
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A reference network in our terms.

    Attributes:
      module: a Space's supernet or network.
      variables: its weights and running statistics.
      links: where each tensor went.
      masks: of a supernet, the operations kept: by cell type bool [e, all operations].
    """

    module: nn.Module
    variables: Any
    links: list[Link]
    masks: Masks | None = None


def from_torch(
    state: State, genotype: Genotype | None = None, masks: Masks | None = None
) -> Imported:
    """Builds the network that a state_dict is of, and fills it. The arrays tell its sizes and K.

    Args:
      state: the tensors by name.
      genotype: of a final network of the DARTS space (a state_dict does not tell its edges).
      masks: of a pruned supernet, the operations kept: by cell type bool [e, all operations].

    Raises:
      UserError: the tensors are not those of a reference network.
    """
    cells = 1 + max((int(match[1]) for match in map(_CELL.match, state) if match), default=-1)
    if not cells:
        raise UserError("the state_dict is of no known network: it has no 'cells.0...'")
    classes = len(_tensor(state, "classifier.bias"))
    if any(name.startswith("cells.0.edges.") for name in state):
        return _nasbench201_supernet(state, cells, classes, masks)
    if any(name.startswith("cells.0._ops.0._ops.") for name in state):
        return _darts_supernet(state, cells, classes, masks)
    if genotype is None:
        raise UserError("a final network's state_dict does not tell its edges: give its genotype")
    return _darts_network(state, cells, classes, genotype)


def _nasbench201_supernet(state: State, cells: int, classes: int, masks: Masks | None) -> Imported:
    channels, per_stage = len(_tensor(state, "stem.0.weight")), (cells - 2) // 3
    masks, operations = _kept(spaces.find("nasbench201"), masks)
    structure = Structure(
        channels, per_stage, classes, _partial(state, channels), operations, "cifar"
    )
    module = nasbench201.supernet(structure, _kernels(), None)
    links = nasbench201_links(per_stage, structure.kept("cell"))
    full = nasbench201_links(per_stage, (nasbench201.PRIMITIVES,) * len(nasbench201.PAIRS))
    return _filled(module, state, links, full, 8, masks)


def _darts_supernet(state: State, cells: int, classes: int, masks: Masks | None) -> Imported:
    channels, stem = _darts_shape(state, cells)
    masks, operations = _kept(spaces.find("darts"), masks)
    first = channels * (2 if cells // 3 == 0 else 1)
    structure = Structure(channels, cells, classes, _partial(state, first), operations, stem)
    everything = dataclasses.replace(structure, operations=_kept(spaces.find("darts"), None)[1])
    links, full = (
        darts_links(channels, cells, stem, dict(darts.supernet_edges(of)), network=False)
        for of in (structure, everything)
    )
    module = darts.supernet(structure, _kernels(), None)
    return _filled(module, state, links, full, 2 * darts.STEMS[stem], masks)


def _darts_network(state: State, cells: int, classes: int, genotype: Genotype) -> Imported:
    channels, stem = _darts_shape(state, cells)
    spaces.check_genotype(genotype, "darts")
    auxiliary = "auxiliary_head.classifier.weight" in state
    module = darts.network(genotype, channels, cells, classes, stem, auxiliary, _kernels(), None)
    edges = dict(darts.network_edges(genotype))
    links = darts_links(channels, cells, stem, edges, network=True, auxiliary=auxiliary)
    return _filled(module, state, links, links, {"cifar": 32, "imagenet": 224}[stem], None)


def _filled(
    module: nn.Module,
    state: State,
    links: list[Link],
    full: list[Link],
    side: int,
    masks: Masks | None,
) -> Imported:
    """`full`: also the links of pruned operations, whose tensors the state_dict may still hold."""
    known = {link.name for link in full}
    for name in state:
        if name not in known and not _IGNORED.fullmatch(name):
            raise UserError(f"the state_dict holds {name!r}, which the inferred network has not")
    mix = {
        cell_type: jnp.ones((len(mask), max(mask.sum(1))))
        for cell_type, mask in (masks or {}).items()
    }
    arguments = (jnp.zeros((1, side, side, 3)), *([mix] if masks else []), False)
    like = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
    return Imported(module, to_variables(links, state, like), links, masks)


def _kernels() -> backend.Kernels:
    return backend.for_platform(jax.default_backend())


def _tensor(state: State, name: str) -> np.ndarray:
    if name not in state:
        raise UserError(f"the state_dict is of no known network: it lacks {name!r}")
    return np.asarray(state[name])


def _darts_shape(state: State, cells: int) -> tuple[int, str]:
    """C, and the kind of stem."""
    width = len(_tensor(state, "cells.0.preprocess1.op.1.weight"))
    stem = "imagenet" if "stem0.0.weight" in state else "cifar"
    return width // (2 if cells // 3 == 0 else 1), stem


def _partial(state: State, channels: int) -> int:
    """K: the first cell has this many channels, of which its operations see some."""
    for name in state:
        if _BANK_WIDTH.fullmatch(name):
            return max(channels // len(state[name]), 1)
    raise UserError("the state_dict is of no known network: its first cell has no operations")


def _kept(space: Space, masks: Masks | None) -> tuple[Masks, tuple[tuple[str, Operations], ...]]:
    """The masks (None: everything is kept), and the primitives that they keep."""
    every = {
        cell_type: (len(edges), len(space.PRIMITIVES)) for cell_type, edges in space.EDGES.items()
    }
    if masks is None:
        masks = {cell_type: np.ones(shape, bool) for cell_type, shape in every.items()}
    if {cell_type: np.shape(mask) for cell_type, mask in masks.items()} != every:
        raise UserError(f"the masks do not have the shapes {every}")
    if any(np.asarray(mask).dtype != bool for mask in masks.values()):
        raise UserError("the masks are not of bools")
    return masks, tuple(
        (
            cell_type,
            tuple(
                tuple(name for name, keep in zip(space.PRIMITIVES, row, strict=True) if keep)
                for row in masks[cell_type]
            ),
        )
        for cell_type in space.EDGES
    )


def run(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a reference network in evaluation and in training, with gradients.

    Args:
      values: what IN.npz holds (see the module's docstring).

    Returns:
      What OUT.npz holds.

    Raises:
      UserError: something is missing or does not fit.
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
    """((logits, auxiliary logits or None), running statistics)."""
    mixes = [mix] if mix else []  # a final network has none
    output, updated = module.apply(variables, x, *mixes, train, mutable=["batch_stats"])
    return (output if isinstance(output, tuple) else (output, None)), updated["batch_stats"]


def _evaluated_and_trained(module: nn.Module, variables: Any, mix: Mix, x: Any, y: Any) -> Any:
    (logits, _), _ = _apply(module, variables, mix, x, False)
    return logits, _trained(module, variables, mix, x, y)


def _trained(module: nn.Module, variables: Any, mix: Mix, x: jax.Array, y: jax.Array) -> Any:
    """((loss, (logits, auxiliary logits, running statistics)), gradients (params, mix))."""

    def loss_of(params: Any, mix: Mix) -> Any:
        (logits, auxiliary), statistics = _apply(
            module, {**variables, "params": params}, mix, x, True
        )
        loss = training_loss(logits, auxiliary, y, 0.0, AUXILIARY_WEIGHT)
        return loss, (logits, auxiliary, statistics)

    gradients = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    return gradients(variables["params"], mix)


def _by_cell_type(values: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray] | None:
    """`mask` or `mix` of the one cell type of NAS-Bench-201, or of the two of DARTS."""
    keys = {"cell": what, "normal": f"{what}_normal", "reduce": f"{what}_reduce"}
    found = {cell_type: values[key] for cell_type, key in keys.items() if key in values}
    return found or None


def _select(mix: dict[str, np.ndarray] | None, masks: Masks | None) -> Mix:
    """The mixing weights of kept operations: by cell type [e, o]."""
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
    """Columns of the kept operations; where an edge keeps fewer than others, some that it lacks."""
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
    """Returns 0; 2 after a mistake in the command line or the file."""
    parts = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(parts) != 3 or parts[0] != "run":
            raise UserError("usage: python -m drnas_jax.tools.torch_import run IN.npz OUT.npz")
        out = run(_load(parts[1]))
        try:
            with zipfile.ZipFile(parts[2], "w") as archive:  # np.savez without its reserved names
                for name, value in out.items():
                    with archive.open(f"{name}.npy", "w") as file:
                        np.lib.format.write_array(file, value)
        except OSError as error:
            raise UserError(f"{parts[2]} cannot be written: {error.strerror}") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# What NumPy and zipfile raise on strange bytes: also of an unknown way to pack (RuntimeError), or a
# shape of more than the memory.
_DAMAGED = (
    *(OSError, ValueError, EOFError, RuntimeError, AttributeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        # NumPy leaves a file open that it opened itself and that turns out to be damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
