"""Draws the scenes of the reinforcement learning demo: three folders that share no scene.

    python scripts/rl/scenes.py FOLDER     # FOLDER/{train,tune,heldout}/*.png, of 80 × 80 pixels

Settings were chosen on `tune`; `heldout` is for what is reported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from vgift_plugin import generator

sys.path.append(str(Path(__file__).resolve().parents[1] / "demo"))
from data import scene

SIDE_PX = 80  # the task cuts out a square of about 70 px and shrinks it to 56


def draw(folder: Path, counts: dict[str, int]) -> None:
    """Writes as many scenes of each part as are asked for."""
    for part, count in counts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            image, _ = scene(generator(0, "rl", part, k))
            image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / part / f"{k:05d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--tune", type=int, default=300)
    parser.add_argument("--heldout", type=int, default=500)
    given = vars(parser.parse_args())
    draw(given.pop("folder"), given)
