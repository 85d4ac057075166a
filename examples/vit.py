"""A search space of your own without convolutions: a small vision transformer.

    python -m drnas_jax.main --config=configs/digits.py --config.space=examples/vit.py \
        --config.search.optimizer=adamw --config.search.lr=3e-3 \
        --config.search.operations='(4,2)' --config.search.partial_channels='(1,1)' \
        --config.retrain.optimizer=adamw --config.retrain.lr=3e-3 --workdir=runs/vit

Each block makes two choices: the number of attention heads, or no attention; and the width of its
perceptron, or none. So edges differ in their number of operations. `search.cells` groups of
`blocks` blocks follow each other and share their choices, but not their weights.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from drnas_jax.config import at_least, field
from drnas_jax.errors import UserError
from drnas_jax.nn.mixed import FinalNetwork, MixedOp
from drnas_jax.spaces.base import Cell, Edge, Space, SupernetSpec, check_divisible

ATTENTION = ("skip", "heads_2", "heads_4")
PERCEPTRON = ("skip", "ratio_1", "ratio_2", "ratio_4")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the space, set by `--config.space_options.FIELD`."""

    patch: int = field(2, "Side of a patch in pixels.", at_least(1))
    blocks: int = field(2, "Blocks that choose for themselves.", at_least(1))
    dropout: float = field(0.1, "Rate of dropout in training.", at_least(0))


class Perceptron(nn.Module):
    """Two dense layers with a nonlinearity between them."""

    ratio: int
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.ratio * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(nn.Dropout(self.dropout, deterministic=not self.train)(y))


class Transformer(nn.Module):
    """Patches, blocks, pooling and classifier; a choice is a residual branch."""

    choices: tuple[tuple[str, ...], ...]
    spec: object
    options: Options

    @nn.compact
    def __call__(self, x, mix, train):
        spec, options = self.spec, self.options

        def operation(name):
            kind, _, number = name.partition("_")
            if kind == "heads":
                return nn.MultiHeadDotProductAttention(
                    int(number), dropout_rate=options.dropout, deterministic=not train
                )
            if kind == "ratio":
                return Perceptron(int(number), options.dropout, train)
            return jnp.zeros_like  # the branch adds nothing

        patch = (options.patch, options.patch)
        x = nn.Conv(spec.channels, patch, strides=patch, name="patches")(x)
        x = x.reshape(x.shape[0], -1, spec.channels)
        x += self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for group in range(spec.depth):
            for choice, primitives in enumerate(self.choices):
                mixed = MixedOp(primitives, operation, name=f"mixed_{group}_{choice}")
                norm = nn.LayerNorm(name=f"norm_{group}_{choice}")
                x += mixed(norm(x), mix["vit_block"][choice])
        return nn.Dense(spec.classes)(jnp.mean(nn.LayerNorm(name="last_norm")(x), axis=1))


class VisionTransformer(Space):
    """The space; its only cell type has two edges for each block."""

    name = "vit"

    def __init__(self, options):
        self.options = options
        lists = (ATTENTION, PERCEPTRON) * options.blocks
        edges = (Edge(i + 1, i, primitives) for i, primitives in enumerate(lists))
        self.cells = {"vit_block": Cell(tuple(edges))}

    def check(self, spec):
        """See Space.check."""
        super().check(spec)
        check_divisible(spec.image, self.options.patch)
        if spec.channels % 4:
            raise UserError(
                f"{spec.channels} channels cannot be shared by 4 heads: set search.channels and "
                "retrain.channels to multiples of 4"
            )
        if isinstance(spec, SupernetSpec) and spec.partial_channels > 1:
            raise UserError(
                "transformers have no partial channels: set search.partial_channels to 1s"
            )

    def supernet(self, spec, backend):
        """See Space.supernet."""
        choices = tuple(edge.primitives for edge in spec.cell("vit_block").edges)
        return Transformer(choices, spec, self.options)

    def network(self, spec, backend):
        """See Space.network."""
        choices = tuple((name,) for ((name, _),) in spec.genotype.cell("vit_block"))
        return FinalNetwork(Transformer(choices, spec, self.options), spec.genotype)


def create(options):
    """Returns the space."""
    return VisionTransformer(options)
