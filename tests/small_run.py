"""The smallest run of digits with two stages, which several tests start, and where they do."""

import os

FIELDS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.epochs": (1, 2),
    "search.warmup_epochs": (0, 1),
    "retrain.channels": 4,
    "retrain.batch_size": 64,
    "retrain.epochs": 2,
}


def environment():
    """That of a user's command: with the devices there are, not with those that are simulated."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
