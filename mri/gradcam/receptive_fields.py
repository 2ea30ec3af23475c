"""Where in the image the cells of a layer look, so that heatmaps lie on the right pixels.

A cell sees its receptive field. The field is centred on the cell's share of the image only if each
layer divides the image evenly. A window of three with stride two and ``"same"`` padding, on an even
grid, is shifted by half a pixel. Five such layers shift it by half a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mri._keras import tf

_CONVOLUTIONS = "Conv2D", "DepthwiseConv2dNative"
_POOLINGS = "MaxPool", "AvgPool"
_PADDINGS = "Pad", "PadV2", "MirrorPad"
_RESIZINGS = "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor"
# TensorFlow dilates a convolution by splitting the image into a batch of smaller ones.
_BLOCKS = "SpaceToBatchND", "BatchToSpaceND"
# They keep the shape of a square grid but move its cells.
_MOVING = "Transpose", "ReverseV2", "Roll"


class Axis(NamedTuple):
    """One axis in pixels: cell i sees from ``first + step * i`` to ``last + step * i``.

    The centre of pixel 0 is at 0. With padding, the first and last pixels may lie outside.
    """

    step: float
    first: float
    last: float

    @property
    def centre(self) -> float:
        """Centre of the receptive field of cell 0."""
        return (self.first + self.last) / 2


Axes = tuple[Axis, Axis]
Known = dict[Any, Axes]


def receptive_fields(images: tf.Tensor, activations: tf.Tensor) -> Axes:
    """Return the receptive fields of a layer's cells along rows and columns, from the graph.

    Each convolution, pooling and padding on the way adds its own part. Where paths meet, the cell
    sees what any of them sees (Araujo et al. 2019, doi:10.23915/distill.00021). Other operations
    may change the grid, or the size of the image may be unknown. In these cases, the function
    assumes that the cells divide the image evenly.

    Parameters
    ----------
    images : tensor (n, h, w, c)
    activations : tensor (n, hf, wf, cf)
        Computed from `images` in the same graph.

    Returns
    -------
    tuple of Axis
        One for the rows and one for the columns, in pixels.

    Examples
    --------
    >>> @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
    ... def pooled(images):
    ...     x = tf.nn.max_pool2d(images, 3, 2, "SAME")
    ...     print(receptive_fields(images, x)[0])
    >>> pooled(tf.zeros((1, 8, 8, 1)))
    Axis(step=2.0, first=0.0, last=2.0)
    """
    pixel = Axis(1.0, 0.0, 0.0)
    known: Known = {images.ref(): (pixel, pixel)}
    # In order of creation, an operation comes after its inputs.
    for op in activations.graph.get_operations():
        axes = _after(op, known)
        known |= {x.ref(): axes for x in op.outputs if axes and x.shape.rank == 4}
        if op is activations.op:
            break
    return known.get(activations.ref()) or _even(images, activations)


def stretch(maps: tf.Tensor, axes: Axes, height: int, width: int) -> tf.Tensor:
    """Interpolate maps bilinearly between the centres of their cells.

    Parameters
    ----------
    maps : float32 (n, hf, wf)
    axes
        Receptive fields of the cells.
    height, width
        Size of the image, in pixels.

    Returns
    -------
    float32 (n, height, width)
        Beyond the outermost centres, it has the value of the nearest cell.

    Examples
    --------
    >>> axes = Axis(1.0, 0.0, 0.0), Axis(4.0, 0.0, 2.0)
    >>> stretch(tf.constant([[[0.0, 1.0]]]), axes, 1, 8).numpy().tolist()
    [[[0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]]]
    """
    cells = tf.shape(maps)[1:]
    rows = _weights(axes[0], height, cells[0])
    return tf.einsum("yi,nij,xj->nyx", rows, maps, _weights(axes[1], width, cells[1]))


def _weights(axis: Axis, pixels: int, cells: int) -> tf.Tensor:
    """Weights (pixels, cells) of linear interpolation between the centres."""
    at = (tf.range(tf.cast(pixels, tf.float32)) - axis.centre) / axis.step
    at = tf.clip_by_value(at, 0.0, tf.cast(cells - 1, tf.float32))
    return tf.nn.relu(1.0 - tf.abs(at[:, None] - tf.range(tf.cast(cells, tf.float32))))


def _even(images: tf.Tensor, activations: tf.Tensor) -> Axes:
    """Return fields that divide the image evenly; sizes may be known only at call time."""
    steps = tf.unstack(tf.cast(tf.shape(images) / tf.shape(activations), tf.float32))[1:3]
    row, column = (Axis(step, 0.0, step - 1) for step in steps)
    return row, column


def _after(op: tf.Operation, known: Known) -> Axes | None:
    """Return the receptive fields behind an operation, or None if they are not known."""
    sources = [x for x in op.inputs if x.ref() in known]
    if not sources or op.type in _MOVING:
        return None
    if op.type in _CONVOLUTIONS + _POOLINGS:
        return _behind_windows(op, known[sources[0].ref()])
    if op.type in _RESIZINGS and op.get_attr("half_pixel_centers"):
        return _behind_resizing(op, known[sources[0].ref()])
    if op.type in _PADDINGS + _BLOCKS:
        return _behind_padding(op, known[sources[0].ref()])
    grid = op.outputs[0].shape[1:3]
    paths = [known[x.ref()] for x in sources if x.shape[1:3].as_list() == grid.as_list()]
    if not paths or len({tuple(axis.step for axis in path) for path in paths}) > 1:
        return None
    row, column = (
        Axis(axes[0].step, min(a.first for a in axes), max(a.last for a in axes))
        for axes in zip(*paths, strict=True)
    )
    return row, column


def _behind_windows(op: tf.Operation, axes: Axes) -> Axes | None:
    """Return the receptive fields behind a convolution or a pooling."""
    if op.get_attr("data_format") != b"NHWC":
        return None
    if op.type in _CONVOLUTIONS:
        dilated = zip(op.inputs[1].shape[:2].as_list(), op.get_attr("dilations")[1:3], strict=True)
        windows = [(k - 1) * d + 1 for k, d in dilated]
    else:
        windows = op.get_attr("ksize")[1:3]
    strides, before = op.get_attr("strides")[1:3], [0, 0]
    if op.get_attr("padding") == b"EXPLICIT":
        before = op.get_attr("explicit_paddings")[2:6:2]
    elif op.get_attr("padding") == b"SAME":
        sizes = op.inputs[0].shape[1:3].as_list()
        if None in sizes:
            return None
        along = zip(sizes, windows, strides, strict=True)
        before = [max((-(-n // s) - 1) * s + k - n, 0) // 2 for n, k, s in along]
    return _seen(axes, before, windows, strides)


def _behind_padding(op: tf.Operation, axes: Axes) -> Axes | None:
    """Return those behind padding, or behind one of the two steps of a dilated convolution."""
    constants = [tf.get_static_value(x) for x in op.inputs[1:]]
    if any(x is None for x in constants):
        return None
    if op.type in _PADDINGS:
        return _seen(axes, constants[0][1:3, 0])
    blocks, around = constants
    if len(blocks) != 2:
        return None
    if op.type == "SpaceToBatchND":
        return _seen(axes, around[:, 0], strides=blocks)
    return _seen(_seen(axes, (0, 0), strides=1 / blocks), -around[:, 0])


def _behind_resizing(op: tf.Operation, axes: Axes) -> Axes | None:
    """Return those behind a change of size, ignoring the width of the interpolation."""
    before, after = op.inputs[0].shape[1:3].as_list(), op.outputs[0].shape[1:3].as_list()
    if None in before + after:
        return None
    ratios = [n / m for n, m in zip(before, after, strict=True)]
    return _seen(axes, [(1 - ratio) / 2 for ratio in ratios], strides=ratios)


def _seen(
    axes: Axes,
    before: Sequence[float],
    windows: Sequence[int] = (1, 1),
    strides: Sequence[float] = (1, 1),
) -> Axes:
    """Return what windows of cells see; the first window starts `before` cells outside."""
    row, column = (
        Axis(float(a.step * s), float(a.first - a.step * b), float(a.last + a.step * (k - 1 - b)))
        for a, b, k, s in zip(axes, before, windows, strides, strict=True)
    )
    return row, column
