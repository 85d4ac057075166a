"""The single runs of a config with several targets and seeds."""

import pytest

from drnas_jax.config import (
    chosen_elements,
    defaults,
    differences,
    elements,
    from_config_dict,
    to_dict,
)
from drnas_jax.errors import UserError


def config(targets=(), **fields):
    values = defaults()
    values.cost.name = "macs" if targets else ""
    values.cost.targets = targets
    values.update_from_flattened_dict({n.replace("__", "."): v for n, v in fields.items()})
    return from_config_dict(values)


def test_all_seeds_of_the_first_target_come_first():
    # Would catch another order than the documented one, which array jobs count by.
    runs = elements(config((30e6, 1.5), seed=4, seeds=2))
    names = [f"cost_{target}/seed{seed}" for target in ("30000000", "1.5") for seed in (4, 5)]
    assert list(runs) == names
    expected = [(3e7, 4), (3e7, 5), (1.5, 4), (1.5, 5)]
    assert [(run.cost.target, run.seed) for run in runs.values()] == expected
    assert {(run.seeds, run.element, run.cost.targets) for run in runs.values()} == {(1, 0, ())}
    assert list(elements(config((30e6,)))) == ["cost_30000000"]
    assert list(elements(config(seeds=2))) == ["seed0", "seed1"]
    assert elements(config()) == {"": config()}


def test_an_element_is_the_run_of_the_whole_command():
    # Would catch elements that are counted from 0, or that differ from those of the command.
    whole = elements(config((30e6, 1.5), seeds=2))
    for number, (name, run) in enumerate(whole.items(), start=1):
        assert chosen_elements(config((30e6, 1.5), seeds=2, element=number)) == {name: run}
    assert chosen_elements(config((30e6, 1.5), seeds=2)) == whole
    one, all_ = (to_dict(config((30e6,), element=number)) for number in (1, 0))
    assert not differences(one, all_)


def test_different_targets_have_different_folders():
    # Would catch two runs in one folder, and names that a file system refuses.
    targets = (1e-300, 0.1, 0.1 + 1e-17, 0.1 + 2e-17, 3.0, 3.0000000000000004, 1e15, 1e300)
    targets = tuple(dict.fromkeys(targets))
    names = list(elements(config(targets)))
    assert len(set(names)) == len(targets) and max(map(len, names)) < 40
    assert [float(name.removeprefix("cost_")) for name in names] == list(targets)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(targets=(3e7, 3e7)), ["cost.targets", "3e+07 twice"]),
        (dict(targets=(3e7, 0.0)), ["cost.targets[1] is 0.0", "more than 0"]),
        (dict(targets=(3e7, -1.0)), ["cost.targets[1] is -1.0", "more than 0"]),
        (dict(targets=(3e7,), cost__name=""), ["cost.targets is (30000000.0,)", "cost.name"]),
        (dict(targets=(3e7,), cost__target=1e7), ["cost.target is 10000000.0", "cost.targets to"]),
        (dict(targets=(3e7,), retrain__max_macs=1e7), ["cost.targets is", "retrain.max_macs"]),
        (dict(targets=(3e7, 4e7), seeds=3, element=7), ["element is 7", "1 to 6"]),
        (dict(seeds=3, element=4), ["element is 4", "1 to 3"]),
        (dict(element=2), ["element is 2", "1 to 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_targets_and_elements_that_mean_nothing_are_refused(fields, words):
    # Would catch a sweep that silently searches less, or something else, than was asked for.
    with pytest.raises(UserError) as caught:
        config(**fields)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
