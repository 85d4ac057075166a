"""The cost `table`: sums of measured layers, and the mistakes that a table can have."""

import dataclasses
from pathlib import Path

import pytest

from drnas_jax import components, spaces
from drnas_jax.costs.base import cost_in, typical_genotypes
from drnas_jax.errors import UserError
from drnas_jax.genotype import Genotype
from drnas_jax.nn import backend
from drnas_jax.nn.layers import network_layers
from drnas_jax.spaces import NetworkSpec, SupernetSpec, random_genotype

UNEVEN = str(Path(__file__).parents[1] / "uneven_space.py")
HEADER = "operation,input_shape,seconds"


def table_cost(file, **options):
    module = components.find("cost", "table", "cost.name")
    return module.create(module.Options(str(file), **options))


def layers_of(space, spec, batch=1):
    return network_layers(space.network(spec, backend.PLAIN), spec.image, batch)[0]


def write_table(file, space, spec, rest=100.0):
    """Writes a row for each layer, whose seconds are its number in the file."""
    names = sorted(
        {
            layer
            for genotype in typical_genotypes(space)
            for layer in layers_of(space, dataclasses.replace(spec, genotype=genotype))
        }
    )
    rows = [f"{name},{shape},{number}" for number, (name, shape) in enumerate(names, start=1)]
    file.write_text("\n".join([HEADER, *rows, f"rest,,{rest}"]) + "\n")
    return {layer: number for number, layer in enumerate(names, start=1)}


def test_layers_are_those_that_the_modules_compute():
    # Would catch a layer that is counted once although it runs twice, and a wrong input shape.
    space = spaces.create(UNEVEN)
    nodes = ((("times_1", 0),), (("times_1", 1),), (("skip", 2),))
    genotype = Genotype("uneven", (("uneven_block", nodes),))
    spec = NetworkSpec(genotype, 4, 1, 10, (2, 3, 1))
    assert layers_of(space, spec, batch=5) == {
        ("dot 6x4", "5x6"): 1,
        ("dot 4x4", "5x4"): 4,
        ("dot 4x10", "5x4"): 1,
    }


@pytest.mark.parametrize("name", [pytest.param("nasbench201", marks=pytest.mark.slow), UNEVEN])
def test_a_network_costs_the_sum_of_its_layers(tmp_path, name):
    # Would catch layers that two edges share and that count only once, so that there is no sum.
    space = spaces.create(name)
    spec = NetworkSpec(random_genotype(space, 0), 4, 1, 10, (8, 8, 3))
    seconds = write_table(tmp_path / "times.csv", space, spec)
    cost = table_cost(tmp_path / "times.csv")
    assert cost.unit == "seconds"
    first = typical_genotypes(space)[0]
    alone = dataclasses.replace(spec, genotype=first)
    expected = 100 + sum(seconds[layer] * n for layer, n in layers_of(space, alone).items())
    assert cost.exact(space, alone) == pytest.approx(expected)
    supernet = SupernetSpec(tuple(space.cells.items()), 4, 1, 10, (8, 8, 3))
    table = cost.table(space, supernet, spec)
    for genotype in (random_genotype(space, 77 + seed) for seed in range(5)):
        exact = cost.exact(space, dataclasses.replace(spec, genotype=genotype))
        assert cost_in(table, space.cells, genotype) == pytest.approx(exact, rel=1e-9)


def test_every_operation_of_every_edge_is_measured():
    # Would catch an operation whose layers are missing in the table of a space.
    for name in ("nasbench201", "darts", UNEVEN):
        space = spaces.create(name)
        found = {
            (kind, target, source, primitive)
            for genotype in typical_genotypes(space)
            for kind, cell in genotype.cells
            for target, node in enumerate(cell, start=space.cells[kind].inputs)
            for primitive, source in node
        }
        assert found == {
            (kind, edge.target, edge.source, primitive)
            for kind, cell in space.cells.items()
            for edge in cell.edges
            for primitive in edge.primitives
        }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["cannot be read", "bench operations"]),
        ("", ["'nothing'", HEADER]),
        ("a,b\n", ["'a,b'", HEADER]),
        (f"{HEADER}\nx,1x1,fast\n", ["line 2", "'x,1x1,fast'"]),
        (f"{HEADER}\nx,1x1,1\nx,nan\n", ["line 3"]),
        (f"{HEADER}\nrest,,0\n", ["no row", "dot 6x4", "1x6", "bench operations"]),
        (f"{HEADER}\ndot 6x4,1x6,1\n", ["no row", "'rest'", "bench operations"]),
    ],
    ids=["no file", "empty", "columns", "word", "short", "layer", "rest"],
)
def test_a_table_that_does_not_serve_is_refused_in_one_line(tmp_path, text, words):
    # Would catch a traceback, or a message that does not say how to make the table.
    file = tmp_path / "times.csv"
    if text is not None:
        file.write_text(text)
    space = spaces.create(UNEVEN)
    spec = NetworkSpec(random_genotype(space, 0), 4, 1, 10, (2, 3, 1))
    with pytest.raises(UserError) as caught:
        table_cost(file).exact(space, spec)
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    assert all(word in message for word in words), message


def test_a_table_must_be_named():
    # Would catch a search that reads the current directory as a table.
    with pytest.raises(UserError, match=r"cost.options.file is ''.*bench operations"):
        table_cost("")
