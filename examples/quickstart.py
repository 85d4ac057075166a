"""Searches with the library instead of the command line: about two minutes on two CPU cores.

    python examples/quickstart.py [WORKDIR]

Progressive DrNAS on scikit-learn's handwritten digits, then retraining of the cell that it finds.
"""

import sys

from drnas_jax import evaluate, retrain, search, spaces
from drnas_jax.configs import digits
from drnas_jax.files import read_history


def main(workdir: str) -> None:
    """Searches, prints what was found and how it came about, retrains and evaluates."""
    config = digits.get_config()
    config.arch.name = "dirichlet"  # or softmax (DARTS), gumbel (SNAS), gdas, or a file of yours
    config.search.epochs = (8, 8)  # of the stage with all operations, and of the one with three

    found = search(config, workdir)  # called again, it resumes where it was stopped
    space = spaces.create(config.space)
    print(f"found after {found.seconds:.0f} s: {space.describe(found.genotype)}")
    for line in read_history(f"{workdir}/search/history.jsonl"):
        print(
            f"epoch {line['epoch']:2}, stage {line['stage']}: validation accuracy "
            f"{line['valid_accuracy']:.1%}, entropy of the mixing weights {line['entropy']:.3f}"
        )

    retrain(config, workdir)
    result = evaluate(config, workdir)
    print(
        f"test accuracy {result.test_accuracy:.2%} with {result.params:,} parameters and "
        f"{result.macs:,} multiply-adds"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
