"""LLaVA-1.5 and the forks that keep its training module: LLaVA-NeXT, V-GIFT's; the base of most other hosts."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.records import has_picture
from ..errors import HostMismatchError
from .base import ARGUMENTS, MAKE, Breaks, ChatTemplate, TextPath

OWN_FLAG = "this training code has a flag of its own for this, {}"
PREPARED = ("input_ids", "position_ids", "attention_mask", "past_key_values", "inputs_embeds", "labels")


class LLaVA:
    """LLaVA-1.5. See `base.Host` for each question."""

    name = "LLaVA"
    packages: tuple[str, ...] = ("llava",)
    modules: tuple[str, ...] = ("llava.train.train",)
    prepare = "prepare_inputs_labels_for_multimodal"
    prepared: tuple[str, ...] = PREPARED
    trainer_name = "LLaVATrainer"
    length_names: tuple[str, ...] = ("lengths", "modality_lengths")
    refused: Mapping[str, str] = {}
    refuses = ""
    several_images = False
    loads_tower = "unfreeze_mm_vision_tower"
    breaks: Breaks = (
        ("transformers", (4, 38), "LLaVA 1.2.2 is made for 4.36.2 and 4.37.2; from 4.38 on its generate() fails"),
        ("peft", (0, 13), "LLaVA's fine-tuning script fails from 0.13.0 on; 0.4.0 to 0.12.0 work"),
        ("numpy", (2,), "torch and LLaVA of the pinned versions are built for numpy 1"),
    )

    def missing(self, module: ModuleType) -> list[str]:
        return data_module_problems(module, {"data_path", "image_folder"}, {"tokenizer", "data_args"})

    def trainer(self, module: ModuleType) -> type:
        from transformers import Trainer

        trainer, train = getattr(module, self.trainer_name, None), getattr(module, "train", None)
        names = getattr(getattr(train, "__code__", None), "co_names", ())
        if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
            problem = f"expected a subclass of transformers.Trainer, found {trainer!r}"
        elif getattr(train, "__globals__", None) is vars(module) and self.trainer_name not in names:
            problem = "expected train() to look it up as a global, it does not"
        else:
            return trainer
        raise HostMismatchError(
            f"the trainer of {getattr(module, '__file__', None) or module.__name__} cannot be reached:\n"
            f"  - {self.trainer_name}: {problem}\nNothing was changed."
        )

    def tokenizer(self, arguments: Mapping[str, Any]) -> Any:
        return arguments["tokenizer"]

    def is_multimodal_already(self, tokenizer: Any) -> bool:
        """LLaVA writes its tower's name into the configuration of what it trains; its pretraining does not keep one."""
        try:
            config = json.loads(Path(str(tokenizer.name_or_path), "config.json").read_bytes())
        except (AttributeError, OSError, ValueError):
            return False
        return isinstance(config, dict) and bool({"mm_vision_tower", "vision_config"} & config.keys())

    def sees(self, data_args: Any) -> bool:
        return bool(getattr(data_args, "is_multimodal", False))

    def records(self, dataset: Any) -> Sequence[dict]:
        return dataset.list_data_dict

    def image_folder(self, data_args: Any) -> str | None:
        return data_args.image_folder

    def source(self, data_args: Any) -> str:
        return str(data_args.data_path)

    def check_run(self, data_args: Any, world: int) -> None:
        """Nothing: its records are the same on all ranks."""

    def conversations(self, dataset: Any) -> int:
        return len(dataset)

    def item(self, dataset: Any, record: dict) -> Any:
        return self._alone(dataset, record)[0]

    def lengths(self, dataset: Any, record: dict) -> dict[str, int]:
        alone = self._alone(dataset, record)
        return {name: getattr(alone, name)[0] for name in self.length_names if hasattr(type(dataset), name)}

    def _alone(self, dataset: Any, record: dict) -> Any:
        """Returns a copy of the dataset that has this one record."""
        alone = copy.copy(dataset)
        kind: Any = type(dataset)
        alone.__class__ = raising(kind)
        if alone.data_args.image_folder is None:  # the host joins it with the path
            alone.data_args = copy.copy(alone.data_args)
            alone.data_args.image_folder = ""
        alone.list_data_dict = [record]
        return alone

    def visible_ids(self, ids: Any) -> list[int]:
        return ids.flatten().tolist()  # a picture's place is -200

    def segments(self, dataset: Any, index: int, item: Any) -> list[tuple[slice, dict]]:
        return [(slice(None), dataset.list_data_dict[index])]

    def crop_canvas(self, dataset: Any) -> tuple[int, int, int] | None:
        """The processor's mean, as LLaVA pads with. `--image_aspect_ratio pad` shows all of a picture, and so do the
        anyres ways of forks; of every other value (`square`, none at all) CLIP's centre crop cuts off the borders."""
        arguments = dataset.data_args
        processor, aspect = getattr(arguments, "image_processor", None), getattr(arguments, "image_aspect_ratio", None)
        whole = aspect == "pad" or str(aspect).startswith(("anyres", "highres"))
        if whole or processor is None or not getattr(processor, "do_center_crop", False):
            return None
        red, green, blue = (int(255 * mean) for mean in processor.image_mean)
        return red, green, blue

    def seen_px(self, data_args: Any) -> tuple[int, str]:
        crop = getattr(getattr(data_args, "image_processor", None), "crop_size", None)
        seen = max(crop.values()) if isinstance(crop, dict) else 0
        if str(getattr(data_args, "image_aspect_ratio", "")).startswith("anyres"):
            return 2 * max(seen, 1), "anyres, which sees more"
        return seen, f"{seen} px"

    def grid(self, dataset: Any) -> tuple[int, int, int] | None:
        return None  # it resizes pictures of any size to its tower's

    def text_path(self, dataset: Any, tokenizer: Any, limit: int) -> TextPath:
        return FunctionsTextPath(dataset, tokenizer, limit)

    def template(self, module: ModuleType | None, data_args: Any, tokenizer: Any) -> ChatTemplate:
        library = getattr(module, "conversation_lib", None)
        current = getattr(library, "default_conversation", None)
        names = tuple(name for name, one in getattr(library, "conv_templates", {}).items() if one is current)
        unnamed = getattr(current, "version", None) or getattr(data_args, "conv_version", "?")
        return ChatTemplate(names or (str(unnamed),), () if current is None else markers(current, tokenizer))

    def model(self, model: Any) -> Any:
        for module in model.modules():
            if hasattr(type(module), self.prepare):  # the class, since peft's wrapper forwards every attribute
                return module
        raise HostMismatchError(
            f"{type(model).__name__}: expected a model with {self.prepare}, as {self.name} has, and found none inside "
            "it. Leave out the flags that act inside the model (--visual_token_drop, …); nothing was changed."
        )

    def vision_tower(self, model: Any) -> Any:
        return model.get_vision_tower() if hasattr(model, "get_vision_tower") else None

    def tower_not_saved(self, args: Any) -> list[str]:
        mistakes = []
        if getattr(args, "tune_mm_mlp_adapter", False):
            mistakes.append("with --tune_mm_mlp_adapter LLaVA saves the projector alone; leave one out")
        parts = getattr(args, "mm_tunable_parts", None) or ""
        if "," not in parts and ("mm_mlp_adapter" in parts or "mm_vision_resampler" in parts):
            mistakes.append(f"with --mm_tunable_parts {parts} LLaVA saves that alone; add mm_vision_tower")
        return mistakes

    def projector(self, model: Any) -> Any:
        inner = model.get_model() if hasattr(model, "get_model") else model
        return getattr(inner, "mm_projector", None)

    def visual_tokens(self, model: Any) -> int | None:
        tower = self.vision_tower(model)
        patches = getattr(tower, "num_patches", None)
        return patches and patches + (getattr(tower, "select_feature", "patch") == "cls_patch")

    def token_limit(self, model: Any) -> int | None:
        return getattr(model.config, "tokenizer_model_max_length", None)


@cache
def raising(kind: Any) -> type:
    """Returns a subclass of a dataset's class that raises errors instead of falling back to another record.

    Some hosts' `__getitem__` calls itself with another index when a record fails (MoE-LLaVA) or retries `_get_item`
    several times (LLaVA-NeXT); with a single record that would hide or delay the error.
    """

    def __getitem__(self, index):
        if hasattr(kind, "_get_item"):
            return self._get_item(index)
        if self._asked:
            raise sys.exc_info()[1] or LookupError(f"{kind.__name__} has no other record")
        self._asked = True
        return kind.__getitem__(self, index)

    return type(kind.__name__, (kind,), {"__getitem__": __getitem__, "__module__": kind.__module__, "_asked": False})


def data_module_problems(module: ModuleType, needed: set[str], parameters: set[str]) -> list[str]:
    """Returns what a module lacks: `DataArguments` with some fields and `make_supervised_data_module` with some
    parameters, both looked up by its `train()` as globals."""
    problems = []
    arguments, make = getattr(module, ARGUMENTS, None), getattr(module, MAKE, None)
    listed = ", ".join(sorted(parameters))
    if not (isinstance(arguments, type) and is_dataclass(arguments)):
        problems.append(f"{ARGUMENTS}: expected a dataclass, found {arguments!r}")
    elif absent := needed - {f.name for f in fields(arguments)}:
        problems.append(f"{ARGUMENTS}: expected the fields {' and '.join(sorted(needed))}, {sorted(absent)} missing")
    if not callable(make):
        problems.append(f"{MAKE}: expected a function of ({listed}), found {make!r}")
    elif not parameters <= set(inspect.signature(make).parameters):
        problems.append(f"{MAKE}: expected the parameters ({listed}), found {inspect.signature(make)}")
    train = getattr(module, "train", None)
    if inspect.isfunction(train):  # absent while the module is still being executed
        unused = [name for name in (ARGUMENTS, MAKE) if name not in train.__code__.co_names]
        problems += [f"{name}: expected train() to look it up as a global, it does not" for name in unused]
    return problems


def markers(conversation: Any, tokenizer: Any) -> tuple[str, ...]:
    """Returns role markers and separators of one of LLaVA's templates, as decoded labels may show them."""

    def words(role: str) -> str:
        """Returns a role marker decoded without special tokens: `assistant` of `<|im_start|>assistant`."""
        return tokenizer.decode(tokenizer(role, add_special_tokens=False).input_ids, skip_special_tokens=True)

    roles = [*conversation.roles, *map(words, conversation.roles)]
    every = [*(f"{role}:" for role in roles), *roles, conversation.sep, conversation.sep2]
    return tuple(marker for marker in every if marker)


class FunctionsTextPath(TextPath):
    """LLaVA's `preprocess_multimodal` and `preprocess`, globals of the module that a dataset is from.

    Args:
        dataset: the host's.
        tokenizer: the run's; it is not changed.
        limit: tokens of a record at most.

    Raises:
        HostMismatchError: the module has no such functions.
    """

    def __init__(self, dataset: Any, tokenizer: Any, limit: int):
        self.dataset = dataset
        self.tokenizer = copy.copy(tokenizer)
        self.tokenizer.model_max_length = limit
        self._functions()

    def _functions(self) -> tuple[Any, Any]:
        """Looked up anew each time, for functions of a main program do not cross to a spawned worker."""
        for kind in type(self.dataset).__mro__:
            found = getattr(vars(kind).get("__getitem__"), "__globals__", {})
            if callable(found.get("preprocess")) and callable(found.get("preprocess_multimodal")):
                return found["preprocess_multimodal"], found["preprocess"]
        raise HostMismatchError(
            f"--instruct_loss: {type(self.dataset).__module__}.{type(self.dataset).__name__} words its records in "
            "another way than LLaVA: expected the functions preprocess and preprocess_multimodal in its module"
        )

    def __call__(self, record: dict) -> dict[str, Any]:
        """Returns input_ids and labels. What the host prints about a record is not shown a second time."""
        multimodal, text = self._functions()
        turns = copy.deepcopy(record["conversations"])
        with contextlib.redirect_stdout(io.StringIO()):
            picture = has_picture(record)
            sources = multimodal([turns], self.dataset.data_args) if picture else [turns]
            made = text(sources, self.tokenizer, has_image=picture)
        return {name: made[name][0] for name in ("input_ids", "labels")}
