"""Receptive fields against brute force: one line of the image changed, which cells notice?"""

import warnings
from itertools import count

import keras
import numpy as np
import pytest
import tensorflow as tf

from mri import GradCAM, build_model
from mri.gradcam.receptive_fields import Axis, cells_of, grids, stretch

K = keras.layers
SIZE = 33, 41
# Keras' own numbers begin anew when another test clears its session.
NUMBERS = count()


def conv(size, **options):
    common = {"padding": "same", "activation": "relu", "name": f"convolution_{next(NUMBERS)}"}
    return K.Conv2D(2, size, **common | options)


def residual(x):
    """Halve the grid, as ResNet does: in the first of three layers, and beside them."""
    wide = conv(3)(conv(1, strides=2, padding="valid")(x))
    return K.Add()([wide, conv(1, strides=2, padding="valid")(x)])


def branches(x):
    """Halve the grid by windows that are not centred on the same pixel."""
    return K.Concatenate()([conv(3, strides=2)(x), conv(1, strides=2)(x)])


def stack(*steps):
    def body(x):
        for step in steps:
            x = step(x)
        return x

    return body


BODIES = {
    "same, stride 2, three times": stack(*(conv(3, strides=2) for _ in range(3))),
    "same, stride 2, even windows": stack(conv(4, strides=2), conv(2, strides=2)),
    "valid": stack(conv(5, padding="valid"), conv(3, strides=3, padding="valid")),
    "unequal": stack(conv((3, 5), strides=(1, 2), padding="valid"), conv((1, 4), strides=(3, 1))),
    "dilated": stack(
        conv(3), conv(3, dilation_rate=2), conv(3, dilation_rate=(3, 1), padding="valid")
    ),
    "pooled": stack(conv(3), K.MaxPooling2D(), conv(3), K.AveragePooling2D(3, 2, "same")),
    "padded": stack(K.ZeroPadding2D(((3, 0), (1, 2))), conv(7, strides=2, padding="valid")),
    "depthwise": stack(K.DepthwiseConv2D(3, 2, "same"), K.SeparableConv2D(2, 5, 2)),
    "cropped": stack(K.Cropping2D(((3, 0), (1, 2))), conv(3, strides=2, padding="valid")),
    "cropped behind": stack(conv(3), lambda x: x[:, 2:-1, 3:, :], conv(3, padding="valid")),
    "every second": stack(conv(3), lambda x: x[:, ::2, 1::3]),
    "mirrored": stack(lambda x: keras.ops.flip(x, axis=2), conv(3, strides=2, padding="valid")),
    "backwards": stack(conv(2), lambda x: x[:, ::-1, ::-1], residual),
    "normalised": stack(K.Rescaling(3), conv(3, strides=2), K.BatchNormalization(), K.ReLU()),
    "residual": stack(conv(3), residual, residual),
    "branches": stack(branches, conv(3), branches),
}


def positive(model):
    """Let every weight of a kernel be one, so that no cell misses a pixel that it sees."""
    for layer in model.layers:
        for weight in layer.weights:
            if "kernel" in weight.name:
                weight.assign(np.ones(weight.shape))
    return model


def noticed(trunk, axis):
    """First and last line of the image along `axis` that each cell notices: int (cells, 2)."""
    size = trunk.input_shape[1:3]
    lines = np.moveaxis(np.eye(size[axis])[..., None] * np.ones(size[1 - axis]), 1, 1 + axis)
    cells = trunk.predict(np.concatenate([lines, 0 * lines[:1]])[..., None], verbose=0)
    changed = (cells[:-1] != cells[-1]).any((2 - axis, 3))
    return np.array([np.flatnonzero(seen)[[0, -1]] for seen in changed.T])


def derived(trunk):
    """Receptive fields as read off a trace of the trunk."""
    found = []

    def trace(images):
        cells = trunk(images)
        found.append(cells_of(images, cells, grids(images).get(cells.ref())))

    tf.function(trace).get_concrete_function(tf.TensorSpec(trunk.input_shape))
    return found[0]


def check(trunk):
    for axis, (step, first, last) in enumerate(derived(trunk)):
        expected = noticed(positive(trunk), axis)
        start = step * np.arange(len(expected))
        found = np.stack([first + start, last + start], 1)
        np.testing.assert_array_equal(np.clip(found, 0, trunk.input_shape[1 + axis] - 1), expected)


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_cells_see_what_they_notice(body):
    inputs = keras.Input((*SIZE, 1))
    check(keras.Model(inputs, body(inputs)))


@pytest.mark.parametrize("name", ["compact", "fast", "keras_like"])
def test_cells_of_the_networks_here_see_what_they_notice(name):
    model = build_model(name)
    check(keras.Model(model.inputs, model.get_layer("last_conv").output))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "last"), [("resnet50", -241, 241), ("efficientnet_b3", -672, 734)]
)
@pytest.mark.filterwarnings("ignore:.*no ImageNet weights")
def test_backbones_in_closed_form(name, first, last):
    """Araujo et al. give ResNet-50 a field of 483 pixels; here all its windows begin at pixel 0.

    Each of the 27 windows of EfficientNet-B3, k wide on a step of s, adds s (k - 1) pixels; those
    with a stride of two are padded by (k - 2) // 2 before and one more behind, the others evenly.
    """
    if name == "efficientnet_b3":
        # (repeats, width, stride) of the seven stages of B3; the stem is one more.
        stages = [(2, 3, 1), (3, 3, 2), (3, 5, 2), (5, 3, 2), (5, 5, 1), (6, 5, 2), (2, 3, 1)]
        windows = [(3, 2)] + [(k, s if i == 0 else 1) for n, k, s in stages for i in range(n)]
        step, low, high = 1, 0, 0
        for width, stride in windows:
            before = (width - 1) // 2 if stride == 1 else (width - 2) // 2
            low, high = low - step * before, high + step * (width - 1 - before)
            step *= stride
        assert (step, low, high) == (32, first, last)
    model = build_model(name)
    trunk = keras.Model(model.inputs, model.get_layer("last_conv").output)
    assert derived(trunk) == ((32, first, last),) * 2


def weights(image_size, step, centre, cells):
    """Weights of linear interpolation by NumPy: a unit of each cell in turn, (cells, pixels)."""
    at = centre + step * np.arange(cells)
    return np.array([np.interp(np.arange(image_size), at, unit) for unit in np.eye(cells)])


@pytest.mark.parametrize("offset", [-3.0, 0.0, 1.5, 9.0])
def test_stretching_is_linear_between_the_centres_and_flat_beyond(offset, rng):
    axes = Axis(4.0, offset - 2, offset + 2), Axis(2.0, 0.0, 1.0)
    maps = rng.uniform(0, 1, (2, 5, 6)).astype(np.float32)
    rows, columns = weights(23, 4, offset, 5), weights(12, 2, 0.5, 6)
    expected = np.einsum("iy,nij,jx->nyx", rows, maps, columns)
    np.testing.assert_allclose(stretch(tf.constant(maps), axes, 23, 12), expected, atol=1e-6)


def scored(x):
    return K.Dense(2, kernel_initializer="ones")(K.GlobalAveragePooling2D()(x))


def up(size, **options):
    return K.Conv2DTranspose(2, size, activation="relu", **options)


THRICE = [conv(3, strides=2) for _ in range(3)]
SHAPES = {
    "strided": THRICE,
    "repeated": [*THRICE, K.UpSampling2D((2, 4)), conv(3)],
    "transposed": [*THRICE, up(4, strides=2, padding="same"), up(3, strides=2, padding="same")],
    "transposed, valid": [*THRICE, up(5, strides=3)],
}


@pytest.mark.parametrize("shrunk", [1, 2])
@pytest.mark.parametrize("steps", SHAPES.values(), ids=list(SHAPES))
def test_a_dot_is_found_where_it_is_however_the_grid_lies(steps, shrunk):
    """Three strided layers: laid on evenly, the maps would be 3.5 cells of their input off.

    Over all places in a cell, what a cell sees of a dot is symmetric about its centre.
    """
    size, period = 64 * shrunk, 8 * shrunk
    inputs = keras.Input((size, size, 1))
    x = stack(K.Resizing(64, 64), *steps)(inputs)
    cam = GradCAM(positive(keras.Model(inputs, scored(x))))
    dots = size // 2 + np.stack(np.divmod(np.arange(period**2), period), 1)
    images = np.zeros((len(dots), size, size), np.float32)
    images[np.arange(len(dots)), *dots.T] = 1
    found = cam(images, 0)
    maps = found.maps * found.raw.max((1, 2), keepdims=True)
    for axis in (0, 1):
        away = np.arange(size) - dots[:, axis, None]
        assert abs((maps.sum(2 - axis) * away).sum() / maps.sum()) < 1e-3


GRIDS = {
    "filled up": ((24, 36, 1), stack(K.Resizing(24, 24, pad_to_aspect_ratio=True), conv(3))),
    "cut off": ((36, 24, 1), stack(K.Resizing(18, 18, crop_to_aspect_ratio=True), conv(3))),
    "a product with its own columns as rows": (
        (24, 24, 1),
        stack(lambda x: keras.ops.einsum("bhwc,bwhc->bhwc", x, x), conv(3)),
    ),
    "rolled": ((24, 36, 1), stack(lambda x: keras.ops.roll(x, 5, axis=1), conv(3))),
    **{
        kind: ((24, 36, 1), stack(step, conv(3)))
        for kind, step in {
            "taken in another order": lambda x: keras.ops.take(x, np.arange(36)[::-1], axis=2),
            "a product over columns": lambda x: keras.ops.einsum("bhwc,wv->bhvc", x, np.eye(36)),
            "one with an ellipsis": lambda x: keras.ops.einsum("b...wc,wv->b...vc", x, np.eye(36)),
            "a product over rows": lambda x: keras.ops.matmul(np.eye(36)[::-1].astype("f"), x),
            "summed up": lambda x: keras.ops.cumsum(x, axis=1),
        }.items()
    },
}


@pytest.mark.parametrize(
    "step",
    [
        lambda x: keras.ops.einsum("bhwc,cd->bhwd", x, np.eye(1, dtype="f")),
        lambda x: keras.ops.einsum("...c,cd->...d", x, np.eye(1, dtype="f")),
        lambda x: keras.ops.matmul(x, np.eye(1, dtype="f")),
        lambda x: keras.ops.take(x, [0], axis=3),
    ],
)
def test_a_product_over_channels_leaves_the_cells_where_they_are(step):
    inputs = keras.Input((24, 36, 1))
    x = K.Activation("relu", name="last_conv")(stack(step, conv(3))(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(positive(keras.Model(inputs, scored(x))))


@pytest.mark.parametrize(("shape", "body"), GRIDS.values(), ids=list(GRIDS))
def test_what_cannot_be_read_off_the_graph_is_warned_of_and_divides_evenly(shape, body, rng):
    inputs = keras.Input(shape)
    x = K.Activation("relu", name="last_conv")(body(inputs))
    h, w = shape[:2]
    with pytest.warns(UserWarning, match="the cells of 'last_conv' lie .* may be shifted"):
        cam = GradCAM(positive(keras.Model(inputs, scored(x))))
    found = cam(rng.uniform(0, 1, (2, h, w)), 0)
    hf, wf = found.raw.shape[1:]
    rows = weights(h, h / hf, (h / hf - 1) / 2, hf)
    columns = weights(w, w / wf, (w / wf - 1) / 2, wf)
    maps = np.einsum("iy,nij,jx->nyx", rows, found.raw, columns)
    np.testing.assert_allclose(found.maps, maps / maps.max((1, 2), keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    "body", [conv(3, strides=2), stack(conv(3, strides=2), K.UpSampling2D(2), conv(3))]
)
def test_a_model_of_any_size_has_the_maps_of_one_of_that_size(body, rng):
    """Padding moves the cells by half a pixel on even grids, and not on odd ones."""

    def model_of(shape):
        inputs = keras.Input(shape)
        x = K.Activation("relu", name="last_conv")(body(inputs))
        return positive(keras.Model(inputs, scored(x)))

    cam = GradCAM(model_of((None, None, 1)))
    for size in ((24, 36), (25, 36), (24, 36), (24, 37)):
        images, fixed = rng.uniform(0, 1, (2, *size)), model_of((*size, 1))
        fixed.set_weights(cam._model.get_weights())
        wanted = GradCAM(fixed)(images, 0)
        found = cam(images, 0)
        np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-5)
        np.testing.assert_allclose(found.raw, wanted.raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(24, 24), (24, 36)])
def test_a_turned_grid_is_turned_back(size, rng):
    inputs = keras.Input((*size, 1))
    straight = conv(3, strides=2)(inputs)
    images = rng.uniform(0, 1, (2, *size))
    keras.utils.set_random_seed(0)
    turned = K.Activation("relu", name="last_conv")(K.Permute((2, 1, 3))(straight))
    models = [keras.Model(inputs, scored(x)) for x in (straight, turned)]
    for model in models:
        positive(model)
    plain, back = (GradCAM(model)(images, 0) for model in models)
    np.testing.assert_allclose(back.maps, plain.maps, atol=1e-5)
    np.testing.assert_allclose(back.raw, plain.raw, rtol=1e-5)


def grid_behind(make, shape=(None, 8, 8, 3), *others):
    """The grid of what a function of images makes, as a trace shows it."""
    specs = [tf.TensorSpec(shape), *others]
    trace = tf.function(make, autograph=False).get_concrete_function(*specs)
    return grids(trace.inputs[0]).get(trace.outputs[0].ref())


KERNEL = np.zeros((3, 3, 3, 3), np.float32)
UNEVEN = [[0, 0], [1, 2], [0, 0], [0, 0]]
# Functions of images, and where their rows and columns are; what the cells see cannot be told.
UNTOLD = {
    "a padding that depends on the images": (
        lambda x: tf.pad(x, tf.shape(x)[0] * tf.constant(UNEVEN)), (1, 2)),
    "same padding of images of any size": (
        lambda x: tf.nn.conv2d(x, KERNEL, 2, "SAME"), (1, 2), (None, None, None, 3)),
    "images of any size made larger": (
        lambda x: tf.image.resize(x, (32, 32)), (1, 2), (None, None, None, 3)),
    "made larger from corner to corner": (
        lambda x: tf.raw_ops.ResizeBilinear(images=x, size=[16, 16]), (1, 2)),
    "one axis cut into blocks": (lambda x: tf.space_to_batch(x, [2], [[0, 0]]), (1, 2)),
    "paths of two steps that meet": (
        lambda x: tf.nn.conv2d(x, KERNEL, 2, "SAME") + tf.nn.avg_pool2d(x, 5, 1, "VALID"), (1, 2)),
}  # fmt: skip
# Functions behind which there is no grid.
LOST = {
    "channels taken for rows": lambda x: tf.nn.conv2d(
        tf.transpose(x, (0, 3, 1, 2)), np.zeros((1, 1, 8, 2), np.float32), 1, "VALID"
    ),
    "a picture and its transpose": lambda x: x + tf.transpose(x, (0, 2, 1, 3)),
    "rows and columns apart": lambda x: tf.reshape(tf.transpose(x, (0, 1, 3, 2)), (-1, 24, 8)),
    "columns and channels in one": lambda x: tf.reshape(x, (-1, 8, 24)),
}


@pytest.mark.parametrize("case", UNTOLD.values(), ids=list(UNTOLD))
def test_a_grid_whose_cells_see_what_nobody_can_tell_is_kept(case):
    make, at, *shape = case
    found = grid_behind(make, *shape)
    assert found.at == at and found.axes is None


@pytest.mark.parametrize("make", LOST.values(), ids=list(LOST))
def test_what_is_no_picture_any_more_has_no_grid(make):
    assert grid_behind(make) is None


def test_axes_and_shapes_known_only_in_a_run_have_no_grid():
    numbers = tf.TensorSpec((None,), tf.int32)
    for make in (tf.transpose, tf.reshape):
        assert grid_behind(make, (None, 8, 8, 3), numbers) is None


def test_an_assertion_about_images_changes_no_grid():
    def checked(x):
        tf.debugging.Assert(tf.reduce_all(x >= 0), [x])
        return tf.nn.relu(x)

    assert grid_behind(checked).axes == (Axis(1.0, 0.0, 0.0), Axis(1.0, 0.0, 0.0))
