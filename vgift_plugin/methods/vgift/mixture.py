"""Builds the training set that the host's trainer gets, and says what is in it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from types import ModuleType
from typing import Any

from ... import __version__
from ...errors import ConfigError
from ...hosts import ranks as agreement
from ...hosts.model_hooks import with_step
from ...hosts.self_test import self_test
from ...hosts.view import OneRecordView, sweep
from ..l2t.instruction import instruct_loss
from ..l2t.labels import Instructed, InstructedDataset, InstructLoss
from ..l2t.losses import InstructCollator, ResponseLoss
from ..l2t.templates import Templates
from .callbacks import InstructCallback, MixCallback, mix_table
from .flags import Ask, Flags, counts
from .losses import Marking, MarkingCollator, SplitLoss
from .metrics import Accuracy, HeldOut, evaluated, require_suitable
from .mixing import MixedDataset, Stream
from .replay import Replay, ReplayedDataset
from .streams import find_replay, split_streams

logger = logging.getLogger(__name__)


def mixed(
    module: ModuleType, data_module: dict, flags: Flags, asks: tuple[Ask, ...], tokenizer: Any, data_args: Any
) -> dict:
    """Returns the host's data module with samples of the tasks mixed into its training set, and labels of instructions.

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
        raise ConfigError(
            "samples of tasks and the loss on instructions need a model that sees; this run has no --vision_tower"
        )
    sweep()
    base = data_module["train_dataset"]
    records, image_folder = base.list_data_dict, data_args.image_folder
    replay = find_replay(flags, records, image_folder)
    sizes = counts(asks, flags.ssl_ratio, len(base))
    made = zip(split_streams(flags, asks, records, image_folder, replay), sizes, strict=True)
    made = [(pair, count) for pair, count in made if count]
    parts = [(stream, count) for (stream, _), count in made]
    held_out = [stream for (_, stream), _ in made if stream is not None]
    view = OneRecordView(base)
    published = () if replay is None else replay.counts()
    losses = SplitLoss(dict.fromkeys([*(stream.task.name for stream, _ in parts), *published]))
    speak = Marking(view, losses.names)
    shown = base if replay is None else ReplayedDataset(base, replay, speak.record)
    taught = instruct_loss(flags, base, tokenizer, shown.__getitem__) if flags.learns_instructions else None
    templates = taught[1] if taught else None
    agreement.compare(agreement.facts(flags, asks, records, parts, replay, held_out, templates))
    if not parts and replay is None:
        return data_module if taught is None else _taught(data_module, base, *taught, flags.instruct_loss_weight)
    conversation_lib = getattr(module, "conversation_lib", None)
    lengths: dict[str, list[int]] = {"lengths": [], "modality_lengths": []}
    for stream, _ in parts:
        first = self_test(stream, view, tokenizer, conversation_lib)
        for name, values in lengths.items():
            values.append(getattr(view.of(first.record("vgift-length", "image.ppm")), name)[0])
    _tell_small_pictures(parts, data_args)
    mix = describe(flags, base, data_args.data_path, parts, replay, held_out)
    if replay is not None:
        for _, positions in replay.positions():
            shown[int(positions[0])]  # one of each is painted before it is needed
    data_module = with_step(data_module, losses, required=bool(held_out))
    said = speak
    if taught is not None:
        data_module = _taught(data_module, shown, *taught, flags.instruct_loss_weight)
        shown, said = data_module["train_dataset"], Marking(Instructed(view, taught[0]), losses.names)
    dataset = MixedDataset(shown, parts, said, lengths)
    passed = "; each task passed its self-test" if parts else ""
    logger.info("self-supervised samples are mixed in%s\n%s", passed, mix_table(mix))
    data_module = {
        **data_module,
        "train_dataset": dataset,
        "data_collator": MarkingCollator(data_module["data_collator"]),
        "callbacks": [*data_module["callbacks"], MixCallback(dataset, mix), losses],
    }
    if not held_out:
        return data_module
    sets = {stream.task.name: HeldOut(stream, speak, flags.ssl_eval_samples) for stream in held_out}
    require_suitable(sets.values())
    accuracy = Accuracy([stream.task for stream, _ in parts], tokenizer, conversation_lib, losses)
    return evaluated(data_module, sets, accuracy, flags.ssl_eval_steps)


def _taught(data_module: dict, base: Any, loss: InstructLoss, templates: Templates | None, weight: float) -> dict:
    """Returns the data module with labels of the instructions in `base`, its training set."""
    apart = ResponseLoss(weight)
    callback = InstructCallback(loss.tally, None if templates is None else templates.as_json(), apart.take)
    data_module = with_step(data_module, apart)
    return {
        **data_module,
        "train_dataset": InstructedDataset(base, loss),
        "data_collator": InstructCollator(data_module["data_collator"]),
        "callbacks": [*data_module["callbacks"], callback],
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
    flags: Flags,
    base: Any,
    data_path: str,
    parts: list[tuple[Stream, int]],
    replay: Replay | None,
    held_out: list[Stream],
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
                "source": _source(stream),
            }
            for stream, count in parts
        },
    }
    if held_out:
        mix["held_out"] = {
            stream.task.name: {"samples": flags.ssl_eval_samples, "source": _source(stream)} for stream in held_out
        }
    if replay is not None:
        mix["base"]["published"] = {
            "metadata": replay.metadata,
            "photographs": replay.sources[0].folder,
            "samples": replay.counts(),
        }
    return mix


def _source(stream: Stream) -> dict[str, Any]:
    return {"count": len(stream.source), "where": stream.source.where}
