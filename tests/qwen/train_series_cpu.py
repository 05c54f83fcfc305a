"""Runs the training script of Qwen-VL-Series-Finetune, as it is, where there is no GPU.

VGIFT_QWEN_SERIES=.../Qwen-VL-Series-Finetune python tests/qwen/train_series_cpu.py --model_id ... --data_path ...
"""

import os
import runpy
import sys
from pathlib import Path

import on_a_cpu
import recorder

CPU = ["--use_cpu", "True", "--report_to", "none", "--disable_flash_attn2", "True", "--use_liger", "False"]

if __name__ == "__main__":
    on_a_cpu.stand_in()
    recorder.record()
    host = Path(os.environ["VGIFT_QWEN_SERIES"]).expanduser().absolute()
    script = host / "src" / "train" / "train_sft.py"
    sys.argv = [str(script), *CPU, *sys.argv[1:]]
    sys.path[0] = str(script.parent)  # as if Python had been given the script
    sys.path[1:1] = [str(host / "src"), str(host)]  # what its scripts put on PYTHONPATH, and its root
    runpy.run_path(str(script), run_name="__main__")
