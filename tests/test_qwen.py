"""The plugin in Qwen-VL's own fine-tuning code and in 2U1's, unedited, on tiny models of random weights.

They need the environment of VGIFT_PINS=qwen; which checkouts those that train need, `test_qwen_host.py` says.
"""

import json
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, VGIFT, arguments, call, torchrun
from PIL import Image
from test_qwen_host import FLAGS, HAS_QWEN, LIMITS, MODES, QWEN, needs

from vgift_plugin import get_task
from vgift_plugin.data.photos import from_folder
from vgift_plugin.hosts.encoder import on_grid
from vgift_plugin.methods.vgift.stream import Stream

pytestmark = pytest.mark.skipif(not HAS_QWEN, reason="this is not the environment of VGIFT_PINS=qwen")
OFFLINE = {"HF_HUB_OFFLINE": 1, "DS_ACCELERATOR": "cpu"}
TASKS = ("rotation", "color", "correspondence")
SAMPLES = 3 * int(16 * 0.5 / 3)  # of the three tasks, for sixteen conversations
SSL = {"ssl_tasks": ",".join(TASKS), "ssl_ratio": 0.5}
EPOCH = {"max_steps": -1, "num_train_epochs": 1}
ENDS = "<|im_end|>\n"


class Trained(NamedTuple):
    """What a run left: its log, the conversations of its steps and of its evaluations, what it said."""

    log: list
    fed: list
    asked: list
    said: str
    folder: Path

    def series(self, name):
        """Returns the values of one number, in the order they were logged."""
        return [line[name] for line in self.log if name in line]


def read(folder, record, done, ranks):
    """Reads what a run left."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    lines = [json.loads(line) for rank in range(ranks) for line in Path(f"{record}.{rank}").read_text().splitlines()]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    fed, asked = ([one for one in lines if (one["right"] is None) is trained] for trained in (True, False))
    return Trained(log, fed, asked, done.stdout + done.stderr, folder)


@pytest.fixture(scope="session")
def start(tmp_path_factory, qwen_models, qwen_data):
    """Returns the finished process of a training below `vgift run`, what it wrote and where."""

    def run(plugin, name="qwen2.5", processes=1, folder=None, **flags):
        folder = folder or tmp_path_factory.mktemp("out")
        known = {"model_name_or_path": qwen_models[name], "dataset_use": "drawn", "output_dir": folder}
        command = [*torchrun(processes), QWEN / "train_cpu.py", *arguments({**known, **FLAGS, **LIMITS}, **flags)]
        command = command if plugin is None else [*VGIFT, "run", *arguments(plugin), "--", *command]
        record = tmp_path_factory.mktemp("record") / "fed"
        return folder, record, call(command, VGIFT_QWEN_DATA=qwen_data, RECORD=record, **OFFLINE), processes

    return run


@pytest.fixture(scope="session")
def mixed(start, others):
    """One epoch in each of the host's modes, with samples, evaluated at the end; with `plugin=False` without a flag,
    with None without the plugin."""

    @cache
    def run(mode, plugin=True):
        flags = {**MODES[mode], **EPOCH}
        held_out = {"ssl_eval_samples": 3, "ssl_eval_steps": 100, "ssl_eval_image_folder": others}
        return read(*start({**SSL, **held_out} if plugin else None if plugin is None else {}, **flags))

    return run


@pytest.fixture(scope="session")
def tokenizer(qwen_models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen_models["qwen2.5"])


@pytest.fixture(scope="session")
def items(tmp_path_factory, qwen_models, qwen_data):
    """Returns what the host's data module makes of several runs; see qwen/items.py."""

    def run(runs, processes=0, **environment):
        path = tmp_path_factory.mktemp("items") / "runs.json"
        path.write_text(json.dumps(runs, default=str))
        python = torchrun(processes) if processes else [sys.executable]
        done = call(
            [*python, QWEN / "items.py", qwen_models["qwen2.5"], path],
            **{"VGIFT_QWEN_DATA": qwen_data, **OFFLINE, **environment},
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def is_base(line, tokenizer):
    return re.search(r"What does picture|What is \d+ plus one", tokenizer.decode(line["ids"])) is not None


def of_base(lines, tokenizer):
    """Returns the base conversations among lines, in an order of their own."""
    kept = [{k: v for k, v in line.items() if k != "step"} for line in lines if is_base(line, tokenizer)]
    return sorted(kept, key=json.dumps)


def learned(line, tokenizer):
    """Returns the text of the learned tokens; each is the token that stands there."""
    pairs = [(token, label) for token, label in zip(line["ids"], line["labels"], strict=True) if label != -100]
    assert all(token == label for token, label in pairs)
    return tokenizer.decode([token for token, _ in pairs])


def answer(line, tokenizer):
    """Returns what stands after the assistant's header, by reading the template."""
    return tokenizer.decode(line["ids"]).rpartition("<|im_start|>assistant\n")[2]


def close(one, other):
    return len(one) == len(other) > 0 and np.allclose(one, other, atol=2e-3)


# Without a checkout


@pytest.fixture(scope="session")
def stood_in():
    """Lets this process import torchvision's part of transformers; see qwen/on_a_cpu.py."""
    sys.path.append(str(QWEN))
    import on_a_cpu

    on_a_cpu.stand_in()


GRIDS = {  # limits and step: {picture: what it becomes}, as the host's processor resized them
    (784, 50176, 14): [(224, 224), (308, 140), (224, 224)],
    (16 * 784, 576 * 784, 14): [(336, 336), (336, 168), (644, 644)],
    (16 * 784, 576 * 784, 16): [(320, 320), (320, 160), (640, 640)],
    (512 * 784, 1280 * 784, 14): [(644, 644), (924, 448), (644, 644)],
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("least", "most", "patch"), GRIDS)
def test_the_processor_leaves_pictures_on_the_grid_as_they_are(stood_in, least, most, patch, fast):
    from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorFast

    processor = (Qwen2VLImageProcessorFast if fast else Qwen2VLImageProcessor)(
        patch_size=patch, size={"shortest_edge": least, "longest_edge": most}
    )
    step = patch * processor.merge_size
    rng = np.random.default_rng(0)
    for size in [(336, 336), (336, 160), (640, 640), (160, 336), (31, 500), (900, 700), (300, 299)]:
        picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        ready = on_grid(picture, step, least, most)
        assert all(side % step == 0 for side in ready.size) and least <= ready.width * ready.height <= most
        told = [processor(ready, return_tensors="pt", **more) for more in ({}, {"do_resize": False})]
        assert (told[0].image_grid_thw == told[1].image_grid_thw).all(), size
        assert (told[0].pixel_values == told[1].pixel_values).all(), size
        _, high, wide = (told[0].image_grid_thw[0] * patch).tolist()
        assert (wide, high) == ready.size
        if all(side <= whole for side, whole in zip(picture.size, ready.size, strict=True)):
            assert ready.crop((0, 0, *picture.size)).tobytes() == picture.tobytes()


def test_the_processor_resizes_others_as_the_table_says(stood_in):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for (least, most, patch), sizes in GRIDS.items():
        given = ((336, 336), (336, 160), (640, 640))
        assert [smart_resize(h, w, 2 * patch, least, most)[::-1] for w, h in given] == sizes


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def checkpoint(request, qwen_models, stood_in):
    from vgift_plugin.hosts.checkpoint import Checkpoint

    return Checkpoint.load(str(qwen_models[request.param]))


def test_a_checkpoints_labels_are_the_answer_and_its_end(checkpoint, photos):
    picture = Image.open(photos / "coffee.jpg")
    item = checkpoint.item(picture, "An assistant\nassistant or a user?", "An assistant.")
    supervised = item["labels"][item["labels"] != -100].tolist()
    assert checkpoint.tokenizer.decode(supervised) == "An assistant.<|im_end|>"
    assert checkpoint.answer_length(item) == len(supervised)


def test_a_checkpoints_likelihood_is_the_models_own_loss(checkpoint, photos):
    import torch

    items = [
        checkpoint.item(Image.open(photos / f"{name}.jpg"), "What?", f"A {name}.") for name in ("coffee", "rocket")
    ]
    found = checkpoint.log_likelihood(items)
    for item, one in zip(items, found, strict=True):
        with torch.inference_mode():
            given = {name: value for name, value in item.items() if name != "messages"}
            loss = checkpoint.model(**given).loss
        assert one.tokens == checkpoint.answer_length(item) and abs(one.total / one.tokens + float(loss)) < 1e-4


def test_a_checkpoints_replies_do_not_depend_on_the_batch(checkpoint, photos):
    names = ("coffee", "rocket", "chelsea")
    asked = [
        checkpoint.item(Image.open(photos / f"{n}.jpg"), f"What is it{' there' * k}?") for k, n in enumerate(names)
    ]
    alone = [checkpoint.generate([one], 6)[0] for one in asked]
    assert checkpoint.generate(asked, 6) == alone
    drawn = checkpoint.replies(asked, 6, temperature=1.0, seeds=[1, 2, 3])
    assert drawn[1] == checkpoint.replies(asked[1:2], 6, temperature=1.0, seeds=[2])[0]


def test_a_checkpoint_is_asked_with_two_images(checkpoint, photos):
    task = get_task("correspondence")
    one, two = (Stream(task(two_images=several), from_folder(str(photos)), 7)(0, 3) for several in (False, True))
    items = [checkpoint.sample(one), checkpoint.sample(two)]
    assert [len(item["image_grid_thw"]) for item in items] == [1, 2]
    content = items[1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image", "image", "text"] and content[2]["text"] == two.instruction
    assert checkpoint.generate(items, 4) == [checkpoint.generate([item], 4)[0] for item in items]


def test_probe_asks_a_qwen_vl(qwen_models, photos, tmp_path):
    flags = {"model_path": qwen_models["qwen3"], "ssl_tasks": "rotation", "image_folder": photos, "n": 4}
    flags = [part.replace("--n", "-n") for part in arguments(flags)]
    start = "import on_a_cpu, sys; on_a_cpu.stand_in(); from vgift_plugin.cli import main; sys.exit(main())"
    done = call(
        [sys.executable, "-c", start, "probe", *flags, "-o", tmp_path / "page.html"], PYTHONPATH=QWEN, **OFFLINE
    )
    assert done.returncode == 0 and "rotation" in done.stdout, done.stdout + done.stderr[-3000:]


# Qwen-VL's own code


@needs("VGIFT_QWEN")
def test_a_run_without_flags_is_the_hosts_own(mixed):
    bare, plain = mixed("padded", plugin=False), mixed("padded", plugin=None)
    assert bare.series("loss") == plain.series("loss") and len(plain.series("loss")) == 4
    assert bare.fed == plain.fed and len(plain.fed) == 16


@needs("VGIFT_QWEN")
def test_samples_are_counted_by_conversation_and_the_base_stays(mixed, tokenizer):
    plain = of_base(mixed("padded", plugin=None).fed, tokenizer)
    assert len(plain) == 16
    for mode in MODES:
        fed = mixed(mode).fed
        assert of_base(fed, tokenizer) == plain, mode
        assert len(fed) == 16 + SAMPLES, mode
        mix = json.loads((mixed(mode).folder / "vgift_mix.json").read_text())
        assert sum(one["samples"] for one in mix["tasks"].values()) == SAMPLES


@needs("VGIFT_QWEN")
def test_samples_teach_the_answer_and_its_end(mixed, tokenizer):
    for mode in MODES:
        run = mixed(mode)
        samples = [line for line in run.fed + run.asked if not is_base(line, tokenizer)]
        assert len(samples) == SAMPLES + 9
        for line in samples:
            said = learned(line, tokenizer)
            assert said == answer(line, tokenizer) and said.endswith(ENDS) and len(said) > len(ENDS)
            assert line["labels"][0] == -100 and len(line["pictures"]) == 1


@needs("VGIFT_QWEN")
def test_padded_and_flattened_report_the_same(mixed):
    padded, flattened = mixed("padded"), mixed("flattened")
    numbers = {
        name for line in padded.log for name in line if re.fullmatch(r"loss.*|eval_.*(loss|accuracy|score)", name)
    }
    tasks = {f"{kind}_{task}{end}" for task in TASKS for kind, end in (("loss", ""), ("eval", "_loss"))}
    assert numbers >= {"loss", "loss_base", "eval_color_score", *tasks}
    for name in sorted(numbers):
        assert close(padded.series(name), flattened.series(name)), name
    packed = mixed("packed")
    assert {"loss_base", "loss_rotation", "eval_rotation_loss"} <= {name for line in packed.log for name in line}
    assert packed.series("loss")[0] > packed.series("loss")[-1]


@needs("VGIFT_QWEN")
def test_lora_on_two_ranks_evaluates_each_sample_once(start, others):
    held_out = {"ssl_eval_samples": 7, "ssl_eval_steps": 3, "ssl_eval_image_folder": others}
    flags = {"data_flatten": True, "lora_enable": True, "per_device_train_batch_size": 2}
    run = read(*start({"ssl_tasks": "rotation", "ssl_ratio": 1.0, **held_out}, processes=2, **flags))
    assert (run.folder / "adapter_model.safetensors").exists() and len(run.fed) == 12
    assert len(run.series("loss")) == 3 and run.series("loss_rotation")
    verdicts = {json.dumps([line["ids"], line["pictures"]]): line["right"] for line in run.asked}
    assert len(verdicts) == 7 < len(run.asked)  # ranks were given some of them twice
    assert run.series("eval_rotation_accuracy") == [pytest.approx(np.mean(list(verdicts.values())))]


@needs("VGIFT_QWEN")
def test_a_resumed_run_sees_the_same_samples(start, tmp_path):
    """21 batches, two to a step: 11 steps an epoch by this transformers, 10 by LLaVA's."""
    plugin = {"ssl_tasks": "rotation", "ssl_ratio": 5 / 16}
    flags = {"name": "qwen3", "data_flatten": True, "save_strategy": "steps", "save_steps": 10, "max_steps": 13}
    flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    whole = read(*start(plugin, folder=tmp_path / "whole", **flags))
    assert [sum(line["step"] == step for line in whole.fed) for step in (9, 10, 11)] == [2, 1, 2]
    shutil.copytree(tmp_path / "whole" / "checkpoint-10", tmp_path / "rest" / "checkpoint-10")
    rest = read(*start(plugin, folder=tmp_path / "rest", **flags))
    assert rest.fed == [line for line in whole.fed if line["step"] >= 10]
    assert close(rest.series("loss")[-3:], whole.series("loss")[-3:])


# Labels of instructions


ASKED = {
    "assistant": "<image>\nIs this an assistant\nassistant or a user?",
    "plain": "What is a café for, an assistant?",
}


@pytest.fixture(scope="session")
def talk(tmp_path_factory, photos, records, qwen_data):
    """A file of data sets as `qwen_data`, with texts that name roles."""
    folder = tmp_path_factory.mktemp("talk")
    said = {"from": "gpt", "value": "Of an assistant,\nto be short."}
    more = [{"id": name, "conversations": [{"from": "human", "value": text}, said]} for name, text in ASKED.items()]
    more[0]["image"] = "coffee.jpg"
    turns = [*more[0]["conversations"], {"from": "human", "value": "And what else?"}, {"from": "gpt", "value": "No."}]
    more += [{**more[0], "conversations": turns}]
    everything = [*records[:5], *more]
    known = json.loads(qwen_data.read_text())
    for name, content in {"drawn": everything, "packs": [everything[:4], everything[4:]]}.items():
        known[name] = {"annotation_path": f"{folder}/{name}.json", "data_path": str(photos)}
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "data.json").write_text(json.dumps(known))
    return folder / "data.json"


MADE = {  # of each mode the layouts
    "none": ["padded"],
    "full": ["padded", "flattened", "packed"],
    "no_system": ["padded", "flattened"],
    "no_template": ["padded", "packed"],
}
LAYOUTS = {"padded": {}, "flattened": {"data_flatten": True}, "packed": {"data_packing": True, "dataset_use": "packs"}}


@pytest.fixture(scope="session")
def instructed(items, talk, photos, qwen_data):
    """{(mode, layout): lines}, and what else needs no model: {name: what went wrong}."""
    common = {"dataset_use": "drawn", "max_pixels": 50176, "min_pixels": 784, **SSL, "ssl_tasks": "rotation,color"}
    runs = {f"{mode} {k}": {**common, "instruct_loss": mode, **LAYOUTS[k]} for mode in MADE for k in MADE[mode]}
    return items(runs, VGIFT_QWEN_DATA=talk)


def turns(text):
    """Yields (role, said) of a conversation, by reading the template; a picture is three words of its own."""
    text = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", text)
    return re.findall(r"(?s)<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", text)


PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def expected(mode, line, tokenizer):
    """Returns what is to be learned of a conversation, by reading the template alone."""
    result = ""
    text = tokenizer.decode(line["ids"])
    for role, said in turns(text):
        own, seen = said.removeprefix(PICTURE), said.startswith(PICTURE)
        if role == "assistant":
            result += f"{'<|im_start|>assistant' + chr(10) if mode == 'full' else ''}{said}{ENDS}"
        elif mode == "full":
            result += f"<|im_start|>{role}" + ("" if seen else "\n") + own + ENDS
        elif role == "user":
            result += own + (ENDS if "\nassistant" in own else "")  # the host takes it for the header of an answer
    return result.removeprefix("<|im_start|>") if mode == "full" else result


@needs("VGIFT_QWEN")
def test_instructions_are_learned_as_the_mode_says(instructed, tokenizer):
    for mode in ("full", "no_system"):
        lines = instructed[f"{mode} padded"]
        assert isinstance(lines, list), lines
        seen = [line for line in lines if line["pictures"]]
        assert len(seen) >= 6
        for line in seen:
            assert learned(line, tokenizer) == expected(mode, line, tokenizer)
    before = {json.dumps(line["ids"]): line for line in instructed["none padded"]}
    for line in instructed["no_system padded"]:
        if not line["pictures"]:
            assert line == before[json.dumps(line["ids"])]
    for line in instructed["no_template padded"]:
        if not is_base(line, tokenizer) and "rotat" in tokenizer.decode(line["ids"]):
            assert line["labels"] == before[json.dumps(line["ids"])]["labels"]


@needs("VGIFT_QWEN")
def test_instructions_are_the_same_in_each_layout(instructed):
    for mode, layouts in MADE.items():
        padded, *others = (instructed[f"{mode} {layout}"] for layout in layouts)
        assert isinstance(padded, list), padded
        for other in others:
            assert sorted(map(json.dumps, other)) == sorted(map(json.dumps, padded)), mode


@needs("VGIFT_QWEN")
def test_instructions_cost_the_same_padded_and_flattened(start):
    plugin = {**SSL, "instruct_loss": "full"}
    padded, flattened = (read(*start(plugin, **MODES[mode])) for mode in ("padded", "flattened"))
    for name in ("loss", "response_loss", "instruction_loss", "loss_base"):
        assert close(padded.series(name), flattened.series(name)), name


@needs("VGIFT_QWEN")
def test_a_sample_may_have_two_images_in_each_layout(items, tmp_path, tokenizer, qwen_models):
    from vgift_plugin.hosts.checkpoint import Checkpoint

    (tmp_path / "knobs.json").write_text('{"correspondence": {"two_images": true}}')
    flags = {
        "dataset_use": "drawn",
        "ssl_tasks": "correspondence",
        "ssl_ratio": 0.5,
        "max_pixels": 50176,
        "min_pixels": 784,
    }
    runs = {mode: {**flags, **LAYOUTS[mode], "ssl_config": tmp_path / "knobs.json"} for mode in LAYOUTS}
    made = items(runs)
    for mode, lines in made.items():
        samples = [line for line in lines if not is_base(line, tokenizer)]
        assert len(samples) == 8, mode
        for line in samples:
            asked = tokenizer.decode(line["ids"])
            assert len(set(line["pictures"])) == 2 and "first" in asked and learned(line, tokenizer)[0] in "012", mode
    # what a checkpoint is asked afterwards is what it was trained on, token by token
    asked = Checkpoint.load(str(qwen_models["qwen2.5"]))
    turns = [{"from": "human", "value": "<image>\n<image>\nWhich?"}, {"from": "gpt", "value": "2"}]
    grey = Image.new("RGB", (112, 56), (128, 128, 128))
    ids = asked.encode({"image": ["a", "b"], "conversations": turns}, grey, grey)["input_ids"][0].tolist()
    assert tokenizer.decode(ids).count("<|vision_end|>Which?<|im_end|>") == 1


# What is refused


@needs("VGIFT_QWEN")
def test_what_has_no_effect_here_is_refused_before_a_model_is_loaded(start, items, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    given = {"visual_token_drop": 0.5, "tune_vision_tower": True, "preference_data": tmp_path / "pairs.jsonl"}
    told = items({name: {"dataset_use": "drawn", name: value} for name, value in given.items()})
    for name, sentence in {
        "visual_token_drop": "its model puts visual tokens in inside its forward",
        "tune_vision_tower": "--tune_mm_vision True",
        "preference_data": "preference pairs were made for LLaVA's data module",
    }.items():
        assert told[name].startswith("ConfigError") and f"--{name}: " in told[name] and sentence in told[name]
    *_, done, _ = start({"visual_token_drop": 0.5})
    assert done.returncode != 0 and "its model puts visual tokens in inside its forward" in done.stderr
    assert "the initlized model is" not in done.stdout


@needs("VGIFT_QWEN")
def test_ranks_that_would_train_on_other_records_are_refused(items, tmp_path):
    runs = {
        "drawn": {"dataset_use": "drawn%50", **SSL},
        "other": {"dataset_use": "drawn", "rank 1": {"dataset_use": "drawn,drawn"}, **SSL},
        "same": {"dataset_use": "drawn", "min_pixels": 784, "max_pixels": 50176, **SSL},
    }
    told = items(runs, processes=2)
    assert "without a seed, so each of the 2 ranks would train on other records" in told["drawn"]
    assert "would not train on the same mixture" in told["other"] and "records: 16 (" in told["other"]
    assert isinstance(told["same"], list)


@needs("VGIFT_QWEN")
def test_an_error_in_a_sample_surfaces_as_itself(items, tmp_path, photos):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("coffee", "rocket", "chelsea"):
        content = (photos / f"{name}.jpg").read_bytes()
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "coffee.jpg").write_bytes(content[:100])
    flags = {"dataset_use": "drawn", "min_pixels": 784, "max_pixels": 50176, "ssl_tasks": "rotation", "ssl_ratio": 1.0}
    told = items({name: {**flags, "ssl_image_folder": tmp_path / name} for name in ("photos", "broken")})
    assert isinstance(told["photos"], list) and len(told["photos"]) == 32
    assert told["broken"].startswith("NoSuitableImageError") and "[Try" not in told["broken"]


# 2U1's code


@pytest.fixture(scope="session")
def series(tmp_path_factory, qwen_models, photos, data_path):
    """Trains Qwen-VL-Series-Finetune with LoRA below `vgift run`."""

    def run(plugin, name="qwen2.5", **flags):
        folder, record = tmp_path_factory.mktemp("series"), tmp_path_factory.mktemp("record") / "fed"
        known = {"model_id": qwen_models[name], "data_path": data_path, "image_folder": photos, "output_dir": folder}
        limits = {"image_max_pixels": 50176, "image_min_pixels": 784, "remove_unused_columns": False}
        lora = {"lora_enable": True, "freeze_llm": True, "freeze_merger": True}
        command = [
            sys.executable,
            QWEN / "train_series_cpu.py",
            *arguments({**known, **FLAGS, **limits, **lora}, **flags),
        ]
        done = call([*VGIFT, "run", *arguments(plugin), "--", *command], RECORD=record, **OFFLINE)
        return read(folder, record, done, 1)

    return run


@pytest.fixture(scope="session")
def series_lora(series, others):
    held_out = {"ssl_eval_samples": 3, "ssl_eval_steps": 100, "ssl_eval_image_folder": others}
    return series({**SSL, **held_out, "instruct_loss": "no_system"}, **EPOCH)


@needs("VGIFT_QWEN_SERIES")
def test_the_series_trains_lora_on_samples(series_lora, tokenizer):
    fed = series_lora.fed
    assert len(fed) == 16 + SAMPLES and len(of_base(fed, tokenizer)) == 16
    for line in fed:
        told = expected("no_system", line, tokenizer) if line["pictures"] else answer(line, tokenizer)
        assert learned(line, tokenizer) == told
    numbers = {name for line in series_lora.log for name in line}  # its trainer evaluates by a method of its own
    assert numbers >= {"loss_base", *(f"loss_{task}" for task in TASKS), "response_loss", "eval_color_score"}
    assert (series_lora.folder / "adapter_model.safetensors").exists()


@needs("VGIFT_QWEN_SERIES")
def test_a_fused_loss_reports_no_parts_and_says_so_once(series, tokenizer):
    run = series({**SSL, "instruct_loss": "no_system"}, use_liger=True)
    numbers = {name for line in run.log for name in line}
    assert "loss" in numbers and not numbers & {"loss_base", "response_loss", "instruction_loss"}
    assert run.said.count("returns no logits") == 2  # one for each of the two that report


@needs("VGIFT_QWEN_SERIES")
def test_four_bits_train_on_the_same_samples(series, series_lora, others):
    held_out = {"ssl_eval_samples": 3, "ssl_eval_steps": 100, "ssl_eval_image_folder": others}
    run = series({**SSL, **held_out, "instruct_loss": "no_system"}, bits=4)
    assert run.fed == series_lora.fed[:12]
    first = [one.series("loss")[0] for one in (run, series_lora)]
    assert first[0] != first[1] and abs(first[0] - first[1]) < 0.3  # rounded weights
    assert {name for line in run.log for name in line} == {name for line in series_lora.log for name in line}


# A patched checkout


@needs("VGIFT_QWEN")
def test_a_patched_checkout_trains_with_the_flags(tmp_path, qwen_models, qwen_data):
    checkout = tmp_path / "qwen-vl-finetune"
    shutil.copytree(
        Path(os.environ["VGIFT_QWEN"]).expanduser(), checkout, ignore=shutil.ignore_patterns("demo", "*.pyc")
    )
    train_py = checkout / "qwenvl" / "train" / "train_qwen.py"
    before = train_py.read_bytes()
    told = [call([*VGIFT, "patch", action, checkout]) for action in ("status", "apply", "status")]
    assert [one.returncode for one in told] == [1, 0, 0] and "patch qwen-vl is applied now" in told[1].stdout
    known = {"model_name_or_path": qwen_models["qwen3"], "dataset_use": "drawn", "output_dir": tmp_path / "out"}
    flags = arguments({**known, **FLAGS, **LIMITS, **SSL}, data_flatten=True)
    environment = {"VGIFT_QWEN": checkout, "VGIFT_QWEN_DATA": qwen_data, "PYTHONPATH": ROOT, **OFFLINE}
    done = call([*torchrun(1), QWEN / "train_cpu.py", *flags], **environment)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "self-supervised samples are mixed in" in done.stderr and (tmp_path / "out" / "vgift_mix.json").exists()
    assert call([*VGIFT, "patch", "revert", checkout]).returncode == 0 and train_py.read_bytes() == before
