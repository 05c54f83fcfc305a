"""Checks that a resumed run goes on with the samples it was begun with."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data.files import write_report
from ..errors import ConfigError
from ..hosts.ranks import from_rank_zero
from ..hosts.trainer import is_rank_zero

logger = logging.getLogger(__name__)
RESUME_FILE = "vgift_resume.json"


class ResumeCheck(TrainerCallback):
    """Writes what the run depends on into its output folder and checkpoints, and compares it when a run is resumed.

    Args:
        facts: {what: value}, equal on all ranks.
        anyway: whether to go on if they differ.
        notes: gets the differences under `resumed_anyway`.
    """

    def __init__(self, facts: dict[str, str], anyway: bool, notes: dict[str, Any]):
        self.facts, self.anyway, self.notes = facts, anyway, notes
        self._history: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Compares the facts of a resumed run, before its first step.

        Raises:
            ConfigError: on all ranks, if they differ from those of the checkpoint; the differences are listed.
        """
        if state.global_step:
            self._history = json.loads(from_rank_zero(lambda: json.dumps(self._compare(args, state.global_step))))
            if self._history:
                self.notes["resumed_anyway"] = self._history
        self._write(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        """Adds the facts to a checkpoint."""
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if checkpoint.is_dir():
            self._write(checkpoint)

    def _write(self, folder: Path) -> None:
        if is_rank_zero():
            content = {"facts": self.facts, "resumed_anyway": self._history}
            write_report(folder / RESUME_FILE, json.dumps(content, indent=1) + "\n")

    def _compare(self, args: Any, step: int) -> list[dict[str, Any]]:
        """Returns the history of changes, with those of this resume."""
        given = args.resume_from_checkpoint
        folders = [Path(args.output_dir, f"checkpoint-{step}"), Path(args.output_dir)]
        folders = [*([Path(given)] if isinstance(given, str) else []), *folders]
        path = next((folder / RESUME_FILE for folder in folders if (folder / RESUME_FILE).is_file()), None)
        history: list[dict[str, Any]] = []
        if path is None:
            path = folders[0]
            changed = [f"there is no {RESUME_FILE}: it was begun without these methods, or by another version of vgift"]
        else:
            try:
                begun = json.loads(path.read_bytes())
                facts, history = dict(begun["facts"]), list(begun["resumed_anyway"])
            except (ValueError, KeyError, TypeError) as err:
                raise ConfigError(f"{path}: is damaged ({err}); copy it from another checkpoint of this run") from err
            names = [*facts, *(name for name in self.facts if name not in facts)]
            changed = [
                f"{name}: begun with {facts.get(name, 'nothing')}, now {self.facts.get(name, 'nothing')}"
                for name in names
                if facts.get(name) != self.facts.get(name)
            ]
        if not changed:
            return history
        told = "\n  ".join([f"{path}: the run would not go on with the samples it was begun with:", *changed])
        if not self.anyway:
            raise ConfigError(
                f"{told}\nGive the flags and files that it was begun with, or go on with these: "
                f"--ssl_resume_anyway True ({RESUME_FILE} notes it)"
            )
        logger.warning("%s\n--ssl_resume_anyway: it goes on with these", told)
        return [*history, {"step": step, "changed": changed}]
