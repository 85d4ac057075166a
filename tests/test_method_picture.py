"""The picture of the method that README.md shows."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from drnas_jax import components
from drnas_jax.distributions import dirichlet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    return components.import_file(ROOT / "examples" / "method_picture.py")


def test_the_committed_picture_is_what_the_script_draws(script):
    # Would catch a script that was changed without its picture, and numbers that vary.
    assert (ROOT / "docs" / "method.svg").read_text() == script.draw()


def test_the_text_can_be_read(script):
    # Would catch letters that are too small at the width at which the picture is shown.
    picture = ElementTree.fromstring(script.draw())
    sizes = [float(each.get("font-size")) for each in picture.iter() if each.get("font-size")]
    assert picture.get("width") == "800"
    assert len(sizes) > 30
    assert min(sizes) >= 12


def test_the_concentrations_are_those_of_the_search(script):
    # Would catch another formula than the search's; both are float32 or better.
    for _, alpha in script.PHASES:
        expected = np.asarray(dirichlet.concentration(np.array([alpha], np.float32)))[0]
        np.testing.assert_allclose(script.concentration(alpha), expected, rtol=1e-6)


def test_a_corner_stands_for_an_operation_alone(script):
    # Would catch weights whose operations are swapped between the triangle and its labels.
    (top_x, top_y), left, right = (script.place(corner, 100, 10) for corner in np.eye(3))
    assert (top_x, top_y) == (100, 10)
    assert left[0] < 100 < right[0]
    np.testing.assert_allclose(left[1], right[1])
    np.testing.assert_allclose(np.subtract(right, left)[0], script.SIDE)
