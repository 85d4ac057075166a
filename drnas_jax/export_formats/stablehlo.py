"""The format `stablehlo`: a program that JAX runs without this package, `model.stablehlo`.

It holds a network of any search space with its weights. Later releases of JAX read it for at least
six months (https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax import export

from drnas_jax.export_formats.base import Format, Network
from drnas_jax.files import write_bytes
from drnas_jax.spaces.base import Space

FILE = "model.stablehlo"


class StableHLO:
    """The format `stablehlo`, one file `model.stablehlo`."""

    def check(self, space: Space) -> None:
        """Accepts every space."""

    def write(self, network: Network, directory: Path) -> list[Path]:
        """Writes the serialised `jax.export.Exported`."""
        batch_size = network.batch_size or export.symbolic_shape("n")[0]
        images = jax.ShapeDtypeStruct((batch_size, *network.shape), network.dtype)
        program = jax.jit(network.apply)
        try:
            with _without_locations():
                exported = export.export(program, platforms=network.platforms)(images)
        except Exception as error:  # a bug of a user's network, whose traceback is of more use
            if not network.batch_size:
                error.add_note(
                    "raised while the network was traced for batches of any size: if it does not "
                    "suit them, set export.batch_size"
                )
            raise
        file = directory / FILE
        write_bytes(file, bytes(exported.serialize()))
        return [file]


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """While this context is active, programs do not record which source files they come from."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def create() -> Format:
    """Returns the format."""
    return StableHLO()
