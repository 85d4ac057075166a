"""The smallest run of digits with two stages, which several tests start."""

FIELDS = {
    "search.channels": 4,
    "search.batch_size": 64,
    "search.epochs": (1, 2),
    "search.warmup_epochs": (0, 1),
    "retrain.channels": 4,
    "retrain.batch_size": 64,
    "retrain.epochs": 2,
}
