"""Geometry, label maps, the choice of points, and how often it is right; with a small DINOv2 of random weights."""

import json
import math

import numpy as np
import pytest
from conftest import DINO_MEAN as MEAN
from conftest import DINO_PATCH as PATCH
from conftest import DINO_STD as STD
from conftest import build_dino
from PIL import Image, ImageEnhance

from vgift_plugin.data.photo import open_photo
from vgift_plugin.data.seeding import generator
from vgift_plugin.errors import ConfigError, UnsuitableImage
from vgift_plugin.methods.vgift.pairs.features import Encoder, Grid, Photo, nearest
from vgift_plugin.methods.vgift.pairs.masks import place_labels, read_labels, shared_object
from vgift_plugin.methods.vgift.pairs.matching import STAGES, Rules, choose

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(str(build_dino(tmp_path_factory.mktemp("dino"))))


def shifted(photo, rng, step):
    """Returns two crops of 280 × 224 that are `step` pixels or a multiple apart, and where a point of one is."""
    room = np.array(photo.size) - (280, 224)
    a = rng.integers(0, room + 1)
    b = a + step * rng.integers(-(np.minimum(a, 70) // step), np.minimum(room - a, 70) // step + 1)
    crops = [photo.crop((x, y, x + 280, y + 224)) for x, y in (a.tolist(), b.tolist())]
    return *crops, lambda xy: np.asarray(xy) + a - b


def warped(photo, rng):
    """Returns a photograph, the same turned by up to 6 degrees, scaled and relit by up to a tenth, and the map."""
    angle, scale = rng.uniform(-0.1, 0.1), rng.uniform(0.9, 1.1)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.array(photo.size) / 2
    back = np.column_stack([turn, middle - turn @ middle])  # Pillow wants the way from the new to the old
    other = photo.transform(photo.size, Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BICUBIC)
    other = ImageEnhance.Brightness(other).enhance(rng.uniform(0.9, 1.1))
    return photo, other, lambda xy: np.linalg.solve(turn, np.asarray(xy) + 0.5 - middle) + middle - 0.5


KINDS = {
    "shifted by whole patches": lambda photo, rng: shifted(photo, rng, PATCH),
    "shifted by any pixels": lambda photo, rng: shifted(photo, rng, 1),
    "turned, scaled, relit": warped,
}


def measure(encoder, folder, pairs=4, queries=100, rules=None):
    """Returns {kind: (queries, right without rules, kept, right among the kept)}; right: within one patch of the truth.

    Queries whose place the other picture does not show count, and no answer is right for them.
    """
    rules, result = rules or Rules(tries=1), {}
    for kind, make in KINDS.items():
        plain, kept = [], []
        for path in sorted(folder.iterdir()):
            for number in range(pairs):
                *images, truth = make(open_photo(str(path)), generator(0, kind, path.name, number))
                photos = [encoder.prepare(image) for image in images]
                features = [patches for patches, _ in encoder.encode(photos)]
                _, *objects = shared_object(*photos)
                grids = [photo.grid for photo in photos]
                patch = np.array(grids[1].wh) / (grids[1].columns, grids[1].rows)

                def right(query, match, truth=truth, patch=patch):
                    return bool((np.abs(np.asarray(match) - truth(query)) <= patch + 0.5).all())

                for draw in range(queries):
                    rng = (generator(0, "query", draw), generator(0, "query", draw))
                    query = rng[0].permutation(np.flatnonzero(grids[0].inner(rules.border)))[0]
                    best = (features[0][query] @ features[1].T).argmax()
                    plain.append(right(grids[0].points[query], grids[1].points[best]))
                    try:
                        found = choose(features, objects, grids, rules, rng[1])
                    except UnsuitableImage:
                        continue
                    kept.append(right(found["query"], found["match"]))
                    assert rules.tries > 1 or found["query"] == grids[0].points[query].tolist()
        result[kind] = len(plain), float(np.mean(plain)), len(kept), float(np.mean(kept))
    return result


def test_kept_matches_are_right_far_more_often_than_a_plain_arg_max(encoder, photos):
    measured = measure(encoder, photos, pairs=2, queries=60)
    for kind, least in zip(KINDS, (0.97, 0.6, 0.6), strict=True):
        _, plain, kept, right = measured[kind]
        assert kept >= 15, kind
        assert right > plain + 0.15, (kind, plain, right)
        assert right > least, (kind, right)


@pytest.mark.parametrize(
    ("wh", "size"),
    [
        ((640, 480), (21, 16)),
        ((480, 640), (16, 21)),
        ((500, 500), (16, 16)),
        ((333, 401), (16, 19)),
        ((64, 65), (16, 16)),
    ],
)
def test_points_are_the_pixels_of_the_patch_centres(wh, size):
    grid = Grid.of(wh, 224, PATCH)
    assert (grid.columns, grid.rows) == size
    assert grid.points.shape == (size[0] * size[1], 2)
    for number, (x, y) in enumerate(grid.points.tolist()):
        j, i = divmod(number, size[0])
        centre = ((i + 0.5) * wh[0] / size[0], (j + 0.5) * wh[1] / size[1])
        assert (x, y) == tuple(map(math.floor, centre))
        assert grid.patch(x, y) == number
    assert grid.patch(0, 0) == 0 and grid.patch(wh[0] - 1, wh[1] - 1) == size[0] * size[1] - 1


def test_the_docstring_example_and_the_inner_points():
    grid = Grid.of((640, 480), 224, PATCH)
    assert grid.points[0].tolist() == [15, 15] and grid.points[-1].tolist() == [624, 465]
    inner = grid.points[grid.inner(0.1)]
    assert inner.min() >= 48 and (np.array([639, 479]) - inner).min() >= 48
    assert grid.inner(0).all()


@pytest.mark.parametrize(("wh", "reason"), [((63, 400), "too small"), ((1000, 200), "too elongated")])
def test_photographs_without_a_grid(wh, reason):
    with pytest.raises(UnsuitableImage, match=reason):
        Grid.of(wh, 224, PATCH)


@pytest.mark.parametrize("wh", [(640, 480), (480, 640), (400, 400)])
def test_features_stand_where_their_patch_is(tmp_path, wh):
    """A network without layers and position embeddings: a black square moves the features of its own patches alone."""
    folder = build_dino(tmp_path, layers=0)
    encoder = Encoder(str(folder))
    with torch.no_grad():
        encoder.network.embeddings.position_embeddings.zero_()
    grid = Grid.of(wh, 224, PATCH)
    plain = Image.new("RGB", wh, (200, 120, 40))
    marked, (x, y) = plain.copy(), grid.points[3 * grid.columns + 9].tolist()
    marked.paste((0, 0, 0), (x - 3, y - 3, x + 4, y + 4))
    (a, _), (b, _) = encoder.encode([encoder.prepare(plain), encoder.prepare(marked)])
    assert np.flatnonzero(np.abs(a - b).max(axis=1) > 1e-3).tolist() == [3 * grid.columns + 9]


def test_position_embeddings_are_interpolated_along_the_right_axes(encoder):
    """Of pictures that are not square: what is learnt at a column stays at that share of the width."""
    embeddings = encoder.network.embeddings
    stored = embeddings.position_embeddings.detach().clone()
    try:
        with torch.no_grad():
            side = np.arange(37, dtype=np.float32)
            embeddings.position_embeddings.zero_()
            embeddings.position_embeddings[0, 1:, 0] = torch.tensor(np.tile(side, 37))
            embeddings.position_embeddings[0, 1:, 1] = torch.tensor(np.repeat(side, 37))
            for rows, columns in [(16, 24), (24, 16), (16, 21)]:
                tokens = torch.zeros(1, 1 + rows * columns, 96)
                found = embeddings.interpolate_pos_encoding(tokens, rows * PATCH, columns * PATCH)
                found = found[0, 1:].reshape(rows, columns, -1).numpy()
                # 0.26 of a stored position, 0.7 % of the picture: the 0.1 that DINOv2 adds to the number of patches
                assert np.abs(found[..., 0] - ((np.arange(columns) + 0.5) * 37 / columns - 0.5)).max() < 0.3
                assert np.abs(found[..., 1] - ((np.arange(rows) + 0.5) * 37 / rows - 0.5)[:, None]).max() < 0.3
    finally:
        with torch.no_grad():
            embeddings.position_embeddings.copy_(stored)


def test_features_are_the_model_s_own_and_do_not_depend_on_company(encoder, photos):
    loaded = [encoder.prepare(open_photo(str(path))) for path in sorted(photos.iterdir())]
    together = encoder.encode(loaded)
    for photo, (patches, whole) in zip(loaded, together, strict=True):
        pixels = (photo.pixels / 255.0 - MEAN) / STD
        with torch.no_grad():
            tokens = encoder.network(torch.tensor(pixels.transpose(2, 0, 1)[None]).float()).last_hidden_state[0]
        tokens = torch.nn.functional.normalize(tokens, dim=-1).numpy()
        assert np.allclose(patches, tokens[1:], atol=1e-5) and np.allclose(whole, tokens[0], atol=1e-5)
        ((alone, _),) = encoder.encode([photo])
        assert (alone == patches).all()
    encoder.batch_size = 16  # what cuda does
    try:
        batched = encoder.encode([*loaded, *loaded])
    finally:
        encoder.batch_size = 1
    for (a, _), (b, _) in zip(batched, together * 2, strict=True):
        assert np.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [(400, 300), (300, 400), (512, 512), (200, 150), (37, 41)])
def test_label_maps_of_any_size_cover_the_photograph(encoder, size, axis):
    wh = (400, 300)
    photo = encoder.prepare(Image.new("RGB", wh))
    labels = np.zeros(size[::-1], np.int64)
    labels[tuple(slice(None) if k == axis else slice(size[1 - k] // 2, None) for k in (0, 1))] = 7
    placed = place_labels(photo, labels).labels
    share = math.floor(size[1 - (1 - axis)] / 2) / size[axis]
    assert placed.shape == photo.pixels.shape[:2]
    along = placed.any(axis=axis)
    assert abs(np.flatnonzero(along)[0] / len(along) - share) <= 1 / len(along)


@pytest.mark.parametrize("wh", [(640, 480), (480, 640)])
def test_a_224_map_lies_in_the_middle_square(encoder, wh):
    photo = encoder.prepare(Image.new("RGB", wh))
    labels = np.ones((224, 224), np.int64)
    labels[:, 112:] = 2
    placed = place_labels(photo, labels).labels
    height, width = placed.shape
    columns, rows = (placed != 0).any(axis=0), (placed != 0).any(axis=1)
    long, short = (columns, rows) if wh[0] > wh[1] else (rows, columns)
    first, last = np.flatnonzero(long)[[0, -1]] / len(long) * 640
    assert abs(first - 80) <= 3 and abs(last - 560) <= 3 and short.mean() > 0.99
    assert abs(np.flatnonzero((placed == 2).any(axis=0))[0] / width * wh[0] - wh[0] / 2) <= 3
    square = place_labels(encoder.prepare(Image.new("RGB", (480, 480))), labels).labels
    assert square.all() and height >= 224


def test_label_files(tmp_path):
    labels = np.array([[0, 1, 2], [3, 300, 5]])
    (tmp_path / "x").mkdir()
    for stem, stored in {
        "tensor": torch.tensor(labels),
        "batch": torch.tensor(labels)[None].float(),
        "named": {"scores": torch.zeros(1), "mask": torch.tensor(labels)},
        "first": {"note": "text", "anything": torch.tensor(labels)},
    }.items():
        torch.save(stored, tmp_path / "x" / f"{stem}.v1.pt")
        assert (read_labels(str(tmp_path), f"x/{stem}.v1.jpg") == labels).all()
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "deep.png")
    assert (read_labels(str(tmp_path), "deep.jpeg") == labels).all()
    palette = Image.fromarray((labels % 256).astype(np.uint8)).convert("P")
    palette.putdata((labels % 256).ravel().tolist())
    palette.save(tmp_path / "palette.png")
    assert (read_labels(str(tmp_path), "palette.png") == labels % 256).all()


def test_label_files_that_are_none(tmp_path):
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "noise.pt").write_bytes(b"torn")
    (tmp_path / "text.png").write_text("no picture")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": "b"}, tmp_path / "empty.pt")
    torch.save(torch.zeros(2, 3, 4), tmp_path / "stack.pt")
    torch.save(torch.full((3, 4), 0.5), tmp_path / "soft.pt")
    torch.save(Grid((1, 1), 1, 1), tmp_path / "code.pt")  # weights_only refuses to build it
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    unreadable, no_map = "unreadable mask", "mask is no label map"
    for stem, reason in {
        "absent": "missing mask",
        **dict.fromkeys(("torn", "noise", "text", "list", "empty", "code"), unreadable),
        **dict.fromkeys(("stack", "soft", "colour"), no_map),
    }.items():
        with pytest.raises(UnsuitableImage, match=reason):
            read_labels(str(tmp_path), f"{stem}.jpg")


def labelled(encoder, labels, wh=(280, 224)):
    return place_labels(encoder.prepare(Image.new("RGB", wh)), np.asarray(labels))


def test_the_shared_object_has_the_largest_area_of_both_and_patches_at_least_half_on_it(encoder):
    one, two = np.zeros((224, 280), int), np.zeros((224, 280), int)
    one[:, :84], one[:, 84:200], one[:20, 200:] = 1, 2, 9
    two[:, :140], two[:7, 140:], two[7:21, 140:] = 1, 2, 4  # 1: 84 + 140 columns beat 2: 116 and a sliver
    label, cover1, cover2 = shared_object(labelled(encoder, one), labelled(encoder, two))
    assert label == 1
    assert cover1.reshape(16, 20).all(axis=0).tolist() == [True] * 6 + [False] * 14
    assert cover2.reshape(16, 20).any(axis=0).tolist() == [True] * 10 + [False] * 10
    half = np.zeros((224, 280), int)
    half[:7], half[20:28] = 5, 5  # 7 of 14 rows of the first patches, 1 of the second, 7 of the next but not of 14
    label, cover, _ = shared_object(labelled(encoder, half), labelled(encoder, half))
    assert label == 5 and np.flatnonzero(cover.reshape(16, 20).any(axis=1)).tolist() == [0, 1]


def test_nothing_shared_is_refused_and_no_label_maps_mean_everything(encoder):
    one, two = np.full((224, 280), 1), np.full((224, 280), 2)
    with pytest.raises(UnsuitableImage, match="no shared object"):
        shared_object(labelled(encoder, one), labelled(encoder, two))
    with pytest.raises(UnsuitableImage, match="no shared object"):
        shared_object(labelled(encoder, one * 0), labelled(encoder, one * 0))
    plain = encoder.prepare(Image.new("RGB", (280, 224)))
    label, *covers = shared_object(plain, plain)
    assert label is None and all(cover.shape == (320,) and cover.all() for cover in covers)


def test_chosen_points_obey_the_rules_on_their_object(encoder, photos):
    rules = Rules(min_margin=0.02)
    chosen = 0
    for path in sorted(photos.iterdir()):
        for number in range(8):
            one, two, _ = warped(open_photo(str(path)), generator(1, number))
            pair = [encoder.prepare(image) for image in (one, two)]
            labels = np.zeros((one.size[1], one.size[0]), int)
            labels[one.size[1] // 4 :, one.size[0] // 5 :] = 3
            pair = [place_labels(photo, labels) for photo in pair]
            (f1, _), (f2, _) = encoder.encode(pair)
            label, *objects = shared_object(*pair)
            grids = [photo.grid for photo in pair]
            try:
                found = choose((f1, f2), objects, grids, rules, generator(2, number))
            except UnsuitableImage as unsuitable:
                assert unsuitable.reason in STAGES
                continue
            chosen += 1
            assert label == 3
            query = grids[0].patch(*found["query"])
            places = [grids[1].patch(*point) for point in (found["match"], *found["distractors"])]
            assert objects[0][query] and objects[1][places].all()
            assert grids[0].inner(rules.border)[query] and grids[1].inner(rules.border)[places].all()
            similarity = np.where(objects[1], f1[query] @ f2.T, -2)
            assert similarity.argmax() == places[0]
            assert found["similarity"] == pytest.approx(similarity.max(), abs=1e-4)
            back = np.where(objects[0], f1 @ f2[places[0]], -2).argmax()
            steps = np.subtract(divmod(back, grids[0].columns), divmod(query, grids[0].columns))
            assert np.abs(steps).max() <= 1
            least = rules.min_distance * min(two.size)
            points = [found["match"], *found["distractors"]]
            assert 2 <= len(found["distractors"]) <= 6
            assert all(math.dist(a, b) >= least for k, a in enumerate(points) for b in points[:k])
            far = np.hypot(*(grids[1].points - found["match"]).T) >= least
            assert found["margin"] == pytest.approx(similarity.max() - similarity[far].max(), abs=2e-4)
            assert found["margin"] >= rules.min_margin
            assert similarity.max() - similarity[places[1:]].max() >= rules.min_margin
    assert chosen >= 10


def test_each_rule_rejects_with_its_reason():
    """On features that are at right angles, each patch like itself alone."""
    grid = Grid((280, 224), 20, 16)
    axes = np.eye(640, dtype=np.float32)
    plain, whole = axes[:320], np.ones(320, bool)
    only = [np.arange(320) == number for number in range(320)]

    def reason(f1=plain, f2=plain, object1=whole, object2=whole, **rules):
        with pytest.raises(UnsuitableImage) as raised:
            choose((f1, f2), (object1, object2), (grid, grid), Rules(**rules), generator(0, "rules"))
        return raised.value.reason

    found = choose((plain, plain), (whole, whole), (grid, grid), Rules(), generator(0, "rules"))
    assert found["margin"] == found["similarity"] == 1 and found["query"] == found["match"]
    assert reason(object1=~whole) == reason(object2=~whole) == reason(object1=only[0]) == "object too small"
    assert reason(f2=axes[320:]) == "not similar"
    leader = 0.9 * axes[0] + math.sqrt(1 - 0.81) * axes[1:321]
    leader[0] = axes[0]  # the corner is the best of all for the match, and like none of its neighbours
    away = only[0] | (np.arange(320) % 20 >= 5)
    assert reason(f1=leader, object1=away, object2=only[0]) == "not mutual"
    assert reason(f2=np.tile(plain[165], (320, 1)), object1=only[165]) == "ambiguous"
    moved = np.roll(plain.reshape(16, 20, -1), (-8, 0), axis=(0, 1)).reshape(320, -1)
    assert reason(f2=moved, object1=only[165]) == "match at the edge"  # from row 8 to row 0
    near = np.hypot(*(grid.points - grid.points[165]).T) < 40
    assert reason(object1=only[165], object2=near, min_distance=0.4) == "too few distractors"
    assert reason(object1=only[165], object2=only[165] | only[175]) == "too few distractors"  # one
    three = only[165] | only[175] | only[105]
    assert len(choose((plain, plain), (only[165], three), (grid, grid), Rules(), generator(0))["distractors"]) == 2


def test_nearest_photographs(monkeypatch):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[7] = features[3] + 1e-3  # a near-duplicate
    features[11] = 0  # unreadable
    similarity = features @ features.T
    np.fill_diagonal(similarity, -2)
    similarity[similarity > 0.95] = -2
    similarity[11], similarity[:, 11] = -2, -2
    expected = np.where(similarity.max(axis=1) > -2, similarity.argmax(axis=1), -1)
    monkeypatch.setattr("vgift_plugin.methods.vgift.pairs.features.COLUMNS_AT_ONCE", 17)
    found = np.concatenate([nearest(torch.tensor(features), a, min(a + 20, 50), 0.95) for a in (0, 20, 40)])
    assert found.tolist() == expected.tolist()
    assert found[11] == -1 and found[3] != 7


def test_models_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--model .*absent cannot be loaded(.|\n)*facebook/dinov2-base"):
        Encoder(str(tmp_path / "absent"))
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ConfigError, match="is a vit, and a DINOv2 is needed"):
        Encoder(str(tmp_path / "vit"))
    half = build_dino(tmp_path / "half", layers=1)
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"has no weights for encoder\.layer"):
        Encoder(str(half))


def test_without_a_preprocessor_config_imagenet_s_is_taken(tmp_path, caplog):
    folder = build_dino(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    assert Encoder(str(folder)).mean == (0.485, 0.456, 0.406)
    assert "preprocessor_config.json" in caplog.text
    assert isinstance(Encoder(str(folder)).prepare(Image.new("RGB", (100, 90))), Photo)
