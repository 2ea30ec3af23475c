"""Where in the image the cells of a layer look, so that heatmaps lie on the right pixels.

A cell sees its receptive field. The field is centred on the cell's share of the image only if each
layer divides the image evenly. A window of three with stride two and ``"same"`` padding, on an even
grid, is shifted by half a pixel. Five such layers shift it by half a cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mri._keras import tf

_CONVOLUTIONS = "Conv2D", "DepthwiseConv2dNative"
# Of a layout: the axes of rows and columns.
_LAYOUTS = {b"NHWC": (1, 2), b"NCHW": (2, 3)}
_POOLINGS = "MaxPool", "AvgPool"
_PADDINGS = "Pad", "PadV2", "MirrorPad"
_RESIZINGS = "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor"
# TensorFlow dilates a convolution by splitting the image into a batch of smaller ones.
_BLOCKS = "SpaceToBatchND", "BatchToSpaceND"
_RESHAPING = "Reshape", "ExpandDims", "Squeeze"
# They keep the shape of the grid, and nothing in its place.
_MOVING = "ReverseV2", "Roll"
# What they make is no picture of the image, whatever its shape.
_MIXING = ("Mean", "Sum", "Max", "Min", "Prod", "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum",
           "GatherV2", "GatherNd", "StridedSlice", "ConcatV2")  # fmt: skip
BLIND = "Shape", "ShapeN", "Size", "Rank"
"""Operations that look at the form of a tensor alone, not at its numbers."""


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


class Grid(NamedTuple):
    """Where in a tensor the rows and columns of the image are.

    Attributes
    ----------
    at : (axis of the rows, axis of the columns), or the one axis into which both were merged
    axes : what the cells see, None where it cannot be read off the graph
    size : (rows, columns), of a merged one
    """

    at: tuple[int, ...]
    axes: Axes | None
    size: tuple[int | None, ...]


Known = dict[Any, Grid]


def grids(images: tf.Tensor) -> Known:
    """Find the tensors, by reference, that are made of `images` (n, h, w, c) and keep its grid.

    Followed through transpositions (layers that put the channels first are surrounded by them) and
    through merging rows and columns into one axis and back. What a token of a transformer or a
    dense layer makes is no grid, though its shape may look like one.
    """
    pixel = Axis(1.0, 0.0, 0.0)
    known: Known = {images.ref(): Grid((1, 2), (pixel, pixel), tuple(images.shape[1:3]))}
    # In the order in which they were made, operations come after those that they take from.
    for op in images.graph.get_operations():
        if op.type not in BLIND and (found := _after(op, known)):
            known |= {
                x.ref(): found for x in op.outputs if x.shape.rank == op.outputs[0].shape.rank
            }
    return known


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
    return cells_of(images, activations, grids(images).get(activations.ref()))


def cells_of(images: tf.Tensor, activations: tf.Tensor, grid: Grid | None) -> Axes:
    """Return what the cells of `activations` see: as the grid says, else an even share."""
    if grid and grid.axes:
        return grid.axes
    cells = tf.gather(tf.shape(activations), grid.at if grid else (1, 2))
    steps = tf.unstack(tf.cast(tf.shape(images)[1:3] / cells, tf.float32))
    row, column = (Axis(step, 0.0, step - 1) for step in steps)
    return row, column


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
    for axis, pixels, along in zip(axes, (height, width), (1, 2), strict=True):
        # Of open sizes, some of these are tensors.
        known = isinstance(axis.step, float) and isinstance(pixels, int)
        # A cell a pixel, where it belongs: to interpolate would cost more than the network.
        if not known or (axis.step, axis.centre, maps.shape[along]) != (1.0, 0.0, pixels):
            weights = _weights(axis, pixels, tf.shape(maps)[along])
            maps = tf.einsum(("yi,nij->nyj", "xj,nij->nix")[along - 1], weights, maps)
    return maps


def _weights(axis: Axis, pixels: int, cells: int) -> tf.Tensor:
    """Weights (pixels, cells) of linear interpolation between the centres."""
    at = (tf.range(tf.cast(pixels, tf.float32)) - axis.centre) / axis.step
    at = tf.clip_by_value(at, 0.0, tf.cast(cells - 1, tf.float32))
    return tf.nn.relu(1.0 - tf.abs(at[:, None] - tf.range(tf.cast(cells, tf.float32))))


def _after(op: tf.Operation, known: Known) -> Grid | None:
    """Return the grid behind an operation; None where there is none."""
    sources = [x for x in op.inputs if x.ref() in known]
    if not sources:
        return None
    grid = known[sources[0].ref()]
    if op.type == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        return (
            None
            if order is None
            else grid._replace(at=tuple(order.tolist().index(axis) for axis in grid.at))
        )
    if op.type in _RESHAPING:
        return _reshaped(grid, sources[0].shape, op.outputs[0].shape)
    if op.type in _MOVING:
        return grid._replace(axes=None)
    if len(grid.at) == 2 and op.type in _KNOWN:
        if op.type in _CONVOLUTIONS + _POOLINGS and set(_sides(op)) != set(grid.at):
            return None
        axes = grid.axes and _KNOWN[op.type](op, grid.at, grid.axes)
        return grid._replace(axes=axes)
    return _alike(op, [(x.shape, known[x.ref()]) for x in sources])


def _alike(op: tf.Operation, sources: list[tuple[tf.TensorShape, Grid]]) -> Grid | None:
    """Return the grid behind an operation of another kind, such as one on each cell alone."""
    to = op.outputs[0].shape if op.outputs else tf.TensorShape(None)
    if to.rank is None:
        return None

    def sides(shape: tf.TensorShape, grid: Grid) -> list[int | None]:
        return [shape[axis] for axis in grid.at]

    sources = [(shape, grid) for shape, grid in sources if shape.rank == to.rank]
    paths = [grid for shape, grid in sources if sides(shape, grid) == sides(to, grid)]
    if not paths:
        # Such as a crop: cells of the image still, though not where they were.
        still = bool(sources) and to.rank == 4 and op.type not in _MIXING
        return sources[0][1]._replace(axes=None) if still else None
    if len({grid.at for grid in paths}) > 1:
        return None
    seen = [grid.axes for grid in paths]
    if not all(seen) or len({tuple(axis.step for axis in axes) for axes in seen if axes}) > 1:
        return paths[0]._replace(axes=None)
    row, column = (
        Axis(axes[0].step, min(a.first for a in axes), max(a.last for a in axes))
        for axes in zip(*seen, strict=True)
    )
    return paths[0]._replace(axes=(row, column))


def _reshaped(grid: Grid, of: tf.TensorShape, to: tf.TensorShape) -> Grid | None:
    """Return the grid behind a change of form, None where rows and columns have no own axes.

    They are looked for behind the same number of entries as before, such as groups of channels.
    """
    if of.rank is None or to.rank is None:
        return None
    size = grid.size if len(grid.at) == 1 else tuple(of[axis] for axis in grid.at)
    first = min(grid.at)
    if len(grid.at) == 2 and grid.at != (first, first + 1):
        return None
    before = _entries(of[1:first])
    for axis in range(1, to.rank - 1):
        if (to[axis], to[axis + 1]) == size and _entries(to[1:axis]) == before:
            return Grid((axis, axis + 1), grid.axes, size)
    channels = of.rank > 1 and to.rank > 1 and to[-1] in (of[-1], None)
    if to.rank == 2 and channels and first <= 1:  # As dense layers do with all cells of a batch.
        return Grid((0,), grid.axes, size)
    cells = _entries(size)
    for axis in range(1, to.rank - 1):
        if cells and to[axis] == cells and _entries(to[1:axis]) == before and channels:
            return Grid((axis,), grid.axes, size)
    return None


def _entries(sides: Sequence[int | None]) -> int | None:
    known = [side for side in sides if side is not None]
    return math.prod(known) if len(known) == len(list(sides)) else None


def _sides(op: tf.Operation) -> tuple[int, ...]:
    """Axes of the rows and columns, as a convolution or pooling takes them."""
    return _LAYOUTS.get(op.get_attr("data_format"), ())


def _behind_windows(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    """Receptive fields behind a convolution or a pooling."""
    if op.type in _CONVOLUTIONS:
        kernel, dilations = op.inputs[1].shape, op.get_attr("dilations")
        windows = [(kernel[_sides(op).index(a)] - 1) * dilations[a] + 1 for a in at]
    else:
        windows = [op.get_attr("ksize")[a] for a in at]
    strides, before = [op.get_attr("strides")[a] for a in at], [0, 0]
    if op.get_attr("padding") == b"EXPLICIT":
        before = [op.get_attr("explicit_paddings")[2 * a] for a in at]
    elif op.get_attr("padding") == b"SAME":
        sizes = [op.inputs[0].shape[a] for a in at]
        if None in sizes:
            return None
        along = zip(sizes, windows, strides, strict=True)
        before = [max((-(-n // s) - 1) * s + k - n, 0) // 2 for n, k, s in along]
    return _seen(axes, before, windows, strides)


def _behind_padding(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    """Receptive fields behind padding, or one of the two steps around a dilated convolution."""
    constants = [tf.get_static_value(x) for x in op.inputs[1:]]
    if any(x is None for x in constants):
        return None
    if op.type in _PADDINGS:
        return _seen(axes, constants[0][list(at), 0])
    blocks, around = constants
    if len(blocks) != 2 or at != (1, 2):
        return None
    if op.type == "SpaceToBatchND":
        return _seen(axes, around[:, 0], strides=blocks)
    return _seen(_seen(axes, (0, 0), strides=1 / blocks), -around[:, 0])


def _behind_resizing(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    """Receptive fields behind a change of size, without the width of its interpolation."""
    before, after = op.inputs[0].shape[1:3].as_list(), op.outputs[0].shape[1:3].as_list()
    if None in before + after or at != (1, 2) or not op.get_attr("half_pixel_centers"):
        return None
    ratios = [n / m for n, m in zip(before, after, strict=True)]
    return _seen(axes, [(1 - ratio) / 2 for ratio in ratios], strides=ratios)


_KNOWN = {
    **dict.fromkeys(_CONVOLUTIONS + _POOLINGS, _behind_windows),
    **dict.fromkeys(_PADDINGS + _BLOCKS, _behind_padding),
    **dict.fromkeys(_RESIZINGS, _behind_resizing),
}


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
