"""Patching a checkout: upstream's own file, as installed from PyPI, in a folder laid out like a checkout."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, VGIFT, arguments, call

from vgift_plugin.errors import ConfigError
from vgift_plugin.patch import Patch, patches, run

pytestmark = pytest.mark.host
ADDED = ("    import sys", "    import vgift_plugin", "    vgift_plugin.attach(sys.modules[__name__])")


@pytest.fixture
def checkout(tmp_path):
    """A checkout with LLaVA's package in it."""
    import llava

    shutil.copytree(Path(llava.__file__).parent, tmp_path / "LLaVA" / "llava", ignore=shutil.ignore_patterns("*.pyc"))
    return tmp_path / "LLaVA"


@pytest.fixture
def train_py(checkout):
    return checkout / "llava" / "train" / "train.py"


def test_apply_adds_three_lines_and_revert_takes_them_out(checkout, train_py):
    before, mode = train_py.read_bytes(), train_py.stat().st_mode
    assert run("status", str(checkout)) == (f"{train_py}: patch llava is not applied", False)
    told, applied = run("apply", str(checkout))
    assert applied and told == f"{train_py}: patch llava is applied now"
    old, new = before.decode().split("\n"), train_py.read_text().split("\n")
    place = old.index("def train(attn_implementation=None):") + 2
    assert new == [*old[:place], *ADDED, *old[place:]]
    assert train_py.stat().st_mode == mode and not list(train_py.parent.glob("*vgift*"))
    after = train_py.read_bytes()
    assert run("apply", str(checkout)) == (f"{train_py}: patch llava was applied already, nothing to do", True)
    assert train_py.read_bytes() == after
    assert run("revert", str(checkout)) == (f"{train_py}: patch llava is not applied now", False)
    assert run("revert", str(checkout)) == (f"{train_py}: patch llava was not applied already, nothing to do", False)
    assert train_py.read_bytes() == before


@pytest.mark.parametrize("inside", ["", "llava", "llava/train/train.py", ".."])
def test_the_checkout_is_found_from_anywhere_in_it(checkout, inside, tmp_path):
    if inside == "..":  # as in V-GIFT, whose folder llava/ is a checkout
        checkout = checkout.rename(tmp_path / "llava")
    assert "is not applied" in run("status", str(checkout / inside))[0]


def test_git_apply_takes_the_same_patch(checkout, train_py):
    patch = ROOT / "patches" / "llava.patch"
    subprocess.run(["git", "apply", "-p1", patch], cwd=checkout, check=True)
    assert run("status", str(checkout))[1]
    subprocess.run(["git", "apply", "-R", "-p1", patch], cwd=checkout, check=True)
    assert not run("status", str(checkout))[1]


def test_windows_line_endings_are_kept(checkout, train_py):
    before = train_py.read_bytes().replace(b"\n", b"\r\n")
    train_py.write_bytes(before)
    run("apply", str(checkout))
    assert train_py.read_bytes().count(b"\r\n") == train_py.read_bytes().count(b"\n") == before.count(b"\n") + 3
    run("revert", str(checkout))
    assert train_py.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def train(attn_implementation=None):", "def train(attn_implementation=None, extra=None):"),
        ("    global local_rank\n\n    parser", "    global local_rank, world\n\n    parser"),
        ("import os\n", "import os\n# vgift_plugin was here\n"),
    ],
)
def test_a_drifted_file_is_refused_untouched_with_what_to_do(checkout, train_py, old, new):
    text = train_py.read_text()
    assert old in text
    train_py.write_text(text.replace(old, new, 1))
    before = train_py.read_bytes()
    for action in ("apply", "revert"):
        with pytest.raises(
            ConfigError, match=r"has drifted.*nothing was changed\n.*these three.*\n +import sys\n"
        ) as told:
            run(action, str(checkout))
        assert "vgift run" in str(told.value)
    assert run("status", str(checkout))[0].startswith(f"{train_py}: patch llava is drifted")
    assert train_py.read_bytes() == before


def test_added_lines_that_were_edited_are_not_taken_out(checkout, train_py):
    run("apply", str(checkout))
    train_py.write_text(train_py.read_text().replace("attach(sys.modules[__name__])", "attach()"))
    with pytest.raises(ConfigError, match="has drifted"):
        run("revert", str(checkout))


def test_other_local_changes_are_kept_and_told(checkout, train_py):
    git = ["git", "-C", checkout, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "upstream"]):
        subprocess.run([*git, *command], check=True)
    assert "local changes" not in run("apply", str(checkout))[0]
    run("revert", str(checkout))
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout == b""
    train_py.write_text(train_py.read_text() + "\n# mine\n")
    mine = train_py.read_bytes()
    assert "other local changes in this file are kept" in run("apply", str(checkout))[0]
    run("revert", str(checkout))
    assert train_py.read_bytes() == mine


def test_what_is_no_checkout_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        run("apply", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"has neither llava/train/train.py nor qwenvl/train/train_qwen.py nor tiny"):
        run("apply", str(tmp_path))
    done = call([*VGIFT, "patch", "apply", tmp_path])
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_stays_whole(checkout, train_py, monkeypatch):
    before = train_py.read_bytes()

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left on device; nothing was changed"):
        run("apply", str(checkout))
    assert train_py.read_bytes() == before and not list(train_py.parent.glob(".train*"))


def test_every_patch_says_why_for_which_host_and_when_it_is_obsolete():
    for path in (ROOT / "patches").iterdir():
        head = path.read_text().split("diff --git")[0]
        assert all(word in head for word in ("Why", "Hosts", "Obsolete")), path
        assert len(Patch.read(path).added) <= 3
    assert {patch.name for patch in patches()} == {"llava", "qwen-vl", "tinyllava"}


@pytest.mark.parametrize("how", ["script", "main", "main under vgift run"])
def test_a_patched_checkout_trains_with_the_flags(checkout, train_py, tmp_path, train_flags, how):
    done = call([*VGIFT, "patch", "apply", checkout])
    assert done.returncode == 0 and "is applied now" in done.stdout
    asked = {"ssl_tasks": "rotation,color", "ssl_ratio": 0.5}
    flags = arguments({**train_flags, **(asked if how != "main under vgift run" else {})}, output_dir=tmp_path / "out")
    start = "from llava.train.train import train; train(attn_implementation=None)"
    command = [sys.executable, *(["-c", start] if how == "script" else [train_py]), *flags]
    if how == "script":  # an upstream script with two flags added
        (checkout / "scripts" / "v1_5").mkdir(parents=True)
        (checkout / "scripts" / "v1_5" / "finetune.sh").write_text(shlex.join(map(str, command)) + "\n")
        command = ["bash", "-c", f"cd {checkout} && bash scripts/v1_5/finetune.sh"]
    if how == "main under vgift run":
        command = [*VGIFT, "run", *arguments(asked), "--", *command]
    done = call(command, PYTHONPATH=f"{checkout}:{ROOT}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "self-supervised samples are mixed in" in done.stderr
    assert (tmp_path / "out" / "vgift_mix.json").exists()
