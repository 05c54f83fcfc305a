"""Ranks that would not train on the same mixture stop before they start, and say what differs."""

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, arguments, call, torchrun
from test_preference import rows_of, write

from vgift_plugin.hosts.ranks import differences

pytestmark = pytest.mark.host
TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
# Rank 1 gets other arguments than rank 0, as on a machine with other files.
RUN = """
import os, runpy, sys
from pathlib import Path
{setup}
if os.environ["RANK"] == "1":
    {other}
sys.argv[0] = {train!r}
runpy.run_path({train!r}, run_name="__main__")
"""


def test_differences_name_values_and_ranks():
    same = {"--ssl_seed": "0", "numpy": "1.26.4"}
    assert differences([same] * 8) == ""
    told = differences([same] * 6 + [{**same, "--ssl_seed": "1"}, {"--ssl_seed": "0"}])
    assert "--ssl_seed: 0 on ranks 0, 1, 2, 3 and 3 more; 1 on rank 6" in told
    assert "numpy: 1.26.4 on ranks 0, 1, 2, 3 and 3 more; nothing on rank 7" in told


def train(tmp_path, train_flags, other, setup="", **flags):
    script = tmp_path / "start.py"
    script.write_text(RUN.format(setup=setup, other=other, train=str(TRAIN)))
    command = [*torchrun(), script, *arguments(train_flags, output_dir=tmp_path / "out")]
    done = call([*VGIFT, "run", *arguments(flags), "--", *command], PYTHONPATH=f"{ROOT}:{TRAIN.parent}")
    assert done.returncode != 0 and "it/s" not in done.stderr and not list(tmp_path.glob("out/trainer*"))
    return done.stderr


def records_of_another_file(folder, train_flags, records):
    (folder / "base.json").write_text(json.dumps(records[1:]))
    return {}, {"data_path": folder / "base.json"}


def an_image_more(folder, train_flags, records):
    for name in ("a", "b"):
        (folder / name).mkdir()
        for photo in Path(train_flags["image_folder"]).iterdir():
            (folder / name / photo.name).symlink_to(photo)
    (folder / "b" / "more.jpg").symlink_to(photo)
    return {"ssl_image_folder": folder / "a"}, {"ssl_image_folder": folder / "b"}


def other_task_templates(folder, train_flags, records):
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text(json.dumps([f"Say {name}."]))
    flags = {"instruct_loss": "no_template", "instruct_templates": folder / "a.json"}
    return flags, {"instruct_templates": folder / "b.json"}


def other_preference_pairs(folder, train_flags, records):
    rows = rows_of(Path(train_flags["image_folder"]), 3)
    files = [write(folder / "a.jsonl", rows), write(folder / "b.jsonl", [*rows[:2], {**rows[2], "rejected": "No."}])]
    return {"preference_data": files[0]}, {"preference_data": files[1]}


def other_flags(folder, train_flags, records):
    return {}, {"ssl_seed": 5, "visual_token_drop": 0.5}


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (records_of_another_file, ["records: 16 (", "; 15 ("]),
        (an_image_more, ["images of rotation: 5 (", "; 6 ("]),
        (other_task_templates, ["task templates: 1 ("]),
        (other_preference_pairs, ["--preference_data: 3 ("]),
        (other_flags, ["--ssl_seed: 0 on rank 0; 5 on rank 1", "--visual_token_drop: 0.0 on rank 0; 0.5 on rank 1"]),
    ],
)
def test_what_differs_on_one_rank_is_told(tmp_path, train_flags, records, other, differs):
    all_ranks, one_rank = other(tmp_path, train_flags, records)
    if "preference_data" not in all_ranks:
        all_ranks = {"ssl_tasks": "rotation", "ssl_ratio": 0.5, **all_ranks}
    told = train(tmp_path, train_flags, f"sys.argv += {arguments(one_rank)!r}", **all_ranks)
    lines = {re.sub(r"^(\[rank\d\]:)? *", "", line) for line in told.splitlines() if " on rank 0; " in line}
    assert "would not train on the same mixture" in told
    assert all(any(part in line for line in lines) for part in differs), lines
    flags = [{one.split(":")[0] for one in some if one.startswith("--")} for some in (lines, differs)]
    assert flags[0] == flags[1]  # files are compared by what is in them


def test_a_rank_without_the_plugin_is_named(tmp_path, train_flags):
    """The flags never got there: it trains as ever, and waits for the others in its first collective."""
    setup = "from vgift_plugin.hosts import ranks; ranks.PATIENCE_S = 5.0"
    other = "import transformers, llava.train.train as host; from vgift_plugin import detach; detach(host); "
    other += "transformers.HfArgumentParser.__init__ = transformers.HfArgumentParser.__init__.__wrapped__"
    told = train(tmp_path, train_flags, other, setup=setup, ssl_tasks="rotation", ssl_ratio=0.5)
    assert "rank 1 of 2 did not say within" in told and "PYTHON_VGIFT" in told


def test_two_machines_may_name_their_folders_differently(tmp_path, train_flags):
    (tmp_path / "elsewhere").symlink_to(train_flags["image_folder"])
    script = tmp_path / "start.py"
    other = f"sys.argv += ['--image_folder', {str(tmp_path / 'elsewhere')!r}]"
    script.write_text(RUN.format(setup="", other=other, train=str(TRAIN)))
    command = [*torchrun(), script, *arguments(train_flags, output_dir=tmp_path / "out", max_steps=1)]
    flags = arguments({"ssl_tasks": "rotation", "ssl_ratio": 0.5})
    done = call([*VGIFT, "run", *flags, "--", *command], PYTHONPATH=f"{ROOT}:{TRAIN.parent}")
    assert done.returncode == 0, done.stderr[-3000:]
