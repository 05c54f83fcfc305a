"""Corrupts pictures, so that their descriptions get worse: by very low resolution, or wrong brightness and colours.

STIC (arXiv 2405.19716), algorithm 1 and its published code: the shorter side is shrunk to 20 px, or brightness is
jittered by 0.5 and hue by 0.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .preferences import JITTER, LOWRES

SHORTER_PX = 20
BRIGHTNESS = 0.5  # the factor is uniform in 1 ± this
HUE = 0.3  # the shift is uniform in ± this, as a share of the colour circle


def draw(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """Returns the parameters of one corruption, JSON-able and sufficient to repeat it.

    Args:
        kind: `lowres` or `jitter`.
        rng: the picture's own generator.
    """
    if kind == LOWRES:
        return {"kind": LOWRES, "shorter_px": SHORTER_PX}
    assert kind == JITTER, kind
    brightness, hue = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS), rng.uniform(-HUE, HUE)
    return {"kind": JITTER, "brightness": round(brightness, 4), "hue": round(hue, 4)}


def corrupt(image: Image.Image, params: dict[str, Any]) -> Image.Image:
    """Returns the corrupted picture.

    Args:
        image: RGB; for `lowres` its shorter side is above `shorter_px`.
        params: from `draw`. lowres: the longer side is rounded down, the filter is Pillow's BILINEAR. jitter: every
            channel is multiplied by `brightness` and clipped at 255 (a pixel of 100 at 1.5 becomes 150), then the hue
            is shifted by `hue` turns, in Pillow's 8-bit HSV.

    Raises:
        ValueError: `params` is of an unknown kind, or lacks a number.
    """
    try:
        if params["kind"] == LOWRES:
            shorter, short = int(params["shorter_px"]), min(image.size)
            width, height = (side * shorter // short for side in image.size)
            return image.resize((width, height), Image.Resampling.BILINEAR)
        if params["kind"] == JITTER:
            return _jitter(image, float(params["brightness"]), float(params["hue"]))
    except (KeyError, TypeError) as err:
        raise ValueError(f"{params!r} is no corruption: {err!r}") from err
    raise ValueError(f"{params['kind']!r} is no kind of corruption")


def _jitter(image: Image.Image, brightness: float, hue: float) -> Image.Image:
    lit = np.clip(np.asarray(image, np.float32) * brightness, 0, 255).round().astype(np.uint8)
    hsv = np.array(Image.fromarray(lit).convert("HSV"))
    hsv[..., 0] += np.uint8(round(hue * 256) % 256)  # wraps around, as hues do
    return Image.fromarray(hsv, "HSV").convert("RGB")
