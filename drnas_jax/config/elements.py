"""The elements of a sweep: the single runs of a config that has several targets or seeds."""

import dataclasses

from drnas_jax.config.groups import Config

_LONGEST = 1e15  # larger whole numbers are written with an exponent, as names of folders are short


def elements(config: Config) -> dict[str, Config]:
    """Returns the single runs of a config by their directories, relative to its workdir.

    There is one run for each of `cost.targets` and each of `seeds`, in `cost_TARGET`, `seedN` or
    `cost_TARGET/seedN`. A config with one seed and without targets has one run, in ''.

    `config.element` counts the runs from 1 in the order of the result: all seeds of the first
    target, then those of the second one, and so on.
    """
    runs = {}
    for name, of_target in _of_each_target(config).items():
        for run in of_target.of_each_seed():
            below = f"seed{run.seed}" if config.seeds > 1 else ""
            runs["/".join(filter(None, (name, below)))] = dataclasses.replace(run, element=0)
    return runs


def chosen_elements(config: Config) -> dict[str, Config]:
    """Returns the run of `elements` that `config.element` selects, or all of them if it is 0."""
    runs = elements(config)
    if not config.element:
        return runs
    return dict([list(runs.items())[config.element - 1]])


def _of_each_target(config: Config) -> dict[str, Config]:
    """Returns the config of each target by its directory, or the config itself without targets."""
    if not config.cost.targets:
        return {"": config}
    costs = {
        f"cost_{_digits(target)}": dataclasses.replace(config.cost, target=target, targets=())
        for target in config.cost.targets
    }
    return {name: dataclasses.replace(config, cost=cost) for name, cost in costs.items()}


def _digits(target: float) -> str:
    """Returns a target as text, different for different targets: 30000000, 0.0015, 1e+20."""
    return f"{target:.0f}" if target.is_integer() and target < _LONGEST else repr(target)
