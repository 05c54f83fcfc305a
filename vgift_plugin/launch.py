"""`vgift run`: any unedited command, with the plugin attached to whatever Python below it imports LLaVA's training."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints
from urllib.parse import quote, unquote

from .config import Flags
from .errors import ConfigError, HookError

logger = logging.getLogger(__name__)
# DeepSpeed hands variables to other nodes only where their names start with PYTHON (and a few others), unquoted in a
# shell command, hence the name and the percent encoding.
VARIABLE = "PYTHON_VGIFT"
BOOTSTRAP = Path(__file__).parent / "_bootstrap"
PATIENCE_S = 300
NO_HOOK_STATUS = 3


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the `--ssl_*` flags to a parser; those not given are absent from its result."""
    hints = get_type_hints(Flags)
    for flag in fields(Flags):
        kind = (get_args(hints[flag.name]) or (hints[flag.name],))[0]
        shown = "" if flag.default is None else f" (default {flag.default})"
        parser.add_argument(
            f"--{flag.name}", type=kind, default=argparse.SUPPRESS, metavar="", help=flag.metadata["help"] + shown
        )


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
        HookError: the command succeeded, tasks were asked for, and no training was ever reached.
    """
    Flags.of(flags).resolve()
    for name in ("ssl_image_folder", "ssl_config", "ssl_replay", "ssl_pairs"):  # the script may change its folder
        if flags.get(name) is not None:
            flags = {**flags, name: os.path.abspath(flags[name])}
    wanted = Flags.of(flags).wanted
    with tempfile.TemporaryDirectory(prefix="vgift-run-") as receipts:
        payload = json.dumps({"flags": flags, "receipts": receipts})
        path = os.pathsep.join(filter(None, [str(BOOTSTRAP), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, VARIABLE: quote(payload, safe="")}
        with _signals_passed_on() as children:
            try:
                process = subprocess.Popen(command, env=environment)
            except OSError as err:
                raise ConfigError(f"cannot start {command[0]!r}: {err.strerror}") from err
            children.append(process)
            status = _wait(process, receipts if wanted else None)
        events = {file.name.partition("-")[0] for file in Path(receipts).iterdir()}
    if wanted and status == 0 and not events & {"mixed", "plain"}:
        reached = (
            "LLaVA's train() was imported and never made its training set"
            if "attached" in events
            else "no Python below it imported llava.train.train with the hook in place"
        )
        raise HookError(
            f"`{' '.join(command)}` ended well WITHOUT self-supervised samples: {reached}.\n"
            "Common causes: the script sets PYTHONPATH anew (append instead: PYTHONPATH=.:$PYTHONPATH), Python runs "
            "with -E, -I or -S, training happens in a copy of train.py under another name (call vgift_plugin.attach() "
            "there), or on other machines only, which got neither PYTHONPATH nor " + VARIABLE + "."
        )
    return status if status >= 0 else 128 - status


@contextmanager
def _signals_passed_on() -> Iterator[list[subprocess.Popen]]:
    """Hands signals sent to this process alone on to the commands put into the list; the old handlers come back.

    An interrupt is left to the command: the terminal sends it there too.
    """

    def pass_on(number, _):
        if not children:
            raise SystemExit(128 + number)
        for process in children:
            process.send_signal(number)

    children: list[subprocess.Popen] = []
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2), pass_on)
    handlers[signal.SIGINT] = lambda *_: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen, receipts: str | None) -> int:
    """Waits for the command, and warns once where no hook has fired for long."""
    try:
        return process.wait(PATIENCE_S if receipts else None)
    except subprocess.TimeoutExpired:
        if not os.listdir(receipts):
            logger.warning(
                "vgift: %d minutes, and no Python below this command has imported llava.train.train yet. "
                "If training has begun, it runs WITHOUT self-supervised samples.",
                PATIENCE_S // 60,
            )
        return process.wait()


def attach_here(module: ModuleType) -> None:
    """Attaches the plugin to the training module with the flags of the `vgift run` above this process.

    Raises:
        HookError: the flags did not get here.
    """
    from .host import attach

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


def refuse_main(main: ModuleType) -> None:
    """Refuses LLaVA's train.py as the main program: its names live in `__main__`, where no import hook sees them.

    Raises:
        HookError: saying what to run instead.
    """
    path = Path(getattr(main, "__file__", None) or "").resolve()
    if path.parts[-3:] == ("llava", "train", "train.py"):
        raise HookError(
            f"{path} runs as the main program, where vgift run cannot reach it, and would train WITHOUT "
            "self-supervised samples. Start llava/train/train_mem.py or llava/train/train_xformers.py instead, as "
            "LLaVA's own scripts do, or, with the same arguments: "
            'python -c "from llava.train.train import train; train()"'
        )
