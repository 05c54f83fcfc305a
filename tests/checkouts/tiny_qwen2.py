"""Builds a tiny Qwen2 with random weights and a byte-level tokenizer of its own, in seconds."""

import json

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

WORDS = r"'[a-z]{1,2}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def build(folder, lines, vocabulary=1000):
    """Saves model and tokenizer into the folder, made of these lines of text; returns the folder."""
    folder.mkdir(parents=True)
    bpe = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence(pieces), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([*lines, "system\nuser\nassistant\nYou are a helpful assistant."], trainer)
    assert bpe.token_to_id("Ċ") == 198  # the newline: LLaVA-NeXT has Qwen's number of it in its code
    model = json.loads(bpe.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    special["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Qwen2Tokenizer(*files, unk_token="<|endoftext|>", **special)
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):  # Qwen's own has no unknown token
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "unk_token": None}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer) + 8,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
