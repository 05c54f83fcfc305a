"""`vgift pairs`: writes matched points of many pairs of photographs, with any number of processes, resumable.

The job has up to two parts (see `data.jobs`): `features` of all photographs, which determine the pairs if no list is
given, and `pairs`. Features are stored in `OUTPUT.parts/features-*.npy`, 64 photographs per file.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Optional

import numpy as np

from ....data.arguments import option
from ....data.files import write_files
from ....data.jobs import FileJob, Ranks, progress
from ....data.photos import from_folder
from ....data.rows import require_no_links_out
from ....errors import ConfigError
from .features import Encoder, nearest
from .listing import Pair, read_pairs
from .matcher import Matcher
from .matching import Rules

PHOTOS_IN_BLOCK = 64
ROWS_IN_BLOCK = 2048


def _digest(what: list) -> str:
    return f"{len(what):,} ({blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()})"


def neighbours(
    job: FileJob, matcher: Matcher, names: Sequence[str], max_similarity: float
) -> tuple[list[Pair], dict[str, int]]:
    """Returns each photograph paired with its most similar other one, without repetition, and {reason: count} of
    photographs without a pair."""
    import torch

    def compute(block: range) -> list[dict[str, Any]]:
        start, file = block.start * PHOTOS_IN_BLOCK, io.BytesIO()
        features, reasons = matcher.features(names[start : start + PHOTOS_IN_BLOCK])
        np.save(file, features)
        name = f"features-{block.start:06d}.npy"
        return [{"reasons": reasons, "files": write_files(job.where, [(name, file.getvalue())], job.scratch)}]

    blocks = list(job.complete("features", -(-len(names) // PHOTOS_IN_BLOCK), compute, wait=True) or ())
    reasons = Counter(reason for block in blocks for reason in block["reasons"])
    stored = [np.load(job.where / name) for block in blocks for name in block["files"]]
    features = torch.from_numpy(np.concatenate(stored)).to(matcher.encoder.device)
    found = []
    with progress(len(names), "neighbours") as bar:
        for start in range(0, len(names), ROWS_IN_BLOCK):
            found.append(nearest(features, start, min(start + ROWS_IN_BLOCK, len(names)), max_similarity))
            bar.update(len(found[-1]))
    where = np.concatenate(found).tolist()
    reasons["no neighbour"] = where.count(-1) - sum(reasons.values())
    pairs = [(names[i], names[j]) for i, j in enumerate(where) if j >= 0 and not (where[j] == i and j < i)]
    return pairs, {reason: count for reason, count in reasons.most_common() if count}


def _write(job: FileJob, items: Iterable[dict[str, Any]], passed_over: dict[str, int]) -> str:
    """Writes `output`, with rows in the order of the pairs, and `OUTPUT.report.json`; returns a line of statistics."""
    rows: list[str] = []
    reasons: Counter[str] = Counter()
    total = 0
    for item in items:
        total += 1
        if "row" in item:
            rows.append(json.dumps(item["row"]) + "\n")
        else:
            reasons[item["rejected"]] += 1
    rejected = dict(reasons.most_common())
    report = {"pairs": total, "kept": len(rows), "rejected": rejected, "photographs_passed_over": passed_over}
    job.write("".join(rows), report)
    line = f"{job.output}: kept {len(rows):,} of {total:,} pairs ({len(rows) / total:.1%})"
    for what, counts in (("rejected", rejected), ("photographs without a pair", passed_over)):
        if counts:
            line += f"; {what}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return line


def _check(mistakes: dict[str, bool]) -> None:
    wrong = [sentence for sentence, bad in mistakes.items() if bad]
    if wrong:
        raise ConfigError.of(wrong)


@dataclass(frozen=True, kw_only=True)
class MatchPairs:
    """Match points of different photographs by DINOv2 features, for --ssl_pairs.

    Each line of `output` is a kept pair: {"id", "image1", "image2", "wh1": [w, h], "wh2", "query": [x, y], "match",
    "distractors": [[x, y], ...], "similarity", "margin", "label"}. Points are pixels of the upright photograph at its
    own size, the query in the first, match and distractors in the second; see `matching.choose` for what is kept.
    Under torchrun (RANK, WORLD_SIZE, LOCAL_RANK) the ranks share the work, and the last one to finish writes the file;
    without a list of pairs each waits until all photographs have their features. The file is the same for any number of
    ranks and interruptions on one kind of machine with one version of torch and transformers; on a CPU also for any
    batch size.
    """

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift pairs --image_folder DIR --model facebook/dinov2-base -o pairs.jsonl\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between machines."
    )

    image_folder: str = option(help="photographs, searched recursively", metavar="DIR")
    output: str = option(help="JSON lines; FILE.parts and FILE.report.json beside it", short="-o", metavar="FILE")
    pairs: Optional[str] = option(
        None, "pairs, one a line, `a.jpg: b.jpg`; default: each photograph with its nearest", metavar="LIST"
    )
    masks: Optional[str] = option(
        None, "label maps x/y.pt or x/y.png for x/y.jpg; default: all of it is the object", metavar="DIR"
    )
    model: str = option("facebook/dinov2-base", "a DINOv2, name or folder", metavar="NAME")
    seed: int = option(0, "of queries and distractors", metavar="N")
    distractors: int = option(6, "wrong candidates stored for a pair", metavar="N")
    min_distance: float = option(0.15, "least distance between candidates, share of the shorter side", metavar="D")
    min_similarity: float = option(0.4, "of query and match, cosine", metavar="S")
    min_margin: float = option(0.05, "what is far from the match is less similar by this", metavar="S")
    border: float = option(0.05, "points keep this share of the shorter side from the edge", metavar="D")
    max_global_similarity: float = option(
        0.98, "photographs more similar than this are near-duplicates, without --pairs", metavar="S"
    )
    resolution: int = option(224, "shorter side for the model", metavar="PX")
    batch_size: int = option(16, "pairs at once", metavar="N")
    workers: int = option(4, "threads that open photographs", metavar="N")

    def run(self) -> str:
        """Returns one line that says how it went.

        Raises:
            ConfigError: a setting, the list, the model or a folder is not usable, or it was begun with other settings.
        """
        _check(
            {
                f"--image_folder {self.image_folder} is not a folder": not os.path.isdir(self.image_folder),
                f"--masks {self.masks} is not a folder": self.masks is not None and not os.path.isdir(self.masks),
                f"--distractors {self.distractors}: 2 to 100": not 2 <= self.distractors <= 100,
                f"--min_distance {self.min_distance}: above 0, below 1": not 0 < self.min_distance < 1,
                f"--min_similarity {self.min_similarity}: -1 to 1": not -1 <= self.min_similarity <= 1,
                f"--min_margin {self.min_margin}: 0 to 2": not 0 <= self.min_margin <= 2,
                f"--border {self.border}: 0 or more, below 0.5": not 0 <= self.border < 0.5,
                f"--max_global_similarity {self.max_global_similarity}: -1 to 1": not -1
                <= self.max_global_similarity
                <= 1,
                f"--resolution {self.resolution}: 28 to 4096": not 28 <= self.resolution <= 4096,
                f"--batch_size {self.batch_size}: at least 1": self.batch_size < 1,
                f"--workers {self.workers}: at least 1": self.workers < 1,
            }
        )
        rules = Rules(self.distractors, self.min_distance, self.min_similarity, self.min_margin, self.border)
        settings = {
            "model": self.model,
            "resolution": self.resolution,
            "seed": self.seed,
            "masks": self.masks,
            **asdict(rules),
        }
        if self.pairs is not None:
            listed = read_pairs(self.pairs)
            if not any(os.path.exists(os.path.join(self.image_folder, name)) for pair in listed for name in pair):
                raise ConfigError(
                    f"--image_folder {self.image_folder} holds none of the photographs of {self.pairs}: "
                    f"{listed[0][0]}, …"
                )
            names_listed = dict.fromkeys(name for pair in listed for name in pair)
            require_no_links_out(f"--pairs {self.pairs}", self.image_folder, names_listed)
            settings["pairs"] = _digest(listed)
        else:
            source = from_folder(self.image_folder)
            names = [source.name(k) for k in range(len(source))]
            settings |= {"photographs": _digest(names), "max_global_similarity": self.max_global_similarity}
        encoder = Encoder(self.model, self.resolution, self.batch_size, Ranks.here().local_rank)
        settings["precision"] = f"{encoder.precision} on {encoder.device.type}"
        matcher = Matcher(self.image_folder, self.masks, encoder, rules, self.seed, self.workers)
        with FileJob(self.output, settings) as job:
            if self.pairs is not None:
                chosen, passed_over = listed, {}
            else:
                chosen, passed_over = job.agree(
                    "list", lambda: neighbours(job, matcher, names, self.max_global_similarity)
                )
                if not chosen:
                    raise ConfigError(
                        f"{self.image_folder}: no photograph has a neighbour ({passed_over}); see {job.where}"
                    )
            items = job.complete(
                "pairs",
                len(chosen),
                lambda block: matcher.match([chosen[k] for k in block]),
                block_size=self.batch_size,
            )
            if items is None:
                return job.left("pairs", len(chosen))
            return _write(job, items, passed_over)
