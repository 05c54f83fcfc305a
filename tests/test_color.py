import itertools
import math

import numpy as np
import pytest
from PIL import Image

from vgift_plugin import UnsuitableImage, generator, get_task
from vgift_plugin.tasks.color import MARKER
from vgift_plugin.tasks.colors import nearest_names
from vgift_plugin.tasks.drawing import overlap
from vgift_plugin.tasks.drawing import test_card as card

Color = get_task("color")


def greys(colors):
    """Returns the grey values, 0 to 255, that Pillow gives to colours, before it rounds them."""
    return np.array(colors) @ [0.299, 0.587, 0.114]


@pytest.fixture(params=range(8))
def case(request):
    task, photo = Color(), card((640, 480))
    return task, photo, task.draw(generator(request.param, "color"), [photo])


def test_points_and_colours_keep_their_distances(case):
    _, photo, params = case
    assert params["size_px"] == 336
    small = np.asarray(photo.resize((336, 252), Image.Resampling.BILINEAR))
    for (x, y), color in zip(params["points"], params["colors"], strict=True):
        assert 14 <= x < 336 - 14 and 14 <= y < 252 - 14
        assert color == [int(c) for c in small[y - 2 : y + 3, x - 2 : x + 3].reshape(25, 3).mean(0)]
    assert all(math.dist(a, b) >= 40 for a, b in itertools.combinations(params["colors"], 2))
    assert np.ptp(greys(params["colors"])) <= 70


@pytest.mark.parametrize("limit", [30.0, 70.0, 255.0])
def test_points_are_kept_in_the_order_they_were_drawn(limit):
    """The rule, said plainly: go through the points, keep what is far enough from all kept and near enough in grey."""
    rng, task, starts = np.random.default_rng(5), Color(max_brightness_range=limit), set()
    for _ in range(6):
        points = list(map(tuple, rng.integers(14, 320, (256, 2)).tolist()))
        colors = rng.integers(0, 120, (256, 3)) + 60
        for start in (0, 7):
            kept = [start]
            for k in range(256):
                fits = len(kept) < 5 and all(
                    math.dist(colors[k], colors[other]) >= 40
                    and abs(greys(colors[k]) - greys(colors[other])) <= limit
                    and MARKER.clear_of(points[k], points[other], (336, 336))
                    for other in kept
                )
                kept += [k] * fits
            assert task._kept(start, points, colors, (336, 336)) == kept
            starts.add(len(kept))
    assert starts == {5}


def test_colours_of_one_brightness_are_asked_for():
    photo = Image.new("RGB", (300, 300))
    shades = [(60, 0, 0), (110, 30, 30), (150, 80, 80), (200, 140, 140), (250, 200, 200)]
    for k, shade in enumerate(shades):  # five colours, and their order by brightness gives them away
        photo.paste(shade, (60 * k, 0, 60 * k + 60, 300))
    with pytest.raises(UnsuitableImage, match="too few distinct colours"):
        Color().draw(generator(0, "x"), [photo])
    params = Color(max_brightness_range=255.0).draw(generator(0, "x"), [photo])
    assert np.ptp(greys(params["colors"])) > 70
    with pytest.raises(ValueError, match="max_brightness_range must be 0 to 255, not 300"):
        Color(max_brightness_range=300.0)


def test_a_first_point_that_nothing_goes_with_is_no_end():
    photo = Image.new("RGB", (300, 300))  # more than half of it black, five colours of one brightness
    for k, shade in enumerate([(200, 60, 60), (30, 130, 60), (90, 90, 220), (130, 90, 10), (100, 100, 100)]):
        photo.paste(shade, (24 * k + 14, 0, 24 * k + 38, 300))
    for seed in range(10):
        params = Color().draw(generator(seed, "x"), [photo])
        assert [0, 0, 0] not in params["colors"]


def test_five_points_that_fit_are_enough():
    colors = np.array([(200, 60, 60), (30, 130, 60), (90, 90, 220), (130, 90, 10), (100, 100, 100)])
    points = [(30 + 60 * k, 40) for k in range(5)]
    assert Color()._kept(0, points, colors, (336, 336)) == [0, 1, 2, 3, 4]


def test_no_marker_hides_another(case):
    _, _, params = case
    wh = 336, 252
    for a, b in itertools.permutations(map(tuple, params["points"]), 2):
        assert not overlap(MARKER.dot_box(a), MARKER.dot_box(b))
        assert not overlap(MARKER.label_box(a, wh), MARKER.dot_box(b))
        assert not overlap(MARKER.label_box(a, wh), MARKER.label_box(b, wh))
    for point in map(tuple, params["points"]):
        left, top, right, bottom = MARKER.label_box(point, wh)
        assert left >= 0 and top >= 0 and right < wh[0] and bottom < wh[1]
        assert not overlap(MARKER.label_box(point, wh), MARKER.dot_box(point))


def test_the_picture_is_grey_but_for_the_markers(case):
    task, photo, params = case
    painted = np.asarray(task.render([photo], params)).astype(int)
    grey = np.asarray(photo.resize((336, 252), Image.Resampling.BILINEAR).convert("L")).astype(int)
    marked = np.zeros(grey.shape, bool)
    for point in map(tuple, params["points"]):
        for left, top, right, bottom in (MARKER.dot_box(point), MARKER.label_box(point, (336, 252))):
            marked[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = True
        x, y = point
        assert painted[y, x].tolist() == [255, 0, 0]
    assert (painted[~marked] == grey[~marked][:, None]).all()


def test_the_answer_leads_every_letter_to_its_colour(case):
    task, _, params = case
    instruction, response = task.ask(params)
    names = nearest_names(np.array(params["colors"]))
    for k, pair in enumerate(response.split(", ")):
        letter, number = pair.split("-")
        assert letter == "ABCDE"[k]
        r, g, b = params["colors"][k]
        assert f"{number}. RGB({r}, {g}, {b}) ({names[k]})\n" in instruction + "\n"


def test_score_counts_right_points_pair_by_pair():
    task = Color()
    params = {"order": [1, 0, 2, 4, 3], "colors": [[0, 0, 0]] * 5, "wording": 0}
    assert task.response(params) == "A-2, B-1, C-3, D-5, E-4"
    assert task.score("A-2,B-1,C-3,D-5,E-4.", params) == 1
    for reply, right in (
        ("A-2, B-1, C-3, D-4, E-5", 3),
        ("B-1, A-2, C-3, D-5, E-4", 3),
        ("A-2, B-1, C-3, D-5, E-44", 4),
        ("A-2, -1, -3, D-5, x", 2),  # what a model that is given the tokens before may say early on
        ("A-2", 0),
        ("A-2, B-1, C-3, D-5, E-4, F-1", 0),
        ("A2 B1 C3 D5 E4", 0),
    ):
        assert task.score(reply, params) == right / 5, reply


def test_near_grey_photographs_are_unsuitable_not_only_grey_ones():
    grey = card((400, 300)).convert("L").convert("RGB")
    tinted = Image.fromarray((np.asarray(grey) * [1.0, 0.97, 0.93]).astype(np.uint8))
    for photo in (grey, tinted):
        with pytest.raises(UnsuitableImage, match="near-grey"):
            Color().draw(generator(0, "x"), [photo])


def test_two_colours_are_not_enough_for_five_points():
    photo = Image.new("RGB", (300, 300), (200, 40, 40))
    photo.paste((30, 60, 220), (150, 0, 300, 300))
    with pytest.raises(UnsuitableImage, match="too few distinct colours"):
        Color().draw(generator(0, "x"), [photo])
    assert len(Color(points=2).draw(generator(0, "x"), [photo])["points"]) == 2
