"""The comparison of onnxruntime and JAX runs on a small network."""

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

SCRIPT = Path(__file__).parents[2] / "benchmarks/onnx_speed.py"


@pytest.mark.slow
def test_all_programs_are_measured(monkeypatch, capsys):
    # Catches programs that compute different things, or an option that is not understood.
    arguments = ["--channels=4", "--cells=3", "--batches", "2", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    model, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert model["transposes"] == 1
    assert line["batch"] == 2
    assert min(line[name] for name in ("onnxruntime", "jax_auto", "jax_plain")) > 0
    assert line["relative_difference"] < 1e-5
