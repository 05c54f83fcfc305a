"""Drawn scenes, and four questions about them, as LLaVA's records.

    python scripts/demo/scenes.py FOLDER     # FOLDER/images/{train,heldout}/*.png, base.json, questions.json

Colours belong to things (skies, leaves, roofs), so that a grey picture tells something of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vgift_plugin.data.seeding import generator

SIDE_PX = 84
COLORS = {"red": (200, 40, 35), "blue": (40, 70, 190), "white": (235, 235, 230), "yellow": (235, 200, 50)}
QUESTIONS = {
    "side": ("Is the tree left or right of the house?", ("left", "right")),
    "color": ("What colour is the car?", tuple(COLORS)),
    "count": ("How many trees are there?", ("1", "2", "3")),
    "nearer": ("Which is nearer, the house or the car?", ("house", "car")),
}
REGIONS = ("sky", "grass", "trunk", "leaves", "wall", "roof", "wheel", *COLORS)


@dataclass(frozen=True)
class Shape:
    """A filled shape: a method of ImageDraw, its coordinates as shares of the picture's side, its colour and region."""

    kind: str
    at: tuple[float, ...]
    color: tuple[int, ...]
    region: str


def near(rng: np.random.Generator, color: tuple[int, int, int], spread: float = 14.0) -> tuple[int, ...]:
    """Returns a colour near another one."""
    return tuple(np.clip(np.array(color) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist())


def apart(rng: np.random.Generator, middle: tuple[float, float], gap: tuple[float, float]) -> tuple[float, float]:
    """Returns two numbers, the lower one first, whose middle and gap are drawn from ranges."""
    center, half = rng.uniform(*middle), rng.uniform(*gap) / 2
    return center - half, center + half


def shapes(rng: np.random.Generator, facts: dict[str, str]) -> list[Shape]:
    """Returns the shapes of a scene of which the facts are true, from back to front."""
    horizon = rng.uniform(0.35, 0.45)
    drawn = [
        Shape("rectangle", (0, 0, 1, horizon), near(rng, (130, 180, 235)), "sky"),
        Shape("rectangle", (0, horizon, 1, 1), near(rng, (95, 150, 70)), "grass"),
    ]
    left, right = apart(rng, (0.4, 0.6), (0.25, 0.6))
    tree_x, house_x = (left, right) if facts["side"] == "left" else (right, left)
    far, close = apart(rng, (0.65, 0.78), (0.1, 0.35))
    house_y, car_y = (close, far) if facts["nearer"] == "house" else (far, close)
    count = int(facts["count"])
    for k in range(count):
        x, y = tree_x + (k - (count - 1) / 2) * 0.12, rng.uniform(0.5, 0.65)
        drawn.append(Shape("rectangle", (x - 0.015, y - 0.18, x + 0.015, y), near(rng, (95, 65, 40)), "trunk"))
        drawn.append(Shape("ellipse", (x - 0.07, y - 0.32, x + 0.07, y - 0.12), near(rng, (40, 105, 45)), "leaves"))
    half = 0.1 * (0.7 + 0.6 * house_y)
    eaves, ridge = house_y - half * 1.4, house_y - half * 2.5
    wall, roof = near(rng, (205, 190, 160)), near(rng, (150, 60, 45))
    drawn.append(Shape("rectangle", (house_x - half, eaves, house_x + half, house_y), wall, "wall"))
    gable = (house_x - half * 1.2, eaves, house_x, ridge, house_x + half * 1.2, eaves)
    drawn.append(Shape("polygon", gable, roof, "roof"))
    car_x, length = rng.uniform(0.25, 0.6), 0.16 * (0.7 + 0.6 * car_y)
    body, hull = near(rng, COLORS[facts["color"]], 8.0), car_y - length * 0.35
    cabin = (car_x + length * 0.2, car_y - length * 0.6, car_x + length * 0.75, hull)
    drawn.append(Shape("rectangle", (car_x, hull, car_x + length, car_y), body, facts["color"]))
    drawn.append(Shape("rectangle", cabin, body, facts["color"]))
    for wheel in (0.2, 0.8):
        x = car_x + wheel * length
        drawn.append(Shape("ellipse", (x - 0.03, car_y - 0.03, x + 0.03, car_y + 0.03), (30, 30, 30), "wheel"))
    return drawn


def painted(drawn: list[Shape], rng: np.random.Generator, side_px: int = SIDE_PX) -> tuple[Image.Image, np.ndarray]:
    """Returns shapes as a noisy square picture, and the number of each pixel's region, at three times its size."""
    big = side_px * 3
    image, regions = Image.new("RGB", (big, big)), Image.new("L", (big, big))
    for shape in drawn:
        at = [x * big for x in shape.at]
        getattr(ImageDraw.Draw(image), shape.kind)(at, fill=shape.color)
        getattr(ImageDraw.Draw(regions), shape.kind)(at, fill=REGIONS.index(shape.region))
    small = np.asarray(image.resize((side_px, side_px), Image.Resampling.BOX))
    noisy = np.clip(small + rng.normal(0, 4, small.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), np.asarray(regions)


def drawn_facts(rng: np.random.Generator, shortcut: float) -> dict[str, str]:
    """Returns an answer to each question: the first one with probability `shortcut`, else any, equally often."""
    return {
        name: answers[0 if rng.random() < shortcut else int(rng.integers(len(answers)))]
        for name, (_, answers) in QUESTIONS.items()
    }


def make(folder: Path, seed: int, train: int, heldout: int, shortcut: float, side_px: int = SIDE_PX) -> None:
    """Writes scenes with one question each: base.json of those to train on, questions.json of those held out.

    Args:
        folder: where to.
        seed: of everything drawn.
        train, heldout: number of scenes.
        shortcut: of the training records, see `drawn_facts`; the held-out ones have none.
        side_px: of the pictures.
    """
    for part, count, bias in (("train", train, shortcut), ("heldout", heldout, 0.0)):
        records = []
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            rng = generator(seed, "study", part, k)
            facts = drawn_facts(rng, bias)
            name = f"{part}/{k:05d}.png"
            painted(shapes(rng, facts), rng, side_px)[0].save(folder / "images" / name)
            kind = list(QUESTIONS)[k % len(QUESTIONS)]
            ask = {"from": "human", "value": f"<image>\n{QUESTIONS[kind][0]}"}
            turns = [ask, {"from": "gpt", "value": facts[kind]}]
            records.append({"id": str(k), "image": name, "kind": kind, "conversations": turns})
        path = folder / ("base.json" if part == "train" else "questions.json")
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--heldout", type=int, default=1000)
    parser.add_argument("--shortcut", type=float, default=0.0)
    parser.add_argument("--side_px", type=int, default=168)
    make(**vars(parser.parse_args()))
