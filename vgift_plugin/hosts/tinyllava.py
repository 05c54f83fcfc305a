"""TinyLLaVA_Factory: LLaVA's data module, with the chat template and the tokenisation in the dataset's own object."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from .base import ARGUMENTS, Breaks, TextPath
from .llava import OWN_FLAG, LLaVA


class TinyLLaVA(LLaVA):
    """TinyLLaVA_Factory. Its `train()` is not LLaVA's, its dataset words records by `text_preprocess`."""

    name = "TinyLLaVA"
    breaks: Breaks = ()
    packages = ("tinyllava",)
    modules = ("tinyllava.train.train",)
    refused: Mapping[str, str] = {"tune_vision_tower": OWN_FLAG.format("--tune_type_vision_tower full")}

    def missing(self, module: ModuleType) -> list[str]:
        home = getattr(getattr(module, ARGUMENTS, None), "__module__", "")
        if home.startswith("tinyllava."):
            return super().missing(module)
        return [
            f"{ARGUMENTS}: expected that of the package tinyllava, found that of {home!r}",
            *super().missing(module),
        ]

    def text_path(self, dataset: Any, tokenizer: Any, limit: int) -> TextPath:
        return ObjectTextPath(dataset, tokenizer, limit)


class ObjectTextPath(TextPath):
    """The dataset's own `text_preprocess`; see `llava.FunctionsTextPath`."""

    def __init__(self, dataset: Any, tokenizer: Any, limit: int):
        self._text = copy.copy(dataset.text_preprocess)
        self._text.tokenizer = copy.copy(tokenizer)
        self._text.tokenizer.model_max_length = limit

    def __call__(self, record: dict) -> dict[str, Any]:
        """Returns input_ids and labels."""
        with contextlib.redirect_stdout(io.StringIO()):
            made = self._text(copy.deepcopy(record["conversations"]))
        return {name: made[name] for name in ("input_ids", "labels")}
