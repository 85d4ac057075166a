"""The section about the mixing weights: stage by stage, and when each operation was pruned."""

from collections.abc import Sequence

import numpy as np

from drnas_jax.report import figures
from drnas_jax.report.history import Epoch
from drnas_jax.report.markup import details, heading, plot, section, table, text
from drnas_jax.report.runs import Run

_LONG = 40  # edges of a table that is hidden until it is opened


def mixing_weights(run: Run) -> str:
    """Returns the section about the mixing weights of all edges over the epochs."""
    history = [line for line in run.search if line.scores]
    if not history:
        return ""
    words = "Mean weight of every operation on every edge; the slider moves over the epochs."
    parts = [text(words)]
    for cell_type in history[0].scores:
        figure = figures.mixing_weights(history, cell_type, run.edges[cell_type])
        parts += [heading(cell_type), plot(figure), _pruning(run, history, cell_type)]
    return section("Mixing weights", _stages(run, history), *parts)


def _stages(run: Run, history: Sequence[Epoch]) -> str:
    """Returns the stages that the search has reached, if there is more than one."""
    stages, begun = run.config.search.stages, history[-1].stage
    if len(stages) < 2:
        return ""
    rows, first = [], 1
    for number, stage in enumerate(stages[:begun], start=1):
        lines = [line for line in history if line.stage == number]
        kept = _operations(lines[0]) if lines else f"{stage.operations}"
        last = first + stage.epochs - 1
        rows.append((str(number), f"{first} to {last}", kept, str(stage.partial_channels)))
        first = last + 1
    return table(("stage", "epochs", "operations on an edge", "K"), rows)


def _operations(line: Epoch) -> str:
    """Returns how many operations the edges had at an epoch, for example `2 to 4`."""
    counts = [int(n) for scores in line.scores.values() for n in (~np.isnan(scores)).sum(axis=1)]
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _pruning(run: Run, history: Sequence[Epoch], cell_type: str) -> str:
    """Returns a table of the operations that are left, and of the last epochs of the others."""
    kept = np.stack([~np.isnan(line.scores[cell_type]) for line in history])  # [epochs, e, o]
    edges, chosen = run.edges[cell_type], _chosen(run, cell_type)
    if kept[-1].sum() == sum(map(len, edges.primitives)):
        return ""
    columns = list(dict.fromkeys(name for names in edges.primitives for name in names))
    rows, classes = [], []
    for number, (edge, names) in enumerate(zip(edges.names, edges.primitives, strict=True)):
        words, kinds = [edge], [""]
        for column in columns:
            word, kind = "", ""
            if column in names:
                present = np.flatnonzero(kept[:, number, names.index(column)])
                if len(present) and present[-1] == len(history) - 1:
                    in_result = (number, column) in chosen
                    word, kind = ("result", "chosen") if in_result else ("kept", "kept")
                else:
                    word, kind = str(history[present[-1]].epoch if len(present) else 0), "gone"
            words.append(word)
            kinds.append(kind)
        rows.append(words)
        classes.append(kinds)
    note = text("The last epoch of each operation that was pruned:")
    found = table(("edge", *columns), rows, classes)
    return note + (details(f"{len(rows)} edges", found) if len(rows) > _LONG else found)


def _chosen(run: Run, cell_type: str) -> set[tuple[int, str]]:
    """Returns the operations of the genotype, each with the number of its edge."""
    cells = dict(run.genotype.cells) if run.genotype else {}
    if cell_type not in cells:
        return set()
    space = run.space.cells[cell_type]
    pairs = {
        (node, source, name)
        for node, chosen in enumerate(cells[cell_type], start=space.inputs)
        for name, source in chosen
    }
    return {
        (number, name)
        for number, edge in enumerate(space.edges)
        for name in edge.primitives
        if (edge.target, edge.source, name) in pairs
    }
