"""Sizes and load times of the exported files of drnas_cifar10, C 36, 20 cells.

    python benchmarks/export_times.py [WORKDIR]

Sizes and times do not depend on the weights, so the network has random ones and is not trained.
Each file is loaded in a process of its own. Prints a JSON line for the export and one for each
file. Times are CPU seconds of the process, so that a busy machine does not change them. All but
that of the first call, which compiles, are the least of five.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from drnas_jax import export, spaces
from drnas_jax.config import from_config_dict
from drnas_jax.configs import cifar10
from drnas_jax.data import TrainingData
from drnas_jax.nn.backend import CPU
from drnas_jax.phases.retrain.retraining import RetrainMetadata
from drnas_jax.phases.setup import split_variables
from drnas_jax.training.checkpoints import Checkpoints
from drnas_jax.training.progress import Progress

FORMATS = ("stablehlo", "onnx", "torch")
# Loads one file and prints the times in seconds.
LOAD = """
import json, sys, time
import numpy as np
file = sys.argv[1]
times = {}

def measure(name, function, *arguments, repeat=5):
    seconds = []
    for _ in range(repeat):
        began = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - began)
    times[name] = round(min(seconds), 3)
    return result

if file.endswith(".stablehlo"):
    import jax
    load = lambda: jax.jit(jax.export.deserialize(bytearray(open(file, "rb").read())).call)
    program = measure("load", load)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    run = lambda: jax.block_until_ready(program(images))
    measure("first_call", run, repeat=1)
    measure("next_call", run)
elif file.endswith(".npz"):
    measure("load", lambda: dict(np.load(file)))
elif file.endswith(".safetensors"):
    from safetensors.numpy import load_file
    measure("load", load_file, file)
print(json.dumps(times))
"""


def write_checkpoint(workdir: Path, epochs: int) -> None:
    """Writes the checkpoint of a retraining that has ended, with random weights."""
    data = TrainingData("cifar10", tuple("abcdefghij"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    genotype = spaces.load_genotype("drnas_cifar10")
    metadata = RetrainMetadata(genotype, "darts", channels=36, depth=20, data=data)
    network = spaces.create("darts").network(metadata.spec, CPU)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), image)
    rng = np.random.default_rng(0)
    random = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype("f4"), shapes)
    params, variables = split_variables(random)
    progress = Progress(epochs, 1.0, devices=1, jax="", images=1, fingerprint=0, steps=1)
    with Checkpoints(workdir / "retrain/checkpoints") as checkpoints:
        state = {"params": params, "variables": variables}
        checkpoints.save(epochs, state, progress, metadata.to_json())


def write_export(workdir: Path) -> dict:
    """Exports the network and returns the card."""
    config = cifar10.get_config()
    config.export.formats = FORMATS
    config = from_config_dict(config)
    write_checkpoint(workdir, config.retrain.epochs)
    began = time.process_time()
    card = dict(export(config, workdir).card)
    seconds = round(time.process_time() - began, 1)
    line = {"export_seconds": seconds, **card["network"], "versions": card["versions"]}
    print(json.dumps(line), flush=True)
    return card


def main(workdir: Path) -> None:
    """Prints a line for the export and one for each file."""
    for entry in write_export(workdir)["files"]:
        command = [sys.executable, "-c", LOAD, str(workdir / "export" / entry["name"])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line = {"file": entry["name"], "mb": round(entry["bytes"] / 1e6, 2)}
        print(json.dumps({**line, **json.loads(done.stdout)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
