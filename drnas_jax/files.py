"""Reading and writing the files of a run: histories, JSON, text and arrays.

A crash never leaves a damaged file: files are replaced in one atomic step, and a line of a history
that was not written to its end is dropped when the history is read.
"""

import contextlib
import io
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from drnas_jax.errors import UserError

AnyPath = str | os.PathLike[str]


def append_history(path: AnyPath, line: Mapping[str, Any]) -> None:
    """Appends one JSON line to a history and waits until it is on the disk.

    Args:
      path: Path of the .jsonl file. The file and its folder are created if they do not exist.
      line: Names and values of the line: plain Python values, NumPy and JAX arrays and scalars,
        nested to any depth. Numbers that are not finite are written as null, since JSON has no
        other way to say it.
    """
    path = Path(path)
    text = _to_json(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):  # killed while writing
        rewind_history(path, len(read_history(path)))
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
        _sync(file)


def read_history(path: AnyPath) -> list[dict[str, Any]]:
    """Returns all lines of a history, or an empty list if the file does not exist.

    An incomplete last line, left by a process that was killed while writing, is skipped.

    Raises:
      UserError: If any other line is damaged.
    """
    return [values for _, values in _read_lines(Path(path))]


def rewind_history(path: AnyPath, keep: int) -> int:
    """Keeps the first lines of a history and drops the rest, in one atomic step.

    A resumed run calls this so that an epoch that it repeats is not in the history twice.

    Args:
      path: Path of the .jsonl file. Nothing happens if it does not exist.
      keep: Number of lines to keep.

    Returns:
      The number of lines that are left. It is less than `keep` if the file had fewer lines.

    Raises:
      UserError: If a line other than the last one is damaged.
    """
    path = Path(path)
    kept = [text for text, _ in _read_lines(path)[:keep]]
    if path.exists():
        _replace(path, "".join(text + "\n" for text in kept).encode())
    return len(kept)


def write_json(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Writes a JSON file in one atomic step: a reader sees the old file or the new one.

    Args:
      path: Path of the file. Its folder is created if it does not exist.
      values: Names and values of the same kinds as in `append_history`. Their order is kept.
    """
    write_text(path, _to_json(values, indent=2) + "\n")


def create_json(path: AnyPath, values: Mapping[str, Any]) -> bool:
    """Writes a JSON file as `write_json` does, unless it exists.

    Of several processes that do so at the same time, on one machine or many, one writes the file.
    On storage without hard links two may find that it does not exist; the file is whole then, too.

    Returns:
      Whether the file was written.
    """
    with _temporary(Path(path), (_to_json(values, indent=2) + "\n").encode()) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            if Path(path).exists():
                return False
            os.replace(temporary, path)
    return True


def read_json(path: AnyPath) -> dict[str, Any] | None:
    """Reads a JSON file that holds an object, or returns None if the file does not exist.

    Raises:
      UserError: If the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:  # includes UnicodeDecodeError
        raise UserError(
            f"{path} is damaged ({error}): restore it, or take a new workdir"
        ) from error
    return values


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text file in one atomic step, and creates its folder if it does not exist."""
    _replace(Path(path), text.encode())


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file in one atomic step, and creates its folder if it does not exist."""
    _replace(Path(path), content)


def write_array(path: AnyPath, array: np.ndarray) -> None:
    """Writes a .npy file in one atomic step, and creates its folder if it does not exist."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    _replace(Path(path), buffer.getvalue())


def write_arrays(path: AnyPath, arrays: Mapping[str, Any]) -> None:
    """Writes a compressed .npz file in one atomic step, and creates its folder if need be."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _replace(Path(path), buffer.getvalue())


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns each line of a history as a pair of its text and its values."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(text := line.decode())
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:  # includes UnicodeDecodeError
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}, is damaged ({error}): restore the file, or start in a "
                "new workdir"
            ) from error
        pairs.append((text, values))
    return pairs


def _to_json(values: Any, indent: int | None = None) -> str:
    """Encodes values as JSON, after conversion to plain Python values."""
    return json.dumps(_plain(values), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    """Converts arrays to lists, and numbers that are not finite to None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, content: bytes) -> None:
    """Replaces the content of a file in one atomic step."""
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[Path]:
    """Yields a file beside `path` with a content, and removes it at the end if it is still there.

    Its name is unlike that of any other process, since several machines may share the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            _sync(file)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: IO[Any]) -> None:
    """Waits until everything written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())
