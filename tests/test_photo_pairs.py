"""Pairs of photographs with a stored match: which points are offered, and where they are painted."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from vgift_plugin import UnsuitableImage, generator, get_task
from vgift_plugin.errors import ConfigError, NoSuitableImageError
from vgift_plugin.methods.vgift.flags import TaskSpec, VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.tasks.photo_pairs import PhotoPairs

RED = (255, 0, 0)


def row(**changes):
    others = [[300, 30], [40, 250], [350, 260]]
    wh = {"wh1": [451, 300], "wh2": [400, 300]}
    return {"image1": "a.jpg", "image2": "b.jpg", **wh, "query": [60, 70], "match": [200, 150], **changes} | {
        "distractors": changes.get("distractors", others)
    }


def drawn(seed, **changes):
    return PhotoPairs().draw_match(row(**changes), generator(seed, "p"))


def test_the_match_gets_every_number_and_distractors_vary():
    several = [drawn(seed) for seed in range(200)]
    assert all(params["candidates"][params["answer"]] == [200, 150] for params in several)
    assert {params["answer"] for params in several} == {0, 1, 2}
    assert len({tuple(map(tuple, sorted(params["candidates"]))) for params in several}) == 3


def test_both_photographs_are_marked_where_the_points_lie():
    task, params = PhotoPairs(), drawn(3)
    photos = [Image.new("RGB", (451, 300), "navy"), Image.new("RGB", (400, 300), "darkgreen")]
    pixels = np.asarray(task.render(photos, params))
    scale = 160 / 451, 160 / 400
    assert pixels.shape == (int(300 * scale[1]), 160 + 16 + 160, 3)
    assert (pixels[int(70 * scale[0]), int(60 * scale[0])] == RED).all()
    for x, y in params["candidates"]:
        assert (pixels[int(y * scale[1]), 160 + 16 + int(x * scale[1])] == RED).all()
    instruction, response = task.ask(params)
    assert "photograph" in instruction and response == str(params["answer"])


def test_candidates_whose_markers_touch_are_passed_over():
    with pytest.raises(UnsuitableImage, match="candidates too close"):
        drawn(0, distractors=[[205, 150], [195, 150]])
    for seed in range(20):
        assert [205, 150] not in drawn(seed, distractors=[[205, 150], [40, 250], [350, 260]])["candidates"]


@pytest.mark.parametrize("changes", [{"distractors": [[1, 2]]}, {"match": [1.5, 2]}, {"query": [1]}])
def test_malformed_rows_are_told(changes):
    with pytest.raises((ValueError, TypeError)):
        drawn(0, **changes)


def test_the_knobs_of_the_task_hold_for_its_pairs_too(tmp_path):
    for name, wh in (("a.jpg", (451, 300)), ("b.jpg", (400, 300))):
        Image.new("RGB", wh).save(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row()) + "\n")
    task = get_task("correspondence")(candidates=4, size_px=200, wording=1)
    flags = VgiftFlags(ssl_tasks="correspondence", ssl_pairs=str(tmp_path / "pairs.jsonl"))
    (stream,) = streams(flags, [TaskSpec(task, Fraction(1))], None, str(tmp_path), None)
    sample = stream(0, 0)
    assert "marks 0, 1, 2 and 3" in sample.instruction and stream.task.chance == 1 / 4
    assert sample.image.size == (200 + 16 + 200, 150)


def stream_of(tmp_path, rows, sizes=((451, 300), (400, 300))):
    for name, wh in zip(("a.jpg", "b.jpg"), sizes, strict=True):
        Image.new("RGB", wh).save(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    flags = VgiftFlags(ssl_tasks="correspondence", ssl_pairs=str(tmp_path / "pairs.jsonl"))
    return streams(flags, flags.tasks(), None, str(tmp_path), None)[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"query": [-5, -5]}, r"row 2 .* the point \[-5, -5\] lies outside a photograph of 451×300 pixels \(wh1\)"),
        ({"match": [10**6, 10**6]}, r"the point \[1000000, 1000000\] lies outside a photograph of 400×300"),
        ({"distractors": [[300, 30], [40, 250], [400, 260]]}, r"the point \[400, 260\] lies outside"),
        ({"query": ["60", 70]}, r"\['60', 70\] is not two whole numbers"),
        ({"query": [float("nan"), 70]}, r"\[nan, 70\] is not two whole numbers"),
        ({"wh1": None}, "None is not two whole numbers"),
        ({"wh2": "nonsense"}, "'nonsense' is not two whole numbers"),
        ({"match": [40, 250]}, r"the match \[40, 250\] is one of the distractors"),
        ({"wh1": [902, 600]}, r"row 2: a.jpg is 451×300 pixels, and 902×600 in the row"),
    ],
)
def test_rows_that_contradict_their_photographs_are_named_before_training(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told) as caught:
        stream_of(tmp_path, [row(), row(**changes)])
    assert "pairs.jsonl: " in str(caught.value)


def test_photographs_at_half_size_are_named_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)2 of 2 rows contradict .*--ssl_image_folder") as caught:
        stream_of(tmp_path, [row(), row()], sizes=((225, 150), (200, 150)))
    assert "row 1: a.jpg is 225×150 pixels, and 451×300 in the row" in str(caught.value)


def test_a_row_whose_photograph_changed_later_is_passed_over_and_counted(tmp_path):
    stream, redraws = stream_of(tmp_path, [row(), row()]), []
    Image.new("RGB", (225, 150)).save(tmp_path / "a.jpg")
    with pytest.raises(NoSuitableImageError, match="row contradicts photograph"):
        stream(0, 0, lambda task, reason: redraws.append(reason))
    assert redraws == ["row contradicts photograph"] * 11


def test_a_row_cannot_name_a_link_to_a_file_outside_the_folder(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (451, 300)).save(elsewhere / "secret.png")
    (tmp_path / "link.png").symlink_to(elsewhere / "secret.png")
    (tmp_path / "linked").symlink_to(elsewhere)
    stream_of(tmp_path, [row(image1="linked/secret.png")])
    with pytest.raises(ConfigError, match=r"1 of the photographs it names are links to files outside .*: link.png"):
        stream_of(tmp_path, [row(image1="link.png")])
