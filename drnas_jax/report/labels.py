"""The names of runs in tables and figures, made of what tells their configs apart."""

import os
from collections.abc import Sequence
from typing import Any

from drnas_jax.config import differences, leaves
from drnas_jax.report.runs import Run

_LONGEST = 60  # characters of the settings in a label
_OFF = ("", "0", "()", "none", "None", "False", "not set")  # values of settings, as texts
_NAMED = ("arch.name", "arch.regulariser")  # begin a label


def label_runs(runs: Sequence[Run]) -> dict[str, str]:
    """Returns a label for each run, by the name of the run.

    A label has the mixing distribution and, if the runs differ in it, the penalty; if that does
    not tell two runs apart, the settings in which they differ, and last the seed, as in
    `dirichlet, kl penalty, seed 1`.
    """
    labels = {}
    for label, group in group_seeds(runs).items():
        seeds = [run.config.seed for run in group]
        for run in group:
            same = seeds.count(run.config.seed) > 1  # the same search twice
            last = [f"seed {run.config.seed}"] * (len(group) > 1) + [run.name] * same
            labels[run.name] = ", ".join([label, *last])
    return labels


def group_seeds(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups the runs that differ in nothing but their seed, by labels that tell them apart."""
    groups: list[list[Run]] = []
    for run in runs:
        same = (group for group in groups if _differ_in_seeds(group[0], run))
        if group := next(same, None):
            group.append(run)
        else:
            groups.append([run])
    return dict(zip(_label_groups(groups), groups, strict=True))


def _label_groups(groups: Sequence[Sequence[Run]]) -> list[str]:
    firsts = [group[0] for group in groups]
    several = len({run.config.arch.regulariser for run in firsts}) > 1
    methods = [_method(run, several) for run in firsts]
    labels = []
    for group, method in zip(groups, methods, strict=True):
        alike = [run for run, other in zip(firsts, methods, strict=True) if other == method]
        settings = ", ".join(_settings(group[0], alike))
        if len(settings) > _LONGEST:
            settings = _place(group)
        labels.append(", ".join(filter(None, (method, settings))))
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label}, {_place(group)}" for label, group in zip(labels, groups, strict=True)]


def _method(run: Run, with_penalty: bool) -> str:
    arch = run.config.arch
    penalty = "no" if arch.regulariser == "none" else arch.regulariser
    return f"{arch.name}, {penalty} penalty" if with_penalty else arch.name


def _settings(run: Run, others: Sequence[Run]) -> list[str]:
    """Returns the settings of a run in which others, itself among them, are not all equal.

    What is off is left out: a label without `cost.target` is that of a run without one.
    """
    rows = differing_settings(others)
    number = next(i for i, other in enumerate(others) if other is run)
    return [
        f"{name} {values[number]}"
        for name, *values in rows
        if name not in _NAMED and values[number] not in _OFF
    ]


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Returns the fields in which runs differ and that change results, each with all values."""
    fields = [dict(leaves(run.described["config"])) for run in runs]
    return [
        (name, *(_text(values.get(name, "not set")) for values in fields))
        for name in dict.fromkeys(name for values in fields for name in values)
        if len({repr(values.get(name)) for values in fields}) > 1
        and name != "seed"
        and differences({name: 0}, {name: 1})
    ]


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({', '.join(map(_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(group: Sequence[Run]) -> str:
    """Returns the folder of the runs of a group, or the name of the only one."""
    return os.path.commonpath([run.name for run in group]) or group[0].name


def _differ_in_seeds(run: Run, other: Run) -> bool:
    """Returns whether two runs differ in nothing but their seed."""
    first, second = ({**each.described["config"], "seed": 0} for each in (run, other))
    return not differences(first, second)
