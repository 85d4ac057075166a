"""A StableHLO file runs in JAX without this package, for any batch."""

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
from drnas_jax.nn.backend import PLAIN

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "small_space.py"
ALONE = """
import sys
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.save(sys.argv[3], program.call(images))
assert not any(name.startswith(("drnas_jax", "flax")) for name in sys.modules)
print(program.platforms, program.in_avals[0])
"""


def exported(tmp_path, shape=SHAPE, **changes):
    """Exports a network of random weights; returns it and the path of the file."""
    config = config_of(**changes)
    depth = 8 if config.space == "macro" else 3 if config.space.startswith("darts") else 1
    metadata, variables = make(tmp_path, config, depth=depth, shape=shape)
    space = spaces.create(config.space, config.space_options)
    module = space.network(metadata.spec, PLAIN)
    result = export(config, tmp_path, display=Listener())
    return (lambda x: module.apply(variables, x, False)), result.files[0]


def test_it_runs_without_this_package(tmp_path):
    # Would catch a file that needs our modules, or that names the files of this machine.
    space = tmp_path / "any_batch.py"
    space.write_text(SMALL.read_text().replace("len(x)", "x.shape[0]"))
    network, file = exported(tmp_path, space=str(space), export__platforms=("cpu", "tpu"))
    content = file.read_bytes()
    assert b".py" not in content and str(ROOT).encode() not in content
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    np.save(tmp_path / "in.npy", images)
    arguments = [str(file), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('cpu', 'tpu') uint8[n,8,8,3]\n"
    logits = np.load(tmp_path / "out.npy")
    assert logits.dtype == np.float32
    # Sums of another compilation round differently.
    expected = network((images / np.float32(255) - np.float32(0.4)) / np.float32(0.2))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_network_of_one_batch_size_says_what_to_set(tmp_path):
    # Would catch a plugin that can never be exported, since it asks for the length of a batch.
    with pytest.raises(TypeError) as caught:
        exported(tmp_path, space=str(SMALL))
    assert "set export.batch_size" in " ".join(caught.value.__notes__)
    _, file = exported(tmp_path / "fixed", space=str(SMALL), export__batch_size=2)
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    assert program.in_avals[0].shape == (2, *SHAPE)


def test_the_same_network_gives_the_same_file(tmp_path):
    # Would catch a checksum in the card that differs from export to export.
    contents = [
        exported(tmp_path / name, space=str(SMALL), export__batch_size=2)[1].read_bytes()
        for name in ("a", "b")
    ]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"space": "nasbench201"},
        {"space": "macro"},
        {"space": "darts"},
        {"space": "darts", "space_options": {"stem": "imagenet"}},
        {"space": "darts_s3"},
        {"space": str(ROOT / "examples/chain.py")},
        {"space": str(ROOT / "examples/vit.py")},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
@pytest.mark.parametrize("uint8", [True, False])
def test_networks_of_all_spaces(tmp_path, changes, uint8):
    # Would catch a space whose network depends on the size of the batch.
    shape = (64, 64, 3) if "space_options" in changes else SHAPE
    network, file = exported(tmp_path, shape, export__uint8=uint8, **changes)
    program = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    rng = np.random.default_rng(0)
    for count in (1, 5):
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        normalised = ((images / np.float32(255) - np.float32(0.4)) / np.float32(0.2)).astype("f4")
        expected = network(normalised)
        logits = program(images if uint8 else normalised)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
