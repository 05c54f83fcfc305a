"""Builds a tiny LLaVA with random weights: a sentencepiece tokenizer, a Llama and a CLIP vision tower, in seconds.

    python scripts/demo/tiny_llava.py FOLDER     # makes FOLDER/llm and FOLDER/clip-tower

LLaVA's own training script takes both as `--model_name_or_path` and `--vision_tower`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

from vgift_plugin import get_task
from vgift_plugin.tasks.colors import xkcd

TASKS = ("color", "correspondence", "rotation")


def corpus(tasks: Sequence[str] = TASKS) -> list[str]:
    """Returns text with the words of tasks, the colour names and some questions."""
    lines = [wording for name in tasks for wording in get_task(name).wordings]
    lines += xkcd()[0]
    lines += [
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ASSISTANT:",
        "What does this picture show? Answer briefly. A drawn scene. A photograph.",
        "Is this a photograph or a drawing? How many houses are there? What is two plus three?",
        "### Human: ### Assistant: [INST] <<SYS>> <</SYS>> [/INST]",
    ]
    lines += [f"RGB({a}, {b}, {c}) A-{a % 9}, B-{b % 9}" for a, b, c in itertools.product(range(0, 256, 37), repeat=3)]
    return lines


def build_tokenizer(folder: Path, vocabulary: int = 1500, tasks: Sequence[str] = TASKS) -> LlamaTokenizer:
    """Returns a tokenizer trained with Llama's settings (identity normalisation, split digits, byte fallback)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        Path(work, "corpus.txt").write_text("\n".join(corpus(tasks)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(Path(work, "corpus.txt")),
            model_prefix=str(Path(work, "tokenizer")),
            vocab_size=vocabulary,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
        tokenizer = LlamaTokenizer(str(Path(work, "tokenizer.model")), legacy=True)
        tokenizer.save_pretrained(folder)
    return tokenizer


def build(
    folder: str | Path,
    image_px: int = 56,
    patch_px: int = 14,
    hidden: int = 64,
    layers: int = 2,
    tower_hidden: int = 256,
    tower_layers: int = 1,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
) -> tuple[Path, Path]:
    """Writes both parts; returns (folder of the language model, folder of the vision tower)."""
    llm, tower = Path(folder, "llm"), Path(folder, "clip-tower")
    tokenizer = build_tokenizer(llm, tasks=tasks)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=2048,
        )
        LlamaForCausalLM(config).save_pretrained(llm)
        vision = CLIPVisionConfig(
            hidden_size=tower_hidden,
            intermediate_size=tower_hidden,
            num_hidden_layers=tower_layers,  # LLaVA reads layer -2: with one layer, the patches before any attention
            num_attention_heads=4,
            image_size=image_px,
            patch_size=patch_px,
        )
        CLIPVisionModel(vision).save_pretrained(tower)
    size = {"height": image_px, "width": image_px}
    CLIPImageProcessor(size={"shortest_edge": image_px}, crop_size=size).save_pretrained(tower)
    return llm, tower


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--image_px", type=int, default=56)
    parser.add_argument("--patch_px", type=int, default=14)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tower_hidden", type=int, default=256)
    parser.add_argument("--tower_layers", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="whose words the tokenizer knows")
    for part in build(**vars(parser.parse_args())):
        print(part)
