"""A tiny LLaVA, real photographs and base records, made once; and the way every test starts upstream's training."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import skimage
from PIL import Image

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
def tiny(tmp_path_factory):
    """(language model, vision tower) of a LLaVA that sees 28 pixels."""
    return demo_module("tiny_llava").build(
        tmp_path_factory.mktemp("tiny"), image_px=28, hidden=32, layers=1, tower_hidden=32
    )


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


def arguments(flags, **changes):
    """Returns {flag: value} as a list of command-line arguments."""
    return [part for name, value in {**flags, **changes}.items() for part in (f"--{name}", str(value))]


VGIFT = [sys.executable, "-m", "vgift_plugin.cli"]


def call(command, timeout=300, **environment):
    """Runs a command in the repository's root; returns the completed process with both outputs as text."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    env = {name: str(value) for name, value in env.items()}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
