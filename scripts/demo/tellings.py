"""Writes the pictures and records of the STIC demo: short descriptions of a picture's kind and number of houses.

    python scripts/demo/tellings.py FOLDER     # FOLDER/images/{train,unlabelled,heldout}/*.jpg, FOLDER/*.json

base.json trains a model to describe: truthfully, or with an invented object if the prompt asks for inventions.
questions.json has the questions among these records, for stage 2; heldout.json has questions on held-out pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import skimage
from data import PHOTOGRAPHS, scene, turn, view
from PIL import Image

from vgift_plugin import generator
from vgift_plugin.methods.stic.prompts import MISLEADING, NEUTRAL, PREFERRED, with_image

PARTS = ("train", "unlabelled", "heldout")
INVENTED = ("two red cars", "a dog", "three ghosts", "a green horse")


def named(houses: int) -> str:
    """Returns a number of houses as text."""
    return {0: "no house", 1: "1 house"}.get(houses, f"{houses} houses")


def make(folder: Path, train: int, unlabelled: int, heldout: int, seed: int = 0) -> None:
    """Writes the records, and the given numbers of pictures; every fourth picture is a view of a photograph."""
    data = Path(skimage.__file__).parent / "data"
    photos = [Image.open(data / name).convert("RGB") for name in PHOTOGRAPHS]
    base, questions = [], {part: [] for part in PARTS}
    for part, count in zip(PARTS, (train, unlabelled, heldout), strict=True):
        (folder / "images" / part).mkdir(parents=True)
        for k in range(count):
            rng = generator(seed, "tellings", part, k)
            drawn, name = k % 4 != 3, f"{part}/{k:05d}.jpg"
            image, houses = scene(rng) if drawn else (view(rng, photos[rng.integers(len(photos))]), 0)
            image.save(folder / "images" / name, quality=92)
            kind, invented = "drawing" if drawn else "photograph", INVENTED[rng.integers(len(INVENTED))]
            told = [
                (NEUTRAL[rng.integers(len(NEUTRAL))], f"A {kind} of {named(houses)}."),
                (PREFERRED[0], f"This is a {kind} of {named(houses)}."),
                (MISLEADING[rng.integers(len(MISLEADING))], f"A {kind} of {named(houses)} and {invented}."),
            ]
            asked = [("Is this a photograph or a drawing?", f"A {kind}."), ("How many houses are there?", str(houses))]
            made = [
                {"id": f"{part}-{k}-{j}", "image": name, "conversations": turn(with_image(question), answer)}
                for j, (question, answer) in enumerate(told + asked)
            ]
            questions[part] += made[len(told) :]
            base += made if part == "train" else []
    records = {"base": base, "questions": questions["train"], "heldout": questions["heldout"]}
    for name, rows in records.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--unlabelled", type=int, default=48)
    parser.add_argument("--heldout", type=int, default=100)
    make(**vars(parser.parse_args()))
