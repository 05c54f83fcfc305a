"""A trained Qwen-VL with the interface of `checkpoint.Checkpoint`; transformers' model, processor and template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..data.records import IMAGE, human_texts
from ..errors import ConfigError
from ..tasks.task import Sample
from . import IGNORE_INDEX
from .base import ChatTemplate
from .checkpoint import Checkpoint, Likelihood, Reply, drawing
from .encoder import pictures_on
from .loading import Found

START, END = "<|im_start|>", "<|im_end|>"


class QwenCheckpoint(Checkpoint):
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL. Attributes and methods are those of `checkpoint.Checkpoint`.

    An item is a dict with `input_ids` and `labels`, both (1, length), what the processor makes of the picture, and
    under `messages` the conversation.
    """

    def __init__(self, found: Found, processor: Any, model: Any):
        self.found, self.model, self.processor, self.tokenizer = found, model, processor, processor.tokenizer
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.host, self.template = found.host, ChatTemplate((found.template,))
        self.grid: Any = self.host.grid(self)  # of a dataset it asks for the processor alone, too
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", 32768)

    @classmethod
    def loaded(cls, found: Found, device: str, dtype: Any) -> QwenCheckpoint:
        """Loads a checkpoint.

        Args:
            found: the checkpoint, with what its adapter was trained on.
            device: torch's name of it.
            dtype: torch's.

        Raises:
            ConfigError: transformers cannot load it; its own error is chained.
        """
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            processor = AutoProcessor.from_pretrained(found.processor)
            model = AutoModelForImageTextToText.from_pretrained(found.base or found.path, dtype=dtype)
            if found.base is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, found.path).merge_and_unload()
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as err:
            raise ConfigError(
                f"--model_path {found.path}: transformers cannot load it: {type(err).__name__}: {err}"
            ) from err
        return cls(found, processor, model.to(device).eval())

    def sample(self, sample: Sample, name: str = "asked") -> dict[str, Any]:
        """Returns the item for a task's sample, painted at the size the model looks at."""
        return self.encode(sample.record(name, name), *pictures_on(sample, self.grid))

    def encode(self, record: dict, *pictures: Image.Image) -> dict[str, Any]:
        """Returns the item for a record with these pictures in the place of its own, each at an `<image>`."""
        messages, texts, shown = [], iter(human_texts(record)), iter(pictures)
        for turn in record["conversations"]:
            if turn.get("from", turn.get("role")) in ("human", "user"):
                content: list[dict[str, Any]] = []
                for k, text in enumerate(next(texts).split(IMAGE)):
                    content += [{"type": "image", "image": next(shown)}] if k else []
                    content += [{"type": "text", "text": text.strip()}] if text.strip() else []  # as the host does
                messages.append({"role": "user", "content": content})
            else:
                said = turn.get("value", turn.get("content"))
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        item = self._processed([messages], continued=False)
        return {**item, "labels": self._labels(item["input_ids"]), "messages": messages}

    def _processed(self, conversations: list[list[dict]], continued: bool) -> dict[str, Any]:
        return dict(
            self.processor.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=continued,
                padding=True,
                padding_side="left" if continued else "right",
            )
        )

    def _labels(self, ids: Any) -> Any:
        """Returns the answers of the assistant with their end marker; the rest is masked."""
        labels, row = ids.new_full(ids.shape, IGNORE_INDEX), ids[0].tolist()
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        head = [start, *self.tokenizer.encode("assistant\n", add_special_tokens=False)]
        at = 0
        while at < len(row):
            if row[at : at + len(head)] == head:
                first = at + len(head)
                at = row.index(end, first) + 1
                labels[0, first:at] = ids[0, first:at]
            at += 1
        return labels

    def replies(
        self,
        items: Sequence[Any],
        max_new_tokens: int | Sequence[int] = 128,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Returns the model's reply to each item's first question; see `Checkpoint.replies`."""
        import torch

        limits = [max_new_tokens] * len(items) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        questions = []
        for item in items:
            first = next(k for k, one in enumerate(item["messages"]) if one["role"] == "assistant")
            questions.append(item["messages"][:first])
        batch = {name: value.to(self.device) for name, value in self._processed(questions, continued=True).items()}
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            options["logits_processor"] = [drawing(temperature, seeds or ())]
        end = self.tokenizer.convert_tokens_to_ids(END)
        with torch.inference_mode():
            out = self.model.generate(
                **batch, **options, max_new_tokens=max(limits), eos_token_id=end, repetition_penalty=1.0
            )
        rows = out[:, batch["input_ids"].shape[1] :].tolist()
        return [
            Reply(self.tokenizer.decode(row[:limit], skip_special_tokens=True).strip(), end in row[:limit])
            for row, limit in zip(rows, limits, strict=True)
        ]

    def log_likelihood(self, items: Sequence[Any]) -> list[Likelihood]:
        """Returns the log-likelihood of each item's answers; logits are computed at the answers' tokens only."""
        import torch

        result = []
        for item in items:  # one by one: no padding, and a vocabulary of 151,936 makes large batches costly anyway
            batch = {name: value.to(self.device) for name, value in item.items() if name not in ("labels", "messages")}
            with torch.inference_mode():
                hidden = self.model.model(**batch, use_cache=False, return_dict=True)[0]
                supervised = item["labels"][:, 1:] != IGNORE_INDEX
                logits = self.model.get_output_embeddings()(hidden[:, :-1][supervised.to(hidden.device)]).float()
                wanted = item["labels"][:, 1:][supervised].to(logits.device)
                found = logits.log_softmax(-1).gather(1, wanted[:, None]).double()
            result.append(Likelihood(float(found.sum()), len(wanted)))
        return result

    def fits(self, item: Any) -> bool:
        """Tells whether an item lies inside the model's context."""
        return item["input_ids"].numel() <= self.context

    def marker_in(self, text: str) -> str | None:
        """Returns the first image token or special token in a text, or None."""
        return next((one for one in (IMAGE, *self.tokenizer.all_special_tokens) if one in text), None)
