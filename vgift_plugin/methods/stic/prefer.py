"""`vgift stic prefer`: writes a better and a worse description by the model itself for each unlabelled photograph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...data.arguments import option
from ...data.jobs import FileJob
from ...data.photo import open_photo
from ...data.photos import first_readable, from_folder
from ...data.seeding import generator, permute
from ...errors import ConfigError, UnsuitableImage
from ...hosts.checkpoint import Checkpoint, Reply
from . import corruption
from .asking import Asking, listed
from .preferences import (
    BRANCHES,
    CUT_OFF,
    EMPTY,
    EQUAL,
    JITTER,
    KIND,
    LOWRES,
    MARKUP,
    PROMPT,
    VERSION,
    usable,
)
from .prompts import MISLEADING, NEUTRAL, PREFERRED, with_image

SHARES = {PROMPT: 0.5, LOWRES: 0.25, JITTER: 0.25}  # STIC, algorithm 1
SEEDS = 2**63 - 1


@dataclass(frozen=True)
class Plan:
    """The questions about one photograph; a function of seed and name only.

    Attributes:
        branch: how the second description is made worse.
        neutral: index of the neutral prompt.
        misleading: index of the misleading prompt; None except in the branch `prompt`.
        corruption: see `corruption.draw`; None in the branch `prompt`.
        seeds: seeds for sampling the two replies.
    """

    branch: str
    neutral: int
    misleading: int | None
    corruption: dict[str, Any] | None
    seeds: tuple[int, int]

    @classmethod
    def of(cls, name: str, seed: int) -> Plan:
        """Returns the plan drawn for a photograph."""
        rng = generator(seed, "stic", name)
        branch = BRANCHES[int(np.searchsorted(np.cumsum([SHARES[one] for one in BRANCHES]), rng.random(), "right"))]
        neutral, (first, second) = int(rng.integers(len(NEUTRAL))), rng.integers(SEEDS, size=2).tolist()
        seeds = first, second
        if branch == PROMPT:
            return cls(branch, neutral, int(rng.integers(len(MISLEADING))), None, seeds)
        return cls(branch, neutral, None, corruption.draw(branch, rng), seeds)

    def worse(self, picture: Image.Image) -> tuple[Image.Image, str]:
        """Returns the picture and the question used to get the worse description."""
        if self.corruption is None:
            assert self.misleading is not None
            return picture, MISLEADING[self.misleading]
        return corruption.corrupt(picture, self.corruption), NEUTRAL[self.neutral]


@dataclass(frozen=True, kw_only=True)
class Prefer(Asking):
    """Have the model describe photographs well and badly, as preference pairs for --preference_data.

    The photographs are the first n in a seeded order that can be read and are not too small. Under torchrun (RANK,
    WORLD_SIZE, LOCAL_RANK) the ranks share them, and the last one to finish writes the file (see `preferences`). On one
    kind of machine the file is the same for any number of ranks and interruptions; on a CPU its pairs are also the same
    for any batch size.
    """

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift stic prefer --model_path CKPT --image_folder DIR -n 6000 -o prefs.jsonl\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between GPUs."
    )

    n: int = option(6000, "photographs; all, where there are fewer", short="-n", metavar="N")

    def run(self) -> str:
        """Returns a summary for the terminal.

        Raises:
            ConfigError: a setting, a path or the checkpoint is not usable, or it was begun with other settings.
        """
        found, device, load = self.find()
        if why := found.host.refused.get("preference_data"):
            raise ConfigError(f"--model_path {self.model_path}: a {found.host.name}; {why}")
        source = from_folder(self.image_folder)
        worked_on = {"photographs": source.fingerprint()}
        settings = self.settings(found, device, worked_on, (*PREFERRED, *MISLEADING, *NEUTRAL))

        def choose() -> tuple[list[str], dict[str, str]]:
            order = (permute(k, len(source), self.seed, "stic", "photographs") for k in range(len(source)))
            named = ((source.name(index), source.path(index)) for index in order)
            chosen, passed_over = first_readable(named, self.n, corruption.SHORTER_PX + 1)
            if not chosen:
                raise ConfigError(
                    f"--image_folder {self.image_folder}: no picture can be used{listed('found', passed_over)}"
                )
            return chosen, passed_over

        with FileJob(self.output, settings) as job:
            names, passed_over = job.agree("list", choose)

            def compute(block: range) -> list[dict[str, Any]]:
                return ask(load(), self.image_folder, [names[k] for k in block], self.sampling)

            items = job.complete("pairs", len(names), compute, block_size=self.batch_size)
            if items is None:
                return job.left("pairs", len(names))
            rows = [{name: value for name, value in item.items() if name != "number"} for item in items]
            header = {"vgift": KIND, "version": VERSION, "template": found.template, "model": self.model_path}
            told = report(rows, passed_over)
            lines = ({**header, "settings": settings}, *rows)
            job.write("".join(json.dumps(line) + "\n" for line in lines), told)
        return f"{self.output}: {summary(told, self.n)}\ntemplate {found.template}: train with the same one (--version)"


def ask(checkpoint: Checkpoint, folder: str, names: Sequence[str], sampling: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row of a preference file for each photograph."""
    plans = [Plan.of(name, sampling["seed"]) for name in names]
    pictures = [open_chosen(folder, name) for name in names]
    better = [checkpoint.item(picture, PREFERRED[0]) for picture in pictures]
    worse = [checkpoint.item(*plan.worse(picture)) for plan, picture in zip(plans, pictures, strict=True)]
    limits = sampling["max_new_tokens"], sampling["temperature"]
    chosen, rejected = (
        checkpoint.replies(items, *limits, [plan.seeds[k] for plan in plans]) for k, items in enumerate((better, worse))
    )
    return [
        {
            "id": name,
            "image": name,
            "prompt": with_image(NEUTRAL[plan.neutral]),
            "chosen": good.text,
            "rejected": bad.text,
            "branch": plan.branch,
            "corruption": plan.corruption,
            "prompt_ids": {"neutral": plan.neutral, "preferred": 0, "misleading": plan.misleading},
            "sampling": sampling,
            "cut_off": [not good.ended, not bad.ended],
            "degenerate": degenerate(checkpoint, good, bad),
        }
        for name, plan, good, bad in zip(names, plans, chosen, rejected, strict=True)
    ]


def open_chosen(folder: str, name: str) -> Image.Image:
    """Returns a picture as training sees it, ignoring EXIF; raises ConfigError if it can no longer be read."""
    try:
        return open_photo(os.path.join(folder, name), upright=False)
    except UnsuitableImage as unsuitable:
        raise ConfigError(f"{folder}/{name} could be read when it was chosen, now: {unsuitable.reason}") from None


def degenerate(checkpoint: Checkpoint, *replies: Reply) -> str | None:
    """Returns why two replies cannot be trained on, or why one cannot be a turn of a conversation; None if they can."""
    texts = [" ".join(reply.text.split()) for reply in replies]
    if not all(texts):
        return EMPTY
    if len(set(texts)) < len(texts):
        return EQUAL
    if not all(reply.ended for reply in replies):
        return CUT_OFF
    return MARKUP if any(checkpoint.marker_in(text) for text in texts) else None


def report(rows: Sequence[dict[str, Any]], passed_over: dict[str, str]) -> dict[str, Any]:
    """Returns statistics of the rows.

    Returns:
        {"rows", "usable", "branches": {branch: {"rows", "usable", "words": [mean number of words of the usable chosen
        ones, and of the rejected ones], or null}}, "degenerate": {id: reason}, "passed_over": {photograph: reason}}
    """
    branches = {}
    for branch in BRANCHES:
        own = [row for row in rows if row["branch"] == branch]
        good = usable(own)
        words = [float(np.mean([len(row[side].split()) for row in good])) for side in ("chosen", "rejected") if good]
        branches[branch] = {"rows": len(own), "usable": len(good), "words": words or None}
    marked = {row["id"]: row["degenerate"] for row in rows if row["degenerate"] is not None}
    result = {"rows": len(rows), "usable": len(rows) - len(marked), "branches": branches}
    return {**result, "degenerate": marked, "passed_over": passed_over}


def summary(told: dict[str, Any], n: int) -> str:
    """Returns a report for the terminal."""
    few = f" (of {n:,} asked for: there are no more photographs)" if told["rows"] < n else ""
    lines = [f"{told['rows']:,} pairs{few}, {told['usable']:,} of them to be learned from"]
    for branch, one in told["branches"].items():
        words = "" if one["words"] is None else "; {:.0f} words chosen, {:.0f} rejected".format(*one["words"])
        lines.append(f"  {branch}: {one['rows']:,}, usable {one['usable']:,}{words}")
    marked = told["degenerate"]
    told_of = listed("kept out of training", marked) + cut_off_hint(marked.values(), told["rows"])
    return "\n".join(lines) + told_of + listed("photographs passed over", told["passed_over"])


def cut_off_hint(reasons: Iterable[str], total: int) -> str:
    """Returns a line of advice if more than a tenth of all texts were cut off, else an empty string."""
    count = list(reasons).count(CUT_OFF)
    return f"\n{count:,} were cut off; raise --max_new_tokens" if count > total / 10 else ""
