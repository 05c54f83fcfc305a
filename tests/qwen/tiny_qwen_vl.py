"""Builds a tiny Qwen2.5-VL or Qwen3-VL with random weights and the real vocabulary, in seconds.

    python tests/qwen/tiny_qwen_vl.py FOLDER     # makes FOLDER/Qwen2.5-VL-tiny and FOLDER/Qwen3-VL-tiny

Words in the path say to a host which model it is: "qwen2.5" or "qwen3" to the vendor's, "Qwen2.5" or "Qwen3" to
Qwen-VL-Series-Finetune. In the name of a Qwen3 folder itself the vendor's takes the letter a for a mixture of experts.
"""

import json
import sys
from pathlib import Path

import on_a_cpu
import torch

on_a_cpu.stand_in()
import vocabulary  # noqa: E402
from transformers import (  # noqa: E402
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

TURN = """\
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
"""
TURNS = "{% for message in messages %}" + TURN + "{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"

TEXT = {
    "vocab_size": 151936,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}


def qwen2_5(folder):
    """A Qwen2.5-VL of two layers; its chat template begins with a system prompt."""
    config = Qwen2_5_VLConfig(
        text_config=TEXT
        | {"num_hidden_layers": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "dtype": "float32"},
        vision_config=VISION | {"depth": 2, "fullatt_block_indexes": [1], "window_size": 112, "patch_size": 14},
        tie_word_embeddings=True,
    )
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384}
    model, tokenizer = save(Qwen2_5_VLForConditionalGeneration, config, folder, SYSTEM + TURNS + ANSWER, 131072)
    pictures = Qwen2VLImageProcessorFast(patch_size=14, **limits)
    videos = Qwen2VLVideoProcessor(patch_size=14, **limits)
    Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=tokenizer.chat_template).save_pretrained(folder)
    return model


def qwen3(folder):
    """A Qwen3-VL of three layers, each of which gets features of its own from the tower."""
    config = Qwen3VLConfig(
        text_config=TEXT
        | {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 3, 3]},
        },
        vision_config=VISION | {"depth": 3, "deepstack_visual_indexes": [0, 1, 2], "patch_size": 16},
        tie_word_embeddings=True,
    )
    model, tokenizer = save(Qwen3VLForConditionalGeneration, config, folder, TURNS + ANSWER, 262144)
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "patch_size": 16}
    pictures = Qwen2VLImageProcessorFast(size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}, **half)
    videos = Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, **half)
    Qwen3VLProcessor(pictures, tokenizer, videos, chat_template=tokenizer.chat_template).save_pretrained(folder)
    return model


def save(model, config, folder, chat_template, longest):
    tokenizer = vocabulary.build(folder, chat_template, longest)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model(config)
    model.save_pretrained(folder)
    written = Path(folder, "config.json")  # 4.57.6 warns of every local tokenizer that a later version wrote
    written.write_text(json.dumps({**json.loads(written.read_text()), "transformers_version": "4.57.0"}, indent=2))
    return model, tokenizer


def build(folder):
    """Writes both; returns {"qwen2.5": folder, "qwen3": folder}."""
    made = {}
    for name, make in {"qwen2.5": qwen2_5, "qwen3": qwen3}.items():
        made[name] = Path(folder, f"{name.capitalize()}-VL-tiny")
        make(made[name])
    return made


if __name__ == "__main__":
    for part in build(sys.argv[1]).values():
        print(part)
