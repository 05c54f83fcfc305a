"""Studies: arms × seeds that go on after a kill, and paired differences with intervals."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, arguments, call

sys.path.insert(0, str(ROOT / "scripts" / "study"))
import benchmarks
from design import Study
from differences import Cell, Result, rows, text

from vgift_plugin.errors import ConfigError

GOOD = {
    "seeds": [1, 2],
    "arms": {"base": {}, "more": {"ssl_tasks": "rotation", "ssl_ratio": 0.5}},
    "train": "true",
    "evaluate": ["true"],
    "compare": ["base"],
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": [1, 1]}, "seeds must list two or more different whole numbers"),
        ({"arms": {"base": {"ssl_task": 1}}, "compare": []}, "arm base: there is no flag --ssl_task"),
        ({"arms": {"a": {"ssl_tasks": "rotate"}}, "compare": []}, "arm a: 1 mistake in the vgift settings"),
        ({"arms": {"../a": {}}, "compare": []}, "the arm '../a' must be named by letters"),
        ({"compare": ["none"]}, "compare: there is no arm 'none'"),
        ({"evaluate": []}, "evaluate must list one command or more"),
        ({"trian": "x"}, "there is no key 'trian'"),
    ],
)
def test_mistakes_in_a_design_are_told(tmp_path, change, told):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigError, match=r"study\.yaml") as caught:
        Study.read(str(path))
    assert told in str(caught.value)


def test_the_shipped_designs_are_read():
    for path in (ROOT / "scripts" / "study").glob("*.yaml"):
        study = Study.read(str(path))
        assert len(study.quick().arms) == 2 and study.compare


def test_an_arm_with_several_ratios_is_compared_at_its_own(tmp_path):
    swept = {"ssl_tasks": "rotation", "ssl_ratio": [0.03, 0.5], "ssl_control": None}
    arms = {"base": {}, "repeat": {**swept, "ssl_control": "repeat"}, "more": swept}
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**GOOD, "arms": arms, "compare": ["base", "repeat"]}))
    study = Study.read(str(path))
    assert list(study.arms) == ["base", "repeat-3", "repeat-50", "more-3", "more-50"]
    assert study.arms["more-3"] == {"ssl_tasks": "rotation", "ssl_ratio": 0.03}
    results = [Result(arm, k, 8, {"a": n + k / 10}) for n, arm in enumerate(study.arms) for k in (1, 2)]
    results[-1].measures["only"] = 0.5  # a measure that one run of one arm has
    table = rows(results, list(study.arms), study.compare)
    found = {
        row.arm: {name: cell.mean for name, cell in row.differences.items()} for row in table if row.measure == "a"
    }
    assert found["base"] == {} and found["repeat-3"] == {"base": pytest.approx(1)}
    assert found["more-3"] == {"base": pytest.approx(3), "repeat": pytest.approx(2)}
    assert found["more-50"] == {"base": pytest.approx(4), "repeat": pytest.approx(2)}
    assert [(row.arm, row.own.n) for row in table if row.measure == "only"] == [("more-50", 1)]


def test_a_measure_that_no_evaluation_writes_is_told_after_the_first_run(tmp_path):
    write = "echo '{}' >$STUDY_JSON"
    (tmp_path / "study.json").write_text(json.dumps({**GOOD, "evaluate": [write], "mean": ["sidee"]}))
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = call(
        [sys.executable, ROOT / "scripts" / "study", tmp_path / "study.json", "-o", tmp_path / "out"], **environment
    )
    assert done.returncode == 2 and "wrote the measure 'sidee'" in done.stderr, done.stderr
    assert not list((tmp_path / "out").rglob("result.json"))


def test_intervals_are_students():
    cell = Cell.of([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t for two degrees of freedom
    assert (
        (cell.mean, cell.n) == (2.0, 3) and cell.low == pytest.approx(2 - half) and cell.high == pytest.approx(2 + half)
    )


def drawn(rng, effect, seeds=8):
    """Two arms whose runs share a part that depends on the seed, as runs of one order of data do."""
    shared, noise = rng.normal(0.5, 0.1, seeds), rng.normal(0, 0.01, (2, seeds))
    runs = [Result("base", k, 0, {"a": shared[k] + noise[0, k]}) for k in range(seeds)]
    return runs + [Result("arm", k, 500, {"a": shared[k] + effect + noise[1, k]}) for k in range(seeds)]


def test_a_planted_effect_is_found_and_a_planted_null_is_not():
    from scipy import stats

    found = {}
    for effect in (0.0, 0.03):
        outside = 0
        for k in range(200):
            results = drawn(np.random.default_rng(k), effect)
            (row,) = (
                row for row in rows(results, ["base", "arm"], ["base"]) if row.arm == "arm" and row.measure == "a"
            )
            cell = row.differences["base"]
            outside += not cell.low <= 0 <= cell.high
            values = [[one.measures["a"] for one in results if one.arm == arm] for arm in ("arm", "base")]
            interval = stats.ttest_rel(*values).confidence_interval(0.95)  # recomputed by another library
            assert (cell.low, cell.high) == pytest.approx(tuple(interval))
            assert row.per_1000 == pytest.approx(cell.mean * 2)
        found[effect] = outside / 200
    assert found[0.0] < 0.1 and found[0.03] > 0.95


def test_the_mean_is_of_the_measures_named():
    results = [Result("base", k, 0, {"a": 0.2, "b": 0.4, "blind": 0.9}) for k in (1, 2)]
    table = rows(results, ["base"], [], ["a", "b"])
    assert {row.measure: row.own.mean for row in table}["mean"] == pytest.approx(0.3)
    assert "30.0%" in text(table, [])
    assert "mean" not in {row.measure for row in rows(results, ["base"], [])}


QUOTED = """"split","Overall","ADE20K","COCO"
"2D","0.585","0.55","0.62"
"""
PLAIN = """"split","Overall","coarse perception","math"
"none","0.346","0.6","0.3"
"""
POPE = """"split","Overall","acc","precision","recall"
"Overall","87.2","88.1","94.0","81.3"
"random","89.0","89.5","97.0","82.2"
"""
LMMS = {
    "results": {
        "cv_bench_2d": {"alias": "cv_bench_2d", "cv_bench_acc,none": 0.58, "cv_bench_acc_stderr,none": "N/A"},
        "pope": {"alias": "pope", "pope_accuracy,none": 0.88, "pope_f1_score,none": 0.87},
        "mmstar": {"alias": "mmstar", "average,none": 0.34, "math,none": 0.3},
    },
    "groups": {"blink": {"alias": "blink", "blink_acc,none": 0.38}},
}


def a_checkpoint(tmp_path, **config):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama", **config}))
    return folder


def test_vlmevalkits_results_become_measures(tmp_path):
    link = benchmarks.named_llava(a_checkpoint(tmp_path))
    assert link.name == "llava-checkpoint" and (link / "config.json").exists() and benchmarks.named_llava(link) == link
    out = tmp_path / "out"
    command = benchmarks.vlmevalkit_command("python", link, out)
    settings = json.loads(Path(command[command.index("--config") + 1]).read_text())
    assert settings["model"]["run"] == {"class": "LLaVA", "model_path": str(link)}
    day = out / "run" / "T20261124_Gabcdef01"  # VLMEvalKit: a folder a day and commit, and links to its files beside it
    day.mkdir(parents=True)
    files = {"CV-Bench-2D_acc": QUOTED, "MMStar_acc": PLAIN, "BLINK_acc": PLAIN, "POPE_score": POPE}
    for name, content in files.items():
        with pytest.raises(ConfigError, match="no result of "):
            benchmarks.vlmevalkit_measures(out)
        (day / f"run_{name}.csv").write_text(content)
    expected = {"CV-Bench-2D": 0.585, "POPE": pytest.approx(0.872), "MMStar": 0.346, "BLINK": 0.346}
    assert benchmarks.vlmevalkit_measures(out) == expected


def test_lmms_evals_results_become_measures(tmp_path):
    command = benchmarks.lmms_eval_command("python", tmp_path / "llava-x", tmp_path)
    assert command[command.index("--tasks") + 1] == "cv_bench_2d,pope,mmstar,blink"
    with pytest.raises(ConfigError, match=r"no \*_results.json"):
        benchmarks.lmms_eval_measures(tmp_path)
    (tmp_path / "llava-x").mkdir()
    for time_, content in (("20261124_101500", {"results": {}}), ("20261124_113000", LMMS)):
        (tmp_path / "llava-x" / f"{time_}_results.json").write_text(json.dumps(content))
    expected = {"CV-Bench-2D": 0.58, "POPE": 0.87, "MMStar": 0.34, "BLINK": 0.38}
    assert benchmarks.lmms_eval_measures(tmp_path) == expected
    (tmp_path / "llava-x" / "20261125_000000_results.json").write_text(json.dumps({"results": LMMS["results"]}))
    with pytest.raises(ConfigError, match="no number blink_acc,none of blink"):
        benchmarks.lmms_eval_measures(tmp_path)


def test_checkpoints_that_would_be_evaluated_wrongly_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a checkpoint"):
        benchmarks.named_llava(tmp_path / "none")
    folder = a_checkpoint(tmp_path, model_type="llava_qwen")
    with pytest.raises(ConfigError, match="would be wrong"):
        benchmarks.named_llava(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="merge it first"):
        benchmarks.named_llava(folder)


def test_the_recipe_runs_the_tool_and_writes_measures(tmp_path):
    a_checkpoint(tmp_path)
    checkout = tmp_path / "kit"
    checkout.mkdir()
    (checkout / "run.py").write_text(  # stands for VLMEvalKit's: takes its flags, writes its files
        "import argparse, pathlib\n"
        "parser = argparse.ArgumentParser()\n"
        "for name in ('--config', '--work-dir', '--judge'):\n    parser.add_argument(name, required=True)\n"
        "parser.add_argument('--reuse', action='store_true')\n"
        "out = pathlib.Path(parser.parse_args().work_dir, 'run', 'T1')\nout.mkdir(parents=True)\n"
        f"for name, text in {[('CV-Bench-2D_acc', QUOTED), ('MMStar_acc', PLAIN), ('POPE_score', POPE)]!r}:\n"
        "    (out / f'run_{name}.csv').write_text(text)\n"
    )
    command = [sys.executable, ROOT / "scripts" / "study" / "benchmarks.py", "vlmevalkit", "--checkout", checkout]
    environment = {"STUDY_RUN": str(tmp_path), "STUDY_JSON": str(tmp_path / "measures.json")}
    done = call(command, **environment)
    assert done.returncode == 2 and "no result of BLINK" in done.stderr
    (tmp_path / "vlmevalkit" / "run" / "T1" / "run_BLINK_acc.csv").write_text(PLAIN)
    (checkout / "run.py").write_text("")
    assert call(command, **environment).returncode == 0
    assert set(json.loads((tmp_path / "measures.json").read_text())) == {"CV-Bench-2D", "POPE", "MMStar", "BLINK"}


MEASURE = (  # upstream's projector is not seeded, so its losses are no measure of sameness
    "import json, os; run, seed = os.environ['STUDY_RUN'], int(os.environ['STUDY_SEED']); "
    "steps = json.load(open(run + '/out/trainer_state.json'))['global_step']; "
    "json.dump({'steps': steps / (10 + seed)}, open(os.environ['STUDY_JSON'], 'w'))"
)


@pytest.mark.host
def test_a_study_that_is_killed_goes_on_to_the_same_table(tmp_path, train_flags):
    train = [sys.executable, "-m", "llava.train.train", *arguments(train_flags), "--output_dir", "$STUDY_RUN/out"]
    train += ["--seed", "$STUDY_SEED"]
    study = {**GOOD, "train": " ".join(train), "evaluate": [f'{sys.executable} -c "{MEASURE}"']}
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study))
    command = [sys.executable, str(ROOT / "scripts" / "study"), str(path), "-o"]
    environment = {"OMP_NUM_THREADS": "1", "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = call([*command, tmp_path / "whole"], **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = (tmp_path / "whole" / "table.txt").read_text()
    assert "minus base" in whole and whole in done.stdout and (tmp_path / "whole" / "study.html").stat().st_size > 1000
    rng = random.Random(0)
    for results in range(3):
        process = subprocess.Popen(
            [*command, str(tmp_path / "torn")], cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
        )
        while process.poll() is None and len(list((tmp_path / "torn").rglob("result.json"))) < results:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = call([*command, tmp_path / "torn", "--shard", "0/2"], **environment)
    assert first.returncode == 0 and "are left for the other shards" in first.stdout
    assert call([*command, tmp_path / "torn", "--shard", "1/2"], **environment).returncode == 0
    assert (tmp_path / "torn" / "table.txt").read_text() == whole
    path.write_text(json.dumps({**study, "seeds": [1, 3]}))
    other = call([*command, tmp_path / "torn"], **environment)
    assert other.returncode == 2 and "is of another design; choose another folder" in other.stderr


@pytest.mark.host
def test_the_tiny_study_runs(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "study", ROOT / "scripts" / "study" / "tiny.yaml"]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = call([*command, "--jobs", "2", "--quick", "-o", tmp_path / "out"], PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["measure"] for row in json.loads((tmp_path / "out" / "table.json").read_text())} == {
        *("side", "color", "count", "nearer", "mean", "blind", "contribution"),
        *("task-rotation", "task-color", "task-correspondence"),
    }
    run = tmp_path / "out" / "runs" / "all-30" / "seed-11"
    environment = {"PATH": path, "STUDY_RUN": str(run), "STUDY_JSON": str(tmp_path / "measures.json")}
    data = tmp_path / "out" / "tiny" / "seed-11"
    probe = [sys.executable, ROOT / "scripts" / "study" / "probe.py", "--image_folder", data / "images"]
    small = ["-n", "4", "--device", "cpu"]
    knobs = ROOT / "scripts" / "study" / "tiny" / "knobs.yaml"
    done = call([*probe, *small, "--ssl_tasks", "rotation", "--ssl_config", knobs], **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"rotation-sighted", "rotation-blind", "rotation-shuffled"}
    assert set(json.loads((tmp_path / "measures.json").read_text())) == names
    done = call([*probe, *small, "--data_path", data / "questions.json", "-o", tmp_path / "page.html"], **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads((tmp_path / "measures.json").read_text())) == {"contribution-blank", "contribution-wrong"}
