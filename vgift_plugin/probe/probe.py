"""`vgift probe`: does a trained model use its pictures, and does a data set need them?"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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


def probe(
    flags: dict,
    model_path: str,
    image_folder: str,
    *,
    model_base: str | None = None,
    data_path: str | None = None,
    n: int = 500,
    output: str = "probe.html",
    json_path: str | None = None,
    resume: str | None = None,
    batch_size: int = 16,
    device: str | None = None,
    seed: int = 1,
    conv_mode: str | None = None,
    describe_first: bool = False,
) -> str:
    """Probes a checkpoint, and writes a page.

    With tasks, greedy answers to n samples of each are generated with their pictures, with a grey square, and with
    another sample's picture, and scored exactly. Without tasks, the gain in likelihood of the reference answers by
    their pictures is measured on n records of `data_path`.

    Args:
        flags: {flag: value} as given.
        model_path: a LLaVA checkpoint, see `hosts.loading.find`.
        image_folder: photographs, searched recursively; with `data_path`, the folder its paths are relative to.
        model_base: the base model of an adapter.
        data_path: LLaVA records to measure; with tasks, the records whose pictures are used for samples.
        n: number of samples of each task, or of records, chosen by the seed.
        output: the page, `.html`.
        json_path: file for the numbers as JSON, or None.
        resume: the journal, from which a rerun resumes; by default `OUTPUT.jsonl`.
        batch_size: questions at once.
        device: see `hosts.checkpoint.device_of`.
        seed: seed of samples and of the choice of records; it differs from training's default, 0, to get new samples.
        conv_mode: the chat template, see `hosts.loading.find`.
        describe_first: with records, also measures answers after the model's own description; see `describe_first`.

    Returns:
        the table for the terminal.

    Raises:
        ConfigError: a flag, a path or the checkpoint is not usable; nothing was measured.
    """
    asked = VgiftFlags.of({**flags, "ssl_seed": seed})
    asks = asked.tasks()
    mistakes = []
    if not asks and data_path is None:
        mistakes.append("name what to probe with: --ssl_tasks for self-supervised samples, or --data_path for records")
    if not asks:
        mistakes += [f"--{name} needs --ssl_tasks" for name in flags if name not in ("ssl_tasks", "ssl_seed")]
    if asks and describe_first:
        mistakes.append("--describe_first is about the records of --data_path, without --ssl_tasks")
    if n < LEAST:
        mistakes.append(f"-n {n}: at least {LEAST}, for another one's picture to be shown")
    if batch_size < 1:
        mistakes.append(f"--batch_size {batch_size}: at least 1")
    if not Path(image_folder).is_dir():
        mistakes.append(f"--image_folder {image_folder}: there is no such folder")
    if mistakes:
        raise ConfigError.of(mistakes)
    journal = Path(resume or f"{output}.jsonl")
    check_outputs(output, json_path, str(journal))
    records = read_records(data_path)
    what: dict[str, Any] = {"n": n, "seed": seed, "batch size": batch_size}
    if asks:
        made = streams(asked, asks, records, image_folder, None)
        for ask_, stream in zip(asks, made, strict=True):
            what |= {
                f"--ssl_tasks, {ask_.task.name}": repr(ask_.task),
                f"photographs of {ask_.task.name}": stream.source.fingerprint(),
            }
    else:
        chosen, left_out = _chosen(records, n, seed, image_folder, data_path)
        what["--data_path, records"] = fingerprint(json.dumps(chosen.record(k)) for k in range(len(chosen)))
        what |= {"--describe_first": True} if describe_first else {}
    found = find(model_path, model_base, conv_mode)
    device = device_of(device)
    model = {"--model_path": model_path, "--model_base": model_base, "--conv_mode": found.template, "--device": device}
    settings = {**model, "weights": found.weights, **what, "vgift-plugin": __version__}
    load = functools.cache(lambda: Checkpoint.of(found, device))  # not called if the journal is complete
    with Job(journal, settings, flag="--resume FILE", alone=True) as job:
        if asks:
            table, result, page = _tasks(job, load, made, n, batch_size)
        else:
            table, result, page = _records(job, load, chosen, left_out, batch_size, describe_first)
    how_many = f"{n:,} samples a task" if asks else f"{len(chosen):,} records of {data_path}"
    about = f"{_who(found)}, {how_many}, seed {seed}, on {device}"
    write_whole(Path(output), page(about, table).encode())
    if json_path is not None:
        write_whole(Path(json_path), (json.dumps({"settings": settings, **result}, indent=1) + "\n").encode())
    return f"{table}\n{about}\n{output}: the {'worst mistakes' if asks else 'records that need their picture least'}"


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

        rows[name] = list(job.complete(name, n, ask, block_size=batch_size))
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

    rows = list(job.complete("records", len(chosen), ask, block_size=batch_size))
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
    result = {"pictures": results, "of_no_use": left_out, "left_out": unread, "records": listed}
    if describe_first:
        result["describe_first"] = describing.tabulate(measured)
        table += "\n" + describing.table(result["describe_first"])
        for one, row in zip(listed, measured, strict=True):
            one |= {name: row[name] for name in describing.FIELDS if name in row}
    return table, result, functools.partial(records_page, chosen, measured)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Test whether a trained model looks: ask self-supervised tasks with their picture, blind, and with another one.

    Without --ssl_tasks, the records of --data_path are measured: how much likelier does the picture make their answers?
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
        """See `probe`."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        flags = {name: given.pop(name) for name in ("ssl_tasks", "ssl_config", "ssl_pairs")}
        return probe(
            {name: value for name, value in flags.items() if value is not None}, json_path=given.pop("json"), **given
        )
