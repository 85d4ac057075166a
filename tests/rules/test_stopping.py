"""The stopping rules on made-up series of curvatures and genotypes."""

import json
from types import SimpleNamespace

import pytest

from drnas_jax.genotype import Genotype
from drnas_jax.rules.base import Continue, Stop
from drnas_jax.rules.stopping import curvature, skip_connections


def cell_of(*names):
    """Returns a genotype of one node with these operations."""
    return Genotype("darts", (("normal", (tuple((name, 0) for name in names),)),))


def epochs_of(rule, values, genotypes, stages=None, limit=None):
    """Asks a rule after each epoch; returns the epochs that it measured, and its last decision.

    The memory passes through JSON after each epoch, as in a checkpoint.
    """
    memory, measured = {}, []
    for epoch, (value, genotype) in enumerate(zip(values, genotypes, strict=True), start=1):

        def measure(batches, epoch=epoch, value=value):
            assert batches == 1
            measured.append(epoch)
            return value

        line = {"stage": stages[epoch - 1] if stages else 1}
        view = SimpleNamespace(
            epoch=epoch, epochs=len(values), genotype=genotype, line=line,
            curvature=measure, say=lambda text: None,
        )  # fmt: skip
        decision = rule.decide(view, memory)
        memory = json.loads(json.dumps(memory))
        if isinstance(decision, Stop):
            return measured, epoch, decision
    return measured, None, decision


def jump(at, count=50, low=1.0, high=2.0):
    """Returns curvatures that jump after an epoch."""
    return [high if epoch > at else low for epoch in range(1, count + 1)]


@pytest.mark.parametrize(
    ("options", "values", "stopped", "returned"),
    [
        # Of five measurements two at 2 give a mean of 1.4: epochs 22 and 24, after 10, 12, ..., 18.
        ({}, jump(20), 24, 12),
        # One at 2 gives 1.2. With a lower factor it is enough.
        (dict(factor=1.15), jump(20), 22, 10),
        # The old window moves with the new one, so a slow rise of 1 % an epoch never stops it.
        ({}, [1.01**epoch for epoch in range(50)], None, None),
        ({}, [1.04**epoch for epoch in range(50)], 22, 10),
        # It may return to epoch 10 at the earliest, or to the epoch that the option says.
        ({}, jump(2), None, None),
        (dict(first_epoch=6), jump(10), 18, 6),
        (dict(window=1, distance=1, frequency=1, first_epoch=1), jump(3), 4, 3),
        (dict(window=3, distance=2, frequency=1, first_epoch=1), jump(10), 11, 8),
        # Averages of 0 or less are no scale, whatever follows them.
        ({}, jump(30, low=-1.0, high=-0.5), None, None),
        ({}, [1.0] * 50, None, None),
    ],
)
def test_a_search_stops_when_the_average_curvature_has_risen(options, values, stopped, returned):
    # Would catch windows that are shifted by one, a mean over other epochs, and the genotype of
    # another epoch than that in the middle of the old window.
    options = curvature.Options(**options)
    genotypes = [cell_of(f"epoch_{epoch}") for epoch in range(1, len(values) + 1)]
    measured, epoch, decision = epochs_of(curvature.create(options), values, genotypes)
    assert epoch == stopped
    assert measured == [
        e for e in range(1, (stopped or len(values)) + 1) if e % options.frequency == 0
    ]
    if stopped is None:
        assert isinstance(decision, Continue)
    else:
        assert decision.genotype == cell_of(f"epoch_{returned}")
        assert f"epoch {returned}" in decision.reason and "curvature" in decision.reason


def test_a_new_stage_begins_with_empty_windows():
    # Would catch a stop because the pruned supernet has another curvature.
    values, stages = jump(25), [1] * 25 + [2] * 25
    genotypes = [cell_of("a")] * 50
    assert epochs_of(curvature.create(curvature.Options()), values, genotypes, stages)[1] is None
    assert epochs_of(curvature.create(curvature.Options()), values, genotypes)[1] == 28


SKIP, CONV = "skip_connect", "sep_conv_3x3"


@pytest.mark.parametrize(
    ("options", "counts", "stopped", "returned"),
    [
        ({}, [0, 1, 2, 2, 3, 4], 5, 4),
        (dict(most=1), [0, 1, 2, 2, 3, 4], 3, 2),
        (dict(most=0), [0, 0, 1], 3, 2),
        ({}, [0, 1, 2, 2, 2, 2], None, None),
        # Nothing to return to before the first genotype within the limit, or before an epoch.
        ({}, [3, 4, 2, 3], 4, 3),
        ({}, [3, 4, 3], None, None),
        (dict(first_epoch=3), [1, 4, 2, 1, 3], 5, 4),
        (dict(operation=CONV), [2, 1], 2, 1),
    ],
)
def test_a_search_stops_at_too_many_skip_connections(options, counts, stopped, returned):
    # Would catch a limit that is off by one, and a genotype that exceeds it.
    rule = skip_connections.create(skip_connections.Options(**options))
    genotypes = [
        cell_of(*[SKIP] * count, *[CONV] * (4 - count), f"epoch_{epoch}")
        for epoch, count in enumerate(counts, start=1)
    ]
    _, epoch, decision = epochs_of(rule, [0.0] * len(counts), genotypes)
    assert epoch == stopped
    if stopped is None:
        assert isinstance(decision, Continue)
    else:
        assert decision.genotype == genotypes[returned - 1]
        assert f"epoch {returned}" in decision.reason


def test_skip_connections_of_reduction_cells_do_not_count():
    # Would catch a sum over cell types.
    rule = skip_connections.create(skip_connections.Options())
    node = (((SKIP, 0), (SKIP, 1)),)
    both = Genotype("darts", (("normal", node), ("reduce", node * 3)))
    assert rule.count(both) == 2
    assert rule.count(Genotype("own", (("first", node), ("second", node * 2)))) == 4
