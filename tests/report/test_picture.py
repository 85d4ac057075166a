"""The picture of a genotype."""

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from drnas_jax import components, spaces
from drnas_jax.genotype import Genotype
from drnas_jax.picture import to_svg
from drnas_jax.spaces.darts.published import PUBLISHED


def texts(svg):
    return Counter(
        "".join(element.itertext()).strip()
        for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    )


@pytest.mark.parametrize("name", components.names("space"))
def test_every_operation_is_in_the_picture(name):
    # Would catch edges or nodes that are drawn over each other or left out.
    genotype = spaces.random_genotype(spaces.create(name), 0)
    written = texts(to_svg(genotype))
    names = Counter(name for _, cell in genotype.cells for node in cell for name, _ in node)
    assert {name: written[name] for name in names} == names
    for cell_type, cell in genotype.cells:
        assert any(cell_type in text for text in written)
        for node in range(genotype.inputs, genotype.inputs + len(cell)):
            assert written[str(node)] == len(genotype.cells)


@pytest.mark.parametrize(
    ("genotype", "labels"),
    [
        (spaces.random_genotype(spaces.create("nasbench201"), 0), "0: input|1|2|3"),
        (PUBLISHED["darts_v2"], "0: ck-2|1: ck-1|2|3|4|5|output"),
    ],
    ids=["nasbench201", "darts"],
)
def test_nodes_have_the_numbers_of_the_genotype(genotype, labels):
    # Would catch a picture in which the node that an edge comes from has another number than in
    # the genotype.
    names = {name for _, cell in genotype.cells for node in cell for name, _ in node}
    written = set(texts(to_svg(genotype))) - names
    assert {text for text in written if not text.endswith("cell")} == set(labels.split("|"))


def test_a_cell_may_have_many_inputs():
    # Would catch names for one or two inputs only.
    node = tuple((f"op_{source}", source) for source in range(8))
    written = texts(to_svg(Genotype("mine", (("encoder_block", (node,)),))))
    assert {f"{i}: input" for i in range(8)} | {f"op_{i}" for i in range(8)} <= set(written)


def test_equal_genotypes_give_equal_texts():
    # Would catch dates and random identifiers in the file.
    first, second = (to_svg(PUBLISHED["drnas_cifar10"]) for _ in range(2))
    assert first == second
    assert first != to_svg(PUBLISHED["darts_v2"])


def test_a_cell_without_operations_is_drawn():
    # Would catch a picture that needs an edge to know its height.
    assert texts(to_svg(Genotype("mine", (("cell", ((),)),))))["1"] == 1
