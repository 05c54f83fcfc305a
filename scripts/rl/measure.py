"""What a model earns on held-out items: sampled and greedy, with its picture and blind (a grey picture)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from vgift_plugin.report.intervals import mean_interval
from vgift_plugin.rewards import reward
from vgift_plugin.tasks.task import Sample

BATCH = 50
ANSWERS = ("0", "90", "180", "270")
WAYS = {"sampled": True, "greedy": False}


def messages(sample: Sample) -> list[dict]:
    """Returns a sample as the chat messages that TRL makes of a plain prompt with an image."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.instruction}]}]


@torch.no_grad()
def replies(model, processor, samples: list[Sample], sample: bool, suppressed: list[int]) -> list[str]:
    """Returns a reply to each sample, greedy or sampled at temperature 1 from all tokens."""
    model.eval()
    told: list[str] = []
    for k in range(0, len(samples), BATCH):
        some = samples[k : k + BATCH]
        texts = processor.apply_chat_template([messages(one) for one in some], add_generation_prompt=True)
        inputs = processor(text=texts, images=[one.image for one in some], padding=True, return_tensors="pt")
        limits = {"max_new_tokens": 6, "suppress_tokens": suppressed}
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
        made = model.generate(**inputs, **limits, **how)[:, inputs.input_ids.shape[1] :]
        told += processor.tokenizer.batch_decode(made, skip_special_tokens=True)
    return told


def measured(model, processor, stream, n: int, suppressed: list[int]) -> dict:
    """Returns {"sampled", "greedy", "sampled_blind", "greedy_blind": {"score": mean, "low", "high", ...}}.

    The 95 % intervals are over items, of which each shows a scene of its own if there are n scenes. `form` is the share
    of replies that are one of the four angles.
    """
    samples = [stream(0, j) for j in range(n)]
    sources = [one.sources[0] for one in samples]
    found = {}
    for blind in (False, True):
        shown = [replace(one, image=Image.new("RGB", one.image.size, (128,) * 3)) if blind else one for one in samples]
        for way, sample in WAYS.items():
            told = replies(model, processor, shown, sample, suppressed)
            earned = [reward(stream.task, text, one.params) for text, one in zip(told, samples, strict=True)]
            scores = np.array([one.score for one in earned])
            low, high = mean_interval(scores, sources)
            found[f"{way}_blind" if blind else way] = {
                "score": float(scores.mean()),
                "low": low,
                "high": high,
                "exact": float(np.mean([one.exact for one in earned])),
                "form": float(np.mean([text in ANSWERS for text in told])),
                "scores": scores.tolist(),
                "replies": Counter(told).most_common(6),
            }
    return found
