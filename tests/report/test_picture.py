"""The picture of a genotype."""

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from drnas_jax import spaces
from drnas_jax.genotype import PUBLISHED
from drnas_jax.picture import to_svg


def texts(svg):
    return Counter(
        "".join(element.itertext()).strip()
        for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    )


@pytest.mark.parametrize("name", spaces.names())
def test_every_operation_is_in_the_picture(name):
    genotype = spaces.random_genotype(name, 0)
    found = texts(to_svg(genotype))
    names = Counter(name for _, cell in genotype.cells for node in cell for name, _ in node)
    assert {name: found[name] for name in names} == names
    for cell_type, cell in genotype.cells:
        assert any(cell_type in text for text in found)
        for node in range(len(cell)):
            assert found[str(node)] == len(genotype.cells)


def test_the_same_genotype_gives_the_same_text():
    one, other = (to_svg(PUBLISHED["drnas_cifar10"]) for _ in range(2))
    assert one == other
    assert one != to_svg(PUBLISHED["darts_v2"])
