"""Weights & Biases, offline: what would be uploaded, and what happens without a network."""

import json
import struct

import pytest
from service_runs import search_two_seeds, write_losses

from drnas_jax.writers import Writers

wandb = pytest.importorskip("wandb", reason="needs the extra: pip install 'drnas_jax[wandb]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of its many dependencies
]
_BLOCK = 2**15


@pytest.fixture(autouse=True)
def account(tmp_path, monkeypatch):
    """Hides the user's account and settings; reports of the client's own faults are not sent."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def records(folder):
    """Yields the records of each start of a run, in the order of the starts.

    A file has a header of 7 bytes, and then records in the format of LevelDB's logs: blocks of 32
    KiB of fragments, each with a checksum, its length and its kind (1: whole, 4: the last one).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes the end of the file only now
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole, found = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if (left := _BLOCK - at % _BLOCK) < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):
                found.append(Record.FromString(whole))
                whole = b""
        yield found


def points(start, name):
    """Returns the points of a curve as pairs of step and value."""
    found = []
    for record in start:
        items = {item.key or ".".join(item.nested_key): item for item in record.history.item}
        if name in items:
            found.append((record.history.step.num, json.loads(items[name].value_json)))
    return found


def described(start):
    """Returns the record of the run."""
    return next(record.run for record in start if record.HasField("run"))


def test_a_resumed_run_is_the_same_run_and_no_step_is_in_it_twice(info):
    # Would catch a new run at each resume, or a curve that goes back in time.
    run = info("wandb")
    writers = Writers(run)
    write_losses(writers, {10: 0.5, 20: 0.25})
    writers.close()
    writers = Writers(info("wandb", resume_step=11))  # killed before the checkpoint of step 20
    write_losses(writers, {20: 0.25, 30: 0.125})
    writers.close()
    first, second = records(run.directory)
    assert points(first, "loss") == [(10, 0.5), (20, 0.25)]
    assert points(second, "loss") == [(30, 0.125)]
    one, other = described(first), described(second)
    assert one.run_id == other.run_id
    assert (one.project, one.job_type) == ("drnas_jax", "search")
    assert one.display_name == "sweep/seed3/search"
    assert one.run_group == str(run.sweep)[-128:]
    fields = {item.key: json.loads(item.value_json) for item in one.config.update}
    assert fields["seed"] == 3 and fields["search"]["epochs"] == [50, 50]
    assert len(info.said) == 2 and all("offline" in line for line in info.said)


def test_without_a_network_the_run_goes_on(info, monkeypatch):
    # Would catch a run that waits for an answer for ever, or ends without one.
    monkeypatch.setattr("drnas_jax.writers.wandb._START", 3.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it reads the environment once
    writers = Writers(info("wandb", "tensorboard"))
    writers.scalars({"loss": 1.0}, 1)
    writers.close()
    wandb.teardown()
    (line,) = info.said
    assert "metrics.writers 'wandb' fails" in line


def test_seeds_that_are_searched_at_once_have_a_run_each(tmp_path):
    # Would catch runs that get each other's points, or a client that works in one thread only.
    losses, runs = search_two_seeds(tmp_path / "run", "wandb"), []
    for seed in (0, 1):
        (start,) = records(tmp_path / "run" / f"seed{seed}" / "search")
        assert [value for _, value in points(start, "train_loss")] == losses[seed]
        runs.append(described(start))
    assert runs[0].run_group == runs[1].run_group and runs[0].run_id != runs[1].run_id
    assert [run.display_name for run in runs] == ["run/seed0/search", "run/seed1/search"]
