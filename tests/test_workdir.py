"""A run's directory belongs to one config."""

import json
import subprocess
import sys

import jax
import pytest

from drnas_jax.config import from_config_dict, to_dict
from drnas_jax.configs import base
from drnas_jax.errors import UserError
from drnas_jax.workdir import alone, open_workdir, version


def config(**fields):
    values = base.get_config()
    values.update(fields)
    return from_config_dict(values)


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir is 'gs://bucket/run', .* mount the bucket"):
        open_workdir("gs://bucket/run", config())
    assert not list(tmp_path.iterdir())


def test_config_versions_and_devices_are_written(tmp_path):
    workdir = open_workdir(tmp_path / "runs" / "new", config())
    assert workdir == tmp_path / "runs" / "new"
    written = json.loads((workdir / "config.json").read_text())
    assert written["config"] == to_dict(config())
    assert written["versions"]["jax"] == jax.__version__
    assert {"drnas_jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} < written["versions"].keys()
    assert len(written["devices"]) == jax.device_count()


def test_opened_again_nothing_changes(tmp_path):
    file = open_workdir(tmp_path, config()) / "config.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    open_workdir(str(tmp_path), config())
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_where_things_lie_is_written_anew(tmp_path):
    file = open_workdir(tmp_path, config()) / "config.json"
    old = json.loads(file.read_text())
    moved = config(checkpoint="elsewhere")
    open_workdir(str(tmp_path), moved)
    assert json.loads(file.read_text()) == {**old, "config": to_dict(moved)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=1), "another config, seed: 0 there, 1 here: take a new --workdir, or"),
        (dict(seed=1, genotype="darts_v2"), r"genotype: '' there, .* \(and 1 more fields\): take"),
    ],
)
def test_another_config_is_refused(tmp_path, fields, message):
    file = open_workdir(tmp_path, config()) / "config.json"
    (tmp_path / "search").mkdir()
    before = file.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        open_workdir(tmp_path, config(**fields))
    assert str(tmp_path) in str(caught.value)
    assert file.read_bytes() == before


def test_a_workdir_in_which_nothing_was_done_is_free(tmp_path):
    """A mistake in the config that is found later claims nothing."""
    for seed in (1, 2):
        open_workdir(tmp_path, config(seed=seed, seeds=3))
        open_workdir(tmp_path / f"seed{seed}", config(seed=seed))
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["config"]["seed"] == seed
    (tmp_path / "seed2" / "search").mkdir()
    with pytest.raises(UserError, match="another config, seed: 2 there, 3 here"):
        open_workdir(tmp_path, config(seed=3, seeds=3))


def test_a_config_json_of_an_older_version(tmp_path):
    file = open_workdir(tmp_path, config()) / "config.json"
    values = json.loads(file.read_text())
    del values["config"]["seed"]
    values["config"]["search"]["gone"] = 3
    file.write_text(json.dumps(values))
    (tmp_path / "search").mkdir()
    with pytest.raises(UserError, match="search.gone: 3 there, None here"):
        open_workdir(tmp_path, config())


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"null", b'{"config": []}', b"\xff"])
def test_a_damaged_config_json_is_kept(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json is damaged.*: restore it, or take a new"):
        open_workdir(tmp_path, config())
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_in_its_place(tmp_path, place):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=f"workdir .*{place} cannot be written"):
        open_workdir(tmp_path / place, config())
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_the_place_of_config_json(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\)"):
        open_workdir(tmp_path, config())


def test_version():
    assert version("jax") == jax.__version__
    assert version("no-such-package") is None


def test_one_run_at_a_time(tmp_path):
    directory = tmp_path / "search"
    with alone(directory):
        with (
            pytest.raises(UserError, match=f"another run is at work in {directory}"),
            alone(directory),
        ):
            raise AssertionError
        with alone(tmp_path / "retrain"):
            pass
    with alone(directory):
        pass


def test_a_file_in_the_place_of_a_phase(tmp_path):
    (tmp_path / "retrain").write_text("mine")
    with (
        pytest.raises(UserError, match=r"retrain cannot be written \("),
        alone(tmp_path / "retrain"),
    ):
        raise AssertionError
    assert (tmp_path / "retrain").read_text() == "mine"


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "import os, sys, pathlib; from drnas_jax.workdir import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9 and (tmp_path / ".lock").exists()
    with alone(tmp_path):
        pass
