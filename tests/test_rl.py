"""TRL's own trainer with the package's rewards and samples: in the environment of Qwen-VL's code alone."""

import importlib.util
import json
import pickle
import sys

import numpy as np
import pytest
from conftest import ROOT, call

from vgift_plugin import get_task
from vgift_plugin.errors import ConfigError
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.rewards.trl import dataset, reward_funcs

HAS_TRL = importlib.util.find_spec("trl") is not None
FLAGS = {"ssl_tasks": "rotation,color", "ssl_seed": 7}


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")
def test_rows_are_the_samples_of_training(photos):
    rows = dataset(FLAGS, str(photos), n=3, epoch=1, epochs=2)
    flags = VgiftFlags.of(FLAGS)
    want = [
        stream(epoch, j)
        for epoch in (1, 2)
        for stream in streams(flags, flags.tasks(), None, str(photos), None)
        for j in range(3)
    ]
    assert len(rows) == len(want) == 12
    for k in (11, 0, 5, 6, 3):  # in any order
        row, sample = rows[k], want[k]
        assert set(row) == {"prompt", "image", "task", "params"}
        assert row["prompt"] == [{"role": "user", "content": sample.instruction}]
        assert (np.asarray(row["image"]) == np.asarray(sample.image)).all()
        assert row["task"] == sample.task and json.loads(row["params"]) == sample.params
    (score,) = reward_funcs()
    batch = rows[2:9]
    answers = [
        get_task(name)().response(json.loads(params))
        for name, params in zip(batch["task"], batch["params"], strict=True)
    ]
    assert score(batch["prompt"], answers, **{k: v for k, v in batch.items() if k != "prompt"}) == [1] * 7
    again = pickle.loads(pickle.dumps(rows.select([4])))
    assert again[0]["params"] == rows[4]["params"]


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")
def test_a_form_is_asked_for_and_mistakes_are_told(photos):
    asked = dataset({"ssl_tasks": "rotation"}, str(photos), n=1, form="boxed")[0]["prompt"][0]["content"]
    assert asked.endswith("Write the answer as \\boxed{answer}.")
    with pytest.raises(ConfigError, match="--ssl_tasks is missing"):
        dataset({}, str(photos), n=1)
    with pytest.raises(ConfigError, match="n 0"):
        dataset(FLAGS, str(photos), n=0)


def test_a_missing_library_is_told_with_its_cure(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the datasets library: pip install 'vgift-plugin\[rl\]'"):
        dataset(FLAGS, str(photos), n=1)


@pytest.mark.skipif(not HAS_TRL, reason="TRL is not installed")
def test_two_steps_of_grpo_on_a_tiny_model(tmp_path):
    scenes = tmp_path / "scenes"
    drawn = call([sys.executable, ROOT / "scripts/rl/scenes.py", scenes, "--train", 40, "--tune", 0, "--heldout", 4])
    assert drawn.returncode == 0, drawn.stderr
    script = ROOT / "scripts" / "rl" / "learn.py"
    few = ["--n", 4, "--steps", 2, "--form_steps", 2]
    done = call([sys.executable, script, scenes, tmp_path / "out", "--seed", 3, *few])
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads((tmp_path / "out" / "seed-3.json").read_text())
    for when in ("before", "after"):
        for way in ("sampled", "greedy", "sampled_blind", "greedy_blind"):
            assert 0 <= told[when][way]["score"] <= 1 and len(told[when][way]["scores"]) == 4
    assert "rewards/vgift_score/mean" in done.stdout and "rewards/vgift_form/mean" in done.stdout
    shown = call([sys.executable, ROOT / "scripts" / "rl" / "table.py", tmp_path / "out"])
    assert shown.returncode == 0 and "greedy, blind" in shown.stdout, shown.stderr
