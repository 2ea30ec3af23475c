"""Follow a Keras model through one call: its layers, and the tensor to explain.

Keras has no hooks, so a model is called once while every layer records its result.
"""

from __future__ import annotations

import warnings
from threading import Lock
from typing import Any, NamedTuple

from mri._keras import keras, tf
from mri.gradcam.receptive_fields import BLIND, Grid, Known, grids
from mri.models.scores import LEARNT, ImageInput

Calls = list[tuple[keras.Operation, tf.Tensor]]

MARKED = "last_conv"
"""Name by which the builders of `mri.models` mark the layer to look at."""

# The result of these holds nothing that the finer grid before them does not.
_COARSER = "MaxPool", "AvgPool", "Identity", "Transpose"

_lock = Lock()


def record_calls(model: keras.Model, images: tf.Tensor, to: ImageInput) -> tuple[Any, Calls]:
    """Call the model; return its outputs and (layer, result) of each layer called, in order.

    Operations of `keras.ops` are recorded where a functional model holds them as steps.
    """
    calls: Calls = []

    def record(step: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        result = call(step, *args, **kwargs)
        calls.append((step, result))
        return result

    # Layers go through it too. They are the user's, so the class is lent for the time of one call.
    with _lock:
        call, keras.Operation.__call__ = keras.Operation.__call__, record
        try:
            return to.give(model, images), calls
        finally:
            keras.Operation.__call__ = call


class Target(NamedTuple):
    """What is explained: a 4-D tensor of the trace, the result of `layer` or of what follows it.

    `gradients` are of its form, or those behind a pooling, where only their sum is wanted.
    `grid` says where its rows and columns are, None where nothing is known of them.
    """

    layer: keras.Operation
    tensor: tf.Tensor
    gradients: tf.Tensor
    grid: Grid | None

    def moved(self, x: tf.Tensor) -> tf.Tensor:
        """Return `x`, of the form of the tensor, as (n, rows, columns, channels)."""
        rows, columns = self.grid.at if self.grid else (1, 2)
        channels = ({1, 2, 3} - {rows, columns}).pop()
        return x if channels == 3 and rows == 1 else tf.transpose(x, (0, rows, columns, channels))


class Paths:
    """The ways from the images to the logits, both tensors of one trace.

    Attributes
    ----------
    known : grid of each tensor that has one
    on_the_way : tensors that are made of the images and serve the logits, in order
    cuts : those among them that every path goes through
    """

    def __init__(self, images: tf.Tensor, logits: tf.Tensor) -> None:
        self.known: Known = grids(images)
        # Operations are listed in the order in which they were made: sources come first.
        self._operations = [op for op in images.graph.get_operations() if op.type not in BLIND]
        reached: set[Any] = {images.ref()}
        self._learned: set[Any] = set()
        for op in self._operations:
            if any(x.ref() in reached for x in op.inputs):
                made = {x.ref() for x in op.outputs}
                reached |= made
                if op.type in LEARNT or any(x.ref() in self._learned for x in op.inputs):
                    self._learned |= made
        needed: set[Any] = {logits.ref()}
        last_use: dict[Any, int] = {}
        for i, op in reversed(list(enumerate(self._operations))):
            if any(x.ref() in needed for x in op.outputs):
                for ref in {x.ref() for x in op.inputs} & reached:
                    needed.add(ref)
                    last_use.setdefault(ref, i)
        self.on_the_way: list[tf.Tensor] = []
        self.cuts: list[tf.Tensor] = []
        open_until = -1
        for i, op in enumerate(self._operations):
            uses = {x.ref(): last_use[x.ref()] for x in op.outputs if x.ref() in last_use}
            for x in op.outputs:
                if x.ref() in uses:
                    self.on_the_way.append(x)
                    # What was made earlier and is used after this operation goes past it.
                    others = [end for ref, end in uses.items() if ref != x.ref()]
                    if max(open_until, *others, -1) <= i:
                        self.cuts.append(x)
            open_until = max([open_until, *uses.values()])

    def is_map(self, x: tf.Tensor) -> bool:
        """Whether a tensor is 4-D, learnt, and holds more than one place of the image."""
        grid = self.known.get(x.ref())
        if grid is None or len(grid.at) != 2 or x.shape.rank != 4 or x.ref() not in self._learned:
            return False
        return any(x.shape[axis] != 1 for axis in grid.at)

    def last_map(self) -> tf.Tensor | None:
        """Return the last map through which every path goes, before pooling; None without one."""
        maps = [x for x in self.cuts if self.is_map(x)]
        return _finest(maps[-1], maps) if maps else None

    def ends(self) -> list[tf.Tensor]:
        """Return the maps behind which there are no others: where branches lose their grid."""
        maps = [x for x in self.on_the_way if self.is_map(x)]
        refs, used = {x.ref() for x in maps}, set()
        for op in reversed(self._operations):
            if any(x.ref() in refs or x.ref() in used for x in op.outputs):
                used |= {x.ref() for x in op.inputs}
        return [_finest(x, maps) for x in maps if x.ref() not in used]


def _finest(x: tf.Tensor, maps: list[tf.Tensor]) -> tf.Tensor:
    """Go back over pooling to the map that was pooled: it holds as much, on a finer grid."""
    refs = {of.ref() for of in maps}
    while x.op.type in _COARSER and x.op.inputs[0].ref() in refs:
        x = x.op.inputs[0]
    return x


def choose(
    images: tf.Tensor,
    scores: tuple[tf.Tensor, tf.Tensor],
    calls: Calls,
    wanted: str | keras.Layer | None,
    *,
    only_sum: bool = False,
) -> Target:
    """Choose what to explain of a trace: of its images and calls; ValueError without such a layer.

    `scores` are the logits, and what is explained, made of them. `wanted` is a layer, its name, or
    None for `MARKED`, else the last map that all paths go through. `only_sum` says whether only
    the sum of the gradients over the grid is wanted.
    """
    logits, explained = scores
    paths = Paths(images, logits)
    # A tensor of another graph is inside a tf.function of the model's own: out of reach.
    here = [(v, x) for v, x in calls if getattr(x, "graph", None) is logits.graph]
    here = [(v, x) for v, x in here if x.shape.rank == 4]
    found = [(v, x) for v, x in here if v is wanted or v.name == (wanted or MARKED)]
    unclear = wanted is not None and len({id(layer) for layer, _ in found}) > 1
    cuts = {x.ref() for x in paths.cuts}
    if wanted is None and not any(x.ref() in cuts for _, x in found):
        # Somebody else may call a side branch so.
        last = paths.last_map()
        if last is not None:
            found = [(_named(last, here, paths), last)]
        elif found:
            warnings.warn(
                f"{MARKED!r} lies on one of several branches: its maps leave out the others",
                stacklevel=2,
            )
    for layer, x in [] if unclear else reversed(found):
        gradients = _gradients(explained, x, only_sum)
        if gradients is not None:
            grid = paths.known.get(x.ref())
            return Target(layer, x, gradients, grid if grid and len(grid.at) == 2 else None)
    ends = list(dict.fromkeys(_named(x, here, paths).name for x in paths.ends())) if here else []
    if wanted is None and not found and ends:
        raise ValueError(
            "`layer` must be named here: no tensor with a grid lies on every path from the image "
            "to the logits. The branches of this network meet only where their grids are gone, and "
            f"one of them alone is not the network. They end in {ends}. Received: layer={wanted}"
        )
    problem = "several have this name" if unclear else "no gradient reaches it" if found else "none"
    hidden = [v for v, x in calls if getattr(x, "graph", logits.graph) is not logits.graph]
    if any(v is wanted or v.name == wanted for v in hidden):
        problem = "called inside a tf.function of the model's own, out of reach: call it outside"
    known = list(dict.fromkeys(v.name for v, _ in here))
    if wanted is None and not found:
        others = f". 4-D are {known}" if known else ""
        raise ValueError(
            "No layer can be explained: no result with a grid, such as a convolution's, is on the "
            f"way from the image to the logits, so nothing says where{others}"
        )
    raise ValueError(
        "`layer` must be one layer on the way to the output, itself 4-D, by name or as an object "
        "(model.get_layer('outer').get_layer('inner')); left out, the last one with a grid that "
        "every path from the image to the logits goes through. "
        f"4-D are {known}. "
        f"Received: layer={wanted!r}, {problem}"
    )


def _gradients(explained: tf.Tensor, x: tf.Tensor, only_sum: bool) -> tf.Tensor | None:
    """Return the gradients at `x`, or fewer of the same sum; None where none reach it."""
    users = [op for op in x.consumers() if op.type not in BLIND]
    # Pooling hands each gradient on whole, so their sum is the same before and behind it. To deal
    # them out to the cells takes up to a fifth of the time of the network.
    pooled = only_sum and [op.type for op in users] in (["MaxPool"], ["AvgPool"])
    at = users[0].outputs[0] if pooled else x
    gradients = tf.gradients(explained, at)[0]
    return None if gradients is None else tf.convert_to_tensor(gradients)


def _named(x: tf.Tensor, calls: Calls, paths: Paths) -> keras.Operation:
    """Return the layer whose result a tensor is, else the last one on the way to it."""
    for layer, result in calls:
        if result.ref() == x.ref():
            return layer
    order = {y.ref(): i for i, y in enumerate(paths.on_the_way)}
    before = [(order.get(y.ref(), len(order)), layer) for layer, y in calls]
    before = [pair for pair in before if pair[0] < order[x.ref()]]
    return max(before, key=lambda pair: pair[0])[1] if before else calls[0][0]
