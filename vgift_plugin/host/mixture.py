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
from ..replay import Replay, ReplayedDataset
from ..streams import find_replay, streams
from . import agreement
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
        asks: the tasks they ask for.
        tokenizer: the run's tokenizer.
        data_args: the run's data arguments.

    Raises:
        ConfigError: the run has no vision tower, no images for the tasks, or published samples that cannot be painted.
        NoSuitableImageError, SelfTestError: a task cannot be trained on in this run.
    """
    if not getattr(data_args, "is_multimodal", False):
        raise ConfigError("self-supervised samples need a model that sees: this run has no --vision_tower")
    sweep()
    base = data_module["train_dataset"]
    records, image_folder = base.list_data_dict, data_args.image_folder
    replay = find_replay(flags, records, image_folder)
    sizes = counts(asks, flags.ssl_ratio, len(base))
    parts = list(zip(streams(flags, asks, records, image_folder, replay), sizes, strict=True))
    parts = [(stream, count) for stream, count in parts if count]
    agreement.require(flags, asks, records, parts, replay)
    if not parts and replay is None:
        return data_module
    view = OneRecordView(base)
    lengths: dict[str, list[int]] = {"lengths": [], "modality_lengths": []}
    for stream, _ in parts:
        first = self_test(stream, view, tokenizer, getattr(module, "conversation_lib", None))
        for name, values in lengths.items():
            values.append(getattr(view.of(first.record("vgift-length", "image.ppm")), name)[0])
    _tell_small_pictures(parts, data_args)
    mix = describe(flags, base, data_args.data_path, parts, replay)
    if replay is not None:
        base = ReplayedDataset(base, replay, view.speak)
        for _, positions in replay.positions():
            base[int(positions[0])]  # one of each is painted before it is needed
    dataset = MixedDataset(base, parts, view, lengths)
    passed = "; each task passed its self-test" if parts else ""
    logger.info("self-supervised samples are mixed in%s\n%s", passed, mix_table(mix))
    return {
        **data_module,
        "train_dataset": dataset,
        "callbacks": [*data_module.get("callbacks", ()), MixCallback(dataset, mix)],
    }


def _tell_small_pictures(parts: list[tuple[Stream, int]], data_args: Any) -> None:
    """Warns where the vision tower sees more than a task paints, and the host would enlarge its pictures."""
    crop = getattr(getattr(data_args, "image_processor", None), "crop_size", None)
    seen_px = max(crop.values()) if isinstance(crop, dict) else 0
    anyres = str(getattr(data_args, "image_aspect_ratio", "")).startswith("anyres")
    for stream, _ in parts:
        size_px = stream.task.picture_px
        if size_px is not None and (size_px < seen_px or anyres):
            logger.warning(
                "%s is painted %d px long at most, and this run looks at pictures with %s: set its size_px "
                "in --ssl_config",
                stream.task.name,
                size_px,
                "anyres, which sees more" if anyres else f"{seen_px} px",
            )


def describe(
    flags: Flags, base: Any, data_path: str, parts: list[tuple[Stream, int]], replay: Replay | None
) -> dict[str, Any]:
    """Returns what `vgift_mix.json` holds: flags, counts, shares, chance levels, knobs, and where samples come from."""
    total = len(base) + sum(count for _, count in parts)
    mix = {
        "vgift_plugin": __version__,
        "flags": flags.as_dict(),
        "samples": total,
        "base": {"samples": len(base), "share": len(base) / total, "source": data_path},
        "tasks": {
            stream.task.name: {
                "samples": count,
                "share": count / total,
                "chance": stream.task.chance,
                "knobs": asdict(stream.task),
                "source": {"count": len(stream.source), "where": stream.source.where},
            }
            for stream, count in parts
        },
    }
    if replay is not None:
        mix["base"]["published"] = {
            "metadata": replay.metadata,
            "photographs": replay.sources[0].folder,
            "samples": replay.counts(),
        }
    return mix
