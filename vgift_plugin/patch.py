"""`vgift patch`: adds three lines that call `attach` to a checkout, or removes them.

The patches are ordinary unified diffs (`git apply` accepts them) with one hunk of added lines. The lines around it must
occur exactly once, at any position; files are written atomically.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .data.arguments import option
from .data.files import write_whole
from .errors import ConfigError

SHIPPED = Path(__file__).parent / "patches"
CHECKOUT = Path(__file__).parent.parent / "patches"  # if this package runs from a checkout
APPLIED, ABSENT, DRIFTED = "applied", "not applied", "drifted"


@dataclass(frozen=True)
class Patch:
    """One hunk that adds lines to one file.

    Attributes:
        name: the stem of the patch's file.
        target: the file it changes, relative to a checkout.
        before: the lines before the added ones.
        added: the added lines.
        after: the lines after them.
    """

    name: str
    target: str
    before: tuple[str, ...]
    added: tuple[str, ...]
    after: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Patch:
        """Returns the patch in a unified diff."""
        lines = path.read_text(encoding="utf-8").split("\n")
        start = next(k for k, line in enumerate(lines) if line.startswith("@@"))
        target = next(line for line in lines if line.startswith("+++ b/")).removeprefix("+++ b/")
        hunk = [line for line in lines[start + 1 :] if line]
        first, last = (k(i for i, line in enumerate(hunk) if line[0] == "+") for k in (min, max))
        parts = hunk[:first], hunk[first : last + 1], hunk[last + 1 :]
        assert all(line[0] == "+" for line in parts[1]) and all(line[0] == " " for line in parts[0] + parts[2])
        return cls(path.stem, target, *(tuple(line[1:] for line in part) for part in parts))

    def _blocks(self, text: bytes) -> tuple[bytes, bytes]:
        """Returns the lines without and with the added ones, with the file's line endings."""
        newline = b"\r\n" if b"\r\n" in text else b"\n"
        plain, full = (
            newline.join(line.encode() for line in ("", *lines, ""))
            for lines in ((*self.before, *self.after), (*self.before, *self.added, *self.after))
        )
        return plain, full

    def state(self, text: bytes) -> str:
        """Returns APPLIED, ABSENT, or DRIFTED if the lines around it do not occur exactly once."""
        plain, full = self._blocks(text)
        if text.count(full) == 1:
            return APPLIED
        return ABSENT if text.count(plain) == 1 and b"vgift_plugin" not in text else DRIFTED

    def apply(self, text: bytes) -> bytes:
        """Returns the text with the added lines."""
        plain, full = self._blocks(text)
        return text.replace(plain, full)

    def revert(self, text: bytes) -> bytes:
        """Returns the text without the added lines."""
        plain, full = self._blocks(text)
        return text.replace(full, plain)


def patches() -> list[Patch]:
    """Returns all patches."""
    folder = SHIPPED if SHIPPED.is_dir() else CHECKOUT
    return [Patch.read(path) for path in sorted(folder.glob("*.patch"))]


def find(path: str) -> tuple[Patch, Path]:
    """Returns the patch for a checkout and the file it changes.

    Args:
        path: the checkout, the package folder in it, the folder around it, or the training file itself.

    Raises:
        ConfigError: there is no training file for which a patch exists.
    """
    given = Path(path).absolute()
    for patch in patches():
        target = Path(patch.target)
        package = target.parts[0]
        places = [given / target, given / package / target, given]  # a checkout, the folder around it, the file itself
        places += [given.parent / target] if given.name == package else []
        for place in places:
            if place.is_file() and place.parts[-len(target.parts) :] == target.parts:
                return patch, place.resolve()
    targets = list(dict.fromkeys(patch.target for patch in patches()))
    what = "there is no such file or folder" if not given.exists() else f"has neither {' nor '.join(targets)}"
    packages = " or ".join(f"{Path(target).parts[0]}/" for target in targets)
    raise ConfigError(f"{path}: {what}; give the folder of a checkout (the one with {packages} in it)")


def run(action: str, path: str) -> tuple[str, bool]:
    """Performs an action of `vgift patch`.

    Args:
        action: `status`, `apply` or `revert`.
        path: see `find`.

    Returns:
        one line for the terminal, and whether the patch is applied now.

    Raises:
        ConfigError: the path is no checkout, or the file has drifted or cannot be read or written. Nothing was changed.
    """
    patch, file = find(path)
    try:
        text = file.read_bytes()
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read: {err.strerror}") from err
    state = patch.state(text)
    if action == "status":
        return f"{file}: patch {patch.name} is {state}" + (_advice(patch) if state == DRIFTED else ""), state == APPLIED
    if state == DRIFTED:
        raise ConfigError(
            f"{file}: has drifted from what patch {patch.name} was made for, nothing was changed{_advice(patch)}"
        )
    wanted = APPLIED if action == "apply" else ABSENT
    if state == wanted:
        return f"{file}: patch {patch.name} was {state} already, nothing to do", state == APPLIED
    changed = patch.apply(text) if action == "apply" else patch.revert(text)
    assert patch.state(changed) == wanted
    compile(changed, str(file), "exec")
    others = " (other local changes in this file are kept)" if action == "apply" and _dirty(file) else ""
    try:
        write_whole(file, changed, file.stat().st_mode)
    except OSError as err:
        raise ConfigError(f"{file}: cannot be written: {err.strerror}; nothing was changed") from err
    return f"{file}: patch {patch.name} is {wanted} now{others}", wanted == APPLIED


@dataclass(frozen=True)
class PatchCommand:
    """Add three lines that attach the plugin to a checkout's train.py, or remove them.

    `status` exits with 1 if they are not there. A file that has drifted is rejected unchanged.
    """

    EXAMPLE: ClassVar[str] = (
        "example:\n  vgift patch apply ~/LLaVA\n\n"
        "After it, plain `bash scripts/v1_5/finetune.sh` takes the plugin's flags."
    )

    action: str = option(help="what to do", positional=True, choices=("status", "apply", "revert"))
    path: str = option(help="the folder of the checkout, with the package that trains in it", positional=True)

    def run(self) -> tuple[str, int]:
        """Returns one line, and the exit status: 1 if `status` finds no patch, else 0."""
        line, applied = run(self.action, self.path)
        return line, 0 if applied or self.action != "status" else 1


def _advice(patch: Patch) -> str:
    lines = "\n".join(f"    {line.strip()}" for line in patch.added)
    return (
        f"\nThe lines around it are gone, or were edited. Put these three in front of the argument parser in train():\n"
        f"{lines}\nor leave the file alone and use `vgift run`, which needs no change."
    )


def _dirty(file: Path) -> bool:
    """Returns whether git reports local changes to a file; False without git or outside a repository."""
    try:
        command = ["git", "-C", str(file.parent), "status", "--porcelain", "--", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.startswith((" M", "M", "A"))
