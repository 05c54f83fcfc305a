"""Who may import whom, parsed from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vgift_plugin

PACKAGE = Path(vgift_plugin.__file__).parent
# Each layer may import from the layers after it, and within itself only what is listed in SIDEWAYS.
LAYERS = [
    {"cli"},
    {"launch", "export", "pairs", "patch", "doctor", "bench", "insight"},
    {"stic"},
    {"host"},
    {"methods"},
    {"streams", "catalogue"},
    {"callbacks", "config", "mixing", "replay", "rows", "sources"},
    {"tasks"},
    {"registry", "drawing", "colors"},
    {"task", "journal"},
    {"seeding", "errors", "files", "mistakes", "__init__"},
]
SIDEWAYS = {
    ("callbacks", "mixing"),
    ("doctor", "patch"),
    ("host", "stic"),  # stic.preferences, the format alone
    ("mixing", "rows"),
    ("mixing", "sources"),
    ("replay", "mixing"),
    ("replay", "rows"),
    ("rows", "sources"),
}
HOST_ONLY = {"torch", "transformers", "llava"}
MAY_IMPORT_HOST = {module: {"torch", "transformers"} for module in ("callbacks", "pairs", "host", "insight", "methods")}
FORBIDDEN_IN_TASKS = HOST_ONLY | {"os", "random"}


def rank(module):
    return next(k for k, layer in enumerate(LAYERS) if module in layer)


def module_of(path):
    return path.stem if path.parent == PACKAGE else path.parent.name


def imports(path):
    """Yields (module of this package or None, outside package or None) for every import, wherever it stands."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    (None, alias.name.split(".")[0])
                    if alias.name.split(".")[0] != "vgift_plugin"
                    else (
                        [*alias.name.split("."), "__init__"][1],
                        None,
                    )
                )
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module.split(".")[0] != "vgift_plugin":
                yield None, node.module.split(".")[0]
            elif node.level == depth + 1 or node.level == 0:
                module = node.module if node.level else ".".join(node.module.split(".")[1:])
                for alias in node.names:
                    yield (module.split(".")[0] if module else alias.name), None
            else:
                yield module_of(path), None


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "_bootstrap" not in path.parts]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    me = module_of(path)
    for inside, outside in imports(path):
        if inside is not None and inside != "__version__":
            down = rank(inside) > rank(me) or inside == me or (me, inside) in SIDEWAYS
            assert down, f"{me} must not import {inside}"
        if outside in HOST_ONLY:
            assert outside in MAY_IMPORT_HOST.get(me, ()), f"{me} must not import {outside}"
        if me == "tasks":
            assert outside not in FORBIDDEN_IN_TASKS, f"a task must not import {outside}"


def test_the_checker_sees_imports():
    assert ("errors", None) in imports(PACKAGE / "tasks" / "color.py")
    assert (None, "numpy") in imports(PACKAGE / "tasks" / "color.py")
    assert ("mixing", None) in imports(PACKAGE / "host" / "mixture.py")


def test_no_task_is_named_outside_its_file_and_the_import_line():
    for path in SOURCES:
        if path.parent.name != "tasks" and path.stem != "config":  # config's help shows an example
            names = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not names & {"rotation", "color", "correspondence"}, path


def test_only_the_command_line_prints():
    for path in SOURCES:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not printing or path.stem == "cli", path


@pytest.mark.parametrize(
    "statement", ["import vgift_plugin", "import vgift_plugin.cli", "from vgift_plugin import insight, launch, mixing"]
)
def test_importing_loads_neither_torch_nor_llava(statement):
    code = f"{statement}; import sys; assert not {{'torch', 'transformers', 'llava'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    for name in vgift_plugin.__all__:
        if name not in ("attach", "detach"):
            assert getattr(vgift_plugin, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        vgift_plugin.atach  # noqa: B018
