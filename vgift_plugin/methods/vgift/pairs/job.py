"""`vgift pairs`: a file of matched points for many pairs of photographs, by any number of processes, resumable.

Everything on the way lies in the folder `OUTPUT.parts`:
  settings.json     what the run was begun with; a resume with something else is refused
  features-*.npz    global features of 64 photographs each     } only where no list of pairs is given
  neighbours-*.npy  the most similar photographs of 2,048      }
  list.json         the pairs, numbered by their place
  rank-R.jsonl      one line for each pair that rank R has finished, kept or rejected
A file but a journal appears whole or not at all, and who comes second leaves it as it is. Journals are only appended
to. So a process may be killed at any time, ranks may run one after another or side by side on several machines that
share the folder, and their number may change from one start to the next.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np

from ....data.arguments import option
from ....data.files import publish, write_whole
from ....data.journal import Journal, read_journals, require_same
from ....data.photos import from_folder, open_photo
from ....data.seeding import generator
from ....errors import ConfigError, UnsuitableImage
from .features import Encoder, Photo, nearest
from .listing import SHOWN, Pair, read_pairs
from .masks import place_labels, read_labels, shared_object
from .matching import Rules, choose

logger = logging.getLogger(__name__)

PAIR = "pair"  # what journals call the number of a pair
PHOTOS_IN_BLOCK = 64
ROWS_IN_BLOCK = 2048
PATIENCE_S = 60.0  # without a new block from the others, before a rank makes theirs as well


def _digest(what: list) -> str:
    return f"{len(what):,} ({blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()})"


@dataclass
class Job:
    """One rank's work: where, who, with what."""

    parts: Path
    image_folder: str
    masks: str | None
    encoder: Encoder
    rules: Rules
    seed: int
    batch_size: int
    workers: int
    rank: int
    world: int

    def load(self, name: str) -> Photo | str:
        """Returns a prepared photograph with its labels, or why there is none."""
        try:
            photo = self.encoder.prepare(open_photo(os.path.join(self.image_folder, name)))
            return photo if self.masks is None else place_labels(photo, read_labels(self.masks, name))
        except UnsuitableImage as unsuitable:
            return unsuitable.reason

    def load_all(self, names: list[str]) -> dict[str, Photo | str]:
        """Returns `load` of every name."""
        with ThreadPoolExecutor(self.workers) as pool:
            return dict(zip(names, pool.map(self.load, names), strict=True))

    def progress(self, total: int, what: str) -> Any:
        """Returns a progress bar, shown by one rank of each machine."""
        from tqdm import tqdm

        return tqdm(total=total, desc=what, unit="", disable=int(os.environ.get("LOCAL_RANK", 0)) != 0)

    def share(self, stage: str, suffix: str, count: int, make: Callable[[int], bytes]) -> list[Path]:
        """Makes the files of a stage together with the other ranks; returns them all, in order.

        Block b is made by rank b % world. Then the others are waited for, and where nothing new comes of them for a
        while (not started yet, or dead) their blocks are made as well: nobody waits for ever, and what is made
        twice is equal.
        """
        paths = [self.parts / f"{stage}-{block:06d}.{suffix}" for block in range(count)]
        mine = range(self.rank, count, self.world)
        with self.progress(len(mine), stage) as bar:
            for block in mine:
                if not paths[block].exists():
                    publish(paths[block], make(block))
                bar.update()
        missing, before, since = list(range(count)), count + 1, time.monotonic()
        while missing := [block for block in missing if not paths[block].exists()]:
            if len(missing) < before:
                if before > count:  # once
                    ranks = sorted({block % self.world for block in missing})
                    logger.info("%s: waiting for %d of %d blocks, of ranks %s", stage, len(missing), count, ranks)
                before, since = len(missing), time.monotonic()
            elif time.monotonic() - since < PATIENCE_S:
                time.sleep(0.2)
            else:
                block = missing[self.rank * len(missing) // self.world]
                logger.warning("%s: rank %d is late, its block %d is made here", stage, block % self.world, block)
                publish(paths[block], make(block))
                before = len(missing) - 1  # what was made here is no sign of life from the others
        return paths

    def features(self, names: list[str]) -> bytes:
        """Returns the global features of photographs as a .npz: float16 (n, d), zeros where there are none, and why."""
        loaded = self.load_all(names)
        rows = [k for k, name in enumerate(names) if isinstance(loaded[name], Photo)]
        result = np.zeros((len(names), self.encoder.network.config.hidden_size), np.float16)
        for k, (_, whole) in zip(rows, self.encoder.encode([loaded[names[k]] for k in rows]), strict=True):
            result[k] = whole
        reasons = np.array([reason for reason in loaded.values() if isinstance(reason, str)], dtype=str)
        file = io.BytesIO()
        np.savez(file, features=result, reasons=reasons)
        return file.getvalue()

    def neighbours(self, names: list[str], max_similarity: float) -> tuple[list[Pair], dict[str, int]]:
        """Returns every photograph with its most similar other one, each pair once; and why photographs have none."""
        import torch

        blocks = [names[start : start + PHOTOS_IN_BLOCK] for start in range(0, len(names), PHOTOS_IN_BLOCK)]
        stored = [
            np.load(path) for path in self.share("features", "npz", len(blocks), lambda b: self.features(blocks[b]))
        ]
        reasons = Counter(reason for block in stored for reason in block["reasons"].tolist())
        features = torch.from_numpy(np.concatenate([block["features"] for block in stored])).to(self.encoder.device)

        def make(block: int) -> bytes:
            start, file = block * ROWS_IN_BLOCK, io.BytesIO()
            np.save(file, nearest(features, start, min(start + ROWS_IN_BLOCK, len(names)), max_similarity))
            return file.getvalue()

        paths = self.share("neighbours", "npy", -(-len(names) // ROWS_IN_BLOCK), make)
        where = np.concatenate([np.load(path) for path in paths]).tolist()
        reasons["no neighbour"] = where.count(-1) - sum(reasons.values())
        pairs = [(names[i], names[j]) for i, j in enumerate(where) if j >= 0 and not (where[j] == i and j < i)]
        return pairs, {reason: count for reason, count in reasons.most_common() if count}

    def match(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        """Returns {"row": ...} or {"rejected": reason} for every pair; a photograph's features are computed once."""
        loaded = self.load_all(list(dict.fromkeys(name for pair in pairs for name in pair)))
        usable = [name for name, photo in loaded.items() if isinstance(photo, Photo)]
        features = dict(zip(usable, self.encoder.encode([loaded[name] for name in usable]), strict=True))
        result: list[dict[str, Any]] = []
        for pair in pairs:
            photos = [loaded[name] for name in pair]
            try:
                if pair[0] == pair[1]:
                    raise UnsuitableImage("same photograph")
                for photo in photos:
                    if isinstance(photo, str):
                        raise UnsuitableImage(photo)
                label, *objects = shared_object(*photos)
                grids = tuple(photo.grid for photo in photos)
                rng = generator(self.seed, "pairs", *pair)
                found = choose(tuple(features[name][0] for name in pair), tuple(objects), grids, self.rules, rng)
            except UnsuitableImage as unsuitable:
                result.append({"rejected": unsuitable.reason})
                continue
            row = {"id": blake2b(json.dumps(pair).encode(), digest_size=8).hexdigest()}
            row |= {"image1": pair[0], "image2": pair[1], "wh1": grids[0].wh, "wh2": grids[1].wh}
            result.append({"row": row | found | {"label": label}})
        return result

    def run(self, pairs: list[Pair]) -> None:
        """Finishes this rank's share of the pairs.

        Pairs are dealt out in blocks of `batch_size`, and a block is computed whole even where a part of it is done, so
        that what goes through the model together never depends on the number of ranks or on interruptions.
        """
        journal = Journal(self.parts / f"rank-{self.rank}.jsonl")
        try:
            done = read_journals(self.parts, PAIR).keys()
            blocks = [
                range(start, min(start + self.batch_size, len(pairs)))
                for start in range(0, len(pairs), self.batch_size)
            ]
            mine = [block for block in blocks[self.rank :: self.world] if not done >= set(block)]
            if done:
                logger.info("%d of %d pairs are done already", len(done), len(pairs))
            with self.progress(sum(map(len, mine)), "pairs") as bar:
                for block in mine:
                    results = self.match([pairs[number] for number in block])
                    entries = ({PAIR: number, **entry} for number, entry in zip(block, results, strict=True))
                    journal.append(json.dumps(entry) for entry in entries if entry[PAIR] not in done)
                    bar.update(len(block))
        finally:
            journal.close()


def merge_pairs(output: str) -> str:
    """Writes `output` and `OUTPUT.report.json` from the journals; returns one line of statistics.

    The rows stand in the order of the pairs, so the file is the same byte for byte however the work was shared out.

    Raises:
        ConfigError: pairs are missing, or nothing was begun.
    """
    parts = Path(f"{output}.parts")
    if not (parts / "list.json").exists():
        raise ConfigError(f"{parts} holds no list of pairs yet: run `vgift pairs` without --merge first")
    listed = json.loads((parts / "list.json").read_text())
    done, total = read_journals(parts, PAIR), len(listed["pairs"])
    missing = [number for number in range(total) if number not in done]
    if missing:
        some = ", ".join(" + ".join(listed["pairs"][number]) for number in missing[:SHOWN])
        raise ConfigError(
            f"{len(missing):,} of {total:,} pairs are not done: {some}{', …' if len(missing) > SHOWN else ''}\n"
            "Run `vgift pairs` with the same settings again, with any number of ranks; it does only those."
        )
    rows = [done[number]["row"] for number in range(total) if "row" in done[number]]
    rejected = dict(Counter(done[number].get("rejected") for number in range(total)).most_common())
    rejected.pop(None, None)
    report = {"pairs": total, "kept": len(rows), "rejected": rejected, "photographs_passed_over": listed["passed_over"]}
    report["settings"] = json.loads((parts / "settings.json").read_text())
    write_whole(Path(f"{output}.report.json"), (json.dumps(report, indent=1) + "\n").encode())
    write_whole(Path(output), "".join(json.dumps(row) + "\n" for row in rows).encode())
    line = f"{output}: kept {len(rows):,} of {total:,} pairs ({len(rows) / total:.1%})"
    for what, counts in (("rejected", rejected), ("photographs without a pair", listed["passed_over"])):
        if counts:
            line += f"; {what}: " + ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return line


def _begin(parts: Path, settings: dict[str, Any]) -> None:
    """Records the settings, or refuses those that differ from what was begun."""
    path = parts / "settings.json"
    publish(path, json.dumps(settings, indent=1).encode())
    cure = "Give those it was begun with, or another output, or remove output and folder to begin anew."
    require_same(json.loads(path.read_text()), settings, parts, cure)


def _check(mistakes: dict[str, bool]) -> None:
    wrong = [sentence for sentence, bad in mistakes.items() if bad]
    if wrong:
        raise ConfigError.of(wrong)


def make_pairs(
    image_folder: str | None,
    output: str,
    *,
    pairs: str | None = None,
    masks: str | None = None,
    model: str = "facebook/dinov2-base",
    seed: int = 0,
    distractors: int = 6,
    min_distance: float = 0.15,
    min_similarity: float = 0.4,
    min_margin: float = 0.05,
    border: float = 0.05,
    max_global_similarity: float = 0.98,
    resolution: int = 224,
    batch_size: int = 16,
    workers: int = 4,
    merge: bool = False,
) -> str:
    """Matches points of pairs of photographs; returns one line that says how it went.

    Each line of `output` is a kept pair: {"id", "image1", "image2", "wh1": [w, h], "wh2", "query": [x, y], "match",
    "distractors": [[x, y], ...], "similarity", "margin", "label"}. Points are pixels of the upright photograph at its
    own size, the query in the first, match and distractors in the second; see `matching.choose` for what is kept.
    Under torchrun (RANK, WORLD_SIZE, LOCAL_RANK) the ranks share the work and the last one to finish writes the file.
    It is the same for any number of ranks and interruptions on one kind of machine with one version of torch and
    transformers; on a CPU also for any batch size.

    Args:
        image_folder: the photographs, searched recursively; what the names in `pairs` are relative to.
        output: the file to write, JSON lines; `OUTPUT.parts` and `OUTPUT.report.json` appear beside it.
        pairs: a list of pairs (see `read_pairs`); without it each photograph is paired with its most similar other one.
        masks: label maps of the photographs (see `matching.read_labels`, `matching.place_labels`); without them the
            object is the whole photograph.
        model: a DINOv2, by name or folder.
        seed: of queries and distractors; a pair's depend on it and on the two names alone.
        distractors: wrong candidates stored for each pair at most, 2 or more.
        min_distance: least distance between candidates, as a share of the second photograph's shorter side.
        min_similarity: least cosine similarity of query and match.
        min_margin: how much less similar everything farther than `min_distance` from the match must be.
        border: least distance of points from the edge, as a share of the shorter side.
        max_global_similarity: photographs more similar than this are near-duplicates and no pair (without a list).
        resolution: shorter side of what the model sees, in pixels.
        batch_size: pairs at once; also photographs at once in the model, on cuda.
        workers: threads that open photographs.
        merge: only write `output` from what is done; nothing else is looked at.

    Raises:
        ConfigError: a setting, the list, the model or a folder is not usable; a resume with other settings; with
            `merge`, pairs are missing.
    """
    if merge:
        return merge_pairs(output)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    _check(
        {
            "--image_folder is missing": image_folder is None,
            f"--image_folder {image_folder} is not a folder": image_folder is not None
            and not os.path.isdir(image_folder),
            f"--masks {masks} is not a folder": masks is not None and not os.path.isdir(masks),
            f"--distractors {distractors}: at least 2": distractors < 2,
            f"--min_distance {min_distance}: above 0, below 1": not 0 < min_distance < 1,
            f"--min_similarity {min_similarity}: -1 to 1": not -1 <= min_similarity <= 1,
            f"--min_margin {min_margin}: 0 to 2": not 0 <= min_margin <= 2,
            f"--border {border}: 0 or more, below 0.5": not 0 <= border < 0.5,
            f"--max_global_similarity {max_global_similarity}: -1 to 1": not -1 <= max_global_similarity <= 1,
            f"--resolution {resolution}: 28 to 4096": not 28 <= resolution <= 4096,
            f"--batch_size {batch_size}: at least 1": batch_size < 1,
            f"--workers {workers}: at least 1": workers < 1,
            f"RANK {rank} is not below WORLD_SIZE {world}": not 0 <= rank < world,
        }
    )
    rules = Rules(distractors, min_distance, min_similarity, min_margin, border)
    settings = {"model": model, "resolution": resolution, "seed": seed, "masks": masks, **asdict(rules)}
    if pairs is not None:
        listed = read_pairs(pairs)
        if not any(os.path.exists(os.path.join(image_folder, name)) for pair in listed for name in pair):
            raise ConfigError(
                f"--image_folder {image_folder} holds none of the photographs of {pairs}: {listed[0][0]}, …"
            )
        settings["pairs"] = _digest(listed)
    else:
        source = from_folder(image_folder)
        names = [source.name(k) for k in range(len(source))]
        settings |= {"photographs": _digest(names), "max_global_similarity": max_global_similarity}
    encoder = Encoder(model, resolution, batch_size, int(os.environ.get("LOCAL_RANK", 0)))
    settings["precision"] = f"{encoder.precision} on {encoder.device.type}"
    parts = Path(f"{output}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"-o {output}: {err}") from None
    _begin(parts, settings)
    job = Job(parts, image_folder, masks, encoder, rules, seed, batch_size, workers, rank, world)
    if not (parts / "list.json").exists():
        chosen, passed_over = (listed, {}) if pairs is not None else job.neighbours(names, max_global_similarity)
        if not chosen:
            raise ConfigError(f"{image_folder}: no photograph has a neighbour ({passed_over}); see {parts}")
        publish(parts / "list.json", json.dumps({"pairs": chosen, "passed_over": passed_over}).encode())
    job.run([tuple(pair) for pair in json.loads((parts / "list.json").read_text())["pairs"]])
    return _conclude(output, parts, rank, world)


def _conclude(output: str, parts: Path, rank: int, world: int) -> str:
    """Returns the merged file's line where all is done, else how much is left for the other ranks."""
    total, done = len(json.loads((parts / "list.json").read_text())["pairs"]), len(read_journals(parts, PAIR))
    if done == total:
        return merge_pairs(output)
    return f"rank {rank} of {world} is done; {total - done:,} of {total:,} pairs are left for the other ranks"


@dataclass(frozen=True, kw_only=True)
class MatchPairs:
    """Match points of different photographs by DINOv2 features, for --ssl_pairs."""

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
        """See `make_pairs`."""
        return make_pairs(**{one.name: getattr(self, one.name) for one in fields(self)})
