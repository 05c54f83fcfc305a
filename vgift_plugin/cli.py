"""The command line. It only dispatches: each command lives with the thing it commands and is imported when called."""

from __future__ import annotations

import argparse
import sys

from . import __version__
from .errors import HookError, VgiftError


def _run(args: argparse.Namespace) -> int:
    from .launch import NO_HOOK_STATUS, flags_of, run

    try:
        return run(args.command, flags_of(args))
    except HookError as err:
        print(f"vgift: error: {err}", file=sys.stderr)
        return NO_HOOK_STATUS


def _preview(args: argparse.Namespace) -> int:
    from .launch import flags_of
    from .preview import preview

    print(preview(flags_of(args), args.image_folder, args.data_path, args.n, args.output))
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from .preview import describe_tasks

    print(describe_tasks(args.markdown))
    return 0


def _flags(args: argparse.Namespace) -> int:
    from .preview import flag_table

    print(flag_table())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    report, healthy = examine()
    print(report)
    return 0 if healthy else 1


def _parser() -> argparse.ArgumentParser:
    from .launch import add_flags

    parser = argparse.ArgumentParser(
        prog="vgift", description="Self-supervised, visually grounded samples in LLaVA fine-tuning."
    )
    parser.add_argument("--version", action="version", version=f"vgift-plugin {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, function, help, epilog):
        sub = commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.set_defaults(function=function)
        return sub

    sub = command(
        "run",
        _run,
        "run an unedited training command with self-supervised samples mixed in",
        "example:\n  vgift run --ssl_tasks rotation,color --ssl_ratio 0.05 -- bash scripts/v1_5/finetune.sh\n\n"
        "A flag in the training script itself wins over the same flag here. Exit status: the command's own; 3 where\n"
        "it ended well without ever meeting the plugin.",
    )
    add_flags(sub)

    sub = command(
        "preview",
        _preview,
        "look at the samples training would see: a page (.html) or a sheet (.png); needs neither LLaVA nor torch",
        "example:\n  vgift preview --ssl_tasks rotation,color,correspondence --image_folder DIR -n 12 -o gallery.html",
    )
    add_flags(sub)
    sub.add_argument("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
    sub.add_argument("--data_path", metavar="JSON", help="LLaVA records whose images are used, instead of all in DIR")
    sub.add_argument("-n", type=int, default=12, metavar="N", help="samples of each task (default 12)")
    sub.add_argument("-o", "--output", required=True, metavar="FILE", help="gallery.html or sheet.png")

    sub = command("tasks", _tasks, "list the tasks: chance level, knobs, one sample", "example:\n  vgift tasks")
    sub.add_argument("--markdown", action="store_true", help="as the README's table")

    command("flags", _flags, "print the table of training flags", "example:\n  vgift flags")
    command("doctor", _doctor, "check environment, LLaVA's version and its seams", "example:\n  vgift doctor")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs `vgift`; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = _parser()
    args = parser.parse_args(argv[:split])
    args.command = argv[split + 1 :]
    if args.function is _run and not args.command:
        parser.error("no command to run; write it after `--`: vgift run --ssl_tasks rotation -- bash finetune.sh")
    if args.function is not _run and args.command:
        parser.error("only `vgift run` takes a command after `--`")
    try:
        return args.function(args)
    except VgiftError as err:
        print(f"vgift: error: {err}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
