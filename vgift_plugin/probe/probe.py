"""`vgift probe`: does a trained model use its pictures, and does a data set need them?"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from .. import __version__
from ..data.arguments import option
from ..data.files import write_whole
from ..data.jobs import Job
from ..data.photos import fingerprint
from ..data.records import read_records
from ..errors import ConfigError, SelfTestError
from ..hosts.checkpoint import Checkpoint, device_of
from ..hosts.loading import Found, find
from ..methods.vgift.flags import VgiftFlags
from ..methods.vgift.self_test import self_test
from ..methods.vgift.stream import Stream
from ..methods.vgift.streams import streams
from ..report.page import check_outputs
from . import describe_first as describing
from . import task_accuracy as accuracy
from . import visual_contribution as contribution
from .page import records_page, tasks_page

LEAST = 2  # samples, so that there is another one's picture to show
NAMED = 20  # left-out records named on the terminal; the JSON has all of them


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Whether a trained model looks: self-supervised tasks, asked with their picture, blind, and with another picture.

    With tasks: generates greedy answers to n samples of each, with their pictures, with a grey square, and with another
    sample's, and scores them exactly. Without: measures on n records of `data_path` how much likelier the reference
    answers are by their pictures. Training's seed is 0 by default, so other samples are asked for here.
    """

    EXAMPLE: ClassVar[str] = (
        "examples:\n  vgift probe --model_path CKPT --ssl_tasks rotation,color --image_folder DIR -o probe.html\n"
        "  vgift probe --model_path LORA --model_base BASE --data_path my.json --image_folder DIR -o records.html\n\n"
        "Run it again to go on after an interruption."
    )

    model_path: str = option(help="a LLaVA: folder, or name on the Hub", metavar="CKPT")
    model_base: Optional[str] = option(None, "what a LoRA adapter or a projector was trained on", metavar="BASE")
    image_folder: str = option(help="images; with --data_path what its paths are relative to", metavar="DIR")
    data_path: Optional[str] = option(
        None, "LLaVA records: measured, or with --ssl_tasks those whose images are used", metavar="JSON"
    )
    ssl_tasks: Optional[str] = option(None, "tasks to ask, such as rotation,color")
    ssl_config: Optional[str] = option(None, "YAML or JSON file with the tasks' knobs", metavar="FILE")
    ssl_pairs: Optional[str] = option(None, "pairs of photographs, for tasks that take pairs", metavar="FILE")
    n: int = option(500, "samples of each task, or records", short="-n", metavar="N")
    output: str = option("probe.html", "the page", short="-o", metavar="FILE")
    json: Optional[str] = option(None, "all numbers as JSON", metavar="FILE")
    resume: Optional[str] = option(None, "the journal of answers, to go on with; default: OUTPUT.jsonl", metavar="FILE")
    batch_size: int = option(16, "questions at once", metavar="N")
    device: Optional[str] = option(None, "cuda, cpu or cuda:1; default: cuda where there is one", metavar="D")
    seed: int = option(1, "of the samples; give another one than training had", metavar="N")
    conv_mode: Optional[str] = option(
        None,
        "the chat template the model was trained with; default: as LLaVA's evaluation chooses, else v1",
        metavar="NAME",
    )
    describe_first: bool = option(False, "records: also measure answers after the model's own description")

    def run(self) -> str:
        """Writes the page, and returns the table for the terminal.

        Raises:
            ConfigError: a flag, a path or the checkpoint is not usable; nothing was measured.
        """
        flags = {name: getattr(self, name) for name in ("ssl_tasks", "ssl_config", "ssl_pairs")}
        asked = VgiftFlags.of({**flags, "ssl_seed": self.seed})
        asks = asked.tasks()
        mistakes = []
        if not asks and self.data_path is None:
            mistakes.append(
                "name what to probe with: --ssl_tasks for self-supervised samples, or --data_path for records"
            )
        if not asks:
            mistakes += [f"--{name} needs --ssl_tasks" for name, value in flags.items() if value is not None]
        if asks and self.describe_first:
            mistakes.append("--describe_first is about the records of --data_path, without --ssl_tasks")
        if self.n < LEAST:
            mistakes.append(f"-n {self.n}: at least {LEAST}, for another one's picture to be shown")
        if self.batch_size < 1:
            mistakes.append(f"--batch_size {self.batch_size}: at least 1")
        if not Path(self.image_folder).is_dir():
            mistakes.append(f"--image_folder {self.image_folder}: there is no such folder")
        if mistakes:
            raise ConfigError.of(mistakes)
        journal = Path(self.resume or f"{self.output}.jsonl")
        check_outputs(self.output, self.json, str(journal))
        records = read_records(self.data_path)
        what: dict[str, Any] = {"n": self.n, "seed": self.seed, "batch size": self.batch_size}
        if asks:
            made = streams(asked, asks, records, self.image_folder, None)
            for ask_, stream in zip(asks, made, strict=True):
                what |= {
                    f"--ssl_tasks, {ask_.task.name}": repr(ask_.task),
                    f"photographs of {ask_.task.name}": stream.source.fingerprint(),
                }
        else:
            chosen, left_out = _chosen(records or (), self.n, self.seed, self.image_folder, str(self.data_path))
            what["--data_path, records"] = fingerprint(json.dumps(chosen.record(k)) for k in range(len(chosen)))
            what |= {"--describe_first": True} if self.describe_first else {}
        found = find(self.model_path, self.model_base, self.conv_mode)
        device = device_of(self.device)
        model = {
            "--model_path": self.model_path,
            "--model_base": self.model_base,
            "--conv_mode": found.template,
            "--device": device,
        }
        settings = {**model, "weights": found.weights, **what, "vgift-plugin": __version__}
        load = functools.cache(lambda: Checkpoint.of(found, device))  # not at all where all is in the journal
        with Job(journal, settings, flag="--resume FILE", alone=True) as job:
            if asks:
                table, result, page = _tasks(job, load, made, self.n, self.batch_size)
            else:
                table, result, page = _records(job, load, chosen, left_out, self.batch_size, self.describe_first)
        how_many = f"{self.n:,} samples a task" if asks else f"{len(chosen):,} records of {self.data_path}"
        about = f"{_who(found)}, {how_many}, seed {self.seed}, on {device}"
        write_whole(Path(self.output), page(about, table).encode())
        if self.json is not None:
            write_whole(Path(self.json), (json.dumps({"settings": settings, **result}, indent=1) + "\n").encode())
        listed = "worst mistakes" if asks else "records that need their picture least"
        return f"{table}\n{about}\n{self.output}: the {listed}"


def _who(found: Found) -> str:
    base = f" on {found.base}" if found.base else ""
    return f"{found.path}{base} with the template {found.template} (--conv_mode)"


def _chosen(
    records: Sequence[dict], n: int, seed: int, image_folder: str, data_path: str
) -> tuple[contribution.Measured, dict[str, int]]:
    positions, left_out = contribution.candidates(records)
    if not positions:
        why = "; ".join(f"{reason}: {count:,}" for reason, count in left_out.items())
        raise ConfigError(f"--data_path {data_path}: none of its {len(records):,} records has one picture ({why})")
    return contribution.Measured(records, contribution.choose(positions, n, seed), image_folder, data_path), left_out


def _tasks(job: Job, load: Callable[[], Checkpoint], made: Sequence[Stream], n: int, batch_size: int) -> tuple:
    """Asks the samples of all tasks; returns (table, content of the JSON, function of (about, table) for the page)."""
    results, rows = {}, {}
    tested: set[str] = set()
    for stream in made:
        name = stream.task.name

        def ask(block: range, stream: Stream = stream) -> list[dict]:
            checkpoint = load()
            if stream.task.name not in tested:
                _test(stream, checkpoint)
                tested.add(stream.task.name)
            return accuracy.ask(checkpoint, stream, block, n)

        rows[name] = list(job.complete(name, n, ask, block_size=batch_size) or ())
        results[name] = accuracy.tabulate(rows[name], stream.task.chance)
    return accuracy.table(results), {"tasks": results}, functools.partial(tasks_page, made, results, rows)


def _test(stream: Stream, checkpoint: Checkpoint) -> None:
    """Runs the self-test on a few samples, as training does before its first step."""
    try:
        self_test(stream, checkpoint, checkpoint.template, checkpoint.tokenizer, checkpoint.host)
    except SelfTestError as err:
        raise SelfTestError(f"{err} (The template is --conv_mode here.)") from err


def _records(
    job: Job,
    load: Callable[[], Checkpoint],
    chosen: contribution.Measured,
    left_out: dict[str, int],
    batch_size: int,
    describe_first: bool,
) -> tuple:
    """Measures the chosen records; returns (table, content of the JSON, function of (about, table) for the page)."""

    def ask(block: range) -> list[dict]:
        return describing.ask(load(), chosen, block) if describe_first else chosen.measure(load(), block)

    rows = list(job.complete("records", len(chosen), ask, block_size=batch_size) or ())
    measured = [row for row in rows if "left_out" not in row]
    unread = [{name: row[name] for name in ("id", "image", "left_out")} for row in rows if "left_out" in row]
    if not measured:
        raise ConfigError(
            f"none of the {len(rows):,} chosen records of {chosen.data_path} can be measured: "
            + "; ".join(f"{row['id']} ({chosen.image_folder}/{row['image']}): {row['left_out']}" for row in unread[:3])
        )
    results = contribution.tabulate(measured)
    measured.sort(key=lambda row: (contribution.gains(row)[contribution.BLANK], row["number"]))
    table = contribution.table(results)
    if left_out:
        table += "\nrecords of no use here: " + ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
    if unread:
        reasons = Counter(row["left_out"] for row in unread).most_common()
        table += "\nchosen and left out: " + ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        table += "".join(f"\n  {row['id']}: {row['image']}: {row['left_out']}" for row in unread[:NAMED])
        table += f"\n  … and {len(unread) - NAMED:,} more" if len(unread) > NAMED else ""
    fields = ("id", "image", "tokens", *contribution.PICTURES, "wrong_image")
    listed = [{**{name: row[name] for name in fields}, "gains": contribution.gains(row)} for row in measured]
    result: dict[str, Any] = {"pictures": results, "of_no_use": left_out, "left_out": unread, "records": listed}
    if describe_first:
        result["describe_first"] = describing.tabulate(measured)
        table += "\n" + describing.table(result["describe_first"])
        for one, row in zip(listed, measured, strict=True):
            one |= {name: row[name] for name in describing.FIELDS if name in row}
    return table, result, functools.partial(records_page, chosen, measured)
