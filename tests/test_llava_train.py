"""Upstream's own training code, really run: alone, under torchrun and DeepSpeed, interrupted and resumed."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, VGIFT, arguments, call, free_port, torchrun

from vgift_plugin.hosts.trainer import steps_per_epoch

pytestmark = pytest.mark.host
TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
RECORDED = ROOT / "tests" / "recorded_train.py"
TASKS = "rotation,color:2,correspondence"


def script(tmp_path, command):
    """Writes an upstream-style shell script, which knows nothing of the plugin."""
    path = tmp_path / "finetune.sh"
    path.write_text("#!/bin/bash\n\n" + shlex.join(map(str, command)) + "\n")
    return ["bash", path]


def run(flags, command, **environment):
    return call([*VGIFT, "run", *arguments(flags), "--", *command], **environment)


def log_of(done):
    """Returns both outputs, for the message of a failed assertion."""
    return f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


def steps_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_one_process_through_an_unedited_script(tmp_path, train_flags):
    out = tmp_path / "out"
    command = [sys.executable, TRAIN, *arguments(train_flags, output_dir=out)]
    done = run({"ssl_tasks": TASKS, "ssl_ratio": 1.0}, script(tmp_path, command))
    assert done.returncode == 0, log_of(done)
    mix = json.loads((out / "vgift_mix.json").read_text())
    assert {name: task["samples"] for name, task in mix["tasks"].items()} == {
        "rotation": 4,
        "color": 8,
        "correspondence": 4,
    }
    assert (mix["base"]["samples"], mix["samples"], mix["tasks"]["rotation"]["source"]["count"]) == (16, 32, 5)
    assert mix["tasks"]["color"]["chance"] == 1 / 120
    assert mix["flags"]["ssl_tasks"] == TASKS
    assert steps_of(out) == 32 // 4
    table = done.stderr
    assert re.search(r"color +8 +25\.0% +0\.8% +5 images of the base records", table)
    assert re.search(r"base +16 +50\.0%", table) and re.search(r"all +32", table)
    assert table.index("self-supervised samples are mixed in") < table.index("0/8")  # before the progress of step 1
    assert (out / "pytorch_model.bin").exists() or (out / "model.safetensors").exists()


def test_the_published_mixture_without_its_pictures(tmp_path, train_flags, release):
    root, metadata, records = release
    (tmp_path / "llava_v1_5_v_gift.json").write_text(json.dumps(records))
    flags = {**train_flags, "data_path": tmp_path / "llava_v1_5_v_gift.json", "image_folder": root}
    out = tmp_path / "out"
    command = [sys.executable, TRAIN, *arguments(flags, output_dir=out, dataloader_num_workers=2)]
    done = run({"ssl_replay": metadata}, script(tmp_path, command))
    assert done.returncode == 0, log_of(done)
    assert steps_of(out) == 12
    mix = json.loads((out / "vgift_mix.json").read_text())
    assert mix["base"]["published"]["samples"] == {"rotation": 10, "color": 10, "correspondence": 10}
    assert re.search(r"rotation +10 +21\.7% +among them, painted by the metadata in", done.stderr), log_of(done)
    lost = {**records[20], "image": "rotation/images/lost_rot90.jpg"}
    flags["data_path"].write_text(json.dumps([*records, lost]))
    done = run({"ssl_replay": metadata}, script(tmp_path, command))
    assert done.returncode == 1 and "1 pictures of published samples are neither" in done.stderr
    assert "lost_rot90.jpg" in done.stderr and "it/s" not in done.stderr


def test_accelerate_launch(tmp_path, train_flags):
    out = tmp_path / "out"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", 1, "--num_processes", 1]
    command = [*launcher, "--mixed_precision", "no", "--dynamo_backend", "no", TRAIN]
    command += arguments(train_flags, output_dir=out, max_steps=1)
    done = run({"ssl_tasks": "rotation", "ssl_ratio": 0.5}, script(tmp_path, command))
    assert done.returncode == 0, log_of(done)
    assert json.loads((out / "vgift_mix.json").read_text())["tasks"]["rotation"]["samples"] == 8


def test_the_script_may_hold_the_flags_and_they_win(tmp_path, train_flags):
    out = tmp_path / "out"
    command = [sys.executable, TRAIN, *arguments(train_flags, output_dir=out, ssl_ratio=0.5, max_steps=1)]
    done = run({"ssl_tasks": "rotation", "ssl_ratio": 0.25}, script(tmp_path, command))
    assert done.returncode == 0, log_of(done)
    assert "--ssl_ratio: the training script's own 0.5 wins over 0.25 from vgift run" in done.stderr
    assert json.loads((out / "vgift_mix.json").read_text())["tasks"]["rotation"]["samples"] == 8


def test_without_tasks_every_step_is_fed_what_upstream_feeds_it(tmp_path, train_flags):
    steps = []
    for name, start in (("plain", []), ("hooked", [*VGIFT, "run", "--"])):
        out = tmp_path / name
        command = [*start, sys.executable, RECORDED, *arguments(train_flags, output_dir=out)]
        done = call(command, RECORD=tmp_path / f"{name}-steps")
        assert done.returncode == 0, log_of(done)
        assert "[vgift]" not in done.stderr
        assert not (out / "vgift_mix.json").exists()
        steps.append((tmp_path / f"{name}-steps.0").read_text().split())
    assert steps[0] == steps[1] and len(steps[0]) == 4


def test_two_processes_under_torchrun_see_what_one_sees(tmp_path, train_flags):
    """All samples of an epoch, each once over both ranks; and the redraws of both ranks in the report."""
    bad = tmp_path / "images"
    bad.mkdir()
    for photo in Path(train_flags["image_folder"]).iterdir():
        (bad / photo.name).symlink_to(photo)
    (bad / "broken.jpg").write_text("x")
    flags = {"ssl_tasks": TASKS, "ssl_ratio": 1.0, "ssl_image_folder": bad}
    mixes, redraws = [], []
    for name, launcher in (("one", [sys.executable]), ("two", torchrun())):
        out = tmp_path / name
        command = [*launcher, TRAIN, *arguments(train_flags, output_dir=out, dataloader_num_workers=2)]
        done = run(flags, script(tmp_path, command))
        assert done.returncode == 0, log_of(done)
        assert done.stderr.count("self-supervised samples are mixed in") == 1  # rank 0 alone speaks
        mixes.append(json.loads((out / "vgift_mix.json").read_text()))
        redraws.append(mixes[-1].pop("redraws"))
        assert steps_of(out) == (8 if name == "one" else 4)
    assert mixes[0] == mixes[1]
    assert redraws[0] == redraws[1]  # the same samples, whoever made them
    assert sum(reasons["unreadable"] for reasons in redraws[0].values()) >= 1


def test_the_deepspeed_launcher_with_lora_on_two_processes(tmp_path, train_flags):
    out, zero2 = tmp_path / "out", tmp_path / "zero2.json"
    batch = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
    }
    precision = {"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
    zero2.write_text(json.dumps({**batch, **precision, "zero_optimization": {"stage": 2}}))
    lora = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "deepspeed": zero2}
    launcher = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", 2, "--master_port", free_port()]
    command = [*launcher, TRAIN, *arguments({**train_flags, **lora}, output_dir=out)]
    environment = {"DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment["ACCELERATE_USE_CPU"] = "true"  # accelerate 0.21 forgets --use_cpu when there is a --deepspeed
    done = run({"ssl_tasks": TASKS, "ssl_ratio": 1.0}, script(tmp_path, command), **environment)
    assert done.returncode == 0, log_of(done)
    assert (out / "adapter_config.json").exists() and (out / "non_lora_trainables.bin").exists()
    assert json.loads((out / "vgift_mix.json").read_text())["samples"] == 32
    assert "4/4" in done.stderr  # 32 samples by 2 × 4


def recorded(tmp_path, name, train_flags, launcher=(sys.executable,), vgift=(), **changes):
    """Trains while writing down what each step was fed; returns the lines of each rank."""
    environment = {key: changes.pop(key) for key in ("STOP_AFTER",) if key in changes}
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    changes.setdefault("output_dir", folder / "out")
    command = [*launcher, RECORDED, *arguments(train_flags, **changes)]
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = 1  # torch from 2.6 on cannot resume transformers 4.37 without
    done = run({"ssl_tasks": TASKS, "ssl_ratio": 1.0, **dict(vgift)}, command, RECORD=folder / "steps", **environment)
    ranks = sorted(folder.glob("steps.*"))
    return done, [path.read_text().split() for path in ranks]


def pictures(steps):
    """Returns the hashes of all pictures of some steps, in a fixed order."""
    return sorted(picture for step in steps for picture in step.split(":")[1:])


def test_workers_change_nothing_and_epochs_change_everything(tmp_path, train_flags):
    alone, (first,) = recorded(tmp_path, "a", train_flags, num_train_epochs=2)
    assert alone.returncode == 0, log_of(alone)
    _, (second,) = recorded(tmp_path, "b", train_flags, num_train_epochs=2, dataloader_num_workers=2)
    _, (persistent,) = recorded(
        tmp_path, "c", train_flags, num_train_epochs=2, dataloader_num_workers=2, dataloader_persistent_workers=True
    )
    assert first == second and len(first) == len(set(first)) == 16
    for epoch in (slice(8), slice(8, 16)):  # torch draws once less for persistent workers, so upstream's order differs
        assert pictures(first[epoch]) == pictures(persistent[epoch])
    assert pictures(first[:8]) != pictures(first[8:])


def test_an_interrupted_run_resumes_with_the_very_same_samples(tmp_path, train_flags):
    """Stopped in the middle of the second epoch: what follows is what would have followed, batch by batch."""
    flags = {**train_flags, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
    done, (whole,) = recorded(tmp_path, "whole", flags)
    assert done.returncode == 0, log_of(done)
    out = tmp_path / "torn" / "out"
    recorded(tmp_path, "torn", flags, STOP_AFTER=12)
    assert (out / "checkpoint-12").is_dir()
    resumed, (torn,) = recorded(tmp_path, "torn", flags)
    assert resumed.returncode == 0, log_of(resumed)
    assert len(whole) == 24
    assert torn == [*whole[:13], *whole[12:]]  # the step that saw the stop is taken again


def test_a_resumed_run_with_other_samples_is_stopped_unless_told_to_go_on(tmp_path, train_flags):
    images = tmp_path / "images"
    shutil.copytree(train_flags["image_folder"], images)
    flags = {**train_flags, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    vgift = {"ssl_image_folder": images}
    recorded(tmp_path, "torn", flags, vgift=vgift, STOP_AFTER=2)
    out = tmp_path / "torn" / "out"
    begun = json.loads((out / "checkpoint-2" / "vgift_resume.json").read_text())["facts"]
    shutil.copy(next(images.glob("*.jpg")), images / "one_more.jpg")
    changed, _ = recorded(tmp_path, "torn", flags, vgift={**vgift, "ssl_seed": 1})
    assert changed.returncode == 1 and "Traceback" not in changed.stderr
    for told in (
        "checkpoint-2/vgift_resume.json: the run would not go on with the samples it was begun with:",
        "--ssl_seed: begun with 0, now 1",
        f"images of rotation: begun with {begun['images of rotation']}, now 6 (",
        "--ssl_resume_anyway True",
    ):
        assert told in changed.stderr
    assert not (out / "checkpoint-4").exists()
    anyway, _ = recorded(tmp_path, "torn", flags, vgift={**vgift, "ssl_seed": 1, "ssl_resume_anyway": True})
    assert anyway.returncode == 0, log_of(anyway)
    (noted,) = json.loads((out / "vgift_mix.json").read_text())["resumed_anyway"]
    assert noted["step"] == 2 and "--ssl_seed: begun with 0, now 1" in noted["changed"]


def test_a_run_that_was_begun_without_the_methods_is_not_resumed_with_them(tmp_path, train_flags):
    flags = {**train_flags, "num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    recorded(tmp_path, "torn", flags, STOP_AFTER=2)
    for path in (tmp_path / "torn" / "out").rglob("vgift_resume.json"):
        path.unlink()
    resumed, _ = recorded(tmp_path, "torn", flags)
    assert resumed.returncode == 1 and "there is no vgift_resume.json: it was begun without" in resumed.stderr


def test_two_ranks_see_what_one_sees_and_resume_with_the_very_same_samples(tmp_path, train_flags):
    flags = {**train_flags, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    two = torchrun()
    done, whole = recorded(tmp_path, "whole", flags, two)
    assert done.returncode == 0, log_of(done)
    recorded(tmp_path, "torn", flags, two, STOP_AFTER=6)
    resumed, torn = recorded(tmp_path, "torn", flags, two)
    assert resumed.returncode == 0, log_of(resumed)
    _, (alone,) = recorded(tmp_path, "alone", {**flags, "save_strategy": "no"})
    for epoch in range(2):
        both = [step for rank in whole for step in rank[4 * epoch : 4 * epoch + 4]]
        assert pictures(both) == pictures(alone[8 * epoch : 8 * epoch + 8])
    for rank in range(2):
        assert len(whole[rank]) == 8
        assert torn[rank] == [*whole[rank][:7], *whole[rank][6:]]


def test_the_epoch_is_right_where_the_trainers_own_count_is_not(tmp_path, train_flags):
    """9 batches accumulated by 4: `state.epoch` says 0.89 when the second epoch begins."""
    flags = {**train_flags, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_train_epochs": 2}
    flags["group_by_modality_length"] = False
    done, (steps,) = recorded(tmp_path, "accumulated", flags)
    assert done.returncode == 0, log_of(done)
    mix = json.loads((tmp_path / "accumulated" / "out" / "vgift_mix.json").read_text())
    assert mix["samples"] == 32 and len(steps) == 16  # 4 updates, as the trainer plans them
    assert steps_of(tmp_path / "accumulated" / "out") == 2 * steps_per_epoch(11, 4)


@pytest.mark.parametrize(
    ("rounds_up", "begun_at", "epochs"), [(False, 0, [0, 1, 2]), (False, 4, [2, 3, 4]), (True, 4, [1, 2, 3])]
)
def test_the_epoch_follows_from_steps_done_and_epochs_begun(monkeypatch, tmp_path, rounds_up, begun_at, epochs):
    """Of 10 batches accumulated by 4, transformers makes two steps an epoch up to 4.45, three since."""
    from vgift_plugin.methods.vgift.callbacks import MixCallback

    monkeypatch.setattr("vgift_plugin.hosts.trainer._rounds_up", lambda: rounds_up)
    arguments = SimpleNamespace(gradient_accumulation_steps=4, output_dir=tmp_path, dataloader_num_workers=0)
    state, data = SimpleNamespace(global_step=begun_at, epoch=0), SimpleNamespace(epoch=None)
    callback, seen = MixCallback(data, {}, {}), []
    callback.on_train_begin(arguments, state, None, train_dataloader=range(10))
    for state.epoch in (0, 0.8, 1.8):  # what the trainer says, which is not to be trusted
        callback.on_epoch_begin(arguments, state, None)
        seen.append(data.epoch)
    assert seen == epochs


@pytest.mark.parametrize("start", [["-m", "llava.train.train"], None], ids=["module", "file"])
def test_train_py_as_the_main_program_gets_its_samples_too(tmp_path, train_flags, start):
    import llava

    start = start or [str(Path(llava.__file__).parent / "train" / "train.py")]
    command = [sys.executable, *start, *arguments(train_flags, output_dir=tmp_path / "out")]
    done = run({"ssl_tasks": "rotation", "ssl_ratio": 0.5}, command)
    assert done.returncode == 0, log_of(done)
    assert (tmp_path / "out" / "vgift_mix.json").exists()


def test_mistakes_in_the_scripts_own_flags_are_told_without_a_traceback(tmp_path, train_flags):
    flags = {"ssl_tasks": "rotate", "ssl_ratio": "nan"}
    done = run({}, [sys.executable, TRAIN, *arguments(train_flags, output_dir=tmp_path / "out", **flags)])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "[vgift] 1 mistake in the vgift settings:\n  - --ssl_ratio nan is no finite number" in done.stderr


@pytest.mark.parametrize("value", ["garbage", "%7B%7D", "%5B1%5D", "%FF"])
def test_a_damaged_variable_is_told(tmp_path, train_flags, value):
    command = [sys.executable, TRAIN, *arguments(train_flags, output_dir=tmp_path / "out")]
    done = run({"ssl_tasks": TASKS}, ["env", f"PYTHON_VGIFT={value}", *command])
    assert done.returncode == 1 and "the variable PYTHON_VGIFT is damaged" in done.stderr


def test_flags_without_the_hook_are_rejected_by_the_host(tmp_path, train_flags):
    done = call([sys.executable, TRAIN, *arguments(train_flags, output_dir=tmp_path / "out", ssl_tasks="rotation")])
    assert done.returncode == 1
    assert "not used by the HfArgumentParser" in done.stderr and "--ssl_tasks" in done.stderr


def test_mistakes_in_the_scripts_own_flags_stop_it_before_the_model_is_loaded(tmp_path, train_flags):
    flags = {**train_flags, "model_name_or_path": tmp_path / "absent", "ssl_tasks": "rotatoin", "ssl_ratio": 50}
    done = call([*VGIFT, "run", "--", sys.executable, TRAIN, *arguments(flags, output_dir=tmp_path / "out")])
    assert done.returncode == 1
    assert (
        "2 mistakes" in done.stderr and "did you mean 'rotation'?" in done.stderr and "50 percent is 0.5" in done.stderr
    )


def test_a_script_that_sets_pythonpath_anew_is_found_out(tmp_path, train_flags):
    command = [
        "env",
        "PYTHONPATH=.",
        sys.executable,
        TRAIN,
        *arguments(train_flags, output_dir=tmp_path / "out", max_steps=1),
    ]
    done = run({"ssl_tasks": "rotation"}, command)
    assert done.returncode == 3
    assert "ended well WITHOUT self-supervised samples" in done.stderr and "PYTHONPATH=.:$PYTHONPATH" in done.stderr


def test_attach_in_ones_own_script(tmp_path, train_flags):
    own = tmp_path / "own.py"
    own.write_text("import vgift_plugin\nvgift_plugin.attach()\nfrom llava.train.train import train\ntrain()\n")
    out = tmp_path / "out"
    done = call(
        [
            sys.executable,
            own,
            *arguments(train_flags, output_dir=out, ssl_tasks="rotation", ssl_ratio=0.25, max_steps=1),
        ]
    )
    assert done.returncode == 0, log_of(done)
    assert json.loads((out / "vgift_mix.json").read_text())["tasks"]["rotation"]["samples"] == 4
