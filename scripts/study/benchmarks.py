"""Evaluates a run's checkpoint on the four benchmarks of V-GIFT (arXiv 2604.12966), for `evaluate` in a study file.

    python scripts/study/benchmarks.py vlmevalkit --checkout DIR [--python EXE]
    python scripts/study/benchmarks.py lmms-eval [--python EXE]

Writes {benchmark: share} to $STUDY_JSON. The tools are installed by you, best each in an environment of its own, whose
Python `--python` names. README.md of this folder says what to mind.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from vgift_plugin.errors import ConfigError

# VLMEvalKit: the dataset's class, the end of the file of its results, and by what its numbers are divided.
VLMEVALKIT = {
    "CV-Bench-2D": ("CVBench", "acc", 1),
    "POPE": ("ImageYORNDataset", "score", 100),
    "MMStar": ("ImageMCQDataset", "acc", 1),
    "BLINK": ("ImageMCQDataset", "acc", 1),
}
# lmms-eval: its name of the benchmark, and of the number.
LMMS_EVAL = {
    "CV-Bench-2D": ("cv_bench_2d", "cv_bench_acc"),
    "POPE": ("pope", "pope_f1_score"),
    "MMStar": ("mmstar", "average"),
    "BLINK": ("blink", "blink_acc"),
}


def named_llava(checkpoint: Path) -> Path:
    """Returns a link to a checkpoint whose name contains `llava`: LLaVA's loader takes others for language models.

    Raises:
        ConfigError: there is no checkpoint, it is an adapter, or it is not of a Llama with Vicuna's template.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
    except OSError as err:
        raise ConfigError(f"{checkpoint}: not a checkpoint, its config.json cannot be read: {err}") from err
    if (checkpoint / "adapter_config.json").exists():
        raise ConfigError(f"{checkpoint}: an adapter; merge it first (LLaVA's scripts/merge_lora_weights.py)")
    if config.get("model_type") not in ("llava", "llava_llama"):
        raise ConfigError(
            f"{checkpoint}: model_type {config.get('model_type')!r}; both tools ask LLaVA checkpoints with Vicuna's "
            "template, so that the scores of another language model would be wrong"
        )
    if "llava" in checkpoint.name:
        return checkpoint.absolute()
    link = checkpoint.with_name(f"llava-{checkpoint.name}")
    if not link.is_symlink():
        link.symlink_to(checkpoint.resolve(), target_is_directory=True)
    return link.absolute()


def vlmevalkit_command(python: str, checkpoint: Path, out: Path) -> list[str]:
    """Returns the command, to be run in VLMEvalKit's checkout; writes the file of settings that it names."""
    out.mkdir(parents=True, exist_ok=True)
    data = {name: {"class": kind, "dataset": name} for name, (kind, _, _) in VLMEVALKIT.items()}
    settings = {"model": {"run": {"class": "LLaVA", "model_path": str(checkpoint)}}, "data": data}
    path = out.absolute() / "settings.json"
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    given = ["--config", str(path), "--work-dir", str(out.absolute()), "--judge", "exact_matching", "--reuse"]
    return [python, "run.py", *given]


def vlmevalkit_measures(out: Path) -> dict[str, float]:
    """Returns {benchmark: share} of VLMEvalKit's results.

    Raises:
        ConfigError: some are missing: it goes on after an error and ends with exit status 0.
    """
    measures = {}
    for name, (_, end, scale) in VLMEVALKIT.items():
        found = sorted((out / "run").glob(f"*/run_{name}_{end}.csv"))  # a folder a day and commit
        if not found:
            raise ConfigError(f"{out}/run: no result of {name} (run_{name}_{end}.csv); see the output above")
        with found[-1].open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        row = next((row for row in rows if row.get("split") == "Overall"), rows[0])  # POPE's has also one a category
        measures[name] = float(row["Overall"]) / scale
    return measures


def lmms_eval_command(python: str, checkpoint: Path, out: Path) -> list[str]:
    """Returns the command."""
    model = f"pretrained={checkpoint},conv_template=vicuna_v1"
    tasks = ",".join(task for task, _ in LMMS_EVAL.values())
    given = ["--model", "llava", "--model_args", model, "--tasks", tasks, "--batch_size", "1"]
    return [python, "-m", "lmms_eval", *given, "--output_path", str(out.absolute())]


def lmms_eval_measures(out: Path) -> dict[str, float]:
    """Returns {benchmark: share} of lmms-eval's results.

    Raises:
        ConfigError: there are none, or one is missing.
    """
    found = sorted(out.rglob("*_results.json"))  # the time leads the name
    if not found:
        raise ConfigError(f"{out}: no *_results.json; see the output above")
    content = json.loads(found[-1].read_bytes())
    results = {**content.get("groups", {}), **content.get("results", {})}
    measures = {}
    for name, (task, metric) in LMMS_EVAL.items():
        value = results.get(task, {}).get(f"{metric},none")
        if not isinstance(value, int | float):
            raise ConfigError(f"{found[-1]}: no number {metric},none of {task}")
        measures[name] = float(value)
    return measures


def main() -> int:
    """Evaluates the checkpoint in $STUDY_RUN. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=("vlmevalkit", "lmms-eval"))
    parser.add_argument("--checkout", default=".", help="VLMEvalKit's folder, with its run.py")
    parser.add_argument("--python", default=sys.executable, help="that the tool is installed for")
    parser.add_argument("--checkpoint", default="checkpoint", help="its folder in $STUDY_RUN")
    args = parser.parse_args()
    run, out = Path(os.environ["STUDY_RUN"]), Path(os.environ["STUDY_RUN"], args.tool)
    try:
        checkpoint = named_llava(run / args.checkpoint)
        if args.tool == "vlmevalkit":
            subprocess.run(vlmevalkit_command(args.python, checkpoint, out), cwd=args.checkout, check=True)
            measures = vlmevalkit_measures(out)
        else:
            subprocess.run(lmms_eval_command(args.python, checkpoint, out), check=True)
            measures = lmms_eval_measures(out)
    except (ConfigError, OSError, subprocess.CalledProcessError) as err:
        print(f"benchmarks: error: {err}", file=sys.stderr)
        return 2
    Path(os.environ["STUDY_JSON"]).write_text(json.dumps(measures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
