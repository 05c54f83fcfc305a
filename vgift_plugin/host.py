"""The only module that knows LLaVA: the hook, the check of its seams, the one-record view and the self-test.

LLaVA's `train()` looks up `DataArguments` and `make_supervised_data_module` as globals of its module when it is called,
and hands all that the latter returns to the trainer. Replacing these two names is therefore enough: flags parse in the
host's own parser, and dataset and callback reach the host's own trainer, which stays as it is.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from PIL import Image

from . import __version__
from .config import Flags, counts
from .errors import ConfigError, HostMismatchError, SelfTestError
from .mixing import MixedDataset, Stream
from .sources import choose
from .task import Sample

logger = logging.getLogger(__name__)
HOST = "llava.train.train"
ARGUMENTS, MAKE = "DataArguments", "make_supervised_data_module"
MAKE_PARAMETERS = ("tokenizer", "data_args")
SELF_TEST_SAMPLES = 4  # of each task: wordings and answers differ between them
IGNORE_INDEX = -100  # torch's and LLaVA's label for "no loss here"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # None is the system's folder of temporary files
SAMPLE_PREFIX = "vgift-sample-"

_originals: dict[ModuleType, dict[str, Any]] = {}


def attach(
    module: ModuleType | None = None,
    defaults: dict[str, Any] | None = None,
    notify: Callable[[str], None] = lambda event: None,
) -> None:
    """Lets LLaVA's training code parse the `--ssl_*` flags and mix in what they ask for. Attaching twice is harmless.

    Args:
        module: the training module; `llava.train.train` by default.
        defaults: {flag: value} for flags that the command line does not have.
        notify: told `attached`, and `mixed` or `plain` once the data module was made with or without samples.

    Raises:
        HostMismatchError: the module has not the two names, or not as expected; nothing was changed.
    """
    module = importlib.import_module(HOST) if module is None else module
    if module in _originals:
        return
    check(module)
    show_log()
    given = defaults or {}
    _originals[module] = {name: getattr(module, name) for name in (ARGUMENTS, MAKE)}
    setattr(module, ARGUMENTS, _with_flags(getattr(module, ARGUMENTS), Flags.of(given)))
    setattr(module, MAKE, _with_samples(module, getattr(module, MAKE), given, notify))
    notify("attached")


def detach(module: ModuleType | None = None) -> None:
    """Puts the two replaced names back, the very same objects. Detaching what is not attached is harmless."""
    module = sys.modules.get(HOST) if module is None else module
    for name, original in _originals.pop(module, {}).items():
        setattr(module, name, original)


def check(module: ModuleType) -> None:
    """Checks the seams the plugin needs.

    Raises:
        HostMismatchError: naming each seam with what was expected and what was found.
    """
    problems = []
    arguments, make = getattr(module, ARGUMENTS, None), getattr(module, MAKE, None)
    if not (isinstance(arguments, type) and is_dataclass(arguments)):
        problems.append(f"{ARGUMENTS}: expected a dataclass, found {arguments!r}")
    elif missing := {"data_path", "image_folder"} - {f.name for f in fields(arguments)}:
        problems.append(f"{ARGUMENTS}: expected the fields data_path and image_folder, {sorted(missing)} missing")
    if not callable(make):
        problems.append(f"{MAKE}: expected a function of ({', '.join(MAKE_PARAMETERS)}), found {make!r}")
    elif not set(MAKE_PARAMETERS) <= set(inspect.signature(make).parameters):
        problems.append(
            f"{MAKE}: expected the parameters ({', '.join(MAKE_PARAMETERS)}), found {inspect.signature(make)}"
        )
    train = getattr(module, "train", None)
    if inspect.isfunction(train):  # absent while the module is still being executed
        unused = [name for name in (ARGUMENTS, MAKE) if name not in train.__code__.co_names]
        problems += [f"{name}: expected train() to look it up as a global, it does not" for name in unused]
    if problems:
        where = getattr(module, "__file__", None) or module.__name__
        raise HostMismatchError(
            "\n".join(
                [
                    f"{where} is not a LLaVA training module this version of vgift-plugin can extend:",
                    *(f"  - {problem}" for problem in problems),
                    "Nothing was changed. Tested hosts are listed in the README; a fork needs these two names in the "
                    "module that trains (or pass that module to vgift_plugin.attach).",
                ]
            )
        )


def show_log() -> None:
    """Makes this package's messages visible on stderr, all on rank 0, warnings elsewhere: LLaVA sets up no logging."""
    from .callbacks import is_rank_zero

    package = logging.getLogger(__package__)
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[vgift] %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO if is_rank_zero() else logging.WARNING)
        package.propagate = False


def _with_flags(base: type, defaults: Flags) -> type:
    """Returns a subclass of the host's argument dataclass with the flags, which checks them as they are parsed."""

    def __post_init__(self):
        if hasattr(base, "__post_init__"):
            base.__post_init__(self)
        Flags.of(self).resolve()

    hints = get_type_hints(Flags)
    added = [
        (f.name, hints[f.name], field(default=getattr(defaults, f.name), metadata=f.metadata)) for f in fields(Flags)
    ]
    inherited = {"__post_init__": __post_init__, "__module__": base.__module__, "__doc__": base.__doc__}
    return make_dataclass(base.__name__, added, bases=(base,), namespace=inherited)


def _with_samples(module: ModuleType, original: Callable, given: dict[str, Any], notify: Callable) -> Callable:
    """Returns the host's function with its training set replaced by a mixture where the flags ask for one."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def make_supervised_data_module(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        data_module = original(*args, **kwargs)
        flags = Flags.of(arguments["data_args"])
        for name, value in given.items():
            if getattr(flags, name) != value:
                own = getattr(flags, name)
                logger.info("--%s: the training script's own %s wins over %s from vgift run", name, own, value)
        asks = flags.resolve()
        if asks and flags.ssl_ratio > 0:
            data_module = _mixed(module, data_module, flags, asks, arguments["tokenizer"], arguments["data_args"])
            notify("mixed")
        else:
            if asks:
                logger.info("--ssl_ratio 0: no self-supervised sample is mixed in, the training set is LLaVA's own")
            notify("plain")
        return data_module

    return make_supervised_data_module


def _mixed(module: ModuleType, data_module: dict, flags: Flags, asks: tuple, tokenizer: Any, data_args: Any) -> dict:
    from .callbacks import MixCallback, mix_table

    if not getattr(data_args, "is_multimodal", False):
        raise ConfigError("--ssl_tasks needs a model that sees: this run has no --vision_tower")
    sweep()
    base = data_module["train_dataset"]
    source = choose(flags.ssl_image_folder, flags.ssl_images, base.list_data_dict, data_args.image_folder)
    parts = [
        (Stream(ask.task, source, flags.ssl_seed), count)
        for ask, count in zip(asks, counts(asks, flags.ssl_ratio, len(base)), strict=True)
        if count
    ]
    view = OneRecordView(base)
    for stream, _ in parts:
        self_test(stream, view, tokenizer, module.conversation_lib)
    lengths: dict[str, list[int]] = {"lengths": [], "modality_lengths": []}
    for stream, _ in parts:
        first = stream(0, 0)
        for name, values in lengths.items():
            values.append(getattr(view.of(first, stream.task.name, "image.ppm"), name)[0])
    dataset = MixedDataset(base, parts, view, lengths)
    mix = {
        "vgift_plugin": __version__,
        "flags": flags.as_dict(),
        "samples": len(dataset),
        "base": {"samples": len(base), "share": len(base) / len(dataset), "source": data_args.data_path},
        "tasks": {
            stream.task.name: {
                "samples": count,
                "share": count / len(dataset),
                "chance": stream.task.chance,
                "knobs": asdict(stream.task),
            }
            for stream, count in parts
        },
        "images": {"count": len(source), "source": source.where},
    }
    logger.info("self-supervised samples are mixed in; each task passed its self-test\n%s", mix_table(mix))
    return {
        **data_module,
        "train_dataset": dataset,
        "callbacks": [*data_module.get("callbacks", ()), MixCallback(dataset, mix)],
    }


class OneRecordView:
    """Speaks LLaVA: a sample goes through the host's own `__getitem__`, as the only record of a copy of its dataset.

    So padding, anyres, chat template, tokenizer and extra keys are the host's, on upstream LLaVA and on its forks.

    Args:
        base: the host's dataset; it is not changed.
    """

    def __init__(self, base: Any):
        self.base = base

    def __call__(self, sample: Sample, name: str) -> Any:
        """Returns what the host returns for the sample: in LLaVA a dict with input_ids, labels and image."""
        with lossless_file(sample.image) as path:
            return self.of(sample, name, path)[0]

    def of(self, sample: Sample, name: str, path: str) -> Any:
        """Returns a copy of the host's dataset that has this one record, its picture to be found at `path`."""
        view = copy.copy(self.base)
        if view.data_args.image_folder is None:  # the host joins it with the path, which is absolute
            view.data_args = copy.copy(view.data_args)
            view.data_args.image_folder = ""
        view.list_data_dict = [
            {
                "id": f"vgift-{name}",
                "image": path,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{sample.instruction}"},
                    {"from": "gpt", "value": sample.response},
                ],
            }
        ]
        return view


@contextmanager
def lossless_file(image: Image.Image) -> Iterator[str]:
    """Yields the path of a PPM file that holds the image bit by bit, for as long as the block runs.

    It lies in memory (/dev/shm; about 1 ms), on disk only where the system has no such folder. It has a real name,
    unlike a memfd's /proc/self/fd/N, which Pillow 10.1 to 10.4 resolve to a name that cannot be opened.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    with tempfile.NamedTemporaryFile(prefix=SAMPLE_PREFIX, suffix=".ppm", dir=MEMORY) as file:
        image.save(file, "PPM")
        file.flush()
        yield file.name


def sweep(folder: str | None = MEMORY, older_than_s: float = 3600) -> None:
    """Removes samples that killed workers left in memory: own files, far older than a sample lives."""
    for path in Path(folder).glob(f"{SAMPLE_PREFIX}*.ppm") if folder else ():
        with suppress(OSError):  # another user's, or just removed by another rank
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def self_test(stream: Stream, view: OneRecordView, tokenizer: Any, conversation_lib: Any) -> None:
    """Sends a few samples through the host: the unmasked labels must decode to the answer, the rest hold the question.

    LLaVA masks every label of a sample whose tokenisation surprises it, prints a line, and trains on nothing.

    Args:
        stream: the task's samples.
        view: the host.
        tokenizer: the run's tokenizer.
        conversation_lib: the host's `llava.conversation`, which holds the run's chat template.

    Raises:
        SelfTestError: naming task, template and tokenizer, and what was found.
    """
    conversation = conversation_lib.default_conversation
    names = [name for name, template in conversation_lib.conv_templates.items() if template is conversation]
    who = (
        f"task {stream.task.name} with template {(names or [conversation.version])[0]!r} and tokenizer "
        f"{type(tokenizer).__name__} ({getattr(tokenizer, 'name_or_path', '?')})"
    )
    for j in range(SELF_TEST_SAMPLES):
        sample = stream(0, j)
        item = view(sample, f"{stream.task.name}-self-test")
        labels = item["labels"]
        taught = labels[labels != IGNORE_INDEX].tolist()
        if not taught:
            raise SelfTestError(
                f"{who}: LLaVA masked every label, so nothing would be learned from these samples. "
                "The template does not fit the tokenizer; choose another --version, or the tokenizer it was made for."
            )
        text = without_template(tokenizer.decode(taught, skip_special_tokens=True), conversation)
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


def without_template(text: str, conversation: Any) -> str:
    """Returns decoded labels without the template's separators and role markers, which some templates supervise too."""
    markers = [f"{role}:" for role in conversation.roles] + [*conversation.roles, conversation.sep, conversation.sep2]
    for marker in filter(None, (marker.strip() for marker in markers if marker)):
        text = text.replace(marker, " ")
    return " ".join(text.split())
