"""Measures how well a vision tower's features separate classes, on clean and on corrupted pictures.

A picture is cropped to the square the tower sees, corrupted, and represented by the mean of its patch tokens at one
layer. Half of each class's clean pictures train a logistic regression and a nearest-neighbour classifier; the other
half tests them, clean and under each corruption. Accuracies are shares of pictures assigned to the right class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from corruptions import CORRUPTIONS
from PIL import Image, ImageOps
from results import Row, table_text, tower_page

from vgift_plugin.audit.solvers import require_sklearn
from vgift_plugin.data.photo import open_photo
from vgift_plugin.data.photos import from_folder
from vgift_plugin.errors import ConfigError, UnsuitableImage
from vgift_plugin.report.intervals import effective_size, wilson
from vgift_plugin.report.page import check_outputs

CLEAN, MEAN = "clean", "mean of the corruptions"
LEAST_PICTURES = 4  # per class: two for training, two for testing
NEIGHBOURS = 5


@dataclass(frozen=True)
class Split:
    """Pictures of several classes, split by the hash of their paths: the same split for every tower and run.

    Attributes:
        folder: the folder the paths are relative to.
        classes: the names of the folders in it.
        train: (path, number of its class) of each picture.
        test: likewise; no picture is in both.
    """

    folder: str
    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]

    @property
    def chance(self) -> float:
        """The share of the most frequent class among the test pictures."""
        return float(np.bincount([number for _, number in self.test]).max() / len(self.test))


def split(image_folder: str, n: int) -> Split:
    """Returns at most n pictures of each class, half for training and half for testing.

    Raises:
        ConfigError: the folder has fewer than two folders with pictures, or too few pictures in one.
    """
    source = from_folder(image_folder)
    found: dict[str, list[str]] = {}
    for path in (str(Path(source.path(k)).relative_to(image_folder)) for k in range(len(source))):
        name, inner, _ = path.partition("/")
        found.setdefault(name if inner else "", []).append(path)
    found.pop("", None)  # pictures outside the class folders
    if len(found) < 2:
        raise ConfigError(f"--image_folder {image_folder}: needs a folder of pictures for each of two or more classes")
    few = [name for name, paths in found.items() if len(paths) < LEAST_PICTURES]
    if few:
        raise ConfigError(
            f"--image_folder {image_folder}: fewer than {LEAST_PICTURES} pictures in {', '.join(sorted(few)[:5])}"
        )
    result = Split(image_folder, tuple(sorted(found)), [], [])
    for number, name in enumerate(result.classes):
        paths = sorted(found[name], key=lambda path: blake2b(path.encode()).digest())[:n]
        result.train.extend((path, number) for path in paths[: len(paths) // 2])
        result.test.extend((path, number) for path in paths[len(paths) // 2 :])
    return result


class Tower:
    """A CLIP vision tower and its preprocessing, in float32, on a GPU if there is one.

    Args:
        name: folder or name.
        layer: layer of the hidden states used: -2 is the last but one, 0 the embeddings.
        batch_size: pictures at once.

    Raises:
        ConfigError: it cannot be read, or has no such layer.
    """

    def __init__(self, name: str, layer: int, batch_size: int):
        import torch
        from transformers import CLIPImageProcessor, CLIPVisionModel

        try:
            model, told = CLIPVisionModel.from_pretrained(name, output_loading_info=True)
            self.processor = CLIPImageProcessor.from_pretrained(name)
        except (OSError, ValueError, RuntimeError) as err:
            raise ConfigError(f"{name}: cannot be read as a CLIP vision tower: {str(err).splitlines()[0]}") from err
        if missing := told["missing_keys"]:  # transformers only warns, and initialises them randomly
            raise ConfigError(f"{name}: is no CLIP vision tower: it has no weights {sorted(missing)[0]}")
        self.model = model.float().eval()
        states = self.model.config.num_hidden_layers + 1
        if not -states <= layer < states:
            raise ConfigError(f"--layer {layer}: {name} has layers {-states} to {states - 1}")
        self.layer = layer
        self.batch_size = batch_size
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def side_px(self) -> int:
        """The side of its input square."""
        return self.model.config.image_size

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Returns the mean patch token of each picture, (pictures, channels); pictures must be squares of `side_px`."""
        import torch

        parts = []
        for start in range(0, len(pictures), self.batch_size):
            batch = [np.asarray(picture) for picture in pictures[start : start + self.batch_size]]
            pixels = self.processor(batch, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
            with torch.no_grad():
                states = self.model(pixels.to(self.model.device), output_hidden_states=True).hidden_states
            parts.append(states[self.layer][:, 1:].mean(1).cpu().numpy())
        return np.concatenate(parts)


def features(tower: Tower, pictures: Split, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of the training pictures, (train, channels), and of the test pictures, (conditions, test,
    channels), clean ones first.

    Raises:
        ConfigError: a picture cannot be read.
    """
    from tqdm import tqdm

    side = (tower.side_px, tower.side_px)

    def square(path: str) -> Image.Image:
        try:
            return ImageOps.fit(open_photo(str(Path(pictures.folder, path))), side, Image.Resampling.BICUBIC)
        except UnsuitableImage as err:
            raise ConfigError(f"{Path(pictures.folder, path)}: {err.reason}; take it out") from err

    train, waiting = [], []
    for path, _ in tqdm(pictures.train, desc=f"probe {name}: to learn from", unit="", leave=False):
        waiting.append(square(path))
        if len(waiting) == tower.batch_size:
            train.append(tower(waiting))
            waiting = []
    train += [tower(waiting)] if waiting else []
    test = []
    for path, _ in tqdm(pictures.test, desc=f"probe {name}: to test", unit="", leave=False):
        clean = square(path)
        test.append(tower([clean, *(corruption(clean, path) for corruption in CORRUPTIONS)]))
    return np.concatenate(train), np.stack(test, axis=1)


def examine(name: str, train: np.ndarray, test: np.ndarray, pictures: Split) -> list[Row]:
    """Returns a row for each condition, and one for the mean of the corruptions."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, truth = (np.array([number for _, number in part]) for part in (pictures.train, pictures.test))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, known)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(known)), metric="cosine").fit(train, known)
    right = np.array([[solver.predict(some) == truth for solver in (linear, near)] for some in test])
    kinds = [(CLEAN, "", right[:1])]
    kinds += [(one.name, one.severity, right[k : k + 1]) for k, one in enumerate(CORRUPTIONS, start=1)]
    kinds.append((MEAN, "", right[1:]))
    return [Row(name, kind, severity, *_share(some[:, 0]), *_share(some[:, 1])) for kind, severity, some in kinds]


def _share(right: np.ndarray) -> tuple[float, float, float]:
    """Returns (accuracy, low, high) of (conditions, pictures) booleans, those of one picture taken as correlated."""
    accuracy = float(right.mean())
    trials = effective_size(right.T, np.arange(right.shape[1]))
    return accuracy, *wilson(accuracy, trials)


def probe(
    towers: Sequence[str],
    image_folder: str,
    output: str = "probe.html",
    json_path: str | None = None,
    n: int = 200,
    layer: int = -2,
    batch_size: int = 16,
) -> str:
    """Probes towers on the same pictures and writes the page.

    Args:
        towers: names or folders of CLIP vision towers, the one to examine first.
        image_folder: one folder of pictures per class.
        output: the page, `.html`.
        json_path: file for the same rows as JSON, or None.
        n: maximum number of pictures per class.
        layer: layer of the patch tokens.
        batch_size: pictures at once.

    Returns:
        the table for the terminal.

    Raises:
        ConfigError: a path or number is invalid, or scikit-learn is missing; nothing was written.
    """
    check_outputs(output, json_path)
    if n < LEAST_PICTURES or batch_size < 1:
        raise ConfigError(f"-n {n} and --batch_size {batch_size}: at least {LEAST_PICTURES} and 1")
    if len(set(towers)) < len(towers):
        raise ConfigError(f"--against {towers[-1]}: is the same tower")
    require_sklearn()
    pictures = split(image_folder, n)
    rows = []
    for name, tower in [(name, Tower(name, layer, batch_size)) for name in towers]:
        rows += examine(name, *features(tower, pictures, Path(name).name), pictures)
    facts = {
        "pictures": {"train": len(pictures.train), "test": len(pictures.test), "classes": list(pictures.classes)},
        "chance": pictures.chance,
        "features": f"mean of the patch tokens of layer {layer}",
        "neighbours": min(NEIGHBOURS, len(pictures.train)),
    }
    about = (
        f"{len(pictures.classes)} classes of {image_folder}, {len(pictures.train):,} pictures to learn from and "
        f"{len(pictures.test):,} to test; chance {pictures.chance:.1%}; {facts['features']}"
    )
    table = f"{table_text(rows)}\n{about}"
    Path(output).write_text(tower_page(rows, table, about, pictures.chance), encoding="utf-8")
    if json_path is not None:
        whole = {"image_folder": image_folder, **facts, "rows": [asdict(row) for row in rows]}
        Path(json_path).write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return f"{table}\n{output}: the plot"
