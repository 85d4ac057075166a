"""Several commands may work in one workdir, for runs of one sweep on several machines."""

import contextlib
import subprocess

import pytest
from resuming import history
from small_run import ROOT, command, environment, started, wait_until
from test_workdir import begin, config

from drnas_jax import workdir as lib
from drnas_jax.errors import UserError
from drnas_jax.files import read_json
from drnas_jax.phases.setup import Run
from drnas_jax.workdir import open_workdir


def test_the_first_of_two_commands_in_a_new_workdir_decides_its_config(tmp_path, monkeypatch):
    # Would catch a command that replaces the config which another one has written since it looked.
    def late(genotype, before):
        assert not before
        monkeypatch.undo()
        open_workdir(tmp_path, config(seed=1))
        begin(tmp_path / "seed1")

    monkeypatch.setattr(lib, "_genotype_hash", late)
    with pytest.raises(UserError, match="seed was 1 and is 2"):
        open_workdir(tmp_path, config(seed=2))
    assert read_json(tmp_path / "config.json")["config"]["seed"] == 1


def test_a_run_of_a_sweep_does_not_begin_under_the_config_of_another_command(tmp_path):
    # Would catch two sweeps that mix in one workdir because neither had begun when they opened it.
    sweep, element = config(seeds=2), config(seed=0)
    run = Run(element, open_workdir(tmp_path / "seed0", element), None, None, (tmp_path, sweep))
    open_workdir(tmp_path, config(seeds=3))
    with pytest.raises(UserError, match="seeds was 3 and is 2"), run.locked("search"):
        raise AssertionError
    (tmp_path / "config.json").unlink()
    with run.locked("search"):
        pass


def test_work_of_an_element_is_work_of_the_sweep(tmp_path):
    # Would catch a sweep whose config changes under its runs.
    open_workdir(tmp_path, config(seeds=2))
    begin(tmp_path / "cost_30000000" / "seed0")
    with pytest.raises(UserError, match="seeds was 2 and is 3"):
        open_workdir(tmp_path, config(seeds=3))


@pytest.mark.slow
def test_elements_that_run_at_the_same_time_are_those_of_one_command(tmp_path):
    # Would catch commands that disturb each other in a workdir, and a report that lacks a run.
    run, costs = tmp_path / "run", ("--config.cost.name=params", "--config.cost.targets=(300,400)")
    space = f"--config.space={ROOT / 'tests' / 'small_space.py'}"  # compiles in no time
    shared = (space, *costs, "--config.search.operations=(4,4)", "--phases=search")
    files = [run / f"cost_{target}" / "search" / "genotype.json" for target in (300, 400)]
    with contextlib.ExitStack() as stack:
        begun = []
        for number in (1, 2):
            words = command(run, *shared, f"--config.element={number}")
            log = tmp_path / f"{number}.log"
            begun.append(stack.enter_context(started(words, log, env=environment())))
        wait_until((files[1].parent / "history.jsonl").exists, begun[1])
        begun[1].terminate()
        assert begun[1].wait(300) == 143
        again = command(run, *shared, "--config.element=2")
        done = subprocess.run(again, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert begun[0].wait(600) == 0
    front = read_json(run / "front.json")
    assert (len(front["points"]), front["missing"]) == (2, [])
    before = [file.read_bytes() for file in files]
    subprocess.run(command(run, *shared), env=environment(), check=True)
    assert [file.read_bytes() for file in files] == before
    subprocess.run(command(tmp_path / "one", *shared), env=environment(), check=True)
    for file in files:
        alone = tmp_path / "one" / file.relative_to(run)
        assert read_json(file)["cells"] == read_json(alone)["cells"]
        assert history(file.parent) == history(alone.parent)
