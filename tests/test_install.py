"""Installing the plugin changes no version of anything installed; uninstalling it leaves nothing. With pip itself."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import HAS_HOST, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LLAVA = "llava-torch==1.2.2.post1"
PLUGIN = "vgift-plugin"
PIP = [sys.executable, "-m", "pip"]


def run(command, **environment):
    """Returns what a command prints; one that fails fails the test."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, check=False, timeout=500, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def resolve(*arguments):
    """Returns what pip would install, {name: its metadata}; it installs nothing."""
    report = json.loads(run([*PIP, "install", "--quiet", "--dry-run", "--report", "-", *arguments]))
    return {canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in report["install"]}


def declared(metadata):
    """Returns the names a package requires, extras apart."""
    needs = map(Requirement, metadata.get("requires_dist", []))
    return {canonicalize_name(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": ""})}


def snapshot(folder):
    """Returns {path: hash} of all files and {path: None} of all folders, but what Python caches."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout as it is, to build in: pip leaves build/ and *.egg-info where it builds."""
    copy = tmp_path_factory.mktemp("source") / "vgift"
    made = shutil.ignore_patterns(".*", "build", "dist", "demo_out", "__pycache__", "*.egg-info")
    return shutil.copytree(ROOT, copy, ignore=made)


@pytest.fixture(scope="module")
def wheel(source):
    run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", source.parent, source])
    (built,) = source.parent.glob("*.whl")
    return built


def test_next_to_what_is_installed_only_the_plugin_is_installed(source):
    """Here: LLaVA with the versions its GitHub release names; with --matrix also those of PyPI, and other Pythons."""
    assert set(resolve(source)) == {PLUGIN}  # a folder, unlike a wheel, is never "already installed"


@pytest.mark.skipif(
    not os.environ.get("VGIFT_PINS"), reason="resolves all LLaVA requires, a minute: bash scripts/test.sh --matrix"
)
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="LLaVA pins torch 2.0.1, which exists up to Python 3.11")
def test_next_to_llavas_own_pins_no_version_changes(wheel):
    """LLaVA as PyPI has it, all its pins, torch 2.0.1 among them; not what happens to be installed here."""
    with ThreadPoolExecutor() as both:
        alone, together = both.map(lambda what: resolve("--ignore-installed", *what), ([LLAVA], [LLAVA, wheel]))
    assert {name: together[name]["version"] for name in alone} == {name: one["version"] for name, one in alone.items()}
    assert alone["torch"]["version"] == "2.0.1" and alone["transformers"]["version"] == "4.36.2"
    added = set(together) - set(alone)
    assert PLUGIN in added and added - {PLUGIN} <= declared(together[PLUGIN])


def test_uninstalling_leaves_nothing(wheel, tmp_path):
    """Every file of a fresh environment, by content: before, with the plugin in use, and after."""
    venv = tmp_path / "venv"
    run([sys._base_executable, "-m", "venv", "--without-pip", venv])
    python, vgift = venv / "bin" / "python", venv / "bin" / "vgift"
    before = snapshot(venv)

    run([*PIP, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel])
    checkout = tmp_path / "LLaVA"
    if HAS_HOST:  # whose training file a checkout would have
        llava = Path(importlib.util.find_spec("llava").origin).parent
        shutil.copytree(llava, checkout / "llava", ignore=shutil.ignore_patterns("__pycache__"))
        upstream = snapshot(checkout)
    borrowed = {"PYTHONPATH": sysconfig.get_path("purelib")}  # numpy and others, which --no-deps left out
    where = run([python, "-c", "import vgift_plugin; print(vgift_plugin.__file__)"], **borrowed)
    assert venv in Path(where).parents
    assert run([vgift, "--version"], **borrowed).startswith(f"{PLUGIN} ")
    assert "rotation" in run([vgift, "tasks"], **borrowed)
    assert run([vgift, "run", "--", python, "-c", "print('ran')"], **borrowed) == "ran\n"
    if HAS_HOST:
        run([vgift, "patch", "apply", checkout], **borrowed)
        assert len(upstream.items() ^ snapshot(checkout).items()) == 2  # one file, before and after
        run([vgift, "patch", "revert", checkout], **borrowed)
        assert snapshot(checkout) == upstream

    added = {path for path in snapshot(venv) if path not in before}
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()).relative_to(venv)
    (metadata,) = (venv / site).glob("vgift_plugin-*.dist-info")
    tops = {str(site / "vgift_plugin"), str(metadata.relative_to(venv)), "bin/vgift"}
    assert {path for path in added if not any(path == top or path.startswith(f"{top}/") for top in tops)} == set()
    assert tops <= added and not [path for path in added if path.endswith(".pth")]

    run([*PIP, "--python", python, "uninstall", "--quiet", "--yes", PLUGIN])
    assert snapshot(venv) == before
