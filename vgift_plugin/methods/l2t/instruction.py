"""L2T in the host: its text path, a check that it fits, and the templates that all ranks agree on."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from ...data.records import human_texts
from ...errors import ConfigError, HostMismatchError, SelfTestError
from ...hosts import ranks as agreement
from ..vgift.callbacks import TEMPLATES_FILE
from ..vgift.flags import Flags
from .labels import MASKED, InstructLoss, has_picture
from .layout import CHANGED, DROPPED, Unfit, whole
from .templates import Templates, find, parse, read

logger = logging.getLogger(__name__)
TESTED = 8  # records with a picture, before the first step
UNLIMITED = 1_000_000_000  # tokens; the marks must not push the end of a record over the edge


class TextPath:
    """Turns a record into tokens as the host's dataset does, without its picture.

    LLaVA and the forks that keep its functions: the globals `preprocess_multimodal` and `preprocess` of the module that
    the dataset is from. TinyLLaVA: the dataset's own `text_preprocess`.

    Args:
        base: the host's dataset.
        tokenizer: the run's.
        limit: tokens of a record at most; by default as many as it has.

    Raises:
        HostMismatchError: the host has neither.
    """

    def __init__(self, base: Any, tokenizer: Any, limit: int = UNLIMITED):
        self.base = base
        self.tokenizer = copy.copy(tokenizer)
        self.tokenizer.model_max_length = limit
        self._functions()

    def _functions(self) -> tuple[Any, Any]:
        """Looked up anew each time, for functions of a main program do not cross to a spawned worker."""
        own = getattr(self.base, "text_preprocess", None)
        if hasattr(own, "tokenizer"):
            unlimited = copy.copy(own)
            unlimited.tokenizer = self.tokenizer
            return None, unlimited
        for kind in type(self.base).__mro__:
            found = getattr(vars(kind).get("__getitem__"), "__globals__", {})
            if callable(found.get("preprocess")) and callable(found.get("preprocess_multimodal")):
                return found["preprocess_multimodal"], found["preprocess"]
        raise HostMismatchError(
            f"--instruct_loss: {type(self.base).__module__}.{type(self.base).__name__} words its records in another "
            "way than LLaVA: expected the functions preprocess and preprocess_multimodal in its module"
        )

    def __call__(self, record: dict) -> list[int]:
        """Returns the ids of a record."""
        return self.item(record)["input_ids"].tolist()

    def item(self, record: dict) -> dict:
        """Returns input_ids and labels of a record. What the host prints about it is not shown a second time."""
        multimodal, text = self._functions()
        turns = copy.deepcopy(record["conversations"])
        with contextlib.redirect_stdout(io.StringIO()):
            if multimodal is None:
                return text(turns)
            picture = has_picture(record)
            sources = multimodal([turns], self.base.data_args) if picture else [turns]
            made = text(sources, self.tokenizer, has_image=picture)
        return {name: made[name][0] for name in ("input_ids", "labels")}


def instruct_loss(
    flags: Flags, base: Any, tokenizer: Any, item: Callable[[int], dict] | None = None
) -> tuple[InstructLoss, Templates | None] | None:
    """Returns what gives labels to instructions, and the task templates it leaves out.

    None where the chat template has no place for instructions.

    Args:
        flags: the run's flags, with an `--instruct_loss`.
        base: the host's dataset.
        tokenizer: the run's.
        item: gives what the host makes of its k-th record, to be tested; by default its dataset does.

    Raises:
        ConfigError: no record has a picture, or a file of templates is malformed.
        HostMismatchError, SelfTestError: it does not fit this host, template or tokenizer.
    """
    records = base.list_data_dict
    seen = sum(map(has_picture, records))
    if not seen and not flags.instruct_loss_text:
        raise ConfigError(
            f"--instruct_loss {flags.instruct_loss}: none of the {len(records):,} base records has a picture to "
            "predict its instruction from; --instruct_loss_text True supervises records without one"
        )
    path = TextPath(base, tokenizer)
    loss = InstructLoss(flags.instruct_loss, frozenset(), flags.instruct_loss_text, path, tokenizer)
    if not fits(loss, records, item or base.__getitem__):
        logger.info(
            "--instruct_loss %s is off: the template leaves the instruction out, as --version plain does, so there is "
            "nothing to learn of it",
            flags.instruct_loss,
        )
        return None
    templates = _templates(flags, records) if flags.instruct_loss == "no_template" else None
    if templates is not None:
        loss.templates = templates.sentences()
    logger.info("%s", _told(flags, len(records), seen, templates))
    return loss, templates


def fits(loss: InstructLoss, records: Sequence[dict], item: Callable[[int], dict]) -> bool:
    """Tries the first records with an instruction; returns False where the template has no place for any.

    Args:
        loss: what is to be tried.
        records: the base records.
        item: gives what the host makes of the k-th.

    Raises:
        ConfigError: no record has an instruction.
        SelfTestError: not one of them came out as it went in.
    """
    reasons = []
    for k in islice((k for k, record in enumerate(records) if _asks(record, loss.text)), TESTED):
        made, marks = item(k), list(map(whole, human_texts(records[k])))
        try:
            if bool(loss.mask(made["input_ids"], made["labels"], records[k], marks).any()):
                return True
            reasons.append("no token that is the instruction's alone")
        except Unfit as unfit:
            reasons.append(unfit.reason)
    if not reasons:
        raise ConfigError(f"--instruct_loss {loss.mode}: none of the base records to learn from has an instruction")
    if set(reasons) == {DROPPED}:
        return False
    cure = "`vgift labels --instruct_loss none` shows what LLaVA makes of them"
    if {CHANGED, MASKED} & set(reasons):
        cure = f"the template may not fit the tokenizer, or the host changes texts on the way; {cure}"
    raise SelfTestError(
        f"--instruct_loss {loss.mode} with tokenizer {type(loss.tokenizer).__name__} "
        f"({getattr(loss.tokenizer, 'name_or_path', '?')}): of the first {len(reasons)} records with an instruction "
        f"none can be supervised ({', '.join(dict.fromkeys(reasons))}); {cure}"
    )


def _asks(record: dict, text: bool) -> bool:
    return (text or has_picture(record)) and any(map(whole, human_texts(record)))


def _templates(flags: Flags, records: Sequence[dict]) -> Templates:
    """Returns the templates of the file, else those of the records: found on rank 0, the same on all ranks."""
    if flags.instruct_templates is not None:
        return read(flags.instruct_templates)

    def made() -> str:
        return find(records, flags.instruct_template_share, flags.instruct_template_count).as_json()

    return parse(agreement.shared(made), "the templates of the base records")


def _told(flags: Flags, total: int, seen: int, templates: Templates | None) -> str:
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
