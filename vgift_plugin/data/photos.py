"""Sources of photographs: folders, and the pictures of records."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import ConfigError, UnsuitableImage
from .files import is_inside
from .jobs import progress
from .photo import FILE_ERRORS, MAX_PIXELS, open_photo
from .records import picture_name

logger = logging.getLogger(__name__)
THREADS = 4  # that decode pictures; Pillow releases the GIL
AT_ONCE = 256
Key = TypeVar("Key", int, str)
HELD_OUT = 20  # one photograph in this many
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# Pictures written by V-GIFT's release: they are rotated, grey or marked, so no samples are made from them.
PUBLISHED = re.compile(r"(?P<id>.+)_(?P<part>rot(?:0|90|180|270)|colorization|correspondence|img1|img2)\.jpg")


class ImageSource:
    """A sequence of photographs, identified by name; holds numbers or packed bytes, never a list of strings.

    Args:
        where: its description in the mix table and in errors.
        size: number of photographs.
        root: their folder.
        name: returns the name of the k-th photograph, relative to `root`.

    Attributes:
        max_pixels: see `open_photo`.
    """

    def __init__(self, where: str, size: int, root: str, name: Callable[[int], str]):
        self.where, self.root, self.name = where, root, name
        self.max_pixels = MAX_PIXELS
        self._size = size

    def __len__(self) -> int:
        return self._size

    def path(self, index: int) -> str:
        """Returns the path of a photograph."""
        return os.path.join(self.root, self.name(index))

    def fingerprint(self) -> str:
        """Returns the number and hash of the names, in order; sources with equal fingerprints give equal samples."""
        return fingerprint(map(self.name, range(len(self))))

    def open(self, index: int, longest_px: int | None = None) -> Image.Image:
        """Returns the photograph; see `open_photo`."""
        return open_photo(self.path(index), longest_px=longest_px, max_pixels=self.max_pixels)

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of the photographs to train on and of those held out; see `is_held_out`."""
        held_out = np.fromiter((is_held_out(self.name(index)) for index in range(len(self))), bool, len(self))
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def part(self, numbers: np.ndarray, where: str) -> ImageSource:
        """Returns a source of some of these photographs."""
        chosen = ImageSource(where, len(numbers), self.root, PartOfNames(self.name, numbers))
        chosen.max_pixels = self.max_pixels
        return chosen


def fingerprint(entries: Iterable[str]) -> str:
    """Returns the number of strings and a hash of them in order: `118,287 (3f0a…)`."""
    digest, count = blake2b(digest_size=8), 0
    for entry in entries:
        digest.update(_utf8(entry) + b"\0")
        count += 1
    return f"{count:,} ({digest.hexdigest()})"


def _utf8(text: str) -> bytes:
    """Returns text as bytes: file names need not be valid text, and JSON can hold half of a surrogate pair."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def is_held_out(name: str) -> bool:
    """Returns whether a photograph is held out for evaluation: one in `HELD_OUT`, by the hash of its file name.

    The same photographs are held out in every run, whatever the seed, the tasks, the folder and its other files.
    """
    file = name.replace("\\", "/").rpartition("/")[2]
    return int.from_bytes(blake2b(_utf8(file), digest_size=8).digest(), "big") % HELD_OUT == 0


class PartOfNames:
    """A selection of another source's names: the k-th is the other's `numbers[k]`-th."""

    def __init__(self, names: Callable[[int], str], numbers: np.ndarray):
        self.names, self.numbers = names, numbers

    def __call__(self, index: int) -> str:
        return self.names(int(self.numbers[index]))


class PackedNames:
    """Strings in two arrays: 118,287 COCO names take 3 MB, and forked workers share them without copying."""

    def __init__(self, names: Sequence[str]):
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __call__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class RecordNames:
    """The image names of LLaVA records.

    Args:
        records: LLaVA's `list_data_dict`, kept by reference.
        positions: int array, for each image the position of the first record that shows it.
    """

    def __init__(self, records: Sequence[dict], positions: np.ndarray):
        self.records, self.positions = records, positions

    def __call__(self, index: int) -> str:
        name = picture_name(self.records[int(self.positions[index])])
        assert name is not None
        return name


def is_published(name: str) -> bool:
    """Returns whether a picture is, by its name, one of V-GIFT's published samples."""
    return PUBLISHED.fullmatch(name.rpartition("/")[2]) is not None


def from_folder(folder: str) -> ImageSource:
    """Returns all photographs in a folder and its subfolders (links are followed once), sorted by relative path.

    Published samples are left out; see `PUBLISHED`.

    Raises:
        ConfigError: the folder does not exist, or contains no photograph.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    names = list(_names_below(root))
    if not names:
        raise ConfigError(f"no image in {folder} (looked for {', '.join(SUFFIXES)}, also in the folders inside)")
    names.sort()
    photographs = [name for name in names if not is_published(name)]
    if not photographs:
        raise ConfigError(_all_published(f"images of {folder}", len(names), names[0]))
    where = f"images of {folder}" + _left_out(len(names) - len(photographs))
    return ImageSource(where, len(photographs), folder, PackedNames(photographs))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as err:
        if err.errno in FILE_ERRORS:  # a link to itself
            return False
        raise


def _names_below(root: Path) -> Iterator[str]:
    """Yields the relative paths of all photographs, links followed; a folder that links reach twice is read once.

    Raises:
        ConfigError: a folder cannot be read.
    """
    left, seen = ["."], set()
    out: list[str] = []  # links that lead out of the folder
    while left:
        folder = left.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
            for entry in entries:
                name = os.path.normpath(os.path.join(folder, entry.name))
                if entry.is_symlink() and not is_inside(entry.path, root):
                    out.append(name)
                if _is_folder(entry):
                    left.append(name)
                elif entry.name.lower().endswith(SUFFIXES):
                    yield name
        except OSError as err:
            raise ConfigError(
                f"{err.filename or root / folder}: {err.strerror}; its photographs would be left out"
            ) from err
    if out:
        logger.info("%s: %d links lead out of this folder and are followed, such as %s", root, len(out), out[0])


def _left_out(count: int) -> str:
    return f" ({count:,} published samples among them left out)" if count else ""


def _all_published(what: str, count: int, example: str) -> str:
    return f"the {count:,} {what} are all published samples, no photographs to make samples of: {example!r}"


def from_records(records: Sequence[dict], folder: str) -> ImageSource:
    """Returns the distinct photographs of records, in order of first use; published samples are left out.

    Args:
        records: dicts, with the path of their picture, if any, under `image`.
        folder: the folder the paths are relative to.

    Raises:
        ConfigError: no record has an image, or no photograph.
    """
    names = [image if type(image := record.get("image")) is str else picture_name(record) for record in records]
    every = dict(zip(reversed(names), reversed(range(len(names))), strict=True))  # keeps the first of each name
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
    """Returns the first n candidates whose pictures can be read, and {candidate: reason} for those skipped.

    Args:
        candidates: (name or number, path of the picture), in order of preference.
        n: how many; fewer are returned if there are not enough.
        least_px: pictures with a shorter side below this are `too small`.
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
