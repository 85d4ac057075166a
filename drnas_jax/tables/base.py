"""The interface of tables of true accuracies."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from drnas_jax.genotype import Genotype


class Table(Protocol):
    """The true test accuracies of the networks of one search space.

    A benchmark trains every network of a space once and publishes the accuracies. With its table a
    run can be judged without retraining: evaluation writes what the table knows of the genotype to
    result.json, and the report compares each epoch of a search with it.

    A table is a module with a function `create(file)`, or `create(file, options)` if the module has
    `Options`. `file` is `config.table.file`. A module may set `FILE`, a path relative to the folder
    that contains the data directory; its file is looked for there if the config names none. Without
    `FILE` and without `config.table.file`, `file` is an empty string.

        class Mine(Table):
            title = "My benchmark"
            space = "chain"

            def __init__(self, file):
                self.known = {from_json(g, file): a for g, a in json.load(open(file))}

            def accuracies(self, genotype):
                accuracy = self.known.get(genotype)
                return None if accuracy is None else {"digits": accuracy}

        create = Mine

    Every method returns None for a genotype that the table does not hold, such as one of another
    space. Only `accuracies` has to be written; the other methods have defaults.

    Attributes:
      title: Name shown to the user, for example `NAS-Bench-201`.
      space: Name of the search space, as in a genotype.
    """

    title: str
    space: str

    def accuracies(self, genotype: Genotype) -> Mapping[str, float] | None:
        """Returns the true test accuracies in percent by data set; figures show the first one."""

    def query(self, genotype: Genotype) -> Mapping[str, Any] | None:
        """Returns the `table` entry of result.json, plain values: by default the accuracies."""
        return self.accuracies(genotype)

    def rank(self, genotype: Genotype) -> tuple[int, int] | None:
        """Returns the rank of a genotype by the first accuracy, and the number of genotypes.

        The best genotype has rank 1. By default a table ranks nothing.
        """
        del genotype
        return None

    def cost(self, name: str, genotype: Genotype) -> float | None:
        """Returns the cost of the benchmark's network of a genotype; by default it is unknown.

        Args:
          name: Name of the cost, as in `config.cost.name`, for example `macs`.
          genotype: Genotype of the space.
        """
        del name, genotype
        return None

    def networks(self, cost: str) -> np.ndarray | None:
        """Returns cost and first accuracy of every network, float64 [n, 2], for the true front.

        Args:
          cost: Name of the cost. By default, costs are unknown, and the result is None.
        """
        del cost
        return None
