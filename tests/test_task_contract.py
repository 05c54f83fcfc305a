"""What every task promises, checked for each one in the registry: adding a task adds its tests."""

import json
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vgift_plugin import UnsuitableImage, generator, get_task, task_names
from vgift_plugin.tasks.drawing import test_card as card

# What LLaVA's templates split on, or turn into special tokens; none may stand in our words.
MARKERS = [
    "<image>",
    "USER:",
    "ASSISTANT:",
    "Human:",
    "Assistant:",
    "###",
    "</s>",
    "<s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
]
MARKERS += ["<|im_start|>", "<|im_end|>", "<unk>", "<|", "<im_"]
TASKS = task_names()
sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))


def noise(wh, seed=0):
    """A coloured, textured picture of any size."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    return coarse.resize(wh, Image.Resampling.BICUBIC)


def make(name, seed, images=None, **knobs):
    task = get_task(name)(**knobs)
    images = images or [card(), *(noise((640, 480), k) for k in range(1, task.images))]
    return task, images, task.draw(generator(seed, name), images)


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def test_informative_spans_hold_the_fillings_and_nothing_else(name):
    assert all(f"{{{one}}}" in wording for one in get_task(name).informative for wording in get_task(name).wordings)
    for wording in range(len(get_task(name).wordings)):
        try:
            task, _, params = make(name, wording, [noise((300, 300))] * get_task(name).images, wording=wording)
        except UnsuitableImage:
            continue
        told = [task.ask(params)[0][start:end] for start, end in task.informative_spans(params)]
        assert sorted(told) == sorted(task.words(params)[one] for one in task.informative)


@settings(max_examples=25, deadline=None)
@given(wh=sizes, seed=st.integers(0, 10**6))
@pytest.mark.parametrize("task_name", TASKS)
def test_params_are_json_and_repaint_the_same_pixels(task_name, wh, seed):
    try:
        task, images, params = make(task_name, seed, [noise(wh, seed)] * get_task(task_name).images)
    except UnsuitableImage as unsuitable:
        assert 0 < len(unsuitable.reason) < 40
        return
    again = json.loads(json.dumps(params))
    assert again == params
    first, second = task.render(images, params), task.render(images, again)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert task.ask(params) == task.ask(again)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9))
@pytest.mark.parametrize("task_name", TASKS)
def test_words_hold_no_image_token_and_no_role_marker(task_name, seed):
    task, _, params = make(task_name, seed)
    instruction, response = task.ask(params)
    assert instruction.strip() == instruction and response.strip() == response and response
    assert not [marker for marker in MARKERS if marker.lower() in f"{instruction} {response}".lower()]
    assert "{" not in instruction  # no placeholder is left


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), other=st.integers(0, 10**9), junk=st.text(max_size=20))
@pytest.mark.parametrize("task_name", TASKS)
def test_score_is_one_for_the_response_alone(task_name, seed, other, junk):
    task, _, params = make(task_name, seed)
    response = task.response(params)
    assert task.score(response, params) == task.score(f" {response}.\n", params) == 1
    wrong = task.response(make(task_name, other)[2])
    replies = [junk, "", response + response, f"not {response}", f"{response} or so", response[:-1]]
    replies += [wrong] if wrong != response else []
    for reply in replies:
        if reply.strip().removesuffix(".").rstrip() != response:
            assert 0 <= task.score(reply, params) < 1, reply


def test_answers_and_wordings_are_uniform(name):
    task = get_task(name)()
    n = 1500
    drawn = [make(name, seed)[2] for seed in range(n)]
    for values in (
        Counter(task.response(params)[:3] for params in drawn),  # for colours: which number the first letter has
        Counter(params["wording"] for params in drawn),
    ):
        expected = n / len(values)
        chi2 = sum((count - expected) ** 2 / expected for count in values.values())
        freedom = len(values) - 1
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom), values
    assert len({params["wording"] for params in drawn}) == len(task.wordings) >= 3


def test_a_knob_fixes_the_wording(name):
    last = len(get_task(name).wordings) - 1
    assert {make(name, seed, wording=last)[2]["wording"] for seed in range(10)} == {last}


def test_chance_is_a_probability_and_knobs_are_explained(name):
    task = get_task(name)()
    assert 0 < task.chance < 1
    assert all(help for _, help in task.knobs().values())
    assert pickle.loads(pickle.dumps(task)) == task


def test_the_global_generators_are_left_alone(name):
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    task, images, params = make(name, 3)
    task.render(images, params)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002


@pytest.mark.parametrize("wh", [(1, 1), (3000, 4), (20, 20)])
def test_hopeless_pictures_are_refused_with_a_reason(name, wh):
    with pytest.raises(UnsuitableImage):
        make(name, 0, [noise(wh)] * get_task(name).images)


def test_a_picture_that_shows_nothing_is_refused(name):
    with pytest.raises(UnsuitableImage):
        make(name, 0, [Image.new("RGB", (300, 300), (90, 120, 200))] * get_task(name).images)
