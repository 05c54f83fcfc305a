"""Teaches a vision tower of random weights to tell which regions of a drawn scene lie in each of its patches.

    python scripts/demo/tower.py FOLDER     # of the tower; half a minute

A stand-in for CLIP, which LLaVA's fine-tuning begins with: it has seen what things look like, and not the questions.
With `marks` it also learns to read the marks of tasks, on cut-outs of scenes, turned or mirrored, half of them in grey.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scenes import REGIONS, drawn_facts, painted, shapes
from transformers import CLIPImageProcessor, CLIPVisionModel

from vgift_plugin.data.seeding import generator
from vgift_plugin.tasks.drawing import Marker

SCENES, STEPS, BATCH, LEARNING_RATE = 1500, 400, 32, 2e-3
MARKED_SCENES, MARKED_STEPS = 6000, 12000
PRESENT, READABLE = 0.06, 0.35  # a region and a label count from this share of a patch on
LABELS = "ABQ01"
CLASSES = (*REGIONS, "dot", *LABELS)


def scene(seed: int, k: int, side_px: int, patch_px: int, marks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns a scene, and which classes lie in each of its patches: booleans, (patches, classes)."""
    rng = generator(seed, "tower", k)
    image, classes = painted(shapes(rng, drawn_facts(rng, 0.0)), rng, side_px)
    if marks:
        image, classes = marked(image, classes, rng)
    side, cell = side_px // patch_px, 3 * patch_px
    cells = classes.reshape(side, cell, side, cell).transpose(0, 2, 1, 3).reshape(side * side, cell * cell)
    least = [READABLE if name in LABELS else PRESENT for name in (CLASSES if marks else REGIONS)]
    return np.asarray(image), np.stack([(cells == k).mean(1) >= share for k, share in enumerate(least)], axis=1)


def marked(image: Image.Image, classes: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Returns a cut-out of a scene, turned or mirrored, perhaps in grey, with up to four marks of tasks on it."""
    whole, share = image.width, rng.uniform(0.4, 1)
    x, y = rng.uniform(0, 1 - share, 2)
    turn, mirror = int(rng.integers(4)), int(rng.choice([1, -1]))
    cut = []
    for one in (image, Image.fromarray(classes)):
        box = (x * one.width, y * one.width, (x + share) * one.width, (y + share) * one.width)
        cut.append(np.rot90(np.asarray(one.resize(one.size, Image.Resampling.NEAREST, box=box)), turn)[:, ::mirror])
    image, classes = Image.fromarray(np.ascontiguousarray(cut[0])), cut[1].copy()
    if rng.random() < 0.5:
        image = image.convert("L").convert("RGB")
    marker = Marker(radius_px=int(rng.integers(4, 7)), font_px=int(rng.integers(12, 19)))
    places: list[tuple[int, int]] = []
    for place in rng.integers(4, whole - 4, (16, 2)).tolist():
        if len(places) < 4 and all(marker.clear_of(tuple(place), other, image.size) for other in places):
            places.append(tuple(place))
    for place, label in zip(places, rng.permutation(list(LABELS)), strict=False):
        marker.paint(image, place, str(label))
        boxes = {"dot": marker.dot_box(place), str(label): marker.label_box(place, image.size)}
        for name, (left, top, right, bottom) in boxes.items():
            left, top = max(left, 0), max(top, 0)
            classes[3 * top : 3 * bottom + 3, 3 * left : 3 * right + 3] = CLASSES.index(name)
    return image, classes


def teach(folder: Path, seed: int, marks: bool = False) -> None:
    """Trains the tower in a folder, and saves it there."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tower, processor = CLIPVisionModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    sizes = tower.config.image_size, tower.config.patch_size
    count, steps = (MARKED_SCENES, MARKED_STEPS) if marks else (SCENES, STEPS)
    scenes, present = zip(*(scene(seed, k, *sizes, marks) for k in range(count)), strict=True)
    pixels = processor(list(scenes), return_tensors="pt")["pixel_values"]
    taught = torch.from_numpy(np.stack(present)).float()
    head = torch.nn.Linear(tower.config.hidden_size, taught.shape[-1])
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(count, (BATCH,))
        hidden = tower(pixels[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]  # what LLaVA takes
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(hidden), taught[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"tower: loss on regions{' and marks' * marks} {loss.item():.4f}")
    tower.save_pretrained(folder)


if __name__ == "__main__":
    teach(Path(sys.argv[1]), seed=0)
