"""How much gray matter is where: the numbers that `mri.models.glass_box` is linear in.

The same steps in NumPy as in the Keras model, so that fitting needs no TensorFlow; a test holds
one against the other.
"""

from __future__ import annotations

import cv2
import numpy as np

from mri._arguments import require

HEIGHTS = 32
"""Heights along the head at which a person is described, from below upwards."""

ANCHORS = 30.0, 110.0, 190.0
"""Gray values that fluid, gray matter and white matter are mapped to: equal steps."""

CENTRE, WIDTH = 110.0, 30.0
"""Of the band of tones, in these gray values: it is gray matter that is looked for."""

SLAB = 4
"""Slices that are averaged."""

SIGMA, STEP = 4.0, 4
"""Standard deviation of the blur, and distance of the places that are read, in pixels."""


def band(images: np.ndarray) -> np.ndarray:
    """Return how well each gray value fits gray matter: 1 at `CENTRE`, exp(-1) at `WIDTH` from it.

    >>> band(np.array([110.0, 140.0, 0.0])).round(3).tolist()
    [1.0, 0.368, 0.0]
    """
    return np.exp(-np.square((images - CENTRE) / WIDTH))


def tone_with_band(values: np.ndarray) -> np.ndarray:
    """Return the gray value below `CENTRE` whose `band` is `values`, 0 where that is below 0."""
    distance = np.sqrt(-np.log(np.clip(values, 1e-12, 1.0)))
    return np.maximum(CENTRE - WIDTH * distance, 0.0)


def blur_taps() -> np.ndarray:
    """Return the weights of the blur along one axis, float64 (33,), with a sum of 1."""
    reach = int(4 * SIGMA)
    taps = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / SIGMA))
    return taps / taps.sum()


def tone_map(images: np.ndarray) -> np.ndarray:
    """Return how much of the tissue around each place has the tone of gray matter, 0 to 1.

    Of a person's `images`, float (32, h, w), as `mri.subjects.person.prepare_person` returns them.
    Returns float32 (8, h / 4, w / 4), rounded up: slabs from below upwards, every fourth pixel.

    Examples
    --------
    >>> tone_map(np.full((32, 64, 64), 110.0))[0, 8, 8].round(3)
    np.float32(1.0)
    """
    images = np.asarray(images)
    fits = images.ndim == 3 and len(images) == HEIGHTS and images.dtype.kind in "uif"
    expected = f"images must be numbers ({HEIGHTS}, h, w)."
    require(fits, expected, shape=images.shape, dtype=str(images.dtype))
    require(bool(np.isfinite(images).all()), "Pixels must be finite.", shape=images.shape)
    slabs = band(images.astype(np.float32)).reshape(-1, SLAB, *images.shape[1:]).mean(1)
    taps = blur_taps()
    blurred = [
        cv2.sepFilter2D(slab, -1, taps, taps, borderType=cv2.BORDER_CONSTANT) for slab in slabs
    ]
    return np.stack(blurred)[:, ::STEP, ::STEP]
