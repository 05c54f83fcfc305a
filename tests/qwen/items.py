"""What Qwen-VL's own data module makes of a run's records, with the plugin attached and without a model.

    python tests/qwen/items.py MODEL RUNS.json     # {name: {flag: value}}; prints {name: lines of `recorder`, or error}

Below torchrun every rank makes all runs; flags of rank k may stand in {"rank k": {flag: value}}.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import on_a_cpu
import recorder


def main(model, runs):
    """Prints a JSON object with what came of each run."""
    import torch.distributed as dist
    import transformers

    from vgift_plugin import attach
    from vgift_plugin.errors import VgiftError

    rank = int(os.environ.get("RANK", "0"))
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    host = importlib.import_module("qwenvl.train.train_qwen")
    attach(host)
    known = importlib.import_module("qwenvl.data").data_dict
    known.update(json.loads(Path(os.environ["VGIFT_QWEN_DATA"]).read_text()))
    result = {}
    for name, flags in runs.items():
        own = flags.pop(f"rank {rank}", {})
        flags = {key: value for key, value in {**flags, **own}.items() if not key.startswith("rank ")}
        try:
            result[name] = made(host, transformers, model, flags)
        except VgiftError as err:
            result[name] = f"{type(err).__name__}: {err}"
    if rank == 0:
        print("\n" + json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def made(host, transformers, model, flags):
    """Returns the lines of all items, collated by fours as the run would."""
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    (data_args,) = transformers.HfArgumentParser((host.DataArguments,)).parse_args_into_dataclasses(arguments)
    data_args.model_type = "qwen3vl" if "Qwen3" in model else "qwen2.5vl"
    processor = transformers.AutoProcessor.from_pretrained(model)
    module = host.make_supervised_data_module(processor, data_args=data_args)
    items, collate = module["train_dataset"], module["data_collator"]
    batches = [[items[k] for k in range(start, min(start + 4, len(items)))] for start in range(0, len(items), 4)]
    return [json.loads(line) for batch in batches for line in recorder.lines(collate(batch))]


if __name__ == "__main__":
    on_a_cpu.stand_in()
    checkout = Path(os.environ["VGIFT_QWEN"]).expanduser().absolute()
    sys.path += [str(checkout), str(checkout / "qwenvl" / "train")]  # the script imports from its own folder
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
