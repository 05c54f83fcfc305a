"""Where photographs come from. The only place that opens one: EXIF-transposed RGB, or a counted reason why not."""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from ..errors import ConfigError, UnsuitableImage
from .jobs import progress
from .records import picture_name

ORIENTATION = 0x0112  # the EXIF tag
THREADS = 4  # that decode pictures; Pillow lets go of the interpreter
AT_ONCE = 256
Key = TypeVar("Key", int, str)
HELD_OUT = 20  # one photograph in so many
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Pictures that V-GIFT's release writes: turned, grey or marked, they are no photographs to make samples of.
PUBLISHED = re.compile(r"(?P<id>.+)_(?P<part>rot(?:0|90|180|270)|colorization|correspondence|img1|img2)\.jpg")
# What Pillow raises on broken files, by reading its plugins; anything else is a bug and must not pass for a bad image.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError)


def open_photo(path: str, upright: bool = True, longest_px: int | None = None) -> Image.Image:
    """Returns the photograph as RGB, turned upright by its EXIF orientation; the first frame of an animation.

    Args:
        path: the file.
        upright: False leaves the pixels as they lie in the file.
        longest_px: what the longest side is needed at. JPEG files are then decoded at 1/2, 1/4 or 1/8 of their size,
            where that still gives as much; others come as they are.

    Raises:
        UnsuitableImage: the file is missing, no file, unreadable, too large (Pillow's own limit, 179 million pixels),
            or has more than 8 bits per channel (the host would clip it to white).
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UnsuitableImage("more than 8 bits")
            if longest_px is not None:
                scale = longest_px / max(image.size)
                image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            if upright and image.getexif().get(ORIENTATION, 1) != 1:
                turned = ImageOps.exif_transpose(image)
                assert turned is not None  # None is for `in_place`
                return turned.convert("RGB")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # convert() copies, 9 MB at 2000×1500
    except FileNotFoundError:
        raise UnsuitableImage("missing file") from None
    except IsADirectoryError:
        raise UnsuitableImage("not a file") from None
    except Image.DecompressionBombError:
        raise UnsuitableImage("too many pixels") from None
    except _BROKEN:
        raise UnsuitableImage("unreadable") from None


class ImageSource:
    """A sequence of photographs, known by name; holds numbers or packed bytes, never a list of strings.

    Args:
        where: what to call it in the mix table and in errors.
        size: how many there are.
        root: the folder they lie in.
        name: gives the name of the k-th, relative to it.
    """

    def __init__(self, where: str, size: int, root: str, name: Callable[[int], str]):
        self.where, self.root, self.name = where, root, name
        self._size = size

    def __len__(self) -> int:
        return self._size

    def path(self, index: int) -> str:
        """Returns the path of a photograph."""
        return os.path.join(self.root, self.name(index))

    def fingerprint(self) -> str:
        """Returns number and hash of the names, in order: equal sources give equal samples, wherever they lie."""
        return fingerprint(map(self.name, range(len(self))))

    def open(self, index: int, longest_px: int | None = None) -> Image.Image:
        """Returns the photograph; see `open_photo`."""
        return open_photo(self.path(index), longest_px=longest_px)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the photographs to train on, and of those held out; see `is_held_out`."""
        held_out = np.fromiter((is_held_out(self.name(index)) for index in range(len(self))), bool, len(self))
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def part(self, numbers: np.ndarray, where: str) -> ImageSource:
        """Returns a source of some of these photographs."""
        return ImageSource(where, len(numbers), self.root, PartOfNames(self.name, numbers))


def fingerprint(entries: Iterable[str]) -> str:
    """Returns how many strings there are and a hash of them in their order: `118,287 (3f0a…)`."""
    digest, count = blake2b(digest_size=8), 0
    for entry in entries:
        digest.update(entry.encode(errors="surrogateescape") + b"\0")
        count += 1
    return f"{count:,} ({digest.hexdigest()})"


def is_held_out(name: str) -> bool:
    """Tells whether a photograph is held out for evaluation: one in `HELD_OUT`, by the hash of its file's name alone.

    So it is the same photograph in every run, whatever the seed, the tasks, the folder's place and what else is in it.
    """
    file = name.replace("\\", "/").rpartition("/")[2]
    return int.from_bytes(blake2b(file.encode(errors="surrogateescape"), digest_size=8).digest(), "big") % HELD_OUT == 0


class PartOfNames:
    """Some of the names another source of names gives: the k-th is the other's `numbers[k]`-th."""

    def __init__(self, names: Callable[[int], str], numbers: np.ndarray):
        self.names, self.numbers = names, numbers

    def __call__(self, index: int) -> str:
        return self.names(int(self.numbers[index]))


class PackedNames:
    """Strings in two arrays: 118,287 COCO names take 3 MB and no forked worker's reference counts copy them."""

    def __init__(self, names: Sequence[str]):
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __call__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class RecordNames:
    """The images of LLaVA records, by the position of the first record that shows each.

    Args:
        records: LLaVA's `list_data_dict`, kept by reference.
        positions: int array.
    """

    def __init__(self, records: Sequence[dict], positions: np.ndarray):
        self.records, self.positions = records, positions

    def __call__(self, index: int) -> str:
        name = picture_name(self.records[int(self.positions[index])])
        assert name is not None
        return name


def is_published(name: str) -> bool:
    """Tells by its name whether a picture is one of V-GIFT's published samples."""
    return PUBLISHED.fullmatch(name.rpartition("/")[2]) is not None


def from_folder(folder: str) -> ImageSource:
    """Returns all photographs of a folder and of the folders in it (links are followed once), sorted by relative path.

    Published samples among them are left out; see `PUBLISHED`.

    Raises:
        ConfigError: there is no such folder, or no photograph in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    names, seen = [], set()
    for here, folders, files in os.walk(root, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder that was visited
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = os.path.relpath(here, root)
        names += [os.path.normpath(os.path.join(inside, f)) for f in files if f.lower().endswith(SUFFIXES)]
    if not names:
        raise ConfigError(f"no image in {folder} (looked for {', '.join(SUFFIXES)}, also in the folders inside)")
    names.sort()
    photographs = [name for name in names if not is_published(name)]
    if not photographs:
        raise ConfigError(_all_published(f"images of {folder}", len(names), names[0]))
    where = f"images of {folder}" + _left_out(len(names) - len(photographs))
    return ImageSource(where, len(photographs), folder, PackedNames(photographs))


def _left_out(count: int) -> str:
    return f" ({count:,} published samples among them left out)" if count else ""


def _all_published(what: str, count: int, example: str) -> str:
    return f"the {count:,} {what} are all published samples, no photographs to make samples of: {example!r}"


def from_records(records: Sequence[dict], folder: str) -> ImageSource:
    """Returns the distinct photographs of records, in the order of their first record; published samples are left out.

    Args:
        records: dicts, those with a picture have its path under `image`.
        folder: what the paths are relative to.

    Raises:
        ConfigError: no record has an image, or no photograph.
    """
    names = [image if type(image := record.get("image")) is str else picture_name(record) for record in records]
    every = dict(zip(reversed(names), reversed(range(len(names))), strict=True))  # the first of each name stays
    seen = {name: position for name, position in every.items() if name is not None}
    if not seen:
        raise ConfigError(
            "no record of the base set has an image to make samples of; name a folder: --ssl_image_folder"
        )
    positions = sorted(position for name, position in seen.items() if not is_published(name))
    if not positions:
        raise ConfigError(_all_published("images of the base set", len(seen), min(seen, key=seen.__getitem__)))
    where = "images of the base records" + _left_out(len(seen) - len(positions))
    return ImageSource(where, len(positions), folder, RecordNames(records, np.array(positions, np.int64)))


def choose(image_folder: str | None, records: Sequence[dict] | None, records_folder: str | None) -> ImageSource:
    """Returns the photographs the flags ask for: those of `--ssl_image_folder`, else those of the base records."""
    if image_folder is not None:
        return from_folder(image_folder)
    return from_records(records or (), records_folder or "")


def first_readable(
    candidates: Iterable[tuple[Key, str]], n: int, least_px: int = 1
) -> tuple[list[Key], dict[Key, str]]:
    """Returns the first n candidates whose pictures can be read, and {candidate: why not} of those before them.

    Args:
        candidates: (name or number, path of the picture), in the order they are wanted.
        n: how many; fewer come where there are no more.
        least_px: shorter sides below it are `too small`.
    """

    def examine(path: str) -> str | None:
        try:
            return "too small" if min(open_photo(path, upright=False).size) < least_px else None
        except UnsuitableImage as unsuitable:
            return unsuitable.reason

    chosen: list[Key] = []
    passed_over: dict[Key, str] = {}
    left = iter(candidates)
    with ThreadPoolExecutor(THREADS) as pool, progress(n, "choosing pictures") as bar:
        while len(chosen) < n and (chunk := list(islice(left, min(AT_ONCE, n - len(chosen))))):
            before = len(chosen)
            for (key, _), reason in zip(chunk, pool.map(examine, (path for _, path in chunk)), strict=True):
                if reason is None:
                    chosen.append(key)
                else:
                    passed_over[key] = reason
            bar.update(len(chosen) - before)
    return chosen, passed_over
