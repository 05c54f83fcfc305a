"""`vgift run`: runs an unedited command, with the plugin attached in every Python below it that trains a LLaVA."""

from __future__ import annotations

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
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, unquote

from .errors import ConfigError, HookError, HostMismatchError, TaskError, VgiftError
from .hosts import HOSTS
from .methods.settings import Settings, all_flags, with_absolute_paths

logger = logging.getLogger(__name__)
# DeepSpeed passes variables to other nodes only if their names start with PYTHON (or a few others), unquoted in a shell
# command; hence the name and the percent encoding.
VARIABLE = "PYTHON_VGIFT"
MODULES_VARIABLE = "PYTHON_VGIFT_MODULES"  # read by the bootstrap without imports
BOOTSTRAP = Path(__file__).parent / "_bootstrap"
PATIENCE_S = 300


class RunCommand:
    """Run an unedited training command with the methods that its flags ask for.

    A flag in the training script itself overrides the same flag here. The exit status is the command's own, or 3 if it
    succeeded without ever reaching the plugin.
    """

    OPTIONS = tuple(all_flags())
    EXAMPLE = "example:\n  vgift run --ssl_tasks rotation,color --ssl_ratio 0.05 -- bash scripts/v1_5/finetune.sh"

    def __init__(self, flags: dict, command: list[str]):
        self.flags, self.command = flags, command

    def run(self) -> int:
        """Returns the command's exit status; see `run`."""
        return run(self.command, self.flags)


def run(command: list[str], flags: dict) -> int:
    """Runs a command with the hook in every Python below it.

    Args:
        command: the program and its arguments.
        flags: {flag: value}, defaults for the training script's own flags.

    Returns:
        the command's exit status; 128 + n if signal n ended it.

    Raises:
        ConfigError: a flag is invalid or the command cannot be started; nothing was run.
        HookError: the command succeeded, but no training was reached although the flags ask for a method.
    """
    settings = Settings(flags)
    settings.check()
    flags = with_absolute_paths(flags)  # the script may change its working directory
    missing = settings.words()  # what a run that never reached the hook lacks
    with tempfile.TemporaryDirectory(prefix="vgift-run-") as receipts:
        payload = json.dumps({"flags": flags, "receipts": receipts})
        path = os.pathsep.join(filter(None, [str(BOOTSTRAP), os.environ.get("PYTHONPATH")]))
        modules = ",".join(name for host in HOSTS for name in host.modules)
        environment = {**os.environ, "PYTHONPATH": path, VARIABLE: quote(payload, safe=""), MODULES_VARIABLE: modules}
        with _signals_passed_on() as adopt:
            try:
                process = subprocess.Popen(command, env=environment)
            except OSError as err:
                raise ConfigError(f"cannot start {command[0]!r}: {err.strerror}") from err
            adopt(process)
            status = _wait(process, receipts if missing else None, missing)
        events = {file.name.partition("-")[0] for file in Path(receipts).iterdir()}
    if missing and status == 0 and not events & {"applied", "plain"}:
        reached = (
            "the training code was imported and never made its training set"
            if "attached" in events
            else "no Python below it parsed a training code's arguments with the hook in place"
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
    """Passes signals sent to this process on to adopted commands, and restores the old handlers at the end.

    Signals that arrive before a command has started are passed on when it has. Interrupts are ignored, since the
    terminal sends them to the command too.
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


def _wait(process: subprocess.Popen, receipts: str | None, missing: str) -> int:
    """Returns the exit status of the command; warns once if no hook has fired for `PATIENCE_S` seconds."""
    try:
        return process.wait(PATIENCE_S if receipts else None)
    except subprocess.TimeoutExpired:
        if not os.listdir(receipts):
            logger.warning(
                "vgift: %d minutes, and no Python below this command has come to a known training code yet. "
                "If training has begun, it runs WITHOUT %s.",
                PATIENCE_S // 60,
                missing,
            )
        return process.wait()


def attach(module: ModuleType | None = None, defaults: dict | None = None) -> None:
    """Lets a training module parse and apply the plugin's flags. Attaching twice has no further effect.

    Args:
        module: the training module; `llava.train.train` by default.
        defaults: {flag: value} for flags missing on the command line; by default those of the `vgift run` that started
            this process, if any.
    """
    from . import hook

    if defaults is None and VARIABLE in os.environ:
        attach_here(importlib.import_module(hook.DEFAULT) if module is None else module)
    else:
        hook.attach(module, defaults)


def attach_here(module: ModuleType) -> None:
    """Attaches the plugin to the training module with the flags of the `vgift run` that started this process.

    Raises:
        HookError: the flags did not reach this process.
    """
    from . import hook

    if VARIABLE not in os.environ:
        raise HookError(
            f"PYTHONPATH from vgift run got here and its flags did not: forward the variable {VARIABLE} as well "
            "(for example srun --export=ALL, or a line in .deepspeed_env)"
        )
    try:
        payload = json.loads(unquote(os.environ[VARIABLE]))
        flags, receipts = dict(payload["flags"]), Path(payload["receipts"])
    except (ValueError, KeyError, TypeError) as err:
        raise HookError(
            f"the variable {VARIABLE} is damaged ({type(err).__name__}: {err}): {os.environ[VARIABLE]!r:.80}. "
            "vgift run sets it; pass it on as it is, or unset it"
        ) from None
    _show_errors_plainly()

    def leave_receipt(event: str) -> None:
        try:
            (receipts / f"{event}-{os.getpid()}").touch()
        except OSError:  # on another machine, where the launcher's folder does not exist
            logger.debug("no receipt left for %s", event)

    try:
        hook.attach(module, flags, leave_receipt)
    except HostMismatchError as err:
        if flags:
            raise
        hook.show_log()
        logger.warning("%s", err)


def _show_errors_plainly() -> None:
    """Shows errors meant for users without a traceback, where nothing catches them."""
    before = sys.excepthook

    def excepthook(kind, error, traceback):
        if isinstance(error, VgiftError) and not isinstance(error, TaskError):
            sys.stderr.write(f"[vgift] {error}\n")
        else:
            before(kind, error, traceback)

    sys.excepthook = excepthook


def watch_parser(hf_argparser: ModuleType) -> None:
    """Attaches the plugin to any module that parses its `DataArguments` and creates the data module.

    This covers a training file run as the main program, a renamed copy, and forks that import the two names. The
    parser's constructor is wrapped until then, and restored.
    """
    from .hosts.base import ARGUMENTS, MAKE

    parser, original = hf_argparser.HfArgumentParser, hf_argparser.HfArgumentParser.__init__

    @functools.wraps(original)
    def __init__(self, dataclass_types, *args, **kwargs):
        caller = sys.modules.get(sys._getframe(1).f_globals.get("__name__", ""))
        own = getattr(caller, ARGUMENTS, None)
        types = tuple(dataclass_types) if isinstance(dataclass_types, (list, tuple)) else (dataclass_types,)
        if caller is not None and own in types and hasattr(caller, MAKE):
            parser.__init__ = original
            attach_here(caller)
            types = tuple(getattr(caller, ARGUMENTS) if one is own else one for one in types)
        original(self, types, *args, **kwargs)

    parser.__init__ = __init__
