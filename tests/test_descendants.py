"""LLaVA's descendants, unedited, each run by an interpreter that has its versions: as without the plugin where no flag
is given; with --ssl_tasks they train, or are refused before a model is loaded.

VGIFT_CHECKOUTS names a folder of their checkouts, which are called as on GitHub; each is skipped where it is absent, or
where its interpreter cannot import its training module. VGIFT_BUNNY_PYTHON and its likes (VGIFT_ and the checkout's
name in capitals, - as _) name the interpreter, by default this one; it needs what the plugin needs, not the plugin.

    Bunny              transformers 4.40 to 4.44, timm, torchvision
    MoE-LLaVA          4.37, timm, torchvision, tiktoken, einops
    InternLM-XComposer 4.31 (projects/ShareGPT4V)
    LLaVA-NeXT, V-GIFT, TinyLLaVA_Factory    see test_checkouts.py
    VILA, cambrian     whatever imports them
"""

import functools
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, arguments, call_beside, demo_module
from test_checkouts import TINY
from test_preference import LORA, rows_of, write

pytestmark = pytest.mark.host
FOLDER = os.environ.get("VGIFT_CHECKOUTS")
DRIVER = ROOT / "tests" / "checkouts" / "train_descendant.py"
SSL = {"ssl_tasks": "rotation,color", "ssl_ratio": 0.5}


@dataclass(frozen=True)
class Descendant:
    """A checkout: where its training module is, and which flags it takes beside or instead of LLaVA's."""

    module: str
    llm: str = "llama"
    path: str = "."
    flags: dict = field(default_factory=dict)
    without: tuple = ()
    ranks: bool = False  # whether it asks for its rank, so that even one process needs torchrun


HOSTS = {
    "Bunny": Descendant(
        "bunny.train.train",
        "qwen-base",
        flags={"model_type": "qwen1.5-1.8b", "version": "bunny"},
        without=("mm_vision_select_layer", "mm_use_im_start_end", "mm_use_im_patch_token"),
    ),
    "MoE-LLaVA": Descendant(
        "moellava.train.train",
        flags={"image_tower": "openai/clip", "image_projector_type": "mlp2x_gelu"},
        without=("vision_tower", "mm_projector_type"),
    ),
    "InternLM-XComposer": Descendant(
        "share4v.train.train", path="projects/ShareGPT4V", flags={"no_cuda": True}, without=("use_cpu",)
    ),
    "LLaVA-NeXT": Descendant("llava.train.train", flags={"attn_implementation": "eager", "lora_enable": True}),
    "V-GIFT": Descendant("llava.train.train", path="llava"),
    "TinyLLaVA_Factory": Descendant(TINY.module, TINY.llm, flags=TINY.flags, without=TINY.without, ranks=True),
}
REFUSED = {"VILA": Descendant("llava.train.train"), "cambrian": Descendant("cambrian.train.train_fsdp")}


def parametrised(hosts):
    return pytest.mark.parametrize("name", hosts)


def python(name):
    return os.path.expanduser(os.environ.get(f"VGIFT_{name.upper().replace('-', '_')}_PYTHON", sys.executable))


def run(name, command, cwd):
    """Runs a command as if the checkout were installed, and the plugin beside it."""
    host = {**HOSTS, **REFUSED}[name]
    checkout = Path(FOLDER, name, host.path).absolute()
    return call_beside(
        checkout, ["env", "-C", cwd, *command], TOKENIZERS_PARALLELISM=False, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
    )


@functools.cache
def unfit(name):
    """Returns why a checkout cannot be tested here; "" where it can."""
    host = {**HOSTS, **REFUSED}[name]
    if not FOLDER or not Path(FOLDER, name, host.path).is_dir():
        return f"VGIFT_CHECKOUTS names no folder with {name}"
    done = run(name, [python(name), DRIVER, host.module, "--import_only"], ROOT)
    return "" if done.returncode == 0 else f"{python(name)} cannot import {host.module}: {done.stderr[-300:]}"


@pytest.fixture
def start(tmp_path, tiny, train_flags):
    """Returns a function that runs train() of a checkout, with the plugin where `asked` is not None."""

    def start(name, asked=None, llm=None, processes=0, again=False, **changes):
        if why := unfit(name):
            pytest.skip(why)
        host = {**HOSTS, **REFUSED}[name]
        models = {
            "llama": tmp_path / "tinyllama",
            "qwen": tmp_path / "tiny-qwen2",
            "qwen-base": tmp_path / "tiny-qwen2",
            "qwen1.5": tmp_path / "tiny-qwen1.5",
        }
        if not models["llama"].exists():
            models["llama"].symlink_to(tiny[0])
            (tmp_path / "openai").mkdir()
            (tmp_path / "openai" / "clip").symlink_to(tiny[1])  # some choose the tower's class by its name
        if host.llm != "llama" and not models["qwen"].exists():
            from checkouts import tiny_qwen2  # imports torch

            tiny_qwen2.build(models["qwen"], demo_module("tiny_llava").corpus())
            if host.llm == "qwen-base":  # which ends its answers with the token that it pads with
                for file in ("tokenizer_config.json", "special_tokens_map.json"):
                    known = json.loads((models["qwen"] / file).read_text())
                    (models["qwen"] / file).write_text(json.dumps({**known, "eos_token": "<|endoftext|>"}))
        if llm == "qwen1.5" and not models[llm].exists():  # which chooses the model's class by its name
            from checkouts import tiny_qwen2

            tiny_qwen2.build(models[llm], demo_module("tiny_llava").corpus())
        known = {**train_flags, "model_name_or_path": models[llm or host.llm], "vision_tower": "openai/clip"}
        known |= {"output_dir": tmp_path / "out", "max_steps": 2, "seed": 7, **host.flags, **changes}
        if name in REFUSED:  # whose train() ends where it looks for the model
            known = {"model_name_or_path": tmp_path / "none", "data_path": "none", "output_dir": tmp_path / "out"}
        if not again:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        flags = arguments({flag: value for flag, value in known.items() if flag not in host.without})
        plugin = [] if asked is None else [python(name), *VGIFT[1:], "run", *arguments(asked), "--"]
        processes = processes or host.ranks * 1
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes else []
        return run(name, [*plugin, python(name), *torchrun, DRIVER, host.module, *flags], tmp_path)

    return start


def told(done):
    """Returns what the driver printed, {what: value}, and the losses of the steps under "losses"."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    lines = (json.loads(line) for line in done.stdout.splitlines() if re.match(r'\{"(parsed|learned|losses)"', line))
    result = {name: value for line in lines for name, value in line.items()}
    result["losses"] = [step for step in result.get("losses", []) if "loss" in step]
    return result


def without_times(parsed):
    """Returns parsed arguments without what two starts of one program differ in: `logging_dir` holds a time."""
    return {kind: {k: v for k, v in fields.items() if k != "logging_dir"} for kind, fields in parsed.items()}


@parametrised(HOSTS)
def test_without_flags_it_is_as_without_the_plugin(start, name):
    alone, beside = told(start(name)), told(start(name, asked={}))
    assert without_times(alone["parsed"]) == without_times(beside["parsed"])
    assert "learned" not in beside and len(alone["losses"]) == 2
    assert [step["loss"] for step in alone["losses"]] == [step["loss"] for step in beside["losses"]]


@parametrised(HOSTS)
def test_it_trains_on_self_supervised_samples(start, name):
    done = start(name, asked=SSL)
    result = told(done)
    assert "each task passed its self-test" in done.stderr
    assert len(result["learned"]) == 8 and all(said == answer for said, answer in result["learned"])
    assert len(result["losses"]) == 2 and any("loss_base" in step for step in result["losses"])


@parametrised(("Bunny", "InternLM-XComposer", "MoE-LLaVA"))
def test_methods_and_metrics_combine(start, name, others):
    held_out = {"ssl_eval_samples": 2, "ssl_eval_steps": 1, "ssl_eval_image_folder": others}
    dropped = {} if name == "InternLM-XComposer" else {"visual_token_drop": 0.5}
    done = start(name, asked={**SSL, **held_out, **dropped, "instruct_loss": "no_system"})
    steps = told(done)["losses"]
    assert any("instruction_loss" in step and "response_loss" in step for step in steps)
    assert ("training drops 0.5 of the visual tokens" in done.stderr) == bool(dropped)
    assert "eval_rotation_accuracy" in done.stdout


@parametrised(("Bunny", "InternLM-XComposer", "MoE-LLaVA"))
def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(start, name, tmp_path):
    flags = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = told(start(name, asked=SSL, **flags))["losses"]
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = start(name, asked=SSL, again=True, **flags)
    assert told(resumed)["losses"][-2:] == whole[-2:] and len(whole) == 4
    other = start(name, asked={**SSL, "ssl_seed": 1}, again=True, **{**flags, "max_steps": 6})
    assert other.returncode == 1 and "the run would not go on with the samples it was begun with" in other.stderr


@parametrised(("Bunny", "InternLM-XComposer", "MoE-LLaVA"))
def test_two_ranks_train_on_samples(start, name):
    done = start(name, asked=SSL, processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert "each task passed its self-test" in done.stderr and "loss_base" in done.stdout


@parametrised(("Bunny", "InternLM-XComposer", "MoE-LLaVA"))
def test_preferences(start, name, tmp_path, photos):
    template = HOSTS[name].flags.get("version", "v1")
    pairs = write(tmp_path / "prefs.jsonl", rows_of(photos, 8), template=template)
    steps = told(start(name, asked={"preference_data": pairs}, **LORA))["losses"]
    assert steps[0]["rewards/chosen"] == steps[0]["rewards/rejected"] == steps[0]["kl"] == 0  # it is its own reference
    assert steps[1]["rewards/margins"] != 0


def test_experts_train_on_samples_and_instructions(start):
    """MoE-LLaVA's experts on Qwen1.5; those on Llama and Mistral do not run with its own pin of transformers."""
    experts = {"moe_enable": True, "moe_mode": "sparse", "num_experts": 2, "top_k_experts": 2, "ep_size": 1}
    trained = "mlp.gate_proj mlp.up_proj mlp.down_proj wg"
    flags = {**experts, "train_modules": trained, "router_aux_loss_coef": 0.01, "version": "qwen"}
    plain, mixed = (
        told(start("MoE-LLaVA", asked=asked, llm="qwen1.5", **flags))
        for asked in (None, {**SSL, "instruct_loss": "full"})
    )
    assert len(plain["losses"]) == len(mixed["losses"]) == 2 and "learned" not in plain
    assert {"loss_base", "instruction_loss", "response_loss"} <= {name for step in mixed["losses"] for name in step}


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("MoE-LLaVA", {"tune_vision_tower": True}, "this training code's loader takes the original tower again"),
        ("TinyLLaVA_Factory", {"tune_vision_tower": True}, "has a flag of its own for this, --tune_type_vision_tower"),
        ("InternLM-XComposer", {"visual_token_drop": 0.5}, "its model takes no position ids"),
        ("InternLM-XComposer", {"tune_vision_tower": True}, "has a flag of its own for this"),
    ],
)
def test_what_would_have_no_effect_is_refused(start, name, asked, why):
    done = start(name, asked=asked)
    assert done.returncode == 1 and not parsed(done)
    assert why in (done.stderr if HOSTS[name].ranks else done.stderr.splitlines()[-1])  # torchrun has the last word


@parametrised(REFUSED)
def test_what_cannot_mix_samples_in_starts_as_without_the_plugin_and_refuses_flags_before_the_model(start, name):
    alone, beside, refused = start(name), start(name, asked={}), start(name, asked=SSL)
    assert parsed(alone) and parsed(alone) == parsed(beside)
    assert alone.returncode == beside.returncode == 1
    assert alone.stderr.splitlines()[-1] == beside.stderr.splitlines()[-1]  # there is no such model
    assert refused.returncode == 1 and not parsed(refused)
    last = refused.stderr.splitlines()[-1]
    assert "self-supervised samples cannot be had here: " in last and "vgift export" in last


def parsed(done):
    """Returns what the parser made of the flags; None where it did not come so far."""
    line = next((line for line in done.stdout.splitlines() if line.startswith('{"parsed"')), None)
    return line and without_times(json.loads(line)["parsed"])


@parametrised([*HOSTS, *REFUSED])
def test_doctor_names_the_checkouts_host(name):
    if why := unfit(name):
        pytest.skip(why)
    done = run(
        name, [python(name), DRIVER.with_name("doctor_cpu.py"), "--checkout", Path(FOLDER, name).absolute()], ROOT
    )
    if name in ("InternLM-XComposer", "V-GIFT"):  # the package lies deeper
        assert done.returncode == 2 and "name the folder that has it" in done.stderr
        return
    assert ("verdict       ready" in done.stdout) == (done.returncode == 0) == (name in HOSTS), done.stderr[-3000:]
    if "cannot be imported" not in done.stdout:  # Cambrian's module wants a TPU's package
        assert ("vgift export" in done.stdout) == (name in REFUSED)
