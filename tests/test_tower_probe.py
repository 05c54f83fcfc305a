"""What a tower's features tell apart is measured as said: halves apart, the same twice, with intervals."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, call, demo_module
from PIL import Image, ImageOps

from vgift_plugin.errors import ConfigError

sys.path.insert(0, str(ROOT / "scripts" / "tower_probe"))
from corruptions import CORRUPTIONS
from probe import MEAN, Split, Tower, examine, features, probe, split


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Three classes of flat colours, which any tower tells apart; a broken picture's place beside them."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for k, name in enumerate(("red", "green", "blue")):
        (folder / name / "more").mkdir(parents=True)
        for number in range(12):
            color = rng.integers(0, 60, 3)
            color[k] += 180
            noise = rng.normal(0, 10, (40, 52, 3))
            inner = "more/" if number % 2 else ""
            Image.fromarray((color + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{inner}{number}.png")
    Image.new("RGB", (8, 8)).save(folder / "beside.png")
    return folder


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)
def test_a_corruption_changes_the_picture_and_is_the_same_twice(corruption, photos):
    image = Image.open(photos / "chelsea.jpg").convert("RGB").resize((96, 80))
    changed = corruption(image, "a.jpg")
    assert (changed.size, changed.mode) == (image.size, "RGB")
    before, after = (np.asarray(one, dtype=float) for one in (image, changed))
    assert 3 < np.abs(before - after).mean() < 90
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.5  # still that picture
    assert np.array_equal(after, corruption(image, "a.jpg"))
    chance = ("gaussian noise", "shot noise", "impulse noise", "motion blur", "haze")
    assert (after != np.asarray(corruption(image, "b.jpg"))).any() == (corruption.name in chance)


def test_there_are_twelve_and_each_says_how_strong_it_is():
    assert len({corruption.name for corruption in CORRUPTIONS}) == 12
    assert all(corruption.severity for corruption in CORRUPTIONS)


def test_the_split_is_stratified_and_apart(classes):
    pictures = split(str(classes), 10)
    assert pictures.classes == ("blue", "green", "red") and pictures.chance == 1 / 3
    for part in (pictures.train, pictures.test):
        assert np.bincount([number for _, number in part]).tolist() == [5, 5, 5]
    paths = [path for part in (pictures.train, pictures.test) for path, _ in part]
    assert len(set(paths)) == 30 and any("more/" in path for path in paths)
    assert split(str(classes), 10) == pictures
    fewer = split(str(classes), 8)  # a picture taken away moves none of those before it
    assert {path for path, _ in fewer.train} <= {path for path, _ in pictures.train}


@pytest.mark.host
def test_features_are_the_mean_patch_of_that_layer_of_each_corrupted_picture(classes, tiny):
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModel

    pictures = split(str(classes), 8)
    train, test = features(Tower(str(tiny[1]), -2, 5), pictures, "tower")
    assert train.shape == (len(pictures.train), 32) and test.shape == (1 + 12, len(pictures.test), 32)
    model, processor = CLIPVisionModel.from_pretrained(tiny[1]), CLIPImageProcessor.from_pretrained(tiny[1])

    def of(picture):
        with torch.no_grad():
            states = model(processor(picture, return_tensors="pt").pixel_values, output_hidden_states=True)
        return states.hidden_states[-2][0, 1:].mean(0).numpy()

    def square(path):
        return ImageOps.fit(Image.open(classes / path), (28, 28), Image.Resampling.BICUBIC)

    assert np.allclose(train[2], of(square(pictures.train[2][0])), atol=1e-5)
    path = pictures.test[3][0]
    for k, picture in enumerate([square(path), *(one(square(path), path) for one in CORRUPTIONS)]):
        assert np.allclose(test[k, 3], of(picture), atol=1e-5)
    assert len({str(some[3].round(4)) for some in test}) == 1 + 12


def test_accuracies_are_those_of_a_linear_probe_and_of_the_nearest_five():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    known, truth = np.arange(40) % 3, np.arange(60) % 3
    pictures = Split("x", ("a", "b", "c"), [("", int(k)) for k in known], [("", int(k)) for k in truth])
    scales = np.array([1, 100, 0.01, 1, 5, 0.1])  # which a linear probe without standardising would feel
    train = (rng.normal(0, 1, (40, 6)) + np.eye(6)[known]) * scales
    test = np.stack([(rng.normal(0, 1, (60, 6)) + np.eye(6)[truth] * (2 - k / 6)) * scales for k in range(13)])
    rows = examine("tower", train, test, pictures)
    middle, spread = train.mean(0), train.std(0)
    solver = linear_model.LogisticRegression(max_iter=2000).fit((train - middle) / spread, known)
    lengths = np.linalg.norm(train, axis=1)
    linear, near = [], []
    for some in test:
        linear.append(np.mean(solver.predict((some - middle) / spread) == truth))
        cosine = some @ train.T / lengths / np.linalg.norm(some, axis=1)[:, None]
        votes = [np.bincount(known[np.argsort(-row)[:5]], minlength=3).argmax() for row in cosine]
        near.append(np.mean(np.array(votes) == truth))
    assert np.allclose([row.linear for row in rows], [*linear, np.mean(linear[1:])])
    assert np.allclose([row.knn for row in rows], [*near, np.mean(near[1:])])
    assert len(set(linear)) > 5 and linear[0] > linear[-1]


@pytest.mark.host
def test_a_page_a_table_and_the_rows(tmp_path, classes, tiny):
    other = demo_module("tiny_llava").build(tmp_path / "other", image_px=42, hidden=32, tower_hidden=32, seed=1)[1]
    out, rows = tmp_path / "probe.html", tmp_path / "probe.json"
    given = ["--against", other, "--image_folder", classes, "-o", out, "--json", rows, "--batch_size", 5]
    done = call([sys.executable, ROOT / "scripts" / "tower_probe", tiny[1], *given])
    assert done.returncode == 0, done.stderr
    found = json.loads(rows.read_text())
    assert found["pictures"] == {"train": 18, "test": 18, "classes": ["blue", "green", "red"]}
    assert found["features"] == "mean of the patch tokens of layer -2"
    assert len(found["rows"]) == 2 * (1 + 12 + 1)
    first = [row for row in found["rows"] if row["tower"] == str(tiny[1])]
    assert (first[0]["condition"], first[0]["linear"], first[0]["knn"]) == ("clean", 1.0, 1.0)
    mean = np.mean([row["linear"] for row in first[1:13]])
    assert first[13]["condition"] == MEAN and abs(first[13]["linear"] - mean) < 1e-9
    for row in found["rows"]:
        assert 0 <= row["linear_low"] <= row["linear"] <= row["linear_high"] <= 1
    html = out.read_text()
    assert html.count("<rect") == 28 and "chance 33.3%" in html and "quality 10" in html
    again = probe([str(tiny[1])], str(classes), str(tmp_path / "again.html"), batch_size=3)
    jpeg = next(line.split() for line in again.splitlines() if line.startswith("jpeg"))
    assert " ".join(jpeg[-8:]) in " ".join(done.stdout.split())  # however many pictures go in at once


@pytest.mark.host
def test_mistakes_are_named_and_nothing_is_written(tmp_path, classes, tiny):
    import torch
    from safetensors.torch import save_file

    tower, out = str(tiny[1]), str(tmp_path / "p.html")
    broken = tmp_path / "broken"
    for name in ("a", "b"):
        (broken / name).mkdir(parents=True)
        for k in range(4):
            (broken / name / f"{k}.png").write_text("no picture")
    converted = tmp_path / "converted"  # a whole LLaVA as transformers has it, of which CLIP's loader fits nothing
    converted.mkdir()
    settings = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "hidden_size": 32}
    settings |= {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    (converted / "config.json").write_text(json.dumps(settings))
    shutil.copy(tiny[1] / "preprocessor_config.json", converted)
    save_file({"vision_tower.weight": torch.zeros(1)}, converted / "model.safetensors", {"format": "pt"})
    few = tmp_path / "few"
    for name in ("a", "b"):
        (few / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(few / name / "0.png")
    for towers, folder, more, told in [
        ([tower], classes, {"output": "p.txt"}, "must end in .html"),
        ([tower], classes, {"output": str(tmp_path / "no" / "p.html")}, "there is no folder"),
        ([tower], classes / "red", {}, "a folder of pictures for each of two or more classes"),
        ([tower], few, {}, "fewer than 4 pictures in a, b"),
        ([tower], broken, {}, r"0\.png|[123]\.png: unreadable; take it out"),
        ([tower, tower], classes, {}, "is the same tower"),
        ([str(tmp_path)], classes, {}, "cannot be read as a CLIP vision tower"),
        ([str(converted)], classes, {}, "is no CLIP vision tower: it has no weights vision_model"),
        ([tower], classes, {"layer": -3}, "has layers -2 to 1"),
        ([tower], classes, {"n": 2}, "at least 4"),
    ]:
        with pytest.raises(ConfigError, match=told):
            probe(towers, str(folder), **{"output": out, **more})
    assert not list(tmp_path.glob("*.html"))
