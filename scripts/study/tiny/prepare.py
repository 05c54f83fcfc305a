"""Makes what the runs of the tiny study start from, for each seed in $STUDY_SEEDS a folder of its own.

    python scripts/study/tiny/prepare.py FOLDER [--side_px 84] [--marks]

A folder holds a language model of random weights, a vision tower that tells the regions of drawn scenes apart, and
scenes with questions to train on, and others to evaluate on. In training the first answer to a question is
drawn with probability 0.7, else any, equally often: it is right in 85, 78, 80 and 85 % of the records. In the
evaluation all answers are equally frequent.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from scenes import SIDE_PX, make
from tiny_llava import build
from tower import teach

TRAINED, EVALUATED = (160, 40) if os.environ.get("STUDY_QUICK") else (800, 400)
SHORTCUT = 0.7


def main() -> None:
    """Makes the folders of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side_px", type=int, default=SIDE_PX, help="of scenes and tower")
    parser.add_argument("--marks", action="store_true", help="teach the tower to read the marks of tasks, too")
    args = parser.parse_args()
    for seed in map(int, os.environ["STUDY_SEEDS"].split()):
        folder = args.folder / f"seed-{seed}"
        build(folder, image_px=args.side_px, tower_hidden=64, tower_layers=3, seed=seed)
        teach(folder / "clip-tower", seed, args.marks)
        make(folder, seed, TRAINED, EVALUATED, SHORTCUT, args.side_px)
        print(f"seed {seed}", flush=True)


if __name__ == "__main__":
    main()
