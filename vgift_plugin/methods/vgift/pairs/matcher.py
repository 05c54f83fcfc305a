"""Computes features of photographs, and matched points of pairs of photographs, given by name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from ....data.photo import open_photo
from ....data.seeding import generator
from ....errors import UnsuitableImage
from .features import Encoder, Photo
from .listing import Pair
from .masks import place_labels, read_labels, shared_object
from .matching import Rules, choose


@dataclass(frozen=True)
class Matcher:
    """Computes features of photographs and matches pairs of them; see `job.MatchPairs` for the attributes."""

    image_folder: str
    masks: str | None
    encoder: Encoder
    rules: Rules
    seed: int
    workers: int

    def load(self, name: str) -> Photo | str:
        """Returns a prepared photograph with its labels, or the reason why it cannot be used."""
        try:
            photo = self.encoder.prepare(open_photo(os.path.join(self.image_folder, name)))
            return photo if self.masks is None else place_labels(photo, read_labels(self.masks, name))
        except UnsuitableImage as unsuitable:
            return unsuitable.reason

    def load_all(self, names: Sequence[str]) -> dict[str, Photo | str]:
        """Returns {name: result of `load`}."""
        with ThreadPoolExecutor(self.workers) as pool:
            return dict(zip(names, pool.map(self.load, names), strict=True))

    def features(self, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Returns the global features of photographs, float16 (n, d), zeros for unusable ones, and the reasons."""
        loaded = self.load_all(names)
        usable = {k: photo for k, name in enumerate(names) if isinstance(photo := loaded[name], Photo)}
        result = np.zeros((len(names), self.encoder.network.config.hidden_size), np.float16)
        for k, (_, whole) in zip(usable, self.encoder.encode(list(usable.values())), strict=True):
            result[k] = whole
        return result, [reason for reason in loaded.values() if isinstance(reason, str)]

    def match(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """Returns {"row": ...} or {"rejected": reason} for every pair; a photograph's features are computed once."""
        loaded = self.load_all(list(dict.fromkeys(name for pair in pairs for name in pair)))
        usable = {name: photo for name, photo in loaded.items() if isinstance(photo, Photo)}
        features = dict(zip(usable, self.encoder.encode(list(usable.values())), strict=True))
        result: list[dict[str, Any]] = []
        for pair in pairs:
            left, right = (loaded[name] for name in pair)
            try:
                if pair[0] == pair[1]:
                    raise UnsuitableImage("same photograph")
                if isinstance(left, str):
                    raise UnsuitableImage(left)
                if isinstance(right, str):
                    raise UnsuitableImage(right)
                label, *objects = shared_object(left, right)
                rng = generator(self.seed, "pairs", *pair)
                patches = features[pair[0]][0], features[pair[1]][0]
                found = choose(patches, (objects[0], objects[1]), (left.grid, right.grid), self.rules, rng)
            except UnsuitableImage as unsuitable:
                result.append({"rejected": unsuitable.reason})
                continue
            row: dict[str, Any] = {"id": blake2b(json.dumps(pair).encode(), digest_size=8).hexdigest()}
            row |= {"image1": pair[0], "image2": pair[1], "wh1": left.grid.wh, "wh2": right.grid.wh}
            result.append({"row": row | found | {"label": label}})
        return result
