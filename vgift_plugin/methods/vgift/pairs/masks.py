"""Label maps of photographs (`--masks`), and the object shared by two photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ....errors import UnsuitableImage
from .features import Photo

MASK_KEYS = ("masks", "mask", "segmentation")
DIP_PX = 224


def read_labels(folder: str, name: str) -> np.ndarray:
    """Returns the label map of photograph `name`, int64 (height, width), 0 for background.

    The file is `folder/NAME.pt` (a tensor, or a dict with a tensor under masks, mask or segmentation, else its first
    tensor) or `folder/NAME.png` (integers, or a palette), with NAME without its suffix.

    Raises:
        UnsuitableImage: the file is missing, or is not a map of integers.
    """
    stem = Path(folder) / Path(name).with_suffix("")
    try:
        if stem.with_name(stem.name + ".pt").exists():
            labels = _tensor(stem.with_name(stem.name + ".pt"))
        else:
            with Image.open(stem.with_name(stem.name + ".png")) as image:
                labels = np.asarray(image)
    except FileNotFoundError:
        raise UnsuitableImage("missing mask") from None
    except (OSError, SyntaxError, ValueError):
        raise UnsuitableImage("unreadable mask") from None
    if labels.ndim > 2:
        labels = labels.squeeze()
    if labels.ndim != 2 or not labels.size or (labels != labels.astype(np.int64)).any():
        raise UnsuitableImage("mask is no label map")
    return labels.astype(np.int64)


def _tensor(path: Path) -> np.ndarray:
    import torch

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as err:  # its unpickler can raise anything on broken files
        raise ValueError(f"{type(err).__name__}: {err}") from None
    if isinstance(stored, dict):
        tensors = {key: value for key, value in stored.items() if torch.is_tensor(value)}
        stored = next((tensors[key] for key in (*MASK_KEYS, *tensors) if key in tensors), None)
    if not torch.is_tensor(stored):
        raise ValueError("no tensor")
    return stored.double().numpy()


def place_labels(photo: Photo, labels: np.ndarray) -> Photo:
    """Returns the photograph with `labels` at the size of its `pixels` (nearest neighbour).

    A label map of any size covers the whole upright photograph. The exception is a map of 224 × 224 for a photograph
    that is not square: as in V-GIFT's loader of DIP's pseudo-masks, it covers the central square of side min(w, h) - 1.
    """
    wh, frame, origin = photo.grid.wh, photo.grid.wh, (0, 0)
    if labels.shape == (DIP_PX, DIP_PX) and wh[0] != wh[1]:
        frame = (min(wh) - 1, min(wh) - 1)
        origin = (round((wh[0] - frame[0]) / 2), round((wh[1] - frame[0]) / 2))
    index, inside = [], []
    for axis in (0, 1):
        seen, stored = photo.pixels.shape[1 - axis], labels.shape[1 - axis]
        at = ((np.arange(seen) + 0.5) * wh[axis] / seen - origin[axis]) / frame[axis] * stored
        index.append(np.clip(np.floor(at).astype(int), 0, stored - 1))
        inside.append((at >= 0) & (at < stored))
    placed = labels[index[1][:, None], index[0]] * (inside[1][:, None] & inside[0])
    return replace(photo, labels=placed)


def shared_object(photo1: Photo, photo2: Photo) -> tuple[int | None, np.ndarray, np.ndarray]:
    """Returns a label, and for each photograph a mask of the patches it covers at least half, bool (patches,).

    The label is the shared one with the largest sum of its shares of the two areas. Without label maps it is None, and
    the object is the whole photograph.

    Raises:
        UnsuitableImage: there is no shared label.
    """
    if photo1.labels is None or photo2.labels is None:
        whole = [np.ones(len(photo.grid.points), bool) for photo in (photo1, photo2)]
        return None, whole[0], whole[1]
    areas: list[dict[int, float]] = []
    for labels in (photo1.labels, photo2.labels):
        values, counts = np.unique(labels, return_counts=True)
        areas.append({int(v): c / labels.size for v, c in zip(values, counts, strict=True) if v})
    shared = sorted(areas[0].keys() & areas[1].keys())
    if not shared:
        raise UnsuitableImage("no shared object")
    label = max(shared, key=lambda value: areas[0][value] + areas[1][value])
    covers = []
    for photo in (photo1, photo2):
        blocks = np.equal(np.asarray(photo.labels), label).reshape(
            photo.grid.rows, -1, photo.grid.columns, photo.pixels.shape[0] // photo.grid.rows
        )
        covers.append(blocks.mean(axis=(1, 3)).ravel() >= 0.5)
    return label, covers[0], covers[1]
