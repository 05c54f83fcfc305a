"""Colour names and distances: the nearest in CIELAB of the 949 names of the xkcd survey, as shipped by matplotlib."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

# sRGB (D65) to XYZ, relative to the white point, IEC 61966-2-1; rows give X/Xn, Y, Z/Zn.
_TO_XYZ = np.array(
    [
        [0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047],
        [0.212671, 0.715160, 0.072169],
        [0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883],
    ]
)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Returns CIELAB (D65, 2° observer) of sRGB.

    Args:
        rgb: shape (..., 3), 0 to 255.

    Returns:
        float64, same shape: L* in [0, 100], a*, b* about [-128, 127]. (255, 0, 0) gives (53.24, 80.09, 67.20).
    """
    unit = np.asarray(rgb, np.float64) / 255
    linear = np.where(unit > 0.04045, ((unit + 0.055) / 1.055) ** 2.4, unit / 12.92)
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@lru_cache(maxsize=1)
def xkcd() -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the 949 names and their CIELAB colours, shape (949, 3)."""
    from matplotlib.colors import XKCD_COLORS

    names = tuple(name.removeprefix("xkcd:") for name in XKCD_COLORS)
    rgb = np.array([[int(str(code)[k : k + 2], 16) for k in (1, 3, 5)] for code in XKCD_COLORS.values()])
    return names, rgb_to_lab(rgb)


def nearest_names(rgb: np.ndarray) -> list[str]:
    """Returns the xkcd name nearest in CIELAB (Euclidean, CIE76) to each colour of shape (n, 3), 0 to 255."""
    names, table = xkcd()
    squared = ((rgb_to_lab(rgb)[:, None, :] - table[None]) ** 2).sum(-1)
    return [names[k] for k in squared.argmin(1)]


def colorfulness(rgb: np.ndarray) -> float:
    """Returns the colourfulness M of an image of shape (h, w, 3), 0 to 255 (Hasler and Süsstrunk 2003, section 7).

    It is 0 for greyscale; the paper calls 15 "slightly" and 33 "moderately colorful". A sepia print scores low.
    """
    red, green, blue = np.moveaxis(np.asarray(rgb, np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
