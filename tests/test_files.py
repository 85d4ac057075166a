"""Histories, JSON, text and arrays survive crashes and full disks."""

import concurrent.futures
import json
import os
import re
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from drnas_jax import files
from drnas_jax.errors import UserError

LINES = [{"epoch": i, "loss": 0.5 * i, "genotype": "|é~0|"} for i in range(3)]


@pytest.fixture
def history(tmp_path):
    path = tmp_path / "search" / "history.jsonl"
    for line in LINES:
        files.append_history(path, line)
    return path


def test_a_history_has_one_json_object_per_line(history):
    # Catches a format that other tools cannot read line by line.
    assert files.read_history(history) == LINES
    assert [json.loads(line) for line in history.read_text().splitlines()] == LINES


def test_a_missing_history_reads_as_empty(tmp_path):
    # Catches reading that creates the file, or fails in a new workdir.
    path = tmp_path / "history.jsonl"
    assert files.read_history(path) == []
    assert files.rewind_history(path, 3) == 0
    assert not path.exists()


def test_a_history_takes_arrays_and_writes_nan_and_infinity_as_null(tmp_path):
    # Catches NaN in a file, which is not JSON, and arrays of JAX that cannot be encoded.
    path = tmp_path / "history.jsonl"
    line = {
        "float": np.float32(0.5),
        "int": np.int64(3),
        "jax": jnp.asarray([1.5, jnp.nan]),
        "nested": {"normal": np.array([[1, 2], [3, 4]]), "loss": float("inf")},
        "text": ("a", "b"),
    }
    files.append_history(path, line)
    assert files.read_history(path) == [
        {
            "float": 0.5,
            "int": 3,
            "jax": [1.5, None],
            "nested": {"normal": [[1, 2], [3, 4]], "loss": None},
            "text": ["a", "b"],
        }
    ]


def test_a_history_survives_a_kill_at_any_byte(history):
    # Catches a new line that is appended to an incomplete one.
    written = history.read_bytes()
    ends = [
        i for i, byte in enumerate(written) if byte == ord("\n")
    ]  # a line is complete at this byte
    for size in range(len(written)):
        history.write_bytes(written[:size])
        complete = LINES[: sum(end <= size for end in ends)]
        assert files.read_history(history) == complete
        files.append_history(history, {"epoch": "new"})
        assert files.read_history(history) == [*complete, {"epoch": "new"}]


def test_a_last_line_of_garbage_is_dropped(history):
    # Catches blocks of zeros, which some file systems leave after a crash.
    with history.open("ab") as file:
        file.write(b"\0\xff\0\0\n")
    assert files.read_history(history) == LINES


@pytest.mark.parametrize("damage", [b"", b'{"epoch": 1, "lo', b"\xff\xfe", b"12"])
def test_damage_before_the_last_line_is_an_error_with_file_and_line(history, damage):
    # Catches lost epochs in the middle of a history that nobody notices.
    first, _, last = history.read_bytes().splitlines()
    history.write_bytes(b"\n".join([first, damage, last, b""]))
    with pytest.raises(UserError, match=rf"{re.escape(str(history))}, line 2, is damaged"):
        files.read_history(history)
    with pytest.raises(UserError, match="line 2"):
        files.rewind_history(history, 1)


@pytest.mark.parametrize("keep", [0, 1, 3, 7])
def test_rewinding_keeps_the_first_lines(history, keep):
    # Catches an epoch that is in the history twice after it was repeated.
    assert files.rewind_history(history, keep) == min(keep, 3)
    assert files.read_history(history) == LINES[:keep]
    files.append_history(history, {"epoch": keep})
    assert files.read_history(history) == [*LINES[:keep], {"epoch": keep}]


def test_one_of_several_creates_a_file(tmp_path):
    # Would catch a file that a second process replaces, or that is read before it is whole.
    path, count = tmp_path / "new" / "config.json", 8
    barrier = threading.Barrier(count)

    def create(number):
        barrier.wait()
        return files.create_json(path, {"number": number}), files.read_json(path)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(create, range(count)))
    (winner,) = [number for number, (written, _) in enumerate(outcomes) if written]
    assert [read for _, read in outcomes] == [{"number": winner}] * count
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_created_on_storage_without_hard_links(tmp_path, monkeypatch):
    # Would catch a workdir in a mounted bucket that cannot be begun.
    def refuse(*_):
        raise PermissionError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    assert files.create_json(tmp_path / "a.json", {"number": 1})
    assert not files.create_json(tmp_path / "a.json", {"number": 2})
    assert files.read_json(tmp_path / "a.json") == {"number": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_json_keeps_the_order_and_is_indented(tmp_path):
    # Catches sorted keys, and a result file that is one long line.
    path = tmp_path / "new" / "result.json"
    files.write_json(path, {"z": 1, "a": {"y": np.float32(0.5), "b": None}})
    assert path.read_text() == '{\n  "z": 1,\n  "a": {\n    "y": 0.5,\n    "b": null\n  }\n}\n'


@pytest.mark.parametrize(
    "write",
    [lambda path: files.write_json(path, {}), lambda path: files.rewind_history(path, 0)],
)
def test_a_failed_write_leaves_only_the_old_file(history, monkeypatch, write):
    # Catches a write that is not atomic, and temporary files that stay.
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(history)
    assert [json.loads(line) for line in history.read_text().splitlines()] == LINES
    assert os.listdir(history.parent) == [history.name]
