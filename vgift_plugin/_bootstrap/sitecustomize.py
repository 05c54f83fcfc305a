"""Loaded at the start of every Python below `vgift run`, which puts this folder on PYTHONPATH.

It attaches the plugin to the training module of a known host when that is imported, and loads the `sitecustomize` that
it hides. A process that imports no such module takes a few milliseconds longer and is otherwise unchanged.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = os.environ.get("PYTHON_VGIFT_MODULES", "").split(",")  # of the known hosts, set by `vgift run`


def chain():
    """Runs the `sitecustomize` that this file hides, under its own name."""
    others = [path for path in sys.path if os.path.abspath(path or os.curdir) != HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def attach(module):
    """Attaches the plugin to a host's training module that was just imported."""
    from vgift_plugin.launch import attach_here

    attach_here(module)


def watch_parser(module):
    """Attaches the plugin to any other module that parses a host's arguments, such as a training file run as main."""
    from vgift_plugin.launch import watch_parser

    watch_parser(module)


class Guard:
    """Blocks the import of the training module in a Python that lacks the plugin; other imports are not affected."""

    def __init__(self, why):
        self.why = why

    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ImportError(
                f"vgift run started this training with {sys.executable}, which lacks vgift-plugin ({self.why}); "
                "pip install vgift-plugin there, or start vgift from that environment"
            )
        return None


def hook():
    """Registers the post-import hooks."""
    try:
        from wrapt import register_post_import_hook

        import vgift_plugin  # noqa: F401
    except ImportError as err:
        sys.meta_path.insert(0, Guard(err))
        return
    for name in MODULES:
        register_post_import_hook(attach, name)
    register_post_import_hook(watch_parser, "transformers.hf_argparser")


hook()
chain()
