"""A search by the library, without the command line: two minutes on two CPU cores.

    python examples/quickstart.py [WORKDIR]

Progressive DrNAS on scikit-learn's handwritten digits, then retraining of the found cell.
"""

import sys

from drnas_jax import evaluate, retrain, search, spaces
from drnas_jax.configs import digits
from drnas_jax.files import read_history


def main(workdir: str) -> None:
    """Searches, tells what was found and how it came to be, retrains, evaluates."""
    config = digits.get_config()
    config.arch.name = "dirichlet"  # or softmax (DARTS), gumbel (SNAS), gdas
    config.search.epochs = (8, 8)  # of the stage with all operations, and of the one with three

    genotype, seconds = search(config, workdir)  # run again, it goes on where it was stopped
    print(f"found after {seconds:.0f} s: {spaces.find(config.space).describe(genotype)}")
    for line in read_history(f"{workdir}/search/history.jsonl"):
        print(
            f"epoch {line['epoch']:2}, stage {line['stage']}: validation accuracy "
            f"{line['valid_accuracy']:.1%}, entropy of the mixing weights {line['entropy']:.3f}"
        )

    retrain(config, workdir)
    result = evaluate(config, workdir)
    print(
        f"test accuracy {result['test_accuracy']:.2%} with {result['params']:,} parameters and "
        f"{result['macs']:,} multiply-adds"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
