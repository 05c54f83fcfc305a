"""Corrupted pictures: what their pixels say, against numpy and colorsys."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from vgift_plugin.data.seeding import generator
from vgift_plugin.methods.stic import corruption
from vgift_plugin.methods.stic.preferences import JITTER, LOWRES


@pytest.fixture
def cat(photos):
    return Image.open(photos / "chelsea.jpg").convert("RGB")


def test_low_resolution_keeps_twenty_pixels_and_the_mean(cat):
    for picture in (cat, cat.rotate(90, expand=True)):
        small = corruption.corrupt(picture, corruption.draw(LOWRES, generator(0, "x")))
        wide = int(20 * max(picture.size) / min(picture.size))
        assert sorted(small.size) == [20, wide]
        assert (small.width > small.height) == (picture.width > picture.height)
        before, after = (np.asarray(one, float).mean((0, 1)) for one in (picture, small))
        assert np.abs(before - after).max() < 1.5
        back = np.asarray(small.resize(picture.size, Image.BILINEAR), float)
        detail = np.asarray(picture, float) - back
        assert detail.std() > 10  # fur is gone


def test_brightness_is_a_factor(cat):
    pixels = np.asarray(cat, float)
    for factor in (0.5, 0.8, 1.5):
        found = np.asarray(corruption.corrupt(cat, {"kind": JITTER, "brightness": factor, "hue": 0.0}), float)
        assert np.abs(found - np.clip(pixels * factor, 0, 255)).mean() < 1.5  # HSV has 8 bits
        assert abs(found.mean() / np.clip(pixels * factor, 0, 255).mean() - 1) < 0.01


def test_hue_turns_and_value_stays():
    pure = Image.new("RGB", (4, 4), (200, 40, 40))
    for hue in (-0.3, 0.1, 0.25, 0.3):
        found = np.asarray(corruption.corrupt(pure, {"kind": JITTER, "brightness": 1.0, "hue": hue}))[0, 0] / 255
        h, s, v = colorsys.rgb_to_hsv(*found)
        assert (h - hue + 0.5) % 1 - 0.5 == pytest.approx(0, abs=0.01)
        assert (s, v) == pytest.approx((0.8, 200 / 255), abs=0.01)


def test_draws_fill_their_range_and_depend_on_the_generator_alone():
    drawn = [corruption.draw(JITTER, generator(0, "x", k)) for k in range(400)]
    for name, low, high in (("brightness", 0.5, 1.5), ("hue", -0.3, 0.3)):
        values = np.array([one[name] for one in drawn])
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert drawn[7] == corruption.draw(JITTER, generator(0, "x", 7))


@pytest.mark.parametrize("params", [{}, {"kind": "blur"}, {"kind": JITTER, "brightness": 1.0}, {"kind": LOWRES}])
def test_what_is_no_corruption_is_refused(cat, params):
    with pytest.raises(ValueError, match="corruption"):
        corruption.corrupt(cat, params)
