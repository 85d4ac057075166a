"""The labels that tell runs apart."""

import pytest
from finished_run import make

from drnas_jax.config import from_config_dict
from drnas_jax.configs import nasbench201
from drnas_jax.report.labels import differing_settings, group_seeds, label_runs
from drnas_jax.report.runs import read_run

RATE = from_config_dict(nasbench201.get_config("smoke")).search.lr


@pytest.fixture
def read(tmp_path):
    """Returns a function that makes runs, given the changes of each, and reads them."""

    def read(**runs):
        made = {name: make(tmp_path / name, tmp_path, **changes) for name, changes in runs.items()}
        return [read_run(path, name) for name, path in made.items()]

    return read


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        pytest.param(
            [dict(arch__regulariser="kl"), dict(arch__regulariser="none"), dict()],
            ["dirichlet, kl penalty", "dirichlet, no penalty", "dirichlet, l2 penalty"],
            id="penalties",
        ),
        pytest.param(
            [dict(arch__name="gumbel"), dict(search__lr=0.3), dict()],
            ["gumbel", "dirichlet, search.lr 0.3", f"dirichlet, search.lr {RATE:g}"],
            id="settings are named only where the methods agree",
        ),
        pytest.param(
            [dict(seed=4), dict(seed=5, data__workers=7), dict(arch__name="softmax")],
            ["dirichlet, seed 4", "dirichlet, seed 5", "softmax"],
            id="seeds are the last resort, and settings that change no result are no difference",
        ),
        pytest.param(
            [dict(), dict()],
            ["dirichlet, seed 0, run0", "dirichlet, seed 0, run1"],
            id="the same search twice",
        ),
        pytest.param(
            [dict(cost__name="macs", cost__target=7e4), dict()],
            ["dirichlet, cost.name macs, cost.target 70000", "dirichlet"],
            id="what is off is left out",
        ),
        pytest.param(
            [dict(search__epochs=(2, 1)), dict()],
            ["dirichlet, search.epochs (2, 1)", "dirichlet, search.epochs (3, 3)"],
            id="tuples",
        ),
    ],
)
def test_a_label_has_what_tells_its_run_apart(read, runs, labels):
    # Would catch two methods of one label, and a label that hides what was changed.
    made = read(**{f"run{i}": changes for i, changes in enumerate(runs)})
    assert list(label_runs(made).values()) == labels


def test_methods_that_differ_in_much_are_named_by_their_place(read):
    # Would catch labels that fill the figure.
    changes = dict(search__lr=0.3, search__weight_decay=0.01, search__momentum=0.5)
    changes["search__batch_size"] = 16
    runs = read(**{"a/seed0": {}, "a/seed1": dict(seed=1), "b/seed0": changes})
    assert list(group_seeds(runs)) == ["dirichlet, a", "dirichlet, b/seed0"]
    assert list(label_runs(runs).values()) == [
        "dirichlet, a, seed 0",
        "dirichlet, a, seed 1",
        "dirichlet, b/seed0",
    ]


def test_settings_that_differ_are_listed(read):
    # Would catch a table that mixes up its columns, or lists what changes no result.
    runs = read(a={}, b=dict(search__lr=0.3, data__workers=7, arch__name="gumbel"))
    rows = differing_settings(runs)
    assert ("search.lr", f"{RATE:g}", "0.3") in rows
    assert ("arch.name", "dirichlet", "gumbel") in rows
    assert not {"data.workers", "seed"} & {name for name, *_ in rows}
