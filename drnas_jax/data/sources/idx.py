"""Reads a data set in the IDX format of MNIST: four files, gzipped or not, in `data.dir`.

For MNIST, Fashion-MNIST and KMNIST these are `train-images-idx3-ubyte.gz`,
`train-labels-idx1-ubyte.gz`, `t10k-images-idx3-ubyte.gz` and `t10k-labels-idx1-ubyte.gz`. EMNIST
names its files `emnist-letters-train-images-idx3-ubyte.gz` and so on, with `test` for `t10k`; if a
folder holds several of its sets, `data.options.prefix` chooses one. EMNIST publishes its images
with rows and columns exchanged. They are turned upright here, whereas TFDS leaves them as they are.
If labels begin at 1, as in EMNIST's letters, 1 is subtracted; the class names keep the numbers.

Images are not mirrored unless `data.flip` is 'yes', since most sets in this format are characters.

Format: http://yann.lecun.com/exdb/mnist (a header of big-endian integers, then bytes).
"""

import dataclasses
import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from drnas_jax.config import field
from drnas_jax.data.arrays import source_from_arrays
from drnas_jax.data.names import is_system
from drnas_jax.data.sources.base import Source, title_of
from drnas_jax.errors import UserError

# Some programs replace the dash before idx by a dot when they unpack a file.
_NAME = re.compile(
    r"(.*?)(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?", re.IGNORECASE
)
_KINDS = {"images": 3, "labels": 1}  # number of dimensions
_EXPECTED = (
    "the files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each with or without .gz"
)
_DEBIAN = (
    "Fashion-MNIST, for instance, is in github.com/zalandoresearch/fashion-mnist, and in Debian's "
    "package dataset-fashion-mnist, which puts it into /usr/share/datasets/fashion-mnist"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the IDX source."""

    prefix: str = field(
        "", "Beginning of the four names, such as 'emnist-letters-'; empty: that of the only set."
    )


def create(directory: str, options: Options) -> Source:
    """Reads the four files.

    Args:
      directory: Path of their folder.
      options: Options of the source.

    Raises:
      UserError: A file is missing, damaged or not an IDX file, or the files do not belong together.
    """
    root = Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise UserError(
            f"data.dir is {directory!r}, which is not a folder: data.name 'idx' needs one with "
            f"{_EXPECTED}. {_DEBIAN}"
        )
    prefix, files = _choose(root, options.prefix)
    arrays = {
        f"{letter}_{split}": _read(files[split, kind], _KINDS[kind])
        for letter, kind in (("x", "images"), ("y", "labels"))
        for split in ("train", "test")
    }
    notes = [f"read {', '.join(file.name for file in files.values())} in {root}"]
    if prefix.startswith("emnist-"):
        notes.append("EMNIST publishes images with rows and columns exchanged: turned upright here")
    for key in ("x_train", "x_test"):
        images = arrays[key].swapaxes(1, 2) if prefix.startswith("emnist-") else arrays[key]
        arrays[key] = np.ascontiguousarray(images)[..., None]
    classes: tuple[str, ...] = ()
    labels = [arrays[key] for key in ("y_train", "y_test") if len(arrays[key])]
    if len(labels) == 2 and min(map(np.min, labels)) == 1:
        classes = tuple(map(str, range(1, int(labels[0].max()) + 1)))
        arrays |= {key: arrays[key] - 1 for key in ("y_train", "y_test")}
    source = source_from_arrays(
        arrays, title=title_of("idx", directory), classes=classes, flip=False
    )
    return dataclasses.replace(source, notes=tuple(notes))


def _choose(root: Path, prefix: str) -> tuple[str, dict[tuple[str, str], Path]]:
    """Finds the four files.

    Returns:
      Beginning of their names, and their paths by split ('train' or 'test') and kind ('images'
      or 'labels').
    """
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for file in sorted(root.iterdir()):  # NAME comes before NAME.gz, which is the same file packed
        # macOS puts a file ._NAME beside some, and unpacking may put NAME into a folder NAME.
        if not is_system(file.name) and file.is_file() and (match := _NAME.fullmatch(file.name)):
            begin, split, kind = map(str.lower, match.groups())
            key = ("train" if split == "train" else "test", kind)
            other = sets.setdefault(begin, {}).setdefault(key, file)
            if file.name not in (other.name, f"{other.name}.gz"):
                raise UserError(
                    f"{root} holds both {other.name} and {file.name}: move one of them to another "
                    "folder"
                )
    if not prefix and len(sets) > 1:
        listed = ", ".join(map(repr, sorted(sets)))
        raise UserError(
            f"{root} holds several data sets, whose names begin with {listed}: choose one with "
            "data.options.prefix, or give each a folder"
        )
    if not prefix and sets:
        (prefix,) = sets
    files = sets.get(prefix.lower(), {})
    missing = [
        f"{prefix}{split}-{kind}-idx{_KINDS[kind]}-ubyte"
        for split, key in (("train", "train"), ("test" if prefix else "t10k", "test"))
        for kind in _KINDS
        if (key, kind) not in files
    ]
    if len(missing) == 4:
        begin = f" that begin with {prefix!r} (data.options.prefix)" if prefix else ""
        raise UserError(f"{root} holds no IDX files{begin}: expected {_EXPECTED}. {_DEBIAN}")
    if missing:
        raise UserError(f"{root} lacks {', '.join(missing)} (or .gz): add what is missing")
    return prefix, files


def _read(file: Path, dimensions: int) -> np.ndarray:
    """Reads the uint8 array of an IDX file, which may be gzipped whatever its name."""
    try:
        data = file.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}): get the file again") from error
    header = 4 + 4 * dimensions
    expected = bytes([0, 0, 8, dimensions])  # 8: unsigned bytes
    if data[:4] != expected or len(data) < header:
        raise UserError(
            f"{file} is no IDX file of unsigned bytes with {dimensions} dimensions: it begins with "
            f"{data[:4]!r}, expected {expected!r}. Get the file again"
        )
    shape = [int(size) for size in np.frombuffer(data, ">u4", dimensions, 4)]
    if len(data) - header != math.prod(shape):
        raise UserError(
            f"{file} is damaged: it has {len(data) - header} bytes, but its header says "
            f"{' x '.join(map(str, shape))}. Get the file again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
