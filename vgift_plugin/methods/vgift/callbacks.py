"""What the host's trainer calls: it says the epoch, writes the mix down and reports the redraws."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...data.files import write_whole
from ...data.tally import Tally
from .mixing import MixedDataset

logger = logging.getLogger(__name__)
MIX_FILE = "vgift_mix.json"
TEMPLATES_FILE = "vgift_templates.json"


def is_rank_zero() -> bool:
    """Tells whether this process speaks for the run; torchrun, DeepSpeed and accelerate all set RANK."""
    return int(os.environ.get("RANK", "0")) == 0


class MixCallback(TrainerCallback):
    """Keeps a `MixedDataset` in step with the trainer.

    The epoch is counted from the optimizer steps done at the start and the epochs begun since. `state.epoch` cannot be
    trusted (with 10 batches accumulated by 4 it says 0.8 where the second epoch begins), nor can `set_epoch`, which
    accelerate calls with 0 after a resume in the middle of an epoch, if it calls it at all.

    Args:
        dataset: the mixture in training.
        mix: what `vgift_mix.json` will hold, JSON-able.
    """

    def __init__(self, dataset: MixedDataset, mix: dict[str, Any]):
        self.dataset = dataset
        self.mix = mix
        self._next_epoch = 0

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Finds the first epoch, as the trainer itself does on resume, and writes the mix."""
        steps_per_epoch = max(1, len(train_dataloader) // args.gradient_accumulation_steps)
        self._next_epoch = state.global_step // steps_per_epoch
        self._write(args.output_dir)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Tells the dataset its epoch, before the data loader starts to fetch."""
        self.dataset.epoch = self._next_epoch
        self._next_epoch += 1

    def on_train_end(self, args, state, control, **kwargs):
        """Reports the redraws of all ranks, per task and reason."""
        redraws = _summed_over_ranks(self.dataset.tally.counts())
        if is_rank_zero():
            self.mix["redraws"] = redraws
            logger.info("%s", redraw_report(redraws))
        self._write(args.output_dir)

    def _write(self, output_dir: str) -> None:
        if is_rank_zero():
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MIX_FILE).write_text(json.dumps(self.mix, indent=2) + "\n", encoding="utf-8")


class InstructCallback(TrainerCallback):
    """Writes the task templates of a run down, and reports which instructions could not be learned.

    Args:
        tally: counts them by reason.
        templates: what `vgift_templates.json` will hold; None where no templates are left out.
        take: returns the losses of responses and of instructions since it was last called; called on all ranks.
    """

    def __init__(self, tally: Tally, templates: str | None, take: Callable[[], dict[str, float]]):
        self.tally, self.templates, self.take = tally, templates, take

    def on_train_begin(self, args, state, control, **kwargs):
        """Writes the templates."""
        if self.templates is not None and is_rank_zero():
            write_whole(Path(args.output_dir, TEMPLATES_FILE), self.templates.encode())

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Puts the losses apart beside the total, wherever that goes."""
        if not logs or "loss" not in logs:  # the summary at the end, or an evaluation
            return
        tell(args, state, logs, self.take())

    def on_train_end(self, args, state, control, **kwargs):
        """Reports the records of all ranks whose instruction was not learned, per reason."""
        reasons = _summed_over_ranks(self.tally.counts()).get("instructions", {})
        if is_rank_zero():
            logger.info("%s", instruct_report(reasons))


def instruct_report(reasons: dict[str, int]) -> str:
    """Returns in words how often a record's instruction was not learned."""
    if not reasons:
        return "no instruction had to be left out of the loss"
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f"records whose instruction was not learned, over all ranks and epochs: {told}"


def tell(args: Any, state: Any, logs: dict[str, float], values: dict[str, float], digits: int = 4) -> None:
    """Adds numbers to what the trainer logs, from within `on_log`: its log line, its history, wandb and TensorBoard.

    The two reporters come before a data module's callbacks, so they have taken `logs` already and are told themselves.
    """
    values = {name: round(value, digits) for name, value in values.items()}
    logs.update(values)
    state.log_history[-1].update(values)
    if not is_rank_zero():
        return
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        run.log({**{f"train/{name}": value for name, value in values.items()}, "train/global_step": state.global_step})
    if "tensorboard" in args.report_to:
        writer = _tensorboard(args.logging_dir)
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, state.global_step)
        writer.flush()


@cache
def _tensorboard(folder: str) -> Any:
    """Returns a writer into the folder of the trainer's own; TensorBoard shows all files of a folder as one run."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter
    return SummaryWriter(folder)


def redraw_report(redraws: dict[str, dict[str, int]]) -> str:
    """Returns the redraws in words, one line a task."""
    if not redraws:
        return "no image had to be redrawn"
    lines = [
        f"  {task}: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        for task, reasons in redraws.items()
    ]
    return "\n".join(["images passed over and drawn again, over all ranks and epochs:", *lines])


def _summed_over_ranks(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return counts
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, counts)
    total: dict[str, dict[str, int]] = {}
    for one in gathered:
        for task, reasons in one.items():
            mine = total.setdefault(task, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
    return total


def summed(values: Any) -> list:
    """Returns a tensor added up over all ranks, which must all call it, as (nested) lists; `values` is used up.

    NCCL adds on the GPU alone, where a rank that counted nothing may not have its zeros yet.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        values = values.to("cuda" if dist.get_backend() == "nccl" else values.device)
        dist.all_reduce(values)
    return values.tolist()


def mix_table(mix: dict[str, Any]) -> str:
    """Returns the mixture as a table: task, samples an epoch, share of all samples, chance level, source images."""
    rows = [("task", "samples", "share", "chance", "source")]
    rows.append(("base", f"{mix['base']['samples']:,}", f"{mix['base']['share']:.1%}", "", mix["base"]["source"]))
    published = mix["base"].get("published", {"samples": {}, "metadata": ""})
    for name, count in published["samples"].items():
        source = f"among them, painted by the metadata in {published['metadata']}"
        rows.append((f"  {name}", f"{count:,}", f"{count / mix['samples']:.1%}", "", source))
    for name, task in mix["tasks"].items():
        source = f"{task['source']['count']:,} {task['source']['where']}"
        rows.append((name, f"{task['samples']:,}", f"{task['share']:.1%}", f"{task['chance']:.1%}", source))
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
