"""Preference pairs as the host's items: two records each, with the same prompt and picture and different responses."""

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
from ...data.rows import require_no_links_out
from ...errors import ConfigError, SelfTestError
from ...hosts import IGNORE_INDEX
from ...hosts.base import ChatTemplate, Host
from ...hosts.encoder import lossless_file
from ...hosts.trainer import is_rank_zero

logger = logging.getLogger(__name__)
CHOSEN, REJECTED = SIDES = ("chosen", "rejected")
MASKED = "the host masks all its labels"
TESTED = 4  # pairs in the self-test


class Extent(NamedTuple):
    """Number of tokens of the whole row, and of those before the response; a picture counts as one token."""

    length: int
    start: int


def record_of(row: dict, side: str) -> dict:
    """Returns a LLaVA record with the prompt of a pair and one of its two responses."""
    turns = [{"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row[side]}]
    return {"id": f"{row['id']}-{side}", "image": row["image"], "conversations": turns}


class PreferenceDataset:
    """The pairs: item i is {"chosen": item, "rejected": item}, each the host's item for its record.

    Items are a pure function of i. The host opens the clean picture: corruption was for generating responses only.

    Args:
        host: the training code's family.
        base: the host's dataset; it is not changed, and its own records are not used.
        rows: rows of a preference file.
        extents: for each row those of its two responses, in the order of SIDES.
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
        """Number of tokens of the longer row of each pair; the picture counts as one token."""
        return [max(extent.length for extent in pair) for pair in self.extents]

    @property
    def modality_lengths(self) -> list[int]:
        """Same as `lengths`; positive, since each pair has a picture."""
        return self.lengths


class PairCollator(Proxy):
    """Applies the host's data collator to the two rows of every pair: all preferred ones first, then the others.

    Args:
        base: the host's collator, also used for batches without pairs.
    """

    def __init__(self, base: Callable[[Sequence[dict]], dict]):
        self.base = base

    def __call__(self, instances: Sequence[dict]) -> dict:
        """Returns a batch of 2 × pairs rows; other batches are passed to the host's collator as they are."""
        if set(instances[0]) == set(SIDES):
            instances = [one[side] for side in SIDES for one in instances]
        return self.base(instances)


def require_images(rows: Sequence[dict], image_folder: str | None) -> None:
    """Checks that every picture exists.

    Raises:
        ConfigError: pictures are missing; the first ones are listed with their rows.
    """
    missing = [row for row in rows if not Path(image_folder or "", row["image"]).is_file()]
    if missing:
        shown = "\n".join(f"  {row['image']} of row {row['id']!r}" for row in missing[:5])
        raise ConfigError(
            f"--preference_data: {len(missing):,} of {len(rows):,} pictures are not in --image_folder {image_folder}, "
            f"the folder their names are relative to:\n{shown}" + ("\n  …" if len(missing) > 5 else "")
        )
    require_no_links_out("--preference_data", image_folder or "", dict.fromkeys(row["image"] for row in rows))


def measured(
    host: Host, base: Any, rows: Sequence[dict]
) -> tuple[list[dict], list[tuple[Extent, Extent]], Counter[str]]:
    """Returns the rows that can be trained on, as found by encoding every row with one small picture.

    Returns:
        (rows with both responses trained on by the host, their extents, {reason: number of rows left out}).
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
            supervised = [(item["labels"] != IGNORE_INDEX).nonzero() for item in items]
            if all(len(places) for places in supervised):
                kept.append(row)
                chosen, rejected = (
                    Extent(len(item["labels"]), int(places[0, 0]))
                    for item, places in zip(items, supervised, strict=True)
                )
                extents.append((chosen, rejected))
            else:
                left_out[MASKED] += 1
    return kept, extents, left_out


class _SeesOnce(Proxy):
    """Wraps the host's image processor: processes the first picture and returns that result for all others."""

    def __init__(self, base: Any):
        self.base, self._seen = base, None

    def preprocess(self, *args, **kwargs) -> Any:
        if self._seen is None:
            self._seen = self.base.preprocess(*args, **kwargs)
        return self._seen

    def __call__(self, *args, **kwargs) -> Any:
        return self.base(*args, **kwargs)


def self_test(dataset: PreferenceDataset, tokenizer: Any, template: ChatTemplate) -> None:
    """Checks that the unmasked labels of the first pairs decode to the responses.

    Args:
        dataset: the pairs.
        tokenizer: the run's tokenizer.
        template: the run's chat template.

    Raises:
        SelfTestError: they do not; the error names row, tokenizer and the decoded text.
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
