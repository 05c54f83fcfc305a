"""Measures a checkpoint on held-out images: each task's accuracy sighted and blind, beside chance.

    python scripts/demo/evaluate.py --model_path demo_out/checkpoint --llm demo_out/llm --image_folder IMAGES \\
        --ssl_tasks rotation,color -n 1000 -o results.json

Blind means the same questions with the picture replaced by one grey square. Answers are generated greedily through the
host's own preprocessing and `generate`, and scored exactly by the task.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import llava.train.train as host
import torch
from llava import conversation
from llava.model import LlavaLlamaForCausalLM
from PIL import Image
from tqdm import tqdm
from transformers import AutoTokenizer, logging

from vgift_plugin.config import Flags
from vgift_plugin.host.self_test import IGNORE_INDEX
from vgift_plugin.host.view import OneRecordView
from vgift_plugin.mixing import Stream
from vgift_plugin.sources import from_folder
from vgift_plugin.task import Sample, Task

GREY = Image.new("RGB", (224, 224), (128, 128, 128))
BATCH = 100
SEED = 1  # not the training run's


class Model:
    """A checkpoint with the host's tokenizer, image processor and chat template."""

    def __init__(self, model_path: str, llm: str):
        logging.set_verbosity_error()  # the checkpoint holds the tower's weights too; they are loaded just below
        self.model = LlavaLlamaForCausalLM.from_pretrained(model_path).eval()
        tower = self.model.get_vision_tower()
        tower.load_model()
        tower.to(dtype=torch.float16)  # as in training
        self.model.config.tokenizer_padding_side = "left"
        self.tokenizer = AutoTokenizer.from_pretrained(llm, use_fast=False, model_max_length=2048)
        self.tokenizer.pad_token = self.tokenizer.unk_token
        conversation.default_conversation = conversation.conv_templates["v1"]
        base = host.LazySupervisedDataset.__new__(host.LazySupervisedDataset)
        base.tokenizer, base.list_data_dict = self.tokenizer, []
        base.data_args = SimpleNamespace(
            image_folder="",
            image_aspect_ratio="pad",
            is_multimodal=True,
            mm_use_im_start_end=False,
            image_processor=tower.image_processor,
        )
        self.view = OneRecordView(base)

    @torch.inference_mode()
    def answer(self, samples: list[Sample]) -> list[str]:
        """Returns the greedy reply to each sample's instruction."""
        items = [self.view(sample, "held-out") for sample in samples]
        prompts = [item["input_ids"][: int((item["labels"] != IGNORE_INDEX).nonzero()[0])] for item in items]
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = True
        out = self.model.generate(
            ids,
            attention_mask=mask,
            images=torch.stack([item["image"] for item in items]),
            do_sample=False,
            max_new_tokens=max(int((item["labels"] != IGNORE_INDEX).sum()) for item in items) + 2,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return self.tokenizer.batch_decode(out, skip_special_tokens=True)


def measure(model: Model, task: Task, images: str, n: int) -> dict:
    """Returns chance, exact-match accuracies and mean scores of one task on n samples, and the same per image kind."""
    stream = Stream(task, from_folder(images), SEED)
    scores: dict[str, list[float]] = {"sighted": [], "blind": []}
    kinds: list[str] = []
    for start in tqdm(range(0, n, BATCH), desc=task.name, leave=False):
        samples = [stream(0, j) for j in range(start, min(start + BATCH, n))]
        kinds += [Path(sample.sources[0]).name.split("_")[0] for sample in samples]
        for way, shown in (("sighted", samples), ("blind", [replace(sample, image=GREY) for sample in samples])):
            replies = model.answer(shown)
            scores[way] += [task.score(reply, s.params) for reply, s in zip(replies, samples, strict=True)]

    def accuracy(way: str, kind: str | None = None) -> float:
        chosen = [score == 1 for score, k in zip(scores[way], kinds, strict=True) if kind in (None, k)]
        return sum(chosen) / len(chosen)

    result = {"chance": task.chance, "sighted": accuracy("sighted"), "blind": accuracy("blind"), "n": n}
    result["mean_score"] = {way: sum(values) / n for way, values in scores.items()}
    result["sighted_by_kind"] = {kind: accuracy("sighted", kind) for kind in sorted(set(kinds))}
    return result


def table(results: dict) -> str:
    """Returns the results for the terminal."""
    lines = [f"{'task':<16}{'chance':>8}{'sighted':>9}{'blind':>8}{'n':>7}   by kind of picture, sighted"]
    for name, r in results.items():
        kinds = ", ".join(f"{kind} {value:.1%}" for kind, value in r["sighted_by_kind"].items())
        lines.append(f"{name:<16}{r['chance']:>8.1%}{r['sighted']:>9.1%}{r['blind']:>8.1%}{r['n']:>7,}   {kinds}")
        if r["mean_score"]["sighted"] != r["sighted"]:
            score = r["mean_score"]
            lines.append(f"{'  per point':<16}{'':>8}{score['sighted']:>9.1%}{score['blind']:>8.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--image_folder", required=True)
    parser.add_argument("--ssl_tasks", required=True)
    parser.add_argument("--ssl_config")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    model = Model(args.model_path, args.llm)
    asks = Flags(ssl_tasks=args.ssl_tasks, ssl_config=args.ssl_config).resolve()
    results = {ask.task.name: measure(model, ask.task, args.image_folder, args.n) for ask in asks}
    args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
