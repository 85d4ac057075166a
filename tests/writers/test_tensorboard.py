"""Event files for TensorBoard."""

import pathlib
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drnas_jax.writers import Writers, tensorboard


def _events(path: pathlib.Path) -> list[Event]:
    """Reads an event file in TFRecord format: length, its checksum, data, its checksum."""
    data, events = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_tensorboard_gets_scalars_and_the_step_of_the_resume(info):
    # Catches steps of a killed run that appear twice in the curves.
    run = info("tensorboard", resume_step=20)
    writers = Writers(run)
    writers.scalars({"loss": 0.5}, step=20)
    writers.scalars({"loss": np.float32(0.25)}, step=30)
    writers.close()
    (path,) = run.directory.iterdir()
    events = _events(path)
    (start,) = (e for e in events if e.HasField("session_log"))
    assert (start.step, start.session_log.status) == (20, SessionLog.START)
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(20, "loss", 0.5), (30, "loss", 0.25)]


def test_a_full_disk_is_an_error_at_once(info, monkeypatch):
    # Catches a writer with a thread, whose full queue blocks for ever, or a run that goes on.
    def fail(*_):
        raise OSError("disk full")

    run = info("tensorboard")
    writers = Writers(run)
    writers.scalars({"loss": 0.5}, step=1)
    (path,) = run.directory.iterdir()
    assert [e.step for e in _events(path) if e.summary.value] == [1]
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.EventsWriter, "flush", fail)
        with pytest.raises(OSError, match="disk full"):
            writers.scalars({"loss": 0.25}, step=2)
    writers.close()
