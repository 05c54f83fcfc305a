"""A checkout's own train(), up to its dataset: samples through the encoder against the same samples as records.

    python same_sample.py MODULE [the checkout's flags]

Model, tokenizer, template and preprocessing are what train() made of the flags. Each picture is saved as PNG, in a
record of a file that the checkout's own dataset class reads. The last line printed is JSON: the training module, the
keys of a sample, those that differ, and an answer of each task. A task that fails its self-test ends it.
"""

import copy
import importlib
import json
import sys
import tempfile
from pathlib import Path

import torch

from vgift_plugin import get_task, task_names
from vgift_plugin.data.photos import from_folder
from vgift_plugin.hosts import host_of
from vgift_plugin.hosts.encoder import Encoder
from vgift_plugin.methods.vgift.self_test import self_test
from vgift_plugin.methods.vgift.stream import Stream


def equal(one, other):
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return one == other


def compare(tokenizer, data_args, **rest):
    """Stands where train() makes its data module; nothing is trained."""
    base = make(tokenizer=tokenizer, data_args=data_args, **rest)["train_dataset"]
    encoder, template = Encoder(host, base), host.template(module, data_args, tokenizer)
    differ, answers = set(), {}
    for name in task_names():
        stream = Stream(get_task(name)(), from_folder(data_args.image_folder), 0)
        answers[name] = self_test(stream, encoder, template, tokenizer, host).response
        for j in range(3):
            sample = stream(0, j)
            ours = encoder.sample(sample, "sample")
            with tempfile.TemporaryDirectory() as folder:
                encoder.picture(sample).save(Path(folder, "sample.png"))
                Path(folder, "one.json").write_text(json.dumps([sample.record("vgift-sample", "sample.png")]))
                own = copy.copy(data_args)
                own.data_path, own.image_folder = str(Path(folder, "one.json")), folder
                theirs = make(tokenizer=tokenizer, data_args=own, **rest)["train_dataset"][0]
            assert list(ours) == list(theirs), (list(ours), list(theirs))
            differ |= {key for key in ours if not equal(ours[key], theirs[key])}
    print(json.dumps({"file": module.__file__, "keys": list(ours), "differ": sorted(differ), "answers": answers}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(0)


if __name__ == "__main__":
    module = importlib.import_module(sys.argv.pop(1))
    host = host_of(module)
    make, module.make_supervised_data_module = module.make_supervised_data_module, compare
    module.train()
