"""Heatmaps of what a convolutional network looked at: Grad-CAM and its relatives.

`GradCAM` traces a Keras model once and takes the output of a layer out of that trace. This works
for every kind of model, one forward pass serves logits and maps, and only the head behind the layer
is differentiated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mri._arguments import require
from mri._keras import keras, tf
from mri.data.labels import places_of
from mri.data.parquet import CLASS_NAMES
from mri.gradcam.receptive_fields import cells_of, stretch
from mri.gradcam.trace import choose, record_calls
from mri.models.scores import (
    TO_SLICES,
    batches,
    image_input,
    kind_of,
    log_shares,
    one_output,
    read,
    warn_of_draws,
    warn_of_small,
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


def _cells(a: tf.Tensor) -> tf.Tensor:
    """Return the number of cells of the grid, float32."""
    return tf.cast(tf.reduce_prod(tf.shape(a)[1:3]), tf.float32)


def _grad_cam_pp(a: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """Weigh each channel by the sum of its positive gradients, each times its alpha."""
    # The paper's equation 19 divided through by g², which underflows when gradients are small.
    alpha = tf.math.divide_no_nan(1.0, 2.0 + tf.reduce_sum(a, (1, 2), keepdims=True) * g)
    return tf.reduce_sum(alpha * tf.nn.relu(g), (1, 2), keepdims=True)


METHODS: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "grad-cam": lambda a, g: tf.reduce_sum(g, (1, 2), keepdims=True) / _cells(a),
    "grad-cam++": _grad_cam_pp,
    "hirescam": lambda a, g: g,
    "layercam": lambda a, g: tf.nn.relu(g),
}
"""Functions from activations and gradients, float32 (n, h, w, c), to the weights of the activations
in the map: (n, 1, 1, c), one for each channel, or (n, h, w, c)."""


def _weighted(a: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Return the sum, float32 (n, h, w), of activations of any float type over the channels."""
    if weights.shape[1:3] != (1, 1):
        return tf.reduce_sum(tf.cast(a, tf.float32) * weights, -1)
    # A product of matrices needs no copy of the activations. bfloat16 has the range of float32, and
    # one more rounding of what was rounded so often; float16 could overflow.
    dtype = tf.bfloat16 if a.dtype == tf.bfloat16 else tf.float32
    n, h, w, c = tf.unstack(tf.shape(a))
    row, cells = tf.reshape(weights, (n, 1, c)), tf.reshape(a, (n, h * w, c))
    product = tf.matmul(tf.cast(row, dtype), tf.cast(cells, dtype), transpose_b=True)
    return tf.cast(tf.reshape(product, (n, h, w)), tf.float32)


_UNKNOWN_PLACE = (
    "where the cells of {!r} lie in the image cannot be read from the model, as behind a resizing "
    "that keeps the aspect ratio: its maps are stretched evenly over the image and may be shifted"
)


class GradCAM:
    """Class activation maps of a Keras model (TensorFlow backend), which is left as it was.

    The gradient is that of the class's logit, even if the model ends in softmax or sigmoid, because
    their own gradient vanishes when the model is sure. If the logits are out of reach, as in an
    averaged ensemble, it is that of the log odds. The attribute `kind`, a key of
    `mri.models.READ_AS`, says which. The channels may come first. Weights are read at every call.

    Maps are stretched to the image bilinearly between the centres of the receptive fields of the
    cells (`mri.gradcam.receptive_fields`): strides and padding move these by up to half a cell. The
    attribute `layers` holds the layers in order of use, inner ones before the one that holds them.

    Parameters
    ----------
    model
        A built model from one image input to class scores (n, k).
    layer
        Name or object of a layer with a 4-D output, at any depth; its last use counts. By default
        the one named ``"last_conv"``, else the last result with a grid, before pooling, through
        which every path from the image to the logits goes, so that no branch is left out. If what
        follows is linear, HiResCAM's map sums to the logit less its bias. The attribute `layer`
        holds the one chosen, or the last before it.
    method
        ``"grad-cam"`` (doi:10.1109/ICCV.2017.74), ``"grad-cam++"`` (doi:10.1109/WACV.2018.00097,
        meant for activations >= 0), ``"hirescam"`` (arXiv:2011.08891) or ``"layercam"``
        (doi:10.1109/TIP.2021.3089943).
    output
        Name or index of the output to explain, of a model with several.
    class_names
        In the order of the logits; for four classes, by default those of the data set.

    Raises
    ------
    ValueError
        If the model is not of that form, or has no such method, layer or output: the message names
        those to choose from.

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
        class_names: Sequence[str] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {list(METHODS)}. Received: {method=}")
        expected = "A method must be given by name: GradCAM(model, method=…)."
        require(not isinstance(layer, str) or layer not in METHODS, expected, layer=layer)
        self._input = image_input(model)
        self._model, self._wanted, self._output = model, layer, output
        self.method = method
        self._trace()
        warn_of_draws(self._explain.graph)
        usual = CLASS_NAMES if self._k == len(CLASS_NAMES) else ()
        names = usual if class_names is None else tuple(class_names)
        require(
            len(names) in (0, self._k),
            f"`class_names` must be {self._k} names.",
            class_names=class_names,
        )
        self.class_names = names

    def _trace(self, shares: bool = False, size: tuple[int, ...] | None = None) -> None:
        """Trace the model; with `shares`, what it gives are probabilities without logits.

        `size` is (h, w) of the images, where the model leaves it open.
        """
        n, *sides, channels = self._input.shape
        to = self._input._replace(shape=(n, *(size or sides), channels))

        def explain(images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs, calls = record_calls(self._model, images, self._input)
            self.layers = [v for v, _ in calls if isinstance(v, keras.Layer)]
            logits, self._end = read(one_output(self._model, outputs, self._output))
            self._k = logits.shape[1]
            classes = tf.where(classes < 0, tf.argmax(logits, 1, tf.int32), classes)
            one_hot = tf.one_hot(classes, self._k)
            # Images do not mix in inference: one gradient of the batch holds each image's own.
            explained = _log_odds(logits, one_hot) if shares else logits * one_hot
            summed = self.method == "grad-cam"
            target = choose(images, (logits, explained), calls, self._wanted, only_sum=summed)
            self.layer = target.layer
            a, g = target.moved(target.tensor), target.moved(target.gradients)
            weights = METHODS[self.method](tf.cast(a, tf.float32), tf.cast(g, tf.float32))
            raw = tf.nn.relu(_weighted(a, weights))
            if None not in to.shape[1:3] and not (target.grid and target.grid.axes):
                warnings.warn(_UNKNOWN_PLACE.format(target.layer.name), stacklevel=5)
            axes = cells_of(images, target.tensor, target.grid)
            sides = zip(images.shape[1:3], tf.unstack(tf.shape(images)[1:3]), strict=True)
            maps = stretch(raw, axes, *(of or side for of, side in sides))
            top = tf.reduce_max(maps, (1, 2), keepdims=True)
            maps /= tf.where(top > 0, top, 1.0)  # `divide_no_nan` takes much longer.
            return maps, raw, classes, logits

        # One trace for all batch sizes, and here, so that what cannot work is said at once.
        self._explain = tf.function(explain, autograph=False).get_concrete_function(
            to.spec, tf.TensorSpec((n,), tf.int32)
        )
        self._shares, self._size = shares, to.shape[1:3]
        self.kind = "probabilities" if shares else self._end

    def by(self, method: str) -> GradCAM:
        """Return the same with another method: of the same model, layer and output."""
        names = self.class_names
        return GradCAM(
            self._model, self._wanted, method=method, output=self._output, class_names=names
        )

    def __call__(
        self,
        images: ArrayLike,
        classes: ArrayLike | None = None,
        *,
        batch_size: int = 64,
    ) -> Explanation:
        """Explain `images`, numbers (n, h, w), (n, h, w, c) or one slice (h, w), as for `predict`.

        `classes` is the class to explain, one for all or (n,) integers or names; None is the
        predicted one. `batch_size` changes memory and time only. Raises ValueError if images or
        classes do not fit, if a result is not finite or a probability without logits rounded to 1.
        """
        x = self._checked(images)
        warn_of_small(self._model, x)
        wanted = self._numbers(classes, len(x))
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1. Received: {batch_size=}")
        size = x.shape[1:3]
        if self._size != size:
            # What the cells see depends on the size, if padding does.
            self._trace(self._shares, size)
        found = self._explained(x, wanted, batch_size)
        # What was unclear of a few slices need not be of others.
        self.kind = self.kind if self._shares else kind_of(self._end, found[3])
        if self.kind == "probabilities" and not self._shares:
            self._trace(shares=True, size=size)
            found = self._explained(x, wanted, batch_size)
        maps, raw, chosen, logits = found
        if self._shares:
            # Where all others are rounded to zero, so is every trace of what decided.
            sure = (logits >= logits.sum(1, keepdims=True)).any(1)
            if sure.any():
                raise ValueError(
                    "The model gives probabilities whose logits are out of reach (a softmax is "
                    "looked for as the last operation, outside a tf.function of the model's own), "
                    "and rounds them to 1, which leaves no gradient. Explain a model of the layers "
                    f"before. Received: {sure.sum()} such images, the first at index "
                    f"{sure.argmax()}"
                )
            logits = log_shares(logits)
        finite = np.isfinite(logits).all(1) & np.isfinite(raw).all((1, 2))
        if not finite.all():
            raise ValueError(
                "Logits or gradients are NaN or infinite: check the pixels and the weights. "
                f"Received: {np.sum(~finite)} such images, the first at index {finite.argmin()}"
            )
        return Explanation(maps, raw, chosen.astype(np.int64), logits, maps.max((1, 2)) == 0)

    def _checked(self, images: ArrayLike) -> np.ndarray:
        x = np.asarray(images)
        x = x[None] if x.ndim == 2 else x
        x = x[..., None] if x.ndim == 3 else x
        shape = tf.TensorShape((None, *self._input.shape[1:]))
        fits = shape.is_compatible_with(x.shape) and len(x) > 0
        if not (fits and x.dtype.kind in "buif" and np.isfinite(x).all()):
            raise ValueError(
                "`images` must be finite numbers (n, h, w, c), such as scans.images, that fit "
                f"{shape}{TO_SLICES}. Received: images.shape={np.shape(images)}, "
                f"images.dtype={x.dtype}"
            )
        return x

    def _numbers(self, classes: ArrayLike | None, n: int) -> np.ndarray:
        """Return the class of each of `n` images, -1 for the predicted one."""
        wanted = np.asarray(-1 if classes is None else classes)
        if wanted.dtype.kind in "UO" and wanted.shape in ((), (n,)):
            at = places_of(self.class_names, [str(name) for name in np.atleast_1d(wanted)])
            wanted = wanted if at is None else np.array(at).reshape(wanted.shape)
        fits = wanted.shape in ((), (n,)) and wanted.dtype.kind in "iu"
        if classes is not None and not (fits and 0 <= wanted.min() <= wanted.max() < self._k):
            known = f"one of {list(self.class_names)}, " if self.class_names else ""
            raise ValueError(
                f"`classes` must be None, {known}one integer or {n} of them, in 0..{self._k - 1}. "
                f"Received: {classes=}"
            )
        return np.full(n, wanted, np.int32)

    def _explained(self, x: np.ndarray, wanted: np.ndarray, batch_size: int) -> list[np.ndarray]:
        images = batches(x, self._input, batch_size)
        ends = np.cumsum([len(batch) for batch in images])
        padded = np.concatenate([wanted, np.repeat(wanted[-1:], ends[-1] - len(x))])
        # Two batches at a time: of a small network, one alone keeps one core busy.
        with ThreadPoolExecutor(2) as pool:
            parts = list(
                pool.map(
                    lambda batch, end: self._explain(batch, padded[end - len(batch) : end]),
                    images,
                    ends,
                )
            )
        return [np.concatenate(part)[: len(x)] for part in zip(*parts, strict=True)]


def _log_odds(shares: tf.Tensor, one_hot: tf.Tensor) -> tf.Tensor:
    """Log odds (n, 1) of a class: of probabilities near 1 their gradient does not fade."""
    own = tf.reduce_sum(shares * one_hot, 1, keepdims=True)
    return tf.math.log(own) - tf.math.log(tf.reduce_sum(shares * (1 - one_hot), 1, keepdims=True))
