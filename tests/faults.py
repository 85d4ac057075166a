"""A campaign of faults against real commands: `python tests/faults.py [COUNT [SEED]]`.

Each fault strikes a small run of digits: one is started or goes on, and something goes wrong while
it runs, or with its files before. It must end in a resume whose results are those of an undisturbed
run, bit for bit, or in one clear line with nothing lost. Prints a table of faults and outcomes.
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

import small_run

ROOT = Path(__file__).parents[1]
FIELDS = small_run.FIELDS | {"checkpoint_steps": 4}
STREAMED = ("--config.data.memory_limit_mb=0", "--config.data.workers=2")
DROP_BOUNDING, DAC_OVERRIDE = 24, 1  # Linux: prctl's option, and root's right to write anywhere
PHASES = ("search", "retrain")


class Campaign:
    """Runs commands in workdirs of its own, one after another.

    Args:
      root: an empty folder.
      seed: of what is random in it.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.draw = root, random.Random(seed)
        self.outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        for name in ("first", "whole"):  # the first one compiles, as no other will
            began = time.monotonic()
            code, text = self.run(root / name)
            assert code == 0, text
            self.took = time.monotonic() - began
        self.expected = _results(root / "whole")

    def start(self, workdir: Path, limit: int | None = None, *more: str) -> subprocess.Popen[str]:
        """Starts the command, with a limit on the size of files as on a full disk."""
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        flags = ["--config=configs/digits.py", f"--workdir={workdir}", *fields, *more]

        def prepare() -> None:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(DROP_BOUNDING, DAC_OVERRIDE, 0, 0, 0)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        environment = small_run.environment()
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.root / "cache")
        if limit is not None:  # what the cache of programs cannot write is no fault of ours
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
        """Runs the command to its end; its code, and what it printed."""
        process = self.start(workdir, limit, *more)
        text, _ = process.communicate(timeout=900)
        return process.returncode, text

    def strike(self, count: int) -> None:
        """Lets so many faults strike, each kind at least once, and finishes every workdir."""
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
        self.finish(workdir, "the last")

    def finish(self, workdir: Path, name: str) -> None:
        """Runs to the end what was struck; nothing may be lost or different."""
        code, text = self.run(workdir)
        assert code == 0, f"after {name}: {text}"
        assert _results(workdir) == self.expected, f"after {name}, {workdir} differs"
        shutil.rmtree(workdir)

    def moment(self) -> float:
        """Seconds until something happens to a run."""
        return self.draw.uniform(0, 1.1 * self.took)

    def checkpoint(self, workdir: Path) -> Path:
        """The newest checkpoint of a phase that has one before it; the run goes on until then."""
        while True:
            for phase in reversed(PHASES):
                folder = workdir / phase / "checkpoints"
                steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
                if len(steps) > 1:
                    return folder / str(max(steps))
            with _struck(self, workdir):
                pass


def _results(workdir: Path) -> dict[str, Any]:
    """All that a run found, but for times."""
    found: dict[str, Any] = {}
    for phase in PHASES:
        lines = (workdir / phase / "history.jsonl").read_text().splitlines()
        found[phase] = [json.loads(line) for line in lines]
        for line in found[phase]:
            del line["images_per_second"]
    found["result"] = json.loads((workdir / "result.json").read_text())
    for name in ("search_seconds", "retrain_seconds"):
        del found["result"][name]
    return found


def _one_line(text: str, *words: str) -> None:
    """The last line says what is wrong, and there is no traceback."""
    assert "Traceback" not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ") or last.startswith("stopped"), text
    for word in words:
        assert word in last, text


@contextlib.contextmanager
def _struck(campaign: Campaign, workdir: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that is at work for a while, before the block and to its end after."""
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
        with _struck(campaign, workdir) as process:
            for i in range(times):
                time.sleep(0.2 * (i > 0))
                process.send_signal(signum)
            text, _ = process.communicate(timeout=300)
            code = process.returncode
        if code == 0:
            return "the run was done before"
        if signum == signal.SIGKILL:
            assert code == -signum, text
            return "killed; resumed"
        # While Python itself starts, there is nobody yet who could say a word.
        early = code == -signum or "KeyboardInterrupt" in text
        assert early or code == 128 + signum, text
        if not early:
            _one_line(text, "the same command goes on")
        return "ended before it began; resumed" if early else f"exit code {code}; resumed"

    return fault


def _full(campaign: Campaign, workdir: Path) -> str:
    code, text = campaign.run(workdir, int(2 ** campaign.draw.uniform(8, 18)))
    if code == 0:
        return "all files were small enough"
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
            place = campaign.draw.randrange(len(content))
            if how == "truncated":
                del content[place:]
            else:
                content[place] ^= 1 << campaign.draw.randrange(8)
            file.write_bytes(content)
        code, text = campaign.run(workdir)
        assert code == 0, text
        if "set aside as" in text:
            return "set aside, told; resumed from the one before"
        return "resumed from the one before" if how == "deleted" else "did not matter; resumed"

    return fault


def _cut_history(campaign: Campaign, workdir: Path) -> str:
    campaign.checkpoint(workdir)
    # A search that has ended does not write to its history any more.
    phase = "retrain" if (workdir / "search" / "genotype.json").exists() else "search"
    file = workdir / phase / "history.jsonl"
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as opened:  # as a kill in mid-write leaves it
        opened.write('{"stage": 1, "epo')
    return "the line was written anew"


def _clock_set_back(campaign: Campaign, workdir: Path) -> str:
    campaign.checkpoint(workdir)
    future = time.time() + 1e6
    for path in workdir.rglob("*"):
        os.utime(path, (future, future))
    return "did not matter; resumed"


def _twice(campaign: Campaign, workdir: Path) -> str:
    with _struck(campaign, workdir) as process:
        lock = workdir / "search" / ".lock"
        while process.poll() is None and not lock.exists():
            time.sleep(0.05)
        code, text = campaign.run(workdir)
        process.communicate(timeout=300)
        assert process.returncode == 0, "the first run must not be disturbed"
    if code == 0:
        return "the first was done before"
    assert code == 2, text
    _one_line(text, "another run is at work")
    return "exit code 2 and one line; the first went on"


def _diverges(campaign: Campaign, workdir: Path) -> str:
    other = campaign.root / "diverges"
    code, text = campaign.run(other, None, "--config.search.lr=1e6", "--config.search.clip=0")
    assert code == 2, text
    _one_line(text, "the training loss is", "step", "stage", "checkpoint")
    shutil.rmtree(other)
    return "exit code 2 and one line"


def _worker_killed(campaign: Campaign, workdir: Path) -> str:
    whole, struck = campaign.root / "streamed", campaign.root / "struck"
    if not whole.exists():
        code, text = campaign.run(whole, None, *STREAMED)
        assert code == 0, text
    process = campaign.start(struck, None, *STREAMED)
    while process.poll() is None and not _workers(process.pid):
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=campaign.moment())
    for pid in _workers(process.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=900)
    if process.returncode:
        assert process.returncode == 1, text
        _one_line(text, "an input worker was killed", "the same command goes on")
    code, again = campaign.run(struck, None, *STREAMED)
    assert code == 0, again
    assert _results(struck) == _results(whole)
    shutil.rmtree(struck)
    return "exit code 1 and one line; resumed" if process.returncode else "no longer needed"


def _workers(pid: int) -> list[int]:
    """The input workers of a run, but for those that are just being started.

    To these the main process still writes what to do, and when they die it waits for ever.
    """
    listed = subprocess.run(
        ["ps", "-o", "pid=,etimes=,args=", "--ppid", str(pid)], stdout=subprocess.PIPE, text=True
    )
    found = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, age, words in found if "spawn_main" in words and int(age) >= 2]


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
    """Strikes `count` times in an empty folder; the outcomes of each fault, and how often."""
    striking = Campaign(root, seed)
    striking.strike(count)
    return striking.outcomes


def table(outcomes: dict[str, collections.Counter[str]]) -> str:
    """In Markdown."""
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
