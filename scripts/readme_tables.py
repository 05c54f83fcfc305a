"""Writes the generated tables of all READMEs: flags of each method, options of each command, tasks with their knobs.

    python scripts/readme_tables.py [--check]

A table is placed between `<!-- table: WHAT -->` and `<!-- end -->`, where WHAT is `tasks` or the name of a dataclass of
options. `--check` writes nothing and exits with 1 if a table is outdated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from dataclasses import MISSING
from pathlib import Path

from vgift_plugin.data.arguments import offered
from vgift_plugin.tasks.catalogue import summary
from vgift_plugin.tasks.registry import get_task, task_names

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def options(name: str) -> list[str]:
    """Returns the table for a dataclass of options, such as `methods.l2t.flags.L2TFlags`."""
    module, _, kind = name.rpartition(".")
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for one in offered(getattr(importlib.import_module(f"vgift_plugin.{module}"), kind)):
        default = "" if one.default in (None, MISSING) else f"`{one.default}`"
        rows.append(f"| `--{one.name}` | {default} | {one.metadata['help']} |")
    return rows


def tasks() -> list[str]:
    """Returns the table of tasks."""
    rows = ["| task | what it is | images | chance | knobs (default) |", "|---|---|---|---|---|"]
    for kind in map(get_task, task_names()):
        knobs = ", ".join(f"`{name}` ({json.dumps(default)})" for name, (default, _) in kind.knobs().items())
        rows.append(f"| `{kind.name}` | {summary(kind)} | {kind.images} | {kind().chance:.2%} | {knobs} |")
    return rows


def written(text: str) -> str:
    """Returns a README's text with its tables updated."""

    def table(match: re.Match) -> str:
        what = match[1]
        rows = tasks() if what == "tasks" else options(what)
        return "\n".join([f"<!-- table: {what} -->", *rows, "<!-- end -->"])

    return TABLE.sub(table, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    outdated = []
    for path in [ROOT / "README.md", *sorted((ROOT / "vgift_plugin").rglob("README.md"))]:
        text = path.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            outdated.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if outdated:
        print("not up to date:" if check else "written:", *outdated)
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
