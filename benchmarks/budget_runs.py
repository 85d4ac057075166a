"""Judges searches within a budget: `python benchmarks/budget_runs.py TABLE DIR ...`.

TABLE is the CSV file of NAS-Bench-Macro, and each DIR the workdir of a search with `cost.name=macs`
and a target. Prints a CSV line for each search. With `cost.weight=0` the target affects nothing but
the discretisation, so `--targets=30e6,45e6` also judges what the same search finds within these
targets. The columns beside those of the run:

- networks: Number of the table's networks that fit, which have at most `target` multiply-adds.
- best, best_accuracy, gap: The most accurate of them, and how far the found network is below it.
- lookups: Number of random networks among those that fit (drawn with replacement) of which the best
  is expected to be as accurate as the found one.
- largest, largest_accuracy: The one with most multiply-adds, and of equals the most accurate.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from drnas_jax import spaces
from drnas_jax.genotype import load
from drnas_jax.tables import nasbench_macro


def expected_best(accuracies: np.ndarray, n: float) -> float:
    """Returns the expected largest of n values that are drawn with replacement.

    Args:
      accuracies: Values to draw from, [networks].
      n: Number of draws; the closed form sum_i a_(i) ((i / N)^n - ((i - 1) / N)^n), of the values
        in ascending order, is defined for any number.
    """
    steps = np.arange(len(accuracies) + 1) / len(accuracies)
    return float(np.sum(np.sort(accuracies) * np.diff(steps**n)))


def lookups(accuracies: np.ndarray, accuracy: float) -> float:
    """Returns the number of draws whose expected best is an accuracy; see `expected_best`.

    It is below 1 for an accuracy below the mean, and infinite for one that no draw exceeds.
    """
    if accuracy >= accuracies.max():
        return math.inf
    most = 1.0
    while expected_best(accuracies, most) < accuracy:
        most *= 2
    return float(optimize.brentq(lambda n: expected_best(accuracies, n) - accuracy, 0, most))


def judge(table: nasbench_macro.NasBenchMacro, code: str, target: float) -> dict[str, Any]:
    """Returns how a network does among those of the table that have at most `target` MACs."""
    codes = list(table.rows)
    fit = np.flatnonzero(table.macs <= target)
    row, accuracies = table.rows[code], table.means[fit]
    best = fit[np.argmax(accuracies)]
    largest = fit[np.lexsort((accuracies, table.macs[fit]))[-1]]
    draws = lookups(accuracies, table.means[row])
    return {
        "macs": int(table.macs[row]),
        "accuracy": round(float(table.means[row]), 3),
        "networks": len(fit),
        "best": codes[best],
        "best_accuracy": round(float(table.means[best]), 3),
        "gap": round(float(table.means[best] - table.means[row]), 3),
        "lookups": draws if math.isinf(draws) else float(f"{draws:.3g}"),
        "largest": codes[largest],
        "largest_accuracy": round(float(table.means[largest]), 3),
    }


def cost_weight(workdir: Path) -> float:
    """Returns the factor of the expected cost in the loss of a search."""
    return float(json.loads((workdir / "config.json").read_text())["config"]["cost"]["weight"])


def derive(table: nasbench_macro.NasBenchMacro, workdir: Path, target: float) -> str:
    """Returns the code of the network that a search without a cost in its loss finds.

    All networks that fit are tried: it has the largest sum of the logarithms of the mean mixing
    weights after the last epoch.
    """
    if cost_weight(workdir):
        raise SystemExit(f"{workdir}: cost.weight is not 0, so each target needs its own search")
    line = json.loads((workdir / "search/history.jsonl").read_text().splitlines()[-1])
    concentrations = np.array(line["concentration"]["layers"])
    scores = np.log(concentrations / concentrations.sum(axis=1, keepdims=True))
    codes = [code for code, row in table.rows.items() if table.macs[row] <= target]
    return max(codes, key=lambda code: sum(scores[range(len(code)), [int(c) for c in code]]))


def main(argv: Sequence[str]) -> None:
    """Prints the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("workdirs", nargs="+", metavar="DIR")
    parser.add_argument("--commit", default="", help="commit of the package that searched")
    parser.add_argument("--targets", default="", help="further targets, with commas between")
    options = parser.parse_args(argv)
    table = nasbench_macro.load(options.table)
    space = spaces.create(table.space)
    lines = []
    for workdir in options.workdirs:
        file = Path(workdir) / "search/genotype.json"
        origin = json.loads(file.read_text())["provenance"]
        target, code = origin["cost"]["target"], space.describe(load(str(file)))
        judged = judge(table, code, target)
        if judged["macs"] != origin["cost"]["exact"]:
            raise SystemExit(f"{file}: {code} costs {judged['macs']} by the table: not this budget")
        judged_at = {target: (code, judged)}
        for each in map(float, filter(None, options.targets.split(","))):
            found = derive(table, Path(workdir), each)
            if each == target and found != code:
                raise SystemExit(f"{file}: the search chose {code}, and its last epoch {found}")
            judged_at[each] = (found, judge(table, found, each))
        for each, (found, values) in sorted(judged_at.items()):
            run = {"target": int(each), "weight": cost_weight(Path(workdir))}
            run |= {"seed": origin["seed"], "code": found}
            end = {"search_seconds": round(origin["search_seconds"]), "commit": options.commit}
            lines.append({**run, **values, **end})
    writer = csv.DictWriter(sys.stdout, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
