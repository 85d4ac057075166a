"""A campaign of faults against real commands: `python tests/faults.py [COUNT [SEED]]`.

Each fault disturbs a small run of digits while it runs, or damages its files before it is resumed.
The run must then resume with the results of an undisturbed run, bit for bit, or stop with one clear
line and lose nothing. The command prints a table of faults and outcomes.
"""

import collections
import contextlib
import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import samplers
import small_run

ROOT = Path(__file__).parents[1]
FIELDS = small_run.FIELDS | {"checkpoint_steps": 4}
STREAMED = ("--config.data.memory_limit_mb=0", "--config.data.workers=2")
DROP_BOUNDING, DAC_OVERRIDE = 24, 1  # Linux: prctl's option, and root's right to write anywhere
PHASES = ("search", "retrain")


class Campaign:
    """Disturbs commands in their own workdirs, one after another.

    Args:
      root: Empty folder for the workdirs.
      seed: Seed of the choice of faults and of their times.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.draw = root, random.Random(seed)
        self.outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        for name in ("first", "whole"):  # the first run compiles, the later ones use its cache
            began = time.monotonic()
            code, text = self.run(root / name)
            assert code == 0, text
            self.took = time.monotonic() - began
        self.expected = _results(root / "whole")

    def start(self, workdir: Path, limit: int | None = None, *more: str) -> subprocess.Popen[str]:
        """Starts the command.

        Args:
          workdir: Workdir of the run.
          limit: Largest file size in bytes, to simulate a full disk. None means no limit.
          more: Further flags of the command.
        """
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        flags = [
            "--config=configs/digits.py",
            f"--workdir={workdir}",
            *fields,
            *samplers.FLAGS,
            *more,
        ]

        def prepare() -> None:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(DROP_BOUNDING, DAC_OVERRIDE, 0, 0, 0)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        environment = small_run.environment()
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.root / "cache")
        if limit is not None:  # JAX prints warnings if it cannot write its cache
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return subprocess.Popen(
            [sys.executable, "-m", "drnas_jax.main", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=prepare,
        )

    def run(self, workdir: Path, limit: int | None = None, *more: str) -> tuple[int, str]:
        """Runs the command to its end; returns its exit code and what it printed."""
        process = self.start(workdir, limit, *more)
        text, _ = process.communicate(timeout=900)
        return process.returncode, text

    def apply(self, count: int) -> None:
        """Applies `count` faults, each kind at least once, and checks every workdir at its end."""
        names = list(FAULTS)[:count]
        names += self.draw.choices(list(FAULTS), k=count - len(names))
        workdir = self.root / "0"
        for number, name in enumerate(names):
            outcome = FAULTS[name](self, workdir)
            self.outcomes[name][outcome] += 1
            print(f"{name}: {outcome}", flush=True)
            if (workdir / "report.html").exists():
                self.finish(workdir, name)
                workdir = self.root / str(number + 1)
        self.finish(workdir, "the last fault")

    def finish(self, workdir: Path, name: str) -> None:
        """Runs a disturbed workdir to its end, and checks that nothing is lost or different."""
        code, text = self.run(workdir)
        assert code == 0, f"after {name}: {text}"
        assert _results(workdir) == self.expected, f"after {name}, {workdir} differs"
        shutil.rmtree(workdir)

    def moment(self) -> float:
        """Draws the time until a fault, in seconds."""
        return self.draw.uniform(0, 1.1 * self.took)

    def checkpoint(self, workdir: Path) -> Path:
        """Runs a workdir until a phase has two checkpoints, and returns the newer one."""
        while True:
            for phase in reversed(PHASES):
                folder = workdir / phase / "checkpoints"
                steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
                if len(steps) > 1:
                    return folder / str(max(steps))
            with _running(self, workdir):
                pass


def _results(workdir: Path) -> dict[str, Any]:
    """Reads all results of a run except times."""
    results: dict[str, Any] = {}
    for phase in PHASES:
        lines = (workdir / phase / "history.jsonl").read_text().splitlines()
        results[phase] = [json.loads(line) for line in lines]
        for line in results[phase]:
            del line["images_per_second"]
    results["result"] = json.loads((workdir / "result.json").read_text())
    for name in ("search_seconds", "retrain_seconds"):
        del results["result"][name]
    return results


def _one_line(text: str, *words: str) -> None:
    """Checks that the last line says what is wrong, with these words, and shows no traceback."""
    assert "Traceback" not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ") or last.startswith("stopped"), text
    for word in words:
        assert word in last, text


@contextlib.contextmanager
def _running(campaign: Campaign, workdir: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a command and lets it work for a random time; kills it after the block."""
    process = campaign.start(workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=campaign.moment())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _signalled(signum: int, times: int) -> Callable[[Campaign, Path], str]:
    def fault(campaign: Campaign, workdir: Path) -> str:
        with _running(campaign, workdir) as process:
            for i in range(times):
                time.sleep(0.2 * (i > 0))
                process.send_signal(signum)
            text, _ = process.communicate(timeout=300)
            code = process.returncode
        if code == 0:
            return "the run had ended before"
        if signum == signal.SIGKILL:
            assert code == -signum, text
            return "killed; resumed"
        # While Python itself starts, no handler can print a line.
        early = code == -signum or "KeyboardInterrupt" in text
        assert early or code == 128 + signum, text
        if not early:
            _one_line(text)
        return "ended before the run began; resumed" if early else f"exit code {code}; resumed"

    return fault


def _full(campaign: Campaign, workdir: Path) -> str:
    code, text = campaign.run(workdir, int(2 ** campaign.draw.uniform(8, 18)))
    if code == 0:
        return "no file exceeded the limit"
    assert code in (1, 2), text
    _one_line(text)
    return f"exit code {code} and one line; resumed"


def _nothing_writable(campaign: Campaign, workdir: Path) -> str:
    code, text = campaign.run(workdir, 0)
    assert code in (1, 2), text
    _one_line(text)
    return f"exit code {code} and one line; resumed"


def _read_only(campaign: Campaign, workdir: Path) -> str:
    workdir.mkdir(exist_ok=True)
    modes = {path: path.stat().st_mode for path in (workdir, *workdir.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    code, text = campaign.run(workdir)
    for path, mode in modes.items():
        path.chmod(mode)
    assert code in (1, 2), text
    _one_line(text, str(workdir))
    return f"exit code {code} and one line; resumed"


def _damaged(how: str) -> Callable[[Campaign, Path], str]:
    def fault(campaign: Campaign, workdir: Path) -> str:
        newest = campaign.checkpoint(workdir)
        if how == "deleted":
            shutil.rmtree(newest)
        else:
            files = sorted(path for path in newest.rglob("*") if path.stat().st_size)
            file = campaign.draw.choice([path for path in files if path.is_file()])
            content = bytearray(file.read_bytes())
            position = campaign.draw.randrange(len(content))
            if how == "truncated":
                del content[position:]
            else:
                content[position] ^= 1 << campaign.draw.randrange(8)
            file.write_bytes(content)
        code, text = campaign.run(workdir)
        assert code == 0, text
        if "set aside as" in text:
            return "set aside with one line; resumed from the previous one"
        return "resumed from the previous one" if how == "deleted" else "had no effect; resumed"

    return fault


def _cut_history(campaign: Campaign, workdir: Path) -> str:
    campaign.checkpoint(workdir)
    # A search that has ended no longer writes to its history.
    phase = "retrain" if (workdir / "search" / "genotype.json").exists() else "search"
    file = workdir / phase / "history.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as opened:  # what a process leaves that is killed while writing
        opened.write('{"stage": 1, "epo')
    return "the line was written again"


def _clock_set_back(campaign: Campaign, workdir: Path) -> str:
    campaign.checkpoint(workdir)
    future = time.time() + 1e6
    for path in workdir.rglob("*"):
        os.utime(path, (future, future))
    return "had no effect; resumed"


def _twice(campaign: Campaign, workdir: Path) -> str:
    with _running(campaign, workdir) as process:
        lock = workdir / "search" / ".lock"
        while process.poll() is None and not lock.exists():
            time.sleep(0.05)
        code, text = campaign.run(workdir)
        process.communicate(timeout=300)
        assert process.returncode == 0, "the first run must not be disturbed"
    if code == 0:
        return "the first run had ended before"
    assert code == 2, text
    _one_line(text, str(workdir))
    return "exit code 2 and one line; the first run was not disturbed"


def _diverges(campaign: Campaign, workdir: Path) -> str:
    other = campaign.root / "diverges"
    code, text = campaign.run(other, None, "--config.search.lr=1e6", "--config.search.clip=0")
    assert code == 2, text
    _one_line(text, "loss", "step", "checkpoint")
    shutil.rmtree(other)
    return "exit code 2 and one line"


def _worker_killed(campaign: Campaign, workdir: Path) -> str:
    whole, disturbed = campaign.root / "streamed", campaign.root / "disturbed"
    if not whole.exists():
        code, text = campaign.run(whole, None, *STREAMED)
        assert code == 0, text
    process = campaign.start(disturbed, None, *STREAMED)
    while process.poll() is None and not _workers(process.pid):
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=campaign.moment())
    for pid in _workers(process.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=900)
    if process.returncode:
        assert process.returncode == 1, text
        _one_line(text, "worker")
    code, text = campaign.run(disturbed, None, *STREAMED)
    assert code == 0, text
    assert _results(disturbed) == _results(whole)
    shutil.rmtree(disturbed)
    return "exit code 1 and one line; resumed" if process.returncode else "had no more to do"


def _workers(pid: int) -> list[int]:
    """Returns the process ids of a run's input workers, without those that are just starting.

    The main process still sends a starting worker its task, and would wait for ever if it died.
    """
    listed = subprocess.run(
        ["ps", "-o", "pid=,etimes=,args=", "--ppid", str(pid)], stdout=subprocess.PIPE, text=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, age, command in rows if "spawn_main" in command and int(age) >= 2]


FAULTS: dict[str, Callable[[Campaign, Path], str]] = {
    "SIGKILL": _signalled(signal.SIGKILL, 1),
    "disk full": _full,
    "SIGTERM": _signalled(signal.SIGTERM, 1),
    "checkpoint deleted": _damaged("deleted"),
    "Ctrl-C": _signalled(signal.SIGINT, 1),
    "checkpoint truncated": _damaged("truncated"),
    "Ctrl-C twice": _signalled(signal.SIGINT, 2),
    "bit flipped in a checkpoint": _damaged("flipped"),
    "nothing can be written": _nothing_writable,
    "history cut short": _cut_history,
    "workdir read-only": _read_only,
    "clock set back": _clock_set_back,
    "two runs in one workdir": _twice,
    "loss not finite": _diverges,
    "input worker killed": _worker_killed,
}


def campaign(root: Path, count: int, seed: int) -> dict[str, collections.Counter[str]]:
    """Applies `count` faults in an empty folder; counts the outcomes of each fault."""
    running = Campaign(root, seed)
    running.apply(count)
    return running.outcomes


def table(outcomes: dict[str, collections.Counter[str]]) -> str:
    """Formats the outcomes as a table in Markdown."""
    lines = ["| fault | outcome | times |", "|---|---|---|"]
    for name, counter in outcomes.items():
        lines += [f"| {name} | {outcome} | {n} |" for outcome, n in counter.most_common()]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    count, seed = [*map(int, sys.argv[1:]), *(100, time.time_ns())[len(sys.argv) - 1 :]]
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        print(table(campaign(Path(folder), count, seed)))


if __name__ == "__main__":
    main()
