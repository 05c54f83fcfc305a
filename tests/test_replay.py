"""Published samples are painted as the release draws them. What to expect is computed here from photographs, numbers
and glyphs; the numbers are those of the release (V-GIFT, arXiv 2604.12966)."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vgift_plugin import get_task
from vgift_plugin.data.photos import from_folder, from_records, is_published
from vgift_plugin.errors import ConfigError, TaskError
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.release import RELEASE, of_task, reading
from vgift_plugin.methods.vgift.replay import Replay
from vgift_plugin.methods.vgift.streams import find_replay, streams
from vgift_plugin.tasks import drawing
from vgift_plugin.tasks.photo_pairs import PUBLISHED_MARKER

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture(scope="module")
def replay(release):
    root, metadata, records = release
    return Replay(str(metadata), str(root / "coco/train2017"), records, str(root))


def painted(replay, records, part):
    """Yields (row, painted picture as an array) of every published record whose picture's name holds `part`."""
    for position, record in enumerate(records):
        if part in record.get("image", ""):
            (picture,) = replay.pictures(position, record)
            yield replay._at(position)[1], np.asarray(picture)


def photo(root, name, upright):
    image = Image.open(root / "coco/train2017" / name)
    return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")


def disc(wh, xy, radius):
    """Where Pillow fills a circle."""
    mask = Image.new("1", wh)
    x, y = xy
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(mask)


def label_box(xy, origin, text, font_px, padding):
    """Returns the box, ends included, that the glyphs of `text` need with `padding` around them."""
    width = {"Query": 169}.get(text)  # 171 where the letters are set without kerning
    face = ImageFont.truetype(drawing.font(font_px).path, font_px)
    left, top, right, bottom = face.getbbox(text)
    x, y = xy[0] + origin[0], xy[1] + origin[1]
    right = right if width is None else width
    return x + left - padding, y + top - padding, x + right + padding, y + bottom + padding


def test_rotation_turns_the_pixels_as_they_lie_clockwise(release, replay):
    root, _, records = release
    seen = list(painted(replay, records, "_rot"))
    assert len(seen) == 10
    for row, pixels in seen:
        lying = np.asarray(photo(root, row["source_image"], upright=False))
        assert (pixels == np.rot90(lying, -row["rotation_degrees"] // 90)).all()


def test_color_is_grey_at_512_px_upright_with_red_dots_and_boxed_letters(release, replay):
    root, _, records = release
    for row, pixels in painted(replay, records, "_colorization"):
        upright = photo(root, row["source_image"], upright=True)
        wh = tuple(int(side * 512 / max(upright.size)) for side in upright.size)
        expected = np.asarray(upright.resize(wh, Image.Resampling.BILINEAR).convert("L").convert("RGB")).copy()
        marked = np.zeros(expected.shape[:2], bool)
        assert pixels.shape == expected.shape
        for point in row["points"]:
            xy = point["x"], point["y"]
            left, top, right, bottom = label_box(xy, (13, -11), point["label"], 28, 3)
            box = np.s_[max(top, 0) : bottom + 1, left : right + 1]
            dot = disc(wh, xy, 8)
            marked |= dot
            marked[box] = True
            inside = pixels[box]
            assert (inside[0] == WHITE).all() and (inside[:, 0] == WHITE).all() and (inside[-1] == WHITE).all()
            assert (inside[..., 0] == 255).all() and (inside[..., 1] == inside[..., 2]).all()  # red glyph on white
            assert (inside == RED).all(-1).any()
            core = disc(wh, xy, 5)
            assert (pixels[core] == RED).all()
            assert (pixels[xy[1], xy[0] - 8] == WHITE).all() and (pixels[xy[1] - 8, xy[0]] == WHITE).all()
        assert (pixels[~marked] == expected[~marked]).all()


def test_correspondence_is_one_composite_512_px_high_of_the_pixels_as_they_lie(release, replay):
    root, _, records = release
    for row, pixels in painted(replay, records, "_correspondence"):
        photos = [photo(root, row[key], upright=False) for key in ("image1_name", "image2_name")]
        scales = [512 / image.height for image in photos]
        panels = [
            np.asarray(image.resize((int(image.width * scale), 512), Image.Resampling.BICUBIC))
            for image, scale in zip(photos, scales, strict=True)
        ]
        expected = np.concatenate(panels, axis=1)
        assert pixels.shape == expected.shape
        wh, marked = (expected.shape[1], 512), np.zeros(expected.shape[:2], bool)
        points = [("Query", row["point_img1"], 0)] + [(str(k), text, 1) for k, text in enumerate(row["points_img2"])]
        for label, text, side in points:
            x, y = (int(int(number) * scales[side]) for number in text.strip("()").split(","))
            xy = x + side * panels[0].shape[1], y
            left, top, right, bottom = label_box(xy, (20, -17), label, 50, 5)
            marked[max(top, 0) : bottom + 1, left : right + 1] = True
            dot = disc(wh, xy, 12)
            marked |= dot
            shown = dot.copy()
            shown[max(top, 0) :, left:] = False
            if label == "Query":
                assert (pixels[shown] == RED).all()
        assert (pixels[~marked] == expected[~marked]).all()


def test_the_two_image_form_marks_each_photograph_at_its_own_size(release, tmp_path):
    root, metadata, _ = release
    rows = (metadata / "point_correspondence_metadata.json").read_text()
    (tmp_path / "point_correspondence_onevision_metadata.json").write_text(rows)
    (row, *_) = json.loads(rows)
    names = [f"x/{row['id']}_img1.jpg", f"x/{row['id']}_img2.jpg"]
    record = {"image": names, "conversations": [{"value": "?"}, {"value": str(row["correspondence_index"])}]}
    one = Replay(str(tmp_path), str(root / "coco/train2017"), [record], str(root))
    first, second = (np.asarray(picture) for picture in one.pictures(0, record))
    for pixels, key, texts, labels in (
        (first, "image1_name", [row["point_img1"]], "Q"),
        (second, "image2_name", row["points_img2"], "012"),
    ):
        plain = np.asarray(photo(root, row[key], upright=False))
        assert pixels.shape == plain.shape
        marked = np.zeros(plain.shape[:2], bool)
        for text, label in zip(texts, labels, strict=True):
            xy = tuple(int(number) for number in text.strip("()").split(","))
            left, top, right, bottom = label_box(xy, (20, -17), label, 50, 5)
            marked[max(top, 0) : max(bottom + 1, 0), left : right + 1] = True
            marked |= disc(plain.shape[1::-1], xy, 12)
            assert (pixels[xy[1], xy[0]] == RED).all() or label != labels[-1]
        assert (pixels[~marked] == plain[~marked]).all()


@pytest.mark.parametrize("engine", [ImageFont.Layout.BASIC, ImageFont.Layout.RAQM])
def test_labels_do_not_depend_on_the_text_layout_engine(engine, monkeypatch):
    """`Query` is 171 px wide without kerning and 169 with it; ours is the latter on every machine."""

    def paint():
        canvas = Image.new("RGB", (320, 120), "blue")
        PUBLISHED_MARKER.paint(canvas, (30, 50), "Query")
        return np.asarray(canvas)

    face = ImageFont.truetype(drawing.font(50).path, 50, layout_engine=engine)
    monkeypatch.setattr(drawing, "font", lambda size_px: face)
    pixels = paint()
    white = np.argwhere((pixels == WHITE).all(-1))
    assert white[:, 1].min() == 30 + 12 + 8 - 5 and white[:, 1].max() == 30 + 12 + 8 + 169 + 5
    monkeypatch.undo()
    assert (pixels == paint()).all()


def test_counts_positions_and_samples(release, replay):
    _, _, records = release
    assert len(replay) == 30 and replay.counts() == {"rotation": 10, "color": 10, "correspondence": 10}
    assert not any(position in replay for position in range(16)) and all(k in replay for k in range(16, 46))
    sample = replay.sample(17, records[17])
    assert (sample.task, sample.instruction) == ("color", "Which colours?")
    assert get_task("color")().score(sample.response, sample.params) == 1
    again = pickle.loads(pickle.dumps(replay))
    assert again.pictures(17, records[17])[0].tobytes() == sample.image.tobytes()


def test_pictures_that_neither_metadata_nor_disk_has_are_reported(release, tmp_path):
    root, metadata, records = release
    lost = [{**records[16], "image": f"rotation/images/lost-{k}_rot90.jpg"} for k in range(5)]
    with pytest.raises(ConfigError, match=r"5 pictures .* neither in the metadata nor in .*lost-0_rot90.jpg, .*, …"):
        Replay(str(metadata), str(root / "coco/train2017"), [*records, *lost], str(root))
    (tmp_path / "rotation/images").mkdir(parents=True)
    for record in lost:
        (tmp_path / record["image"]).touch()
    on_disk = Replay(str(metadata), str(root / "coco/train2017"), [*records, *lost], str(tmp_path))
    assert len(on_disk) == 30 and 46 not in on_disk  # read from disk, as ever


def test_records_that_contradict_their_metadata_are_reported(release):
    root, metadata, records = release
    wrong = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "180"}]
    altered = [{**record, "conversations": wrong} if k == 16 else record for k, record in enumerate(records)]
    with pytest.raises(ConfigError, match=r"1 records answer otherwise .*r-0_rot0.jpg: answers '180', metadata '0'"):
        Replay(str(metadata), str(root / "coco/train2017"), altered, str(root))


def test_an_unreadable_photograph_names_picture_row_and_photograph(release, tmp_path):
    root, metadata, records = release
    for path in (root / "coco/train2017").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:200])
    broken = Replay(str(metadata), str(tmp_path), records, str(root))
    with pytest.raises(TaskError, match=r"r-0_rot0.jpg cannot be painted: unreadable .*rotation_metadata.json"):
        broken.pictures(16, records[16])


def test_missing_metadata_and_photographs_say_what_is_looked_for(release, tmp_path):
    root, metadata, records = release
    flags = VgiftFlags(ssl_replay=str(tmp_path))
    with pytest.raises(ConfigError, match=r"no metadata file in this folder; known are .*rotation_metadata.json"):
        find_replay(flags, records, str(root))
    with pytest.raises(ConfigError, match=r"COCO train2017.*coco/train2017 or .*--ssl_image_folder"):
        find_replay(VgiftFlags(ssl_replay=str(metadata)), records, str(tmp_path))
    with pytest.raises(ConfigError, match="no record of --data_path names a published sample"):
        find_replay(VgiftFlags(ssl_replay=str(metadata)), records[:16], str(root))


def test_tasks_draw_from_the_metadata_in_our_words(release):
    root, metadata, records = release
    flags = VgiftFlags(ssl_tasks="rotation,color,correspondence", ssl_replay=str(metadata))
    assert find_replay(flags, records[:16], str(root)) is None
    for stream in streams(flags, flags.tasks(), records[:16], str(root), None):
        samples = [stream(0, j) for j in range(10)]
        rows = json.loads((metadata / of_task(stream.task.name).files[0]).read_text())
        assert len(stream.source) == len(rows) == 10
        assert len({sample.image.tobytes() for sample in samples}) == 10  # every row once
        for sample in samples:
            assert sample.params["wording"] in range(len(stream.task.wordings))
            assert stream.task.score(sample.response, sample.params) == 1
            assert json.loads(json.dumps(sample.params)) == sample.params
    (metadata / "other").mkdir(exist_ok=True)
    (metadata / "other" / "rotation_metadata.json").write_text((metadata / "rotation_metadata.json").read_text())
    with pytest.raises(ConfigError, match=r"colorization_metadata.json is not there, which task color draws from"):
        streams(VgiftFlags(ssl_replay=str(metadata / "other")), flags.tasks(), [], str(root), None)


def test_published_pictures_are_no_photographs_to_make_samples_of(release, tmp_path):
    """A turned picture taken for an upright one would be a wrong label."""
    _, _, records = release
    assert is_published("rotation/images/0f_rot90.jpg") and is_published("0f_correspondence.jpg")
    assert not is_published("coco/train2017/000000000009.jpg") and not is_published("my_rot45.jpg")
    left = from_records(records, "")
    assert len(left) == 5 and "30 published samples among them left out" in left.where
    for name in ("a.jpg", "b_rot180.jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    assert len(from_folder(str(tmp_path))) == 1
    with pytest.raises(ConfigError, match="are all published samples"):
        from_records(records[16:], "")


def test_names_of_published_pictures_are_read_as_those_of_their_task():
    """Their pattern is written down where photographs are chosen, and once more beside what is painted."""
    parts = {part: one for one in RELEASE for part in one.parts}
    assert {f"rot{angle}" for angle in (0, 90, 180, 270)} < parts.keys() and len(parts) == 8
    for part, one in parts.items():
        assert reading(f"somewhere/a_b_{part}.jpg") == (one, "a_b", part) and is_published(f"a_b_{part}.jpg")
    assert reading("coco/train2017/000000000009.jpg") is None


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("rotation", {"rotation_degrees": True}, "rotation_degrees is True"),
        ("rotation", {"rotation_degrees": 90.0}, "rotation_degrees is 90.0"),
        ("colorization", {"x": "30"}, "needs whole numbers x and y"),
        ("colorization", {"y": float("nan")}, "needs whole numbers x and y"),
        ("colorization", {"x": -1}, r"the point \[-1, 40\] lies outside"),
        ("colorization", {"x": 512}, r"the point \[512, 40\] lies outside a photograph of .* 512 at the longest side"),
        ("colorization", {"original_color": [256, 0, 0]}, "three colours from 0 to 255"),
        ("colorization", {"original_color": [None, 0, 0]}, "three colours from 0 to 255"),
        ("point_correspondence", {"point_img1": "(-3, 5)"}, "'\\(-3, 5\\)' is no point"),
        ("point_correspondence", {"point_img1": "(9999, 5)"}, r"the point \[9999, 5\] lies outside"),
        ("point_correspondence", {"point_img1": None}, "no row for correspondence"),
        ("point_correspondence", {"correspondence_index": True}, "correspondence_index True is none of"),
    ],
)
def test_wrong_values_in_the_metadata_are_named_before_training(release, tmp_path, kind, change, told):
    root, metadata, records = release
    shutil.copytree(metadata, tmp_path / "metadata")
    path = tmp_path / "metadata" / f"{kind}_metadata.json"
    rows = json.loads(path.read_text())
    if kind == "colorization":
        rows[0]["points"][0].update(change)
        by_slot = dict(zip(rows[0]["answer_mapping"].values(), rows[0]["points"], strict=True))
        rows[0]["shuffled_colors"] = [by_slot[slot]["original_color"] for slot in range(1, 6)]
    else:
        rows[0].update(change)
    path.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=f"(?s){path.name}: .*row 1") as caught:
        Replay(str(tmp_path / "metadata"), str(root / "coco/train2017"), records, str(root))
    assert re.search(told, str(caught.value))
