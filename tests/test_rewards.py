"""Rewards are the tasks' own scores: whatever a reply says, only the one answer earns all, and nothing takes long."""

import itertools
import json
import random
import re
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import ROOT

from vgift_plugin import get_task, task_names
from vgift_plugin.errors import ConfigError
from vgift_plugin.rewards import FORMS, KINDS, expected_by_chance, find_answer, reward
from vgift_plugin.rewards.answer import ANSWER_CHARS
from vgift_plugin.rewards.chance import drawn_params
from vgift_plugin.rewards.trl import reward_funcs, text
from vgift_plugin.rewards.verl import compute_score
from vgift_plugin.tasks.task import tidy

TASKS = task_names()
FUZZED = 10_000
RIGHT = {"angle_deg": 90}
WRAPPED = {"plain": "{}", "answer": "<answer>{}</answer>", "boxed": "\\boxed{{{}}}", "any": "{}"}


@pytest.fixture(scope="module", params=TASKS)
def drawn(request):
    """(task, params of some of its samples, all their answers)"""
    task = get_task(request.param)()
    found = list(drawn_params(task, 40))
    return task, found, sorted({task.response(params) for params in found})


def spaceless(answer):
    return re.sub(r"\s", "", tidy(answer))


def fuzzed(rng, answers, right):
    """Returns a reply made of pieces of answers, tags and junk."""
    junk = [
        "",
        " ",
        ".",
        ",",
        "-",
        "\n",
        "0",
        "１８０",
        "٣",
        "²",
        "answer",
        "\\boxed{",
        "{",
        "}",
        "<answer>",
        "</answer>",
    ]
    junk += ["<think>", "</think>", "\x00", "\ud83d", "é", "not", "or", "1e2", "+", "90.0", "0x5A", "A-1", "nan", "-0"]
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choice(junk + answers) for _ in range(rng.randrange(8)))
    if kind == 1:
        letters = list(right)
        letters[rng.randrange(len(letters))] = chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x110000)]))
        return "".join(letters)
    if kind == 2:
        return (
            rng.choice(["", " ", "\n"])
            + rng.choice([*answers, right, right])
            + rng.choice(["", ".", " .", "..", " \n", "0"])
        )
    if kind == 3:
        return rng.choice([", ", "\n", "", " or "]).join(rng.sample(answers, min(len(answers), rng.randrange(1, 5))))
    return "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(20)))


def test_of_ten_thousand_replies_only_the_answer_is_exact(drawn):
    task, found, answers = drawn
    rng = random.Random(0)
    exact = 0
    for k in range(FUZZED):
        params = found[k % len(found)]
        right = task.response(params)
        reply = fuzzed(rng, answers, right)
        form = FORMS[k % len(FORMS)]
        reply = WRAPPED[form].format(reply) if rng.random() < 0.8 else reply
        earned = reward(task, reply, params, form=form, chance=0.25)
        assert 0 <= earned.score <= 1 and 0 <= earned.gain <= 1 and earned.centered <= 1
        assert earned.exact in (0, 1) and earned.form in (0, 1)
        if earned.exact:
            exact += 1
            answer, _ = find_answer(reply, form)
            assert spaceless(answer) == spaceless(right), (reply, right)
            assert right in reply or "," in right
    assert exact > 100  # the corpus holds right answers too


def test_every_form_finds_the_answer(drawn):
    task, found, _ = drawn
    for params, (form, wrap) in itertools.product(found[:5], WRAPPED.items()):
        answer = task.response(params)
        for reply in (wrap.format(answer), f"<think>maybe\n\n</think>\n{wrap.format(answer)}\n"):
            earned = reward(task, reply, params, form=form)
            assert earned == (1, 1, 1, 1, 1), reply
    for reply in ("<answer>0</answer> no, <answer>90</answer>", "\\boxed{0} \\boxed{90}"):
        assert reward("rotation", reply, RIGHT, form="any")[:3] == (1, 1, 0)  # the last counts, the form is one answer
    assert reward("rotation", "So <answer> 90. </answer>, as the sky shows.", RIGHT, form="answer").score == 1
    assert reward("rotation", "thought from the prompt </think> 90", RIGHT).score == 1


LISTED = "0 90 180 270"
ADVERSARIAL = {
    "all answers": LISTED,
    "all answers in a tag": f"<answer>{LISTED}</answer>",
    "all answers in tags, the right one not last": "<answer>90</answer><answer>0</answer>",
    "in the thought": "<think>90</think> 0",
    "in the thought alone": "<think>90</think>",
    "tagged in the thought": "<think><answer>90</answer></think> I do not know",
    "boxed in the thought": "<think>\\boxed{90}</think>",
    "an open thought": "<think> <answer>90</answer>",
    "a thought opened again": "<think></think><think>90",
    "two thoughts": "<think>a</think> <answer>90</answer> <think>b</think> or not",
    "fullwidth digits": "９０",
    "Arabic digits": "<answer>٩٠</answer>",
    "superscript": "\\boxed{⁹⁰}",
    "a sentence": "It is 90 degrees",
    "a float": "90.0",
    "a sign": "+90",
    "a unit": "<answer>90°</answer>",
    "an exponent": "9e1",
    "nested tags": "<answer><answer>90</answer></answer>",
    "nested tags of two kinds": "<answer>\\boxed{90}</answer>",
    "nested boxes": "\\boxed{\\boxed{90}}",
    "a box in a box": "\\boxed{\\text{90}}",
    "a tag opened twice": "<answer>0<answer>90</answer>",
    "a tag closed twice": "<answer>90</answer></answer>",
    "an open tag": "<answer>90",
    "an open tag at the end": "<answer>90</answer><answer>",
    "a closed tag": "90</answer>",
    "tags the wrong way round": "</answer>90<answer>",
    "an open box": "\\boxed{90",
    "a box left open before": "\\boxed{0 \\boxed{90}",
    "another tag": "<ANSWER>90</ANSWER>",
    "zero width": "<answer>9\u200b0</answer>",
    "nothing": "",
    "a tag around nothing": "<answer></answer>",
    "many open tags": "<answer>" * 12_000,
    "many pairs": "<answer></answer>" * 5_000,
    "many boxes": "\\boxed{" * 14_000,
    "many thoughts": "<think>" * 14_000,
    "many ends of thoughts": "</think>" * 12_000,
    "many braces": "\\boxed{" + "{" * 90_000 + "}" * 9_000,
    "many commas": "<answer>" + "," * 90_000 + "</answer>",
    "a megabyte": "90" * 500_000,
    "a megabyte of tags": "<answer>" * 130_000,
    "the answer after a megabyte": " " * 1_000_000 + "<answer>90</answer>",
    "white space": "90" + " " * 90_000 + "x",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_replies_earn_nothing(name, form):
    reply = ADVERSARIAL[name]
    if (name, form) == ("nested tags of two kinds", "boxed"):
        return  # a box is a box, whatever stands around it
    earned = reward("rotation", reply, RIGHT, form=form)
    assert earned.score == earned.exact == earned.gain == 0 and earned.centered < 0


def test_no_task_reads_a_long_answer(drawn, monkeypatch):
    task, found, _ = drawn
    expected_by_chance(task)
    answer, lengths, score = task.response(found[0]), [], type(task).score

    def spy(self, answer, params):
        lengths.append(len(answer))
        return score(self, answer, params)

    monkeypatch.setattr(type(task), "score", spy)
    for piece, form in itertools.product((answer, ",", f"{answer}, ", "A-1, ", "(", "1 "), ("plain", "answer")):
        for size in (900, 99_000, 1_000_000):
            reply = WRAPPED[form].format((piece * size)[:size])
            assert reward(task, reply, found[0], form=form).score < 1
    assert lengths and max(lengths) <= ANSWER_CHARS


def test_a_constant_answer_earns_nothing_on_average(drawn):
    task, _, _ = drawn
    found = list(drawn_params(task, 600))[200:]
    c = expected_by_chance(task)
    assert task.chance <= c < 1
    for answer in sorted({task.response(params) for params in found})[:6]:
        centered = np.array([reward(task, answer, params).centered for params in found])
        assert centered.mean() < 4 * centered.std() / np.sqrt(len(centered)), answer


def test_chance_is_that_of_partial_credit():
    color, rotation = get_task("color"), get_task("rotation")
    assert expected_by_chance(rotation()) == 0.25
    assert expected_by_chance(color(points=5)) == pytest.approx(1 / 5, abs=0.01)
    assert expected_by_chance(color(points=2)) == pytest.approx(1 / 2, abs=0.01)
    half = reward(color(points=2), "A-1, B-2", {"order": [0, 1], "colors": []})
    assert half.gain == 1
    # What the docstring of Reward says: the mean gain of a constant answer, over all orders of five points.
    constant = ", ".join(f"{letter}-{k}" for k, letter in enumerate("ABCDE", 1))
    orders = [{"order": list(order), "colors": []} for order in itertools.permutations(range(5))]
    earned = [reward("color", constant, params, chance=1 / 5) for params in orders]
    assert np.mean([one.gain for one in earned]) == pytest.approx(0.092, abs=0.001)
    assert np.mean([one.centered for one in earned]) == pytest.approx(0, abs=1e-9)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="form must be one of plain, answer, boxed, any, not 'xml'"):
        reward("rotation", "90", RIGHT, form="xml")
    with pytest.raises(ValueError, match="chance must be"):
        reward("rotation", "90", RIGHT, chance=1.0)
    with pytest.raises(ConfigError, match="did you mean 'rotation'"):
        reward("rotations", "90", RIGHT)
    with pytest.raises(ValueError, match="kinds must be of"):
        reward_funcs(("scores",))
    with pytest.raises(ValueError, match="columns task and params"):
        reward_funcs()[0](completions=["90"])
    with pytest.raises(ValueError, match="was it written by"):
        compute_score("vgift/rotation", "90", "90", {})


def test_reward_functions_take_strings_and_messages():
    columns = {"task": ["rotation", "rotation", None], "params": [json.dumps(RIGHT), RIGHT, None], "image": [0, 0, 0]}
    said = [[{"role": "assistant", "content": "90"}], [{"role": "assistant", "content": "0"}], "90"]
    functions = reward_funcs(KINDS)
    assert [function.__name__ for function in functions] == [f"vgift_{kind}" for kind in KINDS]
    results = [function(prompts=["?"] * 3, completions=said, completion_ids=[], **columns) for function in functions]
    assert results[:4] == [[1, 0, None], [1, 0, None], [1, 1, None], [1, 0, None]]
    assert text([{"content": [{"type": "text", "text": "9"}, {"type": "image"}, {"text": "0"}]}]) == "90"
    assert text([]) == text([{"content": None}]) == ""


def test_the_reward_of_verl():
    extra = {"task": "color", "knobs": json.dumps({"points": 2}), "params": json.dumps({"order": [1, 0]})}
    right = compute_score("vgift/color", "<think>?</think> \\boxed{A-2, B-1}", "A-2, B-1", extra)
    assert right == {"score": 1, "exact": 1, "form": 1, "gain": 1}
    wrong = compute_score("vgift/color", "A-1, B-2", "A-2, B-1", extra, kind="centered", reward_router_address=None)
    assert wrong["score"] == pytest.approx(-1, abs=0.05) and wrong["gain"] == 0


def test_the_plugin_of_ms_swift_registers_its_rewards(monkeypatch):
    stand_in = types.SimpleNamespace(ORM=object, orms={})
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", stand_in)
    path = ROOT / "vgift_plugin" / "rewards" / "ms_swift" / "vgift_rewards.py"
    assert [one.name for one in path.parent.glob("*.py") if one.name[0] != "_"] == [path.name]  # it goes onto sys.path
    runpy.run_path(str(path))
    assert set(stand_in.orms) == {f"vgift_{kind}" for kind in KINDS}
    columns = {"task": ["rotation"] * 2, "params": [json.dumps(RIGHT)] * 2, "solution": ["90"] * 2}
    assert stand_in.orms["vgift_score"]()(completions=["\\boxed{90}", "9"], **columns) == [1, 0]


def test_importing_loads_no_trainer_and_no_framework():
    heavy = {"torch", "transformers", "trl", "datasets", "pyarrow", "llava", "peft"}
    for name in ("", ".trl", ".verl"):
        code = f"import vgift_plugin.rewards{name}, sys; assert not {heavy} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
