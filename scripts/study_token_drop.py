"""Does dropping visual tokens make a better tower? A tiny study: drop ratios against probe accuracy, over seeds.

    python scripts/study_token_drop.py            # seven minutes of one core

Each run is upstream's own train() with the plugin attached: a LLaVA of random weights learns to name the colour of a
ground, its tower trains with it, `vgift export-tower` takes the tower out, and `vgift tower-probe` measures what its
features tell of other pictures, clean and under the twelve corruptions. Intervals are Student's over the seeds, 95 %.
It is about towers of 0.1 million parameters that never saw a photograph.
"""

from __future__ import annotations

import argparse
import colorsys
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "demo"))
from tiny_llava import build

import vgift_plugin
from vgift_plugin.host.tower_export import export_tower
from vgift_plugin.insight.tower_probe import CLEAN, MEAN, Tower, examine, features, split

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
SIDE_PX, PATCH_PX = 42, 7
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")  # eight hues, an eighth turn apart
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # 95 %, by the number of seeds


def draw(rng: np.random.Generator, color: str) -> Image.Image:
    """Returns a noisy ground of the named hue, any saturation and brightness, with things of other hues before it."""

    def paint(hue: float) -> np.ndarray:
        return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.3, 1), rng.uniform(0.3, 1)))

    image = np.tile(paint((COLORS.index(color) + rng.uniform(-0.35, 0.35)) / len(COLORS)), (SIDE_PX, SIDE_PX, 1))
    for _ in range(rng.integers(1, 5)):
        (top, left), (height, width) = rng.integers(0, SIDE_PX - 8, 2), rng.integers(6, 22, 2)
        image[top : top + height, left : left + width] = paint(rng.uniform())
    return Image.fromarray((image + rng.normal(0, 30, image.shape)).clip(0, 255).astype(np.uint8))


def make_data(folder: Path, train: int, probe: int) -> None:
    """Draws LLaVA records with pictures to train on, and a folder of pictures for each colour to probe with."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    records = []
    for k in range(train):
        color = COLORS[k % len(COLORS)]
        draw(rng, color).save(folder / "train" / f"{k}.png")
        ask = {"from": "human", "value": "<image>\nWhich colour is the ground?"}
        records.append({"id": str(k), "image": f"{k}.png", "conversations": [ask, {"from": "gpt", "value": color}]})
    (folder / "train.json").write_text(json.dumps(records))
    for color in COLORS:
        (folder / "probe" / color).mkdir(parents=True)
        for k in range(probe):
            draw(rng, color).save(folder / "probe" / color / f"{k}.png")


def train_tower(folder: Path, parts: tuple[Path, Path], ratio: float, seed: int, args: argparse.Namespace) -> Path:
    """Trains one LLaVA with upstream's train(); returns the folder of its exported tower."""
    from llava.train.train import train

    out = folder / f"run-{seed}-{ratio}"
    flags = {
        "model_name_or_path": parts[0],
        "version": "v1",
        "data_path": folder / "train.json",
        "image_folder": folder / "train",
        "vision_tower": parts[1],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "group_by_modality_length": True,
        "use_cpu": True,
        "output_dir": out,
        "num_train_epochs": args.epochs,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.1,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "logging_first_step": True,
        "logging_steps": 20,
        "model_max_length": 2048,
        "lazy_preprocess": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "visual_token_drop": ratio,
        "tune_vision_tower": True,
    }
    sys.argv = ["train", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        train()
    losses = [told["loss"] for told in json.loads((out / "trainer_state.json").read_text())["log_history"][:-1]]
    print(f"seed {seed}, drop {ratio:g}: loss {losses[0]:g} to {losses[-1]:g}", flush=True)
    export_tower(str(out), str(out / "tower"))
    return out / "tower"


def interval(values: list[float]) -> str:
    """Returns mean and Student's 95 % interval in words."""
    half = STUDENT[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):6.1%}  {np.mean(values) - half:6.1%} to {np.mean(values) + half:6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--pictures", type=int, default=960, help="to train on")
    parser.add_argument("--probe", type=int, default=40, help="pictures of each colour to probe with")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="0 is always among them")
    args = parser.parse_args()
    args.ratios = sorted({0.0, *args.ratios})
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    vgift_plugin.attach()
    logging.getLogger("vgift_plugin").setLevel(logging.WARNING)
    found: dict[object, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        make_data(folder, args.pictures, args.probe)
        pictures = split(str(folder / "probe"), args.probe)
        for seed in range(args.seeds):
            sizes = {"image_px": SIDE_PX, "patch_px": PATCH_PX, "hidden": 64, "tower_hidden": 64, "tower_layers": 3}
            parts = build(folder / f"parts-{seed}", seed=seed, **sizes)
            towers = {"untrained": parts[1]}
            towers |= {ratio: train_tower(folder, parts, ratio, seed, args) for ratio in args.ratios}
            for name, tower in towers.items():
                rows = examine(str(name), *features(Tower(str(tower), -2, 64), pictures, str(name)), pictures)
                rows = {row.condition: row for row in rows}
                clean, corrupted = rows[CLEAN], rows[MEAN]
                one = (clean.linear, corrupted.linear, clean.knn, corrupted.knn)
                found.setdefault(name, []).append(one)
    sizes = f"{args.seeds} seeds, {args.pictures} pictures × {args.epochs:g} epochs"
    halves = f"{len(pictures.train)} pictures to learn from, {len(pictures.test)} to test"
    print(f"\n{sizes}; probe: {halves}, chance {pictures.chance:.1%}")
    columns = ("linear, clean", "linear, corrupted", "kNN, clean", "kNN, corrupted")
    print(f"{'drop':10}" + "".join(f"  {column:26}" for column in columns))
    for name, values in found.items():
        print(f"{name!s:10}" + "".join(f"  {interval(list(column)):26}" for column in zip(*values, strict=True)))
    print("\ndifference from drop 0, seed by seed")
    for name, values in found.items():
        if name not in ("untrained", 0.0):
            pairs = np.array(values) - np.array(found[0.0])
            print(f"{name!s:10}" + "".join(f"  {interval(list(column)):26}" for column in pairs.T))


if __name__ == "__main__":
    main()
