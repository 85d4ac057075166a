"""Evaluation: restore a checkpoint, and count what the network gets right on the test set."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from drnas_jax import data, spaces
from drnas_jax.config import Config, freeze
from drnas_jax.data import Dataset, Schedule, Stream, feed
from drnas_jax.errors import UserError
from drnas_jax.files import write_json
from drnas_jax.genotype import Genotype, from_json, search_seconds, to_json
from drnas_jax.nn import backend
from drnas_jax.nn.counting import Counts, count_network
from drnas_jax.phases import loop
from drnas_jax.tables import nasbench201
from drnas_jax.training import devices, losses
from drnas_jax.training.checkpoints import Checkpoints, Saved
from drnas_jax.training.hosts import from_primary, is_primary
from drnas_jax.training.metrics import Display
from drnas_jax.workdir import open_workdir


def evaluate(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    display: Display | None = None,
) -> dict[str, Any]:
    """Test accuracy of the network that was retrained here (or of `config.checkpoint`).

    Writes result.json and returns what it holds: accuracies in 0..1, times in seconds.

    Args:
      config: of the run, a Config or a ConfigDict.
      workdir: its directory.
      display: what a person sees; None: the default one on standard error.

    Raises:
      UserError: there is no checkpoint, retraining has not ended, or it does not fit the config.
    """
    config = freeze(config)
    workdir = open_workdir(workdir, config)
    directory = (
        Path(config.checkpoint).expanduser()
        if config.checkpoint
        else workdir / "retrain/checkpoints"
    )
    if not directory.is_dir():
        raise UserError(
            f"there is no checkpoint to evaluate: {directory} does not exist; run the retrain "
            "phase first, or set --config.checkpoint=DIR"
        )
    mesh = devices.make_mesh()
    devices.check_batch(config.retrain.batch_size, mesh, "retrain.batch_size")
    dataset = data.load(config.data)
    with Checkpoints(directory, cleanup=False) as checkpoints:
        saved = _latest(checkpoints, directory, config, dataset)
        genotype = from_json(saved.metadata["genotype"], str(directory))
        network, counts = _network(saved.metadata, genotype, dataset, mesh, config.compute.kernels)
        shape = dataset.shape
        like = jax.eval_shape(
            lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape), jnp.float32), False)
        )
        variables = checkpoints.load(saved, dict(like), mesh)
    display = display or Display(quiet=not is_primary())
    test = score(network, variables, dataset, config, mesh, display)
    searched = workdir / "search" / "genotype.json"
    own = not (config.genotype or config.checkpoint)
    result = {
        "genotype": to_json(genotype),
        "params": counts.parameters,
        "macs": counts.macs,
        "search_seconds": from_primary(lambda: search_seconds(searched)) if own else None,
        "retrain_seconds": round(saved.metadata["seconds"], 1),
        "test_accuracy": test["accuracy"],
        "test_top5": test["top5"],
        "nasbench201": truth(config, genotype),
        "seed": config.seed,
    }
    from_primary(lambda: write_json(workdir / "result.json", result))
    _show(display, result, workdir / "result.json")
    return result


def _latest(
    checkpoints: Checkpoints, directory: Path, config: Config, dataset: Dataset | Stream
) -> Saved:
    """The checkpoint to evaluate: unless the config names it, of the end, and of these images."""
    saved = checkpoints.latest()
    if saved is None or "genotype" not in saved.metadata:
        raise UserError(f"{directory} holds no checkpoint of retraining")
    if config.checkpoint:
        return saved
    if saved.metadata["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"data set {dataset.name} is not the one of the retraining (files came, went or "
            "changed names, or data.dir is another), which may have trained on what would be "
            f"tested: put it back, or evaluate all the same by --config.checkpoint={directory}"
        )
    done, epochs = saved.metadata["epochs_done"], config.retrain.epochs
    if done < epochs:
        raise UserError(
            f"retraining has done {done} of {epochs} epochs: run it to its end, or name its "
            f"checkpoints by --config.checkpoint={directory}"
        )
    return saved


def score(
    network: nn.Module,
    variables: Any,
    dataset: Dataset | Stream,
    config: Config,
    mesh: Mesh,
    display: Display,
) -> dict[str, float]:
    """Loss, accuracy and top-5 of a network on the test images, each counted once."""
    batches = feed.make_feed(dataset, 0, 0)

    def totals(
        variables: Any, raw: feed.Images | None, batch: feed.Batch, weight: jax.Array
    ) -> losses.Totals:
        images, labels = batches.plain(raw, batch)
        logits, _ = cast(tuple[jax.Array, Any], network.apply(variables, images, False))
        return losses.totals(logits, labels, weight)

    program = feed.sum_program(totals, mesh)
    schedule = Schedule(
        batch_size=config.retrain.batch_size,
        seed=config.seed,
        evaluated=np.arange(dataset.test_count, dtype=np.int32),
        split="test",
    )
    with contextlib.closing(feed.Reader(dataset, schedule, mesh)) as reader:
        scores = loop.evaluate(program, variables, reader.raw, reader.evaluation())
        loop.report_skipped(reader, display)
    return scores


def truth(config: Config, genotype: Genotype) -> dict[str, Any] | None:
    """What the NAS-Bench-201 table says of a genotype; None without a table, or elsewhere.

    Raises:
      UserError: the table that the config names cannot be read.
    """
    path = nasbench201.locate(config.nasbench201.table, config.data.dir)
    if path is None or genotype.space != "nasbench201":
        return None
    return nasbench201.load(path).query(genotype)


def _network(
    metadata: Mapping[str, Any],
    genotype: Genotype,
    dataset: Dataset | Stream,
    mesh: Mesh,
    kernels_name: str,
) -> tuple[nn.Module, Counts]:
    """The network that a checkpoint is of, without an auxiliary head, and how large it is."""
    space = spaces.find(genotype.space)
    spaces.check_image(space, metadata["stem"], dataset.shape[:2])
    classes = metadata["classes"]
    if classes != dataset.num_classes:
        raise UserError(
            f"the checkpoint's network tells {classes} classes apart, and {dataset.name} has "
            f"{dataset.num_classes}: set data.name to what it was trained on"
        )

    def build(chosen: backend.Kernels) -> nn.Module:
        shape = (metadata["channels"], metadata["cells"], classes, metadata["stem"])
        return space.network(genotype, *shape, False, chosen, None)

    network = build(backend.choose(kernels_name, devices.platform(mesh)))
    return network, count_network(build(backend.PLAIN), dataset.shape)


def _show(display: Display, result: Mapping[str, Any], file: Path) -> None:
    display.message(
        f"test accuracy {100 * result['test_accuracy']:.2f} %, top-5 "
        f"{100 * result['test_top5']:.2f} %, {result['params']:,} parameters, "
        f"{result['macs']:,} multiply-adds ({file})"
    )
    if result["nasbench201"]:
        display.message(f"NAS-Bench-201, true accuracy in %: {result['nasbench201']}")
