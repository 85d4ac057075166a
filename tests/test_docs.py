"""The documents are correct: files exist, commands are accepted, and worked examples run."""

import hashlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from samplers import needs_tfp
from sklearn.datasets import load_sample_image
from small_run import environment
from test_extending import FILES, documented
from trained_run import config_of, make

import drnas_jax
from drnas_jax import components
from drnas_jax.config import schema
from drnas_jax.data.images import decode, fit
from drnas_jax.data.sources.base import Example
from drnas_jax.errors import UserError
from drnas_jax.flags import parse
from drnas_jax.training.metrics import Display

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [
    *(path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem[0] != "_"),
    *sorted((ROOT / "examples").glob("*.py")),
]
FILE = re.compile(
    r"\b(?:drnas_jax|configs|benchmarks|tests|launch|examples|docs)/(?:\w+/)*[\w-]+\.(?:py|sh|md|csv)\b"
)
COMMAND = re.compile(r"python -m drnas_jax\.\w+[^\n`;]*")


def blocks(page, *languages):
    """Returns the code blocks of these languages in order, as pairs of language and text."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    return [pair for pair in fence.findall(page.read_text()) if pair[0] in languages]


def commands(page):
    """Returns the commands of this package on a page, each as one line."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    # Within a sentence a command may continue on the next line.
    text = re.sub(r"`([^`\n]*)\n([^`\n]*)`", r"`\1 \2`", text)
    return COMMAND.findall(text)


def test_the_pages_are_found():
    # Would catch an empty list of pages, for which all tests below would pass.
    assert {"README.md", "own-data.md", "extending.md"} <= {page.name for page in PAGES}
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES + SCRIPTS, ids=lambda page: page.name)
def test_files_exist(page):
    # Would catch a path that was renamed or misspelt.
    outputs = ("drnas_jax/mounts.sh",)  # a file that the user writes
    for name in set(FILE.findall(page.read_text())) - {*outputs, "configs/NAME.py"}:
        assert (ROOT / name).exists(), name


def anchors(page):
    """Returns the anchors of the headings of a page, as MkDocs and GitHub name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", line).lower()) for line in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project(page):
    # Would catch a link to a page or to a heading that does not exist.
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        if "://" not in target:
            linked = page.parent / name if name else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@pytest.fixture
def with_examples(tmp_path, monkeypatch):
    """Makes the current directory one with the examples of the checkout and of the pages."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES + SCRIPTS, ids=lambda page: page.name)
def test_commands_are_accepted(page, with_examples):
    # Would catch a command with a flag that is not a field, or with a value that is refused.
    for command in commands(page):
        command = command.replace(",METHOD", ",darts")
        words = [word.strip("[]") for word in shlex.split(command) if word.startswith("--config")]
        words = [word for word in words if not re.search(r"(=[A-Z_]+|FIELD.*|\.\.\.|\$i)$", word)]
        if any(re.match(r"--config=configs/[a-z]", word) for word in words):
            try:
                parse(["main", *words], lambda values: None)
            except UserError as error:
                raise AssertionError(command) from error


def execute(page, folder):
    """Runs the Python and shell blocks of a page in order; the Python blocks share their names.

    Args:
      page: Path of the page.
      folder: Directory in which they run.

    Returns:
      Printed output of the blocks.
    """
    script = ["import subprocess"]
    for language, text in blocks(page, "python", "sh"):
        if language == "sh":
            text = f"subprocess.run({text!r}, shell=True, check=True)\n"
        script.append(text)
    (folder / "page.py").write_text("\n".join(script))
    return run(folder, sys.executable, "page.py")


def run(folder, *command):
    """Runs a command in a directory, with this Python and this checkout; returns its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(), "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("variant", ["", ":full", ":smoke"])
def test_the_recipe_for_photographs_of_the_page_is_accepted(tmp_path, monkeypatch, variant):
    # Would catch a field that is misspelt, and fields that cannot be combined.
    texts = [text for _, text in blocks(ROOT / "docs" / "own-data.md", "python")]
    (text,) = (text for text in texts if "my_photos.py" in text)
    monkeypatch.chdir(tmp_path)
    exec(text, {"Path": Path})
    config, _, _ = parse(["main", f"--config=my_photos.py{variant}"], lambda values: None)
    assert (config.data.name, config.cost.target, config.cost.image_size) == ("folder", 600e6, 224)
    assert (config.search.batch_size, config.search.alpha_fraction) == (
        32 if "sm" in variant else 64,
        0,
    )


@pytest.mark.slow
def test_own_data_as_the_page_describes(tmp_path):
    # Would catch a step of the page that fails or does not lead to a result.
    execute(ROOT / "docs" / "own-data.md", tmp_path)
    for name in ("smoke", "mine", "arrays"):
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert result["test_accuracy"] > 0.1


@pytest.mark.slow
def test_a_tfds_set_as_the_page_describes(tmp_path):
    # Would catch a builder that TFDS refuses, or a prepared set that cannot be read.
    execute(ROOT / "docs" / "data-formats.md", tmp_path)
    result = json.loads((tmp_path / "runs/tfds/result.json").read_text())
    assert result["test_accuracy"] > 0.1


@pytest.mark.slow
def test_a_budget_as_the_page_describes(tmp_path):
    # Would catch a result above its target, costs that differ between files, or a table of no use.
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    execute(ROOT / "docs" / "budget.md", tmp_path)
    results, costs = {}, {}
    for name in ("small", "device"):
        workdir = tmp_path / "runs" / name
        results[name] = json.loads((workdir / "result.json").read_text())
        found = json.loads((workdir / "search" / "genotype.json").read_text())
        costs[name] = found["provenance"]["cost"]
        assert results[name]["cost"] == costs[name]["exact"] <= costs[name]["target"]
        assert costs[name]["exact"] > 0
    assert results["small"]["cost"] == results["small"]["macs"] <= 300_000
    assert (costs["small"]["unit"], costs["device"]["unit"]) == ("multiply-adds", "seconds")
    front = json.loads((tmp_path / "runs/front/front.json").read_text())
    assert (front["cost"], front["accuracy"], front["missing"]) == ("macs", "test", [])
    assert [point["target"] for point in front["points"]] == [150_000, 300_000]
    assert all(0 < point["cost"] <= point["target"] for point in front["points"])
    largest = front["reference"]["cost"]
    assert front["front"] and 0 < front["hypervolume"] <= 90 * largest
    lines = (tmp_path / "runs/small/search/history.jsonl").read_text().splitlines()
    assert all(json.loads(line)["expected_cost"] > 0 for line in lines)


@pytest.mark.slow
def test_an_export_as_the_page_describes(tmp_path):
    pytest.importorskip("onnxruntime")
    # Would catch an example that does not load what the command writes, or a card that is wrong.
    page, folder = ROOT / "docs" / "export.md", tmp_path / "runs/digits/export"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    printed = execute(page, tmp_path)
    card = json.loads((folder / "card.json").read_text())
    assert printed.strip().splitlines()[-1].count("'") == 2 * 5  # the classes of five images
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    assert card["accuracy"]["test_accuracy"] == result["test_accuracy"]
    assert card["network"]["params"] == result["params"]
    names = [entry["name"] for entry in card["files"]]
    assert names == ["model.stablehlo", "model.onnx", "model.npz", "model.safetensors"]
    for entry in card["files"]:
        content = (folder / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
    # PyTorch is not installed: its examples must at least be Python, and the tensors complete.
    snippets = blocks(ROOT / "docs" / "pytorch.md", "py")
    assert len(snippets) == 2
    execute(ROOT / "docs" / "pytorch.md", tmp_path)
    for _, text in snippets:
        compile(text, "pytorch.md", "exec")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    with np.load(folder / "model.npz") as arrays:
        assert {name: value.tobytes() for name, value in arrays.items()} == {
            name: value.tobytes() for name, value in tensors.items()
        }
    learned = [v for name, v in tensors.items() if not re.search(r"running_|num_batches", name)]
    assert sum(map(np.size, learned)) == result["params"]
    # The format of the page, by the command of the page.
    (text,) = (text for _, text in blocks(page, "python") if "my_format.py" in text)
    (tmp_path / "my_format.py").write_text(text)
    command = next(each for each in commands(page) if "my_format.py" in each)
    run(tmp_path, "bash", "-c", command)
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["card.json", "sizes.txt"]
    sizes = [
        int(line.rpartition(" ")[2]) for line in (folder / "sizes.txt").read_text().split("\n")
    ]
    assert sum(sizes) > result["params"]  # with batch statistics


@pytest.mark.slow
def test_all_components_of_the_page_run_together(with_examples):
    # Would catch an example whose code fails only when it runs, or whose result is not used.
    ((_, command),) = blocks(ROOT / "docs" / "extending.md", "sh")
    run(with_examples, "bash", "-c", command)
    workdir = with_examples / "runs" / "mine"
    result = json.loads((workdir / "result.json").read_text())
    assert result["genotype"]["space"] == "my_space"
    assert result["test_accuracy"] > 0.1
    assert result["table"]["digits"] > 80
    recorded = json.loads((workdir / "config.json").read_text())["components"]
    assert sorted([*(each["name"] for each in recorded.values()), "my_writer.py"]) == sorted(FILES)
    first, *_ = (workdir / "search" / "history.jsonl").read_text().splitlines()
    assert json.loads(first)["expected_cost"] > 9
    losses = (workdir / "search" / "losses.csv").read_text().splitlines()
    assert float(losses[0].split(",")[1]) == json.loads(first)["train_loss"]


def named(name):
    """Returns the object with a full name, such as `drnas_jax.errors.UserError`."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_the_reference_has_what_users_may_import():
    # Would catch a public function without reference or example, and a name that does not exist.
    page = ROOT / "docs" / "api.md"
    listed = {id(named(name)) for name in re.findall("^::: (.*)$", page.read_text(), re.M)}
    public = {f"drnas_jax.{name}" for name in drnas_jax.__all__}
    for name in documented() | public:
        assert id(named(name)) in listed, name
    code = "".join(text for _, text in blocks(page, "python"))
    for name in drnas_jax.__all__:
        assert f"{name}(" in code, name


def test_the_reference_has_all_fields():
    # Would catch a table that lacks a group of fields, or is not where the page has its mark.
    hooks = components.import_file(ROOT / "docs" / "hooks.py")
    page = hooks.on_page_markdown((ROOT / "docs" / "api.md").read_text())
    for name, field in schema():
        assert re.search(rf"^\| `{re.escape(name)}` \| .* \| .+ \|$", page, re.M), name
        assert field.metadata["meaning"].replace("|", "\\|") in page


@needs_tfp
@pytest.mark.slow
def test_the_examples_of_the_reference(tmp_path):
    # Would catch an example that fails, or a search whose result is not what was loaded.
    printed = execute(ROOT / "docs" / "api.md", tmp_path)
    assert "nasbench201" in printed
    assert "config field search.lr is -1.0: expected at least 0" in printed
    assert 0 <= float(re.search(r"parameters, test accuracy (.*)", printed)[1]) <= 1


@needs_tfp
@pytest.mark.slow
def test_the_library_example_of_the_first_search(tmp_path):
    # Would catch an example that fails, or prints something else than an accuracy.
    printed = execute(ROOT / "docs" / "first-search.md", tmp_path)
    assert 0.1 < float(printed.strip().splitlines()[-1]) <= 1


@needs_tfp
@pytest.mark.slow
def test_quickstart(tmp_path):
    # Would catch a script that fails, or finds nothing better than chance.
    script = ROOT / "examples" / "quickstart.py"
    printed = run(tmp_path, sys.executable, str(script), "run")
    assert printed.count("\nepoch") == 16
    assert float(re.search(r"test accuracy (.*)% with", printed)[1]) > 90


def test_a_photo_is_classified_as_the_page_describes(tmp_path, monkeypatch, capsys):
    # Would catch another order of colours, side or crop than that of test images, and properties
    # of the ONNX model that differ from the card.
    pytest.importorskip("onnxruntime")
    ((_, text),) = blocks(ROOT / "docs" / "deploying.md", "py")
    monkeypatch.chdir(tmp_path)
    settings = dict(export__formats=("onnx",), export__batch_size=1)
    config = config_of(space=str(ROOT / "tests/small_space.py"), **settings)
    make(Path("runs/photos"), config, shape=(224, 224, 3), resized_for="padded")
    card = drnas_jax.export(config, "runs/photos", display=Display(quiet=True)).card
    pixels = load_sample_image("china.jpg")  # 427x640
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.fromarray(pixels).save("photo.jpg", exif=exif, quality=95)
    exec(compile(text, "deploying.md", "exec"), names := {})
    for name, value in names["properties"].items():
        known = {**card["input"], **card}[name]
        assert (value if isinstance(known, str) else json.loads(value)) == known
    example = Example(Path("photo.jpg").read_bytes(), 0, "photo")
    expected = fit(decode(example, channels=3), 224)
    assert np.abs(names["pixels"].astype(int) - expected).mean() < 1.5
    classes, probabilities = drnas_jax.predict("runs/photos", "photo.jpg")
    assert capsys.readouterr().out == f"{classes[probabilities.argmax()]}\n"
    shares = np.exp(names["logits"] - names["logits"].max())
    np.testing.assert_allclose(shares / shares.sum(), probabilities, atol=0.01)
