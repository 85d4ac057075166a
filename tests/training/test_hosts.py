"""The processes of a run find each other and agree, or fail with one line."""

import fnmatch
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_run import ROOT
from test_main import DIGITS, refused

from drnas_jax import main as program
from drnas_jax.errors import UserError
from drnas_jax.training import devices, hosts


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # a batch script without srun
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1;tcp://n1:1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "n1:1234"}, True),
        ({"JAX_COORDINATOR_ADDRESS": ""}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod, maybe the only one
    ],
    ids=str,
)
def test_launchers_are_recognised(monkeypatch, environment, several):
    # Catches processes that each run alone, and a single one that waits for others.
    monkeypatch.setattr(hosts.glob, "glob", lambda pattern: [])
    assert hosts.launched(environment) == several


def test_open_mpi_5_is_refused():
    # Catches N equal runs in one workdir, since JAX cannot read the variables of version 5.
    with pytest.raises(UserError, match=r"--process_id=\$OMPI_COMM_WORLD_RANK"):
        hosts.launched({"OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("chips", "library", "vendors", "possible"),
    [
        (["/dev/accel0"], True, ["0x1ae0"], True),
        (["/dev/vfio/vfio", "/dev/vfio/0"], True, ["0x8086", "0x1ae0"], True),
        (["/dev/vfio/vfio"], True, ["0x1ae0"], False),  # the driver without a chip
        (["/dev/vfio/0"], True, ["0x8086", "0x10de"], False),  # a GPU that is passed through
        (["/dev/accel0"], False, ["0x1ae0"], False),
        ([], True, ["0x1ae0"], False),  # a network card in Google's cloud
    ],
)
def test_tpu_hosts_are_recognised(monkeypatch, tmp_path, chips, library, vendors, possible):
    # Catches a machine without TPUs that tries to find a pod.
    files = [tmp_path / f"vendor{i}" for i in range(len(vendors))]
    for file, vendor in zip(files, vendors, strict=True):
        file.write_text(f"{vendor}\n")

    def found(pattern):
        return files if pattern.startswith("/sys/") else fnmatch.filter(chips, pattern)

    monkeypatch.setattr(hosts.glob, "glob", found)
    find = {"libtpu": object() if library else None}
    monkeypatch.setattr(hosts.importlib.util, "find_spec", find.get)
    assert hosts.may_be_tpu_host() == possible


@pytest.fixture
def joined(monkeypatch):
    """Replaces jax.distributed.initialize by a list of the arguments of its calls."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    return calls


def test_a_single_process_does_not_join(monkeypatch, joined):
    # Catches a run on one machine that waits for a coordinator.
    monkeypatch.setattr(hosts, "launched", lambda environment: False)
    monkeypatch.setattr(hosts, "may_be_tpu_host", lambda: False)
    hosts.initialize(None, None, None)
    assert joined == []
    hosts.initialize(None, None, None, detect=True)
    assert joined == [(None, None, None)]


# JAX itself looks for other hosts, and finds none; a second time it must not give in.
NO_TPU_HOST = """
from drnas_jax.training import hosts
hosts.launched, hosts.may_be_tpu_host = (lambda environment: False), (lambda: True)
hosts.initialize(None, None, None)
try:
    hosts.initialize(None, None, None, detect=True)
except ConnectionError:
    print("refused")
"""


def test_a_machine_that_is_no_tpu_host_after_all_runs_alone():
    # Catches a guess of ours that keeps a machine with libtpu from running anything.
    launchers = ("SLURM", "OMPI", "JAX_COORDINATOR", "KUBERNETES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    done = subprocess.run(
        [sys.executable, "-c", NO_TPU_HOST], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "refused\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert "runs alone" in line and "--distributed" in line


def test_several_processes_join(monkeypatch, joined):
    # Catches flags that do not reach JAX.
    monkeypatch.setattr(hosts, "launched", lambda environment: environment is os.environ)
    hosts.initialize(None, None, None)
    hosts.initialize("n1:1234", 2, 1)
    assert joined == [(None, None, None), ("n1:1234", 2, 1)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator=n1:1234"], ["--num_processes", "together"]),
        (["--num_processes=2"], ["together"]),
        (["--process_id=0"], ["together"]),
        (["--coordinator=n1:1234", "--num_processes=2"], ["--process_id", "together"]),
        (["--coordinator=n1:1234", "--process_id=0", "--distributed"], ["together"]),
        (
            ["--coordinator=n1:1234", "--num_processes=2", "--process_id=2"],
            ["--process_id is 2", "0 to 1"],
        ),
        (["--coordinator=n1:1234", "--num_processes=0", "--process_id=0"], ["num_processes"]),
        (["--coordinator=n1:1234", "--num_processes=2", "--process_id=-1"], ["process_id"]),
        (["--coordinator=n1", "--num_processes=2", "--process_id=0"], ["n1:", "HOST:PORT"]),
        (["--coordinator=n1:http", "--num_processes=2", "--process_id=0"], ["n1:http"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_inconsistent_flags_are_refused(monkeypatch, capsys, tmp_path, joined, flags, words):
    # Catches a process that waits five minutes because of a typing error.
    monkeypatch.chdir(ROOT)
    line = refused(capsys, DIGITS, f"--workdir={tmp_path / 'run'}", *flags)
    for word in words:
        assert word in line
    assert joined == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_a_failure_to_join_is_one_line(monkeypatch, capsys, tmp_path, error):
    # Catches the long reports of JAX's runtime.
    def fail(*_, **__):
        raise error("DEADLINE_EXCEEDED:\n\nnobody came\n" + 1000 * "details ")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    argv = [DIGITS, f"--workdir={tmp_path / 'run'}", "--distributed"]
    assert program.main(["main", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 and len(err) < 600
    assert "error: the processes of this run did not find each other (DEADLINE_EXCEEDED: n" in err
    assert "--coordinator" in err
    assert not (tmp_path / "run").exists()


def python(script, *arguments):
    """Starts a Python script with two simulated devices."""
    flags = "--xla_force_host_platform_device_count=2"
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


IMPATIENT = """
import sys
from drnas_jax import main
from drnas_jax.training import hosts
hosts._TIMEOUT = 3
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_process_is_one_line(tmp_path, number):
    # Catches JAX's own timeout, which aborts with a stack trace.
    argv = [DIGITS, f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{free_port()}"]
    process = python(IMPATIENT, *argv, "--num_processes=2", f"--process_id={number}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "did not find each other" in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


SIGNALLED = """
import os, signal, sys, time
from drnas_jax.training import hosts
hosts.initialize(sys.argv[1], 1, 0)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
"""


def test_a_signal_right_after_joining_is_not_lost():
    # Catches JAX's preemption service, which would swallow SIGTERM.
    process = python(SIGNALLED, f"127.0.0.1:{free_port()}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM, err


TWO = """
import sys
import traceback
import numpy as np
from drnas_jax.training import hosts
from drnas_jax.errors import UserError
from drnas_jax.training.devices import make_mesh

number = int(sys.argv[2])
hosts.initialize(sys.argv[1], 2, number)
assert hosts.is_primary() == (number == 0)
assert hosts.from_primary(lambda: {"n": [number], "text": "é"}) == {"n": [0], "text": "é"}


for kind in (UserError, OSError):

    def fail():
        raise kind(f"from process {number}")

    try:
        hosts.from_primary(fail)
        raise AssertionError
    except kind as error:
        assert str(error) == "from process 0"


def bug():
    raise KeyError("a bug")


def interrupted():
    raise KeyboardInterrupt


# A bug, a value that is not JSON, and what a second Ctrl-C raises.
for kind, failing in ((KeyError, bug), (TypeError, object), (KeyboardInterrupt, interrupted)):
    try:
        hosts.from_primary(failing)
        raise AssertionError
    except kind as error:
        assert number == 0
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert failing is not bug or names[-1] == "bug"
    except hosts.PrimaryFailedError as error:
        assert number == 1
        assert f"process 0 failed ({kind.__name__}" in str(error)
assert hosts.total(number + 1) == 3
assert hosts.total(np.array([number, 5])).tolist() == [1, 10]
agreement = hosts.Agreement(make_mesh())
# Only process 1 submits a number above 0; both receive it one call later.
assert [agreement.before(number * n) for n in (15, 0, 0)] == [0, 15, 0]
assert agreement.now(number * 2) == 2
agreement.before(number * 7)
assert agreement.now(0) == 7
assert hosts.gather({"n": "é" * number}) == [{"n": ""}, {"n": "é"}]

# Checkpoints of which process 1 reads something else than process 0.
import jax, jax.numpy as jnp
from drnas_jax.training import checkpoints as lib
from drnas_jax.training.devices import replicate
from drnas_jax.training.progress import Progress

mesh, like = make_mesh(), {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
progress = Progress(1, 1.0, 4, "0.10", 1, 1, 1)
read_info, checksums = lib.Checkpoints._read_info, lib._checksums


def description_is_missing(self, step):
    if step == 2:
        raise self._damaged(step, "its description is missing")
    return read_info(self, step)


def sums_are_others(tree):
    return {"a": 0} if np.asarray(tree["a"])[0] == 2 else checksums(tree)


with lib.Checkpoints(sys.argv[3]) as checkpoints:

    def save(step):
        checkpoints.save(step, replicate({"a": np.full(3, step, np.float32)}, mesh), progress, {})

    def restored(shapes=lambda phase: like):
        lines = []
        info, state = checkpoints.restore(shapes, mesh, lines.append)
        assert np.asarray(state["a"]).tolist() == [info.step] * 3
        assert state["a"].sharding.device_set == set(mesh.devices.flat)
        return info.step, lines

    save(1)
    for owner, name, broken, reason in (
        (lib.Checkpoints, "_read_info", description_is_missing, "its description is missing"),
        (lib, "_checksums", sums_are_others, "a was changed after it was written"),
    ):
        save(2)
        assert restored() == (2, [])
        good = getattr(owner, name)
        if number:
            setattr(owner, name, broken)
        try:
            checkpoints.load(checkpoints.latest(), like, mesh)  # an evaluation never falls back
            raise AssertionError
        except UserError as error:
            assert "by process 1: it is damaged" in str(error), error
        step, (line,) = restored()
        assert step == 1 and reason in line, line
        assert line.endswith("by process 1: set aside as 2.damaged; checkpoint 1 is used"), line
        setattr(owner, name, good)

    def refuse(phase):
        if number:
            raise UserError("another genotype")
        return like

    try:
        restored(refuse)
        raise AssertionError
    except UserError as error:
        assert str(error) == "another genotype"
    save(3)
    assert restored() == (3, [])
"""


def test_two_processes_agree(tmp_path):
    # Catches answers that differ between processes, which would make them hang later, also about
    # which checkpoint to resume from.
    address = f"127.0.0.1:{free_port()}"
    processes = [python(TWO, address, number, tmp_path) for number in (0, 1)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends


def test_one_process_needs_no_communication():
    # Catches values that are sent through JSON without need, and signals that come a step late.
    assert hosts.is_primary()
    value = object()
    assert hosts.from_primary(lambda: value) is value  # not a copy
    with pytest.raises(UserError, match="mine"):
        hosts.from_primary(lambda: (_ for _ in ()).throw(UserError("mine")))
    assert hosts.total(3) == 3
    assert hosts.total(np.array([1, 2])).tolist() == [1, 2]
    agreement = hosts.Agreement(devices.make_mesh())
    assert [agreement.before(n) for n in (0, 15, 0)] == [0, 15, 0]  # no delay
    assert agreement.now(2) == 2
