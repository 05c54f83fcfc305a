"""The command line. It only dispatches: each command is a class in the module it belongs to, imported when called.

A command's fields are its options (see `data.arguments.option`); the first paragraph of its docstring is its help,
followed by `EXAMPLE`. `run()` returns the text to print, or (text, exit status); that of `vgift run`, an exit status.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import io
import logging
import os
import sys

from . import __version__
from .data.arguments import add_options, given
from .errors import VgiftError

# {command: (module, class, what it does)}, in the order of `vgift --help`.
COMMANDS = {
    "run": ("launch", "RunCommand", "run an unedited training command with the methods that its flags ask for"),
    "doctor": ("doctor", "Doctor", "check environment, training code and its seams"),
    "tasks": ("tasks.catalogue", "ListTasks", "list the self-supervised tasks: chance level, knobs, one sample"),
    "preview": ("methods.vgift.preview", "Preview", "look at the samples that training would see"),
    "audit": ("audit.audit", "Audit", "how far solvers get that do not look, on your photographs"),
    "probe": ("probe.probe", "Probe", "whether a trained model looks; how much data needs its pictures"),
    "export": ("methods.vgift.export.job", "ExportSamples", "write the samples to files, for other trainers"),
    "pairs": ("methods.vgift.pairs.job", "MatchPairs", "match points of different photographs, for --ssl_pairs"),
    "templates": ("methods.l2t.templates", "FindTemplates", "find task templates, for --instruct_templates"),
    "labels": ("methods.l2t.show", "ShowLabels", "show which tokens of some records are learned"),
    "export-tower": ("methods.vitp.export_tower", "ExportTower", "take the trained vision tower out of a checkpoint"),
    "stic prefer": ("methods.stic.prefer", "Prefer", "a better and a worse description of each photograph"),
    "stic describe": ("methods.stic.describe", "Describe", "records with a description before the question"),
    "stic preview": ("methods.stic.page", "PreviewPairs", "look at pairs of descriptions"),
    "patch": ("patch", "PatchCommand", "put three lines that attach the plugin into a checkout, or take them out"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `vgift`; returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    own, below = argv[:split], argv[split + 1 :]
    name, rest = _command(own)
    if name is None:
        return _top_level(own)
    module, kind, _ = COMMANDS[name]
    command = getattr(importlib.import_module(f"{__package__}.{module}"), kind)
    options = getattr(command, "OPTIONS", (command,))
    parser = argparse.ArgumentParser(
        prog=f"vgift {name}",
        description=" ".join((command.__doc__ or "").split("\n\n")[0].split()),
        epilog=getattr(command, "EXAMPLE", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for one in options:
        add_options(parser, one)
    args = parser.parse_args([_underscored(word) for word in rest])
    values = {key: value for one in options for key, value in given(one, args).items()}
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    logging.basicConfig(level=logging.INFO, format="[vgift] %(message)s")
    try:
        if name == "run":
            if not below:
                parser.error(
                    "no command to run; write it after `--`: vgift run --ssl_tasks rotation -- bash finetune.sh"
                )
            return command(values, below).run()
        if below:
            parser.error("only `vgift run` takes a command after `--`")
        told = command(**values).run()
        text, status = told if isinstance(told, tuple) else (told, 0)
        print(text, flush=True)
        return status
    except VgiftError as err:
        print(f"vgift: error: {err}", file=sys.stderr)
        return err.exit_status
    except BrokenPipeError:  # `vgift tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as err:
        full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = ". Make room and run the same command again" if full else ""
        print(f"vgift: error: {err.filename or name}: {err.strerror or err}{cure}", file=sys.stderr)
        logging.getLogger(__package__).debug("", exc_info=err)
        return 2


def _command(words: list[str]) -> tuple[str | None, list[str]]:
    """Returns the command named by the first one or two words, and the words after it."""
    for length in (2, 1):
        if " ".join(words[:length]) in COMMANDS:
            return " ".join(words[:length]), words[length:]
    return None, words


def _top_level(words: list[str]) -> int:
    """Handles `vgift`, `vgift --help`, `vgift --version` and mistyped commands; returns the exit status."""
    if words[:1] == ["--version"]:
        print(f"vgift-plugin {__version__}")
        return 0
    shown = "\n".join(f"  {name:<14} {told}" for name, (_, _, told) in COMMANDS.items())
    if words and words[0] not in ("-h", "--help"):
        listed = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
        near = listed or difflib.get_close_matches(" ".join(words[:2]), COMMANDS, n=1)
        near = near or difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"there are\n{shown}"
        print(f"vgift: error: there is no command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    print(f"usage: vgift COMMAND ...\n\n{__package__.replace('_', '-')} {__version__}\n\ncommands:\n{shown}\n")
    print("vgift COMMAND --help tells more.")
    return 0


def _underscored(word: str) -> str:
    """Returns a flag with underscores: `--batch_size` for `--batch-size`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


if __name__ == "__main__":
    sys.exit(main())
