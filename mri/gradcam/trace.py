"""Follow a Keras model through one call: its layers, the layer to explain, and the logits.

Keras has no hooks. A model is called once while every layer records its result, so Sequential,
functional, nested, subclassed and loaded models are all alike.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from mri._keras import keras, tf

Calls = list[tuple[keras.Layer, tf.Tensor]]

_lock = Lock()


def image_spec(model: keras.Model) -> tf.TensorSpec:
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


def record_calls(model: keras.Model, images: tf.Tensor) -> tuple[Any, Calls]:
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


def one_output(model: keras.Model, outputs: Any, output: str | int | None) -> tf.Tensor:
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


def logits_behind(scores: tf.Tensor) -> tf.Tensor:
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


def differentiate(
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
