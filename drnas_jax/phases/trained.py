"""The network that a retraining has left in its checkpoints, for the phases that come after."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.setup import Run, split_variables
from drnas_jax.training.checkpoints import CheckpointInfo, Checkpoints


def open_checkpoints(run: Run) -> Checkpoints:
    """Opens the checkpoints that the config names, or those of the workdir's own retraining.

    Raises:
      UserError: There is no such folder, or it cannot be read.
    """
    return Checkpoints(checkpoint_folder(run), cleanup=False)


def checkpoint_folder(run: Run) -> Path:
    """Returns the folder of these checkpoints, or raises UserError if there is none."""
    named = run.config.checkpoint
    folder = Path(named).expanduser() if named else run.workdir / "retrain/checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"there is no checkpoint of a trained network: {folder} does not exist; run the "
            "retrain phase first, or set --config.checkpoint=DIR"
        )
    return folder


def newest(checkpoints: Checkpoints, run: Run) -> tuple[CheckpointInfo, RetrainMetadata]:
    """Returns the newest checkpoint and its description of the network.

    Args:
      checkpoints: Checkpoints of a retraining.
      run: Run that needs the network.

    Raises:
      UserError: There is no checkpoint, or it is of another phase or of another search space.
    """
    saved = checkpoints.latest()
    if saved is None or "genotype" not in saved.phase:
        raise UserError(
            f"{checkpoint_folder(run)} holds no checkpoint of retraining: give the folder "
            "retrain/checkpoints of a workdir (--config.checkpoint)"
        )
    metadata = RetrainMetadata.from_json(saved.phase)
    spaces.check_genotype(metadata.genotype, run.space)
    run.space.check(metadata.spec)
    return saved, metadata


def check_ended(saved: CheckpointInfo, run: Run) -> None:
    """Raises UserError if the workdir's own retraining has not ended.

    A checkpoint that the config names may be of any epoch.

    Args:
      saved: Newest checkpoint.
      run: Run that needs the network.
    """
    done, epochs = saved.progress.epochs_done, run.config.retrain.epochs
    if not run.config.checkpoint and done < epochs:
        raise UserError(
            f"retraining has done {done} of {epochs} epochs: run it to its end, or take its newest "
            f"checkpoint anyway with --config.checkpoint={checkpoint_folder(run)}"
        )


def restore(
    checkpoints: Checkpoints, saved: CheckpointInfo, network: nn.Module, mesh: Mesh
) -> dict[str, Any]:
    """Returns the variables of a network, with a copy on every device.

    Args:
      checkpoints: Checkpoints of a retraining.
      saved: Checkpoint to load.
      network: Module of the final network, without an auxiliary head.
      mesh: Device mesh with the single axis `data`.

    Raises:
      UserError: The checkpoint is damaged, or of another network.
    """
    height, width, channels = RetrainMetadata.from_json(saved.phase).data.shape
    image = jnp.zeros((1, height, width, channels), jnp.float32)
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), image, False))
    params, variables = split_variables(like)
    loaded = checkpoints.load(saved, {"params": params, "variables": variables}, mesh)
    return {"params": loaded["params"], **loaded["variables"]}
