"""Ranks that would not train on the same mixture stop before they start, and say what differs."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, arguments, call, torchrun

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
    flags = {"ssl_tasks": "rotation", "ssl_ratio": 0.5, **flags}
    done = call([*VGIFT, "run", *arguments(flags), "--", *command], PYTHONPATH=f"{ROOT}:{TRAIN.parent}")
    assert done.returncode != 0 and "it/s" not in done.stderr and not list(tmp_path.glob("out/trainer*"))
    return done.stderr


def test_other_records_images_and_flags_on_one_rank(tmp_path, train_flags, records):
    (tmp_path / "base.json").write_text(json.dumps(records[1:]))
    other = f"sys.argv += ['--data_path', {str(tmp_path / 'base.json')!r}, '--ssl_seed', '5']"
    told = train(tmp_path, train_flags, other)
    assert "would not train on the same mixture" in told
    assert "--data_path, records: 16 (" in told and "; 15 (" in told
    assert "--ssl_seed: 0 on rank 0; 5 on rank 1" in told


def test_an_image_more_on_one_machine(tmp_path, train_flags):
    photos = Path(train_flags["image_folder"])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for photo in photos.iterdir():
            (tmp_path / name / photo.name).symlink_to(photo)
    (tmp_path / "b" / "more.jpg").symlink_to(photo)
    other = f"sys.argv += ['--ssl_image_folder', {str(tmp_path / 'b')!r}]"
    told = train(tmp_path, train_flags, other, ssl_image_folder=tmp_path / "a")
    assert "images of rotation: 5 (" in told and "; 6 (" in told


def test_other_task_templates_on_one_rank(tmp_path, train_flags):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([f"Say {name}."]))
    other = f"sys.argv += ['--instruct_templates', {str(tmp_path / 'b.json')!r}]"
    flags = {"instruct_loss": "no_template", "instruct_templates": tmp_path / "a.json"}
    told = train(tmp_path, train_flags, other, **flags)
    assert "task templates: 1 (" in told and "--instruct_loss:" not in told


def test_a_rank_without_the_plugin_is_named(tmp_path, train_flags):
    """The flags never got there: it trains as ever, and waits for the others in its first collective."""
    setup = "from vgift_plugin.hosts import ranks; ranks.PATIENCE_S = 5.0"
    other = "import transformers, llava.train.train as host; from vgift_plugin import detach; detach(host); "
    other += "transformers.HfArgumentParser.__init__ = transformers.HfArgumentParser.__init__.__wrapped__"
    told = train(tmp_path, train_flags, other, setup=setup)
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
