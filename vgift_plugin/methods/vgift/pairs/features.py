"""DINOv2 features of photographs: one vector per patch of a grid, and one for the whole photograph.

torch and transformers are imported when an `Encoder` is created.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ....errors import ConfigError, UnsuitableImage

logger = logging.getLogger(__name__)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FAMILY = ("dinov2", "dinov2_with_registers")
MAX_ELONGATION = 4  # longer photographs are skipped, since they would take too much time and memory
MIN_SIDE_PX = 64
COLUMNS_AT_ONCE = 8192  # of the similarity matrix of a folder


@dataclass(frozen=True)
class Grid:
    """A photograph cut into `columns` × `rows` patches of equal size; patches are numbered row by row.

    In continuous coordinates (origin at the top left corner of the top left pixel) patch (i, j) is the rectangle from
    (i w/columns, j h/rows) to ((i+1) w/columns, (j+1) h/rows). Its point is the pixel that contains its centre. For
    example, 640 × 480 at 224 has 21 × 16 patches; patch (0, 0) is at pixel (15, 15), patch (20, 15) at (624, 465).
    """

    wh: tuple[int, int]
    columns: int
    rows: int

    @classmethod
    def of(cls, wh: tuple[int, int], resolution: int, patch_px: int) -> Grid:
        """Returns the grid with `resolution / patch_px` patches on the shorter side, keeping the aspect ratio.

        Raises:
            UnsuitableImage: the shorter side is below 64 pixels, or the longer side over four times the shorter.
        """
        if min(wh) < MIN_SIDE_PX:
            raise UnsuitableImage("too small")
        if max(wh) > MAX_ELONGATION * min(wh):
            raise UnsuitableImage("too elongated")
        short = max(1, round(resolution / patch_px))
        columns, rows = (max(short, round(side * short / min(wh))) for side in wh)
        return cls(wh, columns, rows)

    @cached_property
    def points(self) -> np.ndarray:
        """The pixel (x, y) of every patch, int array of shape (rows * columns, 2)."""
        (w, h), number = self.wh, np.arange(self.rows * self.columns)
        i, j = number % self.columns, number // self.columns
        return np.stack([(2 * i + 1) * w // (2 * self.columns), (2 * j + 1) * h // (2 * self.rows)], axis=1)

    def patch(self, x: int, y: int) -> int:
        """Returns the number of the patch that contains the centre of pixel (x, y)."""
        w, h = self.wh
        return (2 * y + 1) * self.rows // (2 * h) * self.columns + (2 * x + 1) * self.columns // (2 * w)

    def inner(self, border: float) -> np.ndarray:
        """Returns a mask of the points at least `border` of the shorter side from every edge, bool (patches,)."""
        limit = border * min(self.wh)
        return ((self.points >= limit) & (np.array(self.wh) - 1 - self.points >= limit)).all(axis=1)


@dataclass(frozen=True)
class Photo:
    """A photograph as model input: uint8 `pixels` (rows * patch_px, columns * patch_px, 3), and `labels` or None."""

    grid: Grid
    pixels: np.ndarray
    labels: np.ndarray | None = None


class Encoder:
    """A DINOv2 with its preprocessing: bfloat16 (float16 on old cards) on cuda, float32 elsewhere.

    Photographs keep their aspect ratio; DINOv2 interpolates its position embeddings. On a CPU each photograph is
    encoded separately, so that its features do not depend on its batch (this is not slower).

    Args:
        model: a name or folder for `AutoModel.from_pretrained`.
        resolution: shorter side of the model's input, in pixels, rounded to whole patches.
        batch_size: photographs per batch on cuda.
        local_rank: number of the cuda device.

    Raises:
        ConfigError: torch or transformers is missing, or there is no complete DINOv2 of that name.
    """

    def __init__(self, model: str, resolution: int = 224, batch_size: int = 16, local_rank: int = 0):
        try:
            import torch
            from transformers import AutoConfig, AutoModel
        except ImportError as err:
            raise ConfigError(f"pairs are matched with torch and transformers, and {err.name} is not there") from None
        try:
            family = AutoConfig.from_pretrained(model).model_type
            if family not in FAMILY:
                raise ConfigError(f"--model {model} is a {family}, and a DINOv2 is needed: facebook/dinov2-base")
            self.network, loading = AutoModel.from_pretrained(model, output_loading_info=True)
        except (OSError, ValueError) as err:
            raise ConfigError(
                f"--model {model} cannot be loaded: {err}\nGive a model name (facebook/dinov2-base) or a folder that "
                "holds config.json and the weights."
            ) from err
        if missing := sorted(name for name in loading["missing_keys"] if "mask_token" not in name):
            raise ConfigError(f"--model {model} has no weights for {missing[0]} and {len(missing) - 1} more")
        self.device = torch.device("cpu")
        self.precision = torch.float32
        if torch.cuda.is_available():
            self.device = torch.device("cuda", local_rank % torch.cuda.device_count())
            self.precision = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.network.to(self.device, torch.float32).eval()
        self.mean, self.std = _normalisation(model)
        self.patch_px = int(self.network.config.patch_size)
        self.resolution = resolution
        self.batch_size = batch_size if self.device.type == "cuda" else 1

    def prepare(self, image: Image.Image) -> Photo:
        """Returns a photograph resized (bicubic) to whole patches.

        Raises:
            UnsuitableImage: see `Grid.of`.
        """
        grid = Grid.of(image.size, self.resolution, self.patch_px)
        size = (grid.columns * self.patch_px, grid.rows * self.patch_px)
        return Photo(grid, np.asarray(image.resize(size, Image.Resampling.BICUBIC)))

    def encode(self, photos: list[Photo]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the patch features (rows * columns, d) and the global feature (d,) of each photograph.

        They are the last hidden states of the patches and of the CLS token, float32, normalised to length 1.
        """
        result: list[Any] = [None] * len(photos)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for k, photo in enumerate(photos):
            sizes.setdefault(photo.pixels.shape, []).append(k)
        for alike in sizes.values():
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                for k, tokens in zip(batch, self._tokens([photos[k] for k in batch]), strict=True):
                    patches = photos[k].grid.rows * photos[k].grid.columns
                    result[k] = tokens[-patches:], tokens[0]  # registers, if any, are in between
        return result

    def _tokens(self, photos: list[Photo]) -> np.ndarray:
        import torch

        pixels = torch.from_numpy(np.stack([photo.pixels for photo in photos])).to(self.device)
        mean, std = (torch.tensor(values, device=self.device) for values in (self.mean, self.std))
        pixels = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        half = self.precision != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.precision if half else None, enabled=half),
        ):
            tokens = self.network(pixel_values=pixels).last_hidden_state
        return torch.nn.functional.normalize(tokens.float(), dim=-1).cpu().numpy()


def _normalisation(model: str) -> tuple[Any, Any]:
    """Returns the mean and standard deviation of the model's image processor, or ImageNet's if it has none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:  # only the settings, since newer processors need torchvision
        settings, _ = BaseImageProcessor.get_image_processor_dict(model)
    except OSError:
        logger.warning("%s has no preprocessor_config.json: normalising with ImageNet's mean and deviation", model)
        return IMAGENET
    return settings.get("image_mean", IMAGENET[0]), settings.get("image_std", IMAGENET[1])


def nearest(features: Any, start: int, stop: int, max_similarity: float) -> np.ndarray:
    """Returns the row of the most similar other photograph, or -1, for rows start to stop - 1; int64 (stop - start,).

    Args:
        features: torch tensor (n, d), rows of length 1, or zeros for photographs without features.
        start: first row.
        stop: end of the rows, exclusive.
        max_similarity: more similar photographs are near-duplicates and are ignored.
    """
    import torch

    mine = features[start:stop].float()
    best = torch.full((len(mine),), -2.0, device=mine.device)
    where = torch.full((len(mine),), -1, dtype=torch.long, device=mine.device)
    rows = torch.arange(start, stop, device=mine.device)[:, None]
    for first in range(0, len(features), COLUMNS_AT_ONCE):
        others = features[first : first + COLUMNS_AT_ONCE].float()
        similarity = mine @ others.T
        columns = torch.arange(first, first + len(others), device=mine.device)
        empty = (others == 0).all(dim=1) | (mine == 0).all(dim=1)[:, None]
        similarity[(similarity > max_similarity) | (rows == columns) | empty] = -2.0
        value, index = similarity.max(dim=1)
        better = value > best
        best, where = torch.where(better, value, best), torch.where(better, index + first, where)
    return where.cpu().numpy()
