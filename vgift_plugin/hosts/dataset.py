"""LLaVA's own dataset, as its training makes it, without a training run around it."""

from __future__ import annotations

import importlib
from argparse import Namespace
from typing import Any

from ..errors import ConfigError
from .llava import LLaVA

CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}  # clip-vit-large-patch14-336


def upstream_dataset(
    data_path: str,
    image_folder: str,
    llm: str,
    tower: str | None,
    aspect: str = "pad",
    version: str = "v1",
    model_max_length: int = 2048,
) -> Any:
    """Returns the dataset of some records.

    Args:
        data_path: LLaVA records.
        image_folder: what their pictures are relative to.
        llm: whose tokenizer; a name or folder.
        tower: whose image processor; by default CLIP's own at 336 px, which needs no download.
        aspect: `--image_aspect_ratio`.
        version: `--version`, the chat template.
        model_max_length: `--model_max_length`.

    Raises:
        ConfigError: there is no such template.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor

    host = importlib.import_module(LLaVA.modules[0])
    templates = host.conversation_lib.conv_templates
    if version not in templates:
        raise ConfigError(f"--version {version}: LLaVA has no such chat template, but {', '.join(templates)}")
    options = {"model_max_length": model_max_length, "padding_side": "right", "use_fast": False}
    tokenizer = AutoTokenizer.from_pretrained(llm, **options)
    tokenizer.pad_token = tokenizer.unk_token
    host.conversation_lib.default_conversation = templates[version]
    processor = CLIPImageProcessor(**CLIP) if tower is None else CLIPImageProcessor.from_pretrained(tower)
    arguments = Namespace(
        image_folder=image_folder,
        image_aspect_ratio=aspect,
        image_processor=processor,
        is_multimodal=True,
        mm_use_im_start_end=False,
        data_path=data_path,
    )
    return host.LazySupervisedDataset(data_path, tokenizer, arguments)
