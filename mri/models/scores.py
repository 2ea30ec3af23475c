"""What a model's output is, logits or something made of them, and the logits in either case.

The model is called once, as it is, while TensorFlow writes down what it does; what went into the
softmax or sigmoid at its end is taken out of that record. Nothing of the model is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mri._arguments import require
from mri._keras import keras, tf
from mri._text import shorten
from mri.models.graph import fitting_batch

_ENDS = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
_PASSING = "Identity", "Cast", "Reshape", "Squeeze", "ExpandDims"
# Of equal addends, an average is one of them; a factor must not turn the order round.
_AVERAGING = "AddV2", "AddN", "Mul", "RealDiv", "Mean", "Pack", "ConcatV2"
_FACTORS = "Mul", "RealDiv"
_TOLERANCE = 1e-2  # of a sum of bfloat16 numbers
# Before any of these, a tensor is still the image; behind the last of them, it is the answer.
LEARNT = ("Conv2D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "MatMul", "BatchMatMulV2",
          "Einsum", "PartitionedCall", "StatefulPartitionedCall")  # fmt: skip
_FIRST = frozenset({1, 3})  # numbers of channels that an image may have
_scales: WeakKeyDictionary[keras.Model, float] = WeakKeyDictionary()  # A trace is slow.
_GRAYS = 0, 63, 127, 191, 255
TO_SLICES = " (mri.models.adapt makes a model of other sizes, channels or values take those)"
SMALL, TWICE = 0.1, 1e-3  # A gray value made small once is at least 1 / 255 of it.


class ImageInput(NamedTuple):
    """The one image input of a model.

    `shape` is (n, h, w, c), whatever the order in the model, where None is open; `channels` says
    where the model has them: 'last', 'first', or 'none' of (n, h, w).
    """

    shape: tuple[int | None, ...]
    dtype: str
    channels: str

    @property
    def spec(self) -> tf.TensorSpec:
        """Shape (n, h, w, c) and dtype, for a trace."""
        return tf.TensorSpec(self.shape, self.dtype)

    def arranged(self, images: Any) -> Any:
        """Return images (n, h, w, c) as the model has their axes."""
        if self.channels == "first":
            return keras.ops.transpose(images, (0, 3, 1, 2))
        return keras.ops.squeeze(images, -1) if self.channels == "none" else images

    def give(self, model: keras.Model, images: tf.Tensor) -> Any:
        """Call the model in inference on images (n, h, w, c), leaving its state alone."""
        # The scope keeps layers that count, draw or add losses in `call` from doing so.
        with keras.StatelessScope(initialize_variables=False):
            return model(self.arranged(images), training=False)


def image_input(model: keras.Model, like: Sequence[int] | None = None) -> ImageInput:
    """Return what a model takes; ValueError if it is not one image.

    `like` is the shape (n, h, w, c) of images at hand, for a model that does not know its own.
    """
    if not isinstance(model, keras.Model):
        expected = "`model` must be a Keras model, such as mri.load_model(name) gives."
        raise ValueError(f"{expected} Received: model={shorten(repr(model))}")
    try:
        inputs = [(x.shape, x.dtype) for x in model.inputs]
    except AttributeError:
        # A subclassed model has no graph, only the shape that it was first called with.
        config = getattr(model, "get_build_config", lambda: None)() or {}
        known = config.get("input_shape") or (() if like is None else like)
        inputs = [((None, *known[1:]) if len(known) == 4 else (), "float32")]
    if len(inputs) != 1 or len(inputs[0][0]) not in (3, 4):
        unbuilt = "; without an Input layer, call it once on images to build it"
        raise ValueError(
            f"The model needs one image input (n, h, w, c){unbuilt * (not model.built)}. "
            f"Received: {model.name!r} with inputs {inputs}"
        )
    (n, *sides), dtype = inputs[0]
    if len(sides) == 2:
        return ImageInput((n, *sides, 1), dtype, "none")
    first = sides[0] in _FIRST and sides[2] not in _FIRST
    sides = [*sides[1:], sides[0]] if first else sides
    return ImageInput((n, *sides), dtype, "first" if first else "last")


def one_output(model: keras.Model, outputs: Any, output: str | int | None) -> tf.Tensor:
    """Choose the output to read: the only one, or one by name or index."""
    names = list(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", [])
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    index = 0 if output is None and len(outputs) == 1 else output
    index = names.index(index) if index in names else index
    if type(index) is not int or not 0 <= index < len(outputs):
        raise ValueError(
            f"`output` must be one of the names {names} or an index below {len(outputs)}, or the "
            "model saved with one output alone: keras.Model(model.inputs, model.outputs[0]). "
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
    logits, kind = found or (scores, "unclear" if _made_of_shares(scores) else "logits")
    logits = tf.cast(tf.reshape(logits, (-1, scores.shape[1])), tf.float32)
    return (tf.concat([-logits, logits], 1) if scores.shape[1] == 1 else logits), kind


def _behind(x: tf.Tensor, k: int) -> tuple[tf.Tensor, str] | None:
    """Return what went into the end of a model, and the kind of the end; None without such.

    It is one number a class: what a softmax over anything else got is not the classes' logits.
    """
    op = x.op
    if op.type in _ENDS:
        source, kind = op.inputs[0], _ENDS[op.type]
        over = source.shape[-1] if source.shape.rank else None
        if source.shape[1:].num_elements() != k or (kind != "sigmoid" and (over != k or k == 1)):
            return None
        before = _behind(source, k)
        if before is None:
            return source, kind
        # A log-softmax is itself logits: a softmax behind it changes nothing.
        same = before[1] == "log-softmax" and kind != "sigmoid"
        return before[0], kind if same else "twice"
    if op.type in _PASSING:
        return _behind(op.inputs[0], k)
    if op.type == "Log":
        found = _behind(op.inputs[0], k)
        return (found[0], "log-softmax") if found and found[1] == "softmax" else None
    if op.type == "GatherV2":  # Classes in another order.
        width, axis = op.inputs[0].shape[-1], tf.get_static_value(op.inputs[2])
        if axis not in (1, -1) or width is None or not (found := _behind(op.inputs[0], width)):
            return None
        return tf.gather(tf.reshape(found[0], (-1, width)), op.inputs[1], axis=1), found[1]
    return _behind_average(op, k) if op.type in _AVERAGING else None


def _behind_average(op: tf.Operation, k: int) -> tuple[tf.Tensor, str] | None:
    """Return the logits of an average whose addends are all made of the same logits."""
    values = [tf.get_static_value(x) for x in op.inputs]
    constants = [value for value in values if value is not None]
    found = [_behind(x, k) for x, value in zip(op.inputs, values, strict=True) if value is None]
    addends = [of for of in found if of is not None]
    if op.type in _FACTORS:
        # A number a class would weigh the classes, a share as divisor turn their order round.
        one = len(constants) == 1 and np.size(constants[0]) == 1 and np.all(constants[0] > 0)
        fits = one and (op.type == "Mul" or values[1] is not None)
    else:
        fits = not constants or op.type in ("Mean", "ConcatV2")
    if not fits or not addends or len(addends) < len(found):
        return None
    same = {(logits.ref(), kind) for logits, kind in addends}
    return addends[0] if len(same) == 1 and addends[0][1] == "softmax" else None


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether rows (n, k) of scores are shares of 1, or of 100: logits only are by odd chance."""
    sums = scores.sum(1)
    whole = any((abs(sums / one - 1) < _TOLERANCE).all() for one in (1, 100))
    return bool(scores.shape[1] > 1 and (scores >= 0).all() and whole)


def kind_of(kind: str, logits: np.ndarray) -> str:
    """Return the kind of the end of a model, where it is not sure by its numbers (n, k)."""
    if kind not in ("logits", "unclear"):
        return kind
    if are_probabilities(logits):
        return "probabilities"
    single = logits.shape[1] == 2 and bool((logits[:, 0] == -logits[:, 1]).all())
    scores = logits[:, 1:] if single else logits
    # No probability is negative, nor what is made of them by factors and sums.
    high = np.inf if kind == "unclear" else 1
    return "unclear" if scores.min() >= 0 and scores.max() <= high else "logits"


def _made_of_shares(scores: tf.Tensor) -> bool:
    """Whether something was made of a softmax or sigmoid behind the last layer that was learnt."""
    behind, seen = [scores], set()
    for x in behind:
        if x.op.type in _ENDS:
            return True
        if x.op.type not in LEARNT and x.ref() not in seen:
            seen.add(x.ref())
            behind += x.op.inputs
    return False


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
        What the model ends in, a key of `READ_AS`; of 'logits' sure after the first call.
    input : ImageInput
    gives : tuple
        Shape of the scores.
    classes : int
        Number of logits; of a single unit two.
    """

    def __init__(self, model: keras.Model, like: Sequence[int] | None = None) -> None:
        self.input = image_input(model, like)

        def score(images: tf.Tensor) -> tf.Tensor:
            scores = one_output(model, self.input.give(model, images), None)
            self.gives = tuple(scores.shape)
            logits, self._end = read(scores)
            return logits

        # One trace for all batch sizes.
        self._score = tf.function(score, autograph=False).get_concrete_function(self.input.spec)
        self.kind = self._end
        self.classes = int(self._score.structured_outputs.shape[1])
        self._most = fitting_batch(self._score.graph, 2**16)

    def __call__(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Return float32 logits (n, k) of images (n, h, w) or (n, h, w, c)."""
        images = images[..., None] if images.ndim == 3 else images
        size = min(batch_size, self._most)
        parts = [self._score(batch) for batch in batches(images, self.input, size)]
        logits = np.concatenate(parts)[: len(images)]
        # What was unclear of a few slices need not be of more.
        self.kind = self.kind if self.kind == "probabilities" else kind_of(self._end, logits)
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
        If the images look rescaled, and the model is one that rescales them itself, or if the
        model's answers are random.

    Examples
    --------
    >>> from mri.models import build_model
    >>> predict_logits(build_model("tissue"), np.zeros((3, 128, 128), np.uint8)).shape
    (3, 4)
    """
    images = np.asarray(images)
    many = images.ndim in (3, 4) and len(images) >= 1 and images.dtype.kind in "uif"
    many = many and (images.dtype.kind != "f" or bool(np.isfinite(images).all()))
    shape = images.shape if images.ndim == 4 else (*images.shape, 1)
    takes = image_input(model, like=shape)
    sides = zip(takes.shape[1:], shape[1:], strict=False)
    require(
        many and all(wanted in (None, side) for wanted, side in sides),
        f"images must be finite numbers (n, h, w) for a model of {takes.shape[1:]}{TO_SLICES}, "
        "such as scans.images.",
        shape=images.shape,
        dtype=images.dtype,
    )
    require(batch_size >= 1, "batch_size must be at least 1.", batch_size=batch_size)
    warn_of_small(model, images.reshape(shape))
    scorer = Scorer(model, like=shape)
    warn_of_draws(scorer._score.graph)
    return scorer(images, batch_size)


def warn_of_draws(graph: tf.Graph) -> None:
    """Warn where random numbers go into the outputs of a trace of a model."""
    behind = list(dict.fromkeys(x.op for x in graph.outputs))
    seen = set(behind)
    for op in behind:
        new = {x.op for x in op.inputs} - seen
        seen |= new
        behind += new
    if any("Random" in op.type for op in behind):
        warnings.warn(
            "this model draws random numbers when it answers, as does a dropout that is always on "
            "or a network that never got weights: it would answer otherwise another time",
            stacklevel=3,
        )


def warn_of_small(model: keras.Model, images: np.ndarray) -> None:
    """Warn of images that were rescaled before they came to a model that does so itself."""
    if not 0 < images.max() <= 1:
        return
    if (scale := _scales.get(model)) is None:
        _scales[model] = scale = scale_of(model, images.shape)
    if 0 < scale < SMALL:
        warnings.warn(
            "these images have values 0 to 1, and this model rescales gray values 0 to 255 itself: "
            "give it the slices as they were read",
            stacklevel=3,
        )


def scale_of(model: keras.Model, like: Sequence[int] | None = None) -> float:
    """Return how much of a gray value reaches what was learnt: 1 / 255 of one that is made small.

    The model is asked, not its layers: rescaling may be a layer, an operation or a normalisation.
    It is 0 where an even image says nothing. `like` is that of `image_input`.
    """
    takes = image_input(model, like)

    def prepared(images: tf.Tensor) -> list[tf.Tensor]:
        takes.give(model, images)
        still, ends = {images.ref()}, []
        for op in images.graph.get_operations():
            of = [x for x in op.inputs if x.ref() in still and x.dtype.is_floating]
            ends += of if op.type in LEARNT else []
            still |= {x.ref() for x in op.outputs if of and op.type not in LEARNT}
        return [tf.cast(x, tf.float32) for x in ends]

    usual = (1, *(like or (1, 128, 128, 1))[1:])
    shape = [of or wanted for of, wanted in zip(takes.shape, usual, strict=True)]
    call = tf.function(prepared, autograph=False).get_concrete_function(takes.spec)
    levels = [call(tf.cast(tf.fill(shape, gray), takes.dtype)) for gray in _GRAYS]
    spans = [np.ptp(np.stack(of), axis=0).max() for of in zip(*levels, strict=True)]
    return float(max(spans, default=0.0) / _GRAYS[-1])


def batches(images: np.ndarray, to: ImageInput, batch_size: int) -> list[tf.Tensor]:
    """Cut images into batches; to a model of a fixed batch size the last goes filled up."""
    fixed = to.shape[0]
    size = fixed or batch_size
    if fixed and len(images) % fixed:
        missing = fixed - len(images) % fixed
        images = np.concatenate([images, np.repeat(images[-1:], missing, 0)])
    return [tf.cast(images[i : i + size], to.dtype) for i in range(0, len(images), size)]
