"""`vgift pairs`: lists of pairs, rows and statistics; with a small DINOv2 of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgift_plugin.data.photo import open_photo
from vgift_plugin.data.seeding import generator
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.pairs.job import MatchPairs
from vgift_plugin.methods.vgift.pairs.listing import read_pairs

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_matching import warped  # noqa: E402

KEYS = ["id", "image1", "image2", "wh1", "wh2", "query", "match", "distractors", "similarity", "margin", "label"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """Each photograph, turned versions of it in a folder below, one with an EXIF orientation, and broken files."""
    root = tmp_path_factory.mktemp("images")
    (root / "turned").mkdir()
    for path in sorted(photos.iterdir()):
        image = open_photo(str(path))
        image.save(root / path.name, quality=95)
        for number in range(2):
            other = warped(image, generator(0, path.name, number))[1]
            other.save(root / "turned" / f"{path.stem}-{number}.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright = Image.open(root / "chelsea.jpg")
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "turned" / "chelsea-exif.jpg", exif=exif, quality=95)
    (root / "torn.jpg").write_bytes((root / "coffee.jpg").read_bytes()[:3000])
    Image.new("RGB", (40, 30)).save(root / "tiny.png")
    return root


@pytest.fixture(scope="module")
def listed(folder):
    """A list of 24 pairs in DIP's format: good ones, strangers, and five that cannot be used."""
    stems = ["astronaut", "chelsea", "coffee", "motorcycle_left", "rocket"]
    pairs = [(f"{stem}.jpg", f"turned/{stem}-{number}.jpg") for stem in stems for number in range(2)]
    pairs += [(f"turned/{stem}-0.jpg", f"turned/{stem}-1.jpg") for stem in stems]
    pairs += [("chelsea.jpg", "turned/chelsea-exif.jpg"), ("rocket.jpg", "coffee.jpg"), ("coffee.jpg", "rocket.jpg")]
    pairs += [("coffee.jpg", "torn.jpg"), ("absent.jpg", "coffee.jpg"), ("tiny.png", "coffee.jpg")]
    pairs += [("coffee.jpg", "coffee.jpg"), ("astronaut.jpg", "chelsea.jpg"), ("chelsea.jpg", "astronaut.jpg")]
    path = folder.parent / "pairs.txt"
    path.write_text("".join(f"{a}: {b}\n" for a, b in pairs))
    return path, pairs


@pytest.fixture(scope="module")
def settings(folder, listed, dinov2):
    return {
        "image_folder": str(folder),
        "pairs": str(listed[0]),
        "model": str(dinov2),
        "batch_size": 4,
        "min_margin": 0.02,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """(output, line) of a run in one go."""
    output = tmp_path_factory.mktemp("finished") / "pairs.jsonl"
    return output, match_pairs(output=str(output), **settings)


def match_pairs(**options):
    return MatchPairs(**options).run()


def rows_of(output):
    return [json.loads(line) for line in Path(output).read_text().splitlines()]


def test_rows_and_statistics(finished, listed, folder):
    output, line = finished
    rows, (_, pairs) = rows_of(output), listed
    assert len(rows) >= 10
    places = []
    for row in rows:
        assert list(row) == KEYS
        places.append(pairs.index((row["image1"], row["image2"])))
        for image, wh in ((row["image1"], row["wh1"]), (row["image2"], row["wh2"])):
            assert list(open_photo(str(folder / image)).size) == wh
        points = [row["match"], *row["distractors"]]
        assert all(isinstance(c, int) for point in [row["query"], *points] for c in point)
        assert all(0 <= x < row["wh2"][0] and 0 <= y < row["wh2"][1] for x, y in points)
        assert 2 <= len(row["distractors"]) <= 6 and row["label"] is None
        assert row["margin"] >= 0.02 and round(row["similarity"], 4) == row["similarity"] <= 1
    assert places == sorted(places) and len({row["id"] for row in rows}) == len(rows)
    report = json.loads(Path(f"{output}.report.json").read_text())
    assert report["pairs"] == 24 and report["kept"] == len(rows)
    assert sum(report["rejected"].values()) == 24 - len(rows)
    for reason in ("unreadable", "missing file", "too small", "same photograph"):
        assert report["rejected"][reason] == 1
        assert f"{reason} 1" in line
    assert line.startswith(f"{output}: kept {len(rows)} of 24 pairs ({len(rows) / 24:.1%}); rejected: ")
    assert report["settings"]["seed"] == 0 and report["settings"]["precision"] == "torch.float32 on cpu"


def test_an_exif_photograph_is_matched_upright(finished):
    (row,) = [row for row in rows_of(finished[0]) if row["image2"] == "turned/chelsea-exif.jpg"]
    assert row["wh1"] == row["wh2"] == [451, 300]
    assert np.abs(np.subtract(row["query"], row["match"])).max() <= 19  # one patch: it is the same photograph


def test_neither_batch_nor_company_nor_order_matter(finished, settings, tmp_path, listed):
    expected = {row["id"]: row for row in rows_of(finished[0])}
    match_pairs(output=str(tmp_path / "a.jsonl"), **{**settings, "batch_size": 24, "workers": 1})
    assert (tmp_path / "a.jsonl").read_bytes() == finished[0].read_bytes()
    some = list(reversed(listed[1]))[::2]
    (tmp_path / "some.txt").write_text("".join(json.dumps(pair) + "\n" for pair in some))
    match_pairs(output=str(tmp_path / "b.jsonl"), **{**settings, "pairs": str(tmp_path / "some.txt")})
    rows = rows_of(tmp_path / "b.jsonl")
    assert len(rows) >= 5 and all(row == expected[row["id"]] for row in rows)
    match_pairs(output=str(tmp_path / "c.jsonl"), **settings, seed=1)
    assert (tmp_path / "c.jsonl").read_bytes() != finished[0].read_bytes()


def test_the_names_of_a_pair_are_part_of_its_seed(settings, folder, tmp_path):
    """The same picture under three names: three queries."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "images" / name).write_bytes((folder / "chelsea.jpg").read_bytes())
    (tmp_path / "pairs.txt").write_text("a.jpg: b.jpg\na.jpg: c.jpg\nd.jpg: b.jpg\n")
    arguments = {**settings, "image_folder": str(tmp_path / "images"), "pairs": str(tmp_path / "pairs.txt")}
    match_pairs(output=str(tmp_path / "x.jsonl"), **arguments)
    rows = rows_of(tmp_path / "x.jsonl")
    assert all(row["query"] == row["match"] and row["similarity"] == 1 for row in rows)
    assert len({tuple(row["query"]) for row in rows}) == 3


def test_pairs_of_the_folder_are_nearest_neighbours(settings, tmp_path):
    arguments = {**settings, "pairs": None, "max_global_similarity": 0.99999}
    output = tmp_path / "pairs.jsonl"
    line = match_pairs(output=str(output), **arguments)
    assert "photographs without a pair: " in line and "unreadable 1" in line and "too small 1" in line
    pairs, passed_over = json.loads((tmp_path / "pairs.jsonl.parts" / "list.json").read_text())["value"]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    names = {name for pair in pairs for name in pair}
    assert not names & {"torn.jpg", "tiny.png"}
    assert sum(a.split("/")[-1][:5] == b.split("/")[-1][:5] for a, b in pairs) >= len(pairs) * 0.7  # the same scene
    report = json.loads(Path(f"{output}.report.json").read_text())
    assert report["photographs_passed_over"] == passed_over and report["settings"]["max_global_similarity"] == 0.99999


def test_near_duplicates_are_no_pairs(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"no photograph has a neighbour.*no neighbour"):
        match_pairs(output=str(tmp_path / "x.jsonl"), **{**settings, "pairs": None, "max_global_similarity": -0.9})


@pytest.mark.parametrize("suffix", ["pt", "png"])
def test_points_stay_on_the_shared_object(settings, folder, tmp_path, suffix):
    """The left 60 % is object 4, a stripe object 9; one photograph has other labels, one a torn file, one none."""
    masks = tmp_path / "masks"
    (masks / "turned").mkdir(parents=True)
    (tmp_path / "pairs.txt").write_text(
        "".join(f"{stem}.jpg\tturned/{stem}-0.jpg\n" for stem in ("astronaut", "chelsea", "coffee", "rocket"))
        + "motorcycle_left.jpg: turned/motorcycle_left-1.jpg\nchelsea.jpg: turned/chelsea-1.jpg\n"
    )
    for name in ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "turned/motorcycle_left-1"):
        wh = open_photo(str(folder / f"{name}.jpg")).size
        labels = np.zeros((wh[1] // 2, wh[0] // 2), np.uint8)
        labels[:, : int(wh[0] * 0.3)], labels[-10:, -10:] = 4, 9
        for one in (name, f"turned/{name}-0") if "/" not in name else (name,):
            if one == "turned/rocket-0":
                stored = labels // 9 * 7
            elif one == "turned/coffee-0":
                (masks / f"{one}.{suffix}").write_bytes(b"torn")
                continue
            else:
                stored = labels
            if suffix == "pt":
                torch.save(torch.tensor(stored), masks / f"{one}.pt")
            else:
                Image.fromarray(stored).save(masks / f"{one}.png")
    output = tmp_path / "pairs.jsonl"
    arguments = {**settings, "pairs": str(tmp_path / "pairs.txt"), "masks": str(masks), "min_margin": 0.01}
    match_pairs(output=str(output), **arguments)
    rows, report = rows_of(output), json.loads(Path(f"{output}.report.json").read_text())
    assert len(rows) >= 2
    for row in rows:
        assert row["label"] == 4
        for (x, _), wh in [(row["query"], row["wh1"]), *((p, row["wh2"]) for p in (row["match"], *row["distractors"]))]:
            assert x < 0.6 * wh[0]
    rejected = report["rejected"]
    assert [rejected[reason] for reason in ("no shared object", "unreadable mask", "missing mask")] == [1, 1, 1]


def test_pair_lists(tmp_path, caplog):
    path = tmp_path / "pairs.txt"
    path.write_text(
        'a.jpg: b/c d.jpg\n\nx.png\ty.png\n["e:1.jpg", "f.jpg"]\n{"image1": "./g.jpg", "image2": "h.jpg"}\n'
    )
    expected = [("a.jpg", "b/c d.jpg"), ("x.png", "y.png"), ("e:1.jpg", "f.jpg"), ("g.jpg", "h.jpg")]
    assert read_pairs(str(path)) == expected
    path.write_text("a.jpg:b.jpg\na.jpg: b.jpg\nb.jpg: a.jpg\n")
    assert read_pairs(str(path)) == [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")]
    assert "1 repeated pairs" in caplog.text


@pytest.mark.parametrize(
    "line",
    ["a.jpg", "a.jpg: ", "a: b: c", "/etc/a.jpg: b.jpg", "a.jpg: ../b.jpg", '{"image1": "a"}', "[1, 2]", '["a", "b"'],
)
def test_malformed_lines_are_named(tmp_path, line):
    path = tmp_path / "pairs.txt"
    path.write_text(f"a.jpg: b.jpg\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        read_pairs(str(path))
    assert str(path) in str(raised.value) and "line 2" in str(raised.value) and line.strip() in str(raised.value)


def test_lists_that_are_none(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "many.txt").write_text("a\n" * 9)
    for name, words in {"empty.txt": "no pair", "absent.txt": "cannot be read", "many.txt": "and 4 more"}.items():
        with pytest.raises(ConfigError, match=words):
            read_pairs(str(tmp_path / name))


def test_settings_that_cannot_be(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)3 mistakes.*--distractors 1.*--min_distance 2.*--batch_size 0"):
        match_pairs(output=str(tmp_path / "x"), **{**settings, "batch_size": 0}, distractors=1, min_distance=2)
    with pytest.raises(ConfigError, match="absent is not a folder"):
        match_pairs(output=str(tmp_path / "x"), **{**settings, "masks": str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match="holds none of the photographs"):
        match_pairs(output=str(tmp_path / "x"), **{**settings, "image_folder": str(tmp_path)})
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"-o: .*file/x"):
        match_pairs(output=str(tmp_path / "file" / "x"), **settings)
    assert not list(tmp_path.glob("x*"))
