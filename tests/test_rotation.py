import numpy as np
import pytest
from PIL import Image

from vgift_plugin import generator, get_task
from vgift_plugin.tasks.drawing import test_card as card

Rotation = get_task("rotation")


def drawn(angle, **knobs):
    task = Rotation(**knobs)
    photo = card((640, 480))
    params = next(
        p for p in (task.draw(generator(seed, "r"), [photo]) for seed in range(100)) if p["angle_deg"] == angle
    )
    return task, photo, params


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_it_turns_clockwise_and_losslessly(angle):
    task, photo, params = drawn(angle, size_px=640, square=False)
    turned = task.render([photo], params)
    assert turned.size == ((640, 480) if angle % 180 == 0 else (480, 640))
    assert (np.asarray(turned) == np.rot90(np.asarray(photo), -angle // 90)).all()  # numpy turns counter-clockwise
    assert task.response(params) == str(angle)


def test_a_quarter_turn_clockwise_takes_the_top_left_to_the_top_right():
    task, _, params = drawn(90, size_px=640, square=False)
    photo = Image.new("RGB", (640, 480))
    photo.putpixel((0, 0), (255, 0, 0))
    assert task.render([photo], params).getpixel((479, 0)) == (255, 0, 0)


@pytest.mark.parametrize("angle", [0, 90])
def test_it_is_painted_at_the_size_the_host_looks_at_and_never_enlarged(angle):
    task, photo, params = drawn(angle, square=False)
    small = photo.resize((336, 252), Image.Resampling.BILINEAR)
    assert (np.asarray(task.render([photo], params)) == np.rot90(np.asarray(small), -angle // 90)).all()
    tiny = card((200, 100))
    assert task.render([tiny], params).size == ((200, 100) if angle == 0 else (100, 200))


@pytest.mark.parametrize("angle", [0, 90])
def test_a_square_hides_the_parity_and_its_place_the_jpeg_blocks(angle):
    task, photo, params = drawn(angle, size_px=640)
    left, top, right, bottom = params["crop"]
    turned = task.render([photo], params)
    assert turned.size == (right - left, bottom - top) and turned.width == turned.height
    assert (np.asarray(turned) == np.rot90(np.asarray(photo)[top:bottom, left:right], -angle // 90)).all()
    drawn_squares = [task.draw(generator(seed, "r"), [photo])["crop"] for seed in range(400)]
    for axis in range(2):
        assert {box[axis] % 8 for box in drawn_squares} == set(range(8))
        assert all(0 <= box[axis] < box[axis + 2] <= (640, 480)[axis] for box in drawn_squares)
    assert {box[2] - box[0] for box in drawn_squares} == set(range(465, 473))


def test_score_never_matches_inside_a_number():
    task, _, params = drawn(0)
    assert [task.score(reply, params) for reply in ("0", "0.", "90", "180", "270", "00", "0 degrees")] == [1, 1] + [
        0
    ] * 5
