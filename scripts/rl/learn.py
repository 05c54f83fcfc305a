"""One seed of the demo: teaches a tiny model the form of the answers, then rotation by GRPO, and measures both.

    python scripts/rl/learn.py SCENES OUTPUT --seed 0 --part heldout     # writes OUTPUT/seed-0.json

The form is taught with random answers, so the model knows what an answer looks like and not which one is right.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import tiny_model  # first: it stands in for what torchvision lacks without a GPU
import torch
from measure import ANSWERS, measured, messages
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import GRPOConfig, GRPOTrainer

from vgift_plugin import generator
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.streams import streams
from vgift_plugin.rewards.trl import dataset, reward_funcs

TASK = "rotation"
KINDS = ("score", "exact", "form")  # the first is rewarded, all are logged
# TRL 0.23 would read prompts back from their tokens to cut them; 1.x has no such setting.
UNCUT = {"max_prompt_length": None} if "max_prompt_length" in GRPOConfig.__dataclass_fields__ else {}


def flags(folder: Path, seed: int) -> VgiftFlags:
    """Returns the flags of samples of 56 pixels with one wording."""
    config = folder / "knobs.json"
    config.write_text(json.dumps({TASK: {"size_px": tiny_model.SIDE_PX, "wording": 1}}))
    return VgiftFlags(ssl_tasks=TASK, ssl_seed=seed, ssl_config=str(config))


def teach_form(model, processor, stream, seed: int, steps: int, rate: float = 3e-3, batch: int = 32) -> float:
    """Trains a model to reply with a random answer; returns the last loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    loss = torch.tensor(math.nan)
    for step in range(steps):
        rng = generator(seed, "form", step)
        samples = [stream(1_000, step * batch + k) for k in range(batch)]  # an epoch that GRPO does not reach
        told = [f"{ANSWERS[k]}<|im_end|>" for k in rng.integers(len(ANSWERS), size=batch)]
        asked = processor.apply_chat_template([messages(one) for one in samples], add_generation_prompt=True)
        texts = [question + answer for question, answer in zip(asked, told, strict=True)]
        inputs = processor(text=texts, images=[one.image for one in samples], padding=True, return_tensors="pt")
        lengths = torch.tensor([len(processor.tokenizer(answer).input_ids) for answer in told])
        places = torch.arange(inputs.input_ids.shape[1])[None]
        labels = inputs.input_ids.masked_fill(places < inputs.input_ids.shape[1] - lengths[:, None], -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def learn(scenes: Path, output: Path, seed: int, part: str, n: int, steps: int, form_steps: int, rate: float) -> dict:
    """Runs one seed and returns what was measured before and after GRPO."""
    output.mkdir(parents=True, exist_ok=True)
    folder = tiny_model.build(output / f"model-{seed}", seed)
    set_seed(seed)
    given = flags(folder, seed)
    trained = streams(given, given.tasks(), None, str(scenes / "train"), None)[0]
    held_out = streams(given, given.tasks(), None, str(scenes / part), None)[0]
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    began = time.monotonic()
    loss = teach_form(model, processor, trained, seed, form_steps)
    model.save_pretrained(folder)
    told = {"seed": seed, "part": part, "form_seconds": time.monotonic() - began, "form_loss": loss}
    suppressed = [processor.image_token_id, processor.video_token_id]
    told["before"] = measured(model, processor, held_out, n, suppressed)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    began = time.monotonic()
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward_funcs(KINDS),
        processing_class=processor,
        train_dataset=dataset(given, str(scenes / "train"), n=16 * steps),
        args=GRPOConfig(
            output_dir=str(output / f"grpo-{seed}"),
            max_steps=steps,
            per_device_train_batch_size=128,  # 16 prompts with 8 replies each
            num_generations=8,
            max_completion_length=6,
            **UNCUT,
            temperature=1.0,
            beta=0.02,
            learning_rate=rate,
            lr_scheduler_type="constant",
            reward_weights=[1.0, 0.0, 0.0],
            generation_kwargs={"suppress_tokens": suppressed},  # a sampled image token has no image
            remove_unused_columns=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=20,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
        ),
    )
    trainer.train()
    told["grpo_seconds"] = time.monotonic() - began
    told["log"] = [
        {"step": row["step"], **{kind: row[f"rewards/vgift_{kind}/mean"] for kind in KINDS}, "kl": row.get("kl")}
        for row in trainer.state.log_history
        if "reward" in row
    ]
    told["after"] = measured(trainer.model, processor, held_out, n, suppressed)
    told["cpu_seconds"] = time.process_time()
    (output / f"seed-{seed}.json").write_text(json.dumps(told, indent=1))
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="heldout", help="the scenes that are measured on")
    parser.add_argument("--n", type=int, default=500, help="items measured")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--form_steps", type=int, default=70)
    parser.add_argument("--rate", type=float, default=5e-4)
    learn(**vars(parser.parse_args()))
