"""CIFAR-10 and CIFAR-100, from the publisher's binary files or as TFDS prepares them.

This is not a component, since `cifar10` and `cifar100` are names of TFDS too. If TFDS has prepared
the data set in `data.dir`, that is read; otherwise the publisher's binary archive, packed or
unpacked. The images are the same, but not their order, so the fingerprints differ.

An image is a record of 1 (CIFAR-10) or 2 labels (CIFAR-100: coarse, then fine) and 3072 pixels, the
red ones first, then green and blue, row by row. Source of the format and of the checksums:
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import sys
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from drnas_jax.data.sources._tfds import NotPreparedError, is_prepared, open_tfds, prepare_command
from drnas_jax.data.sources.base import ArraySplit, Source, fingerprint_of_arrays, title_of
from drnas_jax.errors import UserError
from drnas_jax.training.hosts import from_primary

URL = "https://www.cs.toronto.edu/~kriz/"
_TIMEOUT = 60  # seconds without any data
_CHUNK = 1 << 20  # bytes
_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Archive:
    """The contents of the publisher's binary archive of a data set.

    Attributes:
      file: Name of the archive.
      md5: MD5 of the archive, as published, in hexadecimal digits.
      folder: Folder in the archive.
      train: Names of the files with the training images, and the number of images in each.
      test: The same for the test images.
      names: Name of the file that lists the names of the classes.
      classes: Number of classes.
      labels: Number of labels before the pixels of an image; the last one is that of the class.
      pickles: Names of the other archive, which holds Python pickles, and of its folder.
    """

    file: str
    md5: str
    folder: str
    train: Mapping[str, int]
    test: Mapping[str, int]
    names: str
    classes: int
    labels: int
    pickles: tuple[str, str]


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
        test={"test_batch.bin": 10_000},
        names="batches.meta.txt",
        classes=10,
        labels=1,
        pickles=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    ),
    "cifar100": Archive(
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train={"train.bin": 50_000},
        test={"test.bin": 10_000},
        names="fine_label_names.txt",
        classes=100,
        labels=2,
        pickles=("cifar-100-python.tar.gz", "cifar-100-python"),
    ),
}


def open_cifar(name: str, directory: str, download: bool, others: Iterable[str]) -> Source:
    """Opens CIFAR-10 or CIFAR-100. All processes call this.

    Args:
      name: 'cifar10' or 'cifar100'.
      directory: Folder in which TFDS has prepared it, or with the archive or the unpacked folder;
        or the path of one of the last two. '' stands for the default folder of TFDS.
      download: Whether process 0 downloads the archive into `directory` if nothing is there.
      others: Names of the data sources that are not of TFDS, see `open_tfds`.

    Raises:
      UserError: The data set is not there, is damaged, or cannot be downloaded.
    """
    archive, root = ARCHIVES[name], Path(directory).expanduser()
    if download and not directory:
        raise UserError(
            f"data.download is True, but data.dir is empty: set data.dir to a folder for "
            f"{archive.file}"
        )
    if download:
        from_primary(lambda: _download_unless_there(name, root))
    binary = _find(archive, root) if directory else None
    if not directory or is_prepared(name, directory):
        try:
            source = open_tfds(name, directory, others)
        except NotPreparedError as error:
            raise _missing(name, directory, download) from error
        beside = f", and not {binary}" if binary else ""
        where = root / name if directory else "its default directory"
        return dataclasses.replace(
            source, notes=(f"{name} is read as TFDS prepared it, from {where}{beside}",)
        )
    if binary is None:
        raise _missing(name, directory, download)
    return _read(name, binary, directory)


def _find(archive: Archive, root: Path) -> Path | None:
    """Returns the path of the archive or of its unpacked folder, or None if there is neither."""
    if root.is_file() or any((root / file).is_file() for file in (*archive.train, *archive.test)):
        return root
    return next(
        (path for path in (root / archive.file, root / archive.folder) if path.exists()), None
    )


def _missing(name: str, directory: str, download: bool) -> UserError:
    archive, root = ARCHIVES[name], Path(directory).expanduser()
    prepared = f"prepare it with {prepare_command(name, directory)}"
    if not directory:
        return UserError(
            f"data.dir is empty, and TFDS has not prepared {name} in its default directory: set "
            f"data.dir to the folder with {archive.file}, which data.download=True downloads, or "
            f"{prepared}"
        )
    if download:
        return UserError(
            f"process 0 has found or downloaded {name} in {root}, but this process does not see "
            "it: set data.dir to storage that all processes share, or put the archive on every "
            "machine"
        )
    pickled = [path for path in archive.pickles if (root / path).exists()]
    if pickled:
        return UserError(
            f"{root / pickled[0]} holds Python pickles, which can run any code when they are read: "
            f"set data.download=True for {archive.file}, put it there yourself (from {URL}), or "
            f"{prepared}"
        )
    return UserError(
        f"data.dir is {directory!r}, which holds neither {archive.file} (or its folder "
        f"{archive.folder}) nor {name} prepared by TFDS: set data.download=True to "
        f"download the archive, put it there yourself (from {URL}), or {prepared}"
    )


def _read(name: str, path: Path, directory: str) -> Source:
    """Reads the archive, or its unpacked folder."""
    archive = ARCHIVES[name]
    wanted = [*archive.train, *archive.test, archive.names]
    contents = _unpack(archive, path) if path.is_file() else _from_folder(path, wanted)
    if missing := [file for file in wanted if file not in contents]:
        raise UserError(f"{path} lacks {', '.join(missing)}: unpack {archive.file} again")
    classes = tuple(contents[archive.names].decode(errors="replace").split())
    if len(classes) != archive.classes:
        raise UserError(
            f"{archive.names} in {path} lists {len(classes)} classes: expected {archive.classes}. "
            f"Unpack {archive.file} again"
        )
    train, test = (
        _decode({file: contents[file] for file in counts}, counts, archive, path)
        for counts in (archive.train, archive.test)
    )
    return Source(
        title_of(name, directory),
        train,
        test,
        classes,
        channels=3,
        fingerprint=fingerprint_of_arrays(train, test, classes),
        notes=(f"{name} is read from the publisher's binary files in {path}",),
    )


def _from_folder(folder: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    try:
        return {file: (folder / file).read_bytes() for file in wanted if (folder / file).exists()}
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error}): check its files") from error


def _unpack(archive: Archive, path: Path) -> dict[str, bytes]:
    """Verifies an archive and returns the contents of its files, by name without the folder."""
    try:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
        if md5 != archive.md5:
            raise UserError(
                f"{path} has the MD5 {md5}, but {archive.file} has {archive.md5}: it is damaged, "
                "incomplete or another file. Remove it, and download it again (data.download=True)"
            )
        with tarfile.open(path, "r|gz") as tar:
            return {
                member.name.rpartition("/")[2]: content.read()
                for member in tar
                if (content := tar.extractfile(member))
            }
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read ({error}): get the archive again") from error


def _decode(
    files: Mapping[str, bytes], counts: Mapping[str, int], archive: Archive, path: Path
) -> ArraySplit:
    size = archive.labels + _PIXELS
    for file, count in counts.items():
        if len(files[file]) != count * size:
            raise UserError(
                f"{file} in {path} has {len(files[file])} bytes: expected {count * size}. It is "
                f"damaged, so unpack {archive.file} again"
            )
    records = np.frombuffer(b"".join(files.values()), np.uint8).reshape(-1, size)
    labels = records[:, archive.labels - 1].astype(np.int32)
    planes = records[:, archive.labels :].reshape(-1, 3, 32, 32)
    return ArraySplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def _md5():
    # It only detects damage, so it is allowed even if MD5 is banned for security.
    return hashlib.md5(usedforsecurity=False)


def _download_unless_there(name: str, root: Path) -> None:
    if not is_prepared(name, str(root)) and _find(ARCHIVES[name], root) is None:
        _download(ARCHIVES[name], root)


def _download(archive: Archive, root: Path) -> None:
    """Downloads an archive, which gets its final name only once it is complete and verified."""
    url, target = URL + archive.file, root / archive.file
    # Unique, since another run may download the same file.
    temporary = root / f".{archive.file}.{uuid.uuid4().hex}.tmp"
    digest = _md5()
    print(f"downloading {url} to {root}", file=sys.stderr, flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                while chunk := response.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        if digest.hexdigest() != archive.md5:
            raise UserError(
                f"{url} sent {size} bytes with the MD5 {digest.hexdigest()}, expected "
                f"{archive.md5}: run the command again, or put {archive.file} into {root} yourself"
            )
        os.replace(temporary, target)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the server's response too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot download {url} to {root} ({reason}): run the command again, or put "
            f"{archive.file} there yourself"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
