"""Curves for MLflow (https://mlflow.org), each phase of a run as a run there.

The store is the one that MLFLOW_TRACKING_URI or `mlflow.set_tracking_uri` names, and by default
`sqlite:///DIR/mlflow.db`, where DIR is the workdir of the command. The experiment is
MLFLOW_EXPERIMENT_NAME, by default the path of this workdir.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from drnas_jax.config import leaves, to_dict
from drnas_jax.extras import import_extra
from drnas_jax.files import read_json, write_json
from drnas_jax.workdir import waiting_lock
from drnas_jax.writers.base import RunInfo, Writer, service_errors

_BATCH = 100  # parameters that MLflow takes at once


def check() -> None:
    """Raises UserError if the package mlflow is missing."""
    _mlflow()


def create(run: RunInfo) -> Writer:
    """Returns a writer to the run of this phase in the store, which is begun or continued."""
    return MLflow(run)


class MLflow:
    """A run in a store of MLflow.

    Its number is kept in `mlflow.json` in the phase's directory. A phase that is resumed continues
    the same run. MLflow would keep two points of the same step, so the steps that the store has are
    not written again.

    Args:
      run: Phase whose curves are written.
    """

    def __init__(self, run: RunInfo):
        # Only one process at a time may create the tables of a store, or an experiment.
        with waiting_lock(run.sweep), service_errors():
            self._client, self._id, self._step = _open(run)
        write_json(run.directory / "mlflow.json", {"run_id": self._id})

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve, unless the store has this step already."""
        if step <= self._step:
            return
        metric, now = _mlflow().entities.Metric, int(1000 * time.time())
        points = [metric(name, float(value), now, step) for name, value in values.items()]
        with service_errors():
            self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        """Marks the run as finished."""
        with service_errors():
            self._client.set_terminated(self._id)


def _open(run: RunInfo) -> tuple[Any, str, int]:
    """Returns the client, the number of the run, and the last step that it has, or -1."""
    mlflow = _mlflow()
    uri = None if mlflow.is_tracking_uri_set() else f"sqlite:///{run.group}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    kept = (read_json(run.directory / "mlflow.json") or {}).get("run_id")
    if kept is None:
        return client, _begin(client, run), -1
    try:
        metrics = client.get_run(kept).data.metrics
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return client, _begin(client, run), -1  # it is another store now
    client.update_run(kept, status="RUNNING")
    steps = (point.step for key in metrics for point in client.get_metric_history(kept, key))
    return client, kept, max(steps, default=-1)


def _begin(client: Any, run: RunInfo) -> str:
    """Creates a run in the store and returns its number."""
    param = _mlflow().entities.Param
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.group
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    tags = {"workdir": run.group, "phase": run.phase}
    number = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
    fields = leaves(to_dict(run.config))
    params = [param(name, str(value)) for name, value in fields]
    for start in range(0, len(params), _BATCH):
        client.log_batch(number, params=params[start : start + _BATCH])
    return number


def _mlflow() -> Any:
    return import_extra("mlflow", "mlflow", "metrics.writers 'mlflow'")
