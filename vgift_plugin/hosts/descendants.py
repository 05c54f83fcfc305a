"""LLaVA's descendants whose package has a name of its own, and those in which nothing can be mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from .base import ARGUMENTS, Breaks
from .llava import OWN_FLAG, LLaVA


class Descendant(LLaVA):
    """A descendant of LLaVA, recognised by fields of its `DataArguments`, or else by the name of its trainer class."""

    own_fields: tuple[str, ...] = ()
    breaks: Breaks = ()

    def missing(self, module: ModuleType) -> list[str]:
        if self.own_fields:
            own = getattr(module, ARGUMENTS, None)
            has = {one.name for one in fields(own)} if isinstance(own, type) and is_dataclass(own) else set()
            lacking = [f"{ARGUMENTS}: expected the field {name}" for name in self.own_fields if name not in has]
        else:
            here = hasattr(module, self.trainer_name)
            lacking = [] if here else [f"{self.trainer_name}: expected this trainer class, found nothing of the name"]
        return [*lacking, *super().missing(module)]


class Bunny(Descendant):
    """BAAI-DCAI/Bunny: LLaVA's data module, in another file than its `train()`."""

    name = "Bunny"
    packages = ("bunny",)
    modules = ("bunny.train.train",)
    trainer_name = "BunnyTrainer"


class ShareGPT4V(Descendant):
    """ShareGPT4V (in InternLM/InternLM-XComposer): LLaVA 1.1's model, which has no position ids."""

    name = "ShareGPT4V"
    packages = ("share4v",)
    modules = ("share4v.train.train",)
    trainer_name = "Share4VTrainer"
    prepared = tuple(name for name in LLaVA.prepared if name != "position_ids")
    refused: Mapping[str, str] = {
        "tune_vision_tower": OWN_FLAG.format("--tune_vision_tower True"),
        "visual_token_drop": "its model takes no position ids, so tokens that stay could not keep their positions",
    }


class MoELLaVA(Descendant):
    """PKU-YuanGroup/MoE-LLaVA: several files of records, an image tower beside a video tower, experts."""

    name = "MoE-LLaVA"
    packages = ("moellava",)
    modules = ("moellava.train.train",)
    own_fields = ("video_folder", "num_frames")
    refused: Mapping[str, str] = {
        "tune_vision_tower": "this training code's loader takes the original tower again, so that a trained one is lost"
    }

    def source(self, data_args: Any) -> str:
        return ", ".join(data_args.data_path)

    def vision_tower(self, model: Any) -> Any:
        return model.get_image_tower() if hasattr(model, "get_image_tower") else None


class VILA(Descendant):
    """NVlabs/VILA, whose package is called `llava` too."""

    name = "VILA"
    refuses = (
        "VILA hands its trainer callbacks of its own beside the data module and counts its records before anything "
        "could be mixed in; write the samples with `vgift export`, describe vgift.json and its folder as a data set "
        "(VILA_DATASETS) and add it to --data_mixture"
    )
    own_fields = ("data_mixture", "num_video_frames")


class Cambrian(Descendant):
    """cambrian-mllm/cambrian."""

    name = "Cambrian"
    packages = ("cambrian",)
    modules = ("cambrian.train.train_fsdp",)
    trainer_name = "CambrianTrainer"
    refuses = (
        "Cambrian trains on TPUs, and reads each record from a line of its file when it is asked for, so that nothing "
        "can be mixed in; write the samples with `vgift export` below --image_folder and append the records of "
        "vgift.json to that file, one a line, with paths relative to --image_folder"
    )
