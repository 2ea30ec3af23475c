"""A glass box: a Keras model of a person whose explanation is exact.

How much gray matter is where (a tone band, a mean over slices, a blur) goes through one linear
layer to a severity, and from that to the logits. What each place adds sums to the answer, so that
`mri.GradCAM` with ``method="hirescam"`` shows the whole of it and nothing else.
"""

from __future__ import annotations

import numpy as np

from mri._arguments import require
from mri._keras import keras
from mri.data.tone_map import CENTRE, HEIGHTS, SLAB, STEP, WIDTH, blur_taps

layers = keras.layers


def glass_box(
    weights: np.ndarray,
    centre: np.ndarray,
    intercept: float,
    *,
    slopes: np.ndarray,
    offsets: np.ndarray,
) -> keras.Model:
    """Build the model and write its numbers in: Keras' own layers only, none to be trained.

    Parameters
    ----------
    weights, centre : ndarray of float, shape (8, r, c)
        What each place of the tone map counts, and what is taken from it before.
    intercept : float
        Severity of a person who is as `centre` everywhere.
    slopes, offsets : ndarray of float, shape (k,)
        Of the logits: ``slopes * severity + offsets``.

    Returns
    -------
    keras.Model
        From ``"slices"``, float32 (n, 4 r, 4 c, 32), gray values of prepared people, to
        ``"logits"`` (n, k). The layer ``"severity"`` gives the score, (n, 1), ``"last_conv"`` the
        tone map less its centre, (n, r, c, 8).

    Raises
    ------
    ValueError
        If `weights` and `centre` are not of one such shape.

    Examples
    --------
    >>> places = np.zeros((8, 16, 16))
    >>> glass_box(places, places, 0.5, slopes=np.ones(4), offsets=np.zeros(4)).output_shape
    (None, 4)
    """
    shapes, slabs = {"weights": np.shape(weights), "centre": np.shape(centre)}, HEIGHTS // SLAB
    fits = len({*shapes.values()}) == 1 and np.ndim(centre) == 3 and len(centre) == slabs
    require(fits, f"weights and centre must be ({slabs}, r, c).", **shapes)
    rows, columns = shapes["weights"][1:]
    # Exact in any policy: what is explained are these numbers, not their halves.
    exact = {"dtype": "float32"}
    inputs = keras.Input((STEP * rows, STEP * columns, HEIGHTS), name="slices", dtype="float32")
    places = layers.Normalization(axis=(1, 2, 3), name="last_conv", **exact)
    severity = layers.Dense(1, name="severity", **exact)
    logits = layers.Dense(len(slopes), name="logits", **exact)
    x = layers.Flatten(name="places", **exact)(places(_tone_map(inputs, exact)))
    model = keras.Model(inputs, logits(severity(x)), name="glass_box")
    centre = np.moveaxis(centre, 0, -1)
    # Centred only: a place that varies little must not count more for it.
    places.set_weights([centre, np.ones_like(centre), np.array(0, np.int32)])
    places.finalize_state()
    severity.set_weights(
        [np.moveaxis(weights, 0, -1).reshape(-1, 1), np.array([intercept], np.float32)]
    )
    logits.set_weights([slopes[None], offsets])
    model.trainable = False
    return model


def _tone_map(x: keras.KerasTensor, exact: dict[str, str]) -> keras.KerasTensor:
    """Apply the steps of `mri.data.tone_map.tone_map`, channels last."""
    taps, slabs = blur_taps(), HEIGHTS // SLAB
    x = layers.Rescaling(1 / WIDTH, -CENTRE / WIDTH, name="band", **exact)(x)
    x = layers.Rescaling(-1.0, name="distance", **exact)(layers.Multiply(**exact)([x, x]))
    x = layers.Activation("exponential", name="tone", **exact)(x)
    mean = layers.Conv2D(slabs, 1, use_bias=False, name="slabs", **exact)
    x = layers.ZeroPadding2D((len(taps) // 2,) * 2, name="padding", **exact)(mean(x))
    blur = layers.DepthwiseConv2D(
        len(taps) // 2 * 2 + 1, strides=STEP, use_bias=False, name="blur", **exact
    )
    x = blur(x)
    mean.set_weights([np.repeat(np.eye(slabs), SLAB, axis=0)[None, None] / SLAB])
    blur.set_weights([np.repeat(np.outer(taps, taps)[..., None, None], slabs, axis=2)])
    return x
