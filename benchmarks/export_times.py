"""Sizes and load times of the exported files of drnas_cifar10, C 36, 20 cells.

    python benchmarks/export_times.py [WORKDIR]

The network is retrained for one step on random images of CIFAR-10's shape, since weights do not
change sizes and times. Each file is then loaded in a process of its own. Prints JSON lines.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from drnas_jax import export, retrain
from drnas_jax.configs import cifar10

FORMATS = ("stablehlo", "torch")
# Loads one file and prints the times, in seconds.
LOAD = """
import json, sys, time
import numpy as np
file = sys.argv[1]
times = {}

def measure(name, function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    times[name] = round(time.perf_counter() - began, 4)
    return result

if file.endswith(".stablehlo"):
    import jax
    load = lambda: jax.jit(jax.export.deserialize(bytearray(open(file, "rb").read())).call)
    program = measure("load", load)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    run = lambda: jax.block_until_ready(program(images))
    measure("first_call", run)
    measure("second_call", run)
elif file.endswith(".npz"):
    measure("load", lambda: dict(np.load(file)))
elif file.endswith(".safetensors"):
    from safetensors.numpy import load_file
    measure("load", load_file, file)
print(json.dumps(times))
"""


def trained(workdir: Path) -> dict:
    """Retrains the network for one step and exports it; returns the card."""
    config = cifar10.get_config()
    config.genotype, config.retrain.epochs, config.retrain.batch_size = "drnas_cifar10", 1, 32
    config.export.formats = FORMATS
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 10
    images = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    arrays = dict(x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    retrain(config, workdir, arrays)
    began = time.perf_counter()
    card = export(config, workdir, arrays).card
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"export_seconds": seconds, **card["network"], "versions": card["versions"]}))
    return dict(card)


def main(workdir: Path) -> None:
    """Prints a line for the export, and a line for each file."""
    for entry in trained(workdir)["files"]:
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
