"""The export phase: what it writes, what it refuses, and that no half file is left."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from resuming import Listener
from small_run import environment
from trained_run import SHAPE, config_of, make

from drnas_jax import export, spaces
from drnas_jax.errors import UserError
from drnas_jax.files import write_json
from drnas_jax.genotype import to_json
from drnas_jax.main import main
from drnas_jax.nn.backend import PLAIN
from drnas_jax.nn.counting import count_network

SMALL = str(Path(__file__).parents[1] / "small_space.py")
# A user's format, which writes the logits of one image into the file that FILE names.
FORMAT = """
import numpy as np

class Logits:
    def check(self, space):
        assert space.name == "small"

    def write(self, network, directory):
        file = directory / "FILE"
        images = np.full((1, *network.shape), 51, network.dtype)
        file.write_text(repr(np.asarray(network.apply(images)).tolist()))
        FAULT
        return [file]

create = Logits
"""


def user_format(folder, name, fault="pass"):
    """Writes a user's format and returns the path of its module."""
    file = folder / f"{name}.py"
    file.write_text(FORMAT.replace("FILE", f"{name}.txt").replace("FAULT", fault))
    return str(file)


def files(workdir):
    return sorted(path.name for path in (workdir / "export").iterdir() if path.name != ".lock")


def test_what_is_written_is_the_network_and_its_card(tmp_path):
    # Would catch logits of other weights, a second normalisation, and a card of another network.
    workdir, name = tmp_path / "run", user_format(tmp_path, "logits")
    config = config_of(space=SMALL, export__formats=(name,))
    metadata, variables = make(workdir, config)
    display = Listener()
    result = export(config, workdir, display=display)

    assert result.files == (workdir / "export" / "logits.txt",)
    module = spaces.create(SMALL).network(metadata.spec, PLAIN)
    normalised = np.full((1, *SHAPE), (51 / 255 - 0.4) / 0.2, np.float32)
    expected = module.apply(variables, normalised, False)
    content = result.files[0].read_bytes()
    np.testing.assert_allclose(np.array(eval(content)), expected, rtol=1e-5)

    card = json.loads((workdir / "export/card.json").read_text())
    assert card == json.loads(json.dumps(result.card))
    assert card["genotype"] == to_json(metadata.genotype)
    assert card["classes"] == ["ant", "bee", "cat"]
    counts = count_network(module, SHAPE)
    size = {"channels": 4, "cells": 1, "params": counts.parameters, "macs": counts.macs}
    assert card["network"] == {"space": "small", "space_options": {}, **size}
    assert card["input"] == {"dtype": "uint8", "layout": "NHWC", "shape": [None, *SHAPE]}
    assert card["preprocessing"] == {
        "orientation": "EXIF", "channels": "RGB", "max_value": 65535, "shortest_edge": None,
        "shrinking": "area", "enlarging": "bilinear", "centre_crop": None, "value_range": [0, 255],
        "normalisation": "(pixels / 255 - mean) / std", "mean": [0.4] * 3, "std": [0.2] * 3,
        "normalised": "by the program",
    }  # fmt: skip
    assert card["accuracy"] is None
    assert card["versions"]["jax"] == jax.__version__
    digest = hashlib.sha256(content).hexdigest()
    entry = {"name": "logits.txt", "format": "logits", "bytes": len(content), "sha256": digest}
    assert card["files"] == [entry]
    assert "logits.txt" in display.messages[-1] and "card.json" in display.messages[-1]


def test_float_images_are_not_normalised_again(tmp_path):
    # Would catch a program that normalises although the caller has done so.
    name = user_format(tmp_path, "logits")
    config = config_of(space=SMALL, export__formats=(name,), export__uint8=False)
    metadata, variables = make(tmp_path, config)
    result = export(config, tmp_path, display=Listener())
    images = np.full((1, *SHAPE), 51, np.float32)
    module = spaces.create(SMALL).network(metadata.spec, PLAIN)
    expected = module.apply(variables, images, False)
    np.testing.assert_allclose(eval(result.files[0].read_text()), expected, rtol=1e-5)
    assert result.card["input"]["dtype"] == "float32"
    assert result.card["preprocessing"]["normalised"] == "by the caller"


def test_the_accuracy_is_that_of_this_network(tmp_path):
    # Would catch the accuracy of another checkpoint, which `evaluate` has written since.
    config = config_of(space=SMALL, export__formats=(user_format(tmp_path, "logits"),))
    metadata, _ = make(tmp_path, config)
    module = spaces.create(SMALL).network(metadata.spec, PLAIN)
    result = {
        "genotype": to_json(metadata.genotype), "macs": count_network(module, SHAPE).macs,
        "retrain_seconds": 7.0, "test_accuracy": 0.75, "test_top5": 0.9,
    }  # fmt: skip
    for change, expected in (
        ({}, {"test_accuracy": 0.75, "test_top5": 0.9}),
        ({"retrain_seconds": 8.0}, None),
        ({"macs": 1}, None),
    ):
        write_json(tmp_path / "result.json", {**result, **change})
        assert export(config, tmp_path, display=Listener()).card["accuracy"] == expected


def test_an_export_replaces_the_one_before(tmp_path):
    # Would catch files of an earlier network beside the card of a later one.
    names = [user_format(tmp_path, name) for name in ("first", "second")]
    make(tmp_path / "run", config_of(space=SMALL))
    for name in names:
        config = config_of(space=SMALL, export__formats=(name,))
        export(config, tmp_path / "run", display=Listener())
    assert files(tmp_path / "run") == ["card.json", "second.txt"]


def test_two_formats_that_write_the_same_file_are_refused(tmp_path):
    # Would catch a file that the next format overwrites, so that the card describes another one.
    name = user_format(tmp_path, "logits")
    (tmp_path / "again.py").write_text(Path(name).read_text())
    config = config_of(space=SMALL, export__formats=(name, str(tmp_path / "again.py")))
    make(tmp_path / "run", config)
    with pytest.raises(UserError, match="both write logits.txt"):
        export(config, tmp_path / "run", display=Listener())
    assert files(tmp_path / "run") == []


def test_a_fault_leaves_no_half_file(tmp_path):
    # Would catch a file under its final name before all formats are written.
    good = user_format(tmp_path, "good")
    bad = user_format(tmp_path, "bad", fault="raise OSError('disk full')")
    config = config_of(space=SMALL, export__formats=(good, bad))
    make(tmp_path / "run", config)
    with pytest.raises(OSError, match="disk full"):
        export(config, tmp_path / "run", display=Listener())
    assert files(tmp_path / "run") == []


@pytest.fixture
def refused(tmp_path, capsys):
    """Returns a function of flags -> the line with which the command refuses to export."""

    def run(*flags, phases="export"):
        argv = ["main", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}"]
        assert main([*argv, f"--phases={phases}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.export.formats=onyx"], ["export.formats 'onyx'", "stablehlo, torch"]),
        (["--config.export.formats=()"], ["export.formats is ()", "'stablehlo'"]),
        (["--config.export.formats=('torch','torch')"], ["'torch' twice"]),
        (["--config.export.formats=no/such.py"], ["no/such.py", "no such file"]),
        (["--config.export.platforms=()"], ["export.platforms is ()"]),
        (["--config.export.platforms=metal"], ["'metal'", "cpu, cuda, rocm, tpu"]),
        (["--config.export.batch_size=-1"], ["batch_size is -1", "at least 0"]),
        ([], ["no checkpoint", "retrain phase"]),
        (["--config.checkpoint=no/such"], ["no/such"]),
    ],
    ids=lambda value: value[0] if value else "nothing",
)
def test_a_mistake_is_one_line(refused, flags, words):
    line = refused(*flags)
    for word in words:
        assert word in line


def test_a_format_that_does_not_suit_the_space_is_refused_before_the_search(refused, tmp_path):
    # Would catch a run of hours that cannot write what was asked for.
    flags = ["--config.space=macro", "--config.export.formats=torch"]
    flags += ["--config.search.partial_channels=(1,1)", "--config.search.cells=8"]
    line = refused(*flags, "--config.retrain.cells=8", phases="search,retrain,export")
    assert "space macro" in line and "export.formats=stablehlo" in line
    assert not (tmp_path / "search").exists()


def test_a_retraining_that_has_not_ended_is_exported_only_by_name(tmp_path):
    # Would catch half-trained weights that leave the project unnoticed.
    name = user_format(tmp_path, "logits")
    config = config_of(space=SMALL, export__formats=(name,))
    make(tmp_path, config, epochs=1)
    with pytest.raises(UserError, match="has done 1 of 2 epochs: run it to its end"):
        export(config, tmp_path, display=Listener())
    assert not (tmp_path / "export").exists()
    folder = str(tmp_path / "retrain/checkpoints")
    config = config_of(space=SMALL, export__formats=(name,), checkpoint=folder)
    assert export(config, tmp_path, display=Listener()).files


def test_a_checkpoint_of_another_space_or_phase_is_refused(tmp_path):
    # Would catch a traceback from shapes that do not fit.
    config = config_of(space=SMALL)
    make(tmp_path / "run", config)
    folder = str(tmp_path / "run/retrain/checkpoints")
    other = config_of(checkpoint=folder)
    with pytest.raises(UserError, match="genotype is of the space 'small'"):
        export(other, tmp_path / "other", display=Listener())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    # Would catch weights that were changed on the disk.
    config = config_of(space=SMALL)
    make(tmp_path, config)
    for file in (tmp_path / "retrain/checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 200 and "d" in file.parent.name:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 255
            file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be restored"):
        export(config, tmp_path, display=Listener())
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_two_processes_export_once(tmp_path):
    # Would catch a process that waits for the other for ever, or both writing the same file.
    metadata, _ = make(tmp_path, config_of(), epochs=3)
    program = ["launch/local.sh", "--processes=2", "--devices=1", f"--python={sys.executable}"]
    program += ["--", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*program, "--phases=export", "--config.export.formats=('stablehlo','torch')"],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    names = ["card.json", "model.npz", "model.safetensors", "model.stablehlo"]
    assert files(tmp_path) == names
    card = json.loads((tmp_path / "export/card.json").read_text())
    assert card["genotype"] == to_json(metadata.genotype)
    for entry in card["files"]:
        content = (tmp_path / "export" / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert done.stderr.count("exported model.stablehlo") == 1
