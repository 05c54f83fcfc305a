"""Preference pairs as the host's own items, two records each: the same prompt and picture, another response."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from ...data.proxy import Proxy
from ...errors import ConfigError, SelfTestError
from ...hosts import IGNORE_INDEX
from ...hosts.base import ChatTemplate, Host
from ...hosts.encoder import lossless_file
from ...hosts.trainer import is_rank_zero

logger = logging.getLogger(__name__)
CHOSEN, REJECTED = SIDES = ("chosen", "rejected")
MASKED = "the host masks all its labels"
TESTED = 4  # pairs


class Extent(NamedTuple):
    """How far a response reaches: tokens of its whole row, and of what stands before it; a picture counts as one."""

    length: int
    start: int


def record_of(row: dict, side: str) -> dict:
    """Returns a LLaVA record: the prompt of a pair and one of its two responses."""
    turns = [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row[side]}]
    return {"id": f"{row['id']}-{side}", "image": row["image"], "conversations": turns}


class PreferenceDataset:
    """The pairs: item i is {"chosen": item, "rejected": item}, each what the host returns for its record.

    A pure function of i. The picture is opened by the host, clean: corruption was for writing the response alone.

    Args:
        host: the training code's family.
        base: the host's dataset; it is not changed, and its own records are not used.
        rows: of a preference file.
        extents: of each row's two responses, in the order of SIDES.
    """

    def __init__(self, host: Host, base: Any, rows: Sequence[dict], extents: Sequence[tuple[Extent, Extent]]):
        self.host, self.base, self.rows, self.extents = host, base, rows, extents

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        return {side: self.host.item(self.base, record_of(row, side)) for side in SIDES}

    @property
    def lengths(self) -> list[int]:
        """Tokens of the longer row of each pair, the picture's place counted as one."""
        return [max(extent.length for extent in pair) for pair in self.extents]

    @property
    def modality_lengths(self) -> list[int]:
        """The same: above 0, since each pair has a picture."""
        return self.lengths


class PairCollator(Proxy):
    """The host's own data collator on the two rows of every pair: all preferred ones first, then the others.

    Args:
        base: the host's, for batches without pairs too.
    """

    def __init__(self, base: Callable[[Sequence[dict]], dict]):
        self.base = base

    def __call__(self, instances: Sequence[dict]) -> dict:
        """Returns a batch of 2 × pairs rows."""
        if set(instances[0]) == set(SIDES):
            instances = [one[side] for side in SIDES for one in instances]
        return self.base(instances)


def require_images(rows: Sequence[dict], image_folder: str | None) -> None:
    """Looks whether every picture is there.

    Raises:
        ConfigError: naming the first ones with their rows.
    """
    missing = [row for row in rows if not Path(image_folder or "", row["image"]).is_file()]
    if missing:
        shown = "\n".join(f"  {row['image']} of row {row['id']!r}" for row in missing[:5])
        raise ConfigError(
            f"--preference_data: {len(missing):,} of {len(rows):,} pictures are not in --image_folder {image_folder}, "
            f"the folder their names are relative to:\n{shown}" + ("\n  …" if len(missing) > 5 else "")
        )


def measured(
    host: Host, base: Any, rows: Sequence[dict]
) -> tuple[list[dict], list[tuple[Extent, Extent]], Counter[str]]:
    """Sends the words of every row through the host, with one small picture for all.

    Returns:
        the rows whose two responses the host would train on, how far these reach, and how many rows were left out, by
        the reason.
    """
    small = copy.copy(base)
    small.data_args = copy.copy(base.data_args)
    small.data_args.image_processor = _SeesOnce(base.data_args.image_processor)
    kept: list[dict] = []
    extents: list[tuple[Extent, Extent]] = []
    left_out: Counter[str] = Counter()
    with lossless_file(Image.new("RGB", (8, 8))) as picture:
        for row in tqdm(rows, desc="pairs, their lengths", unit="", disable=not is_rank_zero(), leave=False):
            items = [host.item(small, {**record_of(row, side), "image": picture}) for side in SIDES]
            taught = [(item["labels"] != IGNORE_INDEX).nonzero() for item in items]
            if all(len(places) for places in taught):
                kept.append(row)
                chosen, rejected = (
                    Extent(len(item["labels"]), int(places[0, 0])) for item, places in zip(items, taught, strict=True)
                )
                extents.append((chosen, rejected))
            else:
                left_out[MASKED] += 1
    return kept, extents, left_out


class _SeesOnce(Proxy):
    """The host's image processor, which works on the first picture and returns the same for all others."""

    def __init__(self, base: Any):
        self.base, self._seen = base, None

    def preprocess(self, *args, **kwargs) -> Any:
        if self._seen is None:
            self._seen = self.base.preprocess(*args, **kwargs)
        return self._seen

    def __call__(self, *args, **kwargs) -> Any:
        return self.base(*args, **kwargs)


def self_test(dataset: PreferenceDataset, tokenizer: Any, template: ChatTemplate) -> None:
    """Sends the first pairs through the host: the unmasked labels must decode to the responses.

    Args:
        dataset: the pairs.
        tokenizer: the run's.
        template: the run's.

    Raises:
        SelfTestError: naming row and tokenizer, and what was found.
    """
    for index in range(min(TESTED, len(dataset))):
        row, items = dataset.rows[index], dataset[index]
        for side in SIDES:
            labels = items[side]["labels"]
            found = tokenizer.decode(labels[labels != IGNORE_INDEX].tolist(), skip_special_tokens=True)
            found = template.without_markers(found)
            if found != template.without_markers(row[side]):
                raise SelfTestError(
                    f"--preference_data, row {row['id']!r} with tokenizer {type(tokenizer).__name__} "
                    f"({getattr(tokenizer, 'name_or_path', '?')}): the labels decode to {found!r} instead of the "
                    f"{side} response {row[side]!r}. The template does not fit the tokenizer; choose another "
                    "--version, or the tokenizer it was made for."
                )
