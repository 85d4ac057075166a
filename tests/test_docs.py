"""What the documents say is so: files exist, commands are understood, and worked examples run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import environment

from drnas_jax.errors import UserError
from drnas_jax.flags import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem[0] != "_"]
FILE = re.compile(
    r"\b(?:drnas_jax|configs|tests|launch|examples|docs)/(?:\w+/)*[\w-]+\.(?:py|sh|md|csv)\b"
)
COMMAND = re.compile(r"python -m drnas_jax\.\w+[^\n`;]*")


def blocks(page, *languages):
    """The code blocks of these languages, in order: (language, text)."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    return [pair for pair in fence.findall(page.read_text()) if pair[0] in languages]


def commands(page):
    """The commands of ours on a page, each on a line of its own."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    # In a sentence a command may be broken where the line is.
    text = re.sub(r"`([^`\n]*)\n([^`\n]*)`", r"`\1 \2`", text)
    return COMMAND.findall(text)


def test_the_pages_are_found():
    assert {"README.md", "own-data.md", "extending.md"} <= {page.name for page in PAGES}
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES + RECIPES, ids=lambda page: page.name)
def test_files_are_there(page):
    outputs = ("drnas_jax/mounts.sh",)  # the user's own
    for name in set(FILE.findall(page.read_text())) - {*outputs, "configs/NAME.py"}:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES + RECIPES, ids=lambda page: page.name)
def test_commands_are_understood(page):
    """Every flag of a config on a page is a field of it, and takes that value."""
    for command in commands(page):
        command = command.replace(",METHOD", ",darts")
        words = [word.strip("[]") for word in shlex.split(command) if word.startswith("--config")]
        words = [word for word in words if not re.search(r"(=[A-Z_]+|FIELD.*|\.\.\.|\$i)$", word)]
        if any(re.match(r"--config=configs/[a-z]", word) for word in words):
            try:
                parse(["main", *words], lambda values: None)
            except UserError as error:
                raise AssertionError(command) from error


def execute(page, folder, package):
    """Runs the Python and shell blocks of a page in order; Python's share their names.

    Args:
      page: of the documents.
      folder: where to.
      package: the folder in which drnas_jax lies.
    """
    script = ["import subprocess"]
    for language, text in blocks(page, "python", "sh"):
        if language == "sh":
            text = f"subprocess.run({text!r}, shell=True, check=True)\n"
        script.append(text)
    (folder / "page.py").write_text("\n".join(script))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env={**environment(), "PATH": path, "PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_own_data_as_the_page_says(tmp_path):
    execute(ROOT / "docs" / "own-data.md", tmp_path, ROOT)
    for name in ("smoke", "mine", "tfds"):
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert result["test_accuracy"] > 0.1


@pytest.mark.slow
def test_extensions_as_the_page_says(tmp_path):
    for name in ("drnas_jax", "configs", "tests", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    printed = execute(ROOT / "docs" / "extending.md", tmp_path, tmp_path)
    assert len(re.findall(r"\d+ passed", printed)) == 2
    for name in ("fixed_total", "chain"):
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert result["test_accuracy"] > 0.1


@pytest.mark.slow
def test_the_readmes_library_example(tmp_path):
    printed = execute(ROOT / "README.md", tmp_path, ROOT)
    assert 0.1 < float(printed.strip().splitlines()[-1]) <= 1


@pytest.mark.slow
def test_quickstart(tmp_path):
    script = ROOT / "examples" / "quickstart.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nepoch") == 16
    assert float(re.search(r"test accuracy (.*)%", done.stdout)[1]) > 90
