"""The samples of one task: which photographs, what is redrawn, what an error says."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from vgift_plugin import Task, UnsuitableImage, get_task
from vgift_plugin.data.photos import ImageSource, from_folder
from vgift_plugin.data.shared_file import Tally
from vgift_plugin.errors import ConfigError, NoSuitableImageError, TaskError
from vgift_plugin.methods.vgift.stream import MAX_REDRAWS, Stream
from vgift_plugin.tasks.drawing import side_by_side
from vgift_plugin.tasks.drawing import test_card as card


@dataclass(frozen=True)
class Toy(Task):
    """A task of this test alone, never registered: which pictures did I get?"""

    name: ClassVar[str] = "toy"
    wordings: ClassVar[tuple[str, ...]] = ("Which?",)
    fails_on: int = -1
    breaks: bool = False

    def draw(self, rng, images):
        if self.breaks:
            raise ZeroDivisionError("a bug")
        if images[0].getpixel((0, 0))[0] == self.fails_on:
            raise UnsuitableImage("unlucky")
        return {"value": int(rng.integers(10**9)), "wording": 0}

    def render(self, images, params):
        return images[0]

    def response(self, params):
        return str(params["value"])

    @property
    def chance(self):
        return 1e-9


@dataclass(frozen=True)
class Pair(Toy):
    """A task that needs two pictures."""

    name: ClassVar[str] = "pair"
    images: ClassVar[int] = 2

    def render(self, images, params):
        return side_by_side(*images, gap_px=0)


class Numbers(ImageSource):
    """Pictures whose first red value is their number."""

    def __init__(self, size):
        super().__init__("numbers", size, "", str)

    def open(self, index, longest_px=None):
        image = card((20, 20))
        image.putpixel((0, 0), (index, 0, 0))
        return image


def test_pictures_are_drawn_without_replacement_round_after_round():
    stream = Stream(Toy(), Numbers(50), 0)
    rounds = [[stream.picks(0, j)[0] for j in range(start, start + 50)] for start in (0, 50)]
    assert [sorted(r) for r in rounds] == [list(range(50))] * 2
    assert rounds[0] != rounds[1]
    assert [stream.picks(1, j)[0] for j in range(50)] not in rounds


@pytest.mark.parametrize("size", [2, 3, 5])
def test_two_pictures_of_a_sample_are_never_the_same(size):
    stream = Stream(Pair(), Numbers(size), 0)
    picks = [stream.picks(0, j) for j in range(200)]
    assert all(a != b for a, b in picks)
    assert stream(0, 0).sources == tuple(map(str, picks[0]))
    with pytest.raises(ConfigError, match="task pair needs 2 different images; numbers has 1"):
        Stream(Pair(), Numbers(1), 0)


def test_an_unsuitable_picture_is_redrawn_counted_and_the_same_each_time():
    stream = Stream(Toy(fails_on=3), Numbers(6), 0)
    tally = Tally()
    samples = [stream(0, j, tally) for j in range(60)]
    assert all(sample.sources != ("3",) for sample in samples)
    assert tally.counts() == {"toy": {"unlucky": sum(sample.redraws for sample in samples)}}
    assert tally.counts()["toy"]["unlucky"] >= 10
    assert [stream(0, j).sources for j in range(60)] == [sample.sources for sample in samples]


def test_after_ten_redraws_the_error_names_task_images_and_seed():
    with pytest.raises(NoSuitableImageError) as caught:
        Stream(Toy(fails_on=0), Numbers(1), 42)(3, 5)
    text = str(caught.value)
    assert text.count("unlucky") == 1 + MAX_REDRAWS == 11
    for part in ("task toy", "the 1 of numbers", "ssl_seed 42, epoch 3, sample 5", "--ssl_config"):
        assert part in text


def test_a_bug_in_a_task_is_no_unsuitable_picture():
    with pytest.raises(TaskError, match=r"task toy failed on . \(ssl_seed 0, epoch 0, sample 2, redraw 0\): ZeroDiv"):
        Stream(Toy(breaks=True), Numbers(6), 0)(0, 2)


def test_bad_files_among_good_ones_are_counted_by_reason(tmp_path):
    for k in range(6):
        card((200, 150)).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.png").write_text("x")
    card((9, 9)).save(tmp_path / "tiny.png")
    stream, tally = Stream(get_task("rotation")(), from_folder(str(tmp_path)), 0), Tally()
    for j in range(8):
        stream(0, j, tally)
    counts = tally.counts()["rotation"]
    assert set(counts) == {"unreadable", "too small"} and min(counts.values()) >= 1
