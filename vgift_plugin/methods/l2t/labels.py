"""Labels of instructions: besides the response, the model learns to predict the instruction from the picture.

Only labels change; the four modes are the rows of the paper's ablation (L2T, arXiv 2503.22215, Table 4). The supervised
tokens are chosen by the characters of the human texts, which `layout` finds in the host's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...data.proxy import WrappedDataset
from ...data.records import IMAGE, has_picture, human_texts, is_human
from ...data.shared_file import Tally
from ...hosts import IGNORE_INDEX
from ...hosts.base import Host
from ...hosts.token_facts import with_facts
from ...hosts.token_text import TokenText
from ...tasks.task import Sample
from .layout import Layouts, Unfit, solid, whole
from .sentences import Span, spans

MASKED, NO_PICTURE_YET = "all labels masked by the host", "no picture before the instruction"


def without(text: str, templates: frozenset[str]) -> list[Span]:
    """Returns the spans of sentences that are not templates; adjacent ones are joined, with the white space between."""
    result: list[Span] = []
    joined = False
    for start, end in spans(text):
        keep = text[start:end] not in templates
        if keep and joined and IMAGE not in text[result[-1][1] : start]:
            result[-1] = (result[-1][0], end)
        elif keep:
            result.append((start, end))
        joined = keep
    return result


def covered(text: str, tokens: Sequence[Span], places: Sequence[Span]) -> np.ndarray:
    """Returns a mask of the tokens inside spans, (tokens,) booleans.

    A token is inside if it has non-white-space characters and all of them are in spans, or if it is white space between
    characters of the same span. A token that mixes template and content is not.

    Args:
        text: the text of the tokens.
        tokens: the span of each token in `text`.
        places: spans, counted in non-white-space characters.
    """
    count = np.concatenate([[0], np.cumsum([not character.isspace() for character in text], dtype=np.int64)])
    size = int(count[-1])
    number = np.zeros(size + 2, np.int64)  # number of each character's span, from 1; 0 for none and at both ends
    for k, (start, end) in enumerate(places, 1):
        number[1 + min(start, size) : 1 + min(end, size)] = k
    inside = np.concatenate([[0], np.cumsum(number[1:-1] > 0)])
    starts, ends = np.array(tokens, np.int64).reshape(-1, 2).T
    first, last = count[starts], count[ends]
    content = (last > first) & (inside[last] - inside[first] == last - first)
    gap = (last == first) & (ends > starts) & (number[first] > 0) & (number[first] == number[first + 1])
    return content | gap


@dataclass
class InstructionLabels:
    """Adds labels of the instruction to labels of the response.

    Attributes:
        mode: `full`, `no_system` or `no_template`.
        templates: the sentences left out with `no_template`.
        text: whether records without a picture are also supervised.
        encode: the host's text path, which returns the token ids of a record.
        tokenizer: the run's tokenizer.
        visible_ids: see `Host.visible_ids`.
        tally: counts the records left unchanged, by reason.
    """

    mode: str
    templates: frozenset[str]
    text: bool
    encode: Callable[[dict], list[int]]
    tokenizer: Any
    visible_ids: Callable[[torch.Tensor], list[int]]

    def __post_init__(self):
        self.tally = Tally()
        self.texts = TokenText(self.tokenizer)
        self.layouts = Layouts(self.encode, self.texts)
        added = getattr(self.tokenizer, "added_tokens_decoder", {})  # fast tokenizers list only some of them as special
        marked = {id for id, token in added.items() if getattr(token, "special", False)}
        self._special = np.array(sorted(marked.union(self.tokenizer.all_special_ids)), np.int64)
        self._never = np.array(
            [id for id in (self.tokenizer.bos_token_id, self.tokenizer.pad_token_id) if id is not None], np.int64
        )

    def __call__(self, item: dict, record: dict) -> dict:
        """Returns a copy of the host's item for a record with labels and token facts of its instruction.

        The item's other values are not copied; if its instruction is not learned, the item itself is returned.
        """
        if not self.text and not has_picture(record):
            return item
        texts = human_texts(record)
        if self.mode == "no_template":
            return self._labelled(item, record, [without(text, self.templates) for text in texts])
        return self._labelled(item, record, [whole(text) for text in texts])

    def of_sample(self, item: dict, sample: Sample, name: str) -> dict:
        """Returns the same for a self-supervised sample; its wording is a template, except for `informative` spans."""
        record = sample.record(name, "")
        text = human_texts(record)[0]
        if self.mode != "no_template":
            return self._labelled(item, record, [whole(text)])
        before = len(text) - len(sample.instruction)
        return self._labelled(item, record, [[(before + start, before + end) for start, end in sample.informative]])

    def _labelled(self, item: dict, record: dict, marks: list[list[Span]]) -> dict:
        try:
            mask = self.mask(item["input_ids"], item["labels"], record, marks)
        except Unfit as unfit:
            self.tally("instructions", unfit.reason)
            return item
        return with_instruction(item, mask)

    def mask(
        self, input_ids: torch.Tensor, labels: torch.Tensor, record: dict, marks: list[list[Span]]
    ) -> torch.Tensor:
        """Returns a mask of the supervised tokens of a record's instruction, booleans of the labels' shape.

        Args:
            input_ids: (L,) or (1, L), the host's token ids of the record.
            labels: same shape; -100 outside the response.
            record: the record.
            marks: spans of each human turn.

        Raises:
            Unfit: nothing of this record can be supervised; its reason says why.
        """
        free = labels == IGNORE_INDEX
        if bool(free.all()):
            raise Unfit(MASKED)
        if not any(marks) and self.mode != "full":
            return torch.zeros_like(free)
        ids = self.visible_ids(input_ids)
        chosen = self._located(ids, record, marks)
        if has_picture(record) and (chosen.any() or self.mode == "full"):
            pictures = [k for k, id in enumerate(ids) if id < 0]
            if not pictures or (chosen.any() and pictures[0] > chosen.argmax()):
                raise Unfit(NO_PICTURE_YET)
        if self.mode == "full":
            chosen = self._all(ids)
        return torch.from_numpy(chosen).to(free.device).view_as(free) & free

    def _located(self, ids: list[int], record: dict, marks: list[list[Span]]) -> np.ndarray:
        """Returns a mask of the tokens in the marked spans, without special tokens."""
        text, tokens = self.texts.read(ids)
        rest = iter(marks)
        each = [next(rest) if is_human(turn) else [] for turn in record["conversations"]]
        places = self.layouts.find(record, each, solid(text), len(ids) >= self.tokenizer.model_max_length)
        return covered(text, tokens, places) & ~np.isin(ids, self._special)

    def _all(self, ids: list[int]) -> np.ndarray:
        """Returns all tokens but the first, BOS, padding, pictures' places and the white space beside them.

        A picture is a run of negative ids, including the pair of special tokens around it, if there is one
        (`<im_start>`, `<|vision_start|>`).
        """
        text, tokens = self.texts.read(ids)
        chosen = (np.array(ids) >= 0) & ~np.isin(ids, self._never)
        chosen[:1] = False  # nothing predicts it; in a flattened row the conversation before would
        special = np.isin(ids, self._special)
        for first in (k for k, id in enumerate(ids) if id < 0 and (k == 0 or ids[k - 1] >= 0)):
            last = next(k for k in range(first, len(ids) + 1) if k == len(ids) or ids[k] >= 0) - 1
            reach = int(first > 0 and last < len(ids) - 1 and special[first - 1] and special[last + 1])
            chosen[first - reach : last + reach + 1] = False
            for step, start in ((-1, first - reach - 1), (1, last + reach + 1)):
                k = start
                while 0 <= k < len(ids) and ids[k] >= 0 and text[slice(*tokens[k])].isspace():
                    chosen[k] = False
                    k += step
        return chosen


def with_instruction(item: Any, mask: torch.Tensor) -> Any:
    """Returns a copy of an item with labels of its instruction, given by a mask of the labels' shape."""
    item = with_facts(item, instruction=mask)
    item["labels"] = torch.where(mask, item["input_ids"], item["labels"])
    return item


class InstructedDataset(WrappedDataset):
    """The host's dataset with labels of the instructions. Other attributes are forwarded to it.

    Args:
        host: the training code's family.
        base: the host's dataset.
        labels: adds the labels.
    """

    def __init__(self, host: Host, base: Any, labels: InstructionLabels):
        self.host, self.base, self.labels = host, base, labels

    def __getitem__(self, index: int) -> Any:
        item = self.base[index]
        segments = self.host.segments(self.base, index, item)
        if len(segments) == 1:
            return self.labels(item, segments[0][1])
        mask = torch.zeros_like(item["labels"], dtype=torch.bool)  # a packed item with several conversations
        for place, record in segments:
            part = {name: item[name][..., place] for name in ("input_ids", "labels")}
            labelled = self.labels(part, record)
            mask[..., place] = labelled["labels"] != part["labels"]
        return with_instruction(item, mask)


@dataclass
class InstructedEncoder:
    """Wraps an encoder and adds labels of the instructions.

    Attributes:
        base: the wrapped encoder.
        labels: adds the labels.
    """

    base: Any
    labels: InstructionLabels

    def sample(self, sample: Sample, name: str) -> Any:
        """Returns the host's item for a self-supervised sample."""
        return self.labels.of_sample(self.base.sample(sample, name), sample, name)

    def record(self, record: dict, pictures: Sequence[Image.Image]) -> Any:
        """Returns the host's item for a record with the given pictures instead of its own."""
        return self.labels(self.base.record(record, pictures), record)
