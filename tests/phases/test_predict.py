"""Predictions of a trained network for new images: arrays and files."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import drnas_jax
from drnas_jax import data, spaces
from drnas_jax.config import defaults, from_config_dict, to_dict
from drnas_jax.data import Schedule, TrainingData
from drnas_jax.data.stream import read_rows
from drnas_jax.errors import UserError
from drnas_jax.files import write_json
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

# A network whose logits are the mean pixel of each image times the weights and the option.
SPACE = """
import dataclasses
import flax.linen as nn
import jax.numpy as jnp
from drnas_jax.spaces.base import Cell, Edge, Space

@dataclasses.dataclass(frozen=True)
class Options:
    factor: float = 1.0

class Network(nn.Module):
    classes: int
    factor: float

    @nn.compact
    def __call__(self, x, train):
        weights = self.param("weights", nn.initializers.ones, (x.shape[-1], self.classes))
        return self.factor * jnp.mean(x, axis=(1, 2)) @ weights

class Mean(Space):
    name = "mean"
    cells = {"cell": Cell((Edge(1, 0, ("a", "b")),))}
    def __init__(self, options):
        self.options = options
    def network(self, spec, backend):
        return Network(spec.classes, self.options.factor)

create = Mean
"""
WEIGHTS = np.float32([[1, -1], [0.5, 2], [-2, 1]])
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def trained(root, **changes):
    """Writes a checkpoint of the network above, with the weights WEIGHTS, and returns its workdir.

    Args:
      root: Folder for the space and the workdir.
      changes: Changed fields of the description of the training images.
    """
    (root / "mean_space.py").write_text(SPACE)
    space = str(root / "mean_space.py")
    about = dict(name="folder", classes=("cat", "dog"), shape=(6, 6, 3), mean=MEAN, std=STD)
    genotype = spaces.random_genotype(spaces.create(space), 0)
    metadata = RetrainMetadata(genotype, space, 1, 1, TrainingData(**about | changes))
    weights = WEIGHTS if metadata.data.shape[2] == 3 else WEIGHTS[:1]
    state = {"params": {"weights": jnp.array(weights)}, "variables": {}}
    progress = Progress(2, 1.0, 1, jax.__version__, 8, 0, 1)
    with Checkpoints(root / "run/retrain/checkpoints") as checkpoints:
        checkpoints.save(2, state, progress, metadata.to_json())
    config = defaults()
    config.space, config.space_options.factor = space, 3.0
    write_json(root / "run/config.json", {"config": to_dict(from_config_dict(config))})
    return root / "run"


def expected(images, factor=3.0):
    """Returns the probabilities of images uint8 [n, h, w, 3], computed in float64."""
    means = (images / 255 - np.array(MEAN)) / np.array(STD)
    logits = factor * means.mean(axis=(1, 2)) @ WEIGHTS.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_the_probabilities_of_arrays(tmp_path):
    # Would catch pixels that are not normalised as in training, options of the space that are
    # lost, and the images that fill up the last batch among the results.
    workdir, images = trained(tmp_path), noise(5, 6, 6, 3)
    classes, probabilities = drnas_jax.predict(workdir, images, batch_size=2)
    assert classes == ("cat", "dog")
    assert probabilities.dtype == np.float32
    # Sums of 36 pixels in float32, relative to logits of up to 10.
    np.testing.assert_allclose(probabilities, expected(images), rtol=1e-4, atol=1e-6)
    folder = workdir / "retrain/checkpoints"
    np.testing.assert_array_equal(drnas_jax.predict(folder, images, 2)[1], probabilities)


def test_checkpoints_without_their_workdir_have_the_options_by_default(tmp_path):
    # Would catch a folder of checkpoints that is of no use once it was copied.
    folder = trained(tmp_path) / "retrain/checkpoints"
    folder.rename(tmp_path / "copied")
    images = noise(2, 6, 6, 3)
    _, probabilities = drnas_jax.predict(tmp_path / "copied", images)
    np.testing.assert_allclose(probabilities, expected(images, 1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("crop", ["", "padded", "resized"])
def test_files_are_read_as_test_images_are(tmp_path, crop):
    # Would catch another size, another middle or other colours than those of the evaluation.
    sizes = [(6, 6)] * 4 if not crop else [(9, 13), (40, 31), (6, 6), (7, 6)]
    for split in ("train", "test"):
        for number, (height, width) in enumerate(sizes):
            folder = tmp_path / "images" / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            kind = "jpg" if number == 1 else "png"
            pixels = noise(height, width, 3)
            cv2.imwrite(str(folder / f"{number}.{kind}"), cv2.GaussianBlur(pixels, (5, 5), 0))
    config = defaults()
    config.data.update(dict(name="folder", dir=str(tmp_path / "images"), workers=1))
    config.data.update(dict(crop=crop or "padded", image_size=6 if crop else 0))
    dataset = data.load(from_config_dict(config).data)
    if crop == "resized":
        evaluated = np.arange(4, dtype=np.int32)
        schedule = Schedule(batch_size=4, seed=0, evaluated=evaluated, split="test")
        images = read_rows(dataset, schedule[0], evaluated, 0).images
        files = [dataset.source.test[i].name for i in range(4)]
    else:
        images = dataset.test_images
        files = sorted((tmp_path / "images/test").rglob("*.*"))
    workdir = trained(tmp_path, resized_for=dataset.resized_for)
    _, found = drnas_jax.predict(workdir, files)
    np.testing.assert_array_equal(found, drnas_jax.predict(workdir, images)[1])
    np.testing.assert_allclose(found, expected(images), rtol=1e-4, atol=1e-6)


def test_gray_images(tmp_path):
    # Would catch a colour photograph that a network for gray images refuses.
    workdir = trained(tmp_path, shape=(6, 6, 1), mean=(0.5,), std=(0.2,))
    cv2.imwrite(str(tmp_path / "photo.png"), noise(6, 6, 3))
    gray = cv2.imread(str(tmp_path / "photo.png"), cv2.IMREAD_GRAYSCALE)
    _, found = drnas_jax.predict(workdir, tmp_path / "photo.png")
    np.testing.assert_array_equal(found, drnas_jax.predict(workdir, gray[None, ..., None])[1])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("network"))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (noise(2, 6, 6, 1), r"images is uint8 \[2, 6, 6, 1\]: expected uint8 \[n, 6, 6, 3\]"),
        (noise(2, 8, 6, 3), r"images is uint8 \[2, 8, 6, 3\]"),
        (noise(6, 6, 3), r"images is uint8 \[6, 6, 3\]"),
        (np.zeros((2, 6, 6, 3)), r"images is float64 \[2, 6, 6, 3\]"),
        (noise(0, 6, 6, 3), "images has length 0"),
        ([], "images has length 0"),
        ({"x": 1}, "images is a dict"),
        ([3], "images is a list"),
        ("gone.png", "gone.png cannot be read"),
        (["text.png"], "text.png is not an image"),
        (["large.png"], "large.png has 7x9 pixels: expected 6x6"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, network, images, words):
    # Would catch images that are silently squeezed into the network, and tracebacks.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    cv2.imwrite("large.png", noise(7, 9, 3))
    with pytest.raises(UserError, match=words) as caught:
        drnas_jax.predict(network, images)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_trained_network_is_refused(tmp_path):
    # Would catch a search that seems to be a trained network.
    workdir = trained(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        drnas_jax.predict(tmp_path / "gone", noise(1, 6, 6, 3))
    with pytest.raises(UserError, match="batch_size is 0"):
        drnas_jax.predict(workdir, noise(1, 6, 6, 3), 0)
    (workdir / "retrain").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="has no trained network"):
        drnas_jax.predict(workdir, noise(1, 6, 6, 3))
    with Checkpoints(tmp_path / "search") as checkpoints:
        progress = Progress(2, 1.0, 1, jax.__version__, 8, 0, 1)
        checkpoints.save(2, {"alpha": jnp.zeros(1)}, progress, {"stage": 0})
    with pytest.raises(UserError, match="holds no checkpoint of retraining"):
        drnas_jax.predict(tmp_path / "search", noise(1, 6, 6, 3))


def test_a_value_above_the_white_of_the_training_images_is_refused(tmp_path):
    # Would catch advice to change the config of a run that has ended.
    workdir = trained(tmp_path, max_value=1000)
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((6, 6, 3), 1001, np.uint16))
    with pytest.raises(UserError, match=r"deep.png has a value above 1000.*: scale its values"):
        drnas_jax.predict(workdir, tmp_path / "deep.png")
