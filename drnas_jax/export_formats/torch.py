"""The format `torch`: a state_dict by the names of the authors' PyTorch code.

`model.npz` and `model.safetensors` hold the same tensors, float32 in PyTorch's layout. They load
into `NetworkCIFAR` and `NetworkImageNet` of DrNAS, built without an auxiliary head, and into
`TinyNetwork` of AutoDL-Projects for NAS-Bench-201. An auxiliary head, which helps only training, is
not among them.
"""

import io
from pathlib import Path

import numpy as np
import safetensors.numpy

from drnas_jax.errors import UserError
from drnas_jax.export_formats.base import Format, Network
from drnas_jax.files import write_bytes
from drnas_jax.spaces.base import Space
from drnas_jax.torch_names import has_original, network_links, to_torch


class Torch:
    """The format `torch`, the files `model.npz` and `model.safetensors`."""

    def check(self, space: Space) -> None:
        """Raises UserError unless the authors' PyTorch code has the networks of the space."""
        if not has_original(space):
            raise UserError(
                f"export.formats has 'torch', but networks of the space {space.name} have no "
                "original in PyTorch whose names they could take: set export.formats=stablehlo"
            )

    def write(self, network: Network, directory: Path) -> list[Path]:
        """Writes both files."""
        tensors = state_dict(network)
        arrays, weights = directory / "model.npz", directory / "model.safetensors"
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **tensors)
        write_bytes(arrays, buffer.getvalue())
        write_bytes(weights, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
        return [arrays, weights]


def state_dict(network: Network) -> dict[str, np.ndarray]:
    """Returns the tensors of a network by the names of the authors' code.

    They are float32 in PyTorch's layout, except for the number of batches that each BatchNorm has
    seen, int64: it is 0, which has no effect on the outputs.

    Args:
      network: Network of the DARTS space, of a subspace or of NAS-Bench-201.

    Raises:
      UserError: The network has an operation that the authors' code lacks.
    """
    tensors = to_torch(network_links(network.space, network.spec), network.variables)
    norms = [name for name in tensors if name.endswith("running_mean")]
    counts = {name.replace("running_mean", "num_batches_tracked"): np.int64(0) for name in norms}
    return {**tensors, **{name: np.asarray(count) for name, count in counts.items()}}


def create() -> Format:
    """Returns the format."""
    return Torch()
