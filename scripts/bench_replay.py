"""What painting the published mixture while training saves against writing its pictures first; and how fast export is.

    python scripts/bench_replay.py [--slice 300] [--base 665298]

A release of the published size is made up: metadata files of 22,176 rows, photographs of COCO's size (640×480 crops
of those that ship with scikit-image; a few real JPEG files under 22,176 names), and the records that name the samples.
Writing is measured on a slice and scaled to all 66,528 pictures, which the table says.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from vgift_plugin.methods.vgift.export.job import ExportSamples
from vgift_plugin.methods.vgift.replay import Replay

ROWS = 22_176
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"


def photographs(folder: Path, rng: random.Random, count: int) -> list[str]:
    """Puts a few real photographs under many names."""
    folder.mkdir(parents=True)
    files = []
    for name in ("astronaut.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "chelsea.png"):
        image = Image.open(PHOTOGRAPHS / name).convert("RGB")
        scale = max(640 / image.width, 480 / image.height)
        image = image.resize((round(image.width * scale), round(image.height * scale))).crop((0, 0, 640, 480))
        files.append(folder / name.replace(".png", ".jpg"))
        image.save(files[-1], quality=90)
    names = [f"{k:012d}.jpg" for k in range(count)]
    for name in names:
        os.link(rng.choice(files), folder / name)
    return names


def release(metadata: Path, names: list[str], rng: random.Random) -> list[dict]:
    """Writes metadata as published; returns the records that name its samples."""
    metadata.mkdir()
    rotation, color, pairs, records = [], [], [], []

    def record(image: str, answer: str) -> None:
        turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": answer}]
        records.append({"id": image, "image": image, "conversations": turns})

    for k, name in enumerate(names):
        angle, order = rng.choice((0, 90, 180, 270)), rng.sample(range(5), 5)
        points = [
            {"label": "ABCDE"[i], "x": rng.randrange(20, 492), "y": rng.randrange(20, 364)}
            | {"original_color": [rng.randrange(256) for _ in range(3)]}
            for i in range(5)
        ]
        slots = {"ABCDE"[i]: order.index(i) + 1 for i in range(5)}
        shuffled = [points[i]["original_color"] for i in order]
        rotation.append({"id": f"r{k}", "source_image": name, "rotation_degrees": angle})
        color.append({"id": f"c{k}", "source_image": name, "points": points, "shuffled_colors": shuffled})
        color[-1]["answer_mapping"] = slots
        places = [f"({rng.randrange(640)}, {rng.randrange(480)})" for _ in range(4)]
        pairs.append({"id": f"p{k}", "image1_name": name, "image2_name": rng.choice(names), "point_img1": places[0]})
        pairs[-1] |= {"points_img2": places[1:], "correspondence_index": k % 3}
        record(f"rotation/images/r{k}_rot{angle}.jpg", str(angle))
        record(f"colorization/images/c{k}_colorization.jpg", ", ".join(f"{a}-{b}" for a, b in slots.items()))
        record(f"point_correspondence/images/p{k}_correspondence.jpg", str(k % 3))
    for stem, rows in (("rotation", rotation), ("colorization", color), ("point_correspondence", pairs)):
        (metadata / f"{stem}_metadata.json").write_text(json.dumps(rows))
    return records


def seconds(work, repeats: int = 1) -> float:
    """Returns the median time of some work."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slice", type=int, default=300, help="published samples that are really written")
    parser.add_argument("--base", type=int, default=0, help="ordinary records around the published ones (665298)")
    args = parser.parse_args()
    rng = random.Random(0)
    root = Path(tempfile.mkdtemp(prefix="vgift-bench-"))
    try:
        photos, metadata = root / "coco" / "train2017", root / "metadata"
        names = photographs(photos, rng, ROWS)
        records = release(metadata, names, rng)
        base = [
            {"id": str(k), "image": f"coco/train2017/{names[k % ROWS]}", "conversations": []} for k in range(args.base)
        ]
        everything = base + records
        part = root / "slice.json"
        part.write_text(json.dumps(records[: args.slice]))

        replay = None

        def load() -> None:
            nonlocal replay
            replay = Replay(str(metadata), str(photos), everything, str(root))

        def batch() -> None:
            for k in range(len(base), len(base) + 16):
                replay.pictures(k, everything[k])

        start = seconds(load) + seconds(batch)
        flags, took, size = {"ssl_replay": str(metadata)}, {}, 0
        for workers in (1, 2):
            out = root / f"out{workers}"
            took[workers] = seconds(
                ExportSamples(
                    **flags,
                    image_folder=str(root),
                    output=str(out),
                    format="llava",
                    data_path=str(part),
                    chunk_size=25,
                    workers=workers,
                ).run
            )
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        overhead = seconds(lambda: Replay(str(metadata), str(photos), records[: args.slice], str(root)), 3)
        rates = {workers: args.slice / (one - overhead) for workers, one in took.items()}
        total, cores = 3 * ROWS, min(2, os.cpu_count() or 1)
        files = total / rates[cores]
        print(f"photographs 640×480, {total:,} published samples, {len(everything):,} records, slice of {args.slice:,}")
        print(f"export, 1 process      {rates[1]:8.1f} samples/s")
        print(f"export, 2 processes    {rates[2]:8.1f} samples/s   {rates[2] / rates[1]:.2f} × one process")
        print("before the first training step:")
        print(f"  writing all pictures {files:8.1f} s   (scaled from the slice, {cores} processes)")
        print(f"  painting them        {start:8.1f} s   (metadata, checks, first batch of 16)   {start / files:.4f} ×")
        print("bytes on disk:")
        held = sum(path.stat().st_size for path in metadata.iterdir())
        print(f"  writing all pictures {size / args.slice * total / 1e9:8.2f} GB   (JPEG, quality 95; scaled)")
        print(
            f"  painting them        {held / 1e9:8.2f} GB   (the metadata)   {held / (size / args.slice * total):.4f} ×"
        )
        arrays = sum(source.rows._starts.nbytes + len(source.rows._text) for source in replay.sources)
        print(f"metadata in memory     {arrays / 1e6:8.1f} MB, for {sum(len(s.rows) for s in replay.sources):,} rows")
        load_one = [seconds(lambda s=s: type(s)(s.path, s.task, s.format, s.root), 3) for s in replay.sources]
        print(
            "loading one file       "
            + ", ".join(f"{one:.2f} s" for one in load_one)
            + f" ({np.max(load_one):.2f} at most)"
        )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
