"""Starts LLaVA's own training like its train_mem.py, but without flash attention, for machines without a GPU."""

import torch.distributed
from llava.train.train import train

if __name__ == "__main__":
    train()
    if torch.distributed.is_initialized():  # gloo's threads may abort the process if they still run at its end
        torch.distributed.destroy_process_group()
