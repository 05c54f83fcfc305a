"""V-GIFT in a training run: the mixture for the host's trainer, and its description."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from ... import __version__
from ...data.photos import fingerprint
from ...data.records import said
from ...errors import ConfigError
from ...hosts.token_facts import with_facts
from ...tasks.task import Sample
from ..run import Run
from .callbacks import MixCallback, mix_table
from .control import RepeatingDataset, ShuffledStream, pictured
from .flags import REPEAT, SHUFFLED, VgiftFlags, counts
from .grid import fitted
from .losses import TaskLosses
from .metrics import Accuracy, HeldOut, evaluated, require_suitable
from .mixture import MixedDataset
from .replay import Replay, ReplayedDataset
from .self_test import self_test
from .stream import Stream
from .streams import find_replay, split_streams

logger = logging.getLogger(__name__)


def plan(flags: VgiftFlags, run: Run) -> MixturePlan | None:
    """Returns the plan for the mixture; None with `--ssl_ratio 0` and no `--ssl_replay`. See `methods.base.Method`.

    Raises:
        ConfigError: there are no images for the tasks, or published samples cannot be painted.
    """
    if flags.ssl_ratio == 0 and flags.ssl_replay is None:
        logger.info("--ssl_ratio 0: no self-supervised sample is mixed in, the training set is the host's own")
        return None
    specs = fitted(flags.tasks(), run.host.grid(run.base))
    for spec in specs:
        if spec.task.several_images and not run.host.several_images:
            raise ConfigError(
                f"--ssl_config: {spec.task.name}.two_images: {run.host.name} takes one image a record; set it to false"
            )
    for spec in specs:
        if spec.reason:
            logger.info("--ssl_weights_from: %s is %s; weight %s", spec.task.name, spec.reason, spec.weight)
    records, image_folder = run.host.records(run.base), run.host.image_folder(run.data_args)
    replay = find_replay(flags, records, image_folder)
    sizes = counts(specs, flags.ssl_ratio, run.host.conversations(run.base))
    made = zip(split_streams(flags, specs, records, image_folder, replay), sizes, strict=True)
    chosen = [(streams, count) for streams, count in made if count]
    parts = [(stream, count) for (stream, _), count in chosen]
    held_out = [stream for (_, stream), _ in chosen if stream is not None]
    facts = {
        "records": fingerprint(map(record_words, records)),
        **{f"images of {stream.task.name}": stream.source.fingerprint() for stream, _ in parts},
        **{f"held-out images of {stream.task.name}": stream.source.fingerprint() for stream in held_out},
        "knobs": ", ".join(f"{spec.task!r}:{spec.weight}" for spec in specs),
        "samples": json.dumps({stream.task.name: count for stream, count in parts}),
        "published samples": json.dumps(replay.counts() if replay else {}),
        **{f"rows of {one.path.rpartition('/')[2]}": one.fingerprint() for one in (replay.sources if replay else ())},
    }
    return MixturePlan(flags, parts, held_out, replay, facts)


def record_words(record: dict) -> str:
    """Returns text that identifies a record: its id, the names of its pictures without folders, and its turns."""
    image = record.get("image")
    names = [str(name).rpartition("/")[2] for name in (image if isinstance(image, list) else [image])]
    return "\0".join([str(record.get("id")), *names, *(str(said(turn)) for turn in record.get("conversations") or ())])


@dataclass
class MixturePlan:
    """See `methods.base.Plan`.

    Attributes:
        flags: the run's flags.
        parts: (stream, number of samples) of each task.
        held_out: the streams to evaluate on.
        replay: the published samples among the base records.
        facts: see `methods.base.Plan`.
    """

    flags: VgiftFlags
    parts: list[tuple[Stream, int]]
    held_out: list[Stream]
    replay: Replay | None
    facts: dict[str, str]

    def apply(self, run: Run) -> None:
        """Tests each task, mixes its samples in, and adds the callbacks that report on them.

        Raises:
            NoSuitableImageError, SelfTestError: a task cannot be used in this run.
        """
        if not self.parts and self.replay is None:
            return
        published = self.replay.counts() if self.replay is not None else {}
        losses = TaskLosses(dict.fromkeys([*(stream.task.name for stream, _ in self.parts), *published]))
        template = run.host.template(run.module, run.data_args, run.tokenizer)
        plain, encode = TaskEncoder(run.encoder, losses.names), TaskEncoder(run.train_encoder, losses.names)
        lengths: dict[str, list[int]] = {}
        sample_bytes = 0
        for stream, _ in self.parts:
            first = self_test(stream, plain, template, run.tokenizer, run.host)
            sizes = [picture.size for picture in run.encoder.pictures(first)]
            sample_bytes = max(sample_bytes, sum(3 * width * height for width, height in sizes))
            for name, value in run.encoder.lengths(first).items():
                lengths.setdefault(name, []).append(value)
        self._warn_of_small_pictures(run)
        if run.host.is_multimodal_already(run.tokenizer):
            logger.warning(
                "this run begins from a multimodal checkpoint, %s. The V-GIFT paper (Table 6) has 58.7 on average for "
                "samples during instruction tuning, 57.7 before it, and 39.9 after it (LoRA, 1 %% samples). Compare "
                "with a run without samples, and with --ssl_control repeat",
                run.tokenizer.name_or_path,
            )
        mix = describe(self.flags, run, self.parts, self.replay, self.held_out)
        dataset = run.dataset
        if self.replay is not None:
            dataset = ReplayedDataset(dataset, run.host.records(run.base), self.replay, encode.record)
            for _, positions in self.replay.positions():
                dataset[int(positions[0])]  # paints one of each as a check
        mixed = self._mixed(run, dataset, encode, lengths)
        passed = "; each task passed its self-test" if self.parts else ""
        logger.info("self-supervised samples are mixed in%s\n%s", passed, mix_table(mix))
        run.change(train_dataset=mixed)
        run.add_step(losses)
        run.add_callbacks(MixCallback(mixed, mix, run.notes, sample_bytes), losses)
        if self.held_out:
            sets = {
                stream.task.name: HeldOut(stream, plain.sample, self.flags.ssl_eval_samples) for stream in self.held_out
            }
            require_suitable(sets.values())
            accuracy = Accuracy([stream.task for stream, _ in self.parts], run.tokenizer, template, losses)
            evaluated(run, sets, accuracy, self.flags.ssl_eval_steps)

    def _mixed(self, run: Run, dataset: Any, encode: TaskEncoder, lengths: dict[str, list[int]]) -> MixedDataset:
        """Returns the mixture, or its control."""
        control = self.flags.ssl_control
        if control == REPEAT:
            positions = pictured(run.host.records(run.base), len(run.base))
            return RepeatingDataset(positions, self.flags.ssl_seed, dataset, self.parts, encode.sample, lengths)
        parts: list[Any] = list(self.parts)
        if control == SHUFFLED:
            parts = [(ShuffledStream(stream, count), count) for stream, count in parts]
        return MixedDataset(dataset, parts, encode.sample, lengths)

    def _warn_of_small_pictures(self, run: Run) -> None:
        """Warns if the vision tower's input is larger than a task's pictures, so that the host would enlarge them."""
        seen_px, words = run.host.seen_px(run.data_args)
        for stream, _ in self.parts:
            size_px = stream.task.picture_px
            if size_px is not None and size_px < seen_px:
                logger.warning(
                    "%s is painted %d px long at most, and this run looks at pictures with %s: set its size_px in "
                    "--ssl_config",
                    stream.task.name,
                    size_px,
                    words,
                )


@dataclass
class TaskEncoder:
    """Encodes samples and published records, and marks their tokens with the number of their task.

    Attributes:
        encoder: returns the host's items.
        names: `base`, then the tasks; their positions are their numbers.
    """

    encoder: Any
    names: list[str]

    def sample(self, sample: Sample, name: str) -> Any:
        """Returns the host's item for a sample."""
        return with_facts(self.encoder.sample(sample, name), task=self.names.index(sample.task))

    def record(self, record: dict, pictures: list[Image.Image], task: str) -> Any:
        """Returns the host's item for a task's record with the given pictures instead of its own."""
        return with_facts(self.encoder.record(record, pictures), task=self.names.index(task))


def describe(
    flags: VgiftFlags,
    run: Run,
    parts: list[tuple[Stream, int]],
    replay: Replay | None,
    held_out: list[Stream],
) -> dict[str, Any]:
    """Returns the content of `vgift_mix.json`: flags, counts, shares, chance levels, knobs and sources."""
    total = len(run.base) + sum(count for _, count in parts)
    mix: dict[str, Any] = {
        "vgift_plugin": __version__,
        "flags": run.all_flags,
        "samples": total,
        "base": {"samples": len(run.base), "share": len(run.base) / total, "source": run.host.source(run.data_args)},
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
    if flags.ssl_control is not None:
        mix["control"] = flags.ssl_control
    if held_out:
        mix["held_out"] = {
            stream.task.name: {"samples": flags.ssl_eval_samples, "source": _source(stream)} for stream in held_out
        }
    if replay is not None:
        mix["base"]["published"] = {
            "metadata": replay.metadata,
            "photographs": replay.sources[0].root,
            "samples": replay.counts(),
        }
    return mix


def _source(stream: Stream) -> dict[str, Any]:
    return {"count": len(stream.source), "where": stream.source.where}
