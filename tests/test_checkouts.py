"""Real checkouts of LLaVA and its forks, each run by an interpreter that has its versions of transformers and the rest.

They are skipped where the variable that names the checkout is not set:

    VGIFT_LLAVA          haotian-liu/LLaVA
    VGIFT_FORK           the folder `llava` of V-GIFT's repository
    VGIFT_LLAVA_NEXT     LLaVA-VL/LLaVA-NeXT
    VGIFT_TINYLLAVA      TinyLLaVA/TinyLLaVA_Factory

VGIFT_LLAVA_NEXT_PYTHON and its likes name the interpreter, by default this one; it needs what the plugin needs, not the
plugin itself. V-GIFT's fork and LLaVA-NeXT want more than LLaVA does (wandb, timm with torchvision; decord, av, tyro,
rich) and hide some of their models where that is missing.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, arguments, call, call_beside, demo_module, free_port
from test_preference import LORA, rows_of, write

pytestmark = pytest.mark.host
DRIVERS = ROOT / "tests" / "checkouts"
SSL = {"ssl_tasks": "rotation,color,correspondence", "ssl_ratio": 1.0}
EACH = 16 // 3  # of each task, for sixteen base records


@dataclass(frozen=True)
class Host:
    """A checkout, how its own scripts start it, and what its flags are called."""

    variable: str
    llm: str
    flags: dict
    without: tuple = ()
    start: str = "llava/train/train.py"
    module: str = "llava.train.train"
    processes: int = 1
    differ: tuple = ()  # the keys that name the picture's file

    def checkout(self):
        return Path(os.environ[self.variable]).expanduser().absolute()

    @property
    def python(self):
        return os.path.expanduser(os.environ.get(f"{self.variable}_PYTHON", sys.executable))

    def deepspeed(self):
        """Returns how a command begins that DeepSpeed's launcher starts in this host's processes."""
        launcher = [self.python, "-m", "deepspeed.launcher.runner", "--num_gpus", self.processes]
        return [*launcher, "--master_port", free_port()]

    def call(self, command, **environment):
        """Runs a command as if the checkout were installed, and the plugin beside it."""
        return call_beside(self.checkout(), command, **environment)


NEXT = {  # with LoRA, for without it the last line of its train() needs a GPU
    "version": "qwen_1_5",
    "attn_implementation": "eager",
    "lora_enable": True,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": "[(28, 56), (56, 28), (56, 56)]",
    "mm_patch_merge_type": "spatial_unpad",
}
TINY = Host(
    "VGIFT_TINYLLAVA",
    "qwen",
    {
        "conv_version": "qwen2_instruct",
        "connector_type": "mlp2x_gelu",
        "tune_type_llm": "full",
        "tune_type_vision_tower": "frozen",
        "tune_type_connector": "full",
        "tokenizer_use_fast": False,
        "image_aspect_ratio": "square",
    },
    without=("version", "mm_projector_type", "mm_use_im_start_end", "mm_use_im_patch_token"),
    start="tinyllava/train/train.py",
    module="tinyllava.train.train",
    processes=2,
)
HOSTS = {
    "llava-v1": Host("VGIFT_LLAVA", "llama", {}),
    "vgift-v1": Host("VGIFT_FORK", "llama", {}, differ=("image_path",)),
    "vgift-qwen_2": Host("VGIFT_FORK", "qwen", {"version": "qwen_2"}, differ=("image_path",)),
    "next-v1": Host("VGIFT_LLAVA_NEXT", "llama", {**NEXT, "version": "v1"}, start="llava/train/train_mem.py"),
    "next-qwen_1_5": Host("VGIFT_LLAVA_NEXT", "qwen", NEXT, start="llava/train/train_mem.py"),
    "tinyllava-qwen2": TINY,
    "tinyllava-llama": replace(TINY, llm="llama", flags={**TINY.flags, "conv_version": "llama"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny):
    """{name: folder}; LLaVA-NeXT and TinyLLaVA choose the model's class by words in its path."""
    from checkouts import tiny_qwen2  # imports torch

    folder = tmp_path_factory.mktemp("models")
    (folder / "tinyllama").symlink_to(tiny[0])
    qwen = tiny_qwen2.build(folder / "tiny-qwen2", demo_module("tiny_llava").corpus())
    return {"llama": folder / "tinyllama", "qwen": qwen}


def needs(variable):
    return pytest.mark.skipif(not os.environ.get(variable), reason=f"set {variable} (see tests/test_checkouts.py)")


@pytest.fixture(params=[pytest.param(host, id=name, marks=needs(host.variable)) for name, host in HOSTS.items()])
def host(request):
    return request.param


@pytest.fixture
def flags(host, models, train_flags, tmp_path):
    """The arguments of a short training run of the host."""
    known = {**train_flags, "model_name_or_path": models[host.llm], "output_dir": tmp_path / "out", "max_steps": 3}
    return arguments({name: value for name, value in {**known, **host.flags}.items() if name not in host.without})


def test_a_sample_is_what_the_checkouts_own_dataset_makes_of_it(host, flags):
    alone = ["-m", "torch.distributed.run", "--nproc_per_node", 1, "--master_port", free_port()]  # for TinyLLaVA's sake
    done = host.call([host.python, *alone, DRIVERS / "same_sample.py", host.module, *flags])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["file"]).is_relative_to(host.checkout())
    assert {"input_ids", "labels", "image"} <= set(result["keys"]) and all(result["answers"].values())
    assert result["differ"] == list(host.differ)


def test_train(host, flags, tmp_path):
    vgift = [host.python, *VGIFT[1:], "run", *arguments({**SSL, "instruct_loss": "no_template"}), "--"]
    done = host.call([*vgift, *host.deepspeed(), host.checkout() / host.start, *flags])
    if "name 'DebugOption' is not defined" in done.stderr:
        assert "each task passed its self-test" in done.stderr
        pytest.xfail("this LLaVA-NeXT cannot train, with or without the plugin; b42941c is the last commit that can")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert "'response_loss'" in done.stdout and "no instruction had to be left out of the loss" in done.stderr
    mix = json.loads((tmp_path / "out" / "vgift_mix.json").read_text())
    assert {name: task["samples"] for name, task in mix["tasks"].items()} == dict.fromkeys(mix["tasks"], EACH)
    assert (mix["base"]["samples"], mix["samples"], len(mix["tasks"])) == (16, 16 + 3 * EACH, 3)


def test_train_the_tower_with_visual_tokens_dropped(host, flags, tmp_path):
    tune = [] if host.variable == "VGIFT_TINYLLAVA" else ["--tune_vision_tower", True]  # which has a flag of its own
    vgift = [host.python, *VGIFT[1:], "run", "--visual_token_drop", 0.75, *tune, "--"]
    done = host.call([*vgift, *host.deepspeed(), host.checkout() / host.start, *flags])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert "training drops 0.75 of the visual tokens" in done.stderr and "3/3" in done.stderr
    assert ("the vision tower trains too" in done.stderr) == bool(tune)


def test_preferences(host, flags, tmp_path, photos):
    """With LoRA the pairs are trained on; without it, as here on TinyLLaVA, the run is refused."""
    template = host.flags.get("version") or host.flags.get("conv_version") or "v1"
    file = write(tmp_path / "prefs.jsonl", rows_of(photos, 12), template=template)
    vgift = [host.python, *VGIFT[1:], "run", "--preference_data", file, "--"]
    lora = [] if host.variable == "VGIFT_TINYLLAVA" else arguments(LORA)
    if host.variable == "VGIFT_LLAVA_NEXT":
        lora += ["--mm_patch_merge_type", "spatial"]  # with unpad a weight of its own is trained, which is refused
    done = host.call([*vgift, *host.deepspeed(), host.checkout() / host.start, *flags, *lora])
    if not lora:
        assert done.returncode == 1 and "needs LoRA" in done.stderr, done.stderr[-5000:]
        return
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [one.get("rewards/margins") is not None for one in history[:4]] == [True, True, True, False]
    assert history[0]["rewards/margins"] == 0 != history[2]["rewards/margins"]
    assert json.loads((tmp_path / "out" / "vgift_preferences.json").read_text())["pairs"] == 12


VICUNA = {"PROMPT_VERSION": "v1", "MODEL_VERSION": "vicuna-v1-3-7b"}  # what the older scripts leave to be set
LLAMA_2 = {"PROMPT_VERSION": "llava_llama_2", "MODEL_VERSION": "llama-2-7b-chat"}


def options(script, place, variables):
    """Returns the arguments that a shell script gives to `deepspeed`, as {flag: value}."""
    executable(place / "deepspeed", "printf '%s\\n' \"$@\"")
    shown = call(["bash", script], **variables, PATH=f"{place}:{os.environ['PATH']}").stdout.splitlines()
    return dict(zip(shown[1::2], shown[2::2], strict=True))


def executable(path, line):
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def start(tmp_path, models, tiny, photos, data_path):
    """Returns a function that runs a checkout's own script, unedited, where all that its arguments name exists.

    What an argument names is made of tiny parts; an absolute path (/path/to/coco/train2017) below the working folder,
    which then is the one thing in the command that differs from the script, besides what a CPU forces.
    """
    work = tmp_path / "llava"

    def start(name, variables, append="", host=HOSTS["llava-v1"], asked=SSL):
        work.mkdir(exist_ok=True)
        for part in ("scripts", "llava"):
            if not (work / part).exists():
                (work / part).symlink_to(host.checkout() / part)
        given = options(work / "scripts" / name, tmp_path, variables)
        named = {flag: inside(value) for flag, value in given.items() if "/" in value}
        moved = [f"{flag} {path}" for flag, path in named.items() if given[flag].startswith("/")]
        prepare(named, models[host.llm], given.get("--mm_projector_type", "linear"))
        executable(tmp_path / "deepspeed", f'exec {host.python} {DRIVERS}/stand_in_deepspeed.py "$@"')
        run = [
            host.python,
            *VGIFT[1:],
            "run",
            *arguments(asked),
            "--",
            "bash",
            "-c",
            f"cd {work} && bash scripts/{name}",
        ]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN_APPEND": " ".join([*moved, append])}
        return host.call(run, **environment, **variables), named["--output_dir"]

    def inside(value):
        return Path(value) if value.startswith(str(tmp_path)) else work / value.lstrip("/")

    def prepare(named, llm, projector):
        import torch

        named["--image_folder"].mkdir(parents=True, exist_ok=True)
        links = {named["--image_folder"] / photo.name: photo for photo in photos.iterdir()}
        links |= {named["--data_path"]: data_path, named["--vision_tower"]: tiny[1], named["--model_name_or_path"]: llm}
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(target)
        if "--pretrain_mm_mlp_adapter" in named:
            names = ["mm_projector"] if projector == "linear" else ["mm_projector.0", "mm_projector.2"]
            layers = {name: torch.nn.Linear(32, 32).state_dict() for name in names}
            weights = {f"model.{name}.{key}": value for name in names for key, value in layers[name].items()}
            named["--pretrain_mm_mlp_adapter"].parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, named["--pretrain_mm_mlp_adapter"])

    return start


def assert_trained(done, out):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    assert "1/1" in done.stderr and "each task passed its self-test" in done.stderr
    assert json.loads((out / "vgift_mix.json").read_text())["samples"] == 16 + 3 * EACH


@needs("VGIFT_LLAVA")
@pytest.mark.parametrize("variables", [VICUNA, LLAMA_2], ids=["vicuna", "llama_2"])
@pytest.mark.parametrize("script", ["finetune.sh", "finetune_lora.sh", "finetune_full_schedule.sh", "finetune_sqa.sh"])
def test_llavas_own_older_scripts(start, script, variables):
    assert_trained(*start(script, variables))


@needs("VGIFT_LLAVA")
def test_llavas_own_lora_script_and_merge(start):
    done, out = start("v1_5/finetune_lora.sh", {})
    assert_trained(done, out)
    host, merged, work = HOSTS["llava-v1"], out.with_name("merged"), out.parent.parent
    merge = f"cd {work} && {host.python} scripts/merge_lora_weights.py --model-path {out} --save-model-path {merged}"
    done = host.call(["bash", "-c", f"{merge} --model-base lmsys/vicuna-13b-v1.5"])
    assert done.returncode == 0, done.stderr[-5000:]
    assert list(merged.glob("*.safetensors"))


@needs("VGIFT_LLAVA")
def test_llavas_own_lora_script_on_preferences(start, photos, tmp_path):
    file = write(tmp_path / "prefs.jsonl", rows_of(photos, 12))
    done, out = start("v1_5/finetune_lora.sh", {}, asked={"preference_data": file})
    assert done.returncode == 0 and "1/1" in done.stderr, done.stdout[-2000:] + done.stderr[-5000:]
    assert json.loads((out / "vgift_preferences.json").read_text())["pairs"] == 12
    assert (out / "adapter_config.json").exists() and (out / "non_lora_trainables.bin").exists()


@needs("VGIFT_LLAVA")
@pytest.mark.parametrize("script", ["v1_5/finetune_task.sh", "v1_5/finetune_task_lora.sh"])
def test_llavas_own_scripts_on_its_own_checkpoint(start, tmp_path, script):
    done, out = start("v1_5/finetune.sh", {})
    assert_trained(done, out)
    (tmp_path / "llava" / "liuhaotian").mkdir()
    out.rename(tmp_path / "llava" / "liuhaotian" / out.name)
    assert_trained(*start(script, {}))


@needs("VGIFT_FORK")
@pytest.mark.parametrize("model", ["vicuna", "qwen"])
def test_v_gifts_own_scripts(start, model):
    host = HOSTS["vgift-v1" if model == "vicuna" else "vgift-qwen_2"]
    assert_trained(*start(f"v1_5/finetune_full_{model}_v_gift.sh", {}, host=host))


@needs("VGIFT_LLAVA")
@pytest.mark.parametrize("script", ["pretrain.sh", "pretrain_xformers.sh", "v1_5/pretrain.sh"])
def test_pretraining_is_refused(start, script):
    done, _ = start(script, {"MODEL_VERSION": "vicuna-v1-3-7b"})
    assert done.returncode == 1, done.stderr[-5000:]
    assert "the template leaves the instruction out" in done.stderr and "0/1" not in done.stderr


@needs("VGIFT_LLAVA")
def test_qlora(start):
    """In four bits as far as a machine without a GPU gets, which is past the flags; in sixteen, to the first step."""
    done, _ = start("finetune_qlora.sh", VICUNA, "--ssl_seed 7")
    assert done.returncode == 1 and "not used by the HfArgumentParser" not in done.stderr
    assert "BitsAndBytesConfig(" in done.stderr or "No GPU found" in done.stderr, done.stderr[-5000:]
    assert_trained(*start("finetune_qlora.sh", VICUNA, "--bits 16 --ssl_seed 7"))
