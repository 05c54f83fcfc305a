"""Measures how well a vision tower's features separate classes, on clean and corrupted pictures, against another tower.

    python scripts/tower_probe tower --against openai/clip-vit-large-patch14-336 --image_folder CLASSES

CLASSES has one folder of pictures per class. Needs scikit-learn (vgift-plugin[audit]).
"""

import argparse
import sys

from probe import probe

from vgift_plugin.errors import VgiftError


def main() -> int:
    parser = argparse.ArgumentParser(prog="tower_probe", description=__doc__.splitlines()[0])
    parser.add_argument("tower", metavar="DIR", help="a CLIPVisionModel, folder or name")
    parser.add_argument("--against", metavar="DIR2", help="another one: the tower before training")
    parser.add_argument("--image_folder", required=True, metavar="CLASSES", help="one folder of pictures a class")
    parser.add_argument("-n", type=int, default=200, metavar="N", help="pictures of each class at most (default 200)")
    parser.add_argument("--layer", type=int, default=-2, metavar="L", help="whose patch tokens (default -2, as LLaVA)")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="pictures at once (default 16)")
    parser.add_argument("-o", "--output", default="probe.html", metavar="FILE", help="the page (default probe.html)")
    parser.add_argument("--json", metavar="FILE", help="the same rows as JSON")
    args = parser.parse_args()
    towers = [args.tower] + ([args.against] if args.against else [])
    try:
        print(probe(towers, args.image_folder, args.output, args.json, args.n, args.layer, args.batch_size))
    except VgiftError as err:
        print(f"tower_probe: error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
