"""From flags to streams: which photographs, rows or pairs the samples of each task are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from .config import Ask, Flags
from .errors import ConfigError
from .mixing import RowStream, Stream
from .replay import Replay, is_published, metadata_files, photo_folder
from .rows import RowSource
from .sources import choose


def find_replay(flags: Flags, records: Sequence[dict], image_folder: str | None) -> Replay | None:
    """Returns the published samples among the records; None without `--ssl_replay`, or where there are none.

    Raises:
        ConfigError: see `Replay`; or there are none and no task could draw from the metadata either.
    """
    if flags.ssl_replay is None:
        return None
    photos = photo_folder(flags.ssl_image_folder, image_folder)
    replay = Replay(flags.ssl_replay, photos, records, image_folder)
    if len(replay):
        return replay
    if flags.ssl_tasks is None:
        raise ConfigError(
            f"--ssl_replay {flags.ssl_replay}: no record of --data_path names a published sample, and no --ssl_tasks "
            "draw from the metadata; give llava_v1_5_v_gift.json, or tasks"
        )
    return None


def streams(
    flags: Flags, asks: Sequence[Ask], records: Sequence[dict] | None, image_folder: str | None, replay: Replay | None
) -> list[Stream]:
    """Returns one stream a task, in the order asked for.

    Args:
        flags: the run's flags.
        asks: what they ask for.
        records: LLaVA records; None where there are none.
        image_folder: what the records' pictures are relative to; without records, the folder to make samples of.
        replay: the published samples among the records. Where there are some, `--ssl_replay` is about them; where there
            are none, the tasks draw from the metadata.

    Raises:
        ConfigError: photographs or rows are missing or unusable; a flag fits none of the tasks.
    """

    @cache
    def photographs():
        if records is None and flags.ssl_image_folder is None:
            return choose(image_folder, flags.ssl_images, None, None, is_published)
        return choose(flags.ssl_image_folder, flags.ssl_images, records, image_folder, is_published)

    def stream(ask: Ask) -> Stream:
        task = ask.task
        if flags.ssl_pairs is not None and task.pairs is not None:
            folder = flags.ssl_image_folder or image_folder or ""
            return RowStream(task, RowSource(flags.ssl_pairs, task, task.pairs, folder), flags.ssl_seed)
        if flags.ssl_replay is not None and replay is None and task.published is not None:
            files = metadata_files(flags.ssl_replay, task.published)
            if not files:
                raise ConfigError(
                    f"--ssl_replay {flags.ssl_replay}: {task.published.files[0]} is not there, which task {task.name} "
                    "draws from; leave the task out, or get the file"
                )
            photos = photo_folder(flags.ssl_image_folder, image_folder)
            return RowStream(task, RowSource(files[0], task, task.published, photos), flags.ssl_seed)
        return Stream(task, photographs(), flags.ssl_seed)

    if flags.ssl_pairs is not None and not any(ask.task.pairs for ask in asks):
        raise ConfigError(f"--ssl_pairs {flags.ssl_pairs}: none of --ssl_tasks {flags.ssl_tasks} takes pairs")
    return [stream(ask) for ask in asks]
