"""Markers and canvases, with fixed geometry and one font on every machine (matplotlib's DejaVu Sans Bold)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LUMA = np.array([0.299, 0.587, 0.114])  # weights of the grey value, ITU-R BT.601, as in Pillow
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels; right and bottom are inclusive


@lru_cache(maxsize=8)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Returns the label font at `size_px` pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), size_px)


def overlap(a: Box, b: Box) -> bool:
    """Returns whether two boxes share a pixel."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


@dataclass(frozen=True)
class Marker:
    """A red dot with a white rim and, beside it, its label in red on a white box.

    The label box has a fixed size instead of the glyph's, so marker placement does not depend on the version of the
    font renderer, and samples are drawn alike on every machine.
    """

    radius_px: int
    font_px: int

    def dot_box(self, xy: tuple[int, int]) -> Box:
        """Returns the square around the dot at `xy` = (x, y)."""
        x, y = xy
        return x - self.radius_px, y - self.radius_px, x + self.radius_px, y + self.radius_px

    def label_box(self, xy: tuple[int, int], wh: tuple[int, int]) -> Box:
        """Returns the label's box: right of the dot, or left of it near the right edge of the image of size `wh`."""
        (x, y), (width, height) = xy, wh
        side, gap = round(1.1 * self.font_px), self.radius_px + 4
        left = x + gap if x + gap + side < width else x - gap - side
        top = min(max(y - side // 2, 0), height - 1 - side)
        return left, top, left + side, top + side

    def clear_of(self, xy: tuple[int, int], other: tuple[int, int], wh: tuple[int, int]) -> bool:
        """Returns whether markers at `xy` and `other` do not touch, labels included, in an image of size `wh`."""
        mine = self.dot_box(xy), self.label_box(xy, wh)
        theirs = self.dot_box(other), self.label_box(other, wh)
        return not any(overlap(a, b) for a in mine for b in theirs)

    def paint(self, image: Image.Image, xy: tuple[int, int], label: str) -> None:
        """Paints the marker onto an RGB image, in place."""
        left, top, *_ = self.label_box(xy, image.size)
        image.paste(label_box(label, self.font_px), (int(left), int(top)))
        ImageDraw.Draw(image).ellipse(self.dot_box(xy), fill="red", outline="white", width=2)


@lru_cache(maxsize=64)  # rendering a letter takes longer than the rest of a marker
def label_box(label: str, font_px: int) -> Image.Image:
    """Returns a label in red on a white box."""
    side = round(1.1 * font_px)
    box = Image.new("RGB", (side + 1, side + 1), "white")
    ImageDraw.Draw(box).text((side / 2, side / 2), label, fill="red", font=font(font_px), anchor="mm")
    return box


# Letter positions and word width of Pillow's complex text layout at a font size; without that layout Pillow sets the
# word 2 px wider.
_SET = {("Query", 50): ((0, 43, 78, 112, 137), 169)}


@dataclass(frozen=True)
class PublishedMarker:
    """The marker of the V-GIFT release (arXiv 2604.12966): a red dot, and its label in a box that fits its glyphs.

    Unlike `Marker` it may cover other markers and extend beyond the picture.
    """

    radius_px: int
    rim: str
    rim_px: int
    font_px: int
    offset: tuple[int, int]  # of the label's origin from the right and top edges of the dot
    padding_px: int

    def paint(self, image: Image.Image, xy: tuple[int, int], label: str) -> None:
        """Paints dot and label onto an RGB image, in place; (x, y) in pixels."""
        draw = ImageDraw.Draw(image)
        (x, y), r, glyphs = xy, self.radius_px, font(self.font_px)
        draw.ellipse((x - r, y - r, x + r, y + r), fill="red", outline=self.rim, width=self.rim_px)
        left, top = x + r + self.offset[0], y - r + self.offset[1]
        starts, width = _SET.get((label, self.font_px), ((), None))
        places = list(zip(label, starts, strict=True)) if starts else [(label, 0)]
        boxes = [draw.textbbox((left + start, top), text, font=glyphs) for text, start in places]
        right = boxes[-1][2] if width is None else left + width
        edges = min(box[0] for box in boxes), min(box[1] for box in boxes), right, max(box[3] for box in boxes)
        outwards = (-self.padding_px, -self.padding_px, self.padding_px, self.padding_px)
        draw.rectangle(tuple(a + b for a, b in zip(edges, outwards, strict=True)), fill="white")
        for text, start in places:
            draw.text((left + start, top), text, fill="red", font=glyphs)


def side_by_side(left: Image.Image, right: Image.Image, gap_px: int) -> Image.Image:
    """Returns both images on one white canvas, top-aligned; the right one starts at left.width + gap_px."""
    canvas = Image.new("RGB", (left.width + gap_px + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + gap_px, 0))
    return canvas


_last: tuple = (lambda: None, None, None)


def fitted(photo: Image.Image, size_px: int) -> Image.Image:
    """Returns the photograph resized to a longest side of `size_px`, the other one rounded down; do not modify it.

    `draw` and `render` of a sample need the same copy, so the last one is cached while its photograph is alive.
    """
    global _last
    of, size, kept = _last
    if of() is not photo or size != size_px:
        scale = size_px / max(photo.size)
        width, height = (max(1, int(side * scale)) for side in photo.size)
        kept = photo.resize((width, height), Image.Resampling.BILINEAR)
        _last = weakref.ref(photo), size_px, kept
    return kept


def relit(image: Image.Image, brightness: float, contrast: float, saturation: float) -> Image.Image:
    """Returns an image with changed brightness, contrast (about the mean luma) and saturation; a factor of 1 is none.

    All three are linear in RGB, so they are combined into one matrix.
    """
    mean = float(np.asarray(image.reduce(8), np.float32).mean((0, 1)) @ LUMA) * brightness
    grey = np.outer(np.ones(3), LUMA)
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = np.full((3, 1), (1 - contrast) * mean)  # a grey offset, which saturation does not change
    return image.convert("RGB", tuple(np.hstack([matrix, offset]).ravel().tolist()))


def looks_flat(image: Image.Image, least: float) -> bool:
    """Returns whether a photograph is nearly uniform.

    It is if the standard deviation of brightness in a thumbnail of about 32 px is below `least` (0 to 127.5).
    """
    small = image.reduce(max(1, max(image.size) // 32)).convert("L")
    return float(np.asarray(small, np.float32).std()) < least


def test_card(wh: tuple[int, int] = (640, 480)) -> Image.Image:
    """Returns a colourful drawing with a clear top, on which tasks can be shown without a photograph."""
    width, height = wh
    image = Image.new("RGB", wh)
    draw = ImageDraw.Draw(image)
    for row in range(height):  # a sky that pales towards the horizon
        t = row / height
        draw.line((0, row, width, row), fill=(round(70 + 150 * t), round(130 + 90 * t), 235))
    hues = ["#c0392b", "#f39c12", "#8e44ad", "#16a085", "#d35400", "#7f5539", "#e84393", "#2c3e50"]
    step = width / len(hues)
    for k, hue in enumerate(hues):  # a skyline of coloured houses
        top = height * (0.35 + 0.25 * ((k * 5) % 7) / 7)
        draw.rectangle((k * step, top, (k + 1) * step, height * 0.8), fill=hue)
        draw.rectangle((k * step + step / 4, top + step / 3, k * step + step / 2, top + step * 0.7), fill="#f7f1c9")
    draw.rectangle((0, height * 0.8, width, height), fill="#3f8f3a")
    draw.ellipse((width * 0.78, height * 0.06, width * 0.78 + height * 0.16, height * 0.22), fill="#ffe14d")
    return image
