"""A resumed phase is compared with its checkpoint: same data, or one clear error."""

import dataclasses
import json

import pytest

from drnas_jax.errors import UserError
from drnas_jax.training.progress import Progress, check_resume

BEFORE = Progress(
    epochs_done=3,
    seconds=1 / 3,
    devices=2,
    jax="0.9",
    images=718,
    fingerprint=2**63,
    steps=11,
    remat="none",
)


def now(**changes):
    return dataclasses.replace(BEFORE, **changes)


def test_json_round_trip():
    # Catches a field that is not written, and numbers that JSON would round.
    assert Progress.from_json(json.loads(json.dumps(BEFORE.to_json()))) == BEFORE


@pytest.mark.parametrize("progress", [BEFORE, now(epochs_done=7, seconds=9.0)])
def test_the_same_conditions_give_no_message(progress):
    # Catches warnings at every resume.
    assert check_resume(BEFORE, progress, "search") == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 717}, ("718", "717")),
        ({"images": 700, "steps": 10}, ("718", "700")),
        ({"steps": 12}, ("11", "12")),
        ({"fingerprint": 1}, ("other images",)),
    ],
)
def test_other_data_are_refused(changes, words):
    # Catches training that continues with images that were held out before.
    with pytest.raises(UserError) as caught:
        check_resume(BEFORE, now(**changes), "search, stage 1/2")
    message = str(caught.value)
    assert message.startswith("search, stage 1/2") and "new workdir" in message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 8}, [("2 devices", "8")]),
        ({"jax": "0.10"}, [("0.9", "0.10")]),
        ({"remat": "cells"}, [("'none'", "'cells'")]),
        ({"devices": 8, "jax": "0.10"}, [("2 devices", "8"), ("0.9", "0.10")]),
    ],
)
def test_changes_that_may_alter_the_result_are_reported(changes, words):
    # Catches results that differ by rounding for a reason that the user is not told.
    messages = check_resume(BEFORE, now(**changes), "retrain")
    assert len(messages) == len(words)
    for message, parts in zip(messages, words, strict=True):
        assert all(part in message for part in parts)


def test_a_checkpoint_without_remat_gives_no_message():
    # Catches a checkpoint of an older version that cannot be resumed, or a message that guesses.
    values = BEFORE.to_json()
    del values["remat"]
    assert check_resume(Progress.from_json(values), BEFORE, "search") == []
