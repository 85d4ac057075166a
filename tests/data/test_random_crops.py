"""Random crops of an image, compared with plain computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draws, png, seeds

from drnas_jax.data import images
from drnas_jax.data.images import (
    DRAWS,
    random_resized_crop,
)
from drnas_jax.data.sources.base import Example


@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=seeds)
@settings(deadline=None)
def test_a_box_lies_in_the_image_and_has_the_shape_and_share(height, width, seed):
    # Catches a crop across the border of long or tiny images.
    top, left, h, w = images._box(height, width, draws(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0 and w > 0
    # Rounding moves each side by up to half a pixel.
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    if max(height, width) <= 16 * min(height, width):  # otherwise the middle may be smaller
        assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width


def test_boxes_are_distributed_as_published():
    # Catches a distribution that prefers wide crops or the top left.
    n, side = 4000, 1000
    boxes = np.array([images._box(side, side, draws(seed)) for seed in range(n)])
    top, left, h, w = boxes.T
    assert 0.08 <= (h * w).min() / side**2 < 0.09 and (h * w).max() / side**2 > 0.95
    assert 0.748 < (w / h).min() < 0.76 and 1.32 < (w / h).max() < 1.336  # whole pixels
    # Wide and tall ones are equally likely.
    assert abs(np.log(w / h).mean()) < 0.02  # 6 standard deviations of a uniform
    for start, length in ((top, h), (left, w)):
        free = length < 900
        position = start[free] / (side - length[free])
        assert abs(position.mean() - 0.5) < 0.03  # 6 standard deviations again
        assert position.min() < 0.01 and position.max() > 0.99


def test_a_box_by_hand():
    # Catches width and height that are exchanged.
    first = np.zeros(DRAWS)
    # 8 % of 100 x 200 at 3 / 4: 1600 = 34.6 * 46.2.
    assert images._box(100, 200, first) == (0, 0, 46, 35)
    last = first.copy()
    last[0, 2:] = 0.5, 1 - 1e-9
    assert images._box(100, 200, last) == (27, 165, 46, 35)
    last[0, 2:] = 1 - 1e-9, 0.5
    assert images._box(100, 200, last) == (54, 83, 46, 35)


def test_the_first_draw_that_fits_counts():
    # Catches a crop that takes parts of two draws.
    given = draws(3)
    given[:4] = 0.99  # nearly everything, but wide: too wide for a square
    assert images._box(100, 100, given) == images._box(100, 100, given[4:])
    assert images._box(100, 100, given) != images._box(100, 100, given[5:])


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (100, 100, (0, 0, 100, 100)),
        (30, 300, (0, 130, 30, 40)),
        (300, 30, (130, 0, 40, 30)),
    ],
)
def test_the_middle_is_taken_if_no_draw_fits(height, width, box):
    # Catches a crop of the whole image, whose shape may be extreme.
    everything = np.ones(DRAWS)
    everything[::2, 1] = 0
    assert images._box(height, width, everything) == box


def bilinear(image, size):
    """Returns the values at the centres of size x size pixels, [size, size, c]."""

    def axis(array, n):
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, n - 1), (at - low)[:, None, None]
        return array[low] * (1 - share) + array[high] * share

    rows = axis(image.astype(float), image.shape[0])
    return axis(rows.transpose(1, 0, 2), image.shape[1]).transpose(1, 0, 2)


@pytest.mark.parametrize("seed", range(6))
def test_random_resized_crop_equals_plain_interpolation(seed):
    # Catches a crop that is resized by another method, or before it is cut out.
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    top, left, h, w = images._box(40, 50, draws(seed))
    result = random_resized_crop(png(image), 3, 24, draws(seed))
    assert result.dtype == np.uint8
    expected = bilinear(image[top : top + h, left : left + w], 24)
    np.testing.assert_allclose(result, expected, atol=1.5)  # OpenCV's weights have 11 bits
    gray = random_resized_crop(Example(image[..., 0], 0, ""), 1, 24, draws(seed))
    np.testing.assert_allclose(gray, expected[..., 0], atol=1.5)


@given(height=st.integers(1, 80), width=st.integers(1, 80), size=st.integers(1, 40), seed=seeds)
@settings(deadline=None, max_examples=60)
def test_random_resized_crop_gives_the_size(height, width, size, seed):
    # Catches images smaller than the crop.
    image = np.full((height, width, 3), (9, 5, 1), np.uint8)
    result = random_resized_crop(png(image), 3, size, draws(seed))
    np.testing.assert_array_equal(result, np.broadcast_to([9, 5, 1], (size, size, 3)))
