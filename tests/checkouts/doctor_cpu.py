"""`vgift doctor` where there is no GPU: what the checkouts import without calling it is stood in for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "qwen"))

import on_a_cpu

from vgift_plugin.cli import main

if __name__ == "__main__":
    on_a_cpu.stand_in()
    sys.exit(main(["doctor", *sys.argv[1:]]))
