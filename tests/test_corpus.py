"""Broken and odd files among photographs: nothing crashes or hangs, and every redraw is counted."""

import json

import corpus
import pytest
from conftest import HAS_HOST, VGIFT, arguments, call

from vgift_plugin.data.photos import from_folder
from vgift_plugin.errors import UnsuitableImage
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams

BROKEN, GOOD = 300, 900
TASKS = "rotation,color,correspondence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "images"
    corpus.make(path, BROKEN, GOOD)
    return path


@pytest.fixture(scope="module")
def unsuitable(folder):
    """{name: reason} of all files that are no photographs."""
    source, result = from_folder(str(folder)), {}
    for k in range(len(source)):
        try:
            source.open(k)
        except UnsuitableImage as err:
            result[source.name(k)] = err.reason
    return result


def test_every_file_is_a_photograph_or_has_a_reason(unsuitable):
    reasons = set(unsuitable.values())
    assert reasons == {"unreadable", "too many pixels", "more than 8 bits", "missing file", "not a file"}
    assert BROKEN / 4 < len(unsuitable) < BROKEN and not any(name.startswith("good-") for name in unsuitable)


def test_every_redraw_of_an_epoch_is_counted(folder, unsuitable):
    """An epoch that shows each photograph once meets each broken file once, and those drawn instead."""
    flags = VgiftFlags(ssl_tasks="rotation", ssl_config=None)
    (stream,) = streams(flags, flags.tasks(), None, str(folder), None)
    met, samples = [], []
    for j in range(len(stream.source)):
        samples.append(stream(0, j, lambda task, reason: met.append(reason)))
    assert sum(sample.redraws for sample in samples) == len(met) >= len(unsuitable)
    small = {"too small", "too narrow", "near-uniform", "flat"}
    assert set(unsuitable.values()) <= set(met)
    assert small & set(met)


def test_export_preview_and_audit_end_well(folder, tmp_path):
    flags = ["--ssl_tasks", TASKS, "--image_folder", folder]
    export = [*VGIFT, "export", *flags, "--format", "messages", "-n", 200, "--workers", 2, "-o", tmp_path / "out"]
    preview = [*VGIFT, "preview", *flags, "-n", 40, "-o", tmp_path / "preview.html"]
    audit = [*VGIFT, "audit", *flags, "-n", 200, "-o", tmp_path / "audit.html"]
    for command in (export, preview, audit):
        done = call(command)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr  # 1: the audit found a leak
    redraws = json.loads((tmp_path / "out" / "export.json").read_text())["redraws"]
    assert set(redraws) == set(TASKS.split(",")) and all(reasons["unreadable"] > 1 for reasons in redraws.values())


@pytest.mark.host
def test_training_ends_well(folder, tmp_path, train_flags):
    assert HAS_HOST
    train = ["-m", "llava.train.train", *arguments(train_flags, output_dir=tmp_path / "out", dataloader_num_workers=2)]
    flags = arguments({"ssl_tasks": TASKS, "ssl_ratio": 1.0, "ssl_image_folder": folder})
    done = call([*VGIFT, "run", *flags, "--", VGIFT[0], *train])
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "vgift_mix.json").read_text())["redraws"]
