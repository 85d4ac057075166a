"""A folder of image files: one sub-folder for each class, or train/ and test/ with these.

Without train/ and test/, a fifth of each class is held out for the test, a choice that no seed
changes. Files whose names begin with a dot are ignored.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drnas_jax.data.images import has_colours
from drnas_jax.data.sources.base import (
    Example,
    Source,
    Split,
    UnreadableImage,
    fingerprint_of,
    hold_out,
    title_of,
)
from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError

_CHUNK = 256  # examples that a thread reads at a time
_SPLITS = {"train", "test", "val", "valid", "validation"}


@dataclass(frozen=True, eq=False)
class _Files:
    """A split with one file for each image."""

    files: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        file = self.files[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot read image {file}: {error.strerror}") from error
        return Example(data, int(self.labels[index]), str(file))


def create(directory: str) -> Source:
    """Lists the images of a folder.

    Args:
      directory: Path of the folder.

    Raises:
      UserError: There is no such folder, or its sub-folders are not those of classes.
    """
    root = Path(directory).expanduser()
    if not directory or not root.is_dir():
        raise UserError(
            f"data.dir is {directory!r}, which is no directory: data.name 'folder' needs one that "
            "holds a sub-folder of images for each class, or train/ and test/ with these"
        )
    names = {path.name for path in _folders(root)}
    if _folders(root / "train"):
        classes, train, test = _given_splits(root)
    elif names and names <= _SPLITS:
        raise UserError(
            f"{root} has folders {', '.join(sorted(names))}, but there is no folder for each class "
            "in its train/: put the images into train/CLASS/ and test/CLASS/"
        )
    else:
        classes, train, test = _held_out(root)
    listed = [
        f"{name} {file.relative_to(root)}"
        for name, split in (("train", train), ("test", test))
        for file in split.files
    ]
    return Source(
        title_of("folder", directory),
        train,
        test,
        classes,
        _channels(train, test),
        flip=True,
        fingerprint=fingerprint_of(listed),
    )


def _given_splits(root: Path) -> tuple[tuple[str, ...], _Files, _Files]:
    """Lists the classes and both splits of a folder that has train/ and test/."""
    classes, files, labels = _list_images(root / "train")
    test_classes, test_files, test_labels = _list_images(root / "test")
    if different := set(classes) ^ set(test_classes):
        raise UserError(
            f"train/ and test/ in {root} need the same class folders, but only one of them "
            f"has {', '.join(sorted(different))}"
        )
    return classes, _Files(tuple(files), labels), _Files(tuple(test_files), test_labels)


def _held_out(root: Path) -> tuple[tuple[str, ...], _Files, _Files]:
    """Lists the classes of a folder, and splits its images."""
    classes, files, labels = _list_images(root)
    for name, count in zip(classes, np.bincount(labels), strict=True):
        if count < 2:
            raise UserError(
                f"class folder {root / name} has 1 image: a fifth of each class is held out "
                "for the test, so at least 2 are needed"
            )
    train, test = (
        _Files(tuple(files[i] for i in index), labels[index]) for index in hold_out(labels)
    )
    return classes, train, test


def _channels(*splits: Split) -> int:
    """Returns 3 if any image has colours, else 1. Unreadable images are reported when decoded."""
    for split in splits:

        def coloured(start: int, split: Split = split) -> bool:
            for i in range(start, min(start + _CHUNK, len(split))):
                with contextlib.suppress(UnreadableImage):
                    if has_colours(split[i]):
                        return True
            return False

        if any(in_threads(coloured, range(0, len(split), _CHUNK))):
            return 3
    return 1


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _list_images(root: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Returns the class names, and all files in their folders with labels int32 [n], sorted."""
    files, labels = [], []
    for label, folder in enumerate(_folders(root)):
        inside = sorted(path for path in folder.iterdir() if path.name[0] != ".")
        if not inside:
            raise UserError(f"class folder {folder} has no images: add some, or remove it")
        files += inside
        labels += [label] * len(inside)
    return tuple(path.name for path in _folders(root)), files, np.array(labels, np.int32)
