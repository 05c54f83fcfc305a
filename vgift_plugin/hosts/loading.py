"""What a checkpoint is, read from its files, and LLaVA's own `load_pretrained_model` around it.

LLaVA decides by words in the *name* of a checkpoint what it loads: without `llava` the language model alone, without
`lora` no adapter. The name it is given here follows from the checkpoint's files, so folders may be called anything.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HostMismatchError
from .base import Host
from .llava import LLaVA
from .qwen_vl import QwenVL

BUILDER = "llava.model.builder"
# Where a template is not named: the first of the host's templates that fits what the checkpoint is called or is.
TEMPLATES = (
    ("llama-2", ("llava_llama_2",)),
    ("llama-3", ("llava_llama_3",)),
    ("mistral", ("mistral_instruct",)),
    ("mpt", ("mpt",)),
    ("qwen", ("qwen_1_5", "qwen_2")),
    ("gemma", ("gemma_instruct",)),
    ("v1.6-34b", ("chatml_direct",)),
    ("", ("v1",)),  # vicuna, and whatever was fine-tuned as LLaVA-1.5 is
)


@dataclass(frozen=True)
class Found:
    """A checkpoint as its files describe it.

    Attributes:
        path: folder, or name on the Hub.
        base: what an adapter or a projector belongs to.
        name: what `load_pretrained_model` has to be told.
        config: its config.json.
        template: one of the host's chat templates.
        weights: a fingerprint of the files: retrained, it is another checkpoint.
        processor: where transformers finds a Qwen-VL's processor; "" for a LLaVA.
    """

    path: str
    base: str | None
    name: str
    config: dict[str, Any]
    template: str
    weights: str
    processor: str = ""

    @property
    def host(self) -> Host:
        """The training code whose checkpoint it is."""
        return QwenVL() if self.processor else LLaVA()


def find(model_path: str, model_base: str | None = None, conv_mode: str | None = None) -> Found:
    """Reads what a checkpoint is; no weight is loaded.

    Args:
        model_path: a folder, or a name on the Hub: fully fine-tuned, merged, a LoRA adapter or a projector.
        model_base: the language model that an adapter or a projector was trained on.
        conv_mode: the chat template it was trained with; by default what LLaVA's own evaluation would take.

    Raises:
        ConfigError: it is no LLaVA checkpoint, has no vision tower, or its base is missing or too much.
    """
    for flag, path in (("--model_path", model_path), ("--model_base", model_base)):
        if path is not None and not Path(path).is_dir() and (path.count("/") != 1 or path[0] in "./~"):
            raise ConfigError(f"{flag} {path}: there is no such folder")
    adapter, projector = _has(model_path, "adapter_config.json"), _has(model_path, "mm_projector.bin")
    config = _config(model_base if adapter and model_base and not _has(model_path, "config.json") else model_path)
    if is_qwen(config):
        return _find_qwen(model_path, model_base, conv_mode, config, adapter)
    _check_tower(model_path, config)
    if adapter and model_base is None:
        base = config.get("_name_or_path") or "the language model it was trained on"
        raise ConfigError(
            f"--model_path {model_path} is a LoRA adapter; name what it was trained on: --model_base {base}"
        )
    if adapter and Path(model_path).is_dir() and not _has(model_path, "non_lora_trainables.bin"):
        raise ConfigError(
            f"--model_path {model_path}: non_lora_trainables.bin is missing, which holds the adapter's projector; "
            "LLaVA writes it when training ends"
        )
    if projector and not adapter and model_base is None and not _has_weights(model_path):
        raise ConfigError(f"--model_path {model_path} is a projector alone; name its language model: --model_base")
    if model_base is not None and not (adapter or projector):
        raise ConfigError(
            f"--model_base {model_base}: {model_path} has neither an adapter nor a projector alone, so it is a whole "
            "model; leave --model_base out"
        )
    family = _family(config.get("model_type"))
    name = f"llava-lora-{family}" if adapter else f"llava-{family}"
    template = _template(conv_mode, [family, *map(_last, (model_path, model_base, config.get("_name_or_path")))])
    return Found(model_path, model_base, name, config, template, _fingerprint(model_path, config))


def is_qwen(config: dict[str, Any]) -> bool:
    """Tells by its config.json whether a checkpoint is a Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    kind = str(config.get("model_type"))
    return kind.startswith("qwen") and "vl" in kind


def _find_qwen(path: str, base: str | None, conv_mode: str | None, config: dict[str, Any], adapter: bool) -> Found:
    mistakes = []
    if conv_mode is not None:
        mistakes.append(f"--conv_mode {conv_mode}: a Qwen-VL brings its own template; leave it out")
    if base is not None and not adapter:
        mistakes.append(f"--model_base {base}: {path} is a whole model; leave --model_base out")
    if base is None and adapter:
        mistakes.append(f"--model_path {path} is a LoRA adapter; name what it was trained on: --model_base")
    processor = next((one for one in (path, base) if one and _has(one, "preprocessor_config.json")), None)
    if processor is None:
        mistakes.append(
            f"--model_path {path}: there is no preprocessor_config.json; copy it from the model it was trained from"
        )
    if mistakes:
        raise ConfigError.of(mistakes)
    return Found(path, base, config["model_type"], config, "qwen", _fingerprint(path, config), processor or "")


def _family(model_type: str | None) -> str:
    """Returns the language model's kind: llava_llama, llava (LLaVA's first name) and llama (forks') are all llama."""
    return (model_type or "").removeprefix("llava").strip("_") or "llama"


def _config(path: str) -> dict[str, Any]:
    from transformers import PretrainedConfig

    if Path(path).is_dir() and not _has(path, "config.json"):
        inside = sorted(one.name for one in Path(path).glob("checkpoint-*"))
        hint = f"; it holds {', '.join(inside)}, one of which may be meant" if inside else ""
        raise ConfigError(f"--model_path {path}: there is no config.json, so no checkpoint{hint}")
    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as err:
        raise ConfigError(f"--model_path {path}: its config.json cannot be read: {err}") from err
    return config


def _check_tower(path: str, config: dict[str, Any]) -> None:
    """Refuses a checkpoint that names no vision tower, or one that is not there."""
    tower = config.get("mm_vision_tower") or config.get("vision_tower")
    if not isinstance(tower, str):
        converted = (
            " (converted to the format of transformers? this needs LLaVA's own)" if "vision_config" in config else ""
        )
        raise ConfigError(
            f"--model_path {path}: its config.json names no vision tower (mm_vision_tower), so it cannot see: it is a "
            f"language model alone{converted}"
        )
    if not Path(tower).exists() and (tower.count("/") != 1 or tower[0] in "./~"):
        where = (
            ""
            if Path(tower).is_absolute()
            else "; the path is relative to the folder that training ran in, start there"
        )
        raise ConfigError(
            f"--model_path {path}: the vision tower that its config.json names, {tower}, is not there{where}"
        )


def _has(path: str, name: str) -> bool:
    """Tells whether a checkpoint holds a file, in a folder or on the Hub."""
    if Path(path).is_dir():
        return Path(path, name).is_file()
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    return cached_file(path, name, **quiet) is not None


def _has_weights(path: str) -> bool:
    return any(
        _has(path, f"{stem}{index}")
        for stem in ("model.safetensors", "pytorch_model.bin")
        for index in ("", ".index.json")
    )


def _last(path: str | None) -> str:
    """Returns what names a checkpoint in its path, as LLaVA has it: its last part; of x/checkpoint-N both."""
    parts = Path(path or "").parts
    return "_".join(parts[-2:] if parts and parts[-1].startswith("checkpoint-") else parts[-1:]).lower()


def _template(conv_mode: str | None, names: list[str]) -> str:
    known = importlib.import_module("llava.conversation").conv_templates
    if conv_mode is not None:
        if conv_mode not in known:
            raise ConfigError(f"--conv_mode {conv_mode}: this LLaVA has no such template; it has {', '.join(known)}")
        return conv_mode
    fitting = (fit for word, fit in TEMPLATES if any(word in name for name in names))
    return next(template for fit in fitting for template in fit if template in known)


def _fingerprint(path: str, config: dict[str, Any]) -> str:
    if not Path(path).is_dir():
        return str(config.get("_commit_hash"))
    files = sorted(one for one in Path(path).iterdir() if one.suffix in (".bin", ".safetensors", ".json"))
    told = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return blake2b(repr(told).encode(), digest_size=8).hexdigest()


def load(found: Found, device: str, dtype: Any) -> tuple[Any, Any, Any, int]:
    """Returns LLaVA's (tokenizer, model, image processor, context length), the model ready to be asked.

    LLaVA reads all weights as float16, also on a CPU; they are widened afterwards to what the device computes in.

    Args:
        found: the checkpoint.
        device: `cpu`, `cuda` (upstream then spreads a large model over all GPUs) or one GPU, `cuda:1`.
        dtype: torch's.

    Raises:
        ConfigError: LLaVA cannot load it; its own error is chained.
        HostMismatchError: it was loaded as another kind of model than it is.
    """
    import torch

    builder = importlib.import_module(BUILDER).load_pretrained_model
    takes = inspect.signature(builder).parameters
    options: dict[str, Any] = {"attn_implementation": "sdpa"} if "attn_implementation" in takes else {}
    if "device" in takes:
        options |= {"device": device, **({} if device == "cuda" else {"device_map": device})}
    elif device != ("cuda" if torch.cuda.is_available() else "cpu"):  # LLaVA-NeXT's puts the tower where it wants
        raise ConfigError(f"--device {device}: this LLaVA takes every GPU it sees; choose by CUDA_VISIBLE_DEVICES")
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            tokenizer, model, processor, length = builder(found.path, found.base, found.name, **options)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as err:
        raise ConfigError(
            f"--model_path {found.path}: LLaVA's load_pretrained_model cannot load it (as {found.name!r}): "
            f"{type(err).__name__}: {err}"
        ) from err
    kind, wanted = (_family(one) for one in (type(model.config).model_type, found.config.get("model_type")))
    if kind != wanted and not (kind == "qwen" and wanted == "qwen2"):  # LLaVA-NeXT's own name for it
        raise HostMismatchError(f"{found.path} is a {wanted}; this LLaVA loads it as a {kind}, which it is not")
    if found.base is not None and "device" not in takes and not _tower_was_trained(found.config):
        # LLaVA-NeXT makes the tower before it reads the base's weights, which have none for it: they stay unset.
        tower = model.get_vision_tower()
        tower.is_loaded = False
        with _quiet():
            tower.load_model()
        tower.to(device)
    if processor is None:
        raise HostMismatchError(f"{found.path}: LLaVA's load_pretrained_model loaded no vision tower")
    return tokenizer, model.to(dtype).eval(), processor, length


def _tower_was_trained(config: dict[str, Any]) -> bool:
    return bool(config.get(LLaVA.loads_tower)) or "mm_vision_tower" in str(config.get("mm_tunable_parts"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what LLaVA prints off standard output, and transformers from listing the tower's weights as unused."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.set_verbosity(before)
