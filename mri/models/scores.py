"""What a model's output is, logits or something made of them, and the logits in either case.

The model is called once, as it is, while TensorFlow writes down what it does; what went into the
softmax or sigmoid at its end is taken out of that record. Nothing of the model is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mri._arguments import require
from mri._keras import keras, tf
from mri.models.graph import fitting_batch

_ENDS = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
_PASSING = "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"
# Of equal addends, an average is one of them; a factor must not turn the order round.
_AVERAGING = "AddV2", "AddN", "Mul", "RealDiv", "Mean", "Pack", "ConcatV2"
_FACTORS = "Mul", "RealDiv"
_TOLERANCE = 1e-2  # of a sum of bfloat16 numbers
_FIRST = frozenset({1, 3})  # numbers of channels that an image may have


class ImageInput(NamedTuple):
    """The one image input of a model.

    `shape` is (n, h, w, c), whatever the order in the model, where None is open; `channels_first`
    says whether the model takes (n, c, h, w).
    """

    shape: tuple[int | None, ...]
    dtype: str
    channels_first: bool

    @property
    def spec(self) -> tf.TensorSpec:
        """Shape (n, h, w, c) and dtype, for a trace."""
        return tf.TensorSpec(self.shape, self.dtype)

    def give(self, model: keras.Model, images: tf.Tensor) -> Any:
        """Call the model in inference on images (n, h, w, c), leaving its state alone."""
        if self.channels_first:
            images = tf.transpose(images, (0, 3, 1, 2))
        # The scope keeps layers that count, draw or add losses in `call` from doing so.
        with keras.StatelessScope(initialize_variables=False):
            return model(images, training=False)


def image_input(model: keras.Model, like: Sequence[int] | None = None) -> ImageInput:
    """Return what a model takes; ValueError if it is not one image.

    `like` is the shape (n, h, w, c) of images at hand, for a model that does not know its own.
    """
    require(isinstance(model, keras.Model), "`model` must be a Keras model.", model=model)
    try:
        inputs = [(x.shape, x.dtype) for x in model.inputs]
    except AttributeError:
        # A subclassed model has no graph, only the shape that it was first called with.
        config = getattr(model, "get_build_config", lambda: None)() or {}
        known = config.get("input_shape") or (() if like is None else like)
        inputs = [((None, *known[1:]) if len(known) == 4 else (), "float32")]
    if len(inputs) != 1 or len(inputs[0][0]) != 4:
        raise ValueError(
            "The model needs one image input (n, h, w, c); without an Input layer, call it once on "
            f"images to build it. Received: {model.name!r} with inputs {inputs}"
        )
    (n, *sides), dtype = inputs[0]
    first = sides[0] in _FIRST and sides[2] not in _FIRST
    sides = [*sides[1:], sides[0]] if first else sides
    return ImageInput((n, *sides), dtype, first)


def one_output(model: keras.Model, outputs: Any, output: str | int | None) -> tf.Tensor:
    """Choose the output to read: the only one, or one by name or index."""
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


def read(scores: tf.Tensor) -> tuple[tf.Tensor, str]:
    """Return the logits behind class scores of a trace, float32, and their kind in `READ_AS`.

    They are what went into a softmax, sigmoid or log-softmax at the end; else the scores (n, k)
    themselves count as logits, until `are_probabilities` says of numbers that they are none. A
    single unit z is read as (-z, z).
    """
    if scores.shape.rank != 2 or scores.shape[1] is None:
        raise ValueError(f"The output must be class scores (n, k). Received: {scores.shape=}")
    found = _behind(scores, int(scores.shape[1]))
    logits, kind = found if found else (scores, "logits")
    logits = tf.cast(tf.reshape(logits, (-1, scores.shape[1])), tf.float32)
    return (tf.concat([-logits, logits], 1) if scores.shape[1] == 1 else logits), kind


def _behind(x: tf.Tensor, k: int) -> tuple[tf.Tensor, str] | None:
    """Return what went into the end of a model, and the kind of the end; None without such."""
    op = x.op
    if op.type in _ENDS:
        return op.inputs[0], _ENDS[op.type]
    if op.type in _PASSING:
        return _behind(op.inputs[0], k)
    if op.type == "Log":
        found = _behind(op.inputs[0], k)
        return (found[0], "log-softmax") if found and found[1] == "softmax" else None
    if op.type == "GatherV2" and (found := _behind(op.inputs[0], k)):  # Classes in another order.
        width = op.inputs[0].shape[-1]
        return tf.gather(tf.reshape(found[0], (-1, width)), op.inputs[1], axis=1), found[1]
    if op.type in _AVERAGING:
        return _behind_average(op, k)
    return None


def _behind_average(op: tf.Operation, k: int) -> tuple[tf.Tensor, str] | None:
    """Return the logits of an average whose addends are all made of the same logits."""
    values = [tf.get_static_value(x) for x in op.inputs]
    constants = [value for value in values if value is not None]
    found = [_behind(x, k) for x, value in zip(op.inputs, values, strict=True) if value is None]
    addends = [of for of in found if of is not None]
    if op.type in _FACTORS:
        fits = len(found) == 1 and all(np.all(np.asarray(value) > 0) for value in constants)
    else:
        fits = not constants or op.type in ("Mean", "ConcatV2")
    if not fits or not addends or len(addends) < len(found):
        return None
    same = {(logits.ref(), kind) for logits, kind in addends}
    return addends[0] if len(same) == 1 and addends[0][1] == "softmax" else None


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether rows (n, k) of scores are shares of 1, which logits are only by an odd chance."""
    sums = scores.sum(1)
    return bool(scores.shape[1] > 1 and (scores >= 0).all() and (abs(sums - 1) < _TOLERANCE).all())


def log_shares(shares: np.ndarray) -> np.ndarray:
    """Return the logarithms of probabilities, of 0 that of the smallest normal float32."""
    shares = np.asarray(shares, np.float32)
    return np.log(np.maximum(shares, np.finfo(np.float32).tiny))


class Scorer:
    """A model as a function from images to logits, whatever it ends in.

    The model goes from one image input to class scores (n, k), else ValueError is raised; `like` is
    that of `image_input`.

    Attributes
    ----------
    kind : str
        What the model ends in, a key of `READ_AS`; of 'logits' and 'probabilities' sure after the
        first call.
    input : ImageInput
    gives : tuple
        Shape of the scores.
    classes : int
        Number of logits; of a single unit two.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(4, activation="softmax")])
    >>> scorer = Scorer(model)
    >>> scorer.kind, scorer(np.zeros((2, 8, 8), np.uint8)).tolist()[0]
    ('softmax', [0.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, model: keras.Model, like: Sequence[int] | None = None) -> None:
        self.input = image_input(model, like)
        self.kind = "logits"

        def score(images: tf.Tensor) -> tf.Tensor:
            scores = one_output(model, self.input.give(model, images), None)
            self.gives = tuple(scores.shape)
            logits, self.kind = read(scores)
            return logits

        # One trace for all batch sizes.
        self._score = tf.function(score, autograph=False).get_concrete_function(self.input.spec)
        self.classes = int(self._score.structured_outputs.shape[1])
        self._most = fitting_batch(self._score.graph, 2**16)

    def __call__(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Return float32 logits (n, k) of images (n, h, w) or (n, h, w, c)."""
        images = images[..., None] if images.ndim == 3 else images
        size = min(batch_size, self._most)
        parts = [self._score(batch) for batch in batches(images, self.input, size)]
        logits = np.concatenate(parts)[: len(images)]
        if self.kind == "logits" and are_probabilities(logits):
            self.kind = "probabilities"
        return log_shares(logits) if self.kind == "probabilities" else logits


def predict_logits(model: keras.Model, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Return the logits of slices, float32 (n, classes), whatever the model ends in: see `READ_AS`.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, h, w) or (n, h, w, c)
        Of gray values 0 to 255, unless the model takes others.

    Raises
    ------
    ValueError
        If the images are not of the size that the model takes, or `batch_size` is below 1.

    Warns
    -----
    UserWarning
        If the images look rescaled, and the model is one that rescales them itself.

    Examples
    --------
    >>> from mri.models import build_model
    >>> predict_logits(build_model("tissue"), np.zeros((3, 128, 128), np.uint8)).shape
    (3, 4)
    """
    images = np.asarray(images)
    many = images.ndim in (3, 4) and len(images) >= 1 and images.dtype.kind in "uif"
    shape = images.shape if images.ndim == 4 else (*images.shape, 1)
    takes = image_input(model, like=shape)
    sides = zip(takes.shape[1:], shape[1:], strict=False)
    require(
        many and all(wanted in (None, side) for wanted, side in sides),
        f"images must be numbers (n, h, w) for a model of {takes.shape[1:]}.",
        shape=images.shape,
        dtype=images.dtype,
    )
    require(batch_size >= 1, "batch_size must be at least 1.", batch_size=batch_size)
    if 0 < images.max() <= 1 and rescalings(model):
        warnings.warn(
            "these images have values 0 to 1, and this model rescales gray values 0 to 255 itself: "
            "give it the slices as they were read",
            stacklevel=2,
        )
    return Scorer(model, like=shape)(images, batch_size)


def rescalings(model: keras.Model) -> int:
    """Return how often gray values are made small on their way: `adapt` may do so once more."""
    layers = [v for v in model._flatten_layers() if isinstance(v, keras.layers.Rescaling)]
    return sum(bool(np.max(np.abs(v.scale)) < 0.1) for v in layers)


def batches(images: np.ndarray, to: ImageInput, batch_size: int) -> list[tf.Tensor]:
    """Cut images into batches; to a model of a fixed batch size the last goes filled up."""
    fixed = to.shape[0]
    size = fixed or batch_size
    if fixed and len(images) % fixed:
        missing = fixed - len(images) % fixed
        images = np.concatenate([images, np.repeat(images[-1:], missing, 0)])
    return [tf.cast(images[i : i + size], to.dtype) for i in range(0, len(images), size)]
