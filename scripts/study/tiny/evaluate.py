"""Asks a run of the tiny study the held-out questions, with their pictures and with a grey one.

Writes {measure: share of right answers} to $STUDY_JSON: the four kinds of questions, and `blind` for all of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image

from vgift_plugin.hosts.checkpoint import Checkpoint

BATCH = 50


def main() -> None:
    """Evaluates the checkpoint in $STUDY_RUN."""
    data = Path(os.environ["STUDY_OUT"], "tiny")
    checkpoint = Checkpoint.load(str(Path(os.environ["STUDY_RUN"], "checkpoint")), conv_mode="v1", device="cpu")
    records = json.loads((data / "questions.json").read_text(encoding="utf-8"))
    right: dict[str, list[bool]] = {"blind": []}
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        pictures = [Image.open(data / "images" / record["image"]).convert("RGB") for record in batch]
        for way in ("sighted", "blind"):
            shown = pictures if way == "sighted" else [Image.new("RGB", one.size, (128, 128, 128)) for one in pictures]
            replies = checkpoint.generate([checkpoint.encode(*one) for one in zip(batch, shown, strict=True)], 8)
            for record, reply in zip(batch, replies, strict=True):
                name = record["kind"] if way == "sighted" else "blind"
                right.setdefault(name, []).append(reply.strip() == record["conversations"][-1]["value"])
    measures = {name: sum(answers) / len(answers) for name, answers in right.items()}
    Path(os.environ["STUDY_JSON"]).write_text(json.dumps(measures), encoding="utf-8")


if __name__ == "__main__":
    main()
