import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgift_plugin.data.seeding import generator, permute

keys = st.one_of(st.integers(0, 10**9), st.text(max_size=8))


@given(st.integers(0, 2**40), st.lists(keys, max_size=4))
def test_the_same_names_give_the_same_stream(seed, names):
    first, second = (generator(seed, *names).integers(0, 2**63, 4) for _ in range(2))
    assert (first == second).all()


def test_types_and_borders_of_keys_count():
    streams = [(1, "23"), (12, "3"), ("1", 23), (123,), ("123",), (1, 23)]
    firsts = {int(generator(0, *stream).integers(0, 2**63)) for stream in streams}
    assert len(firsts) == len(streams)


def test_neighbouring_seeds_are_unrelated():
    draws = np.array([generator(seed, "x").random(2000) for seed in range(4)])
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.1


@given(st.integers(1, 300), st.integers(0, 1000))
def test_permute_is_a_permutation(size, seed):
    assert sorted(permute(k, size, seed, "epoch", 3) for k in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 5, 17])
def test_every_place_is_reached_equally_often(size):
    n = 6000
    hits = np.bincount([permute(0, size, seed) for seed in range(n)], minlength=size)
    expected = n / size
    chi2 = ((hits - expected) ** 2 / expected).sum()
    assert chi2 < size - 1 + 5 * np.sqrt(2 * size)  # five standard deviations of its distribution


def test_another_key_is_another_order():
    orders = {tuple(permute(k, 50, 0, epoch) for k in range(50)) for epoch in range(20)}
    assert len(orders) == 20


def test_outside_the_range_is_an_error():
    with pytest.raises(IndexError, match="7 is not in range"):
        permute(7, 7, 0)
