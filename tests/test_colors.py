import numpy as np
from matplotlib.colors import XKCD_COLORS, to_rgb
from skimage.color import rgb2lab

from vgift_plugin.tasks.colors import colorfulness, nearest_names, rgb_to_lab, xkcd


def test_lab_equals_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (500, 3))
    rgb[:4] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [10, 10, 10]]
    assert np.abs(rgb_to_lab(rgb) - rgb2lab(rgb[None] / 255)[0]).max() < 0.01


def test_names_equal_a_loop_over_all_949():
    names, _ = xkcd()
    assert len(names) == 949
    table = {
        name.removeprefix("xkcd:"): rgb2lab(np.array([[to_rgb(code)]]))[0, 0] for name, code in XKCD_COLORS.items()
    }
    rgb = np.random.default_rng(1).integers(0, 256, (60, 3))
    for color, found in zip(rgb, nearest_names(rgb), strict=True):
        lab = rgb2lab(color[None, None] / 255)[0, 0]
        distance = {name: np.linalg.norm(lab - other) for name, other in table.items()}
        assert distance[found] <= min(distance.values()) + 0.01


def test_colorfulness_of_grey_is_zero_and_of_sepia_low():
    grey = np.repeat(np.random.default_rng(2).integers(0, 256, (20, 20, 1)), 3, axis=2)
    assert colorfulness(grey) == 0
    assert 0 < colorfulness(grey * [1.0, 0.96, 0.88]) < 15
    assert colorfulness(np.random.default_rng(3).integers(0, 256, (20, 20, 3))) > 60
