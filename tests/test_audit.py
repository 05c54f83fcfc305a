import io
import json
import re
import sys

import numpy as np
import pytest
from conftest import demo_module
from PIL import Image, ImageDraw

from vgift_plugin.audit.audit import audit, examine
from vgift_plugin.audit.classifier import table_of
from vgift_plugin.audit.controls import shifted
from vgift_plugin.audit.markers import marked_points
from vgift_plugin.audit.solvers import SOLVERS, SolverInput, brightness_order, jpeg_grid
from vgift_plugin.audit.split import halves, targets_of
from vgift_plugin.errors import ConfigError
from vgift_plugin.report.intervals import effective_size, wilson
from vgift_plugin.tasks.drawing import Marker, side_by_side
from vgift_plugin.tasks.task import Sample

MARKER = Marker(radius_px=6, font_px=18)


def noise(rng, wh):
    """Returns a smooth random picture with some fine detail."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(wh, Image.Resampling.BICUBIC)
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.normal(0, 6, (wh[1], wh[0], 3)), 0, 254).round().astype(np.uint8)
    )


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def toy(leak=None, shift=False):
    """Returns samples of a toy task: which of four, drawn; the answer leaks into one thing that is no content.

    With `shift` they are made of the shifted photographs.
    """

    def sample(j):
        rng = np.random.default_rng([3, j])
        answer = int(rng.integers(4))
        told = answer if rng.random() < 0.7 else int(rng.integers(4))  # a leak need not be complete
        wh, text, params, name = (120, 96), f"Which of 4? ({rng.integers(100)})", {"answer": answer}, f"{j}.jpg"
        if leak == "size":
            wh = [(120, 96), (96, 120), (120, 60), (90, 90)][told]
        photo = jpeg(noise(rng, (100, 100)), 20) if leak == "grid" else noise(rng, (120, 120)).crop((0, 0, *wh))
        image = shifted(photo, name) if shift else photo
        if leak == "prior":
            answer = min(told, 1)
        if leak == "grid":
            image = image.rotate(-90 * told, expand=True)
        if leak == "text":
            text += f" Case {10 + told}."
        if leak == "marker":
            point = [20 + 20 * told, 40]
            MARKER.paint(image, tuple(point), "A")
            params["point"] = point
        return Sample("toy", image, text, str(answer), params, (name,))

    return sample


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two folders of 120 pictures of 224 px: drawn scenes, and views of photographs."""
    root, data = tmp_path_factory.mktemp("pictures"), demo_module("data")
    data.write(root, 120, 120)
    return root


def test_wilsons_interval():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_answers_of_one_photograph_count_less():
    rng = np.random.default_rng(0)
    right = rng.random((200, 1)) < 0.5
    assert effective_size(right, np.arange(200)) == pytest.approx(200)
    assert effective_size(np.repeat(right, 4, 0), np.repeat(np.arange(200), 4)) == pytest.approx(200)
    assert effective_size(np.repeat(right, 5, 1), np.arange(200)) == pytest.approx(200)
    assert effective_size(np.ones((12, 1), bool), np.arange(12) // 2) == 6  # all right: one trial a photograph


def test_answers_become_classifications():
    assert targets_of(["90", "0"]).tolist() == [["90"], ["0"]]
    assert targets_of(["A-3, B-1", "A-2, B-3"]).tolist() == [["3", "1"], ["2", "3"]]
    assert targets_of(["3, 1, 2"]).tolist() == [["3", "1", "2"]]
    assert targets_of(["A-1, B-2", "none"]).tolist() == [["A-1, B-2"], ["none"]]


def test_no_photograph_is_in_both_halves():
    rng = np.random.default_rng(0)
    sources = [(f"{rng.integers(60)}",) for _ in range(300)]
    train, test, groups, apart = halves(sources)
    assert apart and sorted([*train, *test]) == list(range(300))
    assert not {sources[k] for k in train} & {sources[k] for k in test}
    assert not set(groups[train]) & set(groups[test])
    assert abs(len(train) - 150) < 15
    train, test, _, apart = halves([(str(k),) for k in range(40)])  # each photograph once: simply the halves
    assert apart and train.tolist() == list(range(20)) and test.tolist() == list(range(20, 40))


def test_photographs_of_one_sample_stay_together():
    sources = [(str(k // 2 * 2), str(k // 2 * 2 + 1)) for k in range(60)]
    train, test, groups, apart = halves(sources)
    assert apart and len(set(groups)) == 30
    assert not {name for k in train for name in sources[k]} & {name for k in test for name in sources[k]}


def test_too_few_photographs_are_told():
    train, test, _, apart = halves([(str(k % 5),) for k in range(40)])
    assert not apart and len(train) == len(test) == 20


def test_marked_points_are_found_with_their_names():
    rng = np.random.default_rng(1)
    left, right = noise(rng, (100, 100)), noise(rng, (100, 100))
    query, candidates = [30, 50], [[70, 20], [20, 80], [60, 70]]
    MARKER.paint(left, tuple(query), "Q")
    for number, xy in enumerate(candidates):
        MARKER.paint(right, tuple(xy), str(number))
    image = side_by_side(left, right, 16)
    params = {"query": query, "candidates": candidates, "order": [0, 1], "views": [{"quad": [[0, 0], [9, 0], [9, 9]]}]}
    groups = marked_points(Sample("toy", image, "", "0", params))
    assert [own for own, _ in groups] == [[(30, 50)], [(70, 20), (20, 80), (60, 70)]]
    assert [seen for _, seen in groups] == [[(30, 50)], [(186, 20), (136, 80), (176, 70)]]
    ((unnamed, _),) = marked_points(Sample("toy", image, "", "0", {}))  # dots alone; letters are none
    assert sorted(unnamed) == sorted([(30, 50), (186, 20), (136, 80), (176, 70)])
    assert marked_points(Sample("toy", noise(rng, (60, 60)), "", "0", params)) == []


def test_brightness_order_matches_points_and_listed_colours():
    image = Image.new("RGB", (200, 100))
    points, greys = [[40, 50], [100, 50], [160, 50]], [200, 20, 110]
    draw = ImageDraw.Draw(image)
    for (x, _), grey in zip(points, greys, strict=True):
        draw.rectangle((x - 30, 0, x + 29, 99), fill=(grey,) * 3)
    for letter, xy in zip("ABC", points, strict=True):
        MARKER.paint(image, tuple(xy), letter)
    text = "1. RGB(10, 10, 60)\n2. RGB(90, 120, 90)\n3. RGB(250, 240, 90)"
    seen = brightness_order(SolverInput(Sample("toy", image, text, "A-3, B-1, C-2", {"points": points})))
    assert seen.reshape(3, 3).argmax(1).tolist() == [2, 0, 1]


def test_rows_of_different_lengths_make_a_table():
    assert table_of([np.array([1.0]), np.array([2.0, 3.0])]).tolist() == [[1, -1], [2, 3]]
    assert table_of([np.zeros(0)] * 3).shape == (3, 0)


def test_the_corner_of_jpegs_grid_is_seen():
    rng = np.random.default_rng(2)
    image = jpeg(noise(rng, (203, 149)), 25)
    seen = {}
    for turns in range(4):
        turned = image.rotate(-90 * turns, expand=True)
        seen_by = SolverInput(Sample("toy", turned, "", "0", {}))
        left, right, top, bottom = jpeg_grid(seen_by)[:32].reshape(4, 8)
        seen[turns] = [end.argmax() == 7 for end in (left, right, top, bottom)]
    # a quarter turn clockwise takes the left end to the top, the top end to the right
    assert seen[0] == [True, False, True, False] and seen[2] == [False, True, False, True]
    assert seen[1] == [False, True, True, False] and seen[3] == [True, False, False, True]


def test_a_shifted_photograph_has_the_same_content_and_its_grid_anywhere():
    photo = noise(np.random.default_rng(4), (60, 40))
    pixels, steps = np.asarray(photo), set()
    for k in range(200):
        moved = shifted(photo, f"some/where/{k}.jpg")
        assert moved.size == photo.size and moved.tobytes() == shifted(photo, f"elsewhere/{k}.jpg").tobytes()
        (step,) = (
            (dx, dy)
            for dx in range(-4, 4)
            for dy in range(-4, 4)
            if (np.asarray(moved)[4 + dy : 36 + dy, 4 + dx : 56 + dx] == pixels[4:36, 4:56]).all()
        )
        steps.add(step)
    assert {dx for dx, _ in steps} == {dy for _, dy in steps} == set(range(-4, 4))


@pytest.mark.parametrize(
    ("leak", "found"),
    [
        (None, set()),
        ("prior", {"answer prior"}),
        ("size", {"picture size", "padding"}),
        ("grid", {"JPEG grid"}),
        ("text", {"instruction text"}),
        ("marker", {"marker positions"}),
    ],
)
def test_leaks_are_flagged_and_a_clean_task_is_not(leak, found):
    pytest.importorskip("sklearn")
    report = examine("toy", 0.25, toy(leak), toy(leak, shift=True), 300, 0.03)
    leaks = {row.solver for row in report.rows if row.verdict == "LEAK"}
    assert leaks == set(report.solved) == found
    assert [row.solver for row in report.rows] == [solver.name for solver in SOLVERS]
    for row in report.rows:
        assert row.verdict == "absent" or row.low <= row.accuracy <= row.high
        assert (row.control is None) == (row.kind == "cue" or row.verdict == "absent")
        if row.control is not None:
            assert row.difference == row.accuracy - row.control_accuracy
            assert row.difference_low <= row.difference <= row.difference_high
        if row.solver in found:
            assert row.accuracy > 0.5
    controls = {row.solver: row.control for row in report.rows}
    assert controls["JPEG grid"] == "shifted photographs" and controls["answer prior"] == "chance"
    assert controls["picture size"] == ("answer prior" if leak == "prior" else "chance")
    for numbers in report.solved.values():
        assert len(numbers) == 8 and min(numbers) >= 150  # held out


def test_a_report_does_not_depend_on_the_number_of_processes():
    pytest.importorskip("sklearn")
    alone, together = (
        examine("toy", 0.25, toy("marker"), toy("marker", shift=True), 80, 0.03, workers=workers) for workers in (1, 2)
    )
    assert alone == together


def test_a_sighted_cue_is_no_leak():
    pytest.importorskip("sklearn")

    def sample(j):
        answer = j * 7 % 3
        image = noise(np.random.default_rng(j), (64, 64)).point(lambda value: value // (1 + answer))
        return Sample("toy", image, "How dark?", str(answer), {}, (f"{j}.jpg",))

    thumbnail = [solver for solver in SOLVERS if "thumbnail" in solver.name]
    (row,) = examine("toy", 1 / 3, sample, sample, 120, 0.03, thumbnail).rows
    assert row.verdict == "informative" and row.accuracy > 0.8


@pytest.mark.parametrize("kind", ["scene", "photo"])
def test_the_tasks_are_clean_on_drawn_scenes_and_on_photographs(pictures, tmp_path, kind):
    pytest.importorskip("sklearn")
    flags = {"ssl_tasks": "rotation,color,correspondence"}
    table, clean = audit(flags, str(pictures / kind), None, 160, str(tmp_path / "audit.html"))
    assert clean and "LEAK" not in table


def test_what_the_control_sees_as_well_is_no_leak(pictures, tmp_path):
    """A horizon is enough for the JPEG grid solver to tell how a drawn scene was turned, wherever the grid begins."""
    pytest.importorskip("sklearn")
    numbers = tmp_path / "audit.json"
    audit({"ssl_tasks": "rotation"}, str(pictures / "scene"), None, 500, str(tmp_path / "a.html"), str(numbers))
    (row,) = (row for row in json.loads(numbers.read_text())["rows"] if row["solver"] == "JPEG grid")
    assert row["low"] > 0.28 and row["control_accuracy"] > 0.3 and row["verdict"] == "ok"


@pytest.mark.parametrize(
    ("task", "knobs", "quality", "found"),
    [
        ("rotation", {"square": False}, 40, "JPEG grid"),
        ("correspondence", {"turn": False}, 90, "marker positions"),
    ],
)
def test_knobs_that_leak_are_found_on_photographs(pictures, tmp_path, task, knobs, quality, found):
    pytest.importorskip("sklearn")
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in (pictures / "photo").iterdir():
        jpeg(Image.open(path), quality).save(folder / path.name, quality="keep")
    (tmp_path / "knobs.json").write_text(json.dumps({task: knobs}))
    flags = {"ssl_tasks": task, "ssl_config": str(tmp_path / "knobs.json")}
    table, clean = audit(flags, str(folder), None, 400, str(tmp_path / "audit.html"))
    assert not clean and re.search(rf"{task} +{found} +cheat .* LEAK", table)


def test_stored_rows_are_audited(release, tmp_path):
    pytest.importorskip("sklearn")
    root, metadata, _ = release
    flags = {"ssl_tasks": "rotation,color,correspondence", "ssl_replay": str(metadata)}
    table, _ = audit(flags, str(root), None, 20, str(tmp_path / "audit.html"))
    assert len(re.findall(r"JPEG grid +cheat .* shifted photographs ", table)) == 3


def test_the_page_the_numbers_and_the_verdict(photos, tmp_path):
    pytest.importorskip("sklearn")
    page, numbers = tmp_path / "audit.html", tmp_path / "audit.json"
    flags = {"ssl_tasks": "rotation,color,correspondence"}
    table, clean = audit(flags, str(photos), None, 60, str(page), str(numbers), 0.03)
    found = json.loads(numbers.read_text())
    assert len(found["rows"]) == 3 * len(SOLVERS) and found["n"] == 60 and found["clean"] == clean
    assert {row["task"]: row["chance"] for row in found["rows"]} == pytest.approx(
        {"rotation": 1 / 4, "color": 1 / 5, "correspondence": 1 / 3}
    )
    assert clean == (not any(row["verdict"] == "LEAK" for row in found["rows"]))
    assert {"control", "control_accuracy", "difference", "difference_low", "difference_high"} <= set(found["rows"][0])
    assert all(row["solver"] in table for row in found["rows"])
    assert found["splits"]["color"]["items"] == 5 and not found["splits"]["color"]["photographs_apart"]
    assert "5 photographs, too few to keep the halves apart" in table
    html = page.read_text()
    assert all(f"<dd>{solver.about}</dd>" in html for solver in SOLVERS)
    assert html.count("<svg") == 3 and not re.findall(r'(?:src|href)="(?!data:)', html)


def test_what_was_passed_over_is_told(photos, tmp_path):
    pytest.importorskip("sklearn")
    for path in photos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    page, numbers = tmp_path / "audit.html", tmp_path / "audit.json"
    table, _ = audit({"ssl_tasks": "rotation"}, str(tmp_path), None, 40, str(page), str(numbers), 0.03)
    found = json.loads(numbers.read_text())
    ((reason, count),) = found["splits"]["rotation"]["passed_over"].items()
    assert reason == "unreadable" and count > 2 and f"passed over: {count} unreadable" in table
    assert found["image_folder"] == str(tmp_path)


def test_a_leak_is_shown_on_the_page(photos, tmp_path):
    pytest.importorskip("sklearn")
    page, folder = tmp_path / "audit.html", tmp_path / "photos"
    folder.mkdir()
    (folder / "coffee.jpg").symlink_to(photos / "coffee.jpg")
    (tmp_path / "knobs.json").write_text('{"rotation": {"square": false}}')
    narrow = {"ssl_tasks": "rotation", "ssl_config": str(tmp_path / "knobs.json")}
    table, clean = audit(narrow, str(folder), None, 120, str(page), None, 0.03)
    assert not clean and re.search(r"rotation +picture size +cheat .* LEAK", table)
    html = page.read_text()
    assert "Solved by picture size alone" in html and html.count("data:image/jpeg;base64,") >= 8
    table, clean = audit(narrow, str(folder), None, 120, str(page), None, 0.9)  # it does beat chance, and is let pass
    assert clean and table.endswith("audit.html: no cheat's interval begins more than 90.0% above its control")


def test_missing_sklearn_is_told_with_its_cure(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'vgift-plugin\[audit\]'"):
        audit({"ssl_tasks": "rotation"}, str(photos), None, 60, str(tmp_path / "a.html"), None, 0.03)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "audit.pdf"}, "must end in .html"),
        ({"output": "absent/audit.html"}, "there is no folder"),
        ({"json_path": "absent/audit.json"}, "there is no folder"),
        ({"n": 3}, "at least 20 samples"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"flags": {}}, "--ssl_tasks is missing"),
        ({"flags": {"ssl_tasks": "rotatoin"}}, "did you mean 'rotation'"),
    ],
)
def test_mistakes_are_told(photos, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        audit(**{"flags": {"ssl_tasks": "rotation"}, "image_folder": str(photos), **changes})
    assert not list(tmp_path.iterdir())
