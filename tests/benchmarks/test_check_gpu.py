"""The script for a GPU: its order, its time limits, its lines, and what its processes run."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from small_run import ROOT, environment, wait_until

from drnas_jax import data
from drnas_jax.config import DataConfig

SCRIPT = ROOT / "benchmarks" / "check_gpu.py"
GPU = {"platform": "gpu"}


@pytest.fixture(scope="module")
def modules():
    """Yields check_gpu and gpu_lines, which import compare from their own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("check_gpu"), importlib.import_module("gpu_lines")


@pytest.fixture
def gpu(modules):
    return modules[0]


@pytest.fixture
def lines(modules, monkeypatch):
    compiler = modules[1].compiler
    monkeypatch.setattr(compiler, "options", compiler.options)  # undone after the test
    return modules[1]


class Calls(list):
    """Records the calls of `run`, and returns the result of `answer(call, limit)` for each."""

    def answer(self, call, limit):
        return GPU if call[0] == "facts" else {"value": 1}

    def attempt(self, call, limit, alone):
        self.append((tuple(call), alone))
        return dict(self.answer(call, limit))


@pytest.fixture
def calls(gpu, monkeypatch):
    made = Calls()
    monkeypatch.setattr(gpu, "run", lambda call, n, cache, alone: made.attempt(call, n, alone))
    return made


def results(gpu, calls, *argv):
    return dict(gpu.check(gpu.parse([*argv, "--processes=1"]), calls.attempt))


def test_lines_come_in_order_and_steps_after_their_compilation(gpu, calls):
    # Would catch a step that is timed beside a compilation, or whose program is another one.
    assert list(results(gpu, calls)) == gpu.NAMES
    alone = [call for call, alone in calls if alone]
    beside = [call for call, alone in calls if not alone]
    steps = [call[1:] for call in alone if call[0] == "time_step"]
    assert steps == [call[1:] for call in beside if call[0] == "compile_step"]
    assert {call[0] for call in alone} == {"time_step", "bench_input", "bench_jpegs"}
    order = [call[:2] for call, _ in calls]
    assert order.index(("time_step", "c")) > order.index(("compile_step", "a"))
    assert order.index(("compile_step", "b")) > order.index(("time_step", "r"))


def test_a_line_that_does_not_fit_is_skipped_and_shorter_ones_follow(gpu, calls, monkeypatch):
    # Would catch a run that lasts longer than asked, or that ends at the first line too long.
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])

    def answer(call, limit):
        clock[0] += 25 if call[0] == "time_step" else 0
        return {"value": 1}

    calls.answer = answer
    found = results(gpu, calls, "--seconds=100", "--only=c,d,r,input")
    assert [*found] == ["facts", "c", "d", "r", "input"]
    assert found["r"] == {
        "value": 1,  # of the compilation
        "skipped": "needs up to 60 s, and 50 s are left: raise --seconds",
    }
    assert found["c"] == found["d"] == found["input"] == {"value": 1}


@pytest.mark.parametrize(
    ("function", "name", "key", "value"),
    [
        ("compile_step", "d", "skipped", "the program was not compiled after 120 s"),
        ("time_step", "d", "skipped", "it was not done after 60 s"),
        ("dirichlet", "dirichlet-jax", "error", "the gradient hangs, see JAX issues"),
    ],
)
def test_what_exceeds_its_limit(gpu, calls, function, name, key, value):
    # Would catch a hang that ends the script, or is taken for a lack of time.
    def answer(call, limit):
        if call[0] == function:
            raise subprocess.TimeoutExpired(function, limit)
        return {"value": 1}

    calls.answer = answer
    found = results(gpu, calls, f"--only={name},input")
    assert found[name][key].startswith(value)
    assert found["input"] == {"value": 1}


def test_more_time_is_more_time_for_each_line(gpu, calls):
    # Would catch advice to raise `--seconds` that changes nothing for a slow machine.
    limits = {}
    calls.answer = lambda call, limit: limits.setdefault(call[0], limit) and {}
    results(gpu, calls, "--seconds=1200", "--only=c")
    assert limits == {"facts": 120, "compile_step": 240, "time_step": 120}


def test_a_program_that_does_not_compile_is_not_timed(gpu, calls):
    # Would catch a step that compiles again, alone and for minutes.
    calls.answer = lambda call, limit: {"error": "no"} if call[0] == "compile_step" else {}
    assert results(gpu, calls, "--only=c,input")["c"] == {"error": "no"}
    assert "time_step" not in [call[0] for call, _ in calls]


@pytest.mark.parametrize(
    ("failing", "code"), [("", 0), ("time_step", 0), ("parity", 1), ("dirichlet", 1)]
)
def test_lines_of_json_and_exit_code(gpu, calls, capsys, tmp_path, failing, code):
    # Would catch a failed comparison that goes unnoticed, or a lost line.
    answer = calls.answer
    calls.answer = lambda call, n: {"error": "no"} if call[0] == failing else answer(call, n)
    file = tmp_path / "new" / "out.jsonl"
    assert gpu.main(gpu.parse([f"--out={file}", "--smallest", "--npz=a.npz"])) == code
    printed = capsys.readouterr().out
    assert printed == file.read_text()
    assert [json.loads(line)["line"] for line in printed.splitlines()] == gpu.NAMES
    assert all(call[-1] == {"smallest": True, "cifar": None, "npz": "a.npz"} for call, _ in calls)


def test_without_a_gpu_it_ends_after_the_facts(gpu, calls, capsys, tmp_path):
    # Would catch ten minutes of measurements of a CPU.
    calls.answer = lambda call, limit: {"platform": "cpu"}
    assert gpu.main(gpu.parse([f"--out={tmp_path / 'out'}"])) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(captured.err.splitlines()) == 1


def test_an_unknown_line_is_refused(gpu, capsys):
    # Would catch a misspelt name that silently runs nothing.
    with pytest.raises(SystemExit):
        gpu.parse(["--only=e"])
    assert "choose among" in capsys.readouterr().err


def test_a_process_returns_its_last_line_or_the_reason(gpu, tmp_path, monkeypatch):
    # Would catch a traceback in place of values, or a reason that is many lines.
    script = tmp_path / "script.py"
    monkeypatch.setattr(gpu, "SCRIPT", script)
    script.write_text("import sys; print('noise'); print(sys.argv[1])")
    assert gpu.run({"a": 1}, 60, "cache", True) == {"a": 1}
    script.write_text("import sys; sys.exit('first\\nlast')")
    assert gpu.run([], 60, "cache", True) == {"error": "exit code 1: last"}


def test_what_exceeds_its_limit_is_killed_with_what_it_started(gpu, tmp_path, monkeypatch):
    # Would catch workers of the input that go on beside the next measurement.
    number = tmp_path / "number"
    monkeypatch.setattr(gpu, "SCRIPT", tmp_path / "script.py")
    gpu.SCRIPT.write_text(
        "import os, pathlib, time\n"
        "child = os.fork()\n"
        f"if child: pathlib.Path({str(number)!r}).write_text(f'{{child}} ')\n"
        "time.sleep(1000)"
    )

    def communicate(process, timeout):
        wait_until(lambda: number.exists() and number.read_text().endswith(" "), process)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(subprocess.TimeoutExpired):
        gpu.run([], 1, "cache", True)
    assert not gpu.RUNNING
    for _ in range(1000):  # until the system has ended it
        if not is_running(number.read_text().strip()):
            return
        time.sleep(0.01)
    raise AssertionError("it is still running")


def is_running(number):
    try:
        return Path("/proc", number, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("smallest", [False, True])
def test_every_call_of_the_table_is_accepted(gpu, lines, smallest):
    # Would catch a renamed function, field or case, or a size that the config refuses.
    for each in gpu.ROUNDS:
        for line in each.values():
            function, *arguments = line.call
            assert callable(getattr(lines, function))
            if function in ("time_step", "parity"):
                config = lines.program({"smallest": smallest}, *arguments)[1]
                assert (config.search.batch_size == 8) == smallest
            if function == "bench_input":
                lines.parsed({"smallest": smallest}, *arguments)


def test_a_function_that_raises_is_an_error(lines):
    # Would catch a traceback whose last line is lost among those of XLA.
    assert lines.run('["facts", 1, 2]')["error"].startswith("TypeError: ")


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, False), (1.05, True)])
def test_the_mean_gradient_is_exact(lines, monkeypatch, factor, wrong):
    # Would catch a wrong closed form: this sampler is unbiased if its factor is 1.
    def sample(c, cell, key, sampler):
        noise = 1 + 0.1 * jax.random.normal(key, c.shape)
        return factor * noise * c / c.sum(-1, keepdims=True)

    monkeypatch.setattr(lines, "sample_dirichlet", sample)
    values = lines.dirichlet("jax", {"smallest": False})
    assert ("error" in values) == wrong
    assert values["bias"] == pytest.approx(factor - 1, abs=5 * values["bias_sigma"])
    assert 0 < values["bias_sigma"] < 0.01
    assert values["differ"] == values["not_finite"] == 0


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict[str, jax.Array]


@pytest.mark.parametrize(("error", "wrong"), [(0.0, []), (0.01, ["kernels"]), (np.nan, None)])
def test_another_update_is_found(lines, monkeypatch, error, wrong):
    # Would catch a comparison of weights, which one step hardly changes, in place of the update;
    # or the noise of an array without a gradient taken for an error.
    def program(options, name, fields):
        noise = error if fields["compute.kernels"] == "gpu" else 0.0

        def update(state, raw, rows):
            assert rows.shape == (1, 4)  # one step of a dispatch
            changed = {"weight": state.params["weight"] - 1e-3 * (1 + noise)}
            changed["bias"] = state.params["bias"] + 1e-10 * (1 + 100 * noise)
            return State(state.step + 1, changed)

        def make_case(config, stage, mesh):
            state = State(jnp.zeros((), int), {"weight": jnp.ones(9), "bias": jnp.zeros(3)})
            arguments = (None, jnp.zeros((2, 4), int))
            return SimpleNamespace(state=state, arguments=arguments, program=update)

        return make_case, None, 1

    monkeypatch.setattr(lines, "program", program)
    if wrong is None:
        with pytest.raises(ValueError, match="params.*is not finite"):
            lines.parity("a", {}, {})
        return
    values = lines.parity("a", {}, {})
    assert values["devices"] == {"step": 0.0, "params": 0.0}
    assert values["kernels"]["params"] == pytest.approx(error, rel=0.1)
    assert [what for what in ("kernels", "devices") if what in values.get("error", "")] == wrong


def test_a_search_that_is_refused_has_its_reason(lines):
    # Would catch an exit code in place of the message that says what to do.
    assert "needs CIFAR-10" in lines.search({"npz": None, "cifar": None})["skipped"]
    found = lines.search({"npz": "missing.npz", "cifar": None, "smallest": True})
    assert "missing.npz" in found["error"]


def test_the_file_of_images_is_read_again(lines, monkeypatch, tmp_path):
    # Would catch arrays that `data.name=npz` does not know, or a file of another name.
    random = np.random.default_rng(0)
    arrays = {
        name: (random.integers(256, size=(n, 12, 12, 3), dtype=np.uint8), np.arange(n) % 10)
        for name, n in (("train", 40), ("test", 20))
    }

    loaded = SimpleNamespace(arrays=arrays.get)
    with monkeypatch.context() as patch:
        patch.setattr(lines.data, "load", lambda config: loaded)
        lines.write_npz("folder", tmp_path / "images")
    found = data.load(DataConfig(name="npz", dir=str(tmp_path / "images")))
    for split, expected in arrays.items():
        for a, b in zip(found.arrays(split), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_smallest_lines_on_a_cpu(tmp_path):
    # Would catch a line that fails only when it runs.
    random = np.random.default_rng(0)
    shapes = (("train", 12_800), ("test", 64))  # 1 % of them are two batches
    arrays = {
        f"x_{name}": random.integers(256, size=(n, 12, 12, 3), dtype=np.uint8) for name, n in shapes
    }
    arrays |= {f"y_{name}": np.arange(n) % 10 for name, n in shapes}
    np.savez(tmp_path / "images.npz", **arrays)
    names = ["dirichlet-jax", "d", "search"]
    flags = ["--smallest", f"--only={','.join(names)}", f"--npz={tmp_path / 'images.npz'}"]
    command = [sys.executable, str(SCRIPT), *flags, f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["line"] for line in found] == ["facts", *names]
    assert not [line for line in found if {"error", "skipped"} & line.keys()]
    assert found[2]["step_s"] > 0 and found[2]["compile_s"] > 0
    assert len(found[3]["images_per_s"]) == 2
