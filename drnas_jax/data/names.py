"""Interprets, compares and prints the names of files and folders."""

import os
import re
import unicodedata
from collections.abc import Iterable

_SPLIT = re.compile(
    r"(?:(train|training)|(test|testing)|(val|valid|validation|dev))(?:[ _-]?(?:set|data|images?))?"
)
_KINDS = ("", "train", "test", "val")  # of the groups of the expression
_NO_IMAGES = re.compile(
    r".*\.(7z|bib|bz2|csv|db|docx?|gz|h5|html?|ini|jsonl?|lnk|log|mat|md|md5|npy|npz|parquet|pdf|pkl"
    r"|py|rar|rtf|sh|sha\d+|tar|tgz|tsv|txt|url|xlsx?|xml|ya?ml|zip)"
    r"|(authors|changelog|citation|contributing|copying|copyright|licen[cs]e|makefile|manifest"
    r"|(md5|sha\d*)sums?|notice|read_?me|version)",
    re.IGNORECASE | re.DOTALL,
)
# Names that begin with a dot are left out too.
_SYSTEM = re.compile(
    r"\..*|__macosx|(eh)?thumbs\.db|desktop\.ini|icon\r|\$recycle\.bin|system volume information"
    r"|@eadir|lost\+found",
    re.IGNORECASE | re.DOTALL,
)
_MOST_LISTED = 5


def split_kind(folder: str) -> str:
    """Returns 'train', 'test' or 'val' if a folder has the name of a split, otherwise ''."""
    match = _SPLIT.fullmatch(folder.casefold())
    return _KINDS[match.lastindex or 0] if match else ""


def hinted_kind(folder: str) -> str:
    """Returns 'train', 'test' or 'val' if a word of a folder's name says so, otherwise ''."""
    kinds = {split_kind(word) for word in re.findall("[a-z]+", folder.casefold())} - {""}
    return kinds.pop() if len(kinds) == 1 else ""


def is_system(name: str) -> bool:
    """Returns whether a file or folder is hidden, or one that a system or a zip program made."""
    return bool(_SYSTEM.fullmatch(name))


def is_image(path: str) -> bool:
    """Returns False if the name says that a file is not an image; any other file may be one."""
    return not _NO_IMAGES.fullmatch(os.path.basename(path))


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC); macOS stores some names decomposed."""
    return unicodedata.normalize("NFC", name)


def comparable(name: str) -> str:
    """Returns a key that is equal for names that differ only by case or Unicode form."""
    return composed(name.casefold())


def distinct(name: str) -> str:
    """Returns a name in a form that tells it apart from names that look alike."""
    return name if name.isascii() else f"{name} ({name!a})"


def listed(names: Iterable[str]) -> str:
    """Joins names with commas; a long list is cut to its first four names and the last one."""
    names = list(names)
    if len(names) <= _MOST_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_LISTED - 1])}, ... {names[-1]}"


def printable(text: str) -> str:
    """Returns a text with escapes for characters that cannot be printed, such as line breaks."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
