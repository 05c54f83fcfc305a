"""Merges what LoRA trained into its base with LLaVA's own loader, and saves a checkpoint like any other.

python scripts/demo/merge_lora.py ADAPTER BASE OUTPUT
"""

import sys

from llava.model.builder import load_pretrained_model

if __name__ == "__main__":
    adapter, base, output = sys.argv[1:]
    # LLaVA decides by the words in this name, not by the files, that this is an adapter.
    tokenizer, model, _, _ = load_pretrained_model(adapter, base, "llava-lora", device_map="cpu", device="cpu")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
