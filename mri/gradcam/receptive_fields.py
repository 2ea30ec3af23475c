"""Where in the image the cells of a layer look, so that heatmaps lie on the right pixels.

A cell sees its receptive field. The field is centred on the cell's share of the image only if each
layer divides the image evenly. A window of three with stride two and ``"same"`` padding, on an even
grid, is shifted by half a pixel. Five such layers shift it by half a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mri._keras import tf

_TRANSPOSED = "Conv2DBackpropInput"
_CONVOLUTIONS = "Conv2D", "DepthwiseConv2dNative", _TRANSPOSED
# Axes of rows and columns, by layout.
_LAYOUTS = {b"NHWC": (1, 2), b"NCHW": (2, 3)}
_POOLINGS = "MaxPool", "AvgPool"
_PADDINGS = "Pad", "PadV2", "MirrorPad"
_RESIZINGS = "ResizeBilinear", "ResizeBicubic", "ResizeNearestNeighbor"
# TensorFlow dilates a convolution by splitting the image into a batch of smaller ones.
_BLOCKS = "SpaceToBatchND", "BatchToSpaceND"
_RESHAPING = "Reshape", "ExpandDims", "Squeeze"
# These keep the shape of the grid, but move its cells, or add up those before.
_MOVING = ("Roll", "RandomShuffle", "GatherNd", "TopKV2", "Cumsum", "Cumprod",
           "FFT", "FFT2D", "IFFT", "IFFT2D")  # fmt: skip
_PRODUCTS = "MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum"
# The result of these is no picture of the image, whatever its shape.
_MIXING = (*_PRODUCTS, "Mean", "Sum", "Max", "Min", "Prod",
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

    `at` holds their two axes, or the one axis into which both were merged; `size` is then
    (rows, columns). `axes` says what the cells see, None where the graph does not tell.
    """

    at: tuple[int, ...]
    axes: Axes | None
    size: tuple[int | None, ...]


Known = dict[Any, Grid]


def grids(images: tf.Tensor) -> Known:
    """Find the tensors, by reference, that are made of `images` (n, h, w, c) and keep its grid.

    The grid is followed through transpositions (layers that put the channels first are surrounded
    by them) and through merging rows and columns into one axis and back. What a token of a
    transformer or a dense layer makes is no grid, though its shape may look like one.

    Each convolution, pooling and padding adds its part to the receptive field. Where paths meet,
    the cell sees what any of them sees (Araujo et al. 2019, doi:10.23915/distill.00021).
    """
    pixel = Axis(1.0, 0.0, 0.0)
    known: Known = {images.ref(): Grid((1, 2), (pixel, pixel), tuple(images.shape[1:3]))}
    # Operations are listed in the order in which they were made: sources come first.
    for op in images.graph.get_operations():
        if op.type not in BLIND and (found := _after(op, known)):
            rank = op.outputs[0].shape.rank
            known |= {x.ref(): found for x in op.outputs if x.shape.rank == rank}
    return known


def cells_of(images: tf.Tensor, activations: tf.Tensor, grid: Grid | None) -> Axes:
    """Return what the cells of `activations` see; if the grid does not say, an even share."""
    if grid and grid.axes:
        return grid.axes
    cells = tf.gather(tf.shape(activations), grid.at if grid else (1, 2))
    steps = tf.unstack(tf.cast(tf.shape(images)[1:3] / cells, tf.float32))
    row, column = (Axis(step, 0.0, step - 1) for step in steps)
    return row, column


def stretch(maps: tf.Tensor, axes: Axes, height: int, width: int) -> tf.Tensor:
    """Interpolate maps bilinearly between the centres of their cells, given in `axes`.

    Returns float32 (n, height, width) of float32 (n, hf, wf). Beyond the outermost centres, it has
    the value of the nearest cell.
    """
    for axis, pixels, along in zip(axes, (height, width), (1, 2), strict=True):
        # If sizes are open, some of these are tensors.
        known = isinstance(axis.step, float) and isinstance(pixels, int)
        # One cell per pixel needs no interpolation, which would cost more than the network.
        if not known or (axis.step, axis.centre, maps.shape[along]) != (1.0, 0.0, pixels):
            weights = _weights(axis, pixels, tf.shape(maps)[along])
            maps = weights @ maps if along == 1 else tf.matmul(maps, weights, transpose_b=True)
    return maps


def _weights(axis: Axis, pixels: int, cells: int) -> tf.Tensor:
    at = (tf.range(tf.cast(pixels, tf.float32)) - axis.centre) / axis.step
    at = tf.clip_by_value(at, 0.0, tf.cast(cells - 1, tf.float32))
    return tf.nn.relu(1.0 - tf.abs(at[:, None] - tf.range(tf.cast(cells, tf.float32))))


def _after(op: tf.Operation, known: Known) -> Grid | None:
    if repeated := _repeated(op, known):
        return repeated
    sources = [(x.shape, known[x.ref()]) for x in op.inputs if x.ref() in known]
    if not sources:
        return None
    shape, grid = sources[0]
    if op.type == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        at = () if order is None else tuple(order.tolist().index(axis) for axis in grid.at)
        return grid._replace(at=at) if at else None
    if op.type in _RESHAPING:
        return _reshaped(grid, shape, op.outputs[0].shape)
    if op.type in _MOVING or _mixes(op, known):
        kept = _alike(op, sources)
        return kept and kept._replace(axes=None)
    if op.type == "StridedSlice" and (len(grid.at) < 2 or _starts(op) is None):
        return _alike(op, sources)
    if len(grid.at) == 2 and op.type in _KNOWN:
        if op.type in _CONVOLUTIONS + _POOLINGS and set(_sides(op)) != set(grid.at):
            return None
        return grid._replace(axes=grid.axes and _KNOWN[op.type](op, grid.at, grid.axes))
    return _alike(op, sources)


def _alike(op: tf.Operation, sources: list[tuple[tf.TensorShape, Grid]]) -> Grid | None:
    """Return the grid behind an operation of another kind, such as one on each cell alone."""
    to = op.outputs[0].shape if op.outputs else tf.TensorShape(None)
    if to.rank is None:
        return None
    sources = [(shape, grid) for shape, grid in sources if shape.rank == to.rank]
    paths = [grid for shape, grid in sources if all(shape[a] == to[a] for a in grid.at)]
    if not paths:
        # For example a crop: still cells of the image, but not where they were.
        still = bool(sources) and to.rank == 4 and op.type not in _MIXING
        return sources[0][1]._replace(axes=None) if still else None
    if len({grid.at for grid in paths}) > 1:
        return None
    seen = [grid.axes for grid in paths if grid.axes]
    if len(seen) < len(paths) or len({(row.step, column.step) for row, column in seen}) > 1:
        return paths[0]._replace(axes=None)
    row, column = (
        Axis(along[0].step, min(a.first for a in along), max(a.last for a in along))
        for along in zip(*seen, strict=True)
    )
    return paths[0]._replace(axes=(row, column))


def _mixes(op: tf.Operation, known: Known) -> bool:
    """Whether cells of the grid change their places, or become sums of others, by their numbers.

    Tokens of a transformer are sums of each other too, but keep their places by the sum with what
    they were.
    """
    for number, x in enumerate(op.inputs):
        grid = known.get(x.ref())
        if grid is None or x.shape.rank is None:
            continue
        if op.type == "GatherV2":
            axis = tf.get_static_value(op.inputs[2])
            return number == 0 and (axis is None or int(axis) % x.shape.rank in grid.at)
        if op.type in _PRODUCTS and len(grid.at) == 2:
            if not set(grid.at) <= _kept(op, number, x.shape.rank):
                return True
    return False


def _kept(op: tf.Operation, number: int, rank: int) -> set[int]:
    """Return the axes of an input of a product that are the same axes of the result."""
    if op.type != "Einsum":
        flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        own = rank - 2 if number == 0 else rank - 1
        return set(range(rank - 2)) | (set() if op.get_attr(flags[number]) else {own})
    sources, result = op.get_attr("equation").decode().replace(" ", "").split("->")
    labels = sources.split(",")[number]
    # What an ellipsis stands for, in characters that no equation has.
    rest = "".join(chr(1 + i) for i in range(rank - len(labels) + len("...")))
    labels, result = (of.replace("...", rest) for of in (labels, result))
    return {axis for axis, label in enumerate(labels) if result[axis : axis + 1] == label}


def _repeated(op: tf.Operation, known: Known) -> Grid | None:
    """Return the grid where each row or column is repeated, as an upsampling does it."""
    tile = op.inputs[0].op if op.type == "Reshape" else op
    if op is tile or tile.type != "Tile" or tile.inputs[0].op.type != "ExpandDims":
        return None
    x, behind = tile.inputs[0].op.inputs
    grid, axis = known.get(x.ref()), int(tf.get_static_value(behind)) - 1
    if grid is None or grid.axes is None or len(grid.at) != 2 or axis not in grid.at:
        return None
    times, to = tile.outputs[0].shape[axis + 1], op.outputs[0].shape
    cells = tf.TensorShape((times, x.shape[axis])).num_elements()
    if cells is None or to.rank != x.shape.rank or to[axis] != cells:
        return None
    ratios = [1 / times if a == axis else 1 for a in grid.at]
    return grid._replace(axes=_seen(grid.axes, [(1 - of) / 2 for of in ratios], strides=ratios))


def _reshaped(grid: Grid, of: tf.TensorShape, to: tf.TensorShape) -> Grid | None:
    """Return the grid behind a change of form, None where rows and columns have no own axes.

    They are looked for behind the same number of entries as before, such as groups of channels.
    """
    if of.rank is None or to.rank is None:
        return None
    first, merged = min(grid.at), len(grid.at) == 1
    if not merged and grid.at != (first, first + 1):
        return None
    size = grid.size if merged else (of[first], of[first + 1])
    before = of[1:first].num_elements()
    starts = [axis for axis in range(1, to.rank - 1) if to[1:axis].num_elements() == before]
    for axis in starts:
        if (to[axis], to[axis + 1]) == size:
            return Grid((axis, axis + 1), grid.axes, size)
    if not (of.rank > 1 and to.rank > 1 and to[-1] in (of[-1], None)):
        return None
    if to.rank == 2 and first <= 1:  # As dense layers do with all cells of a batch.
        return Grid((0,), grid.axes, size)
    cells = tf.TensorShape(size).num_elements()
    found = [axis for axis in starts if cells and to[axis] == cells]
    return Grid((found[0],), grid.axes, size) if found else None


def _sides(op: tf.Operation) -> tuple[int, ...]:
    """Axes of the rows and columns, as a convolution or pooling takes them."""
    return _LAYOUTS.get(op.get_attr("data_format"), ())


def _behind_windows(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    if op.type in _POOLINGS:
        windows = [op.get_attr("ksize")[a] for a in at]
    else:
        kernel, dilations = op.inputs[1].shape, op.get_attr("dilations")
        windows = [(kernel[_sides(op).index(a)] - 1) * dilations[a] + 1 for a in at]
    strides, before = [op.get_attr("strides")[a] for a in at], [0, 0]
    # A transposed convolution is the way back through one from the larger image.
    back = op.type == _TRANSPOSED
    if op.get_attr("padding") == b"EXPLICIT":
        before = [op.get_attr("explicit_paddings")[2 * a] for a in at]
    elif op.get_attr("padding") == b"SAME":
        sizes = [(op.outputs if back else op.inputs)[0].shape[a] for a in at]
        if None in sizes:
            return None
        along = zip(sizes, windows, strides, strict=True)
        before = [max((-(-n // s) - 1) * s + k - n, 0) // 2 for n, k, s in along]
    if not back:
        return _seen(axes, before, windows, strides)
    around = zip(before, windows, strides, strict=True)
    starts = [(k - 1 - b) / s for b, k, s in around]
    wide = [(k - 1) / s + 1 for k, s in zip(windows, strides, strict=True)]
    return _seen(axes, starts, wide, [1 / s for s in strides])


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


def _starts(op: tf.Operation) -> list[tuple[int, int]] | None:
    """Return first entry and step of each axis that is sliced, None where an axis is lost."""
    constants = [tf.get_static_value(x) for x in op.inputs[1:]]
    changed = any(op.get_attr(f"{of}_mask") for of in ("ellipsis", "new_axis", "shrink_axis"))
    if changed or any(x is None for x in constants):
        return None
    found = []
    for axis, (begin, step) in enumerate(zip(constants[0], constants[2], strict=True)):
        size = op.inputs[0].shape[axis]
        if op.get_attr("begin_mask") & (1 << axis):
            begin = 0 if step > 0 else -1
        if begin < 0 and size is None:
            return None
        found.append((int(begin + (size if begin < 0 else 0)), int(step)))
    return found


def _behind_slice(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    """Receptive fields behind a crop, also one that goes backwards."""
    starts = _starts(op)
    pairs = [(0, 1) if a >= len(starts or ()) else (starts or [])[a] for a in at]
    return _seen(axes, [-begin for begin, _ in pairs], strides=[step for _, step in pairs])


def _behind_flip(op: tf.Operation, at: tuple[int, ...], axes: Axes) -> Axes | None:
    """Receptive fields behind a mirror image."""
    turned, rank = tf.get_static_value(op.inputs[1]), op.inputs[0].shape.rank
    if turned is None or any(op.inputs[0].shape[a] is None for a in at):
        return None
    sides = [a in [of % rank for of in turned] for a in at]
    last = [op.inputs[0].shape[a] - 1 if side else 0 for a, side in zip(at, sides, strict=True)]
    return _seen(axes, [-of for of in last], strides=[-1 if side else 1 for side in sides])


_KNOWN = {
    **dict.fromkeys(_CONVOLUTIONS + _POOLINGS, _behind_windows),
    **dict.fromkeys(_PADDINGS + _BLOCKS, _behind_padding),
    **dict.fromkeys(_RESIZINGS, _behind_resizing),
    "StridedSlice": _behind_slice,
    "ReverseV2": _behind_flip,
}


def _seen(
    axes: Axes,
    before: Sequence[float],
    windows: Sequence[float] = (1, 1),
    strides: Sequence[float] = (1, 1),
) -> Axes:
    """Return what windows of cells see; the first window starts `before` cells outside."""
    found = []
    for a, b, k, s in zip(axes, before, windows, strides, strict=True):
        moved = float(-a.step * b), float(a.step * (k - 1 - b))  # Of a mirror image backwards.
        found.append(Axis(float(a.step * s), a.first + min(moved), a.last + max(moved)))
    return found[0], found[1]
