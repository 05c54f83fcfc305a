"""Sentences of instructions, and which of them are templates."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from conftest import VGIFT, call
from hypothesis import given, settings
from hypothesis import strategies as st

from vgift_plugin.data.records import human_texts
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.l2t.sentences import count, spans
from vgift_plugin.methods.l2t.templates import find, parse, read


def sentences(text):
    return [text[start:end] for start, end in spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("<image>", []),
        ("<image>\nWho is it? Answer: Ann.", ["Who is it?", "Answer:", "Ann."]),
        ("What is it?\nAnswer with one word.", ["What is it?", "Answer with one word."]),
        ("At 3.5 m, e.g.x, 10:30?  Really!\r\n\r\n  yes ", ["At 3.5 m, e.g.x, 10:30?", "Really!", "yes"]),
        ("这是什么？请回答。 好", ["这是什么？", "请回答。", "好"]),
        ("Where<image>is it", ["Where", "is it"]),
        (" . ", ["."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab .?!:\n\t。<image>3😀", max_size=40))
def test_sentences_are_in_order_bare_and_each_one_sentence(text):
    found = spans(text)
    assert all(0 <= a < b <= len(text) for a, b in found) and found == sorted(found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))
    for one in sentences(text):
        assert one == one.strip() and "<image>" not in one and "\n" not in one and sentences(one) == [one]
    left = text.replace("<image>", "")
    kept = "".join("".join(one.split()) for one in sentences(text))
    assert kept == "".join(left.split())  # nothing but white space and pictures is lost


def record(*texts):
    turns = [
        turn for text in texts for turn in ({"from": "human", "value": text}, {"from": "gpt", "value": "Yes. No."})
    ]
    return {"id": "r", "conversations": turns}


def test_a_sentence_counts_once_in_a_turn_and_the_models_turns_do_not_count():
    records = [record("<image>\nGo on. Go on. Who?", "Who?"), record("Go on."), {"id": "none"}]
    counter, turns = count(records, chunk=2)
    assert counter == {"Go on.": 2, "Who?": 2} and turns == 3
    assert human_texts(
        {"conversations": [{"role": "user", "content": "Hm"}, {"role": "assistant", "content": "No"}]}
    ) == ["Hm"]


def test_templates_are_selected_by_share_and_by_count():
    rng = random.Random(0)
    records = [
        record(f"What is number {k}?" + rng.choice(["\nShort answer.", " Say it: now.", ""])) for k in range(300)
    ]
    plain = Counter(one for each in records for one in set(sentences(each["conversations"][0]["value"])))
    for share, least in ((0.1, 1), (0.001, 20), (0.001, 1), (0.5, 1)):
        found = find(records, share, least)
        assert found.sentences() == {one for one, times in plain.items() if times >= max(least, share * 300)}
        assert [entry.count for entry in found.entries] == sorted(
            (plain[one] for one in found.sentences()), reverse=True
        )
    assert {"Short answer.", "Say it:", "now."} == find(records, 0.1, 1).sentences()


def test_what_is_written_is_what_is_read(tmp_path):
    found = find([record('Say "ünï 😀".\nNow!')] * 30, 0.001, 20)
    path = tmp_path / "templates.json"
    path.write_text(found.as_json())
    assert read(str(path)) == found and len(found.entries) == 2
    assert '"ünï 😀' in path.read_text().replace("\\", "")  # for people to read
    empty = find([], 0.001, 20)
    assert parse(empty.as_json(), "here") == empty
    assert (
        found.fingerprint() == parse(json.dumps(sorted(found.sentences())), "here").fingerprint() != empty.fingerprint()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "here: is no JSON"),
        ("7", "here: must be"),
        ('{"sentences": []}', "here: must be"),
        ('["Fine.", 7]', "here: entry 2 is 7"),
        ('[{"count": "many", "sentence": "x"}]', "here: entry 1 is"),
        (
            '["Two. Of them."]',
            r"entry 1, 'Two. Of them.', is not one sentence; write an entry each for \['Two.', 'Of them.'\]",
        ),
        ('[" spaced "]', "entry 1"),
        ('[""]', "entry 1"),
    ],
)
def test_a_malformed_file_is_told_with_its_entry(content, message):
    with pytest.raises(ConfigError, match=message):
        parse(content, "here")


def test_a_corpus_given_for_a_list_of_templates_is_told_in_a_few_lines():
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps([record("What is it? " * 50)] * 1000), "mix.json")
    lines = str(caught.value).splitlines()
    assert len(lines) == 7 and max(map(len, lines)) < 200 and "mix.json: and 995 more entries" in lines[-1]


def test_the_command_needs_no_torch_and_tells_mistakes(tmp_path):
    data, out = tmp_path / "mix.json", tmp_path / "templates.json"
    data.write_text(json.dumps([record(f"Number {k}?\nIn one word.") for k in range(25)]))
    code = (
        "import sys; from vgift_plugin.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'llava', 'transformers'} & set(sys.modules)"
    )
    done = call([VGIFT[0], "-c", code, "templates", "--data_path", data, "-o", out])
    assert done.returncode == 0, done.stderr
    assert "25  100.00%  In one word." in done.stdout and "1 templates of 25 human turns" in done.stdout
    assert read(str(out)).sentences() == {"In one word."}
    for args, message in (
        (["--data_path", tmp_path / "no.json", "-o", out], "no.json: cannot be read"),
        (["--data_path", data, "-o", tmp_path / "no" / "x.json"], "there is no folder"),
        (["--data_path", data, "-o", tmp_path], "cannot be written"),
        (["--data_path", data, "-o", out, "--min_share", "5"], "must be above 0 and at most 1"),
        (["--data_path", data, "-o", out, "--min_share", "nan"], "is no finite number"),
        (["--data_path", data, "-o", out, "--min_count", "0"], "must be at least 1"),
    ):
        done = call([*VGIFT, "templates", *args])
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    data.write_text('[{"id": "a"}, {"id": "b", "conversations": ["x"]}]')
    done = call([*VGIFT, "templates", "--data_path", data, "-o", out])
    assert done.returncode == 2 and f"--data_path {data}: record 1 has no turns like LLaVA's" in done.stderr, (
        done.stderr
    )
