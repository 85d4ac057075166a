"""What the loop says of a run that goes on."""

from types import SimpleNamespace

import jax
import pytest

from drnas_jax import loop
from drnas_jax.metrics import append_history
from drnas_jax.sharding import make_mesh


@pytest.mark.parametrize(("lines", "lost"), [(3, 0), (2, 1), (0, 3)])
def test_lines_that_are_gone_are_told_of(tmp_path, lines, lost):
    for epoch in range(lines):
        append_history(tmp_path / "history.jsonl", {"epoch": epoch})
    mesh, closed, told = make_mesh(jax.devices()[:1]), [], []
    phase = SimpleNamespace(
        name="search",
        epochs=3,
        steps=4,
        mesh=mesh,
        reader=SimpleNamespace(go_on=lambda step: None, close=lambda: closed.append(True)),
    )
    display = SimpleNamespace(message=told.append)
    state = SimpleNamespace(step=12)  # all epochs are done
    found, progress = loop.run_phase(phase, state, loop.Progress(3, 1.0), tmp_path, None, display)
    assert found is state and progress.epochs_done == 3 and closed
    messages = [text for text in told if "lacks" in text]
    expected = [f"{tmp_path / 'history.jsonl'} lacks {lost} epochs' lines"] if lost else []
    assert messages == expected
