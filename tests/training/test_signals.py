"""A signal stops a run after a checkpoint, and the exit code tells which signal it was."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from small_run import ROOT, command, environment, started, wait_until

from drnas_jax import main as program
from drnas_jax.files import read_history
from drnas_jax.genotype import Genotype, save
from drnas_jax.training.signals import Interrupt, Interrupted, exit_at_once

DIGITS = "--config=configs/digits.py:smoke"


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_recorded_and_raised_at_the_end(signum):
    # Catches a signal that is lost if it comes after the last poll.
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stop, Interrupt() as interrupt:
        assert interrupt.signum is None
        send(signum)
        assert interrupt.signum == signum
        assert signal.getsignal(signum) != before
    assert stop.value.signum == signum
    assert signal.getsignal(signum) == before


def test_a_signal_that_nohup_ignores_stays_ignored():
    # Catches a run under nohup that ends when its terminal closes.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            send(signal.SIGHUP)
            assert interrupt.signum is None
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_suspended_interrupt_lets_signals_act_as_outside():
    # Catches a Ctrl-C during a long compilation that has no effect until it ends.
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupt.suspended():
            assert signal.getsignal(signal.SIGINT) == before
            send(signal.SIGINT)
        assert interrupt.signum is None and signal.getsignal(signal.SIGINT) == handler
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_before_the_suspension_is_raised():
    # Catches a compilation that starts although the run was already asked to stop.
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), Interrupt() as interrupt:
        send(signal.SIGTERM)
        with interrupt.suspended():
            raise AssertionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_stops_at_once():
    # Catches a user who cannot stop a run that hangs.
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_still_waits_for_the_checkpoint():
    # Catches a scheduler that repeats SIGTERM and so loses the checkpoint.
    with pytest.raises(Interrupted), Interrupt() as interrupt:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupt.signum == signal.SIGTERM


def test_other_threads_leave_the_handlers_alone():
    # Catches a ValueError of `signal.signal` if the library runs in a thread.
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
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (Interrupted(signal.SIGINT), 130, "stopped by SIGINT"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_the_exit_code_and_one_line_tell_the_signal(
    monkeypatch, capsys, tmp_path, stop, code, message
):
    # Catches a launcher that takes a stop for a crash or for success.
    def phase(*_):
        raise stop

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(program.PHASES, "search", phase)
    assert program.main(["main", DIGITS, f"--workdir={tmp_path}"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_outside_interrupt_a_signal_ends_the_process(signum):
    # Catches a KeyboardInterrupt in a callback of the garbage collector, which is only printed.
    script = """if True:
        import gc, os, sys
        sys.path.insert(0, "drnas_jax/training")  # importing the package would import JAX
        from signals import Interrupt, Interrupted, exit_at_once
        signum = int(sys.argv[1])
        with exit_at_once():
            try:
                with Interrupt() as interrupt:
                    os.kill(os.getpid(), signum)
                    assert interrupt.signum == signum
            except Interrupted:
                pass
            gc.callbacks.append(lambda *_: os.kill(os.getpid(), signum))
            gc.collect()
        print("still here")
    """
    command = [sys.executable, "-c", script, str(int(signum))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum, done.stderr
    assert done.stdout == ""
    name = signal.Signals(signum).name
    assert done.stderr.startswith(f"stopped by {name}") and done.stderr.count("\n") == 1


def test_the_handlers_are_restored():
    # Catches a program around the library that can no longer handle its signals.
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with exit_at_once():
        pass
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_real_run_stops_after_a_checkpoint(tmp_path):
    # Catches work that is lost, and a result that is written for half a run.
    nodes = tuple(tuple(("skip_connect", i) for i in range(node)) for node in (1, 2, 3))
    save(tmp_path / "cell.json", Genotype("nasbench201", (("cell", nodes),)), {})
    workdir, log = tmp_path / "run", tmp_path / "log"
    checkpoints = workdir / "retrain/checkpoints"
    fields = (f"--config.genotype={tmp_path / 'cell.json'}", "--config.checkpoint_steps=1")
    retrain = command(workdir, "--phases=retrain", *fields)
    with started(retrain, log, cwd=ROOT, env=environment()) as process:
        # With the first checkpoint on the disk, the next steps are running.
        wait_until(lambda: list(checkpoints.glob("[0-9]*")), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    assert log.read_text().splitlines()[-1].startswith("stopped by SIGINT")
    done = max(int(path.name) for path in checkpoints.iterdir())
    assert len(read_history(workdir / "retrain/history.jsonl")) == done // 22
    assert not (workdir / "result.json").exists()
