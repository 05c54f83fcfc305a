"""Qwen-VL's own fine-tuning code (qwen-vl-finetune in QwenLM/Qwen3-VL), and 2U1's Qwen-VL-Series-Finetune.

Both hand a processor, not a tokenizer, to their data module, and their model puts visual tokens in inside its forward.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any

from ..data.records import picture_names
from ..errors import ConfigError, HostMismatchError
from .base import Breaks, ChatTemplate, TextPath
from .llava import LLaVA, data_module_problems

PLACES = frozenset({151655, 151656})  # <|image_pad|> and <|video_pad|>; the host has these numbers in its code
BLANK_PX = 56


class QwenModel(LLaVA):
    """What both training codes share: the model, its processor and its template."""

    prepare = ""
    several_images = True
    breaks: Breaks = ()
    refused: Mapping[str, str] = {
        "visual_token_drop": "its model puts visual tokens in inside its forward, together with positions in three "
        "dimensions and (Qwen3-VL) features added to deeper layers, so none can be left out from outside",
        "preference_data": "preference pairs were made for LLaVA's data module; train them there, or with TRL",
    }

    def trainer(self, module: ModuleType) -> type:
        raise HostMismatchError(f"{self.name}: {self.refused['preference_data']}")

    def tokenizer(self, arguments: Mapping[str, Any]) -> Any:
        return arguments["processor"].tokenizer

    def sees(self, data_args: Any) -> bool:
        return True

    def visible_ids(self, ids: Any) -> list[int]:
        return [-1 if id in PLACES else id for id in ids.flatten().tolist()]

    def crop_canvas(self, dataset: Any) -> tuple[int, int, int] | None:
        return None  # it resizes, and cuts nothing off

    def seen_px(self, data_args: Any) -> tuple[int, str]:
        return 0, ""  # tasks are painted at its size, see `grid`

    def text_path(self, dataset: Any, tokenizer: Any, limit: int) -> TextPath:
        return ItemTextPath(self, dataset)

    def template(self, module: ModuleType | None, data_args: Any, tokenizer: Any) -> ChatTemplate:
        return ChatTemplate((str(getattr(data_args, "model_type", "qwen")),))

    def model(self, model: Any) -> Any:
        for module in model.modules():
            if hasattr(type(module), "visual"):  # the class, since peft's wrapper forwards every attribute
                return module
        raise HostMismatchError(f"{type(model).__name__}: expected a Qwen-VL model, and found none inside it")

    def vision_tower(self, model: Any) -> Any:
        return model.visual

    def projector(self, model: Any) -> Any:
        return model.visual.merger

    def visual_tokens(self, model: Any) -> int | None:
        return None

    def token_limit(self, model: Any) -> int | None:
        return None


class QwenVL(QwenModel):
    """QwenLM/Qwen3-VL, folder qwen-vl-finetune: Qwen2-VL, Qwen2.5-VL and Qwen3-VL. See `base.Host`."""

    name = "Qwen-VL"
    packages = ("qwenvl",)
    modules = ("qwenvl.train.train_qwen",)
    trainer_name = "Trainer"
    length_names = ("lengths", "modality_lengths", "pre_calculated_length")
    refused: Mapping[str, str] = {
        **QwenModel.refused,
        "tune_vision_tower": "this training code has a flag of its own, --tune_mm_vision True",
    }

    def missing(self, module: ModuleType) -> list[str]:
        return data_module_problems(module, {"dataset_use", "data_flatten"}, {"processor", "data_args"})

    def records(self, dataset: Any) -> Sequence[dict]:
        return Conversations(dataset.list_data_dict)

    def image_folder(self, data_args: Any) -> str | None:
        return None  # records name their own

    def source(self, data_args: Any) -> str:
        return str(data_args.dataset_use)

    def check_run(self, data_args: Any, world: int) -> None:
        if world > 1 and "%" in data_args.dataset_use:
            raise ConfigError(
                f"--dataset_use {data_args.dataset_use}: this training code draws `name%N` subsets without a seed, so "
                f"each of the {world} ranks would train on other records. Write the subset to a file and enter that as "
                "a data set"
            )

    def conversations(self, dataset: Any) -> int:
        return len(self.records(dataset))

    def item(self, dataset: Any, record: dict) -> Any:
        return dataset._get_item([{**record, "data_path": ""}])  # not __getitem__, which retries and takes neighbours

    def lengths(self, dataset: Any, record: dict) -> dict[str, int]:
        alone = copy.copy(dataset)
        alone.list_data_dict = [record]
        with contextlib.redirect_stdout(io.StringIO()):
            return {name: int(getattr(alone, name)[0]) for name in self.length_names if hasattr(type(dataset), name)}

    def segments(self, dataset: Any, index: int, item: Any) -> list[tuple[slice, dict]]:
        entry = dataset.list_data_dict[index]
        if isinstance(entry, dict):
            return [(slice(None), entry)]
        ends = list(accumulate(item["attention_mask"], initial=0))
        return [(slice(start, end), one) for start, end, one in zip(ends, ends[1:], entry, strict=False)]

    def grid(self, dataset: Any) -> tuple[int, int, int] | None:
        processor = dataset.processor.image_processor
        step = processor.patch_size * processor.merge_size
        return step, processor.size["shortest_edge"], processor.size["longest_edge"]


class QwenSeries(QwenModel):
    """2U1/Qwen-VL-Series-Finetune: records and an image folder as LLaVA has them, flat items, padded batches."""

    name = "Qwen-VL-Series-Finetune"
    packages = ("src",)
    modules = ()
    trainer_name = "QwenSFTTrainer"
    refused: Mapping[str, str] = {
        **QwenModel.refused,
        "tune_vision_tower": "this training code has a flag of its own, --freeze_vision_tower False",
    }

    def missing(self, module: ModuleType) -> list[str]:
        needed = {"data_path", "image_folder", "image_min_pixels"}
        return data_module_problems(module, needed, {"model_id", "processor", "data_args"})

    def grid(self, dataset: Any) -> tuple[int, int, int] | None:
        step = 2 * dataset.image_patch_size
        return step, dataset.image_min_pixel, dataset.image_max_pixel


class Conversations(Sequence):
    """The conversations of a list of records and packs of records, with absolute picture names; nothing is copied.

    Args:
        entries: the host's `list_data_dict`; an entry is a record or a list of records.
    """

    def __init__(self, entries: Sequence[Any]):
        self.entries = entries
        packed = any(isinstance(entry, list) for entry in entries)
        sizes = (len(entry) if isinstance(entry, list) else 1 for entry in entries)
        self._starts = list(accumulate(sizes, initial=0)) if packed else None

    def __len__(self) -> int:
        return len(self.entries) if self._starts is None else self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._starts is None:
            record = self.entries[index]
        else:
            entry = bisect_right(self._starts, index) - 1
            record = self.entries[entry]
            record = record[index - self._starts[entry]] if isinstance(record, list) else record
        folder = record.get("data_path") or ""
        names = [os.path.join(folder, name) for name in picture_names(record)]
        if not names:
            return record
        return {**record, "image": names if isinstance(record["image"], list) else names[0]}


class ItemTextPath(TextPath):
    """The host's own item with a small blank picture in the place of each; no token depends on what a picture shows."""

    def __init__(self, host: QwenModel, dataset: Any):
        self.host, self.dataset = host, dataset

    def __call__(self, record: dict) -> dict[str, Any]:
        """Returns input_ids and labels."""
        from PIL import Image

        from .encoder import Encoder

        blank = [Image.new("RGB", (BLANK_PX, BLANK_PX))] * len(picture_names(record))
        item = Encoder(self.host, self.dataset).record(record, blank)
        return {name: item[name].flatten() for name in ("input_ids", "labels")}

    def ids(self, record: dict) -> list[int]:
        return self.host.visible_ids(self(record)["input_ids"])
