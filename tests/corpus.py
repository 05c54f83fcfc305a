"""A folder of broken and odd picture files among good ones, for `test_corpus.py`.

By hand, with thousands of files: python tests/corpus.py FOLDER --broken 5000
"""

import argparse
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"}
OTHERS = ("EPS", "ICO", "ICNS", "DDS", "TGA", "PCX", "SGI", "IM", "PDF", "JPEG2000")  # under the names of photographs


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(wh, depth=8, kind=2, data=b""):
    """Returns a PNG whose header tells any size."""

    def chunk(tag, content):
        return struct.pack(">I", len(content)) + tag + content + struct.pack(">I", zlib.crc32(tag + content))

    header = struct.pack(">IIBBBBB", *wh, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def damaged(rng, content):
    """Returns a file's content with a part cut off, bits flipped, a block zeroed, removed, repeated or random."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 2, 8, 64, 512, 4096]))
    block = content[start:end]
    kind = rng.randrange(7)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + bytes(byte ^ 1 << rng.randrange(8) for byte in block) + content[end:]
    if kind == 2:
        return content[:start] + bytes(len(block)) + content[end:]
    if kind == 3:
        return content[:start] + content[end:]
    if kind == 4:
        return content[:end] + content[start:]
    if kind == 5:
        return content[:start] + rng.randbytes(len(block)) + content[end:]
    head = rng.randrange(min(64, len(content)))  # headers tell the most lies
    return content[:head] + rng.randbytes(1) + content[head + 1 :]


def make(folder, broken, good, seed=0):
    """Fills a folder with `broken` damaged or odd files and `good` readable ones; returns their names in two lists."""
    rng, folder = random.Random(seed), Path(folder)
    folder.mkdir(parents=True)
    data = Path(skimage.__file__).parent / "data"
    photographs = [Image.open(data / name).convert("RGB") for name in PHOTOGRAPHS]
    for image in photographs:
        image.thumbnail((160, 160))
    contents = [(suffix, encoded(image, format)) for image in photographs for format, suffix in SUFFIXES.items()]
    contents += [("jpg", encoded(image, "JPEG", progressive=True, quality=80)) for image in photographs]
    contents += [("tif", encoded(image, "TIFF", compression="tiff_lzw")) for image in photographs]
    for k in range(good):
        suffix, content = contents[k % len(contents)]
        (folder / f"good-{k:05d}.{suffix}").write_bytes(content)
    odd = [
        ("jpg", b""),
        ("jpg", b"<html>404 Not Found</html>"),
        ("png", png((30000, 30000))),
        ("png", png((8000, 9000))),
        ("png", png((0, 5))),
        ("png", encoded(Image.fromarray(np.zeros((40, 40), np.uint16)), "PNG")),
        ("tif", encoded(Image.fromarray(np.zeros((40, 40), np.float32)), "TIFF")),
        ("png", encoded(Image.new("RGB", (1, 1)), "PNG")),
        ("png", encoded(Image.new("RGB", (4000, 1)), "PNG")),
        ("jpg", encoded(Image.new("CMYK", (90, 60), (9, 200, 30, 4)), "JPEG")),
        ("png", encoded(photographs[0].convert("P"), "PNG")),
        ("gif", encoded(photographs[0], "GIF", save_all=True, append_images=photographs[1:])),
        *((rng.choice(["jpg", "png", "tif"]), encoded(photographs[1], format)) for format in OTHERS),
    ]
    for k in range(broken - 8):
        suffix, content = odd[k] if k < len(odd) else rng.choice(contents)
        (folder / f"odd-{k:05d}.{suffix}").write_bytes(content if k < len(odd) else damaged(rng, content))
    os.mkfifo(folder / "fifo.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.png").symlink_to("nothing")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    for name in (b"\xff\xfe.jpg", "ü \n<b>&.png".encode(), b"x" * 250 + b".jpg"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(contents[0][1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--broken", type=int, default=5000)
    parser.add_argument("--good", type=int, default=15000)
    args = parser.parse_args()
    make(args.folder, args.broken, args.good)
