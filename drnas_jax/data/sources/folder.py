"""Reads a folder of image files: one sub-folder for each class, or train/ and test/ with these.

Without test images, a fifth of each class is held out, the same images whatever the seed.
`drnas_jax.data.layout` says which other folders are read.
"""

import contextlib
import os
from dataclasses import dataclass

import numpy as np

from drnas_jax.data.images import has_colours
from drnas_jax.data.layout import layout_of
from drnas_jax.data.listing import scan
from drnas_jax.data.sources.base import (
    Example,
    Source,
    Split,
    UnreadableImage,
    fingerprint_of,
    title_of,
)
from drnas_jax.data.threads import in_threads
from drnas_jax.errors import UserError

_CHUNK = 256  # examples that a thread reads at a time


@dataclass(frozen=True, eq=False)
class _Files:
    """A split with one file for each image.

    Attributes:
      root: Path of the folder.
      names: Paths of the files below it.
      labels: Labels, int32 [n].
    """

    root: str
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise UnreadableImage(
                f"image {path} cannot be read ({error.strerror}): fix or remove it, or set "
                "data.corrupt=skip, which leaves out and names all such images"
            ) from error
        return Example(data, int(self.labels[index]), path)

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        return f"{self.root}/{self.names[index]}"


def create(directory: str) -> Source:
    """Lists the images of a folder.

    Args:
      directory: Path of the folder.

    Raises:
      UserError: There is no such folder, or it is not clear which of its folders are classes.
    """
    root = os.path.expanduser(directory)
    if not directory or not os.path.isdir(root):
        raise UserError(
            f"data.dir is {directory!r}, which is not a directory: give data.name 'folder' one "
            "with a sub-folder of images for each class, or with train/ and test/ of such folders"
        )

    def read(name: str) -> str:
        path = os.path.join(root, name)
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
                return file.read()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): make it readable, or remove it"
            ) from error

    root = os.path.normpath(root)
    layout = layout_of(scan(root), root, read)
    train, test = (
        _Files(root, layout.files[name], layout.labels[name]) for name in ("train", "test")
    )
    listed = [
        f"{split_name} {layout.classes[label]} {name}"
        for split_name, split in (("train", train), ("test", test))
        for name, label in zip(split.names, split.labels.tolist(), strict=True)
    ]
    title = title_of("folder", directory)
    return Source(
        title,
        train,
        test,
        layout.classes,
        _channels(train, test),
        flip=True,
        fingerprint=fingerprint_of(
            listed, [split.path(i) for split in (train, test) for i in range(len(split))]
        ),
        notes=(f"data set {title}: {layout.summary}",),
    )


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
