"""Chunks as Parquet files, in the columns that trainers of reinforcement learning read: verl and TRL."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

from ....data.records import IMAGE
from ....errors import ConfigError
from ....tasks.registry import get_task
from ....tasks.task import Task

ROLES = {"human": "user", "gpt": "assistant"}


def knobs_of(task: Task) -> dict[str, Any]:
    """Returns {knob: value} where it is not the default; {} for a task that is not the one called by its name."""
    if type(task) is not get_task(task.name):
        return {}
    return {name: getattr(task, name) for name, (default, _) in task.knobs().items() if getattr(task, name) != default}


def verl_row(record: dict, task: Task, params: dict, pictures: list[tuple[str, bytes]], index: int) -> dict[str, Any]:
    """Returns a sample as a row of verl's `RLHFDataset`, with `<image>` in the prompt and the pictures beside it."""
    *asked, answer = record["conversations"]
    return {
        "data_source": f"vgift/{task.name}",
        "prompt": [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in asked],
        "images": [{"bytes": content, "path": path} for path, content in pictures],
        "ability": "vision",
        "reward_model": {"style": "rule", "ground_truth": answer["value"]},
        "extra_info": {
            "index": index,
            "id": record["id"],
            "task": task.name,
            "knobs": json.dumps(knobs_of(task)),
            "params": json.dumps(params),
        },
    }


def trl_row(record: dict, task: Task, params: dict, pictures: list[tuple[str, bytes]], index: int) -> dict[str, Any]:
    """Returns a sample as a row of TRL's `GRPOTrainer`: a prompt of plain text and one picture.

    Raises:
        ConfigError: the sample has several pictures; the column of TRL 0.23 takes one.
    """
    if len(pictures) != 1:
        raise ConfigError(f"--format trl: {record['id']} has {len(pictures)} pictures, and TRL takes one a sample")
    *asked, answer = record["conversations"]
    ((path, content),) = pictures
    texts = [(ROLES[turn["from"]], turn["value"].replace(IMAGE, "").strip()) for turn in asked]
    return {
        "prompt": [{"role": role, "content": text} for role, text in texts],
        "image": {"bytes": content, "path": path},
        "solution": answer["value"],
        "task": task.name,
        "params": json.dumps(params),
        "id": record["id"],
    }


ROWS = {"verl": verl_row, "trl": trl_row}


def table(rows: Iterable[dict[str, Any]], format: str) -> bytes:
    """Returns rows as a Parquet file; `datasets.load_dataset` decodes the pictures of the `trl` format."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    messages = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    if format == "verl":
        extra = [("index", pyarrow.int64()), *((name, text) for name in ("id", "task", "knobs", "params"))]
        schema = pyarrow.schema(
            [
                ("data_source", text),
                ("prompt", messages),
                ("images", pyarrow.list_(picture)),
                ("ability", text),
                ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
                ("extra_info", pyarrow.struct(extra)),
            ]
        )
    else:
        words = ("solution", "task", "params", "id")
        value = {"dtype": "string", "_type": "Value"}
        features = {
            "prompt": [{"role": value, "content": value}],
            "image": {"_type": "Image"},
            **dict.fromkeys(words, value),
        }
        schema = pyarrow.schema(
            [("prompt", messages), ("image", picture), *((name, text) for name in words)],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()
