"""The workdir of a run that has ended, written without training anything."""

import numpy as np

from drnas_jax.config import from_config_dict, to_dict
from drnas_jax.configs import nasbench201
from drnas_jax.files import append_history, write_json
from drnas_jax.genotype import save, to_cells, to_json
from drnas_jax.phases.confusions import Evaluation
from drnas_jax.spaces import nasbench201 as space

EPOCHS, EDGES = 6, len(space.CELL.edges)

# A table of the user's own. It knows all cells, so that those drawn from a history are in it.
TABLE = """
from drnas_jax.tables import Table


class Convolutions(Table):
    title = "The table of convolutions"
    space = "nasbench201"

    def accuracies(self, genotype):
        names = [name for node in genotype.cell("cell") for name, _ in node]
        count = names.count("nor_conv_3x3")
        return {"images": 15.0 * count, "sounds": 1.0 + count}

    def rank(self, genotype):
        return 8 - int(self.accuracies(genotype)["sounds"]), 7


def create(file):
    assert file == ""
    return Convolutions()
"""


def cell(name):
    """One operation on every edge."""
    return space.parse("|N~0|+|N~0|N~1|+|N~0|N~1|N~2|".replace("N", name))


def line(epoch):
    stage = 1 + (epoch > EPOCHS // 2)
    row = [1.0, None if stage == 2 else 0.5, 1.0, 1.0 + epoch, 0.7]
    return {
        "stage": stage,
        "epoch": epoch,
        "train_loss": 2.0,
        "train_accuracy": 0.1 * epoch,
        "valid_loss": 2.1,
        "valid_accuracy": 0.09 * epoch,
        "entropy": 1.6 - 0.1 * epoch,
        "concentration": {"cell": [row] * EDGES},
        "genotype": to_cells(cell("nor_conv_3x3")),
        "images_per_second": 10.0,
    }


def make(directory, root, seed=0, **changes):
    """Writes the workdir of a run that has ended.

    Args:
      directory: Path of the workdir.
      root: Folder for the table.
      seed: Seed of the run.
      changes: Changed fields of the config, with `__` for a dot.
    """
    (root / "convolutions.py").write_text(TABLE)
    config = nasbench201.get_config("smoke")
    config.seed, config.table.name = seed, str(root / "convolutions.py")
    config.search.epochs = (EPOCHS // 2, EPOCHS // 2)
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    described = {"config": to_dict(from_config_dict(config)), "versions": {"jax": "1"}}
    write_json(directory / "config.json", {**described, "devices": ["<cpu>"]})
    for epoch in range(1, EPOCHS + 1):
        append_history(directory / "search/history.jsonl", line(epoch))
    save(directory / "search/genotype.json", cell("nor_conv_3x3"), {})
    for epoch in range(1, 4):
        trained = {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.2 * epoch}
        append_history(directory / "retrain/history.jsonl", trained)
    result = {
        "genotype": to_json(cell("nor_conv_3x3")),
        "params": 12345, "macs": 67890, "search_seconds": 61.0, "retrain_seconds": 7.0,
        "test_accuracy": 0.8765, "test_top5": 0.99, "seed": seed,
    }  # fmt: skip
    write_json(directory / "result.json", result)
    label, predicted = np.array([0] * 6 + [1] * 3), np.array([0, 1, 1, 1, 1, 2, 0, 0, 1])
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (label, predicted), 1)
    wrong = np.array([1, 2, 3, 5, 6, 7])
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    confidence = np.linspace(0.9, 0.6, 6, dtype=np.float32)
    errors = wrong, label[wrong], predicted[wrong], confidence, pictures
    classes = ("cat", "<dog>", "a class with a long name, " * 4)
    Evaluation(classes, confusion, *errors).save(directory / "evaluation.npz")
    return directory
