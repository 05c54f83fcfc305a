"""Every command of the READMEs is run, here or by a script; their generated parts are the generated ones."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, arguments, build_llava, call
from readmes import READMES, blocks, commands
from test_preferences import HEADER, ROW
from test_registry import install

TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
PAIR = {"id": "0", "image1": "astronaut.jpg", "image2": "chelsea.jpg", "wh1": [512, 512], "wh2": [451, 300]}
PAIR |= {"query": [60, 70], "match": [200, 150], "distractors": [[300, 30], [40, 250], [350, 260]]}
BY_THE_SCRIPTS = {"pip install .", "bash scripts/demo.sh", "bash scripts/stic.sh", "bash scripts/rl.sh"}
BY_THE_SCRIPTS |= {"bash scripts/test.sh", "bash scripts/test.sh --matrix"}
BY_THE_SCRIPTS |= {"bash scripts/study.sh scripts/study/tiny.yaml --jobs 2 --quick"}  # see test_study.py
BY_TEST_PATCH = {"bash scripts/v1_5/finetune.sh"}
RUN_HERE = [command for command in commands() if command.startswith(("vgift ", "python "))]


def test_the_list_of_commands_is_not_empty():
    assert len(RUN_HERE) >= 15
    assert set(commands()) - set(RUN_HERE) <= BY_THE_SCRIPTS | BY_TEST_PATCH


@pytest.mark.host
@pytest.mark.parametrize("command", RUN_HERE)
def test_commands_run_as_written(command, tmp_path, photos, others, train_flags, release, dinov2, full):
    root, metadata, published = release
    flags = {**train_flags, "max_steps": 1, "output_dir": tmp_path / "out"}
    if "--ssl_replay" in command:
        flags |= {"data_path": tmp_path / "published.json", "image_folder": root}
        flags["data_path"].write_text(json.dumps(published))
        (tmp_path / "V-GIFT").mkdir()
        (tmp_path / "V-GIFT" / "reconstruction_metadata").symlink_to(metadata)
    if "--ssl_pairs" in command:
        (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR))
    if "prefs.jsonl" in command and "stic prefer" not in command:
        (tmp_path / "prefs.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in (HEADER, ROW | {"image": "coffee.jpg"}))
        )
    if "--model_path" in command:
        (tmp_path / "checkpoints").mkdir()
        for name in ("llava-v1.5-13b", "llava-stage1"):
            (tmp_path / "checkpoints" / name).symlink_to(full)
        (tmp_path / "my.json").symlink_to(train_flags["data_path"])
    if "CHECKOUT" in command:
        import llava

        shutil.copytree(Path(llava.__file__).parent, tmp_path / "CHECKOUT" / "llava")
    (tmp_path / "mix.json").symlink_to(train_flags["data_path"])
    (tmp_path / "lmsys").mkdir()
    (tmp_path / "lmsys" / "vicuna-7b-v1.5").symlink_to(train_flags["model_name_or_path"])
    if "export-tower" in command:
        trained_checkpoint(tmp_path / "checkpoints" / "llava-v1.5-13b", train_flags)
    if "tower_probe" in command:
        (tmp_path / "openai").mkdir()
        for name in ("openai/clip-vit-large-patch14-336", "tower"):
            (tmp_path / name).symlink_to(train_flags["vision_tower"])
        for name in ("landscape", "portrait"):
            (tmp_path / "CLASSES" / name).mkdir(parents=True)
            for photo in photos.iterdir():
                (tmp_path / "CLASSES" / name / photo.name).symlink_to(photo)
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "dinov2-base").symlink_to(dinov2)
    script = tmp_path / "scripts" / "v1_5" / "finetune.sh"
    script.parent.mkdir(parents=True)
    # Enough base records that even 5 % of them are samples of two tasks: the same ones, over and over.
    script.write_text(
        f'{sys.executable} -c \'import json; r = json.load(open("{flags["data_path"]}")); '
        f'json.dump(r * 4, open("base.json", "w"))\'\n'
        + shlex.join([sys.executable, str(TRAIN), *arguments({**flags, "data_path": "base.json"})])
    )
    lora = {"lora_enable": True, "lora_r": 8, "lora_alpha": 16}
    (script.parent / "finetune_lora.sh").write_text(
        shlex.join([sys.executable, str(TRAIN), *arguments({**flags, **lora})])
    )
    (tmp_path / "playground").mkdir()
    (tmp_path / "playground" / "data").symlink_to(photos)
    (tmp_path / "heldout").symlink_to(others)
    command = command.replace("python scripts/", f"python {ROOT}/scripts/")
    done = call(["bash", "-c", f"cd {tmp_path} && {command}"], PATH=f"{sys.prefix}/bin:/usr/bin:/bin")
    # Status 1 says that the patch is not applied; or that so few pictures leak, which proves nothing either way.
    allowed = (0, 1) if "audit" in command else (int("patch status" in command),)
    assert done.returncode in allowed and "Traceback" not in done.stderr, done.stdout + done.stderr


def trained_checkpoint(folder, train_flags):
    """Saves the tiny LLaVA with another tower than the one it names."""
    model = build_llava(train_flags["model_name_or_path"], train_flags["vision_tower"])
    model.get_vision_tower().vision_tower.vision_model.embeddings.class_embedding.data += 1
    model.save_pretrained(folder)


def test_the_example_task_works_as_written(tmp_path, photos):
    (code,), (entry,) = blocks("python"), blocks("toml")
    site = install(tmp_path, "mirror_task", code, entry.splitlines()[1].replace('"', ""))
    out = tmp_path / "x.html"
    flags = ["--ssl_tasks", "mirror", "--image_folder", photos, "-n", "2", "-o", out]
    done = call([sys.executable, "-m", "vgift_plugin.cli", "preview", *flags], PYTHONPATH=site)
    assert done.returncode == 0, done.stderr


def test_the_examples_of_rewards_run_as_written(tmp_path, photos):
    pytest.importorskip("datasets")
    (tmp_path / "playground").mkdir()
    (tmp_path / "playground" / "data").symlink_to(photos)
    first, second = blocks("py")
    told = "print(len(rows), functions[0](completions=['0'], task=['rotation'], params=['{\"angle_deg\": 0}']))"
    (tmp_path / "example.py").write_text("\n".join((first, second, told)))
    done = call(["bash", "-c", f"cd {tmp_path} && {sys.executable} example.py"])
    assert done.stdout == "8 [1.0]\n", done.stderr


def test_the_example_knobs_are_knobs(tmp_path):
    from vgift_plugin.methods.vgift.flags import VgiftFlags

    (tmp_path / "knobs.yaml").write_text(blocks("yaml")[0])
    rotation, color = VgiftFlags(ssl_tasks="rotation,color", ssl_config=str(tmp_path / "knobs.yaml")).tasks()
    assert not rotation.task.square and color.task.points == 3


def test_tables_are_the_generated_ones():
    done = call([sys.executable, ROOT / "scripts" / "readme_tables.py", "--check"])
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_and_pictures_lead_somewhere():
    for path, text in READMES.items():
        for target in re.findall(r"\[[^]]*\]\(([^)#]+)[^)]*\)", text):
            assert "://" in target or (path.parent / target).exists(), f"{path}: {target}"
