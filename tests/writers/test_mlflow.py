"""MLflow with a local SQLite store, and without the server that was named."""

import pytest
from service_runs import search_two_seeds, write_losses

from drnas_jax.writers import Writers

mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install 'drnas_jax[mlflow]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of its many dependencies
]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Hides the user's settings; statistics about the use of MLflow are not sent."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def stored(workdir):
    """Returns the client of a workdir's store, and the runs of its experiment by their names."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workdir}/mlflow.db")
    experiment = client.get_experiment_by_name(str(workdir))
    runs = client.search_runs([experiment.experiment_id])
    return client, {run.info.run_name: run for run in runs}


def points(client, run, name):
    """Returns the points of a curve as pairs of step and value."""
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_a_resumed_run_is_the_same_run_and_no_step_is_in_it_twice(info):
    # Would catch a new run at each resume, or points that the store keeps twice.
    run = info("mlflow")
    writers = Writers(run)
    write_losses(writers, {10: 0.5, 20: 0.25})
    writers.close()
    writers = Writers(info("mlflow", resume_step=11))  # killed before the checkpoint of step 20
    client, runs = stored(run.sweep)
    assert [each.info.status for each in runs.values()] == ["RUNNING"]
    write_losses(writers, {20: 0.25, 30: 0.125})
    writers.close()
    client, runs = stored(run.sweep)
    assert list(runs) == ["sweep/seed3/search"]
    (kept,) = runs.values()
    assert points(client, kept, "loss") == [(10, 0.5), (20, 0.25), (30, 0.125)]
    assert kept.info.status == "FINISHED"
    assert (kept.data.params["seed"], kept.data.params["search.epochs"]) == ("3", "[50, 50]")
    assert kept.data.tags["phase"] == "search" and not info.said


def test_another_store_gets_a_run_of_its_own(info, monkeypatch, tmp_path):
    # Would catch a number of one store that is looked up in another.
    Writers(info("mlflow")).close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", str(tmp_path))
    writers = Writers(info("mlflow"))
    writers.scalars({"loss": 0.5}, 10)
    writers.close()
    client, runs = stored(tmp_path)
    (kept,) = runs.values()
    assert points(client, kept, "loss") == [(10, 0.5)] and not info.said


def test_without_a_server_the_run_goes_on(info, monkeypatch):
    # Would catch a run that ends because nobody answers.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    writers = Writers(info("mlflow", "tensorboard"))
    writers.scalars({"loss": 1.0}, 1)
    writers.close()
    (line,) = info.said
    assert "metrics.writers 'mlflow' fails" in line


def test_seeds_that_are_searched_at_once_have_a_run_each(tmp_path):
    # Would catch runs that get each other's points, or a store that works in one thread only.
    losses = search_two_seeds(tmp_path / "run", "mlflow")
    client, runs = stored(tmp_path / "run")
    assert sorted(runs) == ["run/seed0/search", "run/seed1/search"]
    for seed in (0, 1):
        found = points(client, runs[f"run/seed{seed}/search"], "train_loss")
        assert [value for _, value in found] == losses[seed]
