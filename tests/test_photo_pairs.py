"""Pairs of photographs with a stored match: which points are offered, and where they are painted."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from vgift_plugin import UnsuitableImage, generator, get_task
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
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (400, 300)).save(tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row()) + "\n")
    task = get_task("correspondence")(candidates=4, size_px=200, wording=1)
    flags = VgiftFlags(ssl_tasks="correspondence", ssl_pairs=str(tmp_path / "pairs.jsonl"))
    (stream,) = streams(flags, [TaskSpec(task, Fraction(1))], None, str(tmp_path), None)
    sample = stream(0, 0)
    assert "marks 0, 1, 2 and 3" in sample.instruction and stream.task.chance == 1 / 4
    assert sample.image.size == (200 + 16 + 200, 150)
