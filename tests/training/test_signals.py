"""Signals: the run ends at the next step with a checkpoint, and the exit code says by which."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from small_run import environment, started, wait_until
from test_end_to_end import ROOT, command

from drnas_jax import main as program
from drnas_jax.files import read_history
from drnas_jax.genotype import Genotype, save
from drnas_jax.training.signals import Interrupt, Interrupted, exit_at_once

DIGITS = "--config=configs/digits.py:smoke"


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted(signum):
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stop, Interrupt() as interrupt:
        assert interrupt.signum is None
        send(signum)
        assert interrupt.signum == signum
        assert signal.getsignal(signum) != before
    assert stop.value.signum == signum  # since nobody else has raised it
    assert signal.getsignal(signum) == before


def test_what_nohup_ignores_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            send(signal.SIGHUP)
            assert interrupt.signum is None
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_where_it_is_suspended_a_signal_does_what_it_did_before():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        noting = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupt.suspended():
            assert signal.getsignal(signal.SIGINT) == before
            send(signal.SIGINT)
        assert interrupt.signum is None and signal.getsignal(signal.SIGINT) == noting
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_noted_before_it_is_suspended():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), Interrupt() as interrupt:
        send(signal.SIGTERM)
        with interrupt.suspended():
            raise AssertionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_does_not():
    with pytest.raises(Interrupted), Interrupt() as interrupt:
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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_where_nothing_is_to_be_saved_a_signal_ends_the_process(signum):
    # Also in a callback of the garbage collector, where an exception would only be printed.
    script = """if True:
        import gc, os, sys
        sys.path.insert(0, "drnas_jax")  # the module alone: the package imports JAX
        from interrupt import Interrupt, Interrupted, exit_at_once
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
    assert done.stderr == f"stopped by {name}; the same command goes on from the last checkpoint\n"


def test_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with exit_at_once():
        pass
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_real_run(tmp_path):
    nodes = tuple(tuple(("skip_connect", i) for i in range(node)) for node in (1, 2, 3))
    save(tmp_path / "cell.json", Genotype("nasbench201", (("cell", nodes),)), {})
    workdir, log = tmp_path / "run", tmp_path / "log"
    checkpoints = workdir / "retrain/checkpoints"
    fields = (f"--config.genotype={tmp_path / 'cell.json'}", "--config.checkpoint_steps=1")
    retrain = command(workdir, "--phases=retrain", *fields)
    with started(retrain, log, cwd=ROOT, env=environment()) as process:
        # After so many steps there is a checkpoint, and the next steps are under way.
        wait_until(lambda: list(checkpoints.glob("[0-9]*")), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    message = "stopped by SIGINT; the same command goes on from the checkpoint"
    assert log.read_text().splitlines()[-1] == message
    done = max(int(path.name) for path in checkpoints.iterdir())
    assert len(read_history(workdir / "retrain/history.jsonl")) == done // 22
    assert not (workdir / "result.json").exists()
