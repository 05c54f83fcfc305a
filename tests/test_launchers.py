"""More ways in which people start LLaVA, with the real host; and a LoRA adapter merged by LLaVA's own loader."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
from conftest import VGIFT, arguments, call, free_port

pytestmark = pytest.mark.host
FLAGS = {"ssl_tasks": "rotation", "ssl_ratio": 0.5}


def upstream(name):
    """Returns the path of a file of `llava/train` as installed."""
    return Path(importlib.util.find_spec("llava").origin).parent / "train" / name


def run(command, flags=FLAGS, **environment):
    return call([*VGIFT, "run", *arguments(flags), "--", *command], **environment)


def samples_of(out):
    return json.loads((out / "vgift_mix.json").read_text())["tasks"]["rotation"]["samples"]


def test_a_script_that_calls_a_script_that_calls_deepspeed_with_a_module(tmp_path, train_flags):
    out = tmp_path / "out"
    launcher = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", 1, "--master_port", free_port()]
    command = [*launcher, "--module", "llava.train.train", *arguments(train_flags, output_dir=out, max_steps=1)]
    inner, outer = tmp_path / "inner.sh", tmp_path / "outer.sh"
    inner.write_text(shlex.join(map(str, command)) + ' "$@"\n')
    outer.write_text(f'cd {tmp_path}\nbash ./inner.sh --ssl_seed "$SEED"\n')
    environment = {"DS_ACCELERATOR": "cpu", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "SEED": 3}
    done = run(["bash", outer], **environment)
    assert done.returncode == 0, done.stderr[-5000:]
    assert samples_of(out) == 8
    assert json.loads((out / "vgift_mix.json").read_text())["flags"]["ssl_seed"] == 3


def test_train_mem_gets_as_far_as_flash_attention(tmp_path, train_flags):
    flags = {**train_flags, "output_dir": tmp_path / "out", "ssl_seed": 3}
    unused = "not used by the HfArgumentParser"
    without = call([sys.executable, upstream("train_mem.py"), *arguments(flags)])
    assert without.returncode == 1 and unused in without.stderr
    done = run([sys.executable, upstream("train_mem.py"), *arguments(flags)])
    assert done.returncode == 1 and unused not in done.stderr  # the flag is known: the plugin is there
    assert "FlashAttention2 has been toggled on, but it cannot be used" in done.stderr.splitlines()[-1]


def test_train_xformers(tmp_path, train_flags):
    """It trains without xformers too: LLaVA patches an attention that transformers 4.37 uses no longer by default."""
    out = tmp_path / "out"
    done = run([sys.executable, upstream("train_xformers.py"), *arguments(train_flags, output_dir=out, max_steps=1)])
    assert done.returncode == 0, done.stderr[-5000:]
    assert importlib.util.find_spec("xformers") or "xformers not found" in done.stderr
    assert samples_of(out) == 8


def test_a_lora_adapter_is_merged_by_llavas_own_loader(tmp_path, train_flags):
    """As LLaVA's scripts/merge_lora_weights.py does, which the installed package leaves out."""
    import torch
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    def load(path, base=None):
        return load_pretrained_model(str(path), base, get_model_name_from_path(str(path)), device_map="cpu")

    adapter, merged = tmp_path / "llava-tiny-lora", tmp_path / "llava-tiny"
    lora = {**train_flags, "lora_enable": True, "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}
    done = run([sys.executable, upstream("train.py"), *arguments(lora, output_dir=adapter)])
    assert done.returncode == 0, done.stderr[-5000:]
    assert samples_of(adapter) == 8
    tokenizer, model, *_ = load(adapter, str(train_flags["model_name_or_path"]))
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    model.save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    weights = load(merged)[1].state_dict()
    trained = torch.load(adapter / "non_lora_trainables.bin", map_location="cpu")
    projector = {name.removeprefix("base_model.model."): value for name, value in trained.items()}
    assert len(projector) == 4 and all("mm_projector" in name for name in projector)
    for name, value in projector.items():
        assert torch.equal(weights[name], value.half())
    base = type(model).from_pretrained(train_flags["model_name_or_path"], torch_dtype=torch.float16).state_dict()
    moved = {name for name in base if "_proj.weight" in name and not torch.equal(base[name], weights[name])}
    assert len(moved) == 7  # every linear layer of the one block has what its adapter learned
