"""L2T in a training run: a check that it fits the host, and task templates that are the same on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback

from ...data.files import write_report
from ...data.records import has_picture, human_texts, picture_names
from ...errors import ConfigError, SelfTestError
from ...hosts import ranks
from ...hosts.base import Host, TextPath
from ...hosts.encoder import Encoder
from ...hosts.trainer import counts_of_all_ranks, is_rank_zero
from ..run import Run
from .flags import L2TFlags
from .labels import MASKED, InstructedDataset, InstructedEncoder, InstructionLabels
from .layout import CHANGED, DROPPED, Unfit, whole
from .losses import InstructionLosses
from .templates import MIN_COUNT, MIN_SHARE, Templates, find, parse, read

logger = logging.getLogger(__name__)
TEMPLATES_FILE = "vgift_templates.json"
TESTED = 8  # records with a picture, before the first step
UNLIMITED = 1_000_000_000  # tokens; the marks must not push the end of a record over the limit
BLANK = Image.new("RGB", (64, 64))  # tokens do not depend on the content of pictures


def plan(flags: L2TFlags, run: Run) -> LabelPlan | None:
    """Returns the plan for labels of instructions; None if the chat template omits instructions.

    Raises:
        ConfigError: no record has a picture, or a file of templates is malformed.
        HostMismatchError, SelfTestError: the method does not fit this host, template or tokenizer.
    """
    path = run.host.text_path(run.base, run.tokenizer, UNLIMITED)
    records = run.host.records(run.base)
    made = instruction_labels(
        flags,
        records,
        run.tokenizer,
        lambda k: encoded(run.encoder, records[k]),
        run.host,
        path,
    )
    return None if made is None else LabelPlan(flags, *made)


@dataclass
class LabelPlan:
    """See `methods.base.Plan`."""

    flags: L2TFlags
    labels: InstructionLabels
    templates: Templates | None

    @property
    def facts(self) -> dict[str, str]:
        """See `methods.base.Plan`."""
        return {"task templates": self.templates.fingerprint() if self.templates else "none"}

    def apply(self, run: Run) -> None:
        """Adds labels to the base records and to everything else that is encoded for training."""
        run.change(train_dataset=InstructedDataset(run.host, run.dataset, self.labels))
        run.train_encoder = InstructedEncoder(run.train_encoder, self.labels)
        losses = InstructionLosses(self.flags.instruct_loss_weight)
        run.add_step(losses)
        templates = None if self.templates is None else self.templates.as_json()
        run.add_callbacks(losses, LabelReport(self.labels, templates))


class LabelReport(TrainerCallback):
    """Writes the task templates of a run to a file, and reports which instructions could not be learned.

    Args:
        labels: counts these instructions by reason.
        templates: content of `vgift_templates.json`; None if no templates are left out.
    """

    def __init__(self, labels: InstructionLabels, templates: str | None):
        self.labels, self.templates = labels, templates

    def on_train_begin(self, args, state, control, **kwargs):
        """Writes the templates."""
        if self.templates is not None and is_rank_zero():
            write_report(Path(args.output_dir, TEMPLATES_FILE), self.templates)

    def on_train_end(self, args, state, control, **kwargs):
        """Logs the number of records, over all ranks, whose instruction was not learned, per reason."""
        reasons = counts_of_all_ranks(self.labels.tally.counts()).get("instructions", {})
        if is_rank_zero():
            logger.info("%s", report(reasons))


def report(reasons: dict[str, int]) -> str:
    """Returns a sentence on how many records' instructions were not learned."""
    if not reasons:
        return "no instruction had to be left out of the loss"
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f"records whose instruction was not learned, over all ranks and epochs: {listed}"


def encoded(encoder: Encoder, record: dict) -> Any:
    """Returns the host's item for a record, with blank pictures instead of its own."""
    return encoder.record(record, [BLANK] * len(picture_names(record)))


def instruction_labels(
    flags: L2TFlags,
    records: Sequence[dict],
    tokenizer: Any,
    item: Callable[[int], dict],
    host: Host,
    path: TextPath,
) -> tuple[InstructionLabels, Templates | None] | None:
    """Returns the labelling of instructions, and the task templates it leaves out.

    Returns None if the chat template omits instructions.

    Args:
        flags: the run's flags, with an `--instruct_loss`.
        records: the base records.
        tokenizer: the run's tokenizer.
        item: returns the host's item of the k-th record, for the check.
        host: the training code's family.
        path: applies the host's template and tokenizer to records.

    Raises:
        ConfigError: no record has a picture, or a file of templates is malformed.
        SelfTestError: the method does not fit this host, template or tokenizer.
    """
    seen = sum(map(has_picture, records))
    if not seen and not flags.instruct_loss_text:
        raise ConfigError(
            f"--instruct_loss {flags.instruct_loss}: none of the {len(records):,} base records has a picture to "
            "predict its instruction from; --instruct_loss_text True supervises records without one"
        )
    labels = InstructionLabels(
        flags.instruct_loss, frozenset(), flags.instruct_loss_text, path.ids, tokenizer, host.visible_ids
    )
    if not fits(labels, records, item):
        logger.info(
            "--instruct_loss %s is off: the template leaves the instruction out, as --version plain does, so there is "
            "nothing to learn of it",
            flags.instruct_loss,
        )
        return None
    templates = _templates(flags, records) if flags.instruct_loss == "no_template" else None
    if templates is not None:
        labels.templates = templates.sentences()
    logger.info("%s", _summary(flags, len(records), seen, templates))
    return labels, templates


def fits(labels: InstructionLabels, records: Sequence[dict], item: Callable[[int], dict]) -> bool:
    """Returns whether the instruction of one of the first records can be labelled; False if the template omits them.

    Args:
        labels: the labelling to be checked.
        records: the base records.
        item: returns the host's item of the k-th record.

    Raises:
        ConfigError: no record has an instruction.
        SelfTestError: no instruction can be labelled, for other reasons.
    """
    reasons = []
    for k in islice((k for k, record in enumerate(records) if _asks(record, labels.text)), TESTED):
        made, marks = item(k), list(map(whole, human_texts(records[k])))
        try:
            if bool(labels.mask(made["input_ids"], made["labels"], records[k], marks).any()):
                return True
            reasons.append("no token that is the instruction's alone")
        except Unfit as unfit:
            reasons.append(unfit.reason)
    if not reasons:
        raise ConfigError(f"--instruct_loss {labels.mode}: none of the base records to learn from has an instruction")
    if set(reasons) == {DROPPED}:
        return False
    cure = "`vgift labels --instruct_loss none` shows what the host makes of them"
    if {CHANGED, MASKED} & set(reasons):
        cure = f"the template may not fit the tokenizer, or the host changes texts on the way; {cure}"
    raise SelfTestError(
        f"--instruct_loss {labels.mode} with tokenizer {type(labels.tokenizer).__name__} "
        f"({getattr(labels.tokenizer, 'name_or_path', '?')}): of the first {len(reasons)} records with an instruction "
        f"none can be supervised ({', '.join(dict.fromkeys(reasons))}); {cure}"
    )


def _asks(record: dict, text: bool) -> bool:
    return (text or has_picture(record)) and any(map(whole, human_texts(record)))


def _templates(flags: L2TFlags, records: Sequence[dict]) -> Templates:
    """Returns the templates of the file, else those found in the records by rank 0, the same on all ranks."""
    if flags.instruct_templates is not None:
        return read(flags.instruct_templates)

    def made() -> str:
        return find(records, MIN_SHARE, MIN_COUNT).as_json()

    return parse(ranks.from_rank_zero(made), "the templates of the base records")


def _summary(flags: L2TFlags, total: int, seen: int, templates: Templates | None) -> str:
    lines = [f"--instruct_loss {flags.instruct_loss}: instructions are learned of {seen:,} of {total:,} base records"]
    if seen < total and flags.instruct_loss_text:
        lines = [f"--instruct_loss {flags.instruct_loss}: instructions are learned of all {total:,} base records"]
    elif seen < total:
        lines[0] += "; the others have no picture (--instruct_loss_text True includes them)"
    if flags.instruct_loss_weight != 1:
        lines.append(f"each of their tokens counts {flags.instruct_loss_weight:g} times in the loss")
    if templates is None:
        return "\n".join(lines)
    if not templates.entries:
        return "\n".join([*lines, "no sentence is a task template, so nothing of them is left out, as with no_system"])
    lines.append(f"task templates, left out: {len(templates.entries):,}, all in {TEMPLATES_FILE}; the first:")
    return "\n".join(lines + [f"  {entry.sentence}" for entry in templates.entries[:5]])
