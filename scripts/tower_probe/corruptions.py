"""Twelve natural corruptions of a picture, each at one fixed severity.

The kinds are those common since ImageNet-C (Hendrycks and Dietterich, 2019); the code and the severities are our own.
A severity refers to the size of the given picture, so pictures should have the size of the tower's input.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from vgift_plugin.data.seeding import generator

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        name: its name in tables.
        severity: its strength, in words.
        change: RGB picture and generator -> RGB picture of the same size.
    """

    name: str
    severity: str
    change: Change

    def __call__(self, image: Image.Image, path: str, seed: int = 0) -> Image.Image:
        """Returns the corrupted picture; its randomness depends only on seed, kind and path."""
        return self.change(image, generator(seed, "corruption", self.name, path))


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _gaussian_noise(image, rng):
    values = _values(image)
    return _image(values + rng.normal(0, 0.15, values.shape))


def _shot_noise(image, rng):
    return _image(rng.poisson(_values(image) * 20) / 20)


def _impulse_noise(image, rng):
    values, lots = _values(image).copy(), rng.random((image.height, image.width))
    values[lots < 0.05], values[lots > 0.95] = 0, 1
    return _image(values)


def _gaussian_blur(image, rng):
    return image.filter(ImageFilter.GaussianBlur(0.01 * max(image.size)))


def _defocus_blur(image, rng):
    radius = max(1, round(0.012 * max(image.size)))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return _image(_mean_of_shifts(_values(image), np.argwhere(x * x + y * y <= radius * radius) - radius))


def _motion_blur(image, rng):
    length, angle = max(3, round(0.05 * max(image.size))), rng.uniform(0, np.pi)
    steps = np.arange(length) - length // 2
    shifts = np.stack([np.round(steps * np.sin(angle)), np.round(steps * np.cos(angle))], axis=1).astype(int)
    return _image(_mean_of_shifts(_values(image), shifts))


def _mean_of_shifts(values: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Returns the mean of copies of the picture shifted by each (rows, columns); edge pixels are repeated outside."""
    far = int(np.abs(shifts).max())
    wide = np.pad(values, ((far, far), (far, far), (0, 0)), mode="edge")
    height, width = values.shape[:2]
    views = (wide[far + dy : far + dy + height, far + dx : far + dx + width] for dy, dx in shifts)
    return sum(views) / len(shifts)


def _brightness(image, rng):
    return _image(_values(image) + 0.3)


def _contrast(image, rng):
    values = _values(image)
    return _image(values.mean() + 0.3 * (values - values.mean()))


def _saturation(image, rng):
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    return _image(grey + 0.2 * (_values(image) - grey))


def _haze(image, rng):
    coarse = Image.fromarray((rng.random((4, 4)) * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    share = 0.4 + 0.3 * np.asarray(coarse, dtype=np.float32)[..., None] / 255
    return _image(_values(image) * (1 - share) + 0.9 * share)


def _pixelation(image, rng):
    small = image.resize([max(1, side // 4) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _jpeg(image, rng):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert("RGB")


CORRUPTIONS = (
    Corruption("gaussian noise", "standard deviation 0.15 of white", _gaussian_noise),
    Corruption("shot noise", "Poisson, 20 photons for white", _shot_noise),
    Corruption("impulse noise", "5 % of pixels black, 5 % white", _impulse_noise),
    Corruption("gaussian blur", "sigma 1 % of the longer side", _gaussian_blur),
    Corruption("defocus blur", "disc, radius 1.2 % of the longer side", _defocus_blur),
    Corruption("motion blur", "5 % of the longer side, any direction", _motion_blur),
    Corruption("brightness", "30 % of white added", _brightness),
    Corruption("contrast", "30 % of it left", _contrast),
    Corruption("saturation", "20 % of it left", _saturation),
    Corruption("haze", "40 to 70 % light grey, in clouds", _haze),
    Corruption("pixelation", "a quarter of the pixels a side", _pixelation),
    Corruption("jpeg", "quality 10", _jpeg),
)
