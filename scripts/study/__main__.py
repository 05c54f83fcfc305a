"""Runs a study; see README.md in this folder.

python scripts/study FILE.yaml [-o FOLDER] [--jobs N] [--shard I/N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from design import Study
from differences import Result, Row, rows, text

from vgift_plugin.data.files import write_whole
from vgift_plugin.errors import ConfigError
from vgift_plugin.report.page import render

HERE = Path(__file__).parent


def main() -> int:
    """Runs this process's share of the runs; writes the table when all are done. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the design, .yaml")
    parser.add_argument("-o", "--output", default="study_out", help="folder of runs and results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once on this machine")
    parser.add_argument("--shard", default="0/1", help="the runs of this machine: I/N, from 0/N to N-1/N")
    parser.add_argument("--quick", action="store_true", help="two arms and two seeds: whether it runs, no result")
    args = parser.parse_args()
    try:
        shard = re.fullmatch(r"(\d+)/(\d+)", args.shard)
        if shard is None or not int(shard[1]) < int(shard[2]):
            raise ConfigError(f"--shard {args.shard}: must be I/N with I below N, such as 0/2")
        if args.jobs < 1:
            raise ConfigError(f"--jobs {args.jobs}: at least 1")
        study = Study.read(args.study)
        if args.quick:
            os.environ["STUDY_QUICK"] = "1"
        run_all(study.quick() if args.quick else study, Path(args.output), args.jobs, int(shard[1]), int(shard[2]))
    except ConfigError as err:
        print(f"study: error: {err}", file=sys.stderr)
        return 2
    return 0


def run_all(study: Study, output: Path, jobs: int, shard: int, shards: int) -> None:
    """Runs every `shards`-th run that has no result yet, `jobs` at once, then writes the table if no run is missing."""
    output.mkdir(parents=True, exist_ok=True)
    design = output / "design.json"
    if not design.exists():
        write_whole(design, json.dumps(asdict(study), indent=1).encode())
    elif json.loads(design.read_bytes()) != json.loads(json.dumps(asdict(study))):
        raise ConfigError(f"{design} is of another design; choose another folder: -o")
    if study.prepare:
        prepare(study, output)
    todo = [(arm, seed) for seed in study.seeds for arm in study.arms]
    share = todo[shard::shards]
    own = [one for one in share if not (folder_of(output, *one) / "result.json").exists()]
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, study, output, *one) for one in own]
        try:
            for k, done in enumerate(as_completed(running)):
                print(f"[study] {len(share) - len(own) + k + 1} of {len(share)}: {done.result()}", flush=True)
        finally:  # after an error the runs that wait are not begun
            pool.shutdown(cancel_futures=True)
    paths = [folder_of(output, arm, seed) / "result.json" for arm, seed in todo]
    missing = sum(not path.exists() for path in paths)
    if missing:
        print(f"[study] {missing} of {len(todo)} runs are left for the other shards")
        return
    results = [Result(**json.loads(path.read_bytes())) for path in paths]
    write(study, output, rows(results, list(study.arms), study.compare, study.mean))


def folder_of(output: Path, arm: str, seed: int) -> Path:
    """Returns the folder of a run."""
    return output / "runs" / arm / f"seed-{seed}"


def prepare(study: Study, output: Path) -> None:
    """Runs the command that makes what all runs share, once."""
    done = output / "prepared"
    if not done.exists():
        print("[study] preparing", flush=True)
        seeds = " ".join(map(str, study.seeds))
        call(study.prepare, output / "prepare.log", {"STUDY_OUT": str(output), "STUDY_SEEDS": seeds})
        done.touch()


def run(study: Study, output: Path, arm: str, seed: int) -> str:
    """Trains and evaluates one run, and writes its result; begins anew where an earlier one was interrupted. Returns a
    line for the terminal."""
    folder = folder_of(output, arm, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {"STUDY_OUT": output, "STUDY_RUN": folder, "STUDY_ARM": arm, "STUDY_SEED": seed}
    environment = {name: str(value) for name, value in environment.items()}
    flags = {"ssl_seed": seed, **study.arms[arm]} if study.arms[arm] else {}
    given = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())
    begun = time.monotonic()
    call(f"vgift run {given} -- bash -c {shlex.quote(study.train)}", folder / "train.log", environment)
    measures: dict[str, float] = {}
    for k, command in enumerate(study.evaluate):
        path = folder / f"evaluated-{k}.json"
        call(command, folder / f"evaluate-{k}.log", {**environment, "STUDY_JSON": str(path)})
        measures |= read_measures(path)
    if missing := [name for name in study.mean if name not in measures]:
        raise ConfigError(f"mean: no evaluation of {folder} wrote the measure {missing[0]!r}; there are {[*measures]}")
    mix = next(folder.rglob("vgift_mix.json"), None)
    added = 0 if mix is None else sum(one["samples"] for one in json.loads(mix.read_bytes())["tasks"].values())
    result = Result(arm, seed, added, measures)
    write_whole(folder / "result.json", (json.dumps(asdict(result), indent=1) + "\n").encode())
    told = ", ".join(f"{name} {value:.3f}" for name, value in measures.items())
    return f"{arm}, seed {seed}, {time.monotonic() - begun:.0f} s: {told}"


def read_measures(path: Path) -> dict[str, float]:
    """Returns {measure: number} of a file that an evaluation wrote."""
    try:
        content = json.loads(path.read_bytes())
        return {str(name): float(value) for name, value in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise ConfigError(f"{path}: an evaluation must write {{measure: number}} to $STUDY_JSON ({err})") from err


def call(command: str, log: Path, environment: dict[str, str]) -> None:
    """Runs a shell command with its output in a file."""
    with log.open("wb") as file:
        given = {**os.environ, **environment}
        done = subprocess.run(["bash", "-c", command], stdout=file, stderr=subprocess.STDOUT, env=given, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise ConfigError("\n  ".join([f"`{command}` failed with exit status {done.returncode}; see {log}:", *last]))


def write(study: Study, output: Path, table: list[Row]) -> None:
    """Writes table.txt, table.json and study.html, and prints the table."""
    told = text(table, study.compare)
    write_whole(output / "table.txt", (told + "\n").encode())
    write_whole(output / "table.json", (json.dumps([asdict(row) for row in table], indent=1) + "\n").encode())
    first = study.compare[0] if study.compare else None
    plots = [(row, row.differences[first]) for row in table if first in row.differences]
    reach = max((abs(end) for _, cell in plots for end in (cell.low, cell.high)), default=0.0) or 1.0
    about = {"about": study.about, "seeds": len(study.seeds), "first": first}
    page = render(HERE / "page.html", **about, plots=plots, reach=reach, table=told)
    write_whole(output / "study.html", page.encode())
    print(f"{told}\n{output / 'study.html'}: the same as a page")


if __name__ == "__main__":
    sys.exit(main())
