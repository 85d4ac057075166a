"""Interactive figures of a run's history."""

import html
import itertools
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from drnas_jax.phases.search.comparison import Comparison
from drnas_jax.report.exploration import Explored
from drnas_jax.report.front import KINDS, Front
from drnas_jax.report.history import Edges, Epoch

_COLOURS = ("#1f6fb4", "#d1642c")
_LEGEND = 40  # characters of a line in a legend that a telephone shows
_BAND = "rgba(31, 111, 180, 0.15)"


def curves(history: Sequence[Epoch]) -> go.Figure:
    """Draws the accuracies on training and validation images, in percent, over the epochs."""
    figure = _figure(360, "epoch", "accuracy, %")
    for colour, (name, field) in enumerate(
        (("training", "train_accuracy"), ("validation", "valid_accuracy"))
    ):
        percents = {epoch: 100 * value for epoch, value in _values(history, field).items()}
        if percents:
            figure.add_trace(_line(name, percents, colour))
    _mark_stages(figure, history)
    return figure


def entropy(history: Sequence[Epoch]) -> go.Figure:
    """Draws the entropy of the mean mixing weights, in nats, over the epochs."""
    figure = _figure(300, "epoch", "entropy, nats")
    if values := _values(history, "entropy"):
        figure.add_trace(_line("entropy", values, 0))
    figure.update_yaxes(rangemode="tozero")
    _mark_stages(figure, history)
    return figure


def expected_cost(history: Sequence[Epoch], target: float) -> go.Figure:
    """Draws the expected cost of the mean mixing weights over the epochs.

    Args:
      history: Epochs of a search.
      target: Largest cost of the result, drawn as a line of its own; 0 for none.
    """
    figure = _figure(300, "epoch", "expected cost")
    if values := _values(history, "expected_cost"):
        figure.add_trace(_line("expected cost", values, 0))
        if target:
            figure.add_trace(_line("cost.target", dict.fromkeys(values, target), 1))
    _mark_stages(figure, history)
    return figure


def compare(lines: Mapping[str, Mapping[int, float]], yaxis: str) -> go.Figure:
    """Draws one line for each run.

    Args:
      lines: Values by epoch, for each name of a run.
      yaxis: Title of the vertical axis.
    """
    names = {name: textwrap.wrap(name, _LEGEND) for name in lines}
    figure = _figure(340 + 20 * sum(map(len, names.values())), "epoch", yaxis)
    for name, values in lines.items():
        figure.add_trace(_line("<br>".join(map(html.escape, names[name])), values))
    figure.update_layout(showlegend=True)
    return figure


def front(front: Front) -> go.Figure:
    """Draws accuracies over costs: each run, the found networks' front, and the true one.

    Args:
      front: Front of a sweep.
    """
    figure = _figure(420, f"cost, {front.unit}", f"{KINDS[front.kind]}, %")
    steps = dict(mode="lines", line_shape="hv")  # what the cheaper network reaches, up to the next
    if front.true is not None:
        costs, accuracies = front.true.T
        colour = dict(color=_COLOURS[1])
        figure.add_trace(go.Scatter(x=costs, y=accuracies, name="true front", line=colour, **steps))
    colour = dict(color=_COLOURS[0])
    best, points = front.best, front.points
    x, y = [point.cost for point in best], [point.accuracy for point in best]
    figure.add_trace(go.Scatter(x=x, y=y, name="front of the runs", line=colour, **steps))
    x, y = [point.cost for point in points], [point.accuracy for point in points]
    text = [html.escape(f"{point.name}: {point.genotype}") for point in points]
    dots = dict(mode="markers", marker=colour, text=text, hovertemplate="%{text}<br>%{x}, %{y}")
    figure.add_trace(go.Scatter(x=x, y=y, name="runs", **dots))
    return figure


def runs(groups: Mapping[str, Mapping[str, float]], yaxis: str) -> go.Figure:
    """Draws every run as a point, and the mean of every group as a line.

    Args:
      groups: Values by the name of the run, for the name of each group.
      yaxis: Title of the vertical axis.
    """
    figure = _figure(360, "", yaxis)
    rng = np.random.default_rng(0)
    for number, values in enumerate(groups.values()):
        x = number + rng.uniform(-0.12, 0.12, len(values))  # equal values stay visible
        dots = dict(mode="markers", marker=dict(color=_COLOURS[0], size=9, opacity=0.7))
        text = [html.escape(name) for name in values]
        hover = "%{text}: %{y:.2f}<extra></extra>"
        y = list(values.values())
        figure.add_trace(go.Scatter(x=x, y=y, text=text, hovertemplate=hover, **dots))
        if len(values) > 1:
            mean = [float(np.mean(y))] * 2
            line = dict(mode="lines", line=dict(color=_COLOURS[1], width=3))
            span = [number - 0.25, number + 0.25]
            hover = "mean %{y:.2f}<extra></extra>"
            figure.add_trace(go.Scatter(x=span, y=mean, hovertemplate=hover, **line))
    ticks = [html.escape(name).replace(", ", "<br>") for name in groups]
    axis = dict(tickvals=list(range(len(groups))), ticktext=ticks, zeroline=False)
    figure.update_xaxes(range=[-0.6, len(groups) - 0.4], **axis)
    figure.update_layout(showlegend=False)
    return figure


def beside_random(compared: Comparison) -> go.Figure:
    """Draws the accuracies of random cells in the supernet, and that of the result, in percent."""
    figure = _figure(220, "validation accuracy in the supernet, %", "")
    random = 100 * np.array(compared.random)
    y = np.random.default_rng(0).uniform(-1, 1, len(random))
    dots = dict(mode="markers", marker=dict(color="gray", size=8, opacity=0.6))
    hover = "%{x:.2f} %<extra></extra>"
    figure.add_trace(go.Scatter(x=random, y=y, name="random cells", hovertemplate=hover, **dots))
    star = dict(mode="markers", marker=dict(color=_COLOURS[1], size=16, symbol="diamond"))
    x = [100 * compared.accuracy]
    figure.add_trace(go.Scatter(x=x, y=[0], name="the result", hovertemplate=hover, **star))
    figure.update_yaxes(visible=False, range=[-2, 2])
    return figure


def confusion_matrix(confusion: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """Draws which share of each true class is taken for each class, in percent.

    Args:
      confusion: Number of images by true and by predicted class, [classes, classes].
      classes: Names of the classes.
    """
    images = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    share = 100 * confusion / images
    names = _distinct([html.escape(name[:24]) for name in classes])
    figure = _figure(160 + 22 * len(names), "predicted", "true")
    figure.add_trace(
        go.Heatmap(
            z=share,
            x=names,
            y=names,
            customdata=confusion,
            zmin=0,
            zmax=100,
            colorscale="Blues",
            colorbar=dict(title="%", thickness=12),
            hovertemplate=(
                "%{y} taken for %{x}<br>%{customdata} images, %{z:.1f} %<extra></extra>"
            ),
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return figure


def exploration(explored: Sequence[Explored]) -> go.Figure:
    """Draws the range and quartiles of the cells drawn after each epoch, and the mean's cell."""
    figure = _figure(380, "epoch", "true accuracy, %")
    epochs = [epoch.epoch for epoch in explored]
    bands = (
        ("range", [epoch.low for epoch in explored], [epoch.high for epoch in explored]),
        (
            "middle half",
            [epoch.quartiles[0] for epoch in explored],
            [epoch.quartiles[2] for epoch in explored],
        ),
    )
    for name, low, high in bands:
        edge = dict(x=epochs, mode="lines", line=dict(width=0), hoverinfo="skip")
        figure.add_trace(go.Scatter(y=low, showlegend=False, **edge))
        figure.add_trace(go.Scatter(y=high, name=name, fill="tonexty", fillcolor=_BAND, **edge))
    figure.add_trace(_line("median", {epoch.epoch: epoch.quartiles[1] for epoch in explored}, 0))
    figure.add_trace(_line("cell of the mean", {epoch.epoch: epoch.mean for epoch in explored}, 1))
    _mark_stages(figure, explored)
    return figure


def mixing_weights(history: Sequence[Epoch], cell_type: str, edges: Edges) -> go.Figure:
    """Draws the mean mixing weights of a cell type as a heat map with a slider over the epochs.

    A row is an edge, and a column is a primitive of any edge; it is blank for an edge that lacks
    the primitive.

    Args:
      history: Epochs of a search, all with scores.
      cell_type: Name of the cell type.
      edges: Edges of this cell type.
    """
    columns = list(dict.fromkeys(itertools.chain(*edges.primitives)))
    scores = [_by_column(line.scores[cell_type], edges, columns) for line in history]
    means = [rows / np.nansum(rows, axis=1, keepdims=True) for rows in scores]
    frames = [
        go.Frame(
            name=str(line.epoch),
            data=go.Heatmap(
                z=mean,
                x=columns,
                y=_distinct(edges.names),
                customdata=rows,
                zmin=0,
                zmax=1,
                colorscale="Blues",
                colorbar=dict(title="weight", thickness=12),
                hoverongaps=False,
                hovertemplate=(
                    "%{y} %{x}<br>mean weight %{z:.3f}<br>score %{customdata:.3f}<extra></extra>"
                ),
            ),
        )
        for line, rows, mean in zip(history, scores, means, strict=True)
    ]
    figure = _figure(140 + 26 * len(edges.names), "", "")
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


def _figure(height: int, xaxis: str, yaxis: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        height=height,
        dragmode=False,  # on a touch screen dragging moves the page
        margin=dict(l=10, r=10, t=40, b=10),
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
        font=dict(family="system-ui, sans-serif"),
        xaxis=dict(title=xaxis, automargin=True),
        yaxis=dict(title=yaxis, automargin=True),
    )
    return figure


def _line(name: str, values: Mapping[int, float], colour: int | None = None) -> go.Scatter:
    """Returns a line through values by epoch, in one of `_COLOURS` or in plotly's next colour."""
    mode = "lines+markers" if len(values) < 30 else "lines"
    style = {} if colour is None else dict(color=_COLOURS[colour])
    return go.Scatter(x=list(values), y=list(values.values()), name=name, mode=mode, line=style)


def _values(history: Sequence[Epoch], field: str) -> dict[int, float]:
    """Returns the values of a field by epoch, without the epochs that lack it."""
    values = {line.epoch: getattr(line, field) for line in history}
    return {epoch: value for epoch, value in values.items() if value is not None}


def _mark_stages(figure: go.Figure, history: Sequence[Epoch | Explored]) -> None:
    """Adds a vertical line at the beginning of each stage but the first."""
    for before, line in itertools.pairwise(history):
        if line.stage != before.stage:
            x, text = (before.epoch + line.epoch) / 2, f"stage {line.stage}"
            figure.add_vline(x, line_dash="dot", line_color="gray", annotation_text=text)


def _by_column(scores: np.ndarray, edges: Edges, columns: Sequence[str]) -> np.ndarray:
    """Returns scores [e, o] in the order of the columns, nan for an edge without the primitive."""
    rows = np.full((len(scores), len(columns)), np.nan)
    for edge, names in enumerate(edges.primitives):
        rows[edge, [columns.index(name) for name in names]] = scores[edge, : len(names)]
    return rows


def _distinct(names: Sequence[str]) -> list[str]:
    """Numbers repeated names, since plotly draws rows of the same name over each other."""
    counts, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return distinct
