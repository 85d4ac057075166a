"""A run's directory: one config for all phases, so that a killed command is simply run again."""

import contextlib
import fcntl
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from drnas_jax.config import Config, differences, to_dict
from drnas_jax.errors import UserError
from drnas_jax.files import read_json, write_json
from drnas_jax.training.hosts import from_primary

_VERSIONED = ("drnas_jax", "jax", "jaxlib", "flax", "optax", "tfp-nightly", "orbax-checkpoint")


def open_workdir(workdir: str | os.PathLike[str], config: Config) -> Path:
    """Makes a workdir for a config, or checks that what was done in it was done with the same one.

    Writes `config.json`: the resolved config, versions and devices. Fields that may change
    (`config.FREE`) are written anew. All processes call this.

    Raises:
      UserError: it was made with another config, cannot be written, its config.json is damaged, or
        it is not on storage that all processes share, or the address of a bucket.
    """
    if "://" in os.fspath(workdir):
        raise UserError(
            f"--workdir is {os.fspath(workdir)!r}, but a run writes files: mount the bucket and "
            "give the path where it lies (docs/scaling.md)"
        )
    directory = Path(workdir).expanduser()
    from_primary(lambda: _open(directory, config))
    if not (directory / "config.json").exists():
        raise UserError(
            f"process {jax.process_index()} does not see {directory / 'config.json'}, which "
            "process 0 has written: --workdir must be on storage that all processes share"
        )
    return directory


def _open(directory: Path, config: Config) -> None:
    file = directory / "config.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if file.exists():
            described = _read(file)
            changed = differences(described["config"], to_dict(config))
            if changed and _begun(directory):
                more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
                raise UserError(
                    f"workdir {directory} was made with another config, {changed[0]}{more}: "
                    "take a new --workdir, or the config it was made with"
                )
            if changed:
                write_json(file, _description(config))
            elif described["config"] != to_dict(config):  # where things lie, which may change
                write_json(file, {**described, "config": to_dict(config)})
        else:
            write_json(file, _description(config))
    except OSError as error:
        raise UserError(f"workdir {directory} cannot be written ({error.strerror})") from error


def of_seed(workdir: Path, seed: int) -> Path:
    """The workdir of one of several seeds."""
    return workdir / f"seed{seed}"


def _begun(directory: Path) -> bool:
    """Whether anything was done in a workdir, or in those of its seeds."""
    names = ("search", "retrain", "result.json")
    return any((directory / name).exists() for name in names) or any(
        _begun(seed) for seed in directory.glob("seed*")
    )


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keeps a second run out of a directory while this one writes to it. All processes call this.

    The lock goes with its process, however that ends. Storage without locks goes without.

    Raises:
      UserError: another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        from_primary(lambda: stack.enter_context(_lock(directory)))
        yield


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "w")  # noqa: SIM115 (below)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another run is at work in {directory}: wait for its end, or take a new --workdir"
            ) from error
        except OSError:
            pass
        yield


def _read(file: Path) -> dict:
    values = read_json(file) or {}
    if isinstance(values.get("config"), dict):
        return values
    raise UserError(f"{file} is damaged: restore it, or take a new workdir")


def _description(config: Config) -> dict:
    return {
        "config": to_dict(config),
        "versions": {name: version(name) for name in _VERSIONED},
        "devices": [device.device_kind for device in jax.devices()],
    }


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
