"""The directory of a run belongs to one config, and to one version of a user's modules."""

import json
import re
import subprocess
import sys

import jax
import pytest

from drnas_jax import components
from drnas_jax.config import defaults, from_config_dict, to_dict
from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.genotype import save, to_json
from drnas_jax.spaces.darts.published import PUBLISHED
from drnas_jax.workdir import open_workdir, phase_lock, version

MODULE = "def create(): return {number}"


def config(**fields):
    values = defaults()
    values.update(fields)
    return from_config_dict(values)


def write_module(file, number=1):
    """Writes a module of the user; modules with another number are other components."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(MODULE.format(number=number))
    return file


def forget_modules():
    """Does what a new process does: it has imported none of the user's modules."""
    components._source.cache_clear()
    for name in [name for name in sys.modules if name.startswith(f"{components.__name__}.")]:
        del sys.modules[name]


def begin(workdir, phase="search"):
    """Does what a phase does first, as far as the workdir sees it."""
    (workdir / phase / "checkpoints").mkdir(parents=True)
    (workdir / phase / "checkpoints" / "1").mkdir()


def test_a_bucket_is_no_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'gs://bucket/run', .* mount the bucket"):
        open_workdir("gs://bucket/run", config())
    assert not list(tmp_path.iterdir())


def test_config_versions_and_devices_are_written(tmp_path):
    workdir = open_workdir(tmp_path / "runs" / "new", config())
    assert workdir == tmp_path / "runs" / "new"
    written = json.loads((workdir / "config.json").read_text())
    assert written["config"] == to_dict(config())
    assert written["components"] == {}
    assert written["versions"]["jax"] == jax.__version__
    assert {"drnas_jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} < written["versions"].keys()
    assert len(written["devices"]) == jax.device_count()


def test_opening_a_workdir_again_changes_nothing(tmp_path):
    file = open_workdir(tmp_path, config()) / "config.json"
    before = file.read_bytes(), file.stat().st_mtime_ns
    open_workdir(str(tmp_path), config())
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_a_field_that_may_change_is_written_again(tmp_path):
    file = open_workdir(tmp_path, config()) / "config.json"
    old = json.loads(file.read_text())
    moved = config(checkpoint="elsewhere")
    open_workdir(str(tmp_path), moved)
    assert json.loads(file.read_text()) == {**old, "config": to_dict(moved)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=1), "seed was 0 and is 1: take a new --workdir"),
        (dict(seed=1, space="darts"), "seed was 0 and is 1, space was .* and is 'darts'"),
    ],
)
def test_another_config_is_refused(tmp_path, fields, message):
    file = open_workdir(tmp_path, config()) / "config.json"
    begin(tmp_path)
    before = file.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        open_workdir(tmp_path, config(**fields))
    assert str(tmp_path) in str(caught.value)
    assert file.read_bytes() == before


def test_a_workdir_in_which_nothing_was_done_takes_another_config(tmp_path):
    # Would catch a command with a mistake that is found late, after which the workdir is useless.
    for seed in (1, 2):
        open_workdir(tmp_path, config(seed=seed, seeds=3))
        open_workdir(tmp_path / f"seed{seed}", config(seed=seed))
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["config"]["seed"] == seed
    begin(tmp_path / "seed2")
    with pytest.raises(UserError, match="seed was 2 and is 3"):
        open_workdir(tmp_path, config(seed=3, seeds=3))


def test_fields_of_a_phase_may_change_until_it_begins(tmp_path):
    # Would catch a mistake in `retrain` that is found after the search, which then is lost.
    values = defaults()
    file = open_workdir(tmp_path, from_config_dict(values)) / "config.json"
    begin(tmp_path)
    values.retrain.batch_size, values.genotype = 32, "random"
    open_workdir(tmp_path, from_config_dict(values))
    assert read_json(file)["config"]["retrain"]["batch_size"] == 32
    values.search.lr = 0.5
    with pytest.raises(UserError, match=r"search.lr was 0.025 and is 0.5: take"):
        open_workdir(tmp_path, from_config_dict(values))
    values.search.lr = 0.025
    begin(tmp_path, "retrain")
    values.retrain.batch_size = 16
    with pytest.raises(UserError, match="retrain.batch_size was 32 and is 16"):
        open_workdir(tmp_path, from_config_dict(values))


def test_the_size_of_the_network_belongs_to_a_search_with_a_cost(tmp_path):
    # Would catch a search whose expected cost is that of another network when it is resumed.
    values = defaults()
    values.cost.name = str(write_module(tmp_path / "own.py"))
    open_workdir(tmp_path / "run", from_config_dict(values))
    begin(tmp_path / "run")
    values.retrain.channels = 8
    with pytest.raises(UserError, match="retrain.channels was 16 and is 8"):
        open_workdir(tmp_path / "run", from_config_dict(values))


def test_a_phase_without_a_checkpoint_has_not_begun_unless_it_runs(tmp_path):
    # Would catch a workdir that is useless after its first step ran out of memory, and a second
    # command that changes the config under a run.
    open_workdir(tmp_path, config())
    with phase_lock(tmp_path / "search"), pytest.raises(UserError, match="seed was 0 and is 1"):
        open_workdir(tmp_path, config(seed=1))
    open_workdir(tmp_path, config(seed=1))


def test_what_a_kill_leaves_of_the_first_checkpoint_is_no_work(tmp_path):
    # Would catch a workdir that holds nothing, and still refuses another config.
    open_workdir(tmp_path, config())
    (tmp_path / "search/checkpoints/1.orbax-checkpoint-tmp").mkdir(parents=True)
    open_workdir(tmp_path, config(seed=1))
    (tmp_path / "search/checkpoints/0").mkdir()
    with pytest.raises(UserError, match="seed was 1 and is 2"):
        open_workdir(tmp_path, config(seed=2))


def test_what_leaves_the_result_as_it_is_may_change(tmp_path):
    # Would catch advice on memory that the workdir refuses, since the search has begun.
    values = defaults()
    open_workdir(tmp_path, from_config_dict(values))
    begin(tmp_path)
    values.compute.remat, values.compute.donate, values.table.name = "cells", False, "nasbench201"
    written = read_json(open_workdir(tmp_path, from_config_dict(values)) / "config.json")
    assert written["config"]["compute"]["remat"] == "cells"


def test_a_config_of_an_older_version_is_refused(tmp_path):
    # Would catch a search that goes on with other fields, and an error that hides the reason.
    file = open_workdir(tmp_path, config()) / "config.json"
    values = json.loads(file.read_text())
    del values["config"]["seed"]
    values["config"]["search"]["gone"] = 3
    values["versions"]["drnas_jax"] = "0.0.9"
    file.write_text(json.dumps(values))
    begin(tmp_path)
    expected = f"by drnas_jax 0.0.9, and this is {version('drnas_jax')}, search.gone was 3 and is"
    with pytest.raises(UserError, match=re.escape(expected)):
        open_workdir(tmp_path, config())


# A user's modules


def test_a_users_module_is_recorded_with_file_and_hash(tmp_path):
    file = write_module(tmp_path / "own.py")
    written = read_json(open_workdir(tmp_path / "run", config(space=str(file))) / "config.json")
    source = components.source_of("space", str(file))
    assert written["components"] == {"space": {"name": str(file), **source._asdict()}}
    assert source.file == str(file)


def test_a_changed_module_is_refused_by_name_once_something_was_done(tmp_path):
    # Would catch a run that goes on in what is silently another search space.
    file, run = write_module(tmp_path / "own.py"), tmp_path / "run"
    written = (open_workdir(run, config(space=str(file))) / "config.json").read_bytes()
    forget_modules()
    write_module(file, number=22)
    with_other = read_json(open_workdir(run, config(space=str(file))) / "config.json")
    assert with_other["components"] != json.loads(written)["components"]  # nothing was done yet

    begin(run)
    written = (run / "config.json").read_bytes()
    forget_modules()
    write_module(file, number=333)
    with pytest.raises(UserError) as caught:
        open_workdir(run, config(space=str(file)))
    message = str(caught.value)
    assert all(word in message for word in (str(run), repr(str(file)), "(space)", "has changed"))
    assert (run / "config.json").read_bytes() == written

    forget_modules()
    write_module(file, number=22)
    open_workdir(run, config(space=str(file)))


def test_a_module_that_was_moved_is_accepted(tmp_path):
    # Would catch a comparison of paths in place of contents, on another machine for instance.
    run = tmp_path / "run"
    open_workdir(run, config(space=str(write_module(tmp_path / "here" / "own.py"))))
    begin(run)
    moved = write_module(tmp_path / "there" / "own.py")
    written = read_json(open_workdir(run, config(space=str(moved))) / "config.json")
    assert written["config"]["space"] == written["components"]["space"]["file"] == str(moved)


# The files that options name


def measured(tmp_path, file):
    """Opens a workdir for a search with a table of measured costs."""
    values = defaults()
    values.cost.update(dict(name="table", options=dict(file=str(file))))
    return read_json(open_workdir(tmp_path / "run", from_config_dict(values)) / "config.json")


def test_a_changed_table_of_costs_is_refused_by_name_once_the_search_has_begun(tmp_path):
    # Would catch a search that goes on with other costs after a stop, without a word.
    file = tmp_path / "times.csv"
    file.write_text("first")
    before = measured(tmp_path, file)
    assert before["files"]["cost.options.file"]["name"] == str(file)
    begin(tmp_path / "run", "retrain")
    file.write_text("second")
    begun = measured(tmp_path, file)  # only the search reads it
    assert begun["files"] != before["files"]
    begin(tmp_path / "run")
    file.write_text("third")
    with pytest.raises(UserError, match=r"times.csv' \(cost.options.file\), which has changed"):
        measured(tmp_path, file)
    assert read_json(tmp_path / "run/config.json") == begun
    file.unlink()  # what needs it says so
    assert measured(tmp_path, file) == begun
    file.write_text("second")
    moved = file.rename(tmp_path / "moved.csv")
    assert measured(tmp_path, moved)["config"]["cost"]["options"]["file"] == str(moved)
    with pytest.raises(UserError, match="cost.options.file was .*moved.csv' and is .*other.csv'"):
        measured(tmp_path, tmp_path / "other.csv")


# The genotype that a config names


def retrained(tmp_path, genotype):
    """Opens a workdir for a genotype, and does what a retraining does there first."""
    workdir = open_workdir(tmp_path / "run", config(genotype=str(genotype)))
    if not (workdir / "retrain").exists():
        begin(workdir, "retrain")
    return read_json(workdir / "config.json")


def test_a_genotype_file_that_was_moved_is_accepted(tmp_path):
    # Would catch a comparison of paths in place of cells, on another machine for instance.
    save(tmp_path / "here.json", PUBLISHED["darts_v1"], {"seed": 1})
    before = retrained(tmp_path, tmp_path / "here.json")
    (tmp_path / "here.json").rename(tmp_path / "there.json")
    after = retrained(tmp_path, tmp_path / "there.json")
    assert after["config"]["genotype"] == str(tmp_path / "there.json")
    assert after["genotype"] == before["genotype"] is not None
    retrained(tmp_path, "darts_v1")
    retrained(tmp_path, json.dumps(to_json(PUBLISHED["darts_v1"])))
    with pytest.raises(UserError, match="genotype was .* and is 'darts_v2'"):
        retrained(tmp_path, "darts_v2")


def test_a_changed_genotype_file_is_refused_by_name(tmp_path):
    # Would catch another cell's retraining that goes on, or is taken as done.
    file = tmp_path / "cell.json"
    save(file, PUBLISHED["darts_v1"], {})
    before = retrained(tmp_path, file)
    save(file, PUBLISHED["darts_v1"], {"seed": 2})  # the same cell
    assert retrained(tmp_path, file) == before
    save(file, PUBLISHED["darts_v2"], {})
    with pytest.raises(
        UserError, match="another cell in '.*cell.json' .genotype., which has changed"
    ):
        retrained(tmp_path, file)
    assert read_json(tmp_path / "run/config.json") == before
    file.unlink()  # what was trained can be evaluated all the same
    assert retrained(tmp_path, file) == before
    with pytest.raises(UserError, match="neither a file"):
        retrained(tmp_path, tmp_path / "other.json")


def test_another_module_is_refused_as_another_config(tmp_path):
    run, own = tmp_path / "run", write_module(tmp_path / "own.py")
    open_workdir(run, config(space=str(own)))
    begin(run)
    same_name = write_module(tmp_path / "there" / "own.py", number=2)
    same_content = write_module(tmp_path / "renamed.py")  # genotype.json has the module's name
    for other in (str(same_name), str(same_content), "nasbench201"):
        with pytest.raises(UserError, match=f"space was '{own}' and is '{other}'"):
            open_workdir(run, config(space=other))


def test_the_hash_of_every_kind_of_module_counts(tmp_path):
    file, run = write_module(tmp_path / "own.py"), tmp_path / "run"
    values = defaults()
    values.cost.name = values.search.stopping = values.arch.name = str(file)
    written = read_json(open_workdir(run, from_config_dict(values)) / "config.json")
    assert set(written["components"]) == {"cost.name", "search.stopping", "arch.name"}


# Damage


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"3",
        b"null",
        b'{"config": []}',
        b'{"config": {}, "components": {"space": {}}}',
        b'{"config": {}, "files": {"cost.options.file": "x"}}',
        b"\xff",
    ],
)
def test_a_damaged_config_json_is_refused_and_kept(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json is damaged.*: restore it, or take a new"):
        open_workdir(tmp_path, config())
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_with_the_name_of_the_workdir_is_kept(tmp_path, place):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=f"workdir .*{place} cannot be written"):
        open_workdir(tmp_path / place, config())
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_with_the_name_of_config_json_is_an_error(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\)"):
        open_workdir(tmp_path, config())


def test_the_version_of_a_package():
    assert version("jax") == jax.__version__
    assert version("no-such-package") is None


def test_a_directory_takes_one_run_at_a_time(tmp_path):
    directory = tmp_path / "search"
    with phase_lock(directory):
        with (
            pytest.raises(UserError, match=f"another run is using {directory}"),
            phase_lock(directory),
        ):
            raise AssertionError
        with phase_lock(tmp_path / "retrain"):
            pass
    with phase_lock(directory):
        pass


def test_a_file_with_the_name_of_a_phase_is_kept(tmp_path):
    (tmp_path / "retrain").write_text("mine")
    with (
        pytest.raises(UserError, match=r"retrain cannot be written \("),
        phase_lock(tmp_path / "retrain"),
    ):
        raise AssertionError
    with pytest.raises(UserError, match="retrain is a file, and the retrain phase needs a folder"):
        open_workdir(tmp_path, config())  # before the search
    assert (tmp_path / "retrain").read_text() == "mine"


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "import os, sys, pathlib; from drnas_jax.workdir import phase_lock\n"
        "with phase_lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9 and (tmp_path / ".lock").exists()
    with phase_lock(tmp_path):
        pass
