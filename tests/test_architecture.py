"""Who may import whom, parsed from the source: one way, without an exception."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HAS_HOST

import vgift_plugin
from vgift_plugin.hosts import HOSTS
from vgift_plugin.methods import METHODS

PACKAGE = Path(vgift_plugin.__file__).parent
# Each layer may import from the layers after it, and a folder from itself.
LAYERS = [
    {"cli"},
    {"launch", "doctor"},
    {"hook", "patch"},
    {"audit", "probe", "rewards"},
    {"methods"},
    {"hosts", "report"},
    {"tasks"},
    {"data"},
    {"errors"},
    {"__init__"},
]
PAPERS = {type(method).__module__.split(".")[2] for method in METHODS}
FRAMEWORKS = {"torch", "transformers", "peft", "deepspeed", "accelerate"}
MAY_IMPORT_FRAMEWORKS = {"hosts", "methods", "audit", "probe"}
HOST_WORDS = ("llava.", "tinyllava", "qwenvl", "unfreeze_mm_vision_tower", "mm_tunable_parts", "tune_mm_mlp_adapter")
FAMILIES = {type(host).__module__ for host in HOSTS} | {"vgift_plugin.hosts.qwen_checkpoint"}
FORBIDDEN_IN_TASKS = {"os", "random"}


def name_of(path):
    """Returns the dotted name of a module's file; of a folder's __init__, the folder's."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_bootstrap" not in path.parts}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def folder_of(name):
    """Returns the folder or the file right below the package that a module is in."""
    return [*name.split("."), "__init__"][1]


def rank(name):
    return next(k for k, layer in enumerate(LAYERS) if folder_of(name) in layer)


def later(node):
    """Tells whether what stands in a node does not run when its module is imported."""
    function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    return function or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


def imports(name, everywhere=True):
    """Yields the full name of each module that a module imports: wherever it stands, or only what runs on import."""
    here = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]

    def walk(node):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = here.split(".")[: len(here.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base
        elif not everywhere and later(node):
            return
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    yield from walk(TREES[name])


def docstrings(tree):
    """Returns the ids of the nodes that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def texts(name):
    """Yields the string constants of a module that are no docstrings."""
    told = docstrings(TREES[name])
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    me = folder_of(name)
    for found in imports(name):
        top = found.split(".")[0]
        if top == "vgift_plugin":
            assert rank(found) > rank(name) or folder_of(found) == me, f"{name} must not import {found}"
        if top in FRAMEWORKS:
            assert me in MAY_IMPORT_FRAMEWORKS, f"{name} must not import {found}"
        assert top not in ("llava", "tinyllava", "qwenvl"), f"{name}: hosts are looked up by name"
        if me == "tasks":
            assert top not in FORBIDDEN_IN_TASKS, f"a task must not import {found}"


@pytest.mark.parametrize("name", [name for name in MODULES if set(name.split(".")[2:3]) & PAPERS])
def test_no_method_imports_another(name):
    own = name.split(".")[2]
    for found in imports(name):
        parts = found.split(".")
        assert parts[:2] != ["vgift_plugin", "methods"] or not set(parts[2:3]) & (PAPERS - {own}), (name, found)


def test_only_hosts_names_a_host():
    for name in MODULES:
        if folder_of(name) != "hosts":
            assert not [text for text in texts(name) if any(word in text for word in HOST_WORDS)], name
            assert not set(imports(name)) & FAMILIES, name


def test_modules_do_not_need_each_other_in_a_circle():
    needs = {name: {found for found in imports(name, everywhere=False) if found in MODULES} for name in MODULES}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            open_.append(name)
            for found in sorted(needs[name] - {name}):
                visit(found)
            done.add(open_.pop())

    for name in MODULES:
        visit(name)
    assert len(done) == len(MODULES) > 80


ONE_BY_ONE = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [one for one in sys.modules if one.split(".")[0] == "vgift_plugin"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as err:
        missing = err.name.split(".")[0]
        assert missing == "swift" or missing in {"torch", "transformers"} and not HAS_HOST, (name, err)
"""


def test_every_module_can_be_the_first_one_imported():
    code = ONE_BY_ONE.replace("HAS_HOST", str(HAS_HOST))
    subprocess.run([sys.executable, "-c", code, *MODULES], check=True)


@pytest.mark.parametrize("name", ["", ".cli", ".launch", ".hook", ".hosts", ".methods.settings"])
def test_importing_loads_no_framework_and_no_host(name):
    heavy = sorted(FRAMEWORKS | {"llava", "tinyllava", "qwenvl"})
    code = f"import vgift_plugin{name}, sys; assert not {set(heavy)} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checker_sees_imports():
    assert "vgift_plugin.errors" in imports("vgift_plugin.tasks.color")
    assert "numpy" in imports("vgift_plugin.tasks.color")
    assert "vgift_plugin.methods.vgift.training" in imports("vgift_plugin.methods.vgift")
    assert "vgift_plugin.methods.vgift.training" not in imports("vgift_plugin.methods.vgift", everywhere=False)
    assert "vgift_plugin.hosts.ranks" in imports("vgift_plugin.hook")
    assert rank("vgift_plugin.hook") < rank("vgift_plugin.methods.run") < rank("vgift_plugin.hosts")
    assert "llava.train.train" in texts("vgift_plugin.hosts.llava")


def test_no_task_is_named_outside_its_file_and_the_import_line():
    for name in MODULES:
        if (
            folder_of(name) != "tasks" and name != "vgift_plugin.methods.vgift.release"
        ):  # how published files are called
            assert not set(texts(name)) & {"rotation", "color", "correspondence"}, name


def test_only_the_command_line_prints():
    for name, tree in TREES.items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        printing = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
        assert not printing or name == "vgift_plugin.cli", name


def test_every_public_name_is_there():
    for name in vgift_plugin.__all__:
        if name not in ("attach", "detach"):
            assert getattr(vgift_plugin, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        vgift_plugin.atach  # noqa: B018
