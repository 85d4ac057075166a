"""Judges cells in the supernet that a search has trained: `judge_cells.py WORKDIR GENOTYPE ...`.

Each GENOTYPE is in any form that `config.genotype` takes. Prints a JSON line for each with its
accuracy on the whole validation split, in 0..1, as `search.compared_cells` measures it on a part:
so cells that were found by searches with other supernets can be compared in one. Prints the line of
a genotype only once if two are equal.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from drnas_jax import spaces
from drnas_jax.phases.search.experiment import Experiment
from drnas_jax.phases.search.phase import SearchPhase
from drnas_jax.phases.setup import dataset_loader
from drnas_jax.report.runs import read_run
from drnas_jax.spaces.base import one_hot
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.devices import make_mesh
from drnas_jax.training.metrics import Display


def main(workdir: str, genotypes: Sequence[str]) -> None:
    """Prints the accuracies of the genotypes in the supernet of a workdir's newest checkpoint."""
    config, folder = read_run(workdir, workdir).config, Path(workdir) / "search"
    display, mesh = Display(quiet=True), make_mesh()
    experiment = Experiment(
        config, dataset_loader(config.data, display)(), mesh, folder / "labels.npy"
    )
    phase = SearchPhase(experiment, display)
    with Checkpoints(folder / "checkpoints", cleanup=False) as checkpoints:
        saved = checkpoints.latest()
        if saved is None:
            raise SystemExit(f"{folder}/checkpoints has no checkpoint: run the search first")
        phase.resume(saved.phase)
        state = checkpoints.load(saved, phase.state_shapes(saved.phase), mesh)
    cells = {spaces.load_genotype(text): text for text in genotypes}
    mixes = [one_hot(dict(phase.spec.cells), genotype) for genotype in cells]
    epoch = saved.progress.epochs_done - 1
    accuracies = phase.diagnostics.accuracies(state, mixes, epoch, batches=None)
    for text, accuracy in zip(cells.values(), accuracies, strict=True):
        print(json.dumps({"genotype": text, "valid_accuracy": round(accuracy, 4)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument("genotypes", nargs="+", metavar="GENOTYPE")
    options = parser.parse_args()
    main(options.workdir, options.genotypes)
