"""The benchmarks run and print every row; no test asserts on time."""

import json
import sys

import pytest
from conftest import ROOT, call

from vgift_plugin import task_names

pytestmark = pytest.mark.host
TASKS = ("rotation", "color", "correspondence")


def test_the_bench_prints_every_row_and_writes_it_down(tmp_path):
    done = call([sys.executable, ROOT / "scripts" / "bench.py", "--small", "--json", tmp_path / "rows.json"])
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = [row["row"] for row in rows]
    for size in ("640×480", "2000×1500"):
        for task in TASKS:
            assert f"{size}: {task}, file to tensors / an ordinary sample" in names
            assert f"{size}: {task}, draw + render + ask / decode" in names
        for task in task_names():
            assert f"{size}: {task}, file to tensors / an ordinary sample" in names
        assert f"{size}: mean of the three, file to tensors" in names
    for part in (
        "949 names",
        "DataLoader",
        "worker's memory",
        "--instruct_loss: an ordinary sample",
        "--instruct_loss: a training step",
        "upstream's lengths",
        "100,000,000",
        "python -c pass",
        "llava",
    ):
        assert any(part in name for name in names), part
    assert all(name in done.stdout for name in names)
    for row in rows:
        assert set(row) == {"row", "value", "target", "baseline_ms", "ours_ms"}
        assert row["value"] == row["ours_ms"] / row["baseline_ms"] > 0


def test_the_replay_bench_runs():
    done = call([sys.executable, ROOT / "scripts" / "bench_replay.py", "--slice", 12])
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("export, 1 process", "export, 2 processes", "painting them", "GB", "loading one file"):
        assert part in done.stdout
