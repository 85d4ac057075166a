"""A run's files: histories and JSON, whole on the disk or not there."""

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from drnas_jax.errors import UserError

AnyPath = str | os.PathLike[str]


def append_history(path: AnyPath, line: Mapping[str, Any]) -> None:
    """Appends one JSON line and waits until it is on the disk.

    Args:
      path: a .jsonl file; made, with its folder, where there is none.
      line: plain values, numpy and JAX arrays and scalars, nested at will. A number that is not
        finite is written as null, since JSON has no other way.
    """
    path = Path(path)
    text = _to_json(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):  # killed in mid-write
        rewind_history(path, len(read_history(path)))
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
        _sync(file)


def read_history(path: AnyPath) -> list[dict[str, Any]]:
    """All lines of a history; none if there is no file.

    A last line that was cut short, by a kill in mid-write, is left out.

    Raises:
      UserError: another line is damaged.
    """
    return [values for _, values in _read_lines(Path(path))]


def rewind_history(path: AnyPath, keep: int) -> int:
    """Keeps the first lines of a history and drops the rest, in one atomic step.

    On resume: with the epochs of the checkpoint kept, one that is redone is not there twice.

    Args:
      path: a .jsonl file; nothing happens where there is none.
      keep: lines to keep.

    Returns:
      The lines that are left, fewer than `keep` if there were not so many.

    Raises:
      UserError: a line is damaged that is not the last.
    """
    path = Path(path)
    kept = [text for text, _ in _read_lines(path)[:keep]]
    if path.exists():
        _replace(path, "".join(text + "\n" for text in kept).encode())
    return len(kept)


def write_json(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Writes a JSON file in one atomic step: a reader sees the old one or the new one.

    Args:
      path: the file; its folder is made where there is none.
      values: as in `append_history`; their order is kept.
    """
    write_text(path, _to_json(values, indent=2) + "\n")


def read_json(path: AnyPath) -> dict[str, Any] | None:
    """Reads a JSON file that holds an object; None if there is no file.

    Raises:
      UserError: it is damaged.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:  # also what decoding raises
        raise UserError(
            f"{path} is damaged ({error}): restore it, or take a new workdir"
        ) from error
    return values


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text file in one atomic step; its folder is made where there is none."""
    _replace(Path(path), text.encode())


def write_array(path: AnyPath, array: np.ndarray) -> None:
    """Writes an array as a .npy file in one atomic step; its folder is made where there is none."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    _replace(Path(path), buffer.getvalue())


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line as it is written, and its values."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    read = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(text := line.decode())
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:  # also what decoding raises
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}, is damaged ({error}): restore the file, or start again "
                "with a new workdir"
            ) from error
        read.append((text, values))
    return read


def _to_json(values: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(values), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            _sync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
