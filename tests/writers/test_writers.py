"""Writers of curves: which a run has, and what happens if one of them fails."""

import sys

import numpy as np
import pytest

from drnas_jax import components, search
from drnas_jax.config import from_config_dict, schema
from drnas_jax.errors import UserError
from drnas_jax.files import read_history
from drnas_jax.writers import ServiceError, Writers, check
from drnas_jax.writers.tensorboard import TensorBoard

# A user's module, which keeps what it is told in `told`. It fails in the method that FAIL names.
MODULE = """
from drnas_jax.writers.base import ServiceError

told, FAIL = [], None

class Mine:
    def __init__(self, run):
        self.fail("create")
        told.append(("create", run.name, run.phase, run.resume_step))

    def scalars(self, values, step):
        self.fail("scalars")
        told.append((step, dict(values)))

    def close(self):
        self.fail("close")
        told.append("close")

    def fail(self, name):
        if FAIL and FAIL[0] == name:
            raise FAIL[1]("no network\\nat all")

create = Mine
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Returns the path and the module of a user's writer."""
    file = tmp_path / "mine.py"
    file.write_text(MODULE)
    return str(file), components.find("writer", str(file), "metrics.writers")


def test_a_users_writer_gets_all_curves_of_a_search(mine, one_stage, tmp_path):
    # Would catch a curve or an epoch that is left out, or a step that counts from the epoch's.
    path, module = mine
    config, arrays = one_stage(metrics__writers=(path,), search__epochs=(2,))
    search(config, tmp_path / "run", arrays)
    first, *points, last = module.told
    assert (first, last) == (("create", "run/search", "search", 1), "close")
    lines = read_history(tmp_path / "run" / "search" / "history.jsonl")
    numbers = [{k: v for k, v in line.items() if isinstance(v, float)} for line in lines]
    assert points == list(zip((2, 4), numbers, strict=True))
    assert {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy"} <= numbers[0].keys()
    assert not list((tmp_path / "run" / "search").glob("events*"))  # it replaces TensorBoard


def test_the_help_names_all_bundled_writers():
    # Would catch a new writer that nobody can find.
    (field,) = (field for name, field in schema() if name == "metrics.writers")
    assert all(repr(name) in field.metadata["meaning"] for name in components.names("writer"))


@pytest.mark.parametrize(
    ("writers", "words"),
    [
        (("tensorbord",), "unknown metrics.writers 'tensorbord': .* mlflow, tensorboard, wandb"),
        (("no/such.py",), "metrics.writers is 'no/such.py', and there is no such file"),
    ],
)
def test_a_writer_that_does_not_exist_is_refused(writers, words):
    with pytest.raises(UserError, match=words):
        check(from_config_dict({"metrics": {"writers": writers}}))


def test_a_writer_named_twice_is_refused():
    # Would catch curves that are written twice.
    with pytest.raises(UserError, match="metrics.writers is .* which has 'tensorboard' twice"):
        from_config_dict({"metrics": {"writers": ("tensorboard", "tensorboard")}})


def test_without_writers_there_are_no_curves(info):
    run = info()
    check(run.config)
    writers = Writers(run)
    writers.scalars({"loss": 1.0}, 1)
    writers.close()
    assert not run.directory.exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_one_line_that_names_it(name, monkeypatch):
    # Would catch a run that fails only after its search, or with a traceback.
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        check(from_config_dict({"metrics": {"writers": name}}))
    line = str(caught.value)
    assert f"metrics.writers {name!r} needs the package {name}" in line
    assert line.endswith(f"pip install 'drnas_jax[{name}]'") and "\n" not in line


@pytest.mark.parametrize("method", ["create", "scalars", "close"])
def test_a_service_that_fails_does_not_end_the_run(mine, info, monkeypatch, method):
    # Would catch a search of days that a server ends, or a message for each epoch.
    path, module = mine
    monkeypatch.setattr(module, "FAIL", (method, ServiceError))
    run = info(path, "tensorboard")
    writers = Writers(run)
    for step in (1, 2):
        writers.scalars({"loss": 1.0}, step)
    writers.close()
    (line,) = info.said
    assert repr(path) in line and "no network at all" in line and "history.jsonl" in line
    reached = {"create": 0, "scalars": 1, "close": 3}
    assert len(module.told) == reached[method]
    assert list(run.directory.glob("events*"))  # the others write on


@pytest.mark.parametrize("method", ["create", "scalars", "close"])
def test_any_other_error_of_a_writer_ends_the_run(mine, info, monkeypatch, method):
    # Would catch a full disk, or a bug of a user's writer, that nobody hears of.
    path, module = mine
    monkeypatch.setattr(module, "FAIL", (method, OSError))
    closed, close = [], TensorBoard.close
    monkeypatch.setattr(TensorBoard, "close", lambda self: closed.append(close(self)))
    with pytest.raises(OSError, match="no network"):
        writers = Writers(info("tensorboard", path))
        try:
            writers.scalars({"loss": np.float64(1.0)}, 1)
        finally:
            writers.close()
    assert len(closed) == 1 and not info.said
