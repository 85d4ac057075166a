"""Reads one `.npz` file with arrays `x_train`, `y_train`, `x_test` and `y_test`.

`data.dir` is the path of the file, which np.savez writes. Images are uint8 [n, h, w, c] with c = 1
(gray) or 3 (RGB), and labels are integers [n] from 0. Arrays of Python objects are refused, since
NumPy would unpickle them, which can run any code.
"""

import zipfile
from pathlib import Path

import numpy as np

from drnas_jax.data.arrays import source_from_arrays
from drnas_jax.data.sources.base import Source, title_of
from drnas_jax.errors import UserError

_ARRAYS = "the arrays x_train, y_train, x_test and y_test"


def create(directory: str) -> Source:
    """Reads the arrays of a file.

    Args:
      directory: Path of the file.

    Raises:
      UserError: There is no such file, it is damaged, or its arrays are of another form.
    """
    file = Path(directory).expanduser()
    if not directory or not file.is_file():
        raise UserError(
            f"data.dir is {directory!r}, which is not a file: data.name 'npz' needs the path of an "
            f".npz file with {_ARRAYS}"
        )
    try:
        if not zipfile.is_zipfile(file):
            raise UserError(
                f"{file} is no .npz file, or its end is missing: write one with "
                "np.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
            )
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UserError:
        raise
    except Exception as error:  # a damaged file makes NumPy and zipfile raise a dozen types
        raise UserError(
            f"{file} cannot be read ({' '.join(str(error).split())}): write it again with "
            f"np.savez, {_ARRAYS} of numbers, without Python objects or a password"
        ) from error
    return source_from_arrays(arrays, title=title_of("npz", directory))
