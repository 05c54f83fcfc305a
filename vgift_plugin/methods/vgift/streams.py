"""Creates streams from flags: the photographs, rows or pairs used for the samples of each task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache

from ...data.photos import HELD_OUT, ImageSource, choose, from_folder
from ...data.rows import some
from ...errors import ConfigError
from ...tasks.task import Task
from .flags import TaskSpec, VgiftFlags
from .release import of_task, with_stored_knobs
from .replay import Replay, photo_folder
from .rows import PAIRS, RowSource
from .stream import RowStream, Stream


def find_replay(flags: VgiftFlags, records: Sequence[dict], image_folder: str | None) -> Replay | None:
    """Returns the published samples among the records; None without `--ssl_replay`, or if there are none.

    Raises:
        ConfigError: see `Replay`; or there are none, and no task is given that could draw from the metadata.
    """
    if flags.ssl_replay is None:
        return None
    photos = photo_folder(flags.ssl_image_folder, image_folder)
    replay = Replay(flags.ssl_replay, photos, records, image_folder, flags.ssl_max_pixels)
    if len(replay):
        return replay
    if flags.ssl_tasks is None:
        raise ConfigError(
            f"--ssl_replay {flags.ssl_replay}: no record of --data_path names a published sample, and no --ssl_tasks "
            "draw from the metadata; give llava_v1_5_v_gift.json, or tasks"
        )
    return None


def streams(
    flags: VgiftFlags,
    specs: Sequence[TaskSpec],
    records: Sequence[dict] | None,
    image_folder: str | None,
    replay: Replay | None,
) -> list[Stream]:
    """Returns the training stream of each task, in the order of the flags; see `split_streams`.

    Raises:
        ConfigError: also for `--ssl_control`, which is for training runs.
    """
    if flags.ssl_control is not None:
        raise ConfigError(f"--ssl_control {flags.ssl_control}: is for training runs; leave it out here")
    return [trained for trained, _ in split_streams(flags, specs, records, image_folder, replay)]


def split_streams(
    flags: VgiftFlags,
    specs: Sequence[TaskSpec],
    records: Sequence[dict] | None,
    image_folder: str | None,
    replay: Replay | None,
) -> list[tuple[Stream, Stream | None]]:
    """Returns the training stream and the held-out stream of each task, in the order of the flags.

    Args:
        flags: the run's flags.
        specs: the tasks of the flags.
        records: LLaVA records, or None.
        image_folder: the folder the records' pictures are relative to; without records, the folder of photographs.
        replay: the published samples among the records. If it is None, tasks with published metadata draw from
            `--ssl_replay`.

    Returns:
        (training stream, held-out stream, or None without `--ssl_eval_samples`) for each task. The two share no
        photograph. Rows are always split by hash; `--ssl_eval_image_folder` applies to the other tasks.

    Raises:
        ConfigError: photographs or rows are missing or unusable, a flag fits none of the tasks, or a photograph would
            be both trained on and held out.
    """

    @cache
    def photographs() -> ImageSource:
        if records is None and flags.ssl_image_folder is None:
            source = choose(image_folder, None, None)
        else:
            source = choose(flags.ssl_image_folder, records, image_folder)
        source.max_pixels = flags.ssl_max_pixels
        return source

    @cache
    def parts() -> tuple[ImageSource, ImageSource | None]:
        if not flags.ssl_eval_samples:
            return photographs(), None
        if flags.ssl_eval_image_folder is None:
            if replay is not None:
                raise ConfigError(
                    "--ssl_eval_samples: published samples are trained on, and may be of any photograph; name a folder "
                    "of others to evaluate on: --ssl_eval_image_folder"
                )
            return _divided(photographs())
        held_out = from_folder(flags.ssl_eval_image_folder)
        held_out.max_pixels = flags.ssl_max_pixels
        _require_apart(photographs(), held_out)
        return photographs(), held_out

    def both(spec: TaskSpec) -> tuple[Stream, Stream | None]:
        rows = _rows(flags, spec.task, image_folder, replay)
        if rows is None:
            photos, kept = parts()
            made = Stream(spec.task, photos, flags.ssl_seed)
            return made, None if kept is None else Stream(spec.task, kept, flags.ssl_seed)
        trained, held_out = _split_rows(rows, flags)
        drawn = RowStream(rows.task, trained, flags.ssl_seed)
        return drawn, None if held_out is None else RowStream(rows.task, held_out, flags.ssl_seed)

    if flags.ssl_pairs is not None and not any(spec.task.pairs for spec in specs):
        raise ConfigError(f"--ssl_pairs {flags.ssl_pairs}: none of --ssl_tasks {flags.ssl_tasks} takes pairs")
    return [both(spec) for spec in specs]


def _rows(flags: VgiftFlags, task: Task, image_folder: str | None, replay: Replay | None) -> RowSource | None:
    """Returns the rows that store a task's samples; None if they are drawn from photographs."""
    if flags.ssl_pairs is not None and task.pairs is not None:
        folder = flags.ssl_image_folder or image_folder or ""
        return RowSource(flags.ssl_pairs, with_stored_knobs(task.pairs, task), PAIRS, folder, flags.ssl_max_pixels)
    published = of_task(task.name)
    if flags.ssl_replay is not None and replay is None and published is not None:
        files = published.metadata(flags.ssl_replay)
        if not files:
            raise ConfigError(
                f"--ssl_replay {flags.ssl_replay}: {published.files[0]} is not there, which task {task.name} "
                "draws from; leave the task out, or get the file"
            )
        folder = photo_folder(flags.ssl_image_folder, image_folder)
        return RowSource(
            files[0], with_stored_knobs(published.task, task), published.format, folder, flags.ssl_max_pixels
        )
    return None


def _split_rows(rows: RowSource, flags: VgiftFlags) -> tuple[RowSource, RowSource | None]:
    return _divided(rows) if flags.ssl_eval_samples else (rows, None)


def _divided(source):
    """Returns the training part and the held-out part of a source."""
    trained, held_out = source.split()
    if not len(trained) or not len(held_out):
        raise ConfigError(
            f"--ssl_eval_samples: of the {len(source):,} {source.where}, {len(held_out):,} would be held out "
            f"(about one in {HELD_OUT}, by the hash of its name) and {len(trained):,} trained on; there are too few. "
            "Name images for evaluation: --ssl_eval_image_folder"
        )
    return source.part(trained, source.where), source.part(held_out, f"held-out {source.where}")


def _require_apart(trained: ImageSource, held_out: ImageSource) -> None:
    def paths(source: ImageSource) -> Iterator[str]:
        root = os.path.realpath(source.root)
        return (os.path.normpath(os.path.join(root, source.name(k))) for k in range(len(source)))

    evaluated = set(paths(held_out))
    shared = [path for path in paths(trained) if path in evaluated]
    if shared:
        raise ConfigError(
            f"--ssl_eval_image_folder: {len(shared):,} of its {len(held_out):,} images are trained on too: "
            f"{some(shared)}\nName a folder of other images, or leave the flag out: then one image in {HELD_OUT} is "
            "held out."
        )
