"""What stands in the READMEs, for the tests that run it."""

import re

from conftest import ROOT

SKIPPED = {".venv", "build", "node_modules"}
READMES = {
    path: path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("README.md"))
    if not any(part in SKIPPED or part.startswith(".") for part in path.relative_to(ROOT).parts)
}


def blocks(language: str) -> list[str]:
    """Returns the fenced blocks of one language, of all READMEs."""
    found = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for text in READMES.values())
    return [block for some in found for block in some]


def commands() -> list[str]:
    """Returns the commands of the bash blocks, without comments, and those that stand in a sentence."""
    lines = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    for text in READMES.values():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += re.findall(r"`(bash [^`]*|vgift [a-z]+ [^`]*|pip [^`]*|python [^`]*)`", prose)
    return sorted({line for line in lines if line and "[" not in line})
