"""Builds the mixture that the host's trainer gets, and says what is in it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from types import ModuleType
from typing import Any

from .. import __version__
from ..callbacks import MixCallback, mix_table
from ..config import Ask, Flags, counts
from ..errors import ConfigError
from ..mixing import MixedDataset, Stream
from ..sources import choose
from .self_test import self_test
from .view import OneRecordView, sweep

logger = logging.getLogger(__name__)


def mixed(
    module: ModuleType, data_module: dict, flags: Flags, asks: tuple[Ask, ...], tokenizer: Any, data_args: Any
) -> dict:
    """Returns the host's data module with samples of the tasks mixed into its training set.

    Args:
        module: the host's training module.
        data_module: what its `make_supervised_data_module` returned; it is not changed.
        flags: the run's flags.
        asks: what they ask for, at least one task.
        tokenizer: the run's tokenizer.
        data_args: the run's data arguments.

    Raises:
        ConfigError: the run has no vision tower, or no images for the tasks.
        NoSuitableImageError, SelfTestError: a task cannot be trained on in this run.
    """
    if not getattr(data_args, "is_multimodal", False):
        raise ConfigError("--ssl_tasks needs a model that sees: this run has no --vision_tower")
    sweep()
    base = data_module["train_dataset"]
    source = choose(flags.ssl_image_folder, flags.ssl_images, base.list_data_dict, data_args.image_folder)
    parts = [
        (Stream(ask.task, source, flags.ssl_seed), count)
        for ask, count in zip(asks, counts(asks, flags.ssl_ratio, len(base)), strict=True)
        if count
    ]
    view = OneRecordView(base)
    lengths: dict[str, list[int]] = {"lengths": [], "modality_lengths": []}
    for stream, _ in parts:
        first = self_test(stream, view, tokenizer, module.conversation_lib)
        for name, values in lengths.items():
            values.append(getattr(view.of(first, stream.task.name, "image.ppm"), name)[0])
    dataset = MixedDataset(base, parts, view, lengths)
    mix = {
        "vgift_plugin": __version__,
        "flags": flags.as_dict(),
        "samples": len(dataset),
        "base": {"samples": len(base), "share": len(base) / len(dataset), "source": data_args.data_path},
        "tasks": {
            stream.task.name: {
                "samples": count,
                "share": count / len(dataset),
                "chance": stream.task.chance,
                "knobs": asdict(stream.task),
            }
            for stream, count in parts
        },
        "images": {"count": len(source), "source": source.where},
    }
    logger.info("self-supervised samples are mixed in; each task passed its self-test\n%s", mix_table(mix))
    return {
        **data_module,
        "train_dataset": dataset,
        "callbacks": [*data_module.get("callbacks", ()), MixCallback(dataset, mix)],
    }
