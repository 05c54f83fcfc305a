"""Probes a run's checkpoint with `vgift probe`, for `evaluate` in a study file.

    python scripts/study/probe.py --ssl_tasks rotation,color --image_folder DIR [-n N]     # all flags of vgift probe
    python scripts/study/probe.py --data_path heldout.json --image_folder DIR

Writes to $STUDY_JSON: of each task the accuracies TASK-sighted, TASK-blind and TASK-shuffled; of records the mean
visual contribution to their answers in nats per token, `contribution-blank` and `contribution-wrong`, against a blank
and another picture. Page and numbers stay in $STUDY_RUN.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def measures(result: dict[str, Any]) -> dict[str, float]:
    """Returns {measure: number} of the JSON of `vgift probe`."""
    if "tasks" in result:
        ways = ("sighted", "blind", "shuffled")
        return {f"{task}-{way}": one[way]["accuracy"] for task, one in result["tasks"].items() for way in ways}
    return {f"contribution-{picture}": result["pictures"]["all"][picture]["mean"] for picture in ("blank", "wrong")}


def main(arguments: list[str]) -> int:
    """Probes the checkpoint in $STUDY_RUN. Returns the exit status."""
    run = Path(os.environ["STUDY_RUN"])
    outputs = ["-o", str(run / "probe.html"), "--json", str(run / "probe.json")]
    command = ["vgift", "probe", "--model_path", str(run / "checkpoint"), *outputs, *arguments]
    if status := subprocess.run(command, check=False).returncode:
        return status
    found = measures(json.loads((run / "probe.json").read_bytes()))
    Path(os.environ["STUDY_JSON"]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
