"""Files of rows: how they are read, what a row is found by, and which rows are refused."""

import json
import pickle

import pytest

from vgift_plugin import get_task
from vgift_plugin.data.rows import Rows, absent
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.release import of_task
from vgift_plugin.methods.vgift.rows import RowSource

Rotation = get_task("rotation")


def source(tmp_path, rows, names=("a.jpg", "in/b.jpg")):
    photos = tmp_path / "photos"
    for name in names:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    path = tmp_path / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return RowSource(path, Rotation(), of_task("rotation").format, str(photos))


def row(id="y", photo="a.jpg", angle=90):
    return {"id": id, "source_image": photo, "rotation_degrees": angle}


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": "ü, ]"}]',
        '{"a": 1}\n{"a": "ü, ]"}\n',
        ' [\n  {"a": 1},\n  {"a": "ü, ]"}\n]\n',
        '{"a":1}{"a":"ü, ]"}',
    ],
)
def test_lists_and_lines_are_read_alike(tmp_path, text):
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")
    rows = Rows(path)
    assert list(rows) == [{"a": 1}, {"a": "ü, ]"}]
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": ', "row 2 is not JSON"),
        ('[{"a": 1}, 7]', "row 2 is not an object with names and values: 7"),
        ('[{"a": 1}, {"a": 2}', "ends after row 2, before its closing bracket"),
        ('[{"a": 1}] {"a": 2}', "more text after the closing bracket of its list: '{"),
        ('[{"a": 1} {"a": 2}]', "no comma after row 1"),
        ('[,,{"a": 1}]', "row 1 is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "row 1 is not JSON: the key 'a' stands twice"),
        ('{"a":' * 100_000, "row 1 is not JSON: is nested too deeply"),
        ("[]", "holds no row"),
        ("", "holds no row"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Rows(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Rows(tmp_path / "none.json")


def test_rows_are_found_by_id(tmp_path):
    found = source(tmp_path, [row("b"), row("a"), row("ä", "in/b.jpg")])
    assert [found.find(id) for id in ("a", "b", "ä", "c", "", "aa")] == [1, 0, 2, -1, -1, -1]
    assert found.paths(found.rows[2]) == [str(tmp_path / "photos" / "in/b.jpg")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(angle=45), "row 2 is no row for rotation: rotation_degrees is 45"),
        ({"id": "y", "source_image": "a.jpg"}, "row 2 is no row for rotation: 'rotation_degrees' is missing"),
        (row(photo="../a.jpg"), "row 2 .* '../a.jpg' lies outside the image folder"),
        (row(photo="in/../../a.jpg"), "lies outside the image folder"),
        (row(photo="/etc/passwd"), "'/etc/passwd' lies outside the image folder"),
        (row(photo=7), "7 is no name of a photograph"),
        (row(photo="none.jpg"), r"1 of the 2 photographs it names are not in .*photos: none.jpg\n.*--ssl_image_folder"),
        (row(id="x"), "the id 'x' stands twice"),
    ],
)
def test_bad_rows_are_named_before_training(tmp_path, bad, message):
    with pytest.raises(ConfigError, match=message):
        source(tmp_path, [row("x"), bad])


def test_absent_lists_each_folder_once(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").touch()
    assert absent(str(tmp_path), ["in/a", "in/b", "no/a", "a"]) == ["in/b", "no/a", "a"]
