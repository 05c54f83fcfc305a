"""Merges a LoRA adapter into its base with LLaVA's own loader, and saves an ordinary checkpoint.

python scripts/demo/merge_lora.py ADAPTER BASE OUTPUT
"""

import sys

from llava.model.builder import load_pretrained_model

if __name__ == "__main__":
    adapter, base, output = sys.argv[1:]
    # LLaVA recognises an adapter by this name, not by its files.
    tokenizer, model, _, _ = load_pretrained_model(adapter, base, "llava-lora", device_map="cpu", device="cpu")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
