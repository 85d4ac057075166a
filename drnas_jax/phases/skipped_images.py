"""Reports the unreadable images that a phase leaves out while it reads a streamed data set."""

import itertools

from drnas_jax.data import Loader
from drnas_jax.data.checks import reasons
from drnas_jax.training.hosts import total
from drnas_jax.training.metrics import Display


class SkippedImages:
    """Reports the unreadable images of a streamed data set when there are more of them.

    Those of a data set in memory were reported when it was loaded. Several processes know how many
    there are in all, but each one only the names of those that it has read.
    """

    def __init__(self, loader: Loader, display: Display):
        self._loader, self._display = loader, display
        self._named, self._reported = len(loader.skipped), self._count()

    def report(self) -> None:
        """Prints how many there are if more were found since the last report, and the new ones."""
        count = self._count()
        if count > self._reported:
            new = list(itertools.islice(self._loader.skipped, self._named, None))
            named = f" (new: {reasons(new)})" if new else ""
            self._display.message(f"unreadable images left out so far: {count:,}{named}")
        self._named, self._reported = len(self._loader.skipped), count

    def _count(self) -> int:
        here = len(self._loader.skipped)
        return here if self._loader.in_memory else int(total(here))
