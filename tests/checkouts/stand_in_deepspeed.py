"""Stands in for `deepspeed` where there is no GPU: runs LLaVA's training with a script's arguments, for one step.

What STAND_IN_APPEND says and what a CPU forces is appended, for argparse takes the last of two; flash attention is left
away.
"""

import os
import runpy
import shlex
import sys

from llava.train import train

CPU = "--use_cpu True --deepspeed '' --tf32 False --max_steps 1 --report_to none"


def without_flash_attention(attn_implementation=None):
    original()


if __name__ == "__main__":
    original, train.train = train.train, without_flash_attention
    start = next(k for k, part in enumerate(sys.argv) if k and part.endswith(".py"))  # before it, the launcher's own
    sys.argv = [*sys.argv[start:], *shlex.split(f"{os.environ.get('STAND_IN_APPEND', '')} {CPU}")]
    runpy.run_path(sys.argv[0], run_name="__main__")
