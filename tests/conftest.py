"""A tiny LLaVA, real photographs and base records, made once; and the way every test starts upstream's training."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import skimage
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `call` below: sums in another order are other last digits
ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
HAS_HOST = all(importlib.util.find_spec(name) for name in ("llava", "torch", "transformers", "deepspeed"))


def pytest_collection_modifyitems(items):
    """Without LLaVA the host's tests are skipped, and said so; CI forbids it (see pytest_sessionfinish)."""
    for item in items:
        if item.get_closest_marker("host") and not HAS_HOST:
            item.add_marker(pytest.mark.skip(reason="llava, torch, transformers or deepspeed is not installed"))


def pytest_sessionfinish(session, exitstatus):
    """VGIFT_NEEDS_HOST=1 (scripts/test.sh sets it) turns a skipped host test into a failure."""
    if os.environ.get("VGIFT_NEEDS_HOST") == "1" and not HAS_HOST and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def demo_module(name):
    """Returns a module of scripts/demo."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "demo" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of real photographs as JPEG: landscape, portrait, square, odd sizes."""
    folder = tmp_path_factory.mktemp("photos")
    boxes = {
        "astronaut.png": (0, 0, 512, 512),
        "chelsea.png": (0, 0, 451, 300),
        "coffee.png": (3, 5, 600, 400),
        "rocket.jpg": (0, 0, 321, 427),
        "motorcycle_left.png": (10, 10, 651, 491),
    }
    for name, box in boxes.items():
        image = Image.open(PHOTOGRAPHS / name).convert("RGB").crop(box)
        image.save(folder / f"{Path(name).stem}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def others(tmp_path_factory, photos):
    """Photographs that the run's folder does not have."""
    folder = tmp_path_factory.mktemp("others")
    for path in photos.iterdir():
        with Image.open(path) as image:
            for k in range(2):
                image.crop((20 * k, 10, 240 + 20 * k, 280)).save(folder / f"{path.stem}-{k}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def records(photos):
    """Sixteen base records, five pictures among them used more than once, four of them text alone."""
    names = sorted(path.name for path in photos.iterdir())
    result = []
    for k in range(16):
        answer = {"from": "gpt", "value": f"Number {k}, as far as one can tell."}
        if k % 4 == 3:
            result.append(
                {"id": f"t{k}", "conversations": [{"from": "human", "value": f"What is {k} plus one?"}, answer]}
            )
        else:
            ask = {"from": "human", "value": f"<image>\nWhat does picture {k} show?"}
            result.append({"id": f"i{k}", "image": names[k % len(names)], "conversations": [ask, answer]})
    return result


@pytest.fixture(scope="session")
def data_path(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("base") / "base.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="session")
def release(tmp_path_factory, photos, records):
    """A small release as V-GIFT's: (image folder, metadata folder, records). Its photographs lie in coco/train2017, one
    of them stored on its side with an EXIF orientation; base records first, then one published record a row."""
    root = tmp_path_factory.mktemp("release")
    folder, metadata = root / "coco" / "train2017", root / "metadata"
    folder.mkdir(parents=True)
    metadata.mkdir()
    names = []
    for path in sorted(photos.iterdir()):
        names.append(f"{len(names):012d}.jpg")
        image, exif = Image.open(path), Image.Exif()
        exif[0x0112] = 6 if len(names) == 2 else 1
        image.save(folder / names[-1], quality=92, exif=exif)
        image.save(root / path.name, quality=92)
    rows = {"rotation": [], "colorization": [], "point_correspondence": []}
    published = []
    for k, name in enumerate(names * 2):
        angle, answer, slots = (k * 90) % 360, k % 3, [(k + i) % 5 + 1 for i in range(5)]
        points = [
            {
                "label": "ABCDE"[i],
                "x": 30 + 40 * i + k,
                "y": 40 + 30 * i,
                "original_color": [50 * i, 9 * k, 200 - 40 * i],
            }
            for i in range(5)
        ]
        colors = [points[slots.index(slot)]["original_color"] for slot in range(1, 6)]
        pair = {"image1_name": name, "image2_name": names[(k + 1) % len(names)], "point_img1": f"({40 + k}, 50)"}
        candidates = [f"({60 * i + 20}, {200 - 60 * i})" for i in range(3)]
        rows["rotation"].append({"id": f"r-{k}", "source_image": name, "rotation_degrees": angle})
        rows["colorization"].append(
            {"id": f"c-{k}", "source_image": name, "points": points, "shuffled_colors": colors}
            | {"answer_mapping": dict(zip("ABCDE", slots, strict=True))}
        )
        rows["point_correspondence"].append(
            {"id": f"p-{k}", **pair, "points_img2": candidates, "correspondence_index": answer}
        )
        letters = ", ".join(f"{letter}-{slot}" for letter, slot in zip("ABCDE", slots, strict=True))
        for image, ask, reply in (
            (f"rotation/images/r-{k}_rot{angle}.jpg", "By how much was it turned?", str(angle)),
            (f"colorization/images/c-{k}_colorization.jpg", "Which colours?", letters),
            (f"point_correspondence/images/p-{k}_correspondence.jpg", "Which point?", str(answer)),
        ):
            turns = [{"from": "human", "value": f"<image>\n{ask}"}, {"from": "gpt", "value": reply}]
            published.append({"id": image, "image": image, "conversations": turns})
    for stem, one in rows.items():
        (metadata / f"{stem}_metadata.json").write_text(json.dumps(one))
    return root, metadata, [*records, *published]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(language model, vision tower) of a LLaVA that sees 28 pixels."""
    return demo_module("tiny_llava").build(
        tmp_path_factory.mktemp("tiny"), image_px=28, hidden=32, layers=1, tower_hidden=32
    )


@pytest.fixture(scope="session")
def tiny_llava(tiny):
    """That LLaVA as upstream's training builds it, in evaluation mode and float32; tests leave it as they found it."""
    return build_llava(*tiny)


def build_llava(llm, tower, attention="eager", **settings):
    """Returns upstream's own model of these parts, as its train() builds it."""
    from argparse import Namespace

    import torch
    from llava.model import LlavaLlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaLlamaForCausalLM.from_pretrained(llm, attn_implementation=attention)
        chosen = {"vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
        chosen |= {"mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat", "pretrain_mm_mlp_adapter": None}
        model.get_model().initialize_vision_modules(Namespace(**{**chosen, **settings}))
    model.config.tokenizer_padding_side, model.config.tokenizer_model_max_length = "right", 2048
    model.config.image_aspect_ratio, model.config.use_cache = "pad", False
    return model.eval()


@pytest.fixture(scope="session")
def train_flags(tiny, data_path, photos):
    """Returns the arguments of an upstream training run as {flag: value}, to be changed and joined by `arguments`."""
    llm, tower = tiny
    return {
        "model_name_or_path": llm,
        "version": "v1",
        "data_path": data_path,
        "image_folder": photos,
        "vision_tower": tower,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "group_by_modality_length": True,
        "bf16": False,
        "use_cpu": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "evaluation_strategy": "no",
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "model_max_length": 2048,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "lazy_preprocess": True,
        "report_to": "none",
    }


def changed(module, before):
    """Returns the names of a module that are not the objects they were."""
    return {name for name, value in vars(module).items() if before.get(name) is not value} - {"__warningregistry__"}


@pytest.fixture
def host():
    """`llava.train.train`, as upstream wrote it before and after each test."""
    import llava.train.train as module

    from vgift_plugin import hook as host

    before = dict(vars(module))
    template = module.conversation_lib.default_conversation
    yield module
    host.detach(module)
    module.conversation_lib.default_conversation = template
    assert changed(module, before) == set()


@pytest.fixture
def attached(host):
    from vgift_plugin import attach

    attach()
    return host


@pytest.fixture
def tokenizer(tiny):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        tiny[0], model_max_length=2048, padding_side="right", use_fast=False
    )
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers(tiny, tmp_path_factory):
    """{name: tokenizer}: sentencepiece with bytes for rare characters, and byte-level BPE, each slow and fast."""
    import transformers

    folders, made = {"llama": tiny[0]}, {}
    if hasattr(transformers, "Qwen2Config"):  # not in 4.36
        from checkouts import tiny_qwen2

        lines = demo_module("tiny_llava").corpus()
        folders["qwen"] = tiny_qwen2.build(tmp_path_factory.mktemp("tokenizers") / "qwen", lines)
    for name, folder in folders.items():
        for kind in ("slow", "fast"):
            options = {"model_max_length": 4096, "padding_side": "right", "use_fast": kind == "fast"}
            made[f"{name} {kind}"] = transformers.AutoTokenizer.from_pretrained(folder, **options)
    for one in made.values():
        one.pad_token = one.unk_token or one.pad_token
        one.legacy = getattr(one, "legacy", True)  # upstream's v1 asks every tokenizer for it
    assert "Fast" in type(made["llama fast"]).__name__ and "Fast" not in type(made["llama slow"]).__name__
    return made


@pytest.fixture
def data_args(host, tiny, data_path, photos):
    """Makes the data arguments as train() leaves them."""
    import transformers

    def make(version="v1", **flags):
        flags = {"data_path": str(data_path), "image_folder": str(photos), "image_aspect_ratio": "pad", **flags}
        arguments = host.DataArguments(**flags)
        arguments.image_processor = transformers.CLIPImageProcessor.from_pretrained(tiny[1])
        arguments.is_multimodal = True
        arguments.mm_use_im_start_end = False
        host.conversation_lib.default_conversation = host.conversation_lib.conv_templates[version]
        return arguments

    return make


@pytest.fixture
def module_of(attached, tokenizer, data_args):
    """Makes the data module of a run with the given flags."""

    def make(tokenizer=tokenizer, **flags):
        return attached.make_supervised_data_module(tokenizer=tokenizer, data_args=data_args(**flags))

    return make


@pytest.fixture(scope="session")
def full(train_flags, tmp_path_factory):
    """A checkpoint of full fine-tuning."""
    return train(train_flags, tmp_path_factory.mktemp("trained") / "whole")


@pytest.fixture(scope="session")
def qwen_models(tmp_path_factory):
    """{"qwen2.5": folder, "qwen3": folder}; the path above them must name neither."""
    folder = tmp_path_factory.mktemp("models")
    done = call([sys.executable, ROOT / "tests" / "qwen" / "tiny_qwen_vl.py", folder])
    assert done.returncode == 0, done.stderr[-5000:]
    return dict(zip(("qwen2.5", "qwen3"), done.stdout.split()[-2:], strict=True))


@pytest.fixture(scope="session")
def qwen_data(tmp_path_factory, photos, records):
    """A file that names data sets as Qwen-VL's `data_dict` does: sixteen records, and the same packed by twos."""
    folder = tmp_path_factory.mktemp("data")
    packs = [records[i : i + 2] for i in range(0, len(records), 2)]
    for name, content in {"drawn": records, "packs": packs}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    sets = {name: {"annotation_path": f"{folder}/{name}.json", "data_path": str(photos)} for name in ("drawn", "packs")}
    (folder / "data.json").write_text(json.dumps(sets))
    return folder / "data.json"


DINO_PATCH = 14
DINO_MEAN, DINO_STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def build_dino(folder, hidden=96, layers=2, **changes):
    """Saves a small DINOv2 of random weights with its preprocessing; returns the folder."""
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"image_size": 518, "patch_size": DINO_PATCH, "num_attention_heads": 4, "mlp_ratio": 2, **changes}
        config = transformers.Dinov2Config(hidden_size=hidden, num_hidden_layers=layers, **settings)
        transformers.Dinov2Model(config).save_pretrained(folder)
    preprocessing = {"image_processor_type": "BitImageProcessor", "image_mean": DINO_MEAN, "image_std": DINO_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    """The folder of a small DINOv2 of random weights."""
    return build_dino(tmp_path_factory.mktemp("dinov2"))


def train(flags, folder, **changes):
    """Returns a folder to which upstream's training code has saved a model; nothing in its name says what it is."""
    flags = {**flags, "max_steps": 3, "learning_rate": 1e-2, "output_dir": folder, **changes}
    done = call([sys.executable, ROOT / "scripts" / "demo" / "train_cpu.py", *arguments(flags)])
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def arguments(flags, **changes):
    """Returns {flag: value} as a list of command-line arguments."""
    return [part for name, value in {**flags, **changes}.items() for part in (f"--{name}", str(value))]


VGIFT = [sys.executable, "-m", "vgift_plugin.cli"]


def free_port():
    """Returns a port nobody listens on, so that test runs side by side do not meet."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def torchrun(processes=2):
    """Returns how a command begins that runs a script in so many processes, on a port of its own."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]


def call(command, timeout=600, **environment):
    """Runs a command in the repository's root; returns the completed process with both outputs as text."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    env = {name: str(value) for name, value in env.items()}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def call_beside(checkout, command, **environment):
    """Runs a command as if the checkout were installed, and the plugin beside it."""
    path = filter(None, [str(checkout), str(ROOT), os.environ.get("PYTHONPATH")])
    offline = {"HF_HUB_OFFLINE": 1, "WANDB_MODE": "disabled", "DS_ACCELERATOR": "cpu", "PYTHONDONTWRITEBYTECODE": 1}
    return call(command, **{**offline, "PYTHONPATH": os.pathsep.join(path), **environment})
