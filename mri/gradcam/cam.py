"""Heatmaps of what a convolutional network looked at: Grad-CAM and its relatives.

`GradCAM` traces a Keras model once and takes the output of a layer out of that trace. Sequential,
functional, nested, subclassed and loaded models are therefore all alike, one forward pass serves
logits and maps, and only the head behind the layer is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mri._keras import keras, tf
from mri.gradcam.receptive_fields import receptive_fields, stretch
from mri.gradcam.trace import (
    differentiate,
    image_spec,
    logits_behind,
    one_output,
    record_calls,
)


@dataclass(frozen=True)
class Explanation:
    """Heatmaps of n images and what they explain, all of one forward pass.

    Attributes
    ----------
    maps : float32 (n, h, w) in [0, 1], at the resolution of the images; each divided by its maximum
    raw : float32 (n, hf, wf), on the grid of the layer: after the ReLU, before any scaling
    classes : int64 (n,), the class explained
    logits : float32 (n, k); (-z, z) of a model with a single unit z
    zero : bool (n,), True where nothing speaks for the class: that map is zero everywhere
    """

    maps: np.ndarray
    raw: np.ndarray
    classes: np.ndarray
    logits: np.ndarray
    zero: np.ndarray


def _grad_cam_pp(a: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """Weight each channel by the sum of its positive gradients, each times its alpha."""
    # The paper's equation 19 divided through by g², which underflows when gradients are small.
    alpha = tf.math.divide_no_nan(1.0, 2.0 + tf.reduce_sum(a, (1, 2), keepdims=True) * g)
    return a * tf.reduce_sum(alpha * tf.nn.relu(g), (1, 2), keepdims=True)


METHODS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "grad-cam": lambda a, g: a * tf.reduce_mean(g, (1, 2), keepdims=True),
    "grad-cam++": _grad_cam_pp,
    "hirescam": lambda a, g: a * g,
    "layercam": lambda a, g: a * tf.nn.relu(g),
}
"""Functions of activations and gradients, float32 (n, h, w, c): a map is their sum over c."""


class GradCAM:
    """Class activation maps of a Keras model (TensorFlow backend), which is left as it was.

    The gradient is that of the class's logit, also where the model ends in softmax or sigmoid,
    whose own gradient vanishes when the model is sure. Weights are read at every call: after more
    training the same object explains the new state. Dropout and the like are off. Maps are
    stretched to the image bilinearly between the pixels on which the receptive fields of the cells
    are centred (`mri.gradcam.receptive_fields`), since strides and padding move these by up to half
    a cell. The attribute `layers` holds the layers in the order of their use, each inner one before
    the one that holds it.

    Parameters
    ----------
    model
        A built model from one image input to class scores (n, k).
    layer
        Name or object of a layer with a 4-D output, at any depth. By default the one that is named
        ``"last_conv"``, else the last convolution that leads to the output and has a grid, with the
        normalisation and activation behind it.
        Of a layer used more than once, the last use.
        The attribute `layer` holds the one chosen.
    method
        ``"grad-cam"`` (doi:10.1109/ICCV.2017.74), ``"grad-cam++"`` (doi:10.1109/WACV.2018.00097,
        meant for activations >= 0), ``"hirescam"`` (arXiv:2011.08891) or ``"layercam"``
        (doi:10.1109/TIP.2021.3089943).
    output
        Name or index of the output to explain, of a model with several.

    Raises
    ------
    ValueError
        If the model is not of that form, or has no such method, layer or output.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Conv2D(4, 3, name="last"),
    ...                           keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    >>> cam = GradCAM(model)
    >>> cam.layer.name, cam(np.zeros((5, 16, 16), np.uint8), classes=2).maps.shape
    ('last', (5, 16, 16))
    """

    def __init__(
        self,
        model: keras.Model,
        layer: str | keras.Layer | None = None,
        *,
        method: str = "grad-cam",
        output: str | int | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {list(METHODS)}. Received: {method=}")
        self._images = image_spec(model)

        def explain(images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs, calls = record_calls(model, images)
            self.layers = [layer for layer, _ in calls]
            logits = logits_behind(one_output(model, outputs, output))
            self._k = logits.shape[1]
            classes = tf.where(classes < 0, tf.argmax(logits, 1, tf.int32), classes)
            # Images do not mix in inference: one gradient of the batch holds each image's own.
            self.layer, a, g = differentiate(logits, tf.one_hot(classes, self._k), calls, layer)
            raw = tf.nn.relu(tf.reduce_sum(METHODS[method](a, g), -1))
            maps = tf.math.divide_no_nan(raw, tf.reduce_max(raw, (1, 2), keepdims=True))
            maps = stretch(maps, receptive_fields(images, a), *tf.unstack(tf.shape(images)[1:3]))
            maps = tf.math.divide_no_nan(maps, tf.reduce_max(maps, (1, 2), keepdims=True))
            return maps, raw, classes, logits

        # One trace for all batch sizes, and here, so that what cannot work is said at once.
        self._explain = tf.function(explain, autograph=False).get_concrete_function(
            self._images, tf.TensorSpec((None,), tf.int32)
        )

    def __call__(
        self,
        images: ArrayLike,
        classes: ArrayLike | None = None,
        *,
        batch_size: int = 64,
    ) -> Explanation:
        """Explain `images`, numbers (n, h, w), (n, h, w, c) or one slice (h, w), as for `predict`.

        `classes` is the class to explain, one for all or (n,) integers; None is the predicted one.
        `batch_size` changes memory and time only. Raises ValueError for images or classes of the
        wrong shape, type or range, if a result is not finite, and if the results are probabilities
        whose logits are out of reach.
        """
        x = np.asarray(images)
        x = x[None] if x.ndim == 2 else x
        x = x[..., None] if x.ndim == 3 else x
        fits = self._images.shape.is_compatible_with(x.shape) and len(x) > 0
        if not (fits and x.dtype.kind in "buif" and np.isfinite(x).all()):
            raise ValueError(
                f"`images` must be finite numbers (n, h, w, c) that fit {self._images.shape}. "
                f"Received: images.shape={np.shape(images)}, images.dtype={x.dtype}"
            )
        wanted = np.asarray(-1 if classes is None else classes)
        fits = wanted.shape in ((), (len(x),)) and wanted.dtype.kind in "iu"
        if classes is not None and not (fits and 0 <= wanted.min() <= wanted.max() < self._k):
            raise ValueError(
                f"`classes` must be None, one integer or {len(x)} of them, in 0..{self._k - 1}. "
                f"Received: {classes=}"
            )
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1. Received: {batch_size=}")
        wanted = np.full(len(x), wanted, np.int32)
        batches = (slice(i, i + batch_size) for i in range(0, len(x), batch_size))
        parts = [self._explain(tf.cast(x[b], self._images.dtype), wanted[b]) for b in batches]
        maps, raw, chosen, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
        finite = np.isfinite(logits).all(1) & np.isfinite(raw).all((1, 2))
        if not finite.all():
            raise ValueError(
                "Logits or gradients are NaN or infinite: check the pixels and the weights. "
                f"Received: {np.sum(~finite)} such images, the first at index {finite.argmin()}"
            )
        if self._k > 1 and (logits >= 0).all() and np.allclose(logits.sum(1), 1, 0, 1e-5):
            raise ValueError(
                "The model ends in probabilities, whose gradients vanish where it is sure, and the "
                "logits behind them cannot be found (a softmax is looked for as the last "
                "operation, outside a tf.function of the model's own). Explain a model of the "
                f"layers before. Received: {self.layers[-2:]} as the last layers"
            )
        return Explanation(maps, raw, chosen.astype(np.int64), logits, maps.max((1, 2)) == 0)
