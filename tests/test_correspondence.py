import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vgift_plugin import UnsuitableImage, generator, get_task
from vgift_plugin.data.photos import from_folder
from vgift_plugin.methods.vgift.stream import Stream
from vgift_plugin.tasks.correspondence import (
    GAP_PX,
    MARKER,
    corners,
    homography,
    relit,
    warp,
)
from vgift_plugin.tasks.drawing import test_card as card

Correspondence = get_task("correspondence")


def coordinates_photo(wh=(500, 400)):
    """A photograph whose colour tells the place: red grows with x, green with y, blue is a fine checker."""
    x, y = np.meshgrid(np.arange(wh[0]), np.arange(wh[1]))
    blue = ((x // 40 + y // 40) % 2) * 255
    return Image.fromarray(np.stack([x * 255 / wh[0], y * 255 / wh[1], blue], -1).astype(np.uint8))


@pytest.fixture(params=range(12))
def case(request):
    task, photo = Correspondence(max_light=0.0), coordinates_photo()
    return task, photo, task.draw(generator(request.param, "c"), [photo])


def test_homography_takes_corners_to_the_quad():
    quad = np.array([[10, 12], [90, 5], [101, 99], [3, 80]], float)
    assert np.allclose(warp(homography(corners(64), quad), corners(64)), quad)


def test_the_match_shows_the_same_place_as_the_query_and_the_others_do_not(case):
    """Read off the painted pixels themselves, without trusting the warps: red and green tell the place."""
    task, photo, params = case
    unmarked = {**params, "query": [0, 0], "candidates": [[0, 0]] * 3}
    canvas = np.asarray(task.render([photo], unmarked)).astype(int)

    def place(xy, offset):
        x, y = xy
        return canvas[y, x + offset, :2] * np.array(photo.size) / 255

    query = place(params["query"], 0)
    right = task.size_px + GAP_PX
    distances = [np.linalg.norm(place(xy, right) - query) for xy in params["candidates"]]
    assert distances[params["answer"]] < 6  # pixels of the photograph: rounding of points and of 8-bit colours
    assert min(d for k, d in enumerate(distances) if k != params["answer"]) > 15


def test_candidates_are_apart_inside_and_not_hidden(case):
    task, _, params = case
    for xy in [params["query"], *params["candidates"]]:
        assert all(10 <= c < 160 - 10 for c in xy)
    for a, b in itertools.combinations(map(tuple, params["candidates"]), 2):
        assert math.dist(a, b) >= task.min_distance_px
        assert MARKER.clear_of(a, b, (160, 160))


def test_views_stay_inside_the_photograph(case):
    _, photo, params = case
    for view in params["views"]:
        quad = np.array(view["quad"])
        assert (quad >= 0).all() and (quad <= photo.size).all()


def clockwise(quad):
    """Tells whether four corners run clockwise on the photograph, whose y points down."""
    (ax, ay), (bx, by) = quad[1] - quad[0], quad[2] - quad[1]
    return ax * by - ay * bx > 0


def test_second_views_are_mirrored_half_of_the_time_and_turned_by_any_quarter_and_the_first_never():
    task, photo = Correspondence(), coordinates_photo()
    mirrored, starts = [], []
    for seed in range(300):
        first, second = (np.array(v["quad"]) for v in task.draw(generator(seed, "m"), [photo])["views"])
        assert first[1, 0] > first[0, 0] and clockwise(first)
        mirrored.append(not clockwise(second))
        corner = second[0] - second.mean(0)
        starts.append((bool(corner[0] > 0), bool(corner[1] > 0)))
    assert 110 < sum(mirrored) < 190
    assert all(45 < starts.count(corner) < 105 for corner in itertools.product((False, True), repeat=2))


def test_one_composite_of_both_views():
    task = Correspondence()
    params = task.draw(generator(0, "x"), [card()])
    assert task.render([card()], params).size == (160 + 16 + 160, 160)


def test_two_images_show_what_the_composite_shows_and_the_words_say_so(photos):
    source = from_folder(str(photos))
    one, two = (Stream(Correspondence(two_images=several), source, 7)(0, 3) for several in (False, True))
    assert two.params == {**one.params, "two_images": True} and two.image.tobytes() == one.image.tobytes()
    assert [picture.size for picture in two.pictures()] == [(160, 160)] * 2 and len(one.pictures()) == 1
    assert two.pictures()[1].tobytes() == two.image.crop((176, 0, 336, 160)).tobytes()
    record = two.record("a", "images/a.png")
    assert record["image"] == ["images/a-0.png", "images/a-1.png"] and one.record("a", "a.png")["image"] == "a.png"
    assert record["conversations"][0]["value"].startswith("<image>\n<image>\n")
    assert "first" in two.instruction and "left" not in two.instruction and two.response == one.response
    for task in (Correspondence, Correspondence.pairs):
        assert len(task.wordings) == len(task.two_image_wordings)


def test_fog_without_distinct_places_is_unsuitable():
    fog = Image.fromarray(np.tile(np.linspace(120, 135, 400).astype(np.uint8), (300, 1))).convert("RGB")
    with pytest.raises(UnsuitableImage, match="nothing to tell apart"):
        Correspondence().draw(generator(0, "x"), [fog])


def test_light_is_brightness_contrast_and_saturation_in_one():
    """Against Pillow's three enhancers, one at a time; what they clip in between is not compared."""
    image = card().resize((160, 160)).point(lambda value: 60 + value // 2)
    assert (np.asarray(relit(image, 1, 1, 1)) == np.asarray(image)).all()
    for k, enhancer in enumerate((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)):
        for factor in (0.8, 1.2):
            ours = np.asarray(relit(image, *(factor if j == k else 1 for j in range(3)))).astype(int)
            assert abs(ours - np.asarray(enhancer(image).enhance(factor)).astype(int)).max() <= 2
