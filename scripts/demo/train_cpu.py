"""LLaVA's own training, as its train_mem.py starts it, without flash attention: this machine has no GPU."""

import torch.distributed
from llava.train.train import train

if __name__ == "__main__":
    train()
    if torch.distributed.is_initialized():  # gloo's threads may abort a process that ends with them running
        torch.distributed.destroy_process_group()
