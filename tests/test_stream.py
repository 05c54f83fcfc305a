import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from vgift_plugin import Task, UnsuitableImage, get_task
from vgift_plugin.data.photos import ImageSource, from_folder
from vgift_plugin.data.tally import Tally
from vgift_plugin.errors import ConfigError, NoSuitableImageError, TaskError
from vgift_plugin.methods.vgift.mixture import MixedDataset
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


class Base(list):
    """A host's dataset, as far as arithmetic needs one."""

    extra = "passed on"
    lengths = property(lambda self: [5] * len(self))
    modality_lengths = property(lambda self: [-5] * len(self))


def mixed(base=10, counts=(7, 3), size=6):
    parts = [(Stream(task, Numbers(size), 0), n) for task, n in zip((Toy(), Pair()), counts, strict=True)]
    lengths = {"lengths": [200, 201], "modality_lengths": [72, 73]}
    return MixedDataset(Base(range(100, 100 + base)), parts, lambda sample, name: (name, sample), lengths)


def test_base_samples_come_first_untouched_and_every_index_has_its_place():
    data = mixed()
    assert len(data) == 20
    assert [data[k] for k in range(10)] == list(range(100, 110))
    assert [data[k][0] for k in range(10, 20)] == [f"toy-0-{j}" for j in range(7)] + [f"pair-0-{j}" for j in range(3)]
    assert data[np.int64(10)][1].params == data[10][1].params == data[-10][1].params
    with pytest.raises(IndexError, match="index 20 is out of range for 20 samples"):
        data[20]
    assert data.extra == "passed on"
    with pytest.raises(AttributeError):
        data.absent  # noqa: B018


def test_lengths_are_the_hosts_then_one_constant_a_task():
    data = mixed()
    assert data.lengths == [5] * 10 + [200] * 7 + [201] * 3
    assert data.modality_lengths == [-5] * 10 + [72] * 7 + [73] * 3


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    data, again = mixed(), mixed()
    order = list(range(10, 20))
    random.Random(1).shuffle(order)
    values = {k: data[k][1].params["value"] for k in order}
    assert {k: again[k][1].params["value"] for k in range(10, 20)} == values
    assert len(set(values.values())) == 10
    data.epoch = 1
    assert all(data[k][1].params["value"] != values[k] for k in range(10, 20))
    other = Stream(Toy(), Numbers(6), 1)
    assert other(0, 0).params["value"] != values[10]


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


def test_a_hundred_million_base_records_are_arithmetic():
    class Huge:
        def __len__(self):
            return 100_000_000

        def __getitem__(self, index):
            return index

    data = MixedDataset(Huge(), [(Stream(Toy(), Numbers(6), 0), 10_000_000)], lambda s, n: s, {})
    assert len(data) == 110_000_000
    assert data[99_999_999] == 99_999_999
    assert data[109_999_999].sources == data[-1].sources
