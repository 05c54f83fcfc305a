"""Which index is a base record, and which sample of which task."""

import random

import numpy as np
import pytest
from test_stream import Numbers, Pair, Toy

from vgift_plugin.methods.vgift.mixture import MixedDataset
from vgift_plugin.methods.vgift.stream import Stream


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
