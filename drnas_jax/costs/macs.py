"""The cost `macs`: the multiply-adds of convolutions and dense layers for one image."""

from drnas_jax.costs.base import AdditiveCost, Cost
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_macs
from drnas_jax.spaces.base import NetworkSpec, Space


class Macs(AdditiveCost):
    """The multiply-adds of a final network, counted in its traced program."""

    unit = "multiply-adds"

    def exact(self, space: Space, network: NetworkSpec) -> float:
        """Returns the number of multiply-adds for one image."""
        return count_macs(space.network(network, backend.PLAIN), network.image)


def create() -> Cost:
    """Returns the cost."""
    return Macs()
