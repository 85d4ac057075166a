"""Places cells of the DARTS space among random ones: `python benchmarks/surrogate_rank.py CSV ...`.

CSV has random cells and the accuracies that a surrogate such as NAS-Bench-301 gives them, in the
columns `normal`, `reduce` (operation~source, two for each node) and `val_accuracy`. Each further
argument is a genotype, in any form that `config.genotype` takes: a file, a name or the text itself.

Two regressions predict the accuracy from which operation is on which edge: a ridge regression and
gradient-boosted trees. Prints the Spearman rank correlation of each with the accuracies of cells
that it was not fitted to (five folds), and for each genotype what the better one predicts, and the
share of the random cells whose prediction is lower.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from drnas_jax import spaces
from drnas_jax.genotype import Cell, Genotype
from drnas_jax.spaces.base import one_hot

SPACE = spaces.create("darts")


def parse(text: str) -> Cell:
    """Returns the cell of a column: `operation~source` eight times, two for each node."""
    pairs = [(name, int(source)) for name, source in (word.split("~") for word in text.split())]
    return tuple(tuple(pairs[i : i + 2]) for i in range(0, len(pairs), 2))


def features(genotype: Genotype) -> np.ndarray:
    """Returns which operation each edge has, and how many edges of a cell have each operation.

    Returns:
      float [2 cells * (14 edges + 1) * 7 operations].
    """
    kept = one_hot(SPACE.cells, genotype).values()
    return np.concatenate([np.concatenate([each.ravel(), each.sum(0)]) for each in kept])


def regressions() -> dict[str, BaseEstimator]:
    """Returns the regressions that are compared; none was tuned."""
    return {
        "ridge": RidgeCV(alphas=np.logspace(-2, 3, 11)),
        "trees": HistGradientBoostingRegressor(learning_rate=0.05, max_iter=300, random_state=0),
    }


def main(table: str, genotypes: Sequence[str]) -> None:
    """Prints a JSON line for each regression and each genotype."""
    with Path(table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [tuple((name, parse(row[name])) for name in SPACE.cells) for row in rows]
    x = np.array([features(Genotype("darts", each)) for each in cells])
    y = np.array([float(row["val_accuracy"]) for row in rows])
    folds = KFold(5, shuffle=True, random_state=0)
    outside = {
        name: cross_val_predict(each, x, y, cv=folds) for name, each in regressions().items()
    }
    correlations = {name: float(stats.spearmanr(each, y)[0]) for name, each in outside.items()}
    for name, value in correlations.items():
        print(json.dumps({"regression": name, "cells": len(y), "spearman": round(value, 3)}))
    best = max(correlations, key=correlations.__getitem__)
    fitted = regressions()[best].fit(x, y)
    for text in genotypes:
        genotype = spaces.load_genotype(text)
        spaces.check_genotype(genotype, SPACE)
        value = float(fitted.predict(features(genotype)[None])[0])
        lower = float(np.mean(outside[best] < value))
        line = {"genotype": text, "predicted": round(value, 2), "share_lower": round(lower, 3)}
        print(json.dumps(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", metavar="CSV")
    parser.add_argument("genotypes", nargs="*", metavar="GENOTYPE")
    options = parser.parse_args()
    main(options.table, options.genotypes)
