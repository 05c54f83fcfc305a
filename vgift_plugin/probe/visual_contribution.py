"""How much does a data set need its pictures? Likelihood of the answers with the right, a blank and a wrong picture.

V-GIFT (arXiv 2604.12966) raises this question for LLaVA's instruction data; L2T calls log p(A|V,I) − log p(A|noise,I)
the visual contribution to an answer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data.photo import open_photo
from ..data.records import picture_name, top_folder, why_not_one_picture
from ..data.seeding import permute
from ..errors import ConfigError, UnsuitableImage
from ..hosts.checkpoint import Checkpoint
from ..report.intervals import mean_interval
from ..report.page import aligned
from .task_accuracy import FOLDERS_SHOWN, GREY

RIGHT, BLANK, WRONG = PICTURES = ("right", "blank", "wrong")
AGAINST = (BLANK, WRONG)
QUANTILES = (5, 25, 50, 75, 95)


def candidates(records: Sequence[dict]) -> tuple[list[int], dict[str, int]]:
    """Returns the positions of the records with one picture and one `<image>`, and {reason: number of others}."""
    positions: list[int] = []
    left_out: Counter[str] = Counter()
    for position, record in enumerate(records):
        if (reason := why_not_one_picture(record)) is None:
            positions.append(position)
        else:
            left_out[reason] += 1
    return positions, dict(left_out)


def choose(positions: Sequence[int], n: int, seed: int) -> list[int]:
    """Returns the first n positions in an order given by the seed."""
    size = len(positions)
    return [positions[permute(k, size, seed, "probe", "records")] for k in range(min(n, size))]


class Measured:
    """The chosen records of a data set.

    Args:
        records: all records.
        chosen: positions of the records to measure, in order.
        image_folder: the folder their pictures are relative to.
        data_path: the file of the records, for errors.

    Raises:
        ConfigError: all have the same picture, so there is no wrong one.
    """

    def __init__(self, records: Sequence[dict], chosen: Sequence[int], image_folder: str, data_path: str):
        self.records, self.chosen, self.image_folder, self.data_path = records, chosen, image_folder, data_path
        if len({picture_name(records[position]) for position in chosen}) < 2:
            raise ConfigError(
                f"--data_path {data_path}: fewer than two different pictures among the {len(chosen):,} chosen records, "
                "so there is no wrong one to show; raise -n"
            )

    def __len__(self) -> int:
        return len(self.chosen)

    def record(self, k: int) -> dict:
        """Returns the k-th chosen record."""
        return self.records[self.chosen[k]]

    def name(self, k: int) -> str:
        """Returns the path of its picture."""
        return picture_name(self.record(k)) or ""

    def open(self, k: int) -> Image.Image:
        """Returns its picture as LLaVA opens it, ignoring EXIF; raises UnsuitableImage if it cannot be read."""
        return open_photo(os.path.join(self.image_folder, self.name(k)), upright=False)

    def wrong(self, k: int) -> tuple[str, Image.Image]:
        """Returns the name and picture of the next chosen record that has a different, readable picture."""
        own = self.name(k)
        for step in range(1, len(self)):
            other = (k + step) % len(self)
            if (name := self.name(other)) != own:
                try:
                    return name, self.open(other)
                except UnsuitableImage:
                    continue
        raise ConfigError(
            f"--image_folder {self.image_folder}: only one of the pictures chosen from {self.data_path} can be "
            "read, so there is no wrong one to show"
        )

    def measure(self, checkpoint: Checkpoint, block: range) -> list[dict[str, Any]]:
        """Returns a JSON-able row for each chosen record of a block.

        It has the mean log p per answer token with the three pictures, or the reason why the record is left out.
        """
        rows, items = [], []
        for k in block:
            record = self.record(k)
            row = {"number": k, "id": record.get("id", self.chosen[k]), "image": picture_name(record)}
            rows.append(row)
            try:
                picture = self.open(k)
            except UnsuitableImage as unsuitable:
                row["left_out"] = unsuitable.reason
                continue
            row["wrong_image"], wrong = self.wrong(k)
            try:
                three = {RIGHT: picture, BLANK: GREY, WRONG: wrong}
                encoded = {kind: checkpoint.encode(record, image) for kind, image in three.items()}
            except Exception as err:  # from the host's own preprocessing, where training would stop
                row["left_out"] = f"LLaVA cannot read it: {type(err).__name__}: {err}"
                continue
            if checkpoint.answer_length(encoded[RIGHT]):
                items.append((row, encoded))
            else:
                row["left_out"] = "the template masks every label"
        for kind in PICTURES if items else ():
            for (row, _), found in zip(items, checkpoint.log_likelihood([one[kind] for _, one in items]), strict=True):
                row[kind] = found.mean
                row["tokens"] = min(found.tokens, row.get("tokens", found.tokens))
        for row, _ in items:
            if not row["tokens"]:
                for name in (*PICTURES, "tokens", "wrong_image"):
                    del row[name]
                row["left_out"] = "no answer within the model's context"
        return rows


def gains(row: dict[str, Any]) -> dict[str, float]:
    """Returns the gain in mean log p per answer token of the right picture over each other one, in nats."""
    return {kind: row[RIGHT] - row[kind] for kind in AGAINST}


def tabulate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns statistics of measured records, for all (`all`) and by the first folder of their pictures.

    Returns:
        {name: {"n", "right": mean log p per token, "blank": stats, "wrong": stats}} with stats of the gains against
        that picture: mean, low, high (95 % interval with records of one picture treated as correlated; None if all have
        the same), quantiles {"5": ...}, and `needless`, the share of gains of at most 0.
    """
    folders: dict[str, list[dict]] = {}
    for row in rows:
        folders.setdefault(top_folder(row["image"]), []).append(row)
    parts = {"all": list(rows), **({name: folders[name] for name in sorted(folders)} if len(folders) > 1 else {})}
    return {
        name: {"n": len(part), RIGHT: float(np.mean([row[RIGHT] for row in part])), **_stats(part)}
        for name, part in parts.items()
    }


def _stats(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    result = {}
    for kind in AGAINST:
        values = np.array([gains(row)[kind] for row in rows])
        low, high = mean_interval(values, [row["image"] for row in rows])
        quantiles = dict(zip(map(str, QUANTILES), np.percentile(values, QUANTILES).tolist(), strict=True))
        result[kind] = {"mean": float(values.mean()), "low": low, "high": high, "quantiles": quantiles}
        result[kind]["needless"] = float((values <= 0).mean())
    return result


def table(results: dict[str, Any]) -> str:
    """Returns the results as a text table, with gains in nats per token."""
    lines = [("pictures", "against", "records", "mean", "95 % interval", *(f"{q} %" for q in QUANTILES), "at most 0")]
    shown = sorted(results.items(), key=lambda item: (item[0] != "all", -item[1]["n"]))
    for name, one in shown[: FOLDERS_SHOWN + 1]:
        for kind in AGAINST:
            stats = one[kind]
            interval = "–" if stats["low"] is None else f"{_nats(stats['low'])} to {_nats(stats['high'])}"
            quantiles = map(_nats, stats["quantiles"].values())
            told = (name or "(no folder)", kind, f"{one['n']:,}", _nats(stats["mean"]), interval, *quantiles)
            lines.append((*told, f"{stats['needless']:.1%}"))
    more = len(shown) - FOLDERS_SHOWN - 1
    return aligned(lines, left=2) + (f"\n… and {more} more folders" if more > 0 else "")


def _nats(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no -0.000
