"""Makes the files that the parity tests read, with the authors' PyTorch code.

    python tests/make_reference.py CHECKOUT OUT_DIR [NAME ...]

CHECKOUT is a clone of https://github.com/xiangning-chen/DrNAS, which has no licence file: it is not
part of this project, and none of it is copied here. The script needs PyTorch (a CPU suffices) and
NumPy, but not drnas_jax. The tests look for OUT_DIR at ../shared/reference, beside the repository.

Each NAME.npz has the weights of a small network (`w:NAME`), inputs (`x`, `y`, and `mix` for a
supernet), and what PyTorch computes from them in float64: logits, loss, gradients (`g:NAME`,
`grad_mix`) and running statistics after the training pass (`after:NAME`). In the files of pruned
supernets, `alphas`, `mask` and `pruned_alphas` are those of the official pruning, after which the
channels were widened. `relu_margin` is the smallest distance of a ReLU's input from 0: below about
1e-5 the rounding of float32 may change its sign, and the tests then compare norms of gradients.
The two final networks have so many of these inputs that this happens: of the file
cifar_network that PyTorch 2.14.1 gave, one gradient was off by 1.04 % of its norm, where the tests
allow 1 %. More `SEEDS` make it less likely.
genotypes.json has the published cells.

Not made: counts.csv (parameters and multiply-adds of whole networks), and a final network of
NAS-Bench-201, which the official code does not have.
"""

import contextlib
import importlib
import importlib.util
import json
import math
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

SEEDS = 8  # tried for each file; the one with the largest margin is kept
CLASSES = 10
AUXILIARY_WEIGHT = 0.4
CELLS = (
    *("DrNAS_cifar10", "DrNAS_imagenet", "DARTS_V1", "DARTS_V2"),
    *("PC_DARTS_cifar", "PC_DARTS_image"),
)


class Reference(NamedTuple):
    """One file: the sizes of its network and of its images.

    Attributes:
      module: Module of the official code, with the folder that it is in.
      sizes: Sizes that the file records.
      images: Number of images.
      side: Side of an image in pixels.
      pruned: K before the network was pruned and widened, and the operations kept; None if it was
        not.
    """

    module: str
    sizes: Mapping[str, Any]
    images: int
    side: int
    pruned: tuple[int, int] | None = None


FILES = {
    "nb201_search_k1": Reference("201-space/search_model", {"C": 4, "N": 2, "k": 1}, 4, 16),
    "nb201_search_k4": Reference("201-space/search_model", {"C": 8, "N": 1, "k": 4}, 4, 16),
    "nb201_search_pruned": Reference(
        "201-space/search_model", {"C": 8, "N": 1, "k": 2}, 4, 16, (4, 3)
    ),
    "darts_search_k1": Reference("DARTS-space/model_search", {"C": 4, "layers": 4, "k": 1}, 4, 16),
    "darts_search_k4": Reference("DARTS-space/model_search", {"C": 8, "layers": 5, "k": 4}, 4, 16),
    "darts_search_pruned": Reference(
        "DARTS-space/model_search", {"C": 12, "layers": 5, "k": 3}, 4, 16, (6, 4)
    ),
    "darts_search_imagenet": Reference(
        "DARTS-space/model_search_imagenet", {"C": 12, "layers": 5, "k": 6}, 4, 64
    ),
    "cifar_network": Reference(
        "DARTS-space/model", {"C": 4, "layers": 6, "genotype": "DrNAS_cifar10"}, 8, 32
    ),
    "imagenet_network": Reference(
        "DARTS-space/model", {"C": 8, "layers": 5, "genotype": "DrNAS_imagenet"}, 4, 224
    ),
}


@contextlib.contextmanager
def official(checkout: Path, folder: str) -> Iterator[None]:
    """Lets the modules of one folder of the checkout be imported, and forgets them at the end.

    The official code asks for a GPU in its constructors, and for torchvision only to load images:
    tensors stay where they are, and torchvision need not be there.
    """
    torch.Tensor.cuda = lambda self, *args, **options: self
    nn.Module.cuda = lambda self, *args, **options: self
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    paths, known = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(checkout / folder), str(checkout)]
    try:
        yield
    finally:
        sys.path[:] = paths
        for name in set(sys.modules) - known:
            if str(checkout) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def build(module: Any, reference: Reference) -> nn.Module:
    """Returns the network of a file, with random weights in float32."""
    sizes, loss = reference.sizes, nn.CrossEntropyLoss()
    if "genotype" in sizes:
        cell = getattr(importlib.import_module("genotypes"), sizes["genotype"])
        kind = module.NetworkImageNet if "imagenet" in sizes["genotype"] else module.NetworkCIFAR
        network = kind(sizes["C"], CLASSES, sizes["layers"], True, cell)
        network.drop_path_prob = 0.0
    else:
        k = reference.pruned[0] if reference.pruned else sizes["k"]
        if "N" in sizes:
            names = importlib.import_module("cell_operations").NAS_BENCH_201
            network = module.TinyNetwork(
                C=sizes["C"], N=sizes["N"], max_nodes=4, num_classes=CLASSES, criterion=loss,
                search_space=names, k=k, species="dirichlet",
            )  # fmt: skip
        else:
            network = module.Network(sizes["C"], CLASSES, sizes["layers"], loss, k=k)
        for alpha in network.arch_parameters():
            nn.init.normal_(alpha)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in (
                *((layer.weight, 0.5, 1.5), (layer.bias, -0.3, 0.3)),
                *((layer.running_mean, -0.3, 0.3), (layer.running_var, 0.5, 1.5)),
            ):
                if values is not None:
                    nn.init.uniform_(values, low, high)
    return network


def alphas_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the architecture parameters by the ending of their arrays' names; {} if none."""
    if hasattr(network, "_arch_parameters") and isinstance(network._arch_parameters, nn.Parameter):
        return {"": network._arch_parameters}
    if hasattr(network, "alphas_normal"):
        return {"_normal": network.alphas_normal, "_reduce": network.alphas_reduce}
    return {}


def prune(network: nn.Module, reference: Reference) -> dict[str, np.ndarray]:
    """Prunes and widens a supernet as a search does between two stages; returns what it did."""
    if not reference.pruned:
        return {}
    values = {f"alphas{end}": array(alpha) for end, alpha in alphas_of(network).items()}
    with torch.no_grad():
        network.pruning(reference.pruned[1])
        network.wider(reference.sizes["k"])
    for end, alpha in alphas_of(network).items():
        values[f"mask{end}"] = getattr(network, f"mask{end}" if end else "_mask").numpy()
        values[f"pruned_alphas{end}"] = array(alpha)
    return values


def mixing_weights(network: nn.Module, pruned: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns random mixing weights, float32 with rows of sum 1, zero for pruned operations."""
    mixes = {}
    for end, alpha in alphas_of(network).items():
        mix = torch.distributions.Exponential(1.0).sample(alpha.shape)
        if pruned:
            mix *= torch.from_numpy(pruned[f"mask{end}"])
        mixes[f"mix{end}"] = mix / mix.sum(dim=1, keepdim=True)
    return mixes


def compute(
    module: Any, network: nn.Module, mixes: dict[str, torch.Tensor], x: torch.Tensor, y: Any
) -> dict[str, np.ndarray]:
    """Runs a network in evaluation and in training, in float64, and returns the outputs."""
    network.double()
    leaves = {name: mix.double().requires_grad_() for name, mix in mixes.items()}
    mix_of = {
        id(alpha): leaves[f"mix{end}"]
        for end, alpha in (alphas_of(network).items() if mixes else ())
    }
    module.process_step_matrix = lambda alpha, *args: mix_of[id(alpha)]
    pixels = x.double().permute(0, 3, 1, 2)
    with torch.no_grad():
        evaluated = network.eval()(pixels)
    margins = [math.inf]
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(lambda _, inputs: margins.append(margin(inputs[0])))
    trained = network.train()(pixels)
    (logits, auxiliary) = trained if isinstance(trained, tuple) else (trained, None)
    loss = nn.functional.cross_entropy(logits, y)
    if auxiliary is not None:
        loss = loss + AUXILIARY_WEIGHT * nn.functional.cross_entropy(auxiliary, y)
    loss.backward()
    out = {
        "logits_eval": evaluated[0] if isinstance(evaluated, tuple) else evaluated,
        "logits_train": logits,
        "loss": loss,
        **({} if auxiliary is None else {"logits_aux": auxiliary}),
        **{f"grad_{name}": leaf.grad for name, leaf in leaves.items()},
        **{
            f"g:{name}": torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in network.named_parameters()
        },
        **{f"after:{name}": value for name, value in network.named_buffers() if value.ndim},
    }
    return {name: array(value) for name, value in out.items()} | {
        "relu_margin": np.float32(min(margins))
    }


def margin(inputs: torch.Tensor) -> float:
    """Returns the distance from 0 of the input that is nearest to it without being 0."""
    distances = inputs.detach().abs()
    return distances[distances > 0].min().item() if distances.any() else math.inf


def array(value: torch.Tensor) -> np.ndarray:
    """Returns a copy of a tensor, in float32."""
    return value.detach().numpy().astype(np.float32)


def make(checkout: Path, name: str, seed: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one file by name."""
    reference = FILES[name]
    folder, module_name = reference.module.split("/")
    torch.manual_seed(seed)
    with official(checkout, folder):
        module = importlib.import_module(module_name)
        network = build(module, reference)
        pruned = prune(network, reference)
        mixes = mixing_weights(network, pruned)
        x = torch.randn(reference.images, reference.side, reference.side, 3)
        y = torch.randint(CLASSES, (reference.images,))
        given = {f"w:{key}": array(value) for key, value in network.state_dict().items()}
        given = {key: value for key, value in given.items() if value.ndim}  # no counters
        given |= {key: array(value) for key, value in {"x": x, **mixes}.items()}
        given |= {"y": y.numpy(), **pruned}
        given |= {key: np.array(value) for key, value in reference.sizes.items()}
        if "N" in reference.sizes:
            given["edge_order"] = np.array(network.cells[0].edge_keys)
        return given | compute(module, network, mixes, x, y)


def genotypes(checkout: Path) -> dict[str, Any]:
    """Returns the published cells as JSON values."""
    with official(checkout, "DARTS-space"):
        module = importlib.import_module("genotypes")
        cells = {name: getattr(module, name)._asdict() for name in CELLS}
    return {name: {key: list(value) for key, value in cell.items()} for name, cell in cells.items()}


def main(arguments: list[str]) -> None:
    """Makes the files that are named, or all of them."""
    unknown = sorted({*arguments[2:]} - {*FILES})
    if len(arguments) < 2 or unknown:
        sys.exit(
            f"usage: make_reference.py CHECKOUT OUT_DIR [NAME ...], NAME of {', '.join(FILES)}"
        )
    checkout, folder = (Path(argument).absolute() for argument in arguments[:2])
    for space in ("201-space", "DARTS-space"):
        if not (checkout / space).is_dir():
            sys.exit(f"{checkout} has no folder {space}: give a clone of the official repository")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "genotypes.json").write_text(json.dumps(genotypes(checkout), indent=1))
    for name in arguments[2:] or FILES:
        made = (make(checkout, name, seed) for seed in range(SEEDS))
        best = max(made, key=lambda values: float(values["relu_margin"]))
        np.savez(folder / f"{name}.npz", **best)
        print(f"{name}: smallest distance of a ReLU's input from 0: {best['relu_margin']:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
