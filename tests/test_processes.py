"""Several processes run one search: the same result as with one, even if they are killed."""

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import samplers
from resuming import assert_same_bits
from small_run import ROOT

from drnas_jax.files import read_history

# One step per epoch, so that the history has a line for every step; two stages of ten.
STEPS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.train_fraction": 0.05,
    "search.alpha_fraction": 0.05,
    "search.split_by_class": True,
    "search.epochs": "(10,10)",
    "search.warmup_epochs": "(0,2)",
    "search.sync_batchnorm": True,
}
# Streamed, with a checkpoint after every second step.
KILLED = {
    "search.channels": 4,
    "search.batch_size": 128,
    "search.epochs": "(2,1)",
    "search.warmup_epochs": "(1,0)",
    "data.memory_limit_mb": 0,
    "data.workers": 1,
    "checkpoint_steps": 2,
}


def command(workdir, processes, devices, fields):
    """Returns the command of a search, by launch/local.sh if there are several processes."""
    program = [sys.executable, "-m", "drnas_jax.main"]
    if processes > 1:
        options = (f"--processes={processes}", f"--devices={devices}", f"--python={sys.executable}")
        program = ["launch/local.sh", *options, "--"]
    return [
        *program,
        "--config=configs/digits.py:smoke",
        f"--workdir={workdir}",
        "--phases=search",
        *samplers.FLAGS,
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def environment(devices):
    count = "--xla_force_host_platform_device_count"
    others = re.sub(rf"{count}=\d+", "", os.environ["XLA_FLAGS"])
    # Process 1 has no compilation cache on CPUs: without these passes it compiles in half the time.
    flags = f"{others} --xla_llvm_disable_expensive_passes=true {count}={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def run(workdir, processes, devices, fields):
    done = subprocess.run(
        command(workdir, processes, devices, fields),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def found(workdir):
    return json.loads((workdir / "search/genotype.json").read_text())["cells"]


def test_two_processes(tmp_path):
    # Would catch a file, or a line on the terminal, that every process writes.
    one_program = {
        "space": "tests/uneven_space.py",  # it compiles quickly, and is a user's module
        "search.epochs": "(1,)",
        "search.warmup_epochs": "(1,)",
        "search.operations": "(3,)",
        "search.partial_channels": "(4,)",
    }
    printed = run(tmp_path, 2, 1, STEPS | one_program)
    assert len(read_history(tmp_path / "search/history.jsonl")) == 1
    assert found(tmp_path)
    assert len(list((tmp_path / "search").glob("events*"))) == 1  # only process 0 writes
    assert len(re.findall("epoch 1/1: step 1/1, .*, took", printed)) == 1  # and prints


@pytest.mark.slow
def test_devices_and_processes_make_no_difference(tmp_path):
    # Would catch a batch of which each process reads the same part.
    histories = {}
    for processes, devices in ((1, 1), (1, 8), (2, 4)):
        workdir = tmp_path / f"{processes}x{devices}"
        run(workdir, processes, devices, STEPS)
        histories[processes, devices] = read_history(workdir / "search/history.jsonl")
    first, *others = histories.values()
    assert len(first) == 20
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            for name in ("train_loss", "valid_loss"):
                # Sums in another order, over up to 20 steps.
                assert ours[name] == pytest.approx(theirs[name], rel=2e-4)
            assert ours["genotype"] == theirs["genotype"]
    assert found(tmp_path / "1x1") == found(tmp_path / "1x8") == found(tmp_path / "2x4")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    # Would catch processes that resume from different checkpoints, or wait for each other for ever.
    whole = tmp_path / "whole"
    began = time.monotonic()
    run(whole, 2, 2, KILLED)
    took = time.monotonic() - began
    seed = time.time_ns()
    print(f"undisturbed: {took:.0f} s; seed {seed}")
    draw = random.Random(seed)
    kinds = ["one", "in a write", "terminated", "all", "in a write"]
    workdirs = (tmp_path / f"pieces{i}" for i in itertools.count())
    pieces, hits = next(workdirs), 0
    while hits < 12:
        # The first step comes after about a third of an undisturbed run.
        code, hit = killed(pieces, kinds[hits % len(kinds)], draw, 0.4 * took)
        hits += hit
        if code == 0:  # it was done before
            assert_same(pieces, whole)
            pieces = next(workdirs)
    run(pieces, 2, 2, KILLED)
    assert_same(pieces, whole)


def assert_same(ours, theirs):
    assert found(ours) == found(theirs)
    assert_same_bits(ours / "search", theirs / "search")


def killed(workdir, kind, draw, longest):
    """Starts or resumes the processes, and ends one or all of them at a random moment.

    Args:
      workdir: Workdir of the run.
      kind: Kind of the kill, see `strike` and `wait_for_moment`.
      draw: Random generator, a random.Random.
      longest: Longest time until the kill, in seconds.

    Returns:
      The launcher's exit code, and whether the kill came at the moment that its kind says.
    """
    before = complete(workdir)
    with (workdir.parent / "log").open("w+") as log:
        launcher = subprocess.Popen(
            command(workdir, 2, 2, KILLED),
            cwd=ROOT,
            env=environment(2),
            stdout=log,
            stderr=log,
        )
        pids = []
        try:
            while len(pids := processes_of(launcher.pid)) < 2:
                assert launcher.poll() is None, (workdir.parent / "log").read_text()
            wait = wait_for_moment(workdir, kind, draw, longest, launcher)
            # Only a kill may end it before it is done.
            assert launcher.poll() in (None, 0), (workdir.parent / "log").read_text()
            sent = strike(kind, draw, launcher, pids)
            code = launcher.wait(timeout=300)
        finally:
            for pid in pids:  # with their input workers, which are in the same process group
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        log.seek(0)
        printed = log.read()
    hit = sent > 0 and not (workdir / "search/genotype.json").exists()
    if kind == "in a write":
        hit = hit and bool(unfinished(workdir))
    print(
        f"{kind} after {wait:.2f} s: hit {hit}, code {code}, checkpoints {before} -> "
        f"{complete(workdir)} {unfinished(workdir)}, after: {last_line(printed)}",
        flush=True,
    )
    assert code != 2 and "error: " not in printed, printed
    if before and ", stage " in printed:
        assert f"resumed after step {before[-1]}" in printed
    if kind == "terminated" and hit:
        assert code == 143, printed
    return code, hit


def wait_for_moment(workdir, kind, draw, longest, launcher):
    """Waits for a random time, or for a little after a write has begun; returns the seconds."""
    began = time.monotonic()

    def until(what):
        while launcher.poll() is None and not what():
            assert time.monotonic() < began + 300
            time.sleep(0.005)

    if kind == "in a write":
        for _ in range(draw.choice([1, 1, 2])):
            until(lambda: not unfinished(workdir))
            until(lambda: unfinished(workdir))
        began = time.monotonic()
        longest = 0.4
    wait = draw.uniform(0, longest)
    until(lambda: time.monotonic() > began + wait)
    return wait


def strike(kind, draw, launcher, pids):
    """Sends the signals; returns how many processes of the search were still there."""
    if kind == "terminated":
        launcher.terminate()
        return len(pids)
    if kind == "one":
        pids = [draw.choice(pids)]
    else:
        launcher.kill()
    sent = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            sent += 1
    return sent


def names(workdir):
    directory = workdir / "search/checkpoints"
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def complete(workdir):
    return sorted(int(name) for name in names(workdir) if name.isdigit())


def unfinished(workdir):
    return [name for name in names(workdir) if "tmp" in name]


def last_line(printed):
    """Returns the last line that process 0 has printed, without its tables."""
    lines = [line for line in printed.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    return lines[-1] if lines else "nothing"


def processes_of(launcher):
    """Returns the processes of drnas_jax.main under a launcher, without their input workers."""
    listing = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    return [
        int(pid)
        for pid, parent, args in rows
        if int(parent) == launcher and "-m drnas_jax.main" in args
    ]
