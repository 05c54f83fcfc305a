"""Runs the train() of a checkout as it is, where there is no GPU, and tells what it was given and what it learned.

    python train_descendant.py MODULE [the checkout's flags]

Lines of JSON are printed: {"parsed": what the checkout's parser made of the flags}, {"learned": [[what a
self-supervised sample's labels decode to, its answer], ...]} and, after training, {"losses": [...]}. Nothing of the
checkout is changed; packages that need a GPU and are imported without being called are stood in for.
"""

import dataclasses
import functools
import importlib
import inspect
import json
import sys
from pathlib import Path

STAND_INS = Path(__file__).resolve().parent.parent / "qwen"


def tell(**what):
    print(json.dumps(what, default=str), flush=True)


def own(arguments):
    """Returns {class: {field: value}} of parsed arguments, of the checkout's own fields alone."""
    kinds = [
        next(k for k in type(one).__mro__ if "vgift_flags" not in vars(one) or k is not type(one)) for one in arguments
    ]
    return {
        kind.__name__: {field.name: getattr(one, field.name) for field in dataclasses.fields(kind)}
        for kind, one in zip(kinds, arguments, strict=True)
    }


def watch():
    """Prints what is parsed, what is learned of self-supervised samples, and the losses."""
    import transformers

    parser, trainer = transformers.HfArgumentParser, transformers.Trainer
    parse, init, train = parser.parse_args_into_dataclasses, trainer.__init__, trainer.train

    @functools.wraps(parse)
    def parsed(self, *args, **kwargs):
        made = parse(self, *args, **kwargs)
        tell(parsed=own(made))
        return made

    @functools.wraps(init)
    def made(self, *args, **kwargs):
        init(self, *args, **kwargs)
        mixed = self.train_dataset
        if hasattr(mixed, "parts"):
            tell(learned=[learned(mixed, i, self.tokenizer) for i in range(len(mixed.base), len(mixed))])

    @functools.wraps(train)
    def trained(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        tell(losses=self.state.log_history)
        return result

    parser.parse_args_into_dataclasses, trainer.__init__, trainer.train = parsed, made, trained


def learned(mixed, index, tokenizer):
    stream, j = mixed.plan(index)
    labels = mixed[index]["labels"]
    return tokenizer.decode(labels[labels != -100], skip_special_tokens=True).strip(), stream(0, j).response


if __name__ == "__main__":
    sys.path.insert(0, str(STAND_INS))
    import on_a_cpu

    on_a_cpu.stand_in()
    watch()
    sys.path.append(str(Path(__file__).with_name("stand_ins")))  # now that transformers has looked for TPUs
    name = sys.argv.pop(1)
    module = importlib.import_module(name)
    if sys.argv[1:] == ["--import_only"]:
        sys.exit()
    import torch.distributed

    torch.manual_seed(0)  # most of them make their projector before the trainer sets the seed
    needed = [one for one in inspect.signature(module.train).parameters.values() if one.default is one.empty]
    module.train(*[0] * len(needed))  # Cambrian's wants the number of the process

    if torch.distributed.is_initialized():  # gloo's threads may abort a process that ends with them running
        torch.distributed.destroy_process_group()
