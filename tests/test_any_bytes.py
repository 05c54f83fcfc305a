"""Whatever a file holds: every reader returns something right, or raises one error that names the file."""

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vgift_plugin.data.jobs import Job
from vgift_plugin.data.photo import open_photo, photo_size
from vgift_plugin.data.records import read_records
from vgift_plugin.errors import ConfigError, UnsuitableImage
from vgift_plugin.methods.l2t.templates import read as read_templates
from vgift_plugin.methods.settings import Settings
from vgift_plugin.methods.stic.preferences import read as read_preferences
from vgift_plugin.methods.vgift.export.job import _finished
from vgift_plugin.methods.vgift.pairs.listing import read_pairs
from vgift_plugin.methods.vgift.release import RELEASE
from vgift_plugin.methods.vgift.rows import PAIRS, RowSource
from vgift_plugin.tasks.drawing import test_card as card
from vgift_plugin.tasks.photo_pairs import PhotoPairs

PAIR = {"id": "0", "image1": "a.png", "image2": "b.png", "wh1": [60, 40], "wh2": [60, 40], "query": [5, 5]}
PAIR |= {"match": [50, 30], "distractors": [[5, 5], [30, 20], [55, 5]], "similarity": 0.5, "margin": 0.1, "label": None}
POINTS = [{"label": label, "x": 9, "y": 9, "original_color": [1, 2, k]} for k, label in enumerate("AB")]
METADATA = {
    "color": {"points": POINTS, "shuffled_colors": [[1, 2, 0], [1, 2, 1]], "answer_mapping": {"A": 1, "B": 2}},
    "correspondence": {"point_img1": "(1, 2)", "points_img2": ["(3, 4)", "(5, 6)"], "correspondence_index": 1},
    "rotation": {"rotation_degrees": 90},
}
NAMES = {"source_image": "a.png", "image1_name": "a.png", "image2_name": "b.png"}
HEADER = {"vgift": "preferences", "version": 1, "template": "v1", "model": "m", "settings": {}}
PREFERENCE = {"id": "1", "image": "a.png", "prompt": "<image>\nWhat?", "chosen": "A cat.", "rejected": "A dog."}
PREFERENCE |= {"branch": "prompt", "corruption": None, "prompt_ids": {"neutral": 0, "preferred": 1, "misleading": None}}
PREFERENCE |= {"sampling": {"temperature": 0.5, "max_new_tokens": 9, "seed": 0}, "cut_off": [False, False]}
PREFERENCE |= {"degenerate": None}
RECORD = {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}


def pairs(path):
    return RowSource(path, PhotoPairs(), PAIRS, str(path.parent))


def metadata(kind):
    one = next(one for one in RELEASE if one.task.name == kind)
    return lambda path: RowSource(path, one.task(), one.format, str(path.parent))


def knobs(path):
    Settings({"ssl_tasks": "rotation", "ssl_config": str(path)}).check()


def journal(path):
    with Job(path.parent, {"seed": 0}) as job:
        list(job.complete("squares", 3, lambda block: [{"square": k * k} for k in block]) or ())


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def released(kind):
    return json.dumps([{"id": "1", **NAMES, **METADATA[kind]}]).encode()


TEMPLATES = json.dumps({"templates": [{"sentence": "Answer briefly.", "count": 3}]}).encode()
SQUARES = lines({"settings": {"seed": 0}}, *({"part": "squares", "number": k, "square": k * k} for k in range(3)))
READERS = {
    "knobs.yaml": (knobs, b"rotation: {size_px: 99, square: true}\n"),
    "knobs.json": (knobs, b'{"rotation": {"size_px": 99, "square": true}}'),
    "pairs.jsonl": (pairs, lines(PAIR, {**PAIR, "id": "1"})),
    **{f"{kind}_metadata.json": (metadata(kind), released(kind)) for kind in METADATA},
    "preferences.jsonl": (read_preferences, lines(HEADER, PREFERENCE)),
    "templates.json": (read_templates, TEMPLATES),
    "pairs.txt": (
        lambda path: read_pairs(str(path)),
        b'a.png: b.png\n["a.png", "b.png"]\n{"image1": "b.png", "image2": "a.png"}\n',
    ),
    "mix.json": (lambda path: read_records(str(path)), json.dumps([RECORD]).encode()),
    "rank-0.jsonl": (journal, SQUARES),
    "export.json": (lambda path: _finished(str(path.parent), {"seed": 0}), b'{"seed": 0, "redraws": {}}'),
}


def damaged(content):
    """Returns a strategy for arbitrary bytes, and for `content` with bytes replaced, removed, repeated or cut off."""
    place = st.integers(0, len(content) - 1)
    odd = st.sampled_from(
        [b"\xff", b"\0", b'"', b"}", b"]", b",", b"NaN", b"-1", b"1e999", b"null", b"\\ud800", b"{" * 99]
    )
    replaced = st.builds(
        lambda k, n, new: content[:k] + new + content[k + n :], place, st.integers(0, 9), odd | st.binary(max_size=3)
    )
    repeated = st.builds(lambda j, k: content[: max(j, k)] + content[min(j, k) :], place, place)
    return st.binary(max_size=60) | st.builds(lambda k: content[:k], place) | replaced | repeated


@pytest.mark.parametrize("name", READERS)
def test_any_content_is_read_or_one_error_names_the_file(tmp_path, name):
    read, good = READERS[name]
    path = tmp_path / name
    for photo in ("a.png", "b.png"):
        card((60, 40)).save(tmp_path / photo)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(damaged(good))
    def check(content):
        path.write_bytes(content)
        try:
            read(path)
        except ConfigError as err:
            assert name in str(err)
            assert len(str(err)) < 3000

    path.write_bytes(good)
    read(path)
    check()


def saved(suffix):
    file = io.BytesIO()
    card((60, 40)).save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_any_photograph_is_read_or_unsuitable(tmp_path, suffix):
    path, good = str(tmp_path / "x.jpg"), saved(suffix)

    @settings(max_examples=150, deadline=None)
    @given(damaged(good))
    def check(content):
        with open(path, "wb") as file:
            file.write(content)
        try:
            size = photo_size(path)
            photo = open_photo(path)
        except UnsuitableImage as unsuitable:
            assert unsuitable.reason in ("unreadable", "more than 8 bits", "too many pixels")
        else:
            assert photo.mode == "RGB" and photo.size == size
            assert Image.frombytes("RGB", size, photo.tobytes()).size == size

    check()
