"""Compares the search steps of the methods: `python benchmarks/method_times.py --config=FILE`.

Every method gets the supernet, the batch size and K of the config's first stage. Their warm steps
alternate in one process, `--rounds=N` times after a first one that is not counted. Prints a
Markdown table: the median step in seconds, and the median and the extremes of its ratio to the
step of the first method, DrNAS, in the same round. `--methods=darts,snas` takes only these.

Rules have no part in a step. The last line has the time of one measurement of the curvature on one
batch, which the rule `curvature` takes after some epochs.
"""

import statistics
import sys
import time
from collections.abc import Sequence

from absl import flags, logging

from drnas_jax.config import Config, from_config_dict, plain, to_config_dict
from drnas_jax.configs.nasbench201 import METHODS
from drnas_jax.errors import UserError, check_choice
from drnas_jax.flags import parse
from drnas_jax.phases.search.diagnostics import Diagnostics
from drnas_jax.phases.search.experiment import Experiment, state_at
from drnas_jax.tools.bench import Timer, step_case, synthetic
from drnas_jax.training import devices

STEP_FIELDS = ("arch.name", "arch.regulariser")  # those of METHODS that a step depends on


def by_method(config: Config) -> dict[str, Config]:
    """Returns the configs whose steps differ, each by the name of the first method that has it."""
    values, names = plain(config), {}
    for name, fields in METHODS.items():
        if "genotype" not in fields:
            names.setdefault(tuple((k, fields[k]) for k in STEP_FIELDS if k in fields), name)
    found = {}
    for fields, name in names.items():
        method = dict(name="dirichlet", options={}, regulariser="l2", regulariser_options={})
        changed = to_config_dict({**values, "arch": {**values["arch"], **method}})
        changed.update_from_flattened_dict(dict(fields))
        found[name] = from_config_dict(changed)
    return found


def curvature_s(config: Config) -> tuple[float, float]:
    """Returns the seconds of the first and of the second measurement of the curvature."""
    dataset = synthetic(config, config.search.batch_size)
    experiment = Experiment(config, dataset, devices.make_mesh())
    spec, start = state_at(experiment, 1)
    diagnostics, state = Diagnostics(experiment, spec), devices.replicate(start, experiment.mesh)
    times = [time.perf_counter()]
    for _ in range(2):
        diagnostics.curvature(state, 0, 1)
        times.append(time.perf_counter())
    return times[1] - times[0], times[2] - times[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code, which is 2 after a mistake in the command line."""
    logging.set_verbosity(logging.ERROR)

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("rounds", 6, "rounds that count", 1, flag_values=values)
        flags.DEFINE_list("methods", [], "methods; empty: all", flag_values=values)

    try:
        config, values, rest = parse(sys.argv if argv is None else argv, define)
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}")
        configs = by_method(config)
        for name in values.methods:
            check_choice("method", name, configs)
        chosen = {name: configs[name] for name in configs if name in (values.methods or configs)}
        timers = {name: Timer(step_case(each, 1)) for name, each in chosen.items()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rounds = [{name: t.step() for name, t in timers.items()} for _ in range(values.rounds + 1)][1:]
    first = next(iter(timers))
    print(f"| method | step, s | ratio to {first} | from, to |\n|---|---|---|---|")
    for name in timers:
        ratios = [each[name] / each[first] for each in rounds]
        step = statistics.median(each[name] for each in rounds)
        middle = statistics.median(ratios)
        print(f"| {name} | {step:.4g} | {middle:.2f} | {min(ratios):.2f}, {max(ratios):.2f} |")
    cold, warm = curvature_s(configs["darts"])
    print(f"\nA measurement of the curvature takes {warm:.1f} s, the first one {cold:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
