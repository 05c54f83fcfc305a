"""Upstream's training, after which each rank writes a hash of its trained weights into the file that WEIGHTS names, and
its rank is added to the name. Nothing of the host is replaced but `save_state`, which calls the original."""

import hashlib
import os
from pathlib import Path

import torch.distributed
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import train

save_state = LLaVATrainer.save_state


def recorded(self):
    trained = [weight.detach().float().numpy().tobytes() for weight in self.model.parameters() if weight.requires_grad]
    path = Path(f"{os.environ['WEIGHTS']}.{os.environ.get('RANK', '0')}")
    path.write_text(hashlib.sha256(b"".join(trained)).hexdigest())
    save_state(self)


if __name__ == "__main__":
    LLaVATrainer.save_state = recorded
    train()
    if torch.distributed.is_initialized():  # as scripts/demo/train_cpu.py does
        torch.distributed.destroy_process_group()
