"""The export phase: writes a trained network in formats that do not need this package."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from drnas_jax import components
from drnas_jax.config import Config, plain
from drnas_jax.data import PhotoPreprocessing
from drnas_jax.data.preprocess import normalise
from drnas_jax.errors import UserError
from drnas_jax.export_formats.base import Format, Network
from drnas_jax.files import read_json, write_json
from drnas_jax.genotype import to_json
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_network
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.setup import Run, open_run
from drnas_jax.phases.trained import check_ended, newest, open_checkpoints, restore
from drnas_jax.training.checkpoints import CheckpointInfo
from drnas_jax.training.hosts import from_primary
from drnas_jax.training.metrics import Display
from drnas_jax.training.random_keys import module_streams
from drnas_jax.workdir import version

CARD = "card.json"
_VERSIONED = ("drnas_jax", "jax", "jaxlib", "flax")


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Attributes:
      files: Files of all formats, in the folder `export` of the workdir.
      card: Content of card.json, which describes the network and these files.
    """

    files: tuple[Path, ...]
    card: Mapping[str, Any]


def export(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    dataset: Mapping[str, np.ndarray] | None = None,
    display: Display | None = None,
) -> ExportResult:
    """Writes the network that `evaluate` would evaluate into the folder `export` of the workdir.

    The formats are those of `config.export.formats`, and card.json describes what was written. No
    images are read: the checkpoint holds all that is needed to know about them.

    Args:
      config: Config of the run, a Config or a ConfigDict.
      workdir: Directory of the run.
      dataset: Arrays that replace the config's data set, see `drnas_jax.data.from_arrays`.
      display: Messages and progress for the user; by default on standard error.

    Raises:
      UserError: There is no checkpoint, retraining has not ended, a format is unknown or cannot
        hold this network, or a package that it needs is missing.
    """
    return run_export(open_run(config, workdir, dataset, display))


def run_export(run: Run) -> ExportResult:
    """Runs the export phase; see `export`."""
    formats = check_formats(run)
    with open_checkpoints(run) as checkpoints:
        saved, metadata = newest(checkpoints, run)
        check_ended(saved, run)
        module = run.space.network(metadata.spec, backend.PLAIN)
        variables = restore(checkpoints, saved, module, run.mesh)
    network = _network(run, metadata, module, jax.tree.map(np.asarray, variables))
    card = _describe(run, saved, metadata, network)
    with run.locked("export") as directory:
        card = from_primary(lambda: _write(formats, network, card, directory))
    files = tuple(directory / entry["name"] for entry in card["files"])
    sizes = (f"{file['name']} ({file['bytes'] / 1e6:,.1f} MB)" for file in card["files"])
    run.display.message(f"exported {', '.join(sizes)}: {directory / CARD}")
    return ExportResult(files, card)


def check_formats(run: Run) -> dict[str, Format]:
    """Returns the formats of a config by their names.

    Raises:
      UserError: A format does not exist, cannot hold networks of the space, or needs a package
        that is missing.
    """
    names, field = run.config.export.formats, "export.formats"
    formats = {name: components.create("format", name, None, field=field) for name in names}
    for chosen in formats.values():
        chosen.check(run.space)
    return formats


def check_export(run: Run) -> None:
    """Raises UserError if there is no network now that could be exported."""
    with open_checkpoints(run) as checkpoints:
        saved, _ = newest(checkpoints, run)
        check_ended(saved, run)


def _network(
    run: Run, metadata: RetrainMetadata, module: nn.Module, variables: Mapping[str, Any]
) -> Network:
    """Returns the network that formats are given.

    Args:
      run: Run whose config says what the network takes.
      metadata: Description of the network.
      module: Module of the network with the plain kernels.
      variables: Variables of the module, as NumPy arrays.
    """
    config, trained = run.config, metadata.data
    streams = module_streams(config.seed, "evaluate", 0, 0)

    def apply(images: jax.Array) -> jax.Array:
        if config.export.uint8:
            images = normalise(images, jnp.array(trained.mean), jnp.array(trained.std))
        logits = module.apply(variables, images, False, rngs=streams)
        return jnp.asarray(logits, jnp.float32)

    return Network(
        apply=apply,
        shape=trained.shape,
        dtype="uint8" if config.export.uint8 else "float32",
        classes=trained.classes,
        space=run.space,
        spec=metadata.spec,
        variables=variables,
        preprocessing=PhotoPreprocessing.of(trained, config.export.uint8).to_json(),
        batch_size=config.export.batch_size,
        platforms=config.export.platforms,
    )


def _describe(
    run: Run, saved: CheckpointInfo, metadata: RetrainMetadata, network: Network
) -> dict[str, Any]:
    """Returns the content of card.json without the files."""
    trained, config = metadata.data, run.config
    module = run.space.network(metadata.spec, backend.PLAIN)
    counts = count_network(module, trained.shape)
    return {
        "genotype": to_json(metadata.genotype),
        "network": {
            "space": run.space.name,
            "space_options": plain(config)["space_options"],
            "channels": metadata.channels,
            "cells": metadata.depth,
            "params": counts.parameters,
            "macs": counts.macs,
        },
        "data": trained.name,
        "classes": list(trained.classes),
        "input": {
            "dtype": network.dtype,
            "layout": "NHWC",
            "shape": network.batch_shape,
        },
        "preprocessing": network.preprocessing,
        "accuracy": from_primary(lambda: _accuracy(run.workdir, saved, metadata, counts.macs)),
        "versions": {name: version(name) for name in _VERSIONED},
    }


def _accuracy(
    workdir: Path, saved: CheckpointInfo, metadata: RetrainMetadata, macs: int
) -> dict[str, float] | None:
    """Returns the accuracies in result.json, or None if they are not those of this network.

    The file does not name a checkpoint, but two retrainings of a genotype do not take equally long.
    """
    result = read_json(workdir / "result.json") or {}
    same = (
        result.get("genotype") == to_json(metadata.genotype)
        and result.get("macs") == macs
        and result.get("retrain_seconds") == round(saved.progress.seconds, 1)
    )
    return {name: result[name] for name in ("test_accuracy", "test_top5")} if same else None


def _write(
    formats: Mapping[str, Format], network: Network, card: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """Writes all formats and card.json, in place of what an earlier export has left.

    While files are replaced there is no card, so a card always describes the files beside it.

    Args:
      formats: Formats by name.
      network: The network.
      card: Content of card.json without the files.
      directory: Folder of the exported files.

    Returns:
      The content of card.json.

    Raises:
      UserError: Two formats write files of the same name, or one of them refuses the network.
    """
    unfinished = directory / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    written: dict[str, tuple[str, Path]] = {}  # format and file by the file's name
    try:
        for number, (name, chosen) in enumerate(formats.items()):
            folder = unfinished / str(number)
            folder.mkdir(parents=True)
            for file in chosen.write(network, folder):
                if file.name in written:
                    raise UserError(
                        f"the formats {written[file.name][0]!r} and {name!r} both write "
                        f"{file.name}: name only one of them in export.formats"
                    )
                written[file.name] = (name, file)
        full = {**card, "files": [_entry(*pair) for pair in written.values()]}
        before = (read_json(directory / CARD) or {}).get("files", [])
        for name in (CARD, *(Path(entry["name"]).name for entry in before)):
            (directory / name).unlink(missing_ok=True)
        for name, (_, file) in written.items():
            os.replace(file, directory / name)
        write_json(directory / CARD, full)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return full


def _entry(name: str, file: Path) -> dict[str, Any]:
    """Returns the entry of a file in card.json.

    Args:
      name: Name of the format.
      file: The file.
    """
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {
        "name": file.name,
        "format": components.short_name(name),
        "bytes": file.stat().st_size,
        "sha256": digest,
    }
