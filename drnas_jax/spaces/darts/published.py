"""Cells of the DARTS space that papers published, by the names that `config.genotype` takes."""

from drnas_jax.genotype import Cell, Genotype


def _darts(normal: Cell, reduce: Cell) -> Genotype:
    return Genotype("darts", (("normal", normal), ("reduce", reduce)))


PUBLISHED: dict[str, Genotype] = {
    # DrNAS (arXiv 2006.10355), searched on CIFAR-10.
    "drnas_cifar10": _darts(
        normal=(
            (("sep_conv_3x3", 0), ("sep_conv_5x5", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 2), ("dil_conv_5x5", 3)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("sep_conv_5x5", 1)),
            (("dil_conv_5x5", 2), ("sep_conv_5x5", 1)),
            (("sep_conv_5x5", 1), ("dil_conv_5x5", 3)),
            (("skip_connect", 4), ("sep_conv_5x5", 1)),
        ),
    ),
    # DrNAS (arXiv 2006.10355), searched on ImageNet.
    "drnas_imagenet": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("dil_conv_3x3", 3)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 2)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 2)),
            (("sep_conv_3x3", 3), ("sep_conv_3x3", 1)),
        ),
    ),
    # DARTS (arXiv 1806.09055), first order, searched on CIFAR-10.
    "darts_v1": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 2)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 0)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("avg_pool_3x3", 0)),
        ),
    ),
    # DARTS (arXiv 1806.09055), second order, searched on CIFAR-10.
    "darts_v2": _darts(
        normal=(
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("skip_connect", 0), ("dil_conv_3x3", 2)),
        ),
        reduce=(
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
        ),
    ),
    # PC-DARTS (arXiv 1907.05737), searched on CIFAR-10.
    "pc_darts_cifar": _darts(
        normal=(
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("sep_conv_3x3", 0), ("dil_conv_3x3", 1)),
            (("sep_conv_5x5", 0), ("sep_conv_3x3", 1)),
            (("avg_pool_3x3", 0), ("dil_conv_3x3", 1)),
        ),
        reduce=(
            (("sep_conv_5x5", 1), ("max_pool_3x3", 0)),
            (("sep_conv_5x5", 1), ("sep_conv_5x5", 2)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
        ),
    ),
    # PC-DARTS (arXiv 1907.05737), searched on ImageNet.
    "pc_darts_imagenet": _darts(
        normal=(
            (("skip_connect", 1), ("sep_conv_3x3", 0)),
            (("sep_conv_3x3", 0), ("skip_connect", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 1), ("dil_conv_5x5", 4)),
        ),
        reduce=(
            (("sep_conv_3x3", 0), ("skip_connect", 1)),
            (("dil_conv_5x5", 2), ("max_pool_3x3", 1)),
            (("sep_conv_3x3", 2), ("sep_conv_3x3", 1)),
            (("sep_conv_5x5", 0), ("sep_conv_3x3", 3)),
        ),
    ),
}
