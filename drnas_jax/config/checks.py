"""Checks that compare several fields."""

from drnas_jax import components
from drnas_jax.config.groups import Config, DataConfig, RetrainConfig
from drnas_jax.config.search import SearchConfig
from drnas_jax.errors import UserError


def check_together(config: Config) -> None:
    """Raises UserError if fields that are valid one by one do not fit together."""
    if config.seed + config.seeds > 2**32:  # JAX would drop the bits above
        last = config.seed + config.seeds - 1
        raise UserError(f"config field seed goes up to {last}: expected less than {2**32}")
    _check_data(config.data)
    _check_search(config.search)
    _check_stages(config.search)
    _check_retrain(config.retrain)
    _check_tuning(config.search)
    _check_warmup("search", config.search, sum(config.search.epochs))
    _check_warmup("retrain", config.retrain, config.retrain.epochs)
    _check_cost(config)
    _check_element(config)
    _check_lists(config)


def _check_data(data: DataConfig) -> None:
    if data.crop == "resized" and not data.image_size:
        raise UserError("data.crop is 'resized', which needs a size: set data.image_size")
    if max((*data.mean, *data.std), default=0) > 1:
        raise UserError(
            f"data.mean is {data.mean} and data.std {data.std}: expected values for pixels in "
            "0..1; divide values for pixels in 0..255 by 255"
        )
    if len(data.mean) != len(data.std) or not all(data.std):
        raise UserError(
            f"data.mean is {data.mean} and data.std {data.std}: expected one number for "
            "each channel in both, with std more than 0, or () in both to measure them"
        )


def _check_search(search: SearchConfig) -> None:
    lengths = {
        name: len(getattr(search, name))
        for name in ("epochs", "partial_channels", "operations", "warmup_epochs")
    }
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"search.{name} has {n} entries" for name, n in lengths.items())
        raise UserError(f"{counts}: expected one entry for each stage in all four")
    if not search.epochs:
        raise UserError("search.epochs is (): expected at least one stage")
    if search.train_fraction + search.alpha_fraction > 1:
        raise UserError(
            f"search.train_fraction is {search.train_fraction} and search.alpha_fraction "
            f"{search.alpha_fraction}: lower one of them, so that their sum is at most 1"
        )


def _check_tuning(search: SearchConfig) -> None:
    epochs = sum(search.epochs) - search.lr_warmup_epochs
    if search.tuning_epochs and search.tuning_epochs >= epochs:
        raise UserError(
            f"search.tuning_epochs is {search.tuning_epochs}: expected fewer than the {epochs} "
            "epochs of the search after its warm-up"
        )


def _check_stages(search: SearchConfig) -> None:
    for i, stage in enumerate(search.stages):
        if search.channels % stage.partial_channels:
            raise UserError(
                f"search.partial_channels[{i}] is K = {stage.partial_channels}, which does not "
                f"divide search.channels = {search.channels}: choose a K that does"
            )
    for name in ("operations", "partial_channels"):
        values = getattr(search, name)
        if list(values) != sorted(values, reverse=True):
            raise UserError(
                f"search.{name} is {values}: expected no more in a stage than in the one before"
            )


def _check_retrain(retrain: RetrainConfig) -> None:
    jitter = retrain.color_jitter
    if len(jitter) not in (0, 4) or (jitter and (max(jitter[:3]) > 1 or jitter[3] > 0.5)):
        raise UserError(
            f"retrain.color_jitter is {jitter}: expected (brightness, contrast, saturation, hue), "
            "the first three up to 1, hue up to 0.5; or ()"
        )


def _check_warmup(phase: str, group: SearchConfig | RetrainConfig, epochs: int) -> None:
    if group.lr_warmup_epochs and group.lr_warmup_epochs >= epochs:
        raise UserError(
            f"{phase}.lr_warmup_epochs is {group.lr_warmup_epochs}: expected fewer than the "
            f"{epochs} epochs of the phase"
        )


def _check_cost(config: Config) -> None:
    cost = config.cost
    for name in ("weight", "target", "targets"):
        if getattr(cost, name) and not cost.name:
            raise UserError(f"cost.{name} is {getattr(cost, name)}, but cost.name is empty: set it")
    if cost.target and cost.targets:
        raise UserError(
            f"cost.target is {cost.target} and cost.targets {cost.targets}: set cost.target to 0, "
            "or cost.targets to ()"
        )
    for target in cost.targets:
        if cost.targets.count(target) > 1:
            raise UserError(
                f"cost.targets is {cost.targets}, which has {target:g} twice: remove one of them"
            )
    for name in ("target", "targets"):
        if getattr(cost, name) and config.retrain.max_macs:
            raise UserError(
                f"cost.{name} is {getattr(cost, name)} and retrain.max_macs "
                f"{config.retrain.max_macs}, which both choose the size of the network: set "
                "retrain.max_macs to 0, or search without a target"
            )


def _check_element(config: Config) -> None:
    targets, seeds = max(len(config.cost.targets), 1), config.seeds
    if config.element > targets * seeds:
        raise UserError(
            f"config field element is {config.element}: expected 1 to {targets * seeds}, for "
            f"{targets} cost targets and {seeds} seeds, or 0 for all of them"
        )


def _check_lists(config: Config) -> None:
    """Raises UserError if a list names something twice or, of what is exported, nothing."""
    export = config.export
    for field, values, example in (
        ("metrics.writers", config.metrics.writers, ""),
        ("export.formats", export.formats, "stablehlo"),
        ("export.platforms", export.platforms, "cpu"),
    ):
        if example and not values:
            raise UserError(f"{field} is (), so nothing can be exported: name {example!r}")
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{field} is {values}, which has {value!r} twice: remove one")
    for name in export.formats:
        components.check_name("format", name, "export.formats")
