"""Builds a tiny Qwen2.5-VL with random weights and the first 1,024 tokens of its vocabulary, in seconds.

    python scripts/rl/tiny_model.py FOLDER [SEED]

It sees 56 × 56 pixels, as four visual tokens. The whole vocabulary would make a step eight times as slow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "qwen"))
import on_a_cpu

on_a_cpu.stand_in()
import vocabulary  # noqa: E402
from transformers import (  # noqa: E402
    AddedToken,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorFast,
    Qwen2VLVideoProcessor,
)

RANKS = 1024
SIDE_PX = 56
WIDTH = 64
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def build_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Returns Qwen2's tokenizer with its first RANKS tokens and the special ones, saved into a folder."""
    special = [AddedToken(token, special=True, normalized=False) for token in vocabulary.SPECIAL]
    tokenizer = Qwen2TokenizerFast(
        *vocabulary.write(folder, RANKS),
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(vocabulary.SPECIAL[1:]),
        added_tokens_decoder=dict(enumerate(special, RANKS)),
        chat_template=TEMPLATE,
        padding_side="left",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(folder: str | Path, seed: int = 0) -> Path:
    """Writes model and processor into a folder; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    edges = {name: tokenizer.convert_tokens_to_ids(f"<|vision_{name}|>") for name in ("start", "end")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "dtype": "float32",
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 4,
            "out_hidden_size": WIDTH,
            "depth": 2,
            "fullatt_block_indexes": [0, 1],
            "window_size": 112,
            "patch_size": 14,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=edges["start"],
        vision_end_token_id=edges["end"],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    sizes = {"min_pixels": SIDE_PX**2, "max_pixels": SIDE_PX**2, "patch_size": 14}
    images, videos = Qwen2VLImageProcessorFast(**sizes), Qwen2VLVideoProcessor(**sizes)
    Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
