"""Trainer callbacks for a mixture: the epoch, `vgift_mix.json`, and the report on redraws."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...data.files import write_report
from ...data.jobs import Ranks
from ...hosts.encoder import warn_if_tight
from ...hosts.trainer import counts_of_all_ranks, is_rank_zero, steps_per_epoch
from .flags import REPEAT, SHUFFLED
from .mixture import MixedDataset

logger = logging.getLogger(__name__)
MIX_FILE = "vgift_mix.json"


class MixCallback(TrainerCallback):
    """Synchronises a `MixedDataset` with the trainer.

    The epoch is computed from the optimizer steps done at the start and the epochs begun since. `state.epoch` is
    unreliable (with 10 batches accumulated by 4 it is 0.8 at the start of the second epoch), and so is `set_epoch`,
    which accelerate calls with 0 after a resume within an epoch, if at all.

    Args:
        dataset: the mixture in training.
        mix: the content of `vgift_mix.json`, JSON-able.
        notes: added to the content when it is written.
        sample_bytes: size of the largest sample's picture.
    """

    def __init__(self, dataset: MixedDataset, mix: dict[str, Any], notes: dict[str, Any], sample_bytes: int = 0):
        self.dataset = dataset
        self.mix = mix
        self.notes = notes
        self.sample_bytes = sample_bytes
        self._next_epoch = 0

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Computes the first epoch, as the trainer does on resume, and writes the mix."""
        self._next_epoch = state.global_step // steps_per_epoch(len(train_dataloader), args.gradient_accumulation_steps)
        self._write(args.output_dir)
        warn_if_tight(self.sample_bytes, max(1, args.dataloader_num_workers) * Ranks.here().local_world)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Sets the dataset's epoch before the data loader starts."""
        self.dataset.epoch = self._next_epoch
        self._next_epoch += 1

    def on_train_end(self, args, state, control, **kwargs):
        """Reports the redraws of all ranks, per task and reason."""
        redraws = counts_of_all_ranks(self.dataset.tally.counts())
        if is_rank_zero():
            self.mix["redraws"] = redraws
            logger.info("%s", redraw_report(redraws))
        self._write(args.output_dir)

    def _write(self, output_dir: str) -> None:
        if is_rank_zero():
            write_report(Path(output_dir, MIX_FILE), json.dumps({**self.mix, **self.notes}, indent=2) + "\n")


def redraw_report(redraws: dict[str, dict[str, int]]) -> str:
    """Returns text on the redraws, one line per task."""
    if not redraws:
        return "no image had to be redrawn"
    lines = [
        f"  {task}: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        for task, reasons in redraws.items()
    ]
    return "\n".join(["images passed over and drawn again, over all ranks and epochs:", *lines])


CONTROL_ROWS = {
    REPEAT: lambda name, source: (f"base again, for {name}", "CONTROL: repeated base records with a picture"),
    SHUFFLED: lambda name, source: (f"{name}, shuffled", f"CONTROL: another sample's picture; {source}"),
}


def mix_table(mix: dict[str, Any]) -> str:
    """Returns the mixture as a text table: task, samples per epoch, share of all samples, chance level, images."""
    rows = [("task", "samples", "share", "chance", "source")]
    rows.append(("base", f"{mix['base']['samples']:,}", f"{mix['base']['share']:.1%}", "", mix["base"]["source"]))
    control = mix.get("control")
    published = mix["base"].get("published", {"samples": {}, "metadata": ""})
    for name, count in published["samples"].items():
        source = f"among them, painted by the metadata in {published['metadata']}"
        rows.append((f"  {name}", f"{count:,}", f"{count / mix['samples']:.1%}", "", source))
    for name, task in mix["tasks"].items():
        source = f"{task['source']['count']:,} {task['source']['where']}"
        title, source = (name, source) if control is None else CONTROL_ROWS[control](name, source)
        rows.append((title, f"{task['samples']:,}", f"{task['share']:.1%}", f"{task['chance']:.1%}", source))
    rows.append(("all", f"{mix['samples']:,}", "", "", ""))
    for name, part in mix.get("held_out", {}).items():
        source = f"{part['source']['count']:,} {part['source']['where']}"
        rows.append((f"{name}, to evaluate", f"{part['samples']:,}", "", "", source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, source in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:4], strict=True)), source]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)
