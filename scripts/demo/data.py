"""Drawn landscapes with houses, and views of photographs shipped with scikit-image."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw

from vgift_plugin import generator

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SIZE_PX = 224


def scene(rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Returns a drawn landscape of SIZE_PX² pixels with upright objects, and the number of its houses."""
    side = SIZE_PX

    def color(low=0.35, high=0.95, saturation=(0.3, 1.0), hue=None):
        h = rng.random() if hue is None else rng.uniform(*hue)
        return tuple(
            round(255 * c) for c in colorsys.hsv_to_rgb(h % 1, rng.uniform(*saturation), rng.uniform(low, high))
        )

    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    horizon = int(side * rng.uniform(0.45, 0.75))
    top, bottom = np.array(color(0.5, 0.9)), np.array(color(0.8, 1.0, (0.05, 0.4)))
    for row in range(horizon):
        draw.line((0, row, side, row), fill=tuple((top + (bottom - top) * row / horizon).astype(int).tolist()))
    draw.rectangle((0, horizon, side, side), fill=color(0.2, 0.6, hue=(0.05, 0.45)))
    for _ in range(rng.integers(1, 4)):  # sun and clouds
        x, y, r = rng.uniform(0, side), rng.uniform(0, horizon * 0.5), rng.uniform(8, 22)
        draw.ellipse((x - r * rng.uniform(1, 2), y - r, x + r, y + r), fill=color(0.9, 1.0, (0.0, 0.6)))
    houses = int(rng.integers(1, 5))
    for _ in range(houses):
        width, height = rng.uniform(26, 60), rng.uniform(24, 64)
        x, base = rng.uniform(0, side - width), horizon + rng.uniform(2, (side - horizon) * 0.6)
        draw.rectangle((x, base - height, x + width, base), fill=color())
        roof = [
            (x - 4, base - height),
            (x + width / 2, base - height - rng.uniform(14, 34)),
            (x + width + 4, base - height),
        ]
        draw.polygon(roof, fill=color(0.2, 0.8))
        draw.rectangle((x + width * 0.4, base - height * 0.45, x + width * 0.6, base), fill=color(0.1, 0.5))
    for _ in range(rng.integers(0, 5)):  # trees
        x, base, height = rng.uniform(5, side - 5), horizon + rng.uniform(2, side - horizon), rng.uniform(30, 80)
        draw.line((x, base, x, base - height), fill=color(0.2, 0.4, hue=(0.05, 0.1)), width=5)
        crown = height * rng.uniform(0.25, 0.45)
        draw.ellipse((x - crown, base - height - crown, x + crown, base - height + crown), fill=color(hue=(0.2, 0.45)))
    noise = rng.normal(0, 4, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)), houses


def view(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """Returns a square view cut out of a photograph."""
    side = rng.uniform(0.5, 1.0) * min(photo.size)
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    return photo.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


def turn(human: str, gpt: str) -> list[dict]:
    """Returns a question and its answer as LLaVA's turns."""
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


def write(folder: Path, scenes: int, views: int, seed: int = 0) -> None:
    """Writes FOLDER/scene/*.jpg and FOLDER/photo/*.jpg."""
    data = Path(skimage.__file__).parent / "data"
    photos = [Image.open(data / name).convert("RGB") for name in PHOTOGRAPHS]
    for kind in ("scene", "photo"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for k in range(scenes + views):
        rng = generator(seed, "demo", "train", k)
        drawn = k < scenes
        image = scene(rng)[0] if drawn else view(rng, photos[k % len(photos)])
        image.save(folder / ("scene" if drawn else "photo") / f"{k:05d}.jpg", quality=92)
