"""The self-test before the first step: the host's labels of a sample must be exactly its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps

from ...errors import SelfTestError
from ...hosts import IGNORE_INDEX
from ...hosts.base import ChatTemplate, Host
from ...tasks.task import Sample
from .stream import Stream

SAMPLES = 4  # of each task: wordings and answers differ between them


def self_test(stream: Stream, encoder: Any, template: ChatTemplate, tokenizer: Any, host: Host) -> Sample:
    """Checks how the host encodes a few samples, and returns the first of them.

    The unmasked labels must decode to the answer, the input must contain the question, and for tasks that need the
    whole picture no corner may be cut off. If the tokenisation of a sample is not as LLaVA expects, it masks all
    labels, prints a line, and trains on nothing.

    Args:
        stream: the task's samples.
        encoder: its `sample(sample, name)` returns the host's items.
        template: the run's chat template.
        tokenizer: the run's tokenizer.
        host: the training code's family.

    Raises:
        SelfTestError: a check failed; the error names task, template, tokenizer and what was found.
    """
    who = (
        f"task {stream.task.name} with template {template.names[0]!r} and tokenizer "
        f"{type(tokenizer).__name__} ({getattr(tokenizer, 'name_or_path', '?')})"
    )
    unfit = "The template does not fit the tokenizer; choose another --version, or the tokenizer it was made for."
    samples = [stream(0, j) for j in range(SAMPLES)]
    if stream.task.whole and (hidden := hidden_corners(samples[0], encoder)):
        raise SelfTestError(
            f"{who}: {host.name} cuts off the {' and '.join(hidden)} of a picture, so marked points would be lost. "
            "Give --image_aspect_ratio pad, or leave the task out."
        )
    for sample in samples:
        item = encoder.sample(sample, f"{stream.task.name}-self-test")
        labels = item["labels"]
        supervised = labels[labels != IGNORE_INDEX].tolist()
        if not supervised:
            raise SelfTestError(
                f"{who}: {host.name} masked every label, so nothing would be learned from these samples. {unfit}"
            )
        text = template.without_markers(tokenizer.decode(supervised, skip_special_tokens=True))
        if text != " ".join(sample.response.split()):
            raise SelfTestError(
                f"{who}: the labels decode to {text!r} instead of the answer {sample.response!r}. {unfit}"
            )
        ids = [token for token in host.visible_ids(item["input_ids"]) if token >= 0]  # without the picture's tokens
        seen = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if "".join(sample.instruction.split()) not in "".join(seen.split()):
            raise SelfTestError(
                f"{who}: the template leaves the instruction out, so an answer would be trained without its question. "
                "Projector pre-training (--version plain) has no place for these samples; mix them in when fine-tuning."
            )
        if labels.numel() > tokenizer.model_max_length:
            raise SelfTestError(
                f"{who}: a sample has {labels.numel()} tokens and --model_max_length {tokenizer.model_max_length} "
                "would cut its answer off; raise it."
            )
    return samples[0]


def hidden_corners(sample: Sample, encoder: Any) -> list[str]:
    """Returns the corners of a sample's picture that do not affect the host's item."""

    def pixels(image: Image.Image) -> bytes:
        item = encoder.sample(replace(sample, image=image), f"{sample.task}-corner")
        return b"".join(_bytes(item[key]) for key in item if key not in ("input_ids", "labels"))

    plain, (width, height), side = pixels(sample.image), sample.image.size, max(8, max(sample.image.size) // 16)
    hidden = []
    for name, x, y in (
        ("top left", 0, 0),
        ("top right", width - side, 0),
        ("bottom left", 0, height - side),
        ("bottom right", width - side, height - side),
    ):
        changed = sample.image.copy()
        box = (x, y, x + side, y + side)
        changed.paste(ImageOps.invert(changed.crop(box)), box)
        if pixels(changed) == plain:
            hidden.append(name)
    return hidden


def _bytes(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        return b"".join(map(_bytes, value))
    return value.detach().cpu().float().numpy().tobytes() if hasattr(value, "detach") else b""
