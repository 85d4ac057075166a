"""Imports weights of the authors' PyTorch code, as the function `from_torch` and as a command.

    python -m drnas_jax.tools.torch_import run IN.npz OUT.npz

The command runs a network once. IN.npz contains a state_dict (`w:NAME`), images x [b, h, w, c] and
labels y [b]; for a supernet also the mixing weights (`mix`, or `mix_normal` and `mix_reduce`), for
a pruned supernet its masks (`mask*`), and for a final network the name of its `genotype`. OUT.npz
receives logits, loss, gradients (`g:NAME`, `grad_mix*`) and running statistics after a training
pass (`after:NAME`), in the names and layouts of PyTorch.
"""

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

from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.spaces import Mix
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.tools.torch_networks import Imported, Masks, from_torch
from drnas_jax.torch_names import State, to_torch
from drnas_jax.training import compiler
from drnas_jax.training.losses import training_loss

__all__ = ["GENOTYPES", "Imported", "from_torch", "main", "run"]

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
            raise UserError(f"the file lacks {name!r}: add this array")
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
    gradients = _zeros(state) | to_torch(imported.links, {"params": params_gradient})
    after = _running(state) | to_torch(imported.links, {"batch_stats": statistics})
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
        raise UserError(
            f"the mixing weights (mix, mix_normal, mix_reduce) have other shapes: expected {shapes}"
        )
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
            raise UserError(
                f"{arguments[2]} cannot be written ({error.strerror}): check the path"
            ) from error
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
        raise UserError(f"{path} cannot be read as .npz ({error}): check the path") from error


if __name__ == "__main__":
    sys.exit(main())
