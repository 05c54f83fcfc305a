"""LLaVA's own training with a seeded start: it makes its projector before its trainer sets --seed."""

import functools
import importlib.metadata
import os

import torch
from llava.train.train import train

if __name__ == "__main__":
    importlib.metadata.version = functools.cache(importlib.metadata.version)  # transformers asks it for every picture
    torch.manual_seed(int(os.environ.get("TINY_SEED", os.environ["STUDY_SEED"])))
    train()
