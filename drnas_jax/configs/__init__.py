"""The recipes of the directory `configs` of a checkout; an installed package contains them here."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "configs"))
