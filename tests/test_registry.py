import sys
import zipfile
from dataclasses import dataclass
from typing import ClassVar

import pytest
from conftest import VGIFT, call
from readmes import blocks

from vgift_plugin import Task, get_task, register
from vgift_plugin.errors import ConfigError

(MIRROR,) = blocks("python")  # the example of tasks/README.md


def wheel(folder, name, code, entry_points):
    """Builds a real wheel of one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[vgift_plugin.tasks]\n{entry_points}\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


def install(tmp_path, *args):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    done = call([*pip, wheel(tmp_path, *args)])
    assert done.returncode == 0, done.stderr
    return site


def test_a_task_of_another_installed_package_works_like_our_own(tmp_path, photos):
    site = install(tmp_path, "mirror_task", MIRROR, "mirror = mirror_task:Mirror")
    shown = call([*VGIFT, "tasks"], PYTHONPATH=site)
    assert shown.returncode == 0 and "mirror   needs 1 image, chance 50.00%" in shown.stdout
    config = tmp_path / "knobs.yaml"
    config.write_text("mirror: {share: 1.0}")
    page = tmp_path / "x.html"
    flags = ["--ssl_tasks", "mirror,rotation", "--ssl_config", config, "--image_folder", photos]
    done = call([*VGIFT, "preview", *flags, "-n", 3, "-o", page], PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count('<div class="answer">yes</div>') == 3


@pytest.mark.parametrize(
    ("code", "entry", "message"),
    [
        ("import absent_package", "broken = broken_task:Broken", "cannot be loaded: ModuleNotFoundError"),
        (MIRROR, "broken = broken_task:Mirror", "whose name is 'mirror'"),
        (MIRROR.replace('"mirror"', '"rotation"'), "broken = broken_task:Mirror", "two tasks are called 'rotation'"),
    ],
)
def test_a_broken_package_is_named_when_its_task_is_asked_for_and_not_before(tmp_path, photos, code, entry, message):
    site = install(tmp_path, "broken_task", code, entry)
    out = tmp_path / "x.html"
    flags = ["--image_folder", photos, "-n", 1, "-o", out]
    fine = call([*VGIFT, "preview", "--ssl_tasks", "rotation", *flags], PYTHONPATH=site)
    assert fine.returncode == 0, fine.stderr
    asked = call([*VGIFT, "preview", "--ssl_tasks", "broken", *flags], PYTHONPATH=site)
    assert asked.returncode == 2 and message in asked.stderr and "Traceback" not in asked.stderr


def test_two_tasks_cannot_share_a_name():
    @dataclass(frozen=True)
    class Other(Task):
        name: ClassVar[str] = "rotation"
        wordings: ClassVar[tuple[str, ...]] = ("?",)

    with pytest.raises(
        ConfigError, match=r"two tasks are called 'rotation': vgift_plugin\.tasks\.rotation\.Rotation and"
    ):
        register(Other)
    assert register(get_task("rotation")) is get_task("rotation")


def test_only_named_tasks_register():
    with pytest.raises(ConfigError, match="subclass of Task with a name and wordings"):
        register(dict)
