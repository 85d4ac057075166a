"""A run's history as interactive figures."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from drnas_jax.report.exploration import Explored, concentration_array

History = Sequence[Mapping[str, Any]]

_LINES = ("#1f6fb4", "#d1642c")
_BAND = "rgba(31, 111, 180, 0.15)"


def _figure(height: int, xaxis: str, yaxis: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin=dict(l=10, r=10, t=40, b=10),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
        font=dict(family="system-ui, sans-serif"),
        xaxis=dict(title=xaxis, automargin=True),
        yaxis=dict(title=yaxis, automargin=True),
    )
    return figure


def _line(name: str, x: Sequence[int], y: Sequence[float], colour: int | None = None) -> go.Scatter:
    """In one of our two colours, or (None) in the next of plotly's."""
    mode = "lines+markers" if len(x) < 30 else "lines"
    style = {} if colour is None else dict(color=_LINES[colour])
    return go.Scatter(x=x, y=y, name=name, mode=mode, line=style)


def _mark_stages(figure: go.Figure, history: History) -> None:
    """A vertical line where a stage begins, after the first."""
    for before, line in itertools.pairwise(history):
        if line.get("stage") != before.get("stage"):
            place = (before["epoch"] + line["epoch"]) / 2
            text = f"stage {line['stage']}"
            figure.add_vline(place, line_dash="dot", line_color="gray", annotation_text=text)


def curves(history: History) -> go.Figure:
    """Accuracy of every epoch in percent: on training images, and on those held out, if any."""
    figure = _figure(360, "epoch", "accuracy, %")
    epochs = [line["epoch"] for line in history]
    for colour, (name, key) in enumerate((("train", "train"), ("validation", "valid"))):
        if f"{key}_accuracy" in history[0]:
            values = [100 * line[f"{key}_accuracy"] for line in history]
            figure.add_trace(_line(name, epochs, values, colour))
    _mark_stages(figure, history)
    return figure


def entropy(history: History) -> go.Figure:
    """Of the mean mixing weights, averaged over edges, in nats."""
    figure = _figure(300, "epoch", "entropy, nats")
    epochs = [line["epoch"] for line in history]
    figure.add_trace(_line("entropy", epochs, [line["entropy"] for line in history], 0))
    figure.update_yaxes(rangemode="tozero")
    _mark_stages(figure, history)
    return figure


def compare(lines: Mapping[str, Mapping[int, float]], yaxis: str) -> go.Figure:
    """A line a run.

    Args:
      lines: name of a run -> epoch -> value.
      yaxis: what the values are.
    """
    figure = _figure(360, "epoch", yaxis)
    for name, values in lines.items():
        figure.add_trace(_line(name, list(values), list(values.values())))
    figure.update_layout(showlegend=True)
    return figure


def exploration(found: Sequence[Explored]) -> go.Figure:
    """The range of the cells drawn after each epoch, quartiles and median, and the mean's cell."""
    figure = _figure(380, "epoch", "true accuracy, %")
    epochs = [one.epoch for one in found]
    bounds = (
        ("range", [one.low for one in found], [one.high for one in found]),
        ("middle half", [one.quartiles[0] for one in found], [one.quartiles[2] for one in found]),
    )
    for name, low, high in bounds:
        edge = dict(x=epochs, mode="lines", line=dict(width=0), hoverinfo="skip")
        figure.add_trace(go.Scatter(y=low, showlegend=False, **edge))
        figure.add_trace(go.Scatter(y=high, name=name, fill="tonexty", fillcolor=_BAND, **edge))
    figure.add_trace(_line("median", epochs, [one.quartiles[1] for one in found], 0))
    figure.add_trace(_line("cell of the mean", epochs, [one.mean for one in found], 1))
    _mark_stages(figure, [one._asdict() for one in found])
    return figure


def concentrations(
    history: History, cell_type: str, edges: Sequence[str], primitives: Sequence[str]
) -> go.Figure:
    """Mean mixing weights of a cell type's edges as a heat map, with a slider over the epochs.

    Args:
      history: the lines of search/history.jsonl.
      cell_type: whose edges.
      edges: names of its edges.
      primitives: names of the operations.
    """
    all_rows = [concentration_array(line["concentration"][cell_type]) for line in history]
    means = [rows / np.nansum(rows, axis=1, keepdims=True) for rows in all_rows]
    frames = [
        go.Frame(
            name=str(line["epoch"]),
            data=go.Heatmap(
                z=mean,
                x=list(primitives),
                y=list(edges),
                customdata=rows,
                zmin=0,
                zmax=np.nanmax(means),
                colorscale="Blues",
                colorbar=dict(title="weight", thickness=12),
                hoverongaps=False,
                hovertemplate=(
                    "%{y} %{x}<br>mean weight %{z:.3f}<br>"
                    "concentration %{customdata:.3f}<extra></extra>"
                ),
            ),
        )
        for line, rows, mean in zip(history, all_rows, means, strict=True)
    ]
    figure = _figure(140 + 26 * len(edges), "", "")
    figure.add_trace(frames[-1].data[0])
    figure.frames = frames
    now = dict(mode="immediate", frame=dict(duration=0, redraw=True), transition=dict(duration=0))
    steps = [dict(method="animate", label=frame.name, args=[[frame.name], now]) for frame in frames]
    slider = dict(
        active=len(steps) - 1, steps=steps, currentvalue=dict(prefix="epoch "), pad=dict(t=60)
    )
    figure.update_layout(
        sliders=[slider],
        yaxis=dict(autorange="reversed", type="category"),
        xaxis=dict(type="category"),
    )
    return figure
