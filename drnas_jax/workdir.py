"""The directory of a run: one config for all phases, so that a killed command is just run again."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from drnas_jax import components, spaces
from drnas_jax.config import (
    COMPONENTS,
    PHASE_FIELDS,
    Config,
    component_names,
    content_files,
    differences,
    is_read,
    to_dict,
)
from drnas_jax.errors import UserError
from drnas_jax.files import create_json, read_json, write_json
from drnas_jax.genotype import to_cells
from drnas_jax.training.hosts import from_primary

_SHOWN = 5  # changed fields that an error names
_VERSIONED = ("drnas_jax", "jax", "jaxlib", "flax", "optax", "tfp-nightly", "orbax-checkpoint")


def open_workdir(workdir: str | os.PathLike[str], config: Config) -> Path:
    """Creates a workdir for a config, or checks that it was made with the same config.

    Writes `config.json`: the resolved config, the file and the hash of each module of the user, the
    hashes of the genotype and of the files that the config names (`config.content_files`), versions
    and devices. Fields that may change (`config.FREE`, and those of phases that have not begun) are
    written again, and so is the path of a module, a genotype or a file that was moved. All
    processes call this.

    Raises:
      UserError: The workdir was made with another config, another genotype or another version of a
        file or module of the user; or it cannot be written, or its config.json is damaged, or it is
        the address of a bucket or on storage that the processes do not share; or the genotype
        cannot be read.
    """
    if "://" in os.fspath(workdir):
        raise UserError(
            f"--workdir is {os.fspath(workdir)!r}, but a run writes files: mount the bucket and "
            "give the path of the mount (docs/scaling.md)"
        )
    directory = Path(workdir).expanduser()
    try:
        os.fspath(directory).encode()
    except UnicodeEncodeError as error:  # TensorStore takes no such path
        raise UserError(
            f"--workdir is {os.fspath(directory)!a}, which is not UTF-8: take another name"
        ) from error
    from_primary(lambda: _open(directory, config))
    if not (directory / "config.json").exists():
        raise UserError(
            f"process {jax.process_index()} does not see {directory / 'config.json'}, which "
            "process 0 has written: take a --workdir on storage that all processes share"
        )
    return directory


def _open(directory: Path, config: Config) -> None:
    file = directory / "config.json"
    now: dict[str, Any] = {"config": to_dict(config), "components": _sources(config)}
    try:
        before = _read(file) if file.exists() else None
        now["genotype"] = _genotype_hash(config.genotype, before or {})
        now["files"] = _file_hashes(config, before or {})
        directory.mkdir(parents=True, exist_ok=True)
        for phase in PHASE_FIELDS:
            if (folder := directory / phase).exists() and not folder.is_dir():
                raise UserError(
                    f"{folder} is a file, and the {phase} phase needs a folder of this name: move "
                    "it, or take a new --workdir"
                )
        if before is None and create_json(file, {**now, **_machine()}):
            return
        before = before or _read(file)  # another process may have written it since
        begun = _begun(directory)
        error = _conflict(directory, before, now, begun)
        if error and begun:
            raise error
        if error:
            write_json(file, {**now, **_machine()})
        elif any(before.get(key) != value for key, value in now.items()):
            write_json(file, {**before, **now})
    except OSError as error:
        raise UserError(
            f"workdir {directory} cannot be written ({error.strerror}): make it writable, or take "
            "another --workdir"
        ) from error


def _conflict(
    directory: Path, before: Mapping[str, Any], now: Mapping[str, Any], begun: set[str]
) -> UserError | None:
    """Returns the error if the phases that have begun in a workdir would be others now."""
    changed = differences(before["config"], now["config"], begun)
    old_sources = before.get("components", {})
    for field, new in now["components"].items():
        old = old_sources.get(field)
        if old is None or components.short_name(old["name"]) != components.short_name(new["name"]):
            continue
        if old["sha256"] == new["sha256"]:
            changed.pop(field, None)  # it was moved
        elif old["name"] == new["name"]:
            return _another_version(directory, field, new["name"])
    old_files = before.get("files", {})
    for field, new in now["files"].items():
        old = old_files.get(field)
        if old is None or not is_read(field, begun):
            continue
        if old["sha256"] == new["sha256"]:
            changed.pop(field, None)  # it was moved
        elif old["name"] == new["name"]:
            return _another_version(directory, field, new["name"])
    if "retrain" in begun and (old := before.get("genotype")) and now["genotype"]:
        if old == now["genotype"]:
            changed.pop("genotype", None)  # the same cell, from another file or in another form
        elif "genotype" not in changed:
            return UserError(
                f"workdir {directory} was made with another cell in {now['config']['genotype']!r} "
                "(genotype), which has changed since: take a new --workdir, or restore the file"
            )
    if not changed:
        return None
    shown = ", ".join(list(changed.values())[:_SHOWN])
    hidden = len(changed) - _SHOWN
    more = f" and {hidden} more field{'s' * (hidden > 1)}" if hidden > 0 else ""
    made, this = before.get("versions", {}).get("drnas_jax"), version("drnas_jax")
    by = f" by drnas_jax {made}, and this is {this}" if made != this else ""
    return UserError(
        f"workdir {directory} was made with another config{by}, {shown}{more}: take a new "
        "--workdir, or repeat all flags of the command that made it"
    )


def _another_version(directory: Path, field: str, name: str) -> UserError:
    return UserError(
        f"workdir {directory} was made with another version of {name!r} ({field}), which has "
        "changed since: take a new --workdir, or restore the file"
    )


def _sources(config: Config) -> dict[str, dict[str, str]]:
    """Returns name, file and hash of each module of the user, by the field that names it."""
    named = component_names(config)
    sources = {
        field: components.source_of(COMPONENTS[field].kind, name) for field, name in named.items()
    }
    return {
        field: {"name": named[field], **source._asdict()}
        for field, source in sources.items()
        if source
    }


def _genotype_hash(genotype: str, before: Mapping[str, Any]) -> str | None:
    """Returns the hash of the cell that `config.genotype` names; None for '' and 'random'.

    If its file was removed after the run had begun, the recorded hash is kept, because the
    checkpoints hold the cell.

    Raises:
      UserError: The cell cannot be read.
    """
    if genotype in ("", "random"):
        return None
    try:
        found = spaces.load_genotype(genotype)
    except UserError:
        if before.get("genotype") and before["config"].get("genotype") == genotype:
            return before["genotype"]
        raise
    content = json.dumps([found.space, to_cells(found)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _file_hashes(config: Config, before: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns name and hash of each file whose content counts, by the option that names it.

    If a file cannot be read, its recorded hash is kept, if there is one. The code that needs the
    file reports the error.
    """
    hashes = {}
    recorded = before.get("files", {})
    for field, name in content_files(config).items():
        try:
            content = Path(name).expanduser().read_bytes()
        except OSError:
            if recorded.get(field, {}).get("name") == name:
                hashes[field] = recorded[field]
            continue
        hashes[field] = {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
    return hashes


def _begun(directory: Path) -> set[str]:
    """Returns the phases that have results, or that run, in a workdir or those of its elements."""
    begun = {phase for phase in PHASE_FIELDS if has_work(directory / phase)}
    if (directory / "result.json").exists():
        begun.add("evaluate")
    elements = (path for name in ("cost_*", "seed*") for path in directory.glob(name))
    return begun.union(*map(_begun, elements))


def has_work(directory: Path) -> bool:
    """Returns whether a phase has left something in its directory, or works in it now."""
    if any((directory / name).exists() for name in ("history.jsonl", "genotype.json")):
        return True
    checkpoints = directory / "checkpoints"
    if checkpoints.is_dir() and not all(map(_is_unfinished, checkpoints.iterdir())):
        return True
    return _is_locked(directory)


def _is_unfinished(checkpoint: Path) -> bool:
    """Returns whether Orbax was stopped while it wrote a checkpoint."""
    return "orbax-checkpoint-tmp" in checkpoint.name


def _is_locked(directory: Path) -> bool:
    try:
        with open(directory / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or the storage knows no locks
        return False
    return False


@contextlib.contextmanager
def phase_lock(directory: Path) -> Iterator[None]:
    """Keeps a second run out of a directory while this one writes to it. All processes call this.

    The lock ends with its process, however that ends. On storage without locks nothing is locked.

    Raises:
      UserError: Another run is using the directory.
    """
    with contextlib.ExitStack() as stack:
        from_primary(lambda: stack.enter_context(_lock(directory)))
        yield


def waiting_lock(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Returns a context that one process at a time can enter; the others wait until it is left.

    On storage without locks no process waits.

    Args:
      directory: Directory of the lock file, other than those of the phases, see `phase_lock`.
    """
    return _lock(directory, wait=True)


@contextlib.contextmanager
def _lock(directory: Path, wait: bool = False) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "w")  # noqa: SIM115 (below)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror}): make it writable, or take another "
            "--workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"another run is using {directory}: wait until it ends, or take a new --workdir"
            ) from error
        except OSError:
            pass
        yield


def _read(file: Path) -> dict[str, Any]:
    values = read_json(file) or {}
    sources = [values.get(key, {}) for key in ("components", "files")]
    if isinstance(values.get("config"), dict) and all(map(_are_hashed, sources)):
        return values
    raise UserError(f"{file} is damaged: restore it, or take a new workdir")


def _are_hashed(sources: Any) -> bool:
    return isinstance(sources, dict) and all(
        isinstance(one, dict) and {"name", "sha256"} <= one.keys() for one in sources.values()
    )


def _machine() -> dict[str, Any]:
    return {
        "versions": {name: version(name) for name in _VERSIONED},
        "devices": [device.device_kind for device in jax.devices()],
    }


def version(package: str) -> str | None:
    """Returns the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
