"""Compares the time of training steps with and without dropped visual tokens, in turn in the same process.

    python scripts/bench_token_drop.py            # a minute on one core

It uses upstream's own model with LLaVA-1.5's lengths (336 px, 576 visual tokens, 64 text tokens) and a small language
model with random weights, to run on a CPU. The tower always processes the whole picture, so a smaller tower relative to
the language model means larger savings. Its time is also measured separately.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "demo"))
from llava.model import LlavaLlamaForCausalLM
from tiny_llava import build

from vgift_plugin.hosts.llava import LLaVA
from vgift_plugin.hosts.model_hooks import ModelHooks
from vgift_plugin.methods.vitp.dropping import DropTokens
from vgift_plugin.methods.vitp.tower import TuneTower

TEXT, IMAGE = 64, -200


def make_model(folder: str, hidden: int, layers: int) -> LlavaLlamaForCausalLM:
    """Returns the model in training mode, with its tower unfrozen."""
    llm, tower = build(folder, image_px=336, hidden=hidden, layers=layers, tower_hidden=64, tower_layers=3)
    model = LlavaLlamaForCausalLM.from_pretrained(llm, attn_implementation="sdpa")
    settings = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"}
    settings |= {"vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu", "pretrain_mm_mlp_adapter": None}
    model.get_model().initialize_vision_modules(Namespace(**settings))
    model.config.tokenizer_padding_side, model.config.use_cache = "right", False
    TuneTower(LLaVA()).on_init_end(Namespace(deepspeed=None, fp16=False), None, None, model=model)
    return model.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drop", type=float, nargs="+", default=[0.75])
    parser.add_argument("--steps", type=int, default=8, help="of each kind")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(folder, args.hidden, args.layers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(5, 1000, (args.batch, TEXT + 1))
    labels, ids[:, 1] = ids.clone(), IMAGE
    labels[:, : TEXT // 2] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "labels": labels}
    batch["images"] = torch.randn(args.batch, 3, 336, 336)

    def step(drop: float) -> float:
        hooks = ModelHooks(LLaVA(), [DropTokens(LLaVA(), drop)] if drop else [])
        hooks.attach(model)
        began = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        took = time.perf_counter() - began
        hooks.detach()
        return took

    def see() -> float:
        began = time.perf_counter()
        model.encode_images(batch["images"]).sum().backward()
        optimizer.zero_grad()
        return time.perf_counter() - began

    drops = [0.0, *args.drop]
    times: dict[object, list[float]] = {key: [] for key in [*drops, "tower"]}
    for turn in range(args.steps + 1):  # the first turn is a warm-up
        for key in times:
            took = see() if key == "tower" else step(key)
            if turn:
                times[key].append(took)
    whole, tower = statistics.median(times[0.0]), statistics.median(times["tower"])
    print(
        f"576 visual tokens of {576 + TEXT}, batch {args.batch}, language model {args.layers} × {args.hidden}, one core"
    )
    print(f"a step without dropping: {whole:.2f} s, of which tower and projector {tower:.2f} s")
    for drop in args.drop:
        took = statistics.median(times[drop])
        print(
            f"--visual_token_drop {drop:g}: {took:.2f} s, ratio {took / whole:.2f}; "
            f"without tower and projector {(took - tower) / (whole - tower):.2f}"
        )


if __name__ == "__main__":
    main()
