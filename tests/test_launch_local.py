"""Tests of launch/local.sh with a fake Python that records how it is started and stopped."""

import signal
import sys
import time
from pathlib import Path

import pytest
from launching import ENVIRONMENT, LAUNCH, error, launch
from small_run import started, wait_until

RECORDER = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path

if sys.argv[1] == "-c":  # local.sh chooses a free port
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
assert sys.argv[1:3] == ["-m", "drnas_jax.main"]
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[3:])
i = int(flags["process_id"])
folder = Path({folder!r})
number = len(list(folder.glob(f"start_{{i}}_*")))
(folder / f"start_{{i}}_{{number}}").write_text("\\n".join(sys.argv[3:]))


def stop(signum, frame):
    (folder / f"signal_{{i}}_{{number}}").write_text(str(signum))
    time.sleep(0.3 * i)
    sys.exit(128 + signum)


for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, stop)
(folder / f"ready_{{i}}_{{number}}").touch()
print(f"out {{i}}", flush=True)
print(f"err {{i}}", file=sys.stderr, end="" if i else "\\n", flush=True)  # no newline
codes = flags["codes"].split(",")[i].split("/")  # processes, then starts
code = codes[min(number, len(codes) - 1)]
if code == "hang":
    worker = subprocess.Popen(["sleep", "600"])
    (folder / f"worker_{{i}}_{{number}}").write_text(str(worker.pid))
    time.sleep(600)
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


@pytest.fixture
def recorder(tmp_path):
    """Creates a fake Python that records its arguments and exits with the codes of --codes."""
    python = tmp_path / "recorder"
    python.write_text(RECORDER.format(python=sys.executable, folder=str(tmp_path)))
    python.chmod(0o755)
    return python


def local(recorder, codes, *options):
    """Runs local.sh with the recorder; codes are for each process, and for each of its starts."""
    return launch("local", f"--python={recorder}", *options, "--", f"--codes={codes}")


def starts(recorder, i):
    """Returns the arguments of each start of process i."""
    return [path.read_text().splitlines() for path in sorted(recorder.parent.glob(f"start_{i}_*"))]


def ends(pid):
    """Waits up to a minute for a process that was killed, and returns whether it ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if (Path("/proc") / pid / "stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_all_processes_start_and_their_output_is_labelled(recorder):
    # Catches processes with different ports, and output that is lost at the end.
    done = local(recorder, "0,0,0", "--processes=3")
    assert done.returncode == 0
    assert done.stdout == "out 0\n"
    assert sorted(done.stderr.splitlines()) == [
        *("[1] err 1", "[1] out 1", "[2] err 2", "[2] out 2", "err 0")
    ]
    ports = set()
    for i in range(3):
        ((coordinator, *rest),) = starts(recorder, i)
        assert rest == ["--num_processes=3", f"--process_id={i}", "--codes=0,0,0"]
        host, port = coordinator.removeprefix("--coordinator=").split(":")
        assert host == "127.0.0.1" and 1023 < int(port) < 65536
        ports.add(port)
    assert len(ports) == 1


def test_output_goes_to_the_log_folder(recorder, tmp_path):
    # Catches a folder name with a space, and a last line without an end.
    done = local(recorder, "0,0", f"--log-dir={tmp_path / 'a b' / 'logs'}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out 0\n", "err 0\n")
    assert (tmp_path / "a b" / "logs" / "process_1.log").read_text() == "out 1\nerr 1"


@pytest.mark.parametrize("crash", ["1", "kill"])
def test_a_crash_ends_the_other_processes(recorder, tmp_path, crash):
    # Catches processes and input workers that hang after another one crashed.
    done = local(recorder, f"hang,{crash}")
    code = 137 if crash == "kill" else 1
    assert done.returncode == code
    assert sorted(done.stderr.splitlines()) == [
        *("[1] err 1", "[1] out 1", "err 0", f"local.sh: process 1 exited with code {code}")
    ]
    assert ends((tmp_path / "worker_0_0").read_text())
    assert len(starts(recorder, 0)) == 1


def test_a_crash_restarts_all_processes(recorder):
    # Catches a restart of only the crashed process, which could not join the others.
    done = local(recorder, "1/1/0,0", "--restarts=5", "--port=1234")
    assert done.returncode == 0
    assert "restart 2 of 5" in done.stderr
    for i in range(2):
        assert len(starts(recorder, i)) == 3
        assert {start[0] for start in starts(recorder, i)} == {"--coordinator=127.0.0.1:1234"}


def test_restarts_are_limited(recorder):
    # Catches an endless loop of crashes.
    assert local(recorder, "0,1", "--restarts=2").returncode == 1
    assert [len(starts(recorder, i)) for i in range(2)] == [3, 3]


@pytest.mark.parametrize(("codes", "code"), [("2,2", 2), ("hang,2", 2), ("143,143", 143)])
def test_mistakes_and_signals_are_not_restarted(recorder, codes, code):
    # Catches a user's mistake, or a stop by the user, that is repeated.
    assert local(recorder, codes, "--restarts=2").returncode == code
    assert len(starts(recorder, 0)) == 1


@pytest.mark.parametrize(
    ("signum", "passed"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_signals_are_passed_on_once(recorder, tmp_path, signum, passed):
    log = tmp_path / "log"
    options = (f"--python={recorder}", "--restarts=2", "--", "--codes=hang,hang")
    with started([LAUNCH / "local.sh", *options], log, env=ENVIRONMENT) as process:
        wait_until(lambda: len(list(tmp_path.glob("worker_*"))) == 2, process)
        process.send_signal(signum)
        assert process.wait(timeout=60) == 128 + passed
    for i in range(2):
        # A second Ctrl-C would end the program without a checkpoint.
        assert (tmp_path / f"signal_{i}_0").read_text() == str(int(passed))
        assert len(starts(recorder, i)) == 1
        assert ends((tmp_path / f"worker_{i}_0").read_text())


def test_a_missing_python_is_named():
    # Catches N processes that all fail to start.
    assert "no/python is not installed" in error(launch("local", "--python=no/python", "--", "--a"))
