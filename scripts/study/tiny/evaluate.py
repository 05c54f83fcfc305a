"""Asks a run of the tiny study the held-out questions, and the tasks it was trained on.

Writes to $STUDY_JSON the shares of right answers: `side`, `color`, `count`, `nearer`; `blind`, of all questions with a
grey picture; `task-…`, of 60 samples on held-out scenes. `contribution` is the mean probability of the right answer
with its picture, minus that with a grey one.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from PIL import Image

from vgift_plugin.hosts.checkpoint import Checkpoint
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.probe import task_accuracy

BATCH = 50
SAMPLES = 60


def questions(checkpoint: Checkpoint, data: Path) -> dict[str, float]:
    """Returns the measures of the held-out questions."""
    records = json.loads((data / "questions.json").read_text(encoding="utf-8"))
    right: dict[str, list[float]] = {"blind": [], "contribution": []}
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        pictures = [Image.open(data / "images" / record["image"]).convert("RGB") for record in batch]
        grey = [Image.new("RGB", one.size, (128, 128, 128)) for one in pictures]
        sighted, blind = (
            [checkpoint.encode(*one) for one in zip(batch, shown, strict=True)] for shown in (pictures, grey)
        )
        answers = [record["conversations"][-1]["value"] for record in batch]
        for record, answer, reply in zip(batch, answers, checkpoint.generate(sighted, 8), strict=True):
            right.setdefault(record["kind"], []).append(reply == answer)
        right["blind"] += [
            reply == answer for answer, reply in zip(answers, checkpoint.generate(blind, 8), strict=True)
        ]
        likely = zip(checkpoint.log_likelihood(sighted), checkpoint.log_likelihood(blind), strict=True)
        right["contribution"] += [math.exp(seen.total) - math.exp(unseen.total) for seen, unseen in likely]
    return {name: sum(values) / len(values) for name, values in right.items()}


def tasks(checkpoint: Checkpoint, data: Path, names: list[str], knobs: str) -> dict[str, float]:
    """Returns the accuracy of tasks on held-out scenes."""
    flags = VgiftFlags.of({"ssl_tasks": ",".join(names), "ssl_config": knobs, "ssl_seed": 1})
    measures = {}
    for stream in streams(flags, flags.tasks(), None, str(data / "images" / "heldout"), None):
        rows = task_accuracy.ask(checkpoint, stream, range(SAMPLES), SAMPLES)
        measures[f"task-{stream.task.name}"] = sum(row["scores"]["sighted"] == 1 for row in rows) / len(rows)
    return measures


def main() -> None:
    """Evaluates the checkpoint in $STUDY_RUN."""
    run = Path(os.environ["STUDY_RUN"], "checkpoint")
    data = Path(os.environ["STUDY_OUT"], "tiny", f"seed-{os.environ['STUDY_SEED']}")
    checkpoint = Checkpoint.load(str(run), conv_mode="v1", device="cpu")
    measures = questions(checkpoint, data)
    mix = json.loads((run / "vgift_mix.json").read_bytes()) if (run / "vgift_mix.json").exists() else {"tasks": {}}
    names = [] if mix.get("control") == "repeat" else list(mix["tasks"])
    if names:
        measures |= tasks(checkpoint, data, names, str(Path(__file__).with_name("knobs.yaml")))
    Path(os.environ["STUDY_JSON"]).write_text(json.dumps(measures), encoding="utf-8")


if __name__ == "__main__":
    main()
