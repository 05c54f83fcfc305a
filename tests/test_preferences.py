"""The file that `vgift stic prefer` writes and training reads: every mistake with file, line and value."""

import json

import pytest

from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.stic.preferences import read, usable

HEADER = {"vgift": "preferences", "version": 1, "template": "v1", "model": "ckpt", "settings": {"seed": 0}}
ROW = {"id": "a", "image": "x/a.jpg", "prompt": "<image>\nWhat is there?", "chosen": "A cat.", "rejected": "A dog."}
ROW |= {"branch": "prompt", "corruption": None, "prompt_ids": {"neutral": 3, "preferred": 0, "misleading": 1}}
ROW |= {"sampling": {"temperature": 0.2, "max_new_tokens": 8, "seed": 0}, "cut_off": [False, False], "degenerate": None}
LOWRES = ROW | {"id": "b", "branch": "lowres", "corruption": {"kind": "lowres", "shorter_px": 20}}
LOWRES |= {"prompt_ids": {"neutral": 3, "preferred": 0, "misleading": None}, "degenerate": "equal"}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_file_is_read_and_degenerate_rows_are_not_usable(tmp_path):
    found = read(write(tmp_path / "p.jsonl", HEADER, ROW, LOWRES))
    assert (found.header, found.rows, found.template) == (HEADER, [ROW, LOWRES], "v1")
    assert usable(found.rows) == [ROW]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "id is 7; it must be text"),
        ({"image": "../a.jpg"}, "image is '../a.jpg'; .* below the image folder"),
        ({"prompt": "What?"}, "prompt is 'What.'; it must be <image>, a line break and a question"),
        ({"prompt": "<image>\n "}, "prompt is"),
        ({"prompt": "<image>\nWhat <image>?"}, "prompt is"),
        ({"chosen": None}, "chosen is None; it must be text"),
        ({"branch": "blur"}, "branch is 'blur'; it must be one of prompt, lowres, jitter"),
        ({"corruption": "20 px"}, "corruption is '20 px'"),
        ({"prompt_ids": {"neutral": 1, "preferred": 0}}, "prompt_ids is"),
        ({"prompt_ids": {"neutral": -1, "preferred": 0, "misleading": None}}, "prompt_ids is"),
        ({"sampling": {"temperature": "hot", "max_new_tokens": 8, "seed": 0}}, "sampling is"),
        ({"cut_off": [0, 1]}, r"cut_off is \[0, 1\]"),
        ({"degenerate": "dull"}, "degenerate is 'dull'; it must be null or one of equal, empty, cut off, markup"),
        ({"id": "a"}, "id 'a' stands on line 2 already"),
        ({"degenerate": None, "rejected": " A  cat."}, "degenerate is null; with these responses it must be 'equal'"),
        ({"degenerate": None, "rejected": "\n"}, "degenerate is null; .* 'empty'"),
        ({"degenerate": None, "rejected": "A <image> of a dog."}, "degenerate is null; .* 'markup'"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_value(tmp_path, change, message):
    path = write(tmp_path / "p.jsonl", HEADER, ROW, LOWRES | change)
    with pytest.raises(ConfigError, match=f"{path}: 1 mistake:\n  line 3: {message}"):
        read(path)


def test_all_mistakes_come_at_once(tmp_path):
    torn = json.dumps(LOWRES)[:40]
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path / "p.jsonl", HEADER, {k: v for k, v in ROW.items() if k != "chosen"}, "[1]", torn))
    told = str(caught.value)
    assert "line 2: chosen is missing" in told and "line 3: is not an object" in told and "line 4: is not JSON" in told
    with pytest.raises(ConfigError, match="and 4 more"):
        read(write(tmp_path / "p.jsonl", HEADER, *["x"] * 9))


def test_what_is_no_preference_file_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(ConfigError, match=f"{path}: cannot be read"):
        read(path)
    for first, message in (
        (ROW, "vgift is missing"),
        (HEADER | {"version": 2}, "version is 2; it must be 1"),
        (HEADER | {"template": None}, "template is None"),
        ("no", "is not JSON"),
    ):
        with pytest.raises(ConfigError, match=f"{path} is no preference file of version 1.*\n  line 1: {message}"):
            read(write(path, first, ROW))
    for lines in ([], [HEADER]):
        with pytest.raises(ConfigError, match="was `vgift stic prefer` interrupted"):
            read(write(path, *lines))
