"""Makes what the runs of the tiny study start from, for each seed in $STUDY_SEEDS a folder of its own.

    python scripts/study/tiny/prepare.py FOLDER

A folder holds a language model of random weights, a vision tower that tells the regions of drawn scenes apart
(tower.py), scenes with questions to train on, and others to evaluate on. In training the first answer to a question is
drawn with probability 0.7, else any, equally often: it is right in 85, 78, 80 and 85 % of the records. In the
evaluation all answers are equally frequent.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from scenes import QUESTIONS, SIDE_PX, drawn_facts, painted, shapes
from tower import teach

from vgift_plugin.data.seeding import generator

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from tiny_llava import build

TRAINED, EVALUATED = (160, 40) if os.environ.get("STUDY_QUICK") else (800, 400)
SHORTCUT = 0.7


def make_records(folder: Path, seed: int) -> None:
    """Writes pictures, base.json to train on, and questions.json to evaluate with."""
    for part, count, shortcut in (("train", TRAINED, SHORTCUT), ("heldout", EVALUATED, 0.0)):
        records = []
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            rng = generator(seed, "study", part, k)
            facts = drawn_facts(rng, shortcut)
            name = f"{part}/{k:05d}.png"
            painted(shapes(rng, facts), rng)[0].save(folder / "images" / name)
            kind = list(QUESTIONS)[k % len(QUESTIONS)]
            ask = {"from": "human", "value": f"<image>\n{QUESTIONS[kind][0]}"}
            turns = [ask, {"from": "gpt", "value": facts[kind]}]
            records.append({"id": str(k), "image": name, "kind": kind, "conversations": turns})
        path = folder / ("base.json" if part == "train" else "questions.json")
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")


def main() -> None:
    """Makes the folders of all seeds."""
    for seed in map(int, os.environ["STUDY_SEEDS"].split()):
        folder = Path(sys.argv[1], f"seed-{seed}")
        build(folder, image_px=SIDE_PX, tower_hidden=64, tower_layers=3, seed=seed)
        teach(folder / "clip-tower", seed)
        make_records(folder, seed)
        print(f"seed {seed}", flush=True)


if __name__ == "__main__":
    main()
