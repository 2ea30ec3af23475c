"""One number a person, with nothing trained but two cut points: what every model has to beat.

Dementia thins gray matter and widens the fluid around it, so the sign of each number is known
before any diagnosis is seen. `mri.training.ordinal.fit_ordinal` cuts the numbers into classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from scipy.ndimage import binary_fill_holes

from mri._arguments import require
from mri.data.tone_map import ANCHORS, band

_BLACK = ANCHORS[0] / 2  # Darker pixels are outside the head.
_FLUID = (ANCHORS[0] + ANCHORS[1]) / 2  # Half-way from fluid to gray matter.
_DEEP = 0.5  # Share of the largest depth; further in lie ventricles and hardly any sulci.


def gray_share(images: np.ndarray) -> float:
    """Return how much of a person's brain and fluid has the tone of gray matter, 0 to 1.

    Parameters
    ----------
    images : ndarray of float32, shape (n, h, w)
        `Tones.images` of `mri.subjects.person.person_tones`.

    Raises
    ------
    ValueError
        If `images` are not finite numbers (n, h, w), or nothing is brighter than the outside.
    """
    images = _checked(images)
    return float(band(images[images > _BLACK]).mean())


def fluid_share(images: np.ndarray) -> float:
    """Return how much of the inside of a person's head is fluid, 0 to 1; see `gray_share`."""
    images = _checked(images)
    heads = _heads(images)
    return float((heads & (images < _FLUID)).sum() / heads.sum())


def ventricle_share(images: np.ndarray) -> float:
    """Return how much of the inside of a person's head is fluid far from its outline, 0 to 1.

    "Far" means more than half the way to the deepest point of the slice. This takes in the
    ventricles, but not the sulci and most of the fissures. See `gray_share`.
    """
    images = _checked(images)
    heads = _heads(images)
    depth = np.stack([cv2.distanceTransform(h.astype(np.uint8), cv2.DIST_L2, 5) for h in heads])
    deep = depth > _DEEP * depth.max((1, 2), keepdims=True)
    return float((heads & deep & (images < _FLUID)).sum() / heads.sum())


def _heads(images: np.ndarray) -> np.ndarray:
    return np.stack([binary_fill_holes(image > _BLACK) for image in images])


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    fits = images.ndim == 3 and images.dtype.kind in "uif" and bool(np.isfinite(images).all())
    require(fits, "images must be finite (n, h, w).", shape=images.shape, dtype=str(images.dtype))
    require(bool((images > _BLACK).any()), f"Some pixel must be above {_BLACK}.", n=len(images))
    return images


ONE_NUMBER: Mapping[str, tuple[Callable[[np.ndarray], float], int]] = {
    "gray share": (gray_share, -1),
    "ventricle volume": (ventricle_share, 1),
    "all fluid": (fluid_share, 1),
}
"""Name to the number, and its sign: +1 where more of it is expected in dementia, -1 where less."""
