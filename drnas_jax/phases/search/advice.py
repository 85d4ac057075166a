"""Warnings about the result of a search, for the terminal and the report."""

from drnas_jax.config import Config
from drnas_jax.phases.search.comparison import Comparison

_ROUNDING = 1e-9  # relative error of sums of costs


def is_cheapest(exact: float, smallest: float, largest: float) -> bool:
    """Returns whether a network costs as little as any network of a space whose costs differ.

    Args:
      exact: Cost of the network.
      smallest: Cost of the cheapest network of the space.
      largest: Cost of the largest network of the space.
    """
    return exact <= smallest * (1 + _ROUNDING) < largest


def warnings_about(config: Config, compared: Comparison | None, cheapest: bool) -> list[str]:
    """Returns what speaks against the result of a search, each with a remedy.

    Args:
      config: Config of the run.
      compared: Comparison of the result with random cells, or None.
      cheapest: Whether the result is the cheapest network of the space.
    """
    weight = ["lower cost.weight"] if config.cost.weight else []
    target = ["raise cost.target"] if config.cost.target else []
    training = "train alpha for longer (more search.epochs or fewer search.warmup_epochs)"
    warnings = []
    if cheapest:
        remedy = _either([*weight, *target] or [training])
        warnings.append(f"the result is the cheapest network of the space: {remedy}")
    if compared and compared.accuracy < compared.mean:
        warnings.append(
            "the result is less accurate in the supernet than the mean of the random cells, so the "
            f"search found nothing better than chance: {_either([training, *weight])}"
        )
    return [f"{warning}, in a new workdir" for warning in warnings]


def _either(remedies: list[str]) -> str:
    return " or ".join(remedies)
