"""The cost `params`: the number of parameters of a final network."""

from drnas_jax.costs.base import AdditiveCost, Cost
from drnas_jax.nn import backend
from drnas_jax.nn.counting import count_network_parameters
from drnas_jax.spaces.base import NetworkSpec, Space


class Params(AdditiveCost):
    """The parameters of a final network; batch statistics are not among them."""

    unit = "parameters"

    def exact(self, space: Space, network: NetworkSpec) -> float:
        """Returns the number of parameters."""
        return count_network_parameters(space.network(network, backend.PLAIN), network.image)


def create() -> Cost:
    """Returns the cost."""
    return Params()
