"""The notebook can be read without running it, and runs from its beginning to its end."""

import json
import re
from pathlib import Path

import pytest
from small_run import environment

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "notebook.ipynb"


def texts(output):
    """Returns the text of an output of a cell, whatever its kind."""
    return "".join(output.get("text", "")) + json.dumps(output.get("data", {}))


def test_the_notebook_is_small_and_shows_its_results():
    # Would catch a notebook without pictures, with an error, or that names the author's machine.
    content = FILE.read_text()
    assert len(content) < 300_000
    cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(
        output["output_type"] in ("stream", "display_data", "execute_result") for output in outputs
    )
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 4
    shown = " ".join(map(texts, outputs))
    assert re.search(r"test accuracy 9\d", shown)
    assert not re.search(r"/(tmp|home|work|root)/", shown)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    # Would catch a cell that fails, or a network that finds nothing.
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as for a user
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(FILE, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    shown = " ".join(texts(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert float(re.search(r"test accuracy ([\d.]+)%", shown)[1]) > 85
    assert "model.stablehlo" in shown
