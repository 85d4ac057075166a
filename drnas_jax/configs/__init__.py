"""The recipes, as in configs/: there in a checkout, and in this package once installed."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "configs"))
