"""Prints what the seeds measured: `python scripts/rl/table.py OUTPUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from vgift_plugin.report.intervals import mean_interval
from vgift_plugin.report.page import aligned

WAYS = ("sampled", "greedy", "sampled_blind", "greedy_blind")


def cell(one: dict) -> str:
    """Returns a mean with its interval: `0.823 (0.780 to 0.867)`."""
    return f"{one['score']:.3f}" + (f" ({one['low']:.3f} to {one['high']:.3f})" if one["low"] is not None else "")


def rise(before: dict, after: dict) -> str:
    """Returns the difference of two means on the same items, in points, with its interval."""
    differences = 100 * (np.array(after["scores"]) - np.array(before["scores"]))
    low, high = mean_interval(differences, range(len(differences)))
    return f"{differences.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def main(folder: Path) -> None:
    """Prints a table of rewards, then one line for each seed."""
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]
    rows = [("seed", "way", "before GRPO", "after GRPO", "rise in points", "form before", "form after")]
    for one in told:
        for way in WAYS:
            before, after = one["before"][way], one["after"][way]
            forms = (f"{before['form']:.3f}", f"{after['form']:.3f}")
            name = way.replace("_blind", ", blind")
            rows.append((str(one["seed"]), name, cell(before), cell(after), rise(before, after), *forms))
    print(aligned(rows, left=2))
    for one in told:
        logged = " ".join(f"{row['score']:.2f}" for row in one["log"])
        print(
            f"seed {one['seed']}: form {one['form_seconds']:.0f} s, GRPO {one['grpo_seconds']:.0f} s; reward {logged}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
