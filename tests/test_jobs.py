"""Jobs: however they are killed, resumed and shared, the result is the same to the byte."""

import errno
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, build_llava, call

from vgift_plugin.data.files import publish, write_files, write_report
from vgift_plugin.data.jobs import FileJob, Job
from vgift_plugin.data.journal import Journal
from vgift_plugin.data.workers import computed
from vgift_plugin.errors import ConfigError

PROCESSES = multiprocessing.get_context("forkserver")  # imports LLaVA once, then a process starts at once
PROCESSES.set_forkserver_preload(["llava.train.train", "llava.model.builder", "vgift_plugin.cli"])
LIBRARIES = {"export-webdataset": "webdataset", "export-verl": "pyarrow", "export-trl": "pyarrow"}
KILLS = int(os.environ.get("VGIFT_KILLS", "2"))
STOPS = ((1, signal.SIGKILL), (2, signal.SIGKILL), (4, signal.SIGTERM), (3, signal.SIGINT))


def tree(folder):
    """Returns {path: hash} of all files that are no parts of an unfinished job."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and ".parts" not in str(path.relative_to(folder))
    }


# -- the commands


def exported(format):
    def command(fixture, out):
        flags = f"--ssl_tasks rotation,color,correspondence -n 6 --chunk_size 2 --workers 2 --format {format}"
        return ["export", *flags.split(), "--image_folder", fixture("photos"), "-o", out / "export"]

    return command


def paired(fixture, out):
    """Without a list: features, neighbours, pairs."""
    flags = "--batch_size 2 --min_margin 0.02 --max_global_similarity 0.99999"
    return ["pairs", *flags.split(), "--image_folder", fixture("others"), "--model", fixture("dinov2"), "-o", out / "x"]


def asked(job, *flags):
    def command(fixture, out):
        given = ["--model-path", fixture("untrained"), "-o", out / "x.html"]
        given += ["--image_folder", fixture("others" if job[-1] == "prefer" else "photos")]
        given += ["--data_path", fixture("data_path")] if job[-1] == "describe" else []
        return [*job, *given, *" ".join(flags).split()]

    return command


COMMANDS = {
    **{f"export-{format}": exported(format) for format in ("llava", "webdataset", "messages", "verl", "trl")},
    "pairs": paired,
    "prefer": asked(["stic", "prefer"], "--batch-size 1 --max-new-tokens 3"),
    "describe": asked(["stic", "describe"], "--batch-size 1 --max-new-tokens 3"),
    "probe": asked(["probe"], "--ssl_tasks rotation,color -n 9 --batch-size 2"),
}


@pytest.fixture(scope="session")
def untrained(tiny, tmp_path_factory):
    """A LLaVA checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("untrained") / "llava"
    process = PROCESSES.Process(target=_save_checkpoint, args=(*tiny, folder))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


def _save_checkpoint(llm, tower, folder):
    from transformers import AutoTokenizer

    build_llava(llm, tower).save_pretrained(folder)
    AutoTokenizer.from_pretrained(llm, use_fast=False).save_pretrained(folder)


class Run:
    """`vgift` in a process of its own.

    Args:
        command: its arguments.
        log: what it prints.
        stop: (n, signal): it sends itself the signal in its n-th write to a journal, after half of the last line.
    """

    def __init__(self, command, log, stop=None, rank=0, world=1):
        self.log = log
        ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        self.process = PROCESSES.Process(target=_run, args=(list(map(str, command)), log, stop, ranks))
        self.process.start()

    def end(self):
        """Returns (exit code, what was printed)."""
        self.process.join(100)
        return self.process.exitcode, self.log.read_text()


def _run(command, log, stop, ranks):
    with suppress(ProcessLookupError):
        os.setpgrp()  # with its workers
    os.environ.update({name: str(value) for name, value in ranks.items()}, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1), os.dup2(fd, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    from vgift_plugin.cli import main

    if command[0] == "pairs":
        from vgift_plugin.methods.vgift.pairs import job

        job.PHOTOS_IN_BLOCK = 2
    if stop is not None:
        append, writes = Journal.append, itertools.count(1)

        def stopping(journal, entries):
            entries = list(entries)
            if next(writes) == stop[0]:
                append(journal, entries[:-1])
                os.write(journal._fd, json.dumps(entries[-1]).encode()[:30])
                os.kill(os.getpid(), stop[1])
            append(journal, entries)

        Journal.append = stopping
    sys.exit(main(command))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.host] * (not name.startswith("export"))) for name in COMMANDS]
)
def test_stopped_resumed_and_shared_it_writes_the_same_bytes(name, request, tmp_path):
    def command(out):
        return COMMANDS[name](request.getfixturevalue, tmp_path / out)

    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    (tmp_path / "whole").mkdir(), (tmp_path / "stopped").mkdir()
    code, said = Run(command("whole"), tmp_path / "log").end()
    assert code == 0, said
    for stop in STOPS:
        code, said = Run(command("stopped"), tmp_path / "log", stop).end()
        assert code == (1 if stop[1] == signal.SIGINT else -stop[1]), said
        assert tree(tmp_path / "stopped") != tree(tmp_path / "whole")
    assert "interrupted; run the same command again to go on" in said
    world = 1 if name == "probe" else 2
    ranks = [Run(command("stopped"), tmp_path / f"log{rank}", None, rank, world) for rank in range(world)]
    for code, said in [rank.end() for rank in ranks]:
        assert code == 0, said
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")
    code, said = Run(command("stopped"), tmp_path / "log").end()
    assert code == 0 and "template v1, torch" not in said, said  # nothing to ask, nothing loaded
    flag, begun = ("--epoch", "epoch: begun with 0") if "export" in name else ("--seed", "seed: begun with")
    code, said = Run([*command("stopped"), flag, 5], tmp_path / "log").end()
    assert code == 2 and f"{begun}" in said and ", now 5\nGive those it was begun with, or another -" in said, said
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.host] * (not name.startswith("export"))) for name in COMMANDS]
)
def test_killed_at_any_time_it_leaves_no_process_and_no_file(name, request, tmp_path):
    """`VGIFT_KILLS=200 pytest tests/test_jobs.py -k killed_at` kills each command 200 times."""
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])

    def command(out):
        return COMMANDS[name](request.getfixturevalue, tmp_path / out)

    def begin(out):
        return Run(command(out), tmp_path / "log")

    (tmp_path / "whole").mkdir(), (tmp_path / "stopped").mkdir()
    begun = time.monotonic()
    code, said = begin("whole").end()
    takes_s = time.monotonic() - begun
    assert code == 0, said
    rng, kills = random.Random(name), 0
    while kills < KILLS:
        run = begin("stopped")
        run.process.join(rng.uniform(0, takes_s))
        if run.process.exitcode is None:
            run.process.kill()
            run.process.join()
            kills += 1
            wait_for_end_of(run)
        else:
            assert run.process.exitcode == 0, run.log.read_text()
            assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")
            shutil.rmtree(tmp_path / "stopped")
            (tmp_path / "stopped").mkdir()
    code, said = begin("stopped").end()
    assert code == 0, said
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")
    assert not [path for path in (tmp_path / "stopped").rglob("*") if "tmp" in path.name]


def wait_for_end_of(run):
    """Waits until no process of a killed run is left."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(run.process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its parent")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(photos, tmp_path, number):
    """Standard output ends with the last process that has it open."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    command = [*VGIFT, "export", "--ssl_tasks", "rotation", "--image_folder", photos, "-n", 400, "--format", "messages"]
    command += ["--chunk_size", 5, "--workers", 2, "-o", tmp_path / "out"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    signal.signal(signal.SIGINT, before)
    journal = tmp_path / "out" / ".parts" / "rank-0.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == -number and journal.exists(), said
    assert ("interrupted; run the same command again" in said) == (number == signal.SIGINT)


def test_a_killed_worker_is_told():
    with pytest.raises(ConfigError, match=r"a worker process was killed.*fewer --workers"):
        list(computed([range(1), range(1, 2)], lambda block: os.kill(os.getpid(), signal.SIGKILL), 2))


# -- Job


def squares(block):
    return [{"square": k * k} for k in block]


def lines_of(journal):
    return journal.read_bytes().splitlines(keepends=True)


def test_a_block_is_computed_whole_and_only_what_is_missing_is_added(tmp_path):
    journal, asked = tmp_path / "job" / "rank-0.jsonl", []

    def compute(block):
        asked.append(block)
        return squares(block)

    for _ in range(2):
        with Job(tmp_path / "job", {"seed": 0}) as job:
            found = list(job.complete("squares", 10, compute, block_size=4))
            assert found == [{"number": k, "square": k * k} for k in range(10)]
    whole = lines_of(journal)
    assert asked == [range(4), range(4, 8), range(8, 10)] and len(whole) == 11
    journal.write_bytes(b"".join(whole[:7]) + whole[7][:9])
    with Job(tmp_path / "job", {"seed": 0}) as job:
        list(job.complete("squares", 10, compute, block_size=4))
    assert asked[3:] == [range(4, 8), range(8, 10)] and lines_of(journal) == whole


def test_ranks_come_one_after_another_and_in_another_number(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    with FileJob(f"{tmp_path}/x", {}) as job:
        assert job.complete("squares", 24, squares, block_size=4) is None
        assert job.left("squares", 24).startswith("rank 2 of 3 is done; 16 of 24 squares are left for the other ranks")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match="RANK 2 is not below WORLD_SIZE 1"):
        FileJob(f"{tmp_path}/x", {})
    monkeypatch.setenv("RANK", "0")
    with FileJob(f"{tmp_path}/x", {}) as job:
        assert [item["square"] for item in job.complete("squares", 24, squares, block_size=4)][-1] == 529
    assert len(lines_of(tmp_path / "x.parts" / "rank-2.jsonl")) == 9


def test_a_rank_waits_for_the_others(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = Job(tmp_path, {})
    monkeypatch.setenv("RANK", "1")
    with Job(tmp_path, {}) as second:
        late = threading.Timer(0.7, lambda: first.complete("squares", 5, squares))
        late.start()
        assert len(list(second.complete("squares", 5, squares, wait=True))) == 5
    late.join()
    first.close()
    assert "squares: waiting for 3 of 5, of rank 0" in caplog.text


def test_items_whose_files_are_damaged_are_computed_again(tmp_path, caplog):
    def compute(block):
        return [{"files": write_files(tmp_path, [(f"{k}/{name}", b"%d" % k) for name in "ab"])} for k in block]

    def run():
        with Job(tmp_path / "parts", {}, root=tmp_path) as job:
            list(job.complete("files", 5, compute, workers=2))
        return {str(path): path.read_bytes() for path in tmp_path.glob("?/?")}

    caplog.set_level(logging.WARNING, "vgift_plugin")  # a test before this one may have asked for more
    whole = run()
    assert len(whole) == 10 and run() == whole and not caplog.text
    (tmp_path / "1" / "a").unlink()
    (tmp_path / "2" / "b").write_bytes(b"")
    (tmp_path / "4" / "a").write_bytes(b"5")
    assert run() == whole
    assert "3 files are missing or damaged and are made again: 1/a, 2/b, 4/a" in caplog.text
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_is_told_and_leaves_nothing_torn(tmp_path, monkeypatch):
    fsync, calls = os.fsync, itertools.count(1)

    def full(fd):
        if next(calls) == 5:  # after the settings, and file, folder and line of the first item
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    def compute(block):
        return [{"files": write_files(tmp_path, [(f"{block.start}.txt", b"x")], tmp_path / "parts")}]

    monkeypatch.setattr(os, "fsync", full)
    told = r"1\.txt: No space left on device\. Make room and run the same command again"
    with pytest.raises(ConfigError, match=told), Job(tmp_path / "parts", {}, root=tmp_path) as job:
        job.complete("files", 3, compute)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["0.txt", "rank-0.jsonl"]
    with Job(tmp_path / "parts", {}, root=tmp_path) as job:
        assert len(list(job.complete("files", 3, compute))) == 3


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, step, number):
    path = tmp_path / "page.html"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(Path, "open", fail)
        elif step == "write":
            patch.setattr(Path, "write_bytes", fail)
        else:
            patch.setattr(os, step, fail)
        with pytest.raises(OSError, match=re.escape(f"{os.strerror(number)}: '{path}'")):
            write_files(tmp_path, [("page.html", b"new")])
        write_report(path, "new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_journal_that_is_written_in_pieces_is_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    with Job(tmp_path / "job", {"seed": 0}) as job:
        list(job.complete("squares", 5, squares))
    assert [json.loads(line).get("square") for line in lines_of(tmp_path / "job" / "rank-0.jsonl")] == [
        None,
        0,
        1,
        4,
        9,
        16,
    ]


LIMITED = """
import resource, sys
from vgift_plugin.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["preview", "audit", "export"])
def test_commands_that_find_no_room_end_with_one_sentence(name, photos, tmp_path):
    """A limit on the size of files acts as a full disk."""
    out = tmp_path / ("out" if name == "export" else "page.html")
    flags = ["--ssl_tasks", "rotation", "--image_folder", photos, "-n", 60, "-o", out]
    flags += ["--format", "webdataset", "--workers", 2] if name == "export" else []
    done = call([sys.executable, "-c", LIMITED, name, *flags], MPLCONFIGDIR=tmp_path / "matplotlib")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"vgift: error: {out}" in done.stderr and "File too large" in done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".parts" not in path.parts]
    assert not [path for path in left if "matplotlib" not in path.parts]


def test_a_job_started_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vgift_plugin.data.journal.PATIENCE_S", 0.1)
    with Job(tmp_path / "job", {}) as job:
        list(job.complete("squares", 1, squares))
        with pytest.raises(ConfigError, match=r"rank-0\.jsonl is being written by another process.* started twice"):
            Job(tmp_path / "job", {})
    Job(tmp_path / "job", {}).close()


def test_all_other_settings_are_named_and_nothing_is_changed(tmp_path, monkeypatch):
    with FileJob(f"{tmp_path}/x", {"seed": 0, "n": 5, "knobs": (1, 2)}) as job:
        job.agree("list", lambda: [3])
    with FileJob(f"{tmp_path}/x", {"seed": 0, "n": 5, "knobs": [1, 2]}) as job:
        assert job.agree("list", lambda: [4]) == [3]
        list(job.complete("squares", 2, squares))
    parts = tmp_path / "x.parts"
    before = lines_of(parts / "rank-0.jsonl")
    for rank in "01":
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ConfigError) as refused:
            FileJob(f"{tmp_path}/x", {"seed": 1, "device": "cpu", "knobs": (1, 2)})
        assert str(refused.value).splitlines() == [
            f"{parts}/rank-0.jsonl was begun with other settings:",
            "  device: begun with None, now cpu",
            "  n: begun with 5, now None",
            "  seed: begun with 0, now 1",
            f"Give those it was begun with, or another -o, or remove {tmp_path}/x and {parts} to begin anew.",
        ]
    assert list(parts.glob("*.jsonl")) == [parts / "rank-0.jsonl"] and lines_of(parts / "rank-0.jsonl") == before


def test_what_is_no_job_is_left_as_it_is(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ConfigError, match=r"x exists, and .*x\.parts does not"):
        FileJob(f"{tmp_path}/x", {})
    with pytest.raises(ConfigError, match="x is no journal of vgift; give another --resume"):
        Job(tmp_path / "x", {}, flag="--resume", alone=True)
    with pytest.raises(ConfigError, match=r"-o: .*Not a directory.*x/y\.parts"):
        FileJob(f"{tmp_path}/x/y", {})
    assert (tmp_path / "x").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_job_that_came_to_nothing_leaves_nothing_behind(tmp_path, alone):
    with pytest.raises(ConfigError, match="no picture"), Job(tmp_path / "job", {}, alone=alone) as job:
        job.complete("squares", 3, lambda block: (_ for _ in ()).throw(ConfigError("no picture")))
    assert not list(tmp_path.iterdir())


def test_an_unfinished_line_is_cut_off_and_a_damaged_one_told(tmp_path):
    with Job(tmp_path, {}) as job:
        list(job.complete("squares", 2, squares))
    journal = tmp_path / "rank-0.jsonl"
    whole = lines_of(journal)
    (tmp_path / "rank-1.jsonl").write_bytes(whole[0] + whole[1][:-1])  # being written
    journal.write_bytes(b"".join(whole) + whole[1][:-1])
    with Job(tmp_path, {}) as job:
        assert len(list(job.complete("squares", 2, squares))) == 2
    assert lines_of(journal) == whole
    for damage in (b"\0\0\n", b'{"number": 4}\n', b"[]\n"):
        (tmp_path / "rank-1.jsonl").write_bytes(b"".join(whole) + damage)
        with pytest.raises(ConfigError, match=r"rank-1\.jsonl: line 4 is damaged .*; remove that line"):
            Job(tmp_path, {})


@pytest.mark.parametrize("links", [True, False])
def test_of_published_files_the_first_stays(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    publish(tmp_path / "x", b"first")
    publish(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == (b"first" if links else b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_written_files_replace_older_ones_or_leave_them(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "y").mkdir()
    with pytest.raises(OSError, match=r"y'$"):
        write_files(tmp_path, [("y", b"new"), ("x", b"new")])
    assert (tmp_path / "x").read_bytes() == b"old"
    assert write_files(tmp_path, [("z/x", b"1"), ("z/x", b"23")]).keys() == {"z/x"}
    assert (tmp_path / "z" / "x").read_bytes() == b"23"
    shutil.rmtree(tmp_path / "z")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
