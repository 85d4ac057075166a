"""Lists a folder and all folders below it, without the files of the operating system."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from drnas_jax.data.names import is_system
from drnas_jax.errors import UserError


@dataclass(frozen=True)
class Listing:
    """The content of one folder.

    Attributes:
      files: Names of the files and of broken links (those that lead nowhere), in any order.
      folders: Content of each folder inside, by its name.
      broken: Names of the broken links among them.
      system: Names of what is left out: hidden, of the system, or neither file nor folder.
    """

    files: list[str] = field(default_factory=list)
    folders: "dict[str, Listing]" = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    system: list[str] = field(default_factory=list)

    def paths(self, prefix: str = "") -> Iterator[str]:
        """Yields the paths of all files in and below this folder, folder by folder, in order."""
        yield from (prefix + name for name in sorted(self.files))
        for name in sorted(self.folders):
            yield from self.folders[name].paths(f"{prefix}{name}/")

    def all_system(self) -> Iterator[str]:
        """Yields the names of what is left out in and below this folder."""
        yield from self.system
        for inside in self.folders.values():
            yield from inside.all_system()


def scan(path: str) -> Listing:
    """Lists a folder on the disk, with all folders below it.

    Raises:
      UserError: A folder cannot be listed, or a link leads to a folder that holds it.
    """
    return _scan(path, frozenset())


def _scan(path: str, above: frozenset[tuple[int, int]]) -> Listing:
    try:
        status = os.stat(path)
        with os.scandir(path) as entries:
            found = list(entries)
    except OSError as error:
        raise UserError(
            f"{path} cannot be listed ({error.strerror}): make it readable, or remove it"
        ) from error
    identity = status.st_dev, status.st_ino
    if identity in above:
        raise UserError(f"{path} is a link to a folder that contains it: remove that link")
    listing = Listing()
    for entry in found:
        name, kind = entry.name, _kind(entry)
        if is_system(name) or kind == "other":
            listing.system.append(name)
        elif kind == "folder":
            listing.folders[name] = _scan(entry.path, above | {identity})
        else:
            listing.files.append(name)
            if kind == "broken":
                listing.broken.append(name)
    return listing


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        # Reading a pipe or a device could block for ever.
        return "broken" if stat.S_ISLNK(entry.stat(follow_symlinks=False).st_mode) else "other"
    except OSError:  # a link to itself
        return "broken"
