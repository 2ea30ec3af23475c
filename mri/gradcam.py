"""Heatmaps of what a convolutional network looked at: Grad-CAM and its relatives.

`GradCAM` traces a Keras model once and takes the output of a layer out of that trace. Sequential,
functional, nested, subclassed and loaded models are therefore all alike, one forward pass serves
logits and maps, and only the head behind the layer is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mri.backend import keras, tf
from mri.geometry import receptive_fields, stretch

Calls = list[tuple[keras.Layer, tf.Tensor]]

_lock = Lock()


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

_REACH = 2
_OFFSETS = [(i, j) for i in range(2 * _REACH + 1) for j in range(2 * _REACH + 1)]
_OFFSETS.remove((_REACH, _REACH))


class GradCAM:
    """Class activation maps of a Keras model (TensorFlow backend), which is left as it was.

    The gradient is that of the class's logit, also where the model ends in softmax or sigmoid,
    whose own gradient vanishes when the model is sure. Weights are read at every call: after more
    training the same object explains the new state. Dropout and the like are off. Maps are
    stretched to the image bilinearly between the pixels on which the receptive fields of the cells
    are centred (`mri.geometry`), since strides and padding move these by up to half a cell. The
    attribute `layers` holds the layers in the order of their use, each inner one before the one
    that holds it.

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
        self._images = _image_spec(model)

        def explain(images: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, ...]:
            outputs, calls = _run(model, images)
            self.layers = [layer for layer, _ in calls]
            logits = _logits(_one_output(model, outputs, output))
            self._k = logits.shape[1]
            classes = tf.where(classes < 0, tf.argmax(logits, 1, tf.int32), classes)
            # Images do not mix in inference: one gradient of the batch holds each image's own.
            self.layer, a, g = _differentiate(logits, tf.one_hot(classes, self._k), calls, layer)
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
        smooth: int = 0,
        seed: int = 0,
    ) -> Explanation:
        """Explain `images`, numbers (n, h, w), (n, h, w, c) or one slice (h, w), as for `predict`.

        `classes` is the class to explain, one for all or (n,) integers; None is the predicted one.
        `batch_size` changes memory and time only. `smooth` shifted copies of each image, 0 to 24,
        are explained too, for the same class, and `maps` is the mean of all after they are shifted
        back, scaled to its maximum again; `raw` and `logits` stay those of the image itself. The
        offsets, at most two pixels each way and none twice, follow `seed` and are the same for all
        images; pixels of the rim are repeated outwards. The average over changed copies is
        SmoothGrad's (arXiv:1706.03825), the change that of pytorch-grad-cam's ``aug_smooth``,
        which undoes it before averaging: what depends on how the grid of the layer happens to lie
        over the image cancels. Raises ValueError for images or classes of the wrong shape, type or
        range, for other values of `smooth`, if a result is not finite, and if the results are
        probabilities whose logits are out of reach.
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
        if smooth not in range(len(_OFFSETS) + 1):
            raise ValueError(f"`smooth` must be 0 to {len(_OFFSETS)} copies. Received: {smooth=}")
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
        plain = Explanation(maps, raw, chosen.astype(np.int64), logits, maps.max((1, 2)) == 0)
        return self._smoothed(x, plain, batch_size, smooth, seed) if smooth else plain

    def _smoothed(
        self, x: np.ndarray, plain: Explanation, batch_size: int, smooth: int, seed: int
    ) -> Explanation:
        """Return `plain` with its maps averaged with those of `smooth` shifted copies of `x`."""
        (_, h, w), r = plain.maps.shape, _REACH
        padded = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)), "edge")
        # Pixel (y, x) of the copy that starts at (i, j) is (y + i, x + j) of the padded image.
        total = np.pad(plain.maps, ((0, 0), (r, r), (r, r)))
        count = np.pad(np.ones((h, w), np.float32), r)
        for k in np.random.default_rng(seed).permutation(len(_OFFSETS))[:smooth]:
            i, j = _OFFSETS[k]
            copy = self(padded[:, i : i + h, j : j + w], plain.classes, batch_size=batch_size)
            total[:, i : i + h, j : j + w] += copy.maps
            count[i : i + h, j : j + w] += 1
        maps = total[:, r:-r, r:-r] / count[r:-r, r:-r]
        peaks = maps.max((1, 2), keepdims=True)
        maps = maps / np.where(peaks > 0, peaks, 1)
        return replace(plain, maps=maps, zero=peaks[:, 0, 0] == 0)


def _image_spec(model: keras.Model) -> tf.TensorSpec:
    """Shape (None, h, w, c) and dtype of the model's one input."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {model=}")
    try:
        inputs = [(x.shape, x.dtype) for x in model.inputs]
    except AttributeError:
        # A subclassed model has no graph, only the shape that it was first called with.
        inputs = [((model.get_build_config() or {}).get("input_shape") or (), "float32")]
    if len(inputs) != 1 or len(inputs[0][0]) != 4:
        raise ValueError(
            "The model needs one image input (n, h, w, c); without an Input layer, call it once on "
            f"images to build it. Received: {model.name!r} with inputs {inputs}"
        )
    return tf.TensorSpec((None, *inputs[0][0][1:]), inputs[0][1])


def _run(model: keras.Model, images: tf.Tensor) -> tuple[Any, Calls]:
    """Call the model; return its outputs and (layer, result) of each layer called, in order."""
    calls: Calls = []

    def record(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        result = call(layer, *args, **kwargs)
        calls.append((layer, result))
        return result

    # Keras has no hooks, and the layers are the user's: the class is lent for the time of one call.
    # The scope keeps layers that count, draw or add losses in `call` from doing so.
    with _lock, keras.StatelessScope(initialize_variables=False):
        call, keras.Layer.__call__ = keras.Layer.__call__, record
        try:
            return model(images, training=False), calls
        finally:
            keras.Layer.__call__ = call


def _one_output(model: keras.Model, outputs: Any, output: str | int | None) -> tf.Tensor:
    """Choose the output to explain: the only one, or one by name or index."""
    names = list(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", [])
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    index = 0 if output is None and len(outputs) == 1 else output
    index = names.index(index) if index in names else index
    if type(index) is not int or not 0 <= index < len(outputs):
        raise ValueError(
            f"`output` must be one of the names {names} or an index below {len(outputs)}. "
            f"Received: {output=}"
        )
    return outputs[index]


def _logits(scores: tf.Tensor) -> tf.Tensor:
    """Float32 logits (n, k): what went into the softmax or sigmoid that gave the scores, if any."""
    if scores.shape.rank != 2 or scores.shape[1] is None:
        raise ValueError(f"The output must be class scores (n, k). Received: {scores.shape=}")
    op = scores.op
    while op.type in ("Identity", "Cast", "Reshape", "Squeeze"):
        op = op.inputs[0].op
    if op.type in ("Softmax", "LogSoftmax", "Sigmoid"):
        scores = tf.reshape(op.inputs[0], (-1, scores.shape[1]))
    scores = tf.cast(scores, tf.float32)
    return tf.concat([-scores, scores], 1) if scores.shape[1] == 1 else scores


MARKED = "last_conv"
"""Name by which the builders of `mri.models` mark the layer to look at."""

_CONVOLUTIONS = "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D"
_FOLLOWERS = "BatchNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU"


def _is(layer: keras.Layer, kinds: tuple[str, ...]) -> bool:
    return isinstance(layer, tuple(getattr(keras.layers, kind) for kind in kinds))


def _rectified(calls: Calls, at: int) -> tuple[keras.Layer, tf.Tensor]:
    """Go from a convolution to the end of its normalisation and activation: the maps in use."""
    while at + 1 < len(calls) and _is(calls[at + 1][0], _FOLLOWERS):
        if calls[at + 1][1].shape != calls[at][1].shape:
            break
        at += 1
    return calls[at]


def _differentiate(
    logits: tf.Tensor, one_hot: tf.Tensor, calls: Calls, wanted: str | keras.Layer | None
) -> tuple[keras.Layer, tf.Tensor, tf.Tensor]:
    """Choose the layer; return it, its activations and the gradients of the chosen logits."""
    # A tensor of another graph lies in a tf.function of the model's own: out of reach.
    graph, called = logits.graph, calls
    calls = [(v, x) for v, x in calls if getattr(x, "graph", 0) is graph and x.shape.rank == 4]
    found = [(v, x) for v, x in calls if v is wanted or v.name == (wanted or MARKED)]
    if wanted is None and not found:
        found = [_rectified(calls, i) for i, (v, _) in enumerate(calls) if _is(v, _CONVOLUTIONS)]
        # Convolutions on one cell (squeeze-and-excite, convolutional heads) have no map to show.
        found = [(v, x) for v, x in found if x.shape[1:3] != (1, 1)]
    unclear = wanted is not None and len({id(layer) for layer, _ in found}) > 1
    for layer, activations in [] if unclear else reversed(found):
        gradients = tf.gradients(logits, activations, one_hot)[0]
        if gradients is not None:
            gradients = tf.cast(tf.convert_to_tensor(gradients), tf.float32)
            return layer, tf.cast(activations, tf.float32), gradients
    problem = "several have this name" if unclear else "no gradient reaches it" if found else "none"
    hidden = [v for v, x in called if getattr(x, "graph", graph) is not graph]
    if any(v is wanted or v.name == wanted for v in hidden):
        problem = "called inside a tf.function of the model's own, out of reach: call it outside"
    raise ValueError(
        "`layer` must be one layer on the way to the output, itself 4-D, by name or as an object "
        "(model.get_layer('outer').get_layer('inner')); left out, the last convolution. "
        f"4-D are {list(dict.fromkeys(v.name for v, _ in calls))}. "
        f"Received: layer={wanted!r}, {problem}"
    )
