"""Signals: the run ends at the next step with a checkpoint, and the exit code says by which."""

import os
import signal
import subprocess
import threading
import time

import pytest
from test_end_to_end import ROOT, command, one_device

from drnas_jax import main as program
from drnas_jax.interrupt import Interrupt, Interrupted
from drnas_jax.metrics import read_history

DIGITS = "--config=configs/digits.py:smoke"


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted(signum):
    before = signal.getsignal(signum)
    with Interrupt() as interrupt:
        assert interrupt.signum is None
        send(signum)
        assert interrupt.signum == signum
        assert signal.getsignal(signum) != before
    assert signal.getsignal(signum) == before


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_does_not():
    with Interrupt() as interrupt:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupt.signum == signal.SIGTERM


def test_outside_the_main_thread_nothing_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM; the same command goes on from the"),
        (Interrupted(signal.SIGINT), 130, "stopped by SIGINT; the same command goes on from the"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from the last checkpoint"),
    ],
)
def test_exit_codes(monkeypatch, capsys, tmp_path, stop, code, message):
    def phase(*_):
        raise stop

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(program.PHASES, "search", phase)
    assert program.main(["main", DIGITS, f"--workdir={tmp_path}"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


def stopped_once(path, workdir, signum):
    """Runs the command, sends it a signal when a path is there; its exit code and last line."""
    process = subprocess.Popen(
        command(workdir), cwd=ROOT, env=one_device(), stderr=subprocess.PIPE, text=True
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    deadline = time.monotonic() + 300
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signum)
    process.wait(timeout=300)
    reader.join()
    process.stderr.close()
    return process.returncode, lines[-1]


def test_a_real_run_stopped(tmp_path):
    search = tmp_path / "search"
    code, line = stopped_once(search / "history.jsonl", tmp_path, signal.SIGTERM)
    assert code == 143
    assert line.startswith("stopped by SIGTERM")
    epochs = len(read_history(search / "history.jsonl"))
    assert 1 <= epochs < 3
    newest = max(int(path.name) for path in (search / "checkpoints").iterdir())
    assert epochs * 11 <= newest <= (epochs + 1) * 11
    assert not (search / "genotype.json").exists()
