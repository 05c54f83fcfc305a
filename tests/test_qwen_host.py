"""Qwen-VL's own fine-tuning code and 2U1's, unedited, on tiny models of random weights; nothing of the plugin's yet.

They need the environment of VGIFT_PINS=qwen, and those that train are skipped where the checkout is not named:

    VGIFT_QWEN           the folder `qwen-vl-finetune` of QwenLM/Qwen3-VL
    VGIFT_QWEN_SERIES    2U1/Qwen-VL-Series-Finetune
"""

import importlib.util
import json
import os
import re
import shutil
import sys

import pytest
from conftest import ROOT, arguments, call, torchrun

QWEN = ROOT / "tests" / "qwen"
HAS_QWEN = all(importlib.util.find_spec(name) for name in ("dashscope", "torch", "torchvision"))
pytestmark = pytest.mark.skipif(not HAS_QWEN, reason="this is not the environment of VGIFT_PINS=qwen")


def needs(variable):
    return pytest.mark.skipif(not os.environ.get(variable), reason=f"set {variable} (see tests/test_qwen_host.py)")


FLAGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
LIMITS = {"max_pixels": 50176, "min_pixels": 784, "tune_mm_llm": True, "tune_mm_mlp": True}
MODES = {
    "padded": {},
    "flattened": {"data_flatten": True},
    "packed": {"data_packing": True, "dataset_use": "packs", "per_device_train_batch_size": 2},
}


@pytest.fixture
def train(qwen_models, qwen_data, tmp_path):
    """Trains Qwen-VL's way; returns the losses of the steps."""

    def run(name, folder=tmp_path / "out", processes=1, **flags):
        known = {
            "model_name_or_path": qwen_models[name],
            "dataset_use": "drawn",
            "output_dir": folder,
            **FLAGS,
            **LIMITS,
        }
        command = [*torchrun(processes), QWEN / "train_cpu.py", *arguments(known, **flags)]
        return losses(call(command, VGIFT_QWEN_DATA=qwen_data, HF_HUB_OFFLINE=1, DS_ACCELERATOR="cpu"))

    return run


def losses(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return [float(loss) for loss in re.findall(r"'loss': ([0-9.]+)", done.stdout)]


def test_the_tokenizer_has_the_vendors_ids(qwen_models):
    script = """
import json, sys, on_a_cpu
on_a_cpu.stand_in()
from transformers import AutoTokenizer
folder, *words = sys.argv[1:]
fast, slow = (AutoTokenizer.from_pretrained(folder, use_fast=fast) for fast in (True, False))
text = "Café 1234 naïve\\n\\n  RGB(12, 0, 255) 猫 <|im_start|>assistant\\n<|image_pad|>"
assert fast(text).input_ids == slow(text).input_ids and fast.decode(fast(text).input_ids) == text
print(json.dumps([type(fast).__name__, fast.convert_tokens_to_ids(words), fast("assistant").input_ids]))
"""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"]
    done = call([sys.executable, "-c", script, qwen_models["qwen2.5"], *words], PYTHONPATH=QWEN)
    assert done.returncode == 0, done.stderr[-5000:]
    ids = [151643, 151644, 151645, 151652, 151655, 151656]
    assert json.loads(done.stdout.splitlines()[-1]) == ["Qwen2TokenizerFast", ids, [77091]]


def test_the_chat_templates_differ_in_the_system_prompt(qwen_models):
    script = """
import json, sys, on_a_cpu
on_a_cpu.stand_in()
from transformers import AutoTokenizer
ask = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": " Which? "}]}
messages = [ask, {"role": "assistant", "content": [{"type": "text", "text": "This.\\n"}]}]
told = [{"role": "system", "content": "Be brief."}, *messages[:1]]
tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in sys.argv[1:]]
print(json.dumps([[one.apply_chat_template(messages, tokenize=False) for one in tokenizers],
    [one.apply_chat_template(told, tokenize=False, add_generation_prompt=True) for one in tokenizers]]))
"""
    done = call([sys.executable, "-c", script, *qwen_models.values()], PYTHONPATH=QWEN)
    assert done.returncode == 0, done.stderr[-5000:]
    untold, told = json.loads(done.stdout.splitlines()[-1])
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    asked = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|> Which? <|im_end|>\n"
    spoken = f"{asked}<|im_start|>assistant\nThis.\n<|im_end|>\n"
    assert untold == [system + spoken, spoken]
    assert told == [f"<|im_start|>system\nBe brief.<|im_end|>\n{asked}<|im_start|>assistant\n"] * 2


@needs("VGIFT_QWEN")
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_qwen_trains_padded_flattened_and_packed(train, name, tmp_path):
    seen = {mode: train(name, tmp_path / mode, **flags) for mode, flags in MODES.items()}
    assert [len(steps) for steps in seen.values()] == [3, 3, 3] and seen["padded"] == seen["flattened"]
    assert all(steps[0] > steps[-1] for steps in seen.values())


@needs("VGIFT_QWEN")
def test_qwen_trains_lora_on_two_ranks(train, tmp_path):
    assert len(train("qwen2.5", processes=2, lora_enable=True, per_device_train_batch_size=2)) == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@needs("VGIFT_QWEN")
def test_qwen3_goes_on_from_a_checkpoint(train, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "data_flatten": True}
    whole = train("qwen3", tmp_path / "whole", **saving)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "rest" / "checkpoint-2")
    assert train("qwen3", tmp_path / "rest", **saving) == whole[2:]


@needs("VGIFT_QWEN")
def test_qwen_trains_with_zero_on_two_ranks(train, tmp_path):
    zero = f"{os.environ['VGIFT_QWEN']}/scripts/zero2.json"
    assert len(train("qwen2.5", processes=2, data_flatten=True, per_device_train_batch_size=2, deepspeed=zero)) == 3
    assert (tmp_path / "out" / "model.safetensors").exists()


@needs("VGIFT_QWEN_SERIES")
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_qwen_series_trains(qwen_models, photos, data_path, tmp_path, name, lora):
    known = {
        "model_id": qwen_models[name],
        "data_path": data_path,
        "image_folder": photos,
        "output_dir": tmp_path,
        **FLAGS,
    }
    limits = {"image_max_pixels": 50176, "image_min_pixels": 784, "remove_unused_columns": False}
    flags = arguments(known, **limits, lora_enable=lora, freeze_llm=lora)
    offline = {"HF_HUB_OFFLINE": 1, "DS_ACCELERATOR": "cpu"}
    assert len(losses(call([sys.executable, QWEN / "train_series_cpu.py", *flags], **offline))) == 3
    assert (tmp_path / ("adapter_model.safetensors" if lora else "model.safetensors")).exists()
