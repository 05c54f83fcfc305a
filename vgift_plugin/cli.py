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
    from .methods.stic.page import preview_preferences
    from .methods.vgift.preview import preview

    if args.preferences is not None:
        given = [name for name in ("data_path", *flags_of(args)) if getattr(args, name) is not None]
        print(preview_preferences(args.preferences, args.image_folder, args.n, args.output, given))
        return 0
    print(preview(flags_of(args), args.image_folder, args.data_path, args.n, args.output))
    return 0


def _export(args: argparse.Namespace) -> int:
    from .launch import flags_of
    from .methods.vgift.export import export

    options = ("data_path", "n", "epoch", "jpeg_quality", "chunk_size", "workers")
    given = {name: getattr(args, name) for name in options}
    print(export(flags_of(args), args.image_folder, args.output, args.format, **given))
    return 0


def _pairs(args: argparse.Namespace) -> int:
    import inspect
    import logging

    from .methods.vgift.pairs import make_pairs

    logging.basicConfig(level=logging.INFO, format="[vgift] %(message)s")
    print(make_pairs(**{name: getattr(args, name) for name in inspect.signature(make_pairs).parameters}))
    return 0


def _export_tower(args: argparse.Namespace) -> int:
    from .methods.vitp.export_tower import export_tower

    print(export_tower(args.checkpoint, args.output, args.model_base, args.vision_tower))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from .audit.audit import audit
    from .launch import flags_of

    files = args.image_folder, args.data_path, args.n, args.output, args.json
    table, clean = audit(flags_of(args), *files, args.threshold)
    print(table)
    return 0 if clean else 1


def _probe(args: argparse.Namespace) -> int:
    import logging

    from .launch import flags_of
    from .probe.probe import probe

    logging.basicConfig(level=logging.INFO, format="[vgift] %(message)s")
    names = ("model_base", "data_path", "n", "output", "resume", "batch_size", "device", "seed", "conv_mode")
    given = {name: getattr(args, name) for name in names}
    given |= {"json_path": args.json, "describe_first": args.describe_first}
    print(probe(flags_of(args), args.model_path, args.image_folder, **given))
    return 0


def _stic(args: argparse.Namespace) -> int:
    import inspect
    import logging

    from .methods.stic.describe import describe
    from .methods.stic.prefer import prefer

    logging.basicConfig(level=logging.INFO, format="[vgift] %(message)s")
    job = {"prefer": prefer, "describe": describe}[args.job]
    print(job(**{name: getattr(args, name) for name in inspect.signature(job).parameters}))
    return 0


def _templates(args: argparse.Namespace) -> int:
    from .launch import flags_of
    from .methods.l2t.templates import make

    print(make(flags_of(args), args.data_path, args.output))
    return 0


def _labels(args: argparse.Namespace) -> int:
    import os

    from .launch import flags_of
    from .methods.l2t.show import show

    names = ("data_path", "n", "version", "model_max_length", "output")
    given = {name: getattr(args, name) for name in names}
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(show(flags_of(args), llm=args.model_name_or_path, color=color, **given))
    return 0


def _patch(args: argparse.Namespace) -> int:
    from .patch import run

    told, applied = run(args.action, args.path)
    print(told)
    return 0 if applied or args.action != "status" else 1


def _bench(args: argparse.Namespace) -> int:
    from .bench import measure
    from .launch import flags_of

    names = ("data_path", "image_folder", "n", "steps_per_s", "batch")
    given = {name: getattr(args, name) for name in names}
    print(measure(flags_of(args), llm=args.model_name_or_path, tower=args.vision_tower, **given))
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from .tasks.catalogue import describe_tasks

    print(describe_tasks(args.markdown))
    return 0


def _flags(args: argparse.Namespace) -> int:
    from .tasks.catalogue import flag_table

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
        "examples:\n"
        "  vgift preview --ssl_tasks rotation,color,correspondence --image_folder DIR -n 12 -o gallery.html\n"
        "  vgift preview --preferences prefs.jsonl --image_folder DIR -o page.html",
    )
    sub.add_argument("--preferences", metavar="FILE", help="show this file of `vgift stic prefer` instead")
    add_flags(sub, "ssl_")
    sub.add_argument("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
    sub.add_argument("--data_path", metavar="JSON", help="LLaVA records whose images are used, instead of all in DIR")
    sub.add_argument(
        "-n", type=int, default=12, metavar="N", help="samples of each task, pairs of each kind (default 12)"
    )
    sub.add_argument("-o", "--output", required=True, metavar="FILE", help="gallery.html or sheet.png")

    sub = command(
        "audit",
        _audit,
        "how far solvers get that do not look, on your photographs; needs scikit-learn, neither LLaVA nor torch",
        "example:\n  vgift audit --ssl_tasks rotation,color,correspondence --image_folder DIR -n 2000 -o audit.html\n\n"
        "Exit status 1 where a task leaks.",
    )
    add_flags(sub, "ssl_")
    sub.add_argument("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
    sub.add_argument("--data_path", metavar="JSON", help="LLaVA records whose images are used, instead of all in DIR")
    sub.add_argument("-n", type=int, default=2000, metavar="N", help="samples of each task (default 2000)")
    sub.add_argument("-o", "--output", default="audit.html", metavar="FILE", help="the page (default audit.html)")
    sub.add_argument("--json", metavar="FILE", help="the same rows as JSON")
    leak = "a cheat leaks if its 95 %% intervals begin further above chance and above its control (default 0.03)"
    sub.add_argument("--threshold", type=float, default=0.03, metavar="X", help=leak)

    sub = command(
        "probe",
        _probe,
        "whether a trained model looks (asked sighted, blind, with another picture); how much data needs its pictures",
        "examples:\n  vgift probe --model-path CKPT --ssl_tasks rotation,color --image_folder DIR -o probe.html\n"
        "  vgift probe --model-path LORA --model-base BASE --data_path my.json --image_folder DIR -o needs.html\n\n"
        "Without --ssl_tasks the records of --data_path are measured: how much likelier are answers by the picture?\n"
        "Run it again to go on after an interruption.",
    )
    add_flags(sub)
    add = sub.add_argument
    add("--model-path", "--model_path", required=True, metavar="CKPT", help="a LLaVA: folder, or name on the Hub")
    add("--model-base", "--model_base", metavar="BASE", help="what a LoRA adapter or a projector was trained on")
    add("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
    add("--data_path", metavar="JSON", help="LLaVA records: measured, or with --ssl_tasks those whose images are used")
    add("-n", type=int, default=500, metavar="N", help="samples of each task, or records (default 500)")
    add("-o", "--output", default="probe.html", metavar="FILE", help="the page (default probe.html)")
    add("--json", metavar="FILE", help="all numbers as JSON")
    add("--resume", metavar="FILE", help="the journal of answers, to go on with (default: OUTPUT.jsonl)")
    add("--batch-size", "--batch_size", type=int, default=16, metavar="N", help="questions at once (default 16)")
    add("--device", metavar="D", help="cuda, cpu or cuda:1 (default: cuda where there is one)")
    add(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="of the samples; take another one than training had (default 1)",
    )
    template = "the chat template the model was trained with (default: as LLaVA's evaluation chooses, else v1)"
    add("--conv-mode", "--conv_mode", metavar="NAME", help=template)
    twice = "records: also measure answers after the model's own description of the picture"
    add("--describe-first", "--describe_first", action="store_true", help=twice)

    sub = command(
        "export",
        _export,
        "write the samples training would see to files, for trainers that cannot load a plugin",
        "example:\n  vgift export --ssl_tasks rotation,color --ssl_ratio 0.1 --data_path mix.json \\\n"
        "      --image_folder DIR -o OUT --format webdataset\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between machines.",
    )
    add_flags(sub, "ssl_")
    sub.add_argument("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
    sub.add_argument("--data_path", metavar="JSON", help="LLaVA records: the ratio counts them, images are theirs")
    sub.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder")
    sub.add_argument("--format", required=True, metavar="F", help="llava, webdataset or messages")
    sub.add_argument("-n", type=int, metavar="N", help="samples of each task, instead of --ssl_ratio")
    sub.add_argument("--epoch", type=int, default=0, metavar="E", help="whose samples: epoch E of training (default 0)")
    sub.add_argument("--jpeg_quality", type=int, metavar="Q", help="JPEG of this quality; PNG, lossless, by default")
    sub.add_argument("--chunk_size", type=int, default=500, metavar="N", help="samples a shard or chunk (default 500)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")

    sub = command(
        "pairs",
        _pairs,
        "match points of different photographs by DINOv2 features, for --ssl_pairs",
        "example:\n  vgift pairs --image_folder DIR --model facebook/dinov2-base -o pairs.jsonl\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between machines.",
    )
    add = sub.add_argument
    add("--image_folder", metavar="DIR", help="photographs, searched recursively; not needed with --merge")
    add("--pairs", metavar="LIST", help="pairs, one a line, `a.jpg: b.jpg`; default: each photograph with its nearest")
    add(
        "--masks",
        metavar="DIR",
        help="label maps x/y.pt or x/y.png for x/y.jpg; default: all of it is the object",
    )
    add("--model", default="facebook/dinov2-base", metavar="NAME", help="a DINOv2, name or folder (%(default)s)")
    add(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="JSON lines; FILE.parts and FILE.report.json beside it",
    )
    add("--seed", type=int, default=0, metavar="N", help="of queries and distractors (default 0)")
    add("--distractors", type=int, default=6, metavar="N", help="wrong candidates stored for a pair (default 6)")
    far = "least distance between candidates, share of the shorter side (default %(default)s)"
    add("--min_distance", type=float, default=0.15, metavar="D", help=far)
    add("--min_similarity", type=float, default=0.4, metavar="S", help="of query and match, cosine (%(default)s)")
    margin = "what is far from the match is less similar by this (default %(default)s)"
    add("--min_margin", type=float, default=0.05, metavar="S", help=margin)
    border = "points keep this share of the shorter side from the edge (default %(default)s)"
    add("--border", type=float, default=0.05, metavar="D", help=border)
    near = "photographs more similar than this are near-duplicates, without --pairs (default %(default)s)"
    add("--max_global_similarity", type=float, default=0.98, metavar="S", help=near)
    add("--resolution", type=int, default=224, metavar="PX", help="shorter side for the model (default %(default)s)")
    add("--batch_size", type=int, default=16, metavar="N", help="pairs at once (default %(default)s)")
    add("--workers", type=int, default=4, metavar="N", help="threads that open photographs (default %(default)s)")
    add("--merge", action="store_true", help="only write FILE from what all ranks have done")

    sub = command(
        "templates",
        _templates,
        "find the task templates among the instructions, for --instruct_templates; needs neither LLaVA nor torch",
        "example:\n  vgift templates --data_path mix.json -o templates.json\n\n"
        "The file is for reading and editing: take out what carries content, add what does not.",
    )
    add_flags(sub, "instruct_template_")
    sub.add_argument("--data_path", required=True, metavar="JSON", help="LLaVA records")
    sub.add_argument("-o", "--output", required=True, metavar="FILE", help="templates.json")

    sub = command(
        "labels",
        _labels,
        "show which tokens of some records are masked, learned as instruction, or learned as response",
        "example:\n  vgift labels --instruct_loss no_template --data_path mix.json \\\n"
        "      --model_name_or_path lmsys/vicuna-7b-v1.5 -n 5 -o labels.html\n\n"
        "Pictures are not read: no token depends on them.",
    )
    add_flags(sub, "instruct_")
    sub.add_argument("--data_path", required=True, metavar="JSON", help="LLaVA records")
    sub.add_argument("--model_name_or_path", required=True, metavar="NAME", help="whose tokenizer")
    sub.add_argument("--version", default="v1", metavar="NAME", help="the chat template (default %(default)s)")
    sub.add_argument("--model_max_length", type=int, default=2048, metavar="N", help="tokens (default %(default)s)")
    sub.add_argument("-n", type=int, default=5, metavar="N", help="records, spread over the file (default 5)")
    sub.add_argument("-o", "--output", metavar="FILE", help="also write a page (.html)")

    sub = command(
        "export-tower",
        _export_tower,
        "take the trained vision tower out of a checkpoint: a plain CLIPVisionModel folder",
        "example:\n  vgift export-tower checkpoints/llava-v1.5-7b -o tower\n\n"
        "Full, LoRA and merged checkpoints; DeepSpeed's own shards where DeepSpeed is installed.",
    )
    sub.add_argument("checkpoint", metavar="CKPT", help="the output folder of a run with --tune_vision_tower")
    sub.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder")
    base = "for LoRA: the model it was trained from, asked where CKPT has no tower of its own"
    sub.add_argument("--model-base", "--model_base", metavar="BASE", help=base)
    where = "the original tower, name or folder (default: what CKPT's config says)"
    sub.add_argument("--vision_tower", metavar="NAME", help=where)

    sub = command(
        "stic",
        _stic,
        "self-training from the model's own descriptions: preference pairs; records with descriptions",
        "examples:\n  vgift stic prefer --model-path CKPT --image_folder DIR -n 6000 -o prefs.jsonl\n"
        "  vgift stic describe --model-path CKPT --data_path mix.json --image_folder DIR -n 5000 -o described.json\n\n"
        "Run it again to go on after an interruption; run it under torchrun to share the work between GPUs.",
    )
    jobs = sub.add_subparsers(metavar="JOB", required=True, dest="job")
    for name, n, help in (
        ("prefer", 6000, "a better and a worse description of each photograph, to be learned from"),
        ("describe", 5000, "LLaVA records with a description of their picture before the question"),
    ):
        job = jobs.add_parser(name, help=help, description=help)
        add = job.add_argument
        add("--model-path", "--model_path", required=True, metavar="CKPT", help="a LLaVA: folder, or name on the Hub")
        add("--model-base", "--model_base", metavar="BASE", help="what a LoRA adapter or a projector was trained on")
        if name == "describe":
            add("--data_path", required=True, metavar="JSON", help="LLaVA records, of which some are taken")
        add("--image_folder", required=True, metavar="DIR", help="images; with --data_path as LLaVA has it")
        add("-n", type=int, default=n, metavar="N", help="how many (default %(default)s)")
        add("-o", "--output", required=True, metavar="FILE", help="FILE.parts and FILE.report.json appear beside it")
        hot = "of sampling; 0 takes the likeliest token (default %(default)s)"
        add("--temperature", type=float, default=0.2, metavar="T", help=hot)
        longest = "where descriptions are cut off, and then not used (default %(default)s)"
        add("--max-new-tokens", "--max_new_tokens", type=int, default=1024, metavar="N", help=longest)
        add("--seed", type=int, default=0, metavar="N", help="of choices, prompts and tokens (default 0)")
        add("--batch-size", "--batch_size", type=int, default=8, metavar="N", help="descriptions at once (default 8)")
        add("--device", metavar="D", help="cuda, cpu or cuda:1 (default: this rank's GPU where there is one)")
        add("--conv-mode", "--conv_mode", metavar="NAME", help=template)

    sub = command(
        "patch",
        _patch,
        "put three lines that attach the plugin into a checkout's train.py, or take them out",
        "example:\n  vgift patch apply ~/LLaVA\n\n"
        "After it, plain `bash scripts/v1_5/finetune.sh` takes the --ssl_* flags. `status` exits with 1 where it is\n"
        "not applied. A file that has drifted is refused, untouched.",
    )
    sub.add_argument("action", choices=("status", "apply", "revert"))
    sub.add_argument("path", metavar="PATH", help="the checkout: the folder with llava/ (or tinyllava/) in it")

    sub = command(
        "bench",
        _bench,
        "what samples cost beside ordinary ones, on your data and machine, and how many workers a GPU needs",
        "example:\n  vgift bench --ssl_tasks rotation,color --data_path mix.json --image_folder DIR \\\n"
        "      --model_name_or_path lmsys/vicuna-7b-v1.5",
    )
    add_flags(sub, "ssl_")
    sub.add_argument("--data_path", required=True, metavar="JSON", help="LLaVA records")
    sub.add_argument("--image_folder", required=True, metavar="DIR", help="what their pictures are relative to")
    sub.add_argument("--model_name_or_path", required=True, metavar="NAME", help="whose tokenizer")
    sub.add_argument("--vision_tower", metavar="NAME", help="whose image processor (default: CLIP's own, 336 px)")
    sub.add_argument("-n", type=int, default=100, metavar="N", help="samples of each task (default 100)")
    sub.add_argument("--steps_per_s", type=float, default=1.0, metavar="S", help="to keep up with (default 1)")
    sub.add_argument("--batch", type=int, default=16, metavar="N", help="samples a step on one GPU (default 16)")

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
