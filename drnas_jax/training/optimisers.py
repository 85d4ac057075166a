"""The optimisers of weights and of alpha, in optax."""

import optax

from drnas_jax.config import ArchConfig, RetrainConfig, SearchConfig


def learning_rate(
    config: SearchConfig | RetrainConfig, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Cosine or linear decay to `lr_end` over all epochs; a linear warm-up replaces its begin."""
    warmup, steps = config.lr_warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if config.lr_schedule == "cosine":
        end = config.lr_end / config.lr if config.lr else 0.0
        decay = optax.cosine_decay_schedule(config.lr, steps, alpha=end)
    else:
        decay = optax.linear_schedule(config.lr, config.lr_end, steps)
    if not warmup:
        return decay
    rise = optax.linear_schedule(config.lr / warmup, config.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, lambda step: decay(step + warmup)], [warmup])


def clip(max_norm: float) -> optax.GradientTransformation:
    """Clipping by the global norm, or nothing where `max_norm` is 0."""
    return optax.clip_by_global_norm(max_norm) if max_norm else optax.identity()


def weight_optimiser(
    config: SearchConfig | RetrainConfig,
    steps_per_epoch: int,
    epochs: int,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay, which is added after clipping as in PyTorch."""
    return optax.chain(
        clip(config.clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(learning_rate(config, steps_per_epoch, epochs), config.momentum, nesterov),
    )


def alpha_optimiser(config: ArchConfig) -> optax.GradientTransformation:
    """Adam. The step clips alpha's gradient before, and then adds the regulariser's."""
    return optax.adam(config.lr, b1=config.b1, b2=config.b2)
