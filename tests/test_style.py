"""Formatting, linting, types and what the wheel holds."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

COMMANDS = ["ruff check .", "ruff format --check .", "mypy"]


@pytest.mark.parametrize("command", COMMANDS)
def test_ruff_and_mypy_find_nothing(command):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_bootstrap_and_nothing_that_stays_in_site_packages(tmp_path):
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "vgift_plugin/_bootstrap/sitecustomize.py" in names
    assert "vgift_plugin/tasks/rotation.py" in names
    assert "vgift_plugin/report/templates/base.html" in names
    assert "vgift_plugin/tasks/presets/vgift.yaml" in names
    assert not [name for name in names if name.endswith(".pth") or name.split("/")[0] in ("tests", "scripts")]
