"""Makes what all runs of the tiny study share: a LLaVA of random weights, drawn scenes, and questions about them.

    python scripts/study/tiny/data.py FOLDER

Four questions, as CV-Bench-2D's: which side, which colour, how many, which is nearer. In the training set the answer
follows from the question alone in 85 % of the records, as in real sets; in the evaluation all answers are equally
frequent. Colours belong to things (skies, grass, roofs), so that a grey picture tells something of them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
from tiny_llava import build

from vgift_plugin.data.seeding import generator

SIDE_PX = 84
TRAINED, EVALUATED = (160, 40) if os.environ.get("STUDY_QUICK") else (2400, 400)
SHORTCUT = 0.85
COLORS = {"red": (200, 40, 35), "blue": (40, 70, 190), "white": (235, 235, 230), "yellow": (235, 200, 50)}
QUESTIONS = {
    "side": ("Is the tree left or right of the house?", ("left", "right")),
    "color": ("What colour is the car?", tuple(COLORS)),
    "count": ("How many trees are there?", ("1", "2", "3")),
    "nearer": ("Which is nearer, the house or the car?", ("house", "car")),
}


def near(rng: np.random.Generator, color: tuple[int, int, int], spread: float = 14.0) -> tuple[int, ...]:
    """Returns a colour near another one."""
    return tuple(np.clip(np.array(color) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist())


def scene(rng: np.random.Generator, facts: dict[str, str]) -> Image.Image:
    """Returns a drawn scene of SIDE_PX² pixels of which the facts are true."""
    big = SIDE_PX * 3
    image = Image.new("RGB", (big, big), near(rng, (130, 180, 235)))
    draw = ImageDraw.Draw(image)
    horizon = int(big * rng.uniform(0.35, 0.45))
    draw.rectangle((0, horizon, big, big), fill=near(rng, (95, 150, 70)))
    house_x = big * (rng.uniform(0.55, 0.75) if facts["side"] == "left" else rng.uniform(0.1, 0.25))
    tree_x = big * (rng.uniform(0.1, 0.3) if facts["side"] == "left" else rng.uniform(0.65, 0.85))
    house_y, car_y = big * rng.uniform(0.5, 0.6), big * rng.uniform(0.82, 0.95)
    if facts["nearer"] == "house":
        house_y, car_y = big * rng.uniform(0.82, 0.95), big * rng.uniform(0.5, 0.6)
    for k in range(int(facts["count"])):
        x, y = tree_x + (k - 1) * big * 0.09, big * rng.uniform(0.5, 0.65)
        draw.rectangle((x - 4, y - 45, x + 4, y), fill=near(rng, (95, 65, 40)))
        draw.ellipse((x - 18, y - 80, x + 18, y - 30), fill=near(rng, (40, 105, 45)))
    size = big * 0.2 * (0.7 + 0.6 * house_y / big)
    draw.rectangle((house_x, house_y - size * 0.7, house_x + size, house_y), fill=near(rng, (205, 190, 160)))
    eaves, ridge = house_y - size * 0.7, house_y - size * 1.25
    roof = [(house_x - 6, eaves), (house_x + size / 2, ridge), (house_x + size + 6, eaves)]
    draw.polygon(roof, fill=near(rng, (150, 60, 45)))
    car_x = big * rng.uniform(0.35, 0.5)
    length = big * 0.16 * (0.7 + 0.6 * car_y / big)
    body = near(rng, COLORS[facts["color"]], 8.0)
    draw.rectangle((car_x, car_y - length * 0.35, car_x + length, car_y), fill=body)
    draw.rectangle(
        (car_x + length * 0.2, car_y - length * 0.6, car_x + length * 0.75, car_y - length * 0.35), fill=body
    )
    for wheel in (0.2, 0.8):
        x = car_x + wheel * length
        draw.ellipse((x - 8, car_y - 8, x + 8, car_y + 8), fill=(30, 30, 30))
    small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    noise = rng.normal(0, 4, (SIDE_PX, SIDE_PX, 3))
    return Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8))


def drawn_facts(rng: np.random.Generator, shortcut: float) -> dict[str, str]:
    """Returns an answer to each question: the first one with probability `shortcut`, else any, equally often."""
    return {
        name: answers[0 if rng.random() < shortcut else int(rng.integers(len(answers)))]
        for name, (_, answers) in QUESTIONS.items()
    }


def make(folder: Path) -> None:
    """Writes the model, pictures, base.json and questions.json."""
    build(folder, image_px=SIDE_PX)
    for part, count in (("train", TRAINED), ("heldout", EVALUATED)):
        records = []
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            rng = generator(0, "study", part, k)
            facts = drawn_facts(rng, SHORTCUT if part == "train" else 0.0)
            name = f"{part}/{k:05d}.png"
            scene(rng, facts).save(folder / "images" / name)
            kind = list(QUESTIONS)[k % len(QUESTIONS)]
            ask = {"from": "human", "value": f"<image>\n{QUESTIONS[kind][0]}"}
            turns = [ask, {"from": "gpt", "value": facts[kind]}]
            records.append({"id": str(k), "image": name, "kind": kind, "conversations": turns})
        path = folder / ("base.json" if part == "train" else "questions.json")
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
