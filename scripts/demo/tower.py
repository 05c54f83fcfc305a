"""Teaches a vision tower of random weights to tell which regions of a drawn scene lie in each of its patches.

    python scripts/demo/tower.py FOLDER     # of the tower; half a minute

A stand-in for CLIP, which LLaVA's fine-tuning begins with: it has seen what things look like, and not the questions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scenes import REGIONS, SIDE_PX, drawn_facts, painted, shapes
from transformers import CLIPImageProcessor, CLIPVisionModel

from vgift_plugin.data.seeding import generator

SCENES, STEPS, BATCH, LEARNING_RATE = 1500, 400, 32, 2e-3
PRESENT = 0.06  # a region counts from this share of a patch on


def scene(seed: int, k: int, patch_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a scene, and which regions lie in each of its patches: booleans, (patches, regions)."""
    rng = generator(seed, "tower", k)
    image, regions = painted(shapes(rng, drawn_facts(rng, 0.0)), rng)
    side, cell = SIDE_PX // patch_px, 3 * patch_px
    cells = regions.reshape(side, cell, side, cell).transpose(0, 2, 1, 3).reshape(side * side, cell * cell)
    return np.asarray(image), np.stack([(cells == k).mean(1) >= PRESENT for k in range(len(REGIONS))], axis=1)


def teach(folder: Path, seed: int) -> None:
    """Trains the tower in a folder, and saves it there."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tower, processor = CLIPVisionModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    scenes, present = zip(*(scene(seed, k, tower.config.patch_size) for k in range(SCENES)), strict=True)
    pixels = processor(list(scenes), return_tensors="pt")["pixel_values"]
    taught = torch.from_numpy(np.stack(present)).float()
    head = torch.nn.Linear(tower.config.hidden_size, len(REGIONS))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(SCENES, (BATCH,))
        hidden = tower(pixels[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]  # what LLaVA takes
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(hidden), taught[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"tower: loss on regions {loss.item():.4f}")
    tower.save_pretrained(folder)


if __name__ == "__main__":
    teach(Path(sys.argv[1]), seed=0)
