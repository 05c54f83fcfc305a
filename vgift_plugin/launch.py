"""`vgift run`: any unedited command, with the plugin attached to whatever Python below it imports LLaVA's training."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints
from urllib.parse import quote, unquote

from .errors import ConfigError, HookError
from .methods.l2t.templates import read as read_templates
from .methods.stic.preferences import read as read_preferences
from .methods.vgift.flags import PATHS, Flags

logger = logging.getLogger(__name__)
# DeepSpeed hands variables to other nodes only where their names start with PYTHON (and a few others), unquoted in a
# shell command, hence the name and the percent encoding.
VARIABLE = "PYTHON_VGIFT"
BOOTSTRAP = Path(__file__).parent / "_bootstrap"
PATIENCE_S = 300
NO_HOOK_STATUS = 3


def add_flags(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Adds the training flags that begin with `prefix` to a parser; those not given are absent from its result."""
    hints = get_type_hints(Flags)
    for flag in fields(Flags):
        if not flag.name.startswith(prefix):
            continue
        kind = (get_args(hints[flag.name]) or (hints[flag.name],))[0]
        shown = "" if flag.default is None else f" (default {flag.default})"
        reads = {"type": _truth, "nargs": "?", "const": True} if kind is bool else {"type": kind}
        parser.add_argument(
            f"--{flag.name}", default=argparse.SUPPRESS, metavar="", help=flag.metadata["help"] + shown, **reads
        )


def _truth(text: str) -> bool:
    """Reads what the host's own parser reads for a switch: `True`, `no`, `1`."""
    words = {"true": True, "t": True, "yes": True, "y": True, "1": True}
    words |= {"false": False, "f": False, "no": False, "n": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return words[text.lower()]


def flags_of(args: argparse.Namespace) -> dict:
    """Returns the flags that were given, as {name: value}."""
    return {f.name: getattr(args, f.name) for f in fields(Flags) if hasattr(args, f.name)}


def run(command: list[str], flags: dict) -> int:
    """Runs a command with the hook in every Python below it.

    Args:
        command: the program and its arguments.
        flags: {flag: value}, defaults for the training script's own flags.

    Returns:
        the command's exit status; 128 + n where signal n ended it.

    Raises:
        ConfigError: a flag is wrong or the command cannot be started; nothing was run.
        HookError: the command succeeded, something was asked for, and no training was ever reached.
    """
    Flags.of(flags).resolve()
    if flags.get("instruct_templates") is not None:
        read_templates(flags["instruct_templates"])
    if flags.get("preference_data") is not None:
        read_preferences(flags["preference_data"])
    for name in PATHS:  # the script may change its folder
        if flags.get(name) is not None:
            flags = {**flags, name: os.path.abspath(flags[name])}
    wanted, missing = Flags.of(flags).wanted, _missing(Flags.of(flags))
    with tempfile.TemporaryDirectory(prefix="vgift-run-") as receipts:
        payload = json.dumps({"flags": flags, "receipts": receipts})
        path = os.pathsep.join(filter(None, [str(BOOTSTRAP), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, VARIABLE: quote(payload, safe="")}
        with _signals_passed_on() as adopt:
            try:
                process = subprocess.Popen(command, env=environment)
            except OSError as err:
                raise ConfigError(f"cannot start {command[0]!r}: {err.strerror}") from err
            adopt(process)
            status = _wait(process, receipts if wanted else None, missing)
        events = {file.name.partition("-")[0] for file in Path(receipts).iterdir()}
    if wanted and status == 0 and not events & {"mixed", "plain"}:
        reached = (
            "LLaVA's train() was imported and never made its training set"
            if "attached" in events
            else "no Python below it parsed LLaVA's arguments with the hook in place"
        )
        raise HookError(
            f"`{' '.join(command)}` ended well WITHOUT {missing}: {reached}.\n"
            "Common causes: the script sets PYTHONPATH anew (append instead: PYTHONPATH=.:$PYTHONPATH), Python runs "
            "with -E, -I or -S, the training code parses its arguments in another way (call vgift_plugin.attach there, "
            "with its module), or training ran on other machines only, which got neither PYTHONPATH nor "
            + VARIABLE
            + "."
        )
    return status if status >= 0 else 128 - status


@contextmanager
def _signals_passed_on() -> Iterator[Callable[[subprocess.Popen], None]]:
    """Hands signals sent to this process alone on to the commands adopted; the old handlers come back.

    What arrives while a command is being started waits for it. An interrupt is left to the command: the terminal sends
    it there too.
    """

    def pass_on(number, _):
        if not children:
            waiting.append(number)
        for process in children:
            process.send_signal(number)

    def adopt(process: subprocess.Popen) -> None:
        children.append(process)
        while waiting:
            process.send_signal(waiting.pop())

    children: list[subprocess.Popen] = []
    waiting: list[int] = []
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), pass_on)
    handlers[signal.SIGINT] = lambda *_: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield adopt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _missing(flags: Flags) -> str:
    """Returns what a run that never met the hook went without."""
    missing = ["self-supervised samples"] * flags.makes_samples
    missing += ["the loss on instructions"] * flags.learns_instructions
    missing += [f"--{name}" for name in ("visual_token_drop", "tune_vision_tower") if getattr(flags, name)]
    missing += ["preference pairs"] * (flags.preference_data is not None)
    return " and ".join(missing)


def _wait(process: subprocess.Popen, receipts: str | None, missing: str) -> int:
    """Waits for the command, and warns once where no hook has fired for long."""
    try:
        return process.wait(PATIENCE_S if receipts else None)
    except subprocess.TimeoutExpired:
        if not os.listdir(receipts):
            logger.warning(
                "vgift: %d minutes, and no Python below this command has come to LLaVA's training code yet. "
                "If training has begun, it runs WITHOUT %s.",
                PATIENCE_S // 60,
                missing,
            )
        return process.wait()


def attach(module: ModuleType | None = None, defaults: dict | None = None) -> None:
    """Lets a training module parse the `--ssl_*` flags and mix in what they ask for. Attaching twice is harmless.

    Args:
        module: the training module; `llava.train.train` by default.
        defaults: {flag: value} for flags that the command line does not have; those of the `vgift run` above this
            process, if there is one.
    """
    from . import hook
    from .hook import attach

    if defaults is None and VARIABLE in os.environ:
        attach_here(importlib.import_module(hook.HOST) if module is None else module)
    else:
        attach(module, defaults)


def attach_here(module: ModuleType) -> None:
    """Attaches the plugin to the training module with the flags of the `vgift run` above this process.

    Raises:
        HookError: the flags did not get here.
    """
    from .hook import attach

    if VARIABLE not in os.environ:
        raise HookError(
            f"PYTHONPATH from vgift run got here and its flags did not: forward the variable {VARIABLE} as well "
            "(for example srun --export=ALL, or a line in .deepspeed_env)"
        )
    payload = json.loads(unquote(os.environ[VARIABLE]))

    def leave_receipt(event: str) -> None:
        try:
            Path(payload["receipts"], f"{event}-{os.getpid()}").touch()
        except OSError:  # another machine: the launcher's folder is not there, and nobody looks
            logger.debug("no receipt left for %s", event)

    attach(module, payload["flags"], leave_receipt)


def watch_parser(hf_argparser: ModuleType) -> None:
    """Attaches the plugin to whatever module parses its `DataArguments` and makes the data module, whatever its name.

    So to a training file that is the main program, to a renamed copy, and to forks that import the two names. The
    parser's constructor is wrapped until then, and put back.
    """
    from . import hook

    parser, original = hf_argparser.HfArgumentParser, hf_argparser.HfArgumentParser.__init__

    @functools.wraps(original)
    def __init__(self, dataclass_types, *args, **kwargs):
        caller = sys.modules.get(sys._getframe(1).f_globals.get("__name__"))
        own = getattr(caller, hook.ARGUMENTS, None)
        types = tuple(dataclass_types) if isinstance(dataclass_types, (list, tuple)) else (dataclass_types,)
        if own in types and hasattr(caller, hook.MAKE):
            parser.__init__ = original
            attach_here(caller)
            types = tuple(getattr(caller, hook.ARGUMENTS) if one is own else one for one in types)
        original(self, types, *args, **kwargs)

    parser.__init__ = __init__
