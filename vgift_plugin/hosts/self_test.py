"""The self-test: before the first step, samples must come out of the host with their answer as the only labels."""

from __future__ import annotations

from typing import Any

from ..errors import SelfTestError
from ..methods.vgift.mixing import Stream
from ..tasks.task import Sample
from . import IGNORE_INDEX
from .view import OneRecordView

SAMPLES = 4  # of each task: wordings and answers differ between them


def self_test(stream: Stream, view: OneRecordView, tokenizer: Any, conversation_lib: Any) -> Sample:
    """Sends a few samples through the host: the unmasked labels must decode to the answer, the rest hold the question.

    LLaVA masks every label of a sample whose tokenisation surprises it, prints a line, and trains on nothing.

    Args:
        stream: the task's samples.
        view: the host.
        tokenizer: the run's tokenizer.
        conversation_lib: the host's `llava.conversation`, which holds the run's chat template.

    Returns:
        the first of the samples.

    Raises:
        SelfTestError: naming task, template and tokenizer, and what was found.
    """
    conversation = getattr(conversation_lib, "default_conversation", None)
    unnamed = getattr(conversation, "version", None) or getattr(view.base.data_args, "conv_version", "?")
    names = [*template_names(conversation_lib), unnamed]
    who = (
        f"task {stream.task.name} with template {names[0]!r} and tokenizer "
        f"{type(tokenizer).__name__} ({getattr(tokenizer, 'name_or_path', '?')})"
    )
    samples = [stream(0, j) for j in range(SAMPLES)]
    for sample in samples:
        item = view(sample, f"{stream.task.name}-self-test")
        labels = item["labels"]
        taught = labels[labels != IGNORE_INDEX].tolist()
        if not taught:
            raise SelfTestError(
                f"{who}: LLaVA masked every label, so nothing would be learned from these samples. "
                "The template does not fit the tokenizer; choose another --version, or the tokenizer it was made for."
            )
        text = without_template(tokenizer.decode(taught, skip_special_tokens=True), conversation, tokenizer)
        if text != " ".join(sample.response.split()):
            raise SelfTestError(
                f"{who}: the labels decode to {text!r} instead of the answer {sample.response!r}. "
                "The template does not fit the tokenizer; choose another --version, or the tokenizer it was made for."
            )
        ids = [token for token in item["input_ids"].tolist() if token >= 0]  # the image's place is a negative number
        seen = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if "".join(sample.instruction.split()) not in "".join(seen.split()):
            raise SelfTestError(
                f"{who}: the template leaves the instruction out, so an answer would be trained without its question. "
                "Projector pre-training (--version plain) has no place for these samples; mix them in when fine-tuning."
            )
        if len(labels) > tokenizer.model_max_length:
            raise SelfTestError(
                f"{who}: a sample has {len(labels)} tokens and --model_max_length {tokenizer.model_max_length} "
                "would cut its answer off; raise it."
            )
    return samples[0]


def template_names(conversation_lib: Any) -> list[str]:
    """Returns the names by which the host's templates hold the run's; none where it keeps its template elsewhere."""
    current = getattr(conversation_lib, "default_conversation", None)
    return [name for name, one in getattr(conversation_lib, "conv_templates", {}).items() if one is current]


def without_template(text: str, conversation: Any, tokenizer: Any) -> str:
    """Returns decoded labels without the template's separators and role markers, which some templates supervise too."""
    if conversation is not None:
        roles = [*conversation.roles, *(_words(tokenizer, role) for role in conversation.roles)]
        markers = [f"{role}:" for role in roles] + [*roles, conversation.sep, conversation.sep2]
    else:  # a host whose template is elsewhere; it has to supervise the answer alone
        markers = []
    for marker in filter(None, (marker.strip() for marker in markers if marker)):
        text = text.replace(marker, " ")
    return " ".join(text.split())


def _words(tokenizer: Any, role: str) -> str:
    """Returns what skipping special tokens leaves of a role marker: `assistant` of `<|im_start|>assistant`."""
    return tokenizer.decode(tokenizer(role, add_special_tokens=False).input_ids, skip_special_tokens=True)
