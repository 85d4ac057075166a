"""The evaluation phase: restores a network and measures its accuracy on the test set."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

from drnas_jax import components, tables
from drnas_jax.config import Config
from drnas_jax.data import (
    Batch,
    ImageDataset,
    Images,
    Loader,
    Preprocessing,
    Schedule,
    TrainingData,
)
from drnas_jax.errors import UserError
from drnas_jax.files import write_json
from drnas_jax.genotype import Genotype, search_seconds, to_json
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_network
from drnas_jax.phases import confusions, loop
from drnas_jax.phases.confusions import Predictions
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.setup import Run, open_run
from drnas_jax.phases.skipped_images import SkippedImages
from drnas_jax.phases.trained import (
    check_ended,
    checkpoint_folder,
    newest,
    open_checkpoints,
    restore,
)
from drnas_jax.spaces import NetworkSpec
from drnas_jax.training import devices, losses
from drnas_jax.training.checkpoints import CheckpointInfo, Checkpoints
from drnas_jax.training.hosts import from_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.programs import sum_program
from drnas_jax.training.random_keys import module_streams


@dataclasses.dataclass(frozen=True)
class EvaluateResult:
    """The content of result.json.

    Attributes:
      genotype: Genotype of the network.
      params: Number of parameters.
      macs: Number of multiply-adds for one image.
      cost: Exact cost of the network in the unit of `config.cost`. It is None, and not in the file,
        if that names no cost.
      search_seconds: Duration of the search in seconds, or None if the genotype does not come from
        the search in this workdir.
      retrain_seconds: Duration of the retraining in seconds.
      test_accuracy: Accuracy on the test images, in 0..1.
      test_top5: Top-5 accuracy on the test images, in 0..1.
      table: Entry of the genotype in the table of true accuracies, or None if there is none.
      seed: Seed of the run.
    """

    genotype: Genotype
    params: int
    macs: int
    cost: float | None
    search_seconds: float | None
    retrain_seconds: float
    test_accuracy: float
    test_top5: float
    table: Mapping[str, Any] | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values of result.json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["genotype"] = to_json(self.genotype)
        if self.cost is None:
            del values["cost"]
        if self.genotype.space == "nasbench201":
            values["nasbench201"] = self.table
        return values


def evaluate(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    dataset: Mapping[str, np.ndarray] | None = None,
    display: Display | None = None,
) -> EvaluateResult:
    """Evaluates the network that was retrained in this workdir, or the one in `config.checkpoint`.

    The result is also written to result.json, and to evaluation.npz the confusions between classes
    (see `drnas_jax.phases.confusions.Evaluation`).

    Args:
      config: Config of the run, a Config or a ConfigDict.
      workdir: Directory of the run.
      dataset: Arrays `x_train`, `y_train`, `x_test`, `y_test` in place of the config's data set.
      display: Messages and progress for the user; by default on standard error.

    Raises:
      UserError: There is no checkpoint, retraining has not ended, or the checkpoint does not fit
        the config.
    """
    return run_evaluate(open_run(config, workdir, dataset, display))


def run_evaluate(run: Run) -> EvaluateResult:
    """Runs the evaluation phase; see `evaluate`."""
    config, workdir, dataset, mesh = run.config, run.workdir, run.dataset, run.mesh
    table = tables.open_table(config)  # before the evaluation: the file may be damaged
    devices.check_batch(config.retrain.batch_size, mesh, "retrain.batch_size")
    with open_checkpoints(run) as checkpoints:
        saved, metadata = _newest(checkpoints, run)
        spec = metadata.spec
        chosen = backend.choose(config.compute.kernels, devices.platform(mesh))
        network = run.space.network(spec, chosen)
        variables = restore(checkpoints, saved, network, mesh)
    counts = count_network(run.space.network(spec, backend.PLAIN), dataset.shape)
    given = network, variables, metadata.data, dataset, config, mesh, run.display
    test, predictions = score(*given)
    searched = workdir / "search" / "genotype.json"
    searched_here = not (config.genotype or config.checkpoint)
    result = EvaluateResult(
        genotype=metadata.genotype,
        params=counts.parameters,
        macs=counts.macs,
        cost=_cost(run, spec),
        search_seconds=from_primary(lambda: search_seconds(searched)) if searched_here else None,
        retrain_seconds=round(saved.progress.seconds, 1),
        test_accuracy=test["accuracy"],
        test_top5=test["top5"],
        table=table.query(metadata.genotype) if table else None,
        seed=config.seed,
    )

    def write() -> None:
        confused = confusions.evaluation_of(predictions, metadata.data.classes, dataset)
        confused.save(workdir / confusions.FILE)
        write_json(workdir / "result.json", result.to_json())

    from_primary(write)
    title = table.title if table else ""
    _show(run.display, result, metadata.data, workdir / "result.json", title)
    return result


def _cost(run: Run, spec: NetworkSpec) -> float | None:
    """Returns the exact cost of a network, or None if the config names no cost."""
    config = run.config.cost
    if not config.name:
        return None
    cost = components.create("cost", config.name, config.options, field="cost.name")
    return float(cost.exact(run.space, dataclasses.replace(spec, image=config.image(spec.image))))


def check_evaluate(run: Run) -> None:
    """Raises UserError if there is no checkpoint now that fits the data set."""
    with open_checkpoints(run) as checkpoints:
        _newest(checkpoints, run)


def _newest(checkpoints: Checkpoints, run: Run) -> tuple[CheckpointInfo, RetrainMetadata]:
    """Returns the newest checkpoint and its description of the network.

    It must be final and of the run's images, unless it was named.
    """
    saved, metadata = newest(checkpoints, run)
    dataset = run.dataset
    if not run.config.checkpoint and saved.progress.fingerprint != dataset.fingerprint:
        raise UserError(
            f"data set {dataset.name} is not the one of the retraining (files were added, "
            "removed or renamed, or data.dir has changed), so test images may have been used for "
            "training: restore the data, or evaluate it anyway with "
            f"--config.checkpoint={checkpoint_folder(run)}"
        )
    check_ended(saved, run)
    metadata.data.outputs(dataset)  # raises if network and images do not belong together
    return saved, metadata


def score(
    network: nn.Module,
    variables: Any,
    trained: TrainingData,
    dataset: ImageDataset,
    config: Config,
    mesh: Mesh,
    display: Display,
) -> tuple[dict[str, float], Predictions]:
    """Returns loss, accuracy and top-5 accuracy on the test images, and all predictions.

    Every image is counted once.

    Args:
      network: Module of the final network.
      variables: Parameters and other collections of the network.
      trained: Description of the network's training images; their mean and deviation are used.
      dataset: Images and labels; their classes may be in another order.
      config: Config of the run.
      mesh: Device mesh with the single axis `data`.
      display: Messages for the user, such as about unreadable images.
    """
    preprocessing = Preprocessing(trained.mean, trained.std)
    outputs = trained.outputs(dataset)

    def totals(
        variables: Any, raw: Images | None, batch: Batch, weight: jax.Array
    ) -> tuple[losses.Totals, dict[str, jax.Array]]:
        images, labels = preprocessing.normalise(raw, batch)
        streams = module_streams(config.seed, "evaluate", 0, lax.axis_index(devices.AXIS))
        logits = cast(jax.Array, network.apply(variables, images, False, rngs=streams))
        labels = jnp.asarray(outputs)[labels]
        predicted = confusions.shard_predictions(logits, labels, weight, mesh.size)
        return losses.totals(logits, labels, weight), predicted

    program, predictions = sum_program(totals, mesh), []

    def keep_predictions(*arguments: Any) -> losses.Totals:
        sums, predicted = program(*arguments)
        predictions.append(jax.device_get(predicted))
        return sums

    schedule = Schedule(
        batch_size=config.retrain.batch_size,
        seed=config.seed,
        evaluated=np.arange(dataset.test_count, dtype=np.int32),
        split="test",
    )
    with contextlib.closing(Loader(dataset, schedule, mesh)) as loader:
        skipped = SkippedImages(loader, display)
        scores = loop.evaluate(keep_predictions, variables, loader.raw, loader.evaluation())
        skipped.report()
    return scores, confusions.join(predictions)


def _show(
    display: Display, result: EvaluateResult, trained: TrainingData, file: Path, table: str
) -> None:
    height, width, _ = trained.shape
    top5 = f", top-5 {100 * result.test_top5:.2f} %" if len(trained.classes) > 5 else ""
    display.message(
        f"retrained network: test accuracy {100 * result.test_accuracy:.2f} %{top5}, "
        f"{result.params:,} parameters, {result.macs:,} multiply-adds at {width}x{height} ({file})"
    )
    if result.table:
        display.message(f"{table}, true accuracy in %: {dict(result.table)}")
    elif table:
        display.message(f"{table} does not contain this genotype: its true accuracy is unknown")
