"""CIFAR-10 and CIFAR-100 as their publisher packs them: read, downloaded, or refused."""

import dataclasses
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from loading import config, error

from drnas_jax.data import load
from drnas_jax.data.sources import _cifar
from drnas_jax.errors import UserError

NAMES = ("cifar10", "cifar100")
COUNT = 4  # images in each file, in place of thousands


def records(name, seed):
    """Returns the bytes of a file, its images [n, h, w, c] and their labels."""
    archive = _cifar.ARCHIVES[name]
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    labels = random.integers(0, archive.classes, (COUNT, archive.labels), np.uint8)
    content = b"".join(
        bytes([*label, *image[..., 0].ravel(), *image[..., 1].ravel(), *image[..., 2].ravel()])
        for image, label in zip(images, labels, strict=True)
    )
    return content, images, labels[:, -1]


def contents(name):
    """Returns the bytes of all files in an archive, by name."""
    archive = _cifar.ARCHIVES[name]
    files = {file: records(name, i)[0] for i, file in enumerate([*archive.train, *archive.test])}
    files[archive.names] = "".join(f"class{i}\n" for i in range(archive.classes)).encode() + b"\n"
    return {**files, "readme.html": b"about"}


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Returns small archives by file name; their sizes and checksums are the expected ones."""
    archives, small = {}, {}
    for name, archive in _cifar.ARCHIVES.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            directory = tarfile.TarInfo(archive.folder)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
            for file, content in contents(name).items():
                member = tarfile.TarInfo(f"{archive.folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        archives[archive.file] = buffer.getvalue()
        small[name] = dataclasses.replace(
            archive,
            md5=hashlib.md5(buffer.getvalue()).hexdigest(),
            train=dict.fromkeys(archive.train, COUNT),
            test=dict.fromkeys(archive.test, COUNT),
        )
    monkeypatch.setattr(_cifar, "ARCHIVES", small)
    monkeypatch.setattr("drnas_jax.data.sources.ARCHIVES", small)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    return archives


@pytest.fixture
def folder(packed, tmp_path):
    """Returns a folder that holds both archives."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file, content in packed.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def server(packed, monkeypatch):
    """Serves files on the loopback address; returns them and the list of what was asked for."""
    files, asked = dict(packed), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path[1:])
            if (content := files.get(self.path[1:])) is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(packed[self.path[1:]])))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            del arguments

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(_cifar, "URL", f"http://127.0.0.1:{httpd.server_port}/")
    yield files, asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["archive", "folder", "path of the archive", "path of the folder"])
def test_all_images_are_read_from_the_archive_and_its_folder(name, form, folder):
    # Catches planes taken for pixels, coarse labels, and images that depend on how they are stored.
    archive = _cifar.ARCHIVES[name]
    where = folder
    if "folder" in form:
        shutil.unpack_archive(folder / archive.file, folder, filter="data")
        (folder / archive.file).unlink()
    if "path" in form:
        where = folder / (archive.folder if "folder" in form else archive.file)
    data = load(config(name, dir=str(where)))
    every = [records(name, i) for i in range(len(archive.train) + len(archive.test))]
    images, labels = (np.concatenate(list(each)) for each in list(zip(*every, strict=True))[1:])
    train = COUNT * len(archive.train)
    np.testing.assert_array_equal(data.images, images[:train])
    np.testing.assert_array_equal(data.labels, labels[:train])
    np.testing.assert_array_equal(data.test_images, images[train:])
    np.testing.assert_array_equal(data.test_labels, labels[train:])
    assert data.classes == tuple(f"class{i}" for i in range(archive.classes))
    assert data.flip


def test_the_published_numbers_of_images():
    # Catches a misspelt file or count, which the small archives of these tests would hide.
    for archive in _cifar.ARCHIVES.values():
        assert sum(archive.train.values()) == 50_000 and sum(archive.test.values()) == 10_000


def test_the_archive_and_its_folder_are_the_same_data_set(folder):
    # Catches a resumed run that is refused because the archive was unpacked meanwhile.
    archive = _cifar.ARCHIVES["cifar10"]
    packed = _cifar.open_cifar("cifar10", str(folder), False, ())
    shutil.unpack_archive(folder / archive.file, folder, filter="data")
    unpacked = _cifar.open_cifar("cifar10", str(folder / archive.folder), False, ())
    assert packed.fingerprint == unpacked.fingerprint
    assert archive.file in packed.notes[0] and archive.folder in unpacked.notes[0]


def test_what_tfds_has_prepared_comes_first(folder, shared):
    # Catches a run that is resumed on images in another order, and a source that is not named.
    archive = _cifar.open_cifar("cifar10", str(folder), False, ())
    (folder / "cifar10").symlink_to(shared / "tfds" / "cifar10")
    both = _cifar.open_cifar("cifar10", str(folder), True, ())
    assert len(both.train) == 50_000
    assert "TFDS" in both.notes[0] and "cifar-10-binary.tar.gz" in both.notes[0]
    assert both.fingerprint != archive.fingerprint


@pytest.mark.parametrize("where", ["", "absent", "empty"])
def test_a_missing_data_set_is_refused_with_all_ways_to_get_it(where, packed, tmp_path, capsys):
    # Catches a newcomer who is sent to install TensorFlow, and a download that nobody asked for.
    (tmp_path / "empty").mkdir()
    directory = str(tmp_path / where) if where else ""
    message = error("cifar10", dir=directory)
    assert "data.download=True" in message and "cifar-10-binary.tar.gz" in message
    assert "tfds.builder('cifar10'" in message and "array_record" in message
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("pickled", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_pickles_are_refused(pickled, packed, tmp_path):
    # Catches code in a pickle that runs, and a message that does not say which archive to get.
    (tmp_path / pickled).mkdir()
    message = error("cifar10", dir=str(tmp_path))
    assert pickled in message and "any code" in message
    assert "cifar-10-binary.tar.gz" in message and "data.download=True" in message


def test_a_damaged_archive_is_refused(folder):
    # Catches half a download, which tar would read up to its end.
    file = folder / "cifar-10-binary.tar.gz"
    file.write_bytes(file.read_bytes()[:-100])
    message = error("cifar10", dir=str(folder))
    assert str(file) in message and "MD5" in message and "Remove it" in message
    assert message == error("cifar10", dir=str(folder), download=True)


def test_a_damaged_folder_is_refused(folder):
    # Catches a file cut short, one that is missing, and one with other classes.
    archive = _cifar.ARCHIVES["cifar10"]
    shutil.unpack_archive(folder / archive.file, folder, filter="data")
    (folder / archive.file).unlink()
    batch, names = (folder / archive.folder / name for name in ("data_batch_3.bin", archive.names))
    batch.write_bytes(batch.read_bytes()[:-3073])
    assert "data_batch_3.bin" in error("cifar10", dir=str(folder))
    batch.unlink()
    assert "lacks data_batch_3.bin" in error("cifar10", dir=str(folder))
    batch.write_bytes(records("cifar10", 2)[0])
    names.write_text("cat\ndog\n")
    assert "lists 2 classes" in error("cifar10", dir=str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_download_is_kept_and_read_again_without_the_server(name, server, tmp_path, capsys):
    # Catches a download that is repeated in every run, or is not announced.
    files, asked = server
    archive, directory = _cifar.ARCHIVES[name], tmp_path / "new" / "data"
    first = load(config(name, dir=str(directory), download=True))
    assert asked == [archive.file] and capsys.readouterr().err.startswith("downloading http")
    assert [path.name for path in directory.iterdir()] == [archive.file]
    assert (directory / archive.file).read_bytes() == files[archive.file]
    for download in (True, False):
        again = load(config(name, dir=str(directory), download=download))
        assert again.fingerprint == first.fingerprint
    assert asked == [archive.file]
    # Pickles beside it do not matter, if the archive is wanted.
    (directory / archive.file).unlink()
    (directory / archive.pickles[0]).touch()
    assert load(config(name, dir=str(directory), download=True)).fingerprint == first.fingerprint


@pytest.mark.parametrize("sent", ["nothing", "another page", "half"])
def test_a_failed_download_leaves_nothing_behind(sent, server, tmp_path):
    # Catches a file that looks complete although it is not.
    files, _ = server
    name = "cifar-10-binary.tar.gz"
    whole = files.pop(name)
    if sent != "nothing":
        files[name] = b"<html>moved</html>" if sent == "another page" else whole[: len(whole) // 2]
    message = error("cifar10", dir=str(tmp_path / "data"), download=True)
    assert ("404" if sent == "nothing" else f"sent {len(files[name])} bytes") in message
    assert _cifar.URL in message and str(tmp_path / "data") in message
    assert list((tmp_path / "data").iterdir()) == []


def test_no_network_and_a_folder_that_cannot_be_written_are_one_line(packed, monkeypatch, tmp_path):
    # Catches a traceback of urllib, of http.client or of the file system.
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(_cifar, "URL", "http://127.0.0.1:1/")  # nothing listens there
    assert "refused" in error("cifar10", dir=str(tmp_path), download=True)
    (tmp_path / "file").touch()
    assert "Not a directory" in error("cifar10", dir=str(tmp_path / "file/data"), download=True)


def test_two_runs_may_download_at_once(server, tmp_path):
    # Catches two runs that write to one file.
    def download(_):
        return _cifar.open_cifar("cifar10", str(tmp_path / "data"), True, ()).fingerprint

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(download, range(4)))) == 1
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_only_the_first_process_downloads(server, monkeypatch, tmp_path):
    # Catches one download for each process of a run, and a process that waits for none.
    _, asked = server
    called = []
    monkeypatch.setattr(_cifar, "from_primary", called.append)  # as in any other process
    message = error("cifar10", dir=str(tmp_path), download=True)
    assert len(called) == 1 and not asked
    assert "storage that all processes share" in message
    called[0]()  # as process 0 does
    assert load(config("cifar10", dir=str(tmp_path), download=True)).count == 5 * COUNT
    assert len(called) == 2 and asked == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
    ("name", "directory", "expected"),
    [("mnist", "data", "only cifar10 and cifar100"), ("cifar10", "", "data.dir is empty")],
)
def test_a_download_that_is_not_possible_is_refused(name, directory, expected):
    # Catches a field that is ignored, and 170 MB in the current directory.
    with pytest.raises(UserError, match=expected):
        load(config(name, dir=directory, download=True))
