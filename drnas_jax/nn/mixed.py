"""Building blocks for a search space of your own, in plain Flax."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnas_jax.genotype import Genotype
from drnas_jax.nn.stacked_params import channel_shuffle, scaled

Array = jax.Array


class MixedOp(nn.Module):
    """The weighted sum of the operations that an edge keeps.

    Each operation has parameters under its own name, so that pruning an operation removes its
    parameters and no others.

    Attributes:
      primitives: Names of the operations, in the order of the mixing weights.
      make: Function of a name that returns the operation: a module, or a function of the input if
        it has no parameters. Modules are renamed after the operation.
    """

    primitives: tuple[str, ...]
    make: Callable[[str], Callable[[Array], Array]]

    @nn.compact
    def __call__(self, x: Array, weights: Array) -> Array:
        """Returns the sum of the operations of x, each times its mixing weight.

        Args:
          x: Input of all operations.
          weights: Mixing weights [o]; entries beyond the number of operations are not read.
        """
        terms = []
        for weight, name in zip(weights, self.primitives, strict=False):
            operation = self.make(name)
            if isinstance(operation, nn.Module):
                operation = operation.clone(parent=self, name=name)
            terms.append(scaled(operation(x), weight))
        return sum(terms[1:], start=terms[0])


class FinalNetwork(nn.Module):
    """The final network of a genotype, made of a supernet's module.

    Attributes:
      model: Module called as (x, mix, train), with one operation on each edge of the genotype.
      genotype: The genotype; each of its edges has the mixing weight 1.
    """

    model: nn.Module
    genotype: Genotype

    def __call__(self, x: Array, train: bool) -> Array:
        """Returns the logits [b, classes] for images [b, h, w, c]."""
        counts = {cell_type: sum(map(len, cell)) for cell_type, cell in self.genotype.cells}
        mix = {cell_type: jnp.ones((count, 1)) for cell_type, count in counts.items()}
        return self.model(x, mix, train)


def partial_channels(function: Callable[[Array], Array], x: Array, k: int) -> Array:
    """Applies a function to the first 1/K of the channels and leaves the others as they are.

    The channels are shuffled afterwards, so that the next call transforms other ones
    (arXiv 1907.05737).

    Args:
      function: Function that keeps the shape.
      x: Images [b, h, w, c]; K divides c.
      k: K.
    """
    if k == 1:
        return function(x)
    selected, rest = jnp.split(x, [x.shape[-1] // k], axis=-1)
    return channel_shuffle(jnp.concatenate([function(selected), rest], axis=-1), k)
