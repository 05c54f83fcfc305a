"""The vision tower trains in upstream's own runs, comes back with upstream's own loader, and goes out as plain CLIP."""

import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
from conftest import ROOT, VGIFT, arguments, build_llava, call, demo_module, free_port, torchrun

from vgift_plugin.cli import main
from vgift_plugin.errors import ConfigError, HostMismatchError
from vgift_plugin.hosts.llava import LLaVA

pytestmark = pytest.mark.host
HOST = LLaVA()
TRAIN = ROOT / "scripts" / "demo" / "train_cpu.py"
FLAGS = {"visual_token_drop": 0.75, "tune_vision_tower": True}
# Upstream's own loader, in the host that runs: what it loads and what it then sees.
RELOAD = """
import sys, torch
from llava.model.builder import load_pretrained_model
path, base, out = sys.argv[1:]
base = base or None
_, model, processor, _ = load_pretrained_model(path, base, "llava-lora" if base else "llava", device="cpu")
tower = model.get_vision_tower()
pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
torch.save({"tower": tower.vision_tower.state_dict(), "features": tower.float()(pixels)}, out)
model.half().save_pretrained(out + "-merged")
"""


def hosts():
    """LLaVA as installed, and GitHub's where VGIFT_LLAVA names a checkout (see test_checkouts.py)."""
    return ["", *filter(None, [os.environ.get("VGIFT_LLAVA")])]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(language model, tower): a tower of three blocks, of which LLaVA reads two."""
    return demo_module("tiny_llava").build(
        tmp_path_factory.mktemp("parts"), image_px=28, hidden=32, layers=2, tower_hidden=32, tower_layers=3
    )


def train(out, parts, train_flags, flags, host="", launcher=(sys.executable,), **changes):
    llm, tower = parts
    changes = {"model_name_or_path": llm, "vision_tower": tower, "learning_rate": 1e-2, **changes}
    command = [*launcher, TRAIN, *arguments(train_flags, output_dir=out, **changes)]
    path = {"PYTHONPATH": f"{host}:{ROOT}"} if host else {}
    done = call([*VGIFT, "run", *arguments(flags), "--", *command], DS_ACCELERATOR="cpu", **path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stderr


def reloaded(folder, host="", base=""):
    """Returns what upstream's loader makes of a checkpoint: its tower's tensors, and features in float32."""
    import torch

    path = {"PYTHONPATH": f"{host}:{ROOT}"} if host else {}
    done = call([sys.executable, "-c", RELOAD, folder, base, f"{folder}.pt"], DS_ACCELERATOR="cpu", **path)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(f"{folder}.pt", weights_only=True)


def features_of(folder, dtype=None):
    """Returns the same features by plain transformers."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModel

    assert CLIPImageProcessor.from_pretrained(folder).crop_size["height"] == 28
    tower = CLIPVisionModel.from_pretrained(folder).to(dtype or torch.float32).float()
    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def export(checkpoint, out, *more):
    """Runs `vgift export-tower`, without the start of another Python; returns its exit status and what it prints."""
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        status = main(["export-tower", str(checkpoint), "-o", str(out), *map(str, more)])
    return status, said.getvalue()


@pytest.mark.parametrize("host", hosts())
def test_full_fine_tuning_trains_saves_reloads_and_exports_it(tmp_path, parts, train_flags, host):
    import torch
    from llava.model import LlavaLlamaForCausalLM

    out = tmp_path / "llava-full"
    changes = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    told = train(out, parts, train_flags, FLAGS, host, **changes)
    assert "training drops 0.75 of the visual tokens" in told
    assert "the last norm and block 3 of 3 get no gradient and stay as they were" in told
    config = json.loads((out / "config.json").read_text())
    assert config["unfreeze_mm_vision_tower"] is True and config["vgift_plugin"]["visual_token_drop"] == 0.75
    original, loaded = features_of(parts[1], torch.float16), reloaded(out, host)

    tower = tmp_path / "tower"
    status, said = export(out, tower)
    assert status == 0, said
    assert re.search(r"37 of 55 tensors differ from \S+; as they were: block 3, post_layernorm", said)
    assert sorted(path.name for path in tower.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    card = (tower / "README.md").read_text()
    assert "`--tune_vision_tower True` `--visual_token_drop 0.75`" in card and str(parts[1]) in card
    assert torch.equal(features_of(tower, torch.float16), loaded["features"])  # upstream's loader halves all weights
    assert (loaded["features"] - original).abs().max() > 1e-2
    status, said = export(out, out / "config.json" / "tower")
    assert status == 2 and f"-o {out}/config.json/tower: cannot be written" in said
    inside = LlavaLlamaForCausalLM.from_pretrained(out).get_vision_tower()
    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(features_of(tower), inside(pixels)) and inside.dtype == torch.float32

    status, said = export(out, tower)
    assert status == 2 and "exists already" in said
    if not host:
        every_way_of_storing(tmp_path, out, tower)


def every_way_of_storing(tmp_path, out, tower):
    """Shards with an index, as safetensors and as .bin, and one .bin."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(out / "model.safetensors")
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for kind, save in (("model.safetensors", save_file), ("pytorch_model.bin", torch.save)):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text((out / "config.json").read_text())
        places = {name: f"part{k}.{kind}" for k, half in enumerate(halves) for name in half}
        for k, half in enumerate(halves):
            save({name: tensors[name] for name in half}, folder / f"part{k}.{kind}")
        (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": places}))
        assert export(folder, tmp_path / f"{kind}-tower")[0] == 0
        assert torch.equal(features_of(tmp_path / f"{kind}-tower"), features_of(tower))
    (folder / f"{kind}.index.json").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert export(folder, tmp_path / "old-tower")[0] == 0
    assert torch.equal(features_of(tmp_path / "old-tower"), features_of(tower))


@pytest.mark.parametrize("host", hosts())
def test_lora_on_two_processes_saves_the_tower_beside_the_adapter(tmp_path, parts, train_flags, host):
    import torch

    out = tmp_path / "llava-lora"
    saving = {"save_strategy": "steps", "save_steps": 1}
    told = train(out, parts, train_flags, FLAGS, host, torchrun(), lora_enable=True, **saving)
    assert told.count("the vision tower trains too") == 1
    loaded = reloaded(out, host, parts[0])
    for name, checkpoint in (("tower", out), ("merged", f"{out}.pt-merged")):
        assert export(checkpoint, tmp_path / name)[0] == 0
        assert torch.equal(features_of(tmp_path / name, torch.float16), loaded["features"])
    assert (loaded["features"] - features_of(parts[1], torch.float16)).abs().max() > 1e-2
    status, said = export(out / "checkpoint-1", tmp_path / "early")
    assert status == 2 and "not into checkpoint-N" in said


def test_adapters_on_a_base_whose_tower_was_trained(tmp_path, parts, train_flags):
    """Such a base brings its tower before peft looks for layers, so that adapters get into it."""
    import torch

    base, out, frozen = tmp_path / "llava-base", tmp_path / "llava-lora", tmp_path / "llava-frozen"
    train(base, parts, train_flags, FLAGS)
    again = {"model_name_or_path": base, "lora_enable": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    told = train(out, parts, train_flags, FLAGS, **again)
    assert "without the 9 adapters that peft had put into the vision tower" in told
    assert export(out, tmp_path / "tower")[0] == 0 and export(base, tmp_path / "before")[0] == 0
    assert torch.equal(features_of(tmp_path / "tower", torch.float16), reloaded(out, base=base)["features"])
    assert (features_of(tmp_path / "tower") - features_of(tmp_path / "before")).abs().max() > 1e-2
    status, said = export(out / "checkpoint-1", tmp_path / "early", "--model_base", base)
    assert status == 2 and "not into checkpoint-N" in said  # the base's tower is not this run's

    told = train(frozen, parts, train_flags, {"visual_token_drop": 0.5}, **again)
    assert "the vision tower stays frozen" in told
    status, said = export(frozen, tmp_path / "same")
    assert status == 2 and "in an earlier run, whose output folder is --model_base" in said
    assert export(frozen, tmp_path / "same", "--model_base", base)[0] == 0
    assert torch.equal(features_of(tmp_path / "same"), features_of(tmp_path / "before"))
    card = (tmp_path / "same" / "README.md").read_text()
    assert "`llava-base/model.safetensors`" in card and "`--visual_token_drop 0.75`" in card  # of the run that made it


def test_a_checkpoint_that_is_not_whole_is_named(tmp_path):
    weights = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    for name, content, told in [
        ("model.safetensors", b"\x08\0\0\0", "model.safetensors: cannot be read"),
        ("pytorch_model.bin", b"PK\x03\x04", "pytorch_model.bin: cannot be read"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {weights: "part1.safetensors"}}).encode(),
            "part1.safetensors: cannot be read: No such file",
        ),
        ("model.safetensors.index.json", b"{", "model.safetensors.index.json: is no JSON"),
        ("config.json", b"{", "config.json: is no JSON"),
    ]:
        folder = tmp_path / told.split(":")[0] / str(len(content))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}))
        (folder / name).write_bytes(content)
        status, said = export(folder, tmp_path / "out")
        assert status == 2 and told in said and "copied to the end?" in said
    assert not (tmp_path / "out").exists()


def test_a_frozen_tower_is_named_and_not_exported(tmp_path, parts, train_flags):
    """Upstream saves the frozen tower with a full model, and none with adapters: neither is worth taking out."""
    full, lora = tmp_path / "full", tmp_path / "lora"
    train(full, parts, train_flags, {"visual_token_drop": 0.5, "visual_token_drop_prob": 0.25}, max_steps=1)
    assert json.loads((full / "config.json").read_text())["vgift_plugin"]["visual_token_drop_prob"] == 0.25
    status, said = export(full, tmp_path / "out")
    assert status == 2 and "the original one" in said and "unchanged" in said
    settings = json.loads((full / "config.json").read_text())
    (full / "config.json").write_text(json.dumps({**settings, "unfreeze_mm_vision_tower": True}))
    status, said = export(full, tmp_path / "out")
    assert status == 2 and "steps too few or too small" in said and "was frozen" not in said
    lora.mkdir()
    (lora / "config.json").write_text(json.dumps({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}))
    status, said = export(lora, tmp_path / "out")
    assert status == 2 and "the tower is the original one, openai/clip-vit-large-patch14-336" in said
    assert not (tmp_path / "out").exists()


ARGS = SimpleNamespace(deepspeed=None, fp16=False, tune_mm_mlp_adapter=False)


def loss_of(model, dtype=None):
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (1, 9), generator=generator)
    labels, ids[0, 2] = ids.clone(), -200
    labels[:, :4] = -100
    images = torch.randn(1, 3, 28, 28, generator=generator)
    return model(input_ids=ids, labels=labels, images=images.to(dtype or images.dtype)).loss


def test_gradients_reach_the_patch_embedding_with_the_flag_and_not_without(parts):
    import torch

    from vgift_plugin.methods.vitp.tower import TuneTower, stays_frozen

    model = build_llava(*parts).train()
    assert stays_frozen(HOST, model)
    tower = model.get_vision_tower()
    patches = tower.vision_tower.vision_model.embeddings.patch_embedding.weight
    loss_of(model).backward()
    assert patches.grad is None
    tower.half()
    callback = TuneTower(HOST)
    callback.on_init_end(ARGS, None, None, model=model)
    assert tower.dtype == torch.float32 and "forward" in vars(tower) and not stays_frozen(HOST, model)
    loss_of(model).backward()
    assert patches.grad.abs().max() > 0
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in tower.named_parameters() if p.grad is not None}  # DDP waits for all others
    assert len(trained) == 37
    with torch.no_grad():
        assert not model.encode_images(torch.zeros(1, 3, 28, 28)).requires_grad
    callback.on_train_end(None, None, None)
    assert "forward" not in vars(tower) and all(p.requires_grad for p in tower.parameters())
    assert not tower(torch.zeros(1, 3, 28, 28)).requires_grad


def test_runs_that_would_lose_the_tower_are_refused(parts):
    import torch

    from vgift_plugin.methods.vitp.tower import TuneTower

    model = build_llava(*parts)
    args = SimpleNamespace(**{**vars(ARGS), "tune_mm_mlp_adapter": True})
    model.model.vision_tower = [model.model._modules.pop("vision_tower")]  # as upstream does under --fsdp
    with pytest.raises(ConfigError, match=r"(?s)2 mistakes.*tune_mm_mlp_adapter.*--fsdp"):
        TuneTower(HOST).on_init_end(args, None, None, model=model)
    assert not any(p.requires_grad for p in model.get_vision_tower().parameters())
    with pytest.raises(HostMismatchError):
        TuneTower(HOST).on_init_end(ARGS, None, None, model=torch.nn.Linear(1, 1))
    for parts_tuned in ("mm_mlp_adapter", "mm_vision_resampler"):  # LLaVA-NeXT's, which then saves that one alone
        args = SimpleNamespace(**vars(ARGS), mm_tunable_parts=parts_tuned)
        with pytest.raises(ConfigError, match=f"with --mm_tunable_parts {parts_tuned} LLaVA saves that alone"):
            TuneTower(HOST).on_init_end(args, None, None, model=build_llava(*parts))
    args = SimpleNamespace(**vars(ARGS), mm_tunable_parts="mm_mlp_adapter,mm_language_model")
    TuneTower(HOST).on_init_end(args, None, None, model=build_llava(*parts))


def test_an_adapter_that_is_the_layer_itself_goes_too(parts):
    """As up to peft 0.5, where LoRA's Linear is a torch.nn.Linear with more in it."""
    import torch

    from vgift_plugin.methods.vitp.tower import TuneTower

    class Adapter(torch.nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.lora_A = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.zeros(1))})

    model = build_llava(*parts)
    layer = model.get_vision_tower().vision_tower.vision_model.encoder.layers[0].self_attn
    names, weight, bias = set(model.state_dict()), layer.k_proj.weight, layer.k_proj.bias
    layer.k_proj = Adapter(32, 32)
    layer.k_proj.weight, layer.k_proj.bias = weight, bias
    TuneTower(HOST).on_init_end(ARGS, None, None, model=model)
    assert type(layer.k_proj) is torch.nn.Linear and set(model.state_dict()) == names
    assert layer.k_proj.weight is weight and layer.k_proj.bias is bias and weight.requires_grad


ZERO3 = """
import sys, torch
import deepspeed
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # a compiled extension that one process has no use for
deepspeed.init_distributed("gloo")
from types import SimpleNamespace as Is
sys.path.insert(0, {tests!r})
from conftest import build_llava
from test_tower import ARGS, loss_of
from vgift_plugin.hosts.llava import LLaVA
from vgift_plugin.hosts.model_hooks import ModelHooks
from vgift_plugin.methods.vitp.dropping import DropTokens
from vgift_plugin.methods.vitp.tower import TuneTower
host = LLaVA()
model = build_llava({llm!r}, {tower!r}).train()
tune = TuneTower(host)
tune.on_init_end(ARGS, None, None, model=model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
settings = {{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {{"stage": 3}}}}
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={{**settings, "bf16": {{"enabled": True}},
    "zero_allow_untested_optimizer": True}})
hooks = ModelHooks(host, [DropTokens(host, 0.75)])
hooks.on_train_begin(Is(n_gpu=1, seed=0, process_index=0), Is(global_step=0), None, model=engine)
for _ in range(2):
    engine.backward(loss_of(engine, torch.bfloat16))
    engine.step()
hooks.detach()
engine.save_checkpoint({out!r})
model.config.save_pretrained({out!r})
"""


def test_deepspeeds_own_shards(tmp_path, parts, monkeypatch):
    """A real ZeRO-3 engine, of one process, trains with dropping, and its checkpoint is exported."""
    import torch

    out = tmp_path / "zero3"
    code = ZERO3.format(tests=str(ROOT / "tests"), llm=str(parts[0]), tower=str(parts[1]), out=str(out))
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    done = call([sys.executable, "-c", code], DS_ACCELERATOR="cpu", PYTHONPATH=ROOT, **alone)
    assert done.returncode == 0 and list(out.glob("global_step*")), done.stderr[-3000:]
    status, said = export(out, tmp_path / "tower")
    assert status == 0 and "37 of 55 tensors differ" in said
    assert (features_of(tmp_path / "tower") - features_of(parts[1])).abs().max() > 1e-2
    from vgift_plugin.methods.vitp.export_tower import tower_tensors

    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", None)
    with pytest.raises(ConfigError, match=r"run `python zero_to_fp32\.py"):
        tower_tensors(out)
    assert torch.is_grad_enabled()
