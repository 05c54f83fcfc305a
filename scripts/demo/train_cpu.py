"""LLaVA's own training, as its train_mem.py starts it, without flash attention: this machine has no GPU."""

from llava.train.train import train

if __name__ == "__main__":
    train()
