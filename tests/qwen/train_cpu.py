"""Runs the training script of Qwen-VL's fine-tuning code, as it is, where there is no GPU.

    VGIFT_QWEN=.../Qwen3-VL/qwen-vl-finetune VGIFT_QWEN_DATA=data.json \
        torchrun --nproc_per_node 1 tests/qwen/train_cpu.py --model_name_or_path ... --dataset_use drawn ...

data.json names the data sets, {"drawn": {"annotation_path": ..., "data_path": ...}}. The checkout's README has one
write that into qwenvl/data/__init__.py, here it is entered in the imported module. `torchrun` is needed: the script
asks for the process's rank.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import on_a_cpu
import recorder

CPU = ["--use_cpu", "True", "--report_to", "none"]

if __name__ == "__main__":
    on_a_cpu.stand_in()
    recorder.record()
    host = Path(os.environ["VGIFT_QWEN"]).expanduser().absolute()
    script = host / "qwenvl" / "train" / "train_qwen.py"
    sys.path.append(str(host))
    data = importlib.import_module("qwenvl.data")
    data.data_dict.update(json.loads(Path(os.environ["VGIFT_QWEN_DATA"]).read_text()))
    sys.argv = [str(script), *CPU, *sys.argv[1:]]
    sys.path[0] = str(script.parent)  # as if Python had been given the script
    runpy.run_path(str(script), run_name="__main__")
