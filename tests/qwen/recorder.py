"""Writes down what a run was fed, one line a conversation: {"step", "ids", "labels", "pictures", "right"}.

RECORD names the file; each rank adds its number. Nothing of the host is replaced but two methods of the trainer, each
of which calls the original. Conversations are told apart as the host has them: rows of a padded batch, or segments of a
flattened row, whose ends are its attention mask. In evaluation `right` tells whether each learned token is the most
probable one; in training it is null.
"""

import functools
import hashlib
import itertools
import json
import os
from pathlib import Path

import wrapt

STARTS = 151652  # <|vision_start|>


def places(batch):
    """Returns (row, start, end) of each conversation."""
    mask = batch["attention_mask"]
    if mask.ndim == 1:
        return [(0, start, end) for start, end in itertools.pairwise(mask.tolist())]
    return [(row, 0, int(length)) for row, length in enumerate(mask.sum(1))]


def lines(batch, step=0, predicted=None):
    """Yields a line for each conversation; a picture is a hash of its patches."""
    grid = batch.get("image_grid_thw")
    patches = [] if grid is None else batch["pixel_values"].cpu().float().split(grid.prod(1).tolist())
    pictures = iter([hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16] for one in patches])
    for row, start, end in places(batch):
        ids, labels = (batch[name][row, start:end].tolist() for name in ("input_ids", "labels"))
        own, right = list(itertools.islice(pictures, ids.count(STARTS))), None
        if predicted is not None:
            said = predicted[row, start : end - 1].tolist()
            right = all(a == b for a, b in zip(said, labels[1:], strict=True) if b != -100)
        yield json.dumps({"step": step, "ids": ids, "labels": labels, "pictures": own, "right": right})


def record():
    """Lets the trainer write its batches down, where RECORD asks for it."""
    if "RECORD" in os.environ:
        wrapt.register_post_import_hook(_watch, "transformers.trainer")


def _write(trainer, *given):
    with Path(f"{os.environ['RECORD']}.{os.environ.get('RANK', '0')}").open("a") as file:
        file.writelines(f"{line}\n" for line in lines(given[0], trainer.state.global_step, *given[1:]))


def _watch(module):
    trained, evaluated = module.Trainer.training_step, module.Trainer.prediction_step

    @functools.wraps(trained)
    def training_step(self, model, inputs, *rest, **options):
        _write(self, inputs)
        return trained(self, model, inputs, *rest, **options)

    @functools.wraps(evaluated)
    def prediction_step(self, model, inputs, *rest, **options):
        found = evaluated(self, model, inputs, *rest, **options)
        logits = found[1][0] if isinstance(found[1], tuple) else found[1]
        _write(self, inputs, logits.argmax(-1))
        return found

    module.Trainer.training_step, module.Trainer.prediction_step = training_step, prediction_step
