"""Tests of launch/tpu_vm.sh with a fake gcloud."""

import sys

import pytest
from launching import ENVIRONMENT, LAUNCH, PROGRAM, REQUIRED
from small_run import started, wait_until

GCLOUD = """#!{python}
import signal, sys, time
from pathlib import Path

folder = Path({folder!r})
arguments = sys.argv[1:]
verb = arguments[3]
command = ([a[10:] for a in arguments if a.startswith("--command=")] or [""])[0]
if "-m drnas_jax.main" in command:
    verb = "run"
elif "pkill -TERM" in command:
    verb = "stop"
    (folder / "stop").touch()
with open(folder / "calls", "a") as calls:
    print(verb, file=calls)


def next_of(name):
    first, _, rest = (folder / name).read_text().partition(" ")
    (folder / name).write_text(rest)
    return first


if verb == "delete" and (folder / "fail").exists():
    (folder / "fail").unlink()
    sys.exit(1)
elif verb == "describe":
    print(next_of("states"))
elif verb == "run":
    code = next_of("codes")
    while code == "stop" and not (folder / "stop").exists():
        time.sleep(0.05)
    sys.exit(143 if code == "stop" else int(code))
"""


@pytest.fixture
def pod(tools, tmp_path):
    """Returns a function that starts tpu_vm.sh with a fake gcloud.

    The function takes the states of the TPU that gcloud reports one after another, and the exit
    codes of the program. `pod.calls()` returns the subcommands that gcloud was called with.
    """
    path = tools("gcloud", GCLOUD.format(python=sys.executable, folder=str(tmp_path)))

    def start(states, codes, *options):
        (tmp_path / "states").write_text(states)
        (tmp_path / "codes").write_text(codes)
        (tmp_path / "calls").touch()
        return started(
            [LAUNCH / "tpu_vm.sh", *REQUIRED["tpu_vm"], "--poll=0", *options, "--", *PROGRAM],
            tmp_path / "log",
            env=ENVIRONMENT | {"PATH": path, "TMPDIR": str(tmp_path)},
        )

    start.calls = lambda: (tmp_path / "calls").read_text().split()
    return start


@pytest.mark.parametrize(
    ("states", "codes", "options", "code", "calls"),
    [
        ("READY", "0", (), 0, "describe scp ssh run"),
        ("READY", "2", (), 2, "describe scp ssh run"),
        ("NONE CREATING READY", "0", (), 0, "describe create describe describe scp ssh run"),
        (
            "NONE ACTIVE",
            "0",
            ("--queued", "--delete"),
            0,
            "describe create describe scp ssh run delete",
        ),
        # The program crashes, and the TPU still exists.
        ("READY READY", "1 0", (), 0, "describe scp ssh run describe scp ssh run"),
        ("READY", "1", ("--restarts=0",), 1, "describe scp ssh run"),
        # The TPU is preempted: first the program ends, then the TPU changes its state.
        (
            *("READY PREEMPTED PREEMPTED NONE READY", "143 0", ("--spot",), 0),
            "describe scp ssh run describe describe delete describe create describe scp ssh run",
        ),
        (
            *("READY SUSPENDED NONE ACTIVE", "255 0", ("--queued",), 0),
            "describe scp ssh run describe delete describe create describe scp ssh run",
        ),
        # The user stops the program, and the TPU is fine.
        ("READY READY", "143", ("--delete",), 143, "describe scp ssh run describe delete"),
        ("STOPPED", "", (), 2, "describe"),
    ],
)
def test_the_tpu_is_created_used_and_replaced(pod, states, codes, options, code, calls):
    # Catches a TPU that is not created again after a preemption, or deleted without being asked.
    with pod(states, codes, *options) as process:
        assert process.wait(timeout=60) == code
    assert pod.calls() == calls.split()


def test_a_failed_deletion_is_tried_again(pod, tmp_path):
    # Catches a script that gives up while a preempted TPU is still going away.
    (tmp_path / "fail").touch()
    with pod("PREEMPTED PREEMPTED NONE READY", "0") as process:
        assert process.wait(timeout=60) == 0
    calls = "describe delete describe delete describe create describe scp ssh run"
    assert pod.calls() == calls.split()


def test_a_checkout_that_cannot_be_packed_ends_the_script(pod, tmp_path):
    # Catches an old archive being copied, and a TPU that is left running.
    (tmp_path / "drnas_jax-pod.tgz").mkdir()
    with pod("READY", "", "--delete") as process:
        assert process.wait(timeout=60) == 2
    assert pod.calls() == ["describe", "delete"]


def test_a_signal_stops_the_program_on_the_tpu(pod, tmp_path):
    # Catches a program that keeps the TPU busy after the script has ended.
    with pod("READY", "stop") as process:
        wait_until(lambda: "run" in pod.calls(), process)
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert "the program writes a checkpoint" in (tmp_path / "log").read_text()
    assert pod.calls() == ["describe", "scp", "ssh", "run", "stop"]
