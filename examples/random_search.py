r"""Random search: takes the best of the random cells that were trained apart.

    python -m drnas_jax.main --config=configs/nasbench201.py:random_search --workdir=DIR \
        --phases=retrain
    python examples/random_search.py DIR

The first command trains one random cell for each seed, on a part of the training images
(`retrain.train_fraction`); the second one compares their accuracies on the others and writes the
best cell to DIR/best.json. Any config serves that has several `seeds` and the
`genotype` 'random'. `--config.genotype=DIR/best.json --phases=retrain,evaluate` with another config
and workdir trains the best cell on all images.
"""

import sys
from pathlib import Path

from drnas_jax import spaces
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype, save
from drnas_jax.report.runs import Run, begun_elements, read_run


def main(workdir: str) -> None:
    """Prints the validation accuracy of each cell, and saves the best cell."""
    runs = [read_run(path, path.name) for path in begun_elements(Path(workdir))]
    accuracies = [valid_accuracy(run) for run in runs]
    for run, accuracy in sorted(zip(runs, accuracies, strict=True), key=lambda pair: -pair[1]):
        print(f"{100 * accuracy:6.2f} %  {run.name}  {run.space.describe(genotype_of(run))}")
    accuracy, best = max(zip(accuracies, runs, strict=True), key=lambda pair: pair[0])
    file = Path(workdir) / "best.json"
    provenance = {"selection": "random search", "cells": len(runs), "valid_accuracy": accuracy}
    save(file, genotype_of(best), {**provenance, "seed": best.config.seed})
    print(file)


def genotype_of(run: Run) -> Genotype:
    """Returns the random cell of a run, which its seed determines."""
    return spaces.random_genotype(run.space, run.config.seed)


def valid_accuracy(run: Run) -> float:
    """Returns the validation accuracy after the last epoch, in 0..1.

    Raises:
      UserError: The run has not ended, or it trained another cell or on all images.
    """
    if run.config.genotype != "random":
        raise UserError(f"{run.name} has no random cell: set genotype to 'random'")
    done, epochs = len(run.retrain), run.config.retrain.epochs
    if done < epochs:
        raise UserError(f"{run.name} has done {done} of {epochs} epochs: run it to its end")
    accuracy = run.retrain[-1].valid_accuracy
    if accuracy is None:
        raise UserError(f"{run.name} has no validation: set retrain.train_fraction below 1")
    return accuracy


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
