"""Loads a trained LLaVA; generates replies and computes the log-likelihood of reference answers."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.records import IMAGE
from ..errors import ConfigError
from ..tasks.task import Sample
from . import IGNORE_INDEX
from .base import ChatTemplate
from .encoder import Encoder
from .llava import LLaVA, markers
from .loading import Found, find, is_qwen, load

logger = logging.getLogger(__name__)
# Settings that both the training arguments and a checkpoint's config have: how pictures are cut and marked in the text.
SHARED = (
    "image_aspect_ratio",
    "mm_use_im_start_end",
    "image_grid_pinpoints",
    "image_crop_resolution",
    "image_split_resolution",
)


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of an answer in nats (`total`) and its number of tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Per token, at most 0; nan without a token."""
        return self.total / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class Reply:
    """A generated text, and whether the model ended it; otherwise it was cut off at the limit of tokens."""

    text: str
    ended: bool


class Checkpoint:
    """A LLaVA with the host's own tokenizer, picture preprocessing, chat template and collator.

    Questions are *items*: what the host's dataset returns for one record (`item`). Replies and likelihoods of an item
    do not depend on the others in its batch, but for the last digits of floating-point sums.

    Attributes:
        found: what was loaded.
        model: LLaVA's, in evaluation mode.
        tokenizer: LLaVA's.
        encoder: the host's dataset, one record at a time.
        template: the chat template it is asked with.
        device, dtype: torch's; where and in what it computes.
    """

    def __init__(self, found: Found, tokenizer: Any, model: Any, processor: Any, length: int):
        host = importlib.import_module(LLaVA.modules[0])
        self.found, self.tokenizer, self.model = found, tokenizer, model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # as in training
        tokenizer.padding_side = "right"
        tokenizer.model_max_length = found.config.get("tokenizer_model_max_length") or length
        self.conversation_lib = host.conversation_lib
        self.conversation = host.conversation_lib.conv_templates[found.template]
        self.collate = host.DataCollatorForSupervisedDataset(tokenizer=tokenizer)
        arguments = host.DataArguments()
        for name in SHARED:
            if hasattr(model.config, name):
                setattr(arguments, name, getattr(model.config, name))
        arguments.image_folder, arguments.image_processor, arguments.is_multimodal = "", processor, True
        arguments.mm_use_im_start_end = getattr(model.config, "mm_use_im_start_end", False)
        self.host = found.host
        self.encoder = Encoder(self.host, _empty_dataset(host, tokenizer, arguments))
        self.template = ChatTemplate((found.template,), markers(self.conversation, tokenizer))
        image = self.item(Image.new("RGB", (60, 40)), "?")["image"]
        if hasattr(image, "dim") and str(getattr(arguments, "image_aspect_ratio", "")).startswith("anyres"):
            raise ConfigError(
                f"--model_path {found.path}: image_aspect_ratio is {arguments.image_aspect_ratio}, and this LLaVA's "
                "training code cuts no such tiles; use the fork it was trained with"
            )

    @classmethod
    def load(
        cls,
        model_path: str,
        model_base: str | None = None,
        conv_mode: str | None = None,
        device: str | None = None,
        dtype: Any = None,
    ) -> Checkpoint:
        """Loads a checkpoint through LLaVA's own `load_pretrained_model`.

        Args:
            model_path: a folder, or a name on the Hub: fully fine-tuned, merged, a LoRA adapter or a projector.
            model_base: the language model that an adapter or a projector was trained on.
            conv_mode: the chat template it was trained with; by default what LLaVA's evaluation would take, else v1.
            device: `cuda` where there is one, else `cpu`.
            dtype: torch's; by default float32 on a CPU, bfloat16 on a GPU.

        Raises:
            ConfigError, HostMismatchError: see `loading.find` and `loading.load`.
        """
        return cls.of(find(model_path, model_base, conv_mode), device, dtype)

    @classmethod
    def of(cls, found: Found, device: str | None = None, dtype: Any = None) -> Checkpoint:
        """Loads a checkpoint whose files were read already; see `load`."""
        import torch

        device = device_of(device)
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        if is_qwen(found.config):
            from .qwen_checkpoint import QwenCheckpoint

            checkpoint: Checkpoint = QwenCheckpoint.loaded(found, device, dtype)
        else:
            checkpoint = cls(found, *load(found, device, dtype))
        logger.info("%s: template %s, %s on %s", found.path, found.template, checkpoint.dtype, checkpoint.device)
        return checkpoint

    def item(self, picture: Image.Image, instruction: str, response: str = "?") -> Any:
        """Returns the host's item for a question about a picture.

        Args:
            picture: RGB.
            instruction: text without image token and role marker.
            response: the reference answer; it is no part of what `generate` is asked with.
        """
        turns = [{"from": "human", "value": f"{IMAGE}\n{instruction}"}, {"from": "gpt", "value": response}]
        return self.encode({"id": "vgift-asked", "image": "asked.ppm", "conversations": turns}, picture)

    def encode(self, record: dict, *pictures: Image.Image) -> Any:
        """Returns the host's item for a record with these pictures in the place of its own."""
        self.conversation_lib.default_conversation = self.conversation  # as in training; the host reads it there
        return self.encoder.record(record, pictures)

    def sample(self, sample: Sample, name: str = "asked") -> Any:
        """Returns the host's item for a task's sample."""
        return self.encode(sample.record(f"vgift-{name}", f"{name}.ppm"), *self.encoder.pictures(sample))

    def generate(
        self,
        items: Sequence[Any],
        max_new_tokens: int | Sequence[int] = 128,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Returns the text of `replies`."""
        return [reply.text for reply in self.replies(items, max_new_tokens, temperature, seeds)]

    def replies(
        self,
        items: Sequence[Any],
        max_new_tokens: int | Sequence[int] = 128,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Returns the model's reply to each item's first question, without template and surrounding white space.

        Args:
            items: of `item`, `encode` or `sample`.
            max_new_tokens: where replies are cut off, one number for all or one for each.
            temperature: 0 takes the likeliest token; above it tokens are drawn from softmax(logits / temperature).
            seeds: one for each item, needed above temperature 0. A reply is a function of item, temperature and seed.
        """
        import torch

        limits = [max_new_tokens] * len(items) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        assert len(limits) == len(items) and (temperature == 0 or len(seeds or ()) == len(items))
        batch = self._batch([self._question(item) for item in items])
        options = {"pad_token_id": self.tokenizer.pad_token_id, "eos_token_id": self._end(), "do_sample": False}
        if temperature > 0:
            options["logits_processor"] = [drawing(temperature, list(seeds or ()))]
        ids, _ = batch.pop("input_ids"), batch.pop("labels")
        with torch.inference_mode(), self._padded("left"), self._greedy():
            out = self.model.generate(ids, **batch, **options, max_new_tokens=max(limits))
        start = [self._start()]  # transformers 4.36 and 4.37 put it before the reply
        rows = [row[1:] if row[:1] == start else row for row in out.tolist()]
        return [self._reply(row[:limit]) for row, limit in zip(rows, limits, strict=True)]

    def log_likelihood(self, items: Sequence[Any]) -> list[Likelihood]:
        """Returns the log-likelihood of each item's answer (of all its answers, if there are several turns).

        Computes logits at the answers' tokens only; those of a long prompt with 576 picture tokens and a large
        vocabulary would not fit in memory. An answer outside the model's context has no tokens.
        """
        import torch

        batch = self._batch([self._without_role(item) for item in items])
        given = ("input_ids", "attention_mask", "labels")
        takes = inspect.signature(self.model.prepare_inputs_labels_for_multimodal).parameters
        extra = {name: value for name, value in batch.items() if name not in given and name in takes}
        with torch.inference_mode(), self._padded("right"):
            _, positions, mask, _, embedded, labels = self.model.prepare_inputs_labels_for_multimodal(
                input_ids=batch["input_ids"],
                position_ids=None,
                attention_mask=batch["attention_mask"],
                past_key_values=None,
                labels=batch["labels"],
                **extra,
            )
            inner = self.model.get_model()
            hidden = inner(
                inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False, return_dict=True
            )[0]
            told = labels[:, 1:] != IGNORE_INDEX
            logits = self.model.get_output_embeddings()(hidden[:, :-1][told.to(hidden.device)]).float()
            supervised = labels[:, 1:][told].to(logits.device)
            found = logits.log_softmax(-1).gather(1, supervised[:, None])[:, 0].double().cpu()
        tokens = told.sum(1).tolist()
        sums = [float(part.sum()) for part in found.split(tokens)]
        return [Likelihood(total, count) for total, count in zip(sums, tokens, strict=True)]

    def answer_length(self, item: Any) -> int:
        """Returns how many tokens of an item are supervised, template included; 0 where the template masks them all."""
        return int((item["labels"] != IGNORE_INDEX).sum())

    def fits(self, item: Any) -> bool:
        """Tells whether an item and its picture's tokens lie inside the model's context; tiles are not counted."""
        patches = getattr(self.model.get_vision_tower(), "num_patches", 1)
        return len(item["input_ids"]) + patches - 1 <= self.tokenizer.model_max_length

    def marker_in(self, text: str) -> str | None:
        """Returns the first image token, role marker, separator or special token in a text, or None. A text with one
        cannot be a turn of a conversation."""
        conversation = self.conversation
        markers = [IMAGE, "[INST]", "[/INST]", *self.tokenizer.all_special_tokens]
        markers += [conversation.sep, conversation.sep2]
        markers += [f"{role}:" if role.isalpha() else role for role in conversation.roles]
        return next((one for one in markers if one and one.strip() and one.strip() in text), None)

    def _question(self, item: Any) -> Any:
        """Returns the item up to where its first answer begins."""
        item = self._without_role(item)
        end = int((item["labels"] != IGNORE_INDEX).nonzero()[0])
        return {**item, "input_ids": item["input_ids"][:end], "labels": item["labels"][:end]}

    def _without_role(self, item: Any) -> Any:
        """Returns the item with the answer's role marker masked, which some templates supervise too."""
        labels, role = item["labels"], self.tokenizer(self.conversation.roles[1], add_special_tokens=False).input_ids
        supervised = (labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
        if supervised and labels[supervised[0] : supervised[0] + len(role)].tolist() == role:
            labels = labels.clone()
            labels[supervised[0] : supervised[0] + len(role)] = IGNORE_INDEX
        return {**item, "labels": labels}

    def _batch(self, items: list[Any]) -> dict[str, Any]:
        """Returns what the host's collator makes of items, on the model's device and in its precision."""
        batch = self.collate(items)
        takes = {*inspect.signature(self.model.forward).parameters, *inspect.signature(self.model.generate).parameters}
        batch = {
            name: value for name, value in batch.items() if name in takes or name in ("input_ids", "attention_mask")
        }
        images = batch.pop("images")
        move = {"device": self.device, "dtype": self.dtype}
        for name in ("input_ids", "labels", "attention_mask"):
            batch[name] = batch[name].to(self.device)
        batch["images"] = [one.to(**move) for one in images] if isinstance(images, list) else images.to(**move)
        return batch

    @contextmanager
    def _padded(self, side: str) -> Iterator[None]:
        """Tells the model where to pad: LLaVA pads again, once pictures have taken the places of their tokens."""
        config = self.model.config
        before = getattr(config, "tokenizer_padding_side", "right")
        config.tokenizer_padding_side = side
        try:
            yield
        finally:
            config.tokenizer_padding_side = before

    @contextmanager
    def _greedy(self) -> Iterator[None]:
        """Takes sampling settings and penalties out of the model's own generation config, and puts it back."""
        from transformers import GenerationConfig

        before = self.model.generation_config
        self.model.generation_config = GenerationConfig(bos_token_id=self._start())
        try:
            yield
        finally:
            self.model.generation_config = before

    def _start(self) -> int:
        """Returns the BOS id for generation from embeddings; EOS if the tokenizer has no BOS (Qwen)."""
        known = self.model.generation_config.bos_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return next(token for token in known if token is not None)

    def _end(self) -> Any:
        own = self.model.generation_config.eos_token_id
        return self.tokenizer.eos_token_id if own is None else own

    def _reply(self, tokens: list[int]) -> Reply:
        """Returns a reply: what stands before the template's separator."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        conversation = self.conversation
        two = conversation.sep2 is not None and conversation.sep_style == type(conversation.sep_style).TWO
        stop = conversation.sep2 if two else conversation.sep
        said, found, _ = text.partition(stop) if stop and stop.strip() else (text, "", "")
        end = self._end()
        ends = set(end) if isinstance(end, list | tuple) else {end}
        return Reply(said.strip(), bool(found) or not ends.isdisjoint(tokens))


def device_of(wanted: str | None) -> str:
    """Returns what was asked for, else `cuda` where torch sees one, else `cpu`.

    Raises:
        ConfigError: torch knows no such device, or does not see it.
    """
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as err:
        raise ConfigError(f"--device {wanted}: torch knows no such device: cpu, cuda or cuda:1") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {wanted}: torch sees {torch.cuda.device_count()} GPUs here")
    return wanted


def _empty_dataset(host: Any, tokenizer: Any, arguments: Any) -> Any:
    """Returns the host's own dataset, without a record."""
    with tempfile.TemporaryDirectory(prefix="vgift-") as folder:
        path = os.path.join(folder, "empty.json")
        Path(path).write_text("[]", encoding="utf-8")
        return host.LazySupervisedDataset(data_path=path, tokenizer=tokenizer, data_args=arguments)


def drawing(temperature: float, seeds: Sequence[int]) -> Any:
    """Returns a logits processor that makes greedy decoding sample.

    The maximum of logits / temperature with Gumbel noise is a draw from their softmax (Gumbel 1954). Each row has a
    generator of its own; the global ones are not used.
    """
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    class Drawing(LogitsProcessor):
        def __call__(self, input_ids, scores):
            noise = torch.stack([torch.rand(scores.shape[1], generator=one, dtype=torch.float64) for one in generators])
            noise = -(-noise.clamp_min(1e-300).log()).log()
            return scores.double() / temperature + noise.to(scores.device)

    return Drawing()
