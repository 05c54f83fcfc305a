"""The vocabulary of Qwen2, from the file `qwen.tiktoken` that the vendor's package `dashscope` ships, as a tokenizer.

    python tests/qwen/vocabulary.py FOLDER     # vocab.json, merges.txt, tokenizer.json, ... in a few seconds

The file holds every token's bytes and rank. What a Hugging Face tokenizer needs beside it, the pair that each token was
merged from, follows from the ranks: it is what byte-pair encoding with the ranks below its own leaves of the token.
"""

import base64
import importlib.util
import itertools
import json
import sys
from pathlib import Path

from transformers import AddedToken, Qwen2TokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

FIRST_SPECIAL = 151643
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
WORDS = (  # tokens of their own that are text, which `skip_special_tokens` keeps
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)


def ranks(size=None):
    """Returns {bytes: rank}, of the first `size` tokens."""
    package = importlib.util.find_spec("dashscope")  # found, not imported: its dependencies are not installed
    lines = Path(package.origin).with_name("resources").joinpath("qwen.tiktoken").read_bytes().splitlines()[:size]
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def parts(token, known):
    """Returns the two pieces that merge into the token, last of all."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        pairs = [known.get(a + b, len(known)) for a, b in itertools.pairwise(pieces)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def write(folder, size=None):
    """Writes vocab.json and merges.txt, of the first `size` tokens; returns both paths."""
    known, letter = ranks(size), bytes_to_unicode()
    name = {token: "".join(map(letter.__getitem__, token)) for token in known}
    vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
    vocabulary.write_text(json.dumps({name[token]: rank for token, rank in known.items()}, ensure_ascii=False))
    pairs = [parts(token, known) for token in sorted(known, key=known.get) if len(token) > 1]
    lines = [" ".join(map(name.__getitem__, pair)) for pair in pairs]
    merges.write_text("\n".join(["#version: 0.2", *lines, ""]))
    return str(vocabulary), str(merges)


def build(folder, chat_template=None, longest=131072):
    """Saves the tokenizer into a folder; returns it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    added = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    added += [AddedToken(token, special=False, normalized=False) for token in WORDS]
    tokenizer = Qwen2TokenizerFast(
        *write(folder),
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        added_tokens_decoder=dict(enumerate(added, FIRST_SPECIAL)),
        model_max_length=longest,
        chat_template=chat_template,
    )
    assert tokenizer.convert_tokens_to_ids([*SPECIAL, *WORDS]) == list(range(FIRST_SPECIAL, len(tokenizer)))
    tokenizer.save_pretrained(folder)
    return tokenizer


if __name__ == "__main__":
    build(sys.argv[1])
