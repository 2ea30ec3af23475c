"""The layer that Grad-CAM takes by itself: no path from the image to the logit passes it by.

The measure is completeness: where what follows is linear, HiResCAM's map, before its ReLU, sums to
the logit less its bias. A side branch gives only its share of it.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

from mri.gradcam.cam import METHODS, GradCAM
from mri.gradcam.tables import layer_table
from mri.models.builders import build_model, list_models

K = keras.layers
SIZE, CLASSES = 32, 4


@pytest.fixture(autouse=True)
def negative(monkeypatch):
    """HiResCAM's map turned round: with it, what the ReLU cut off is known."""
    monkeypatch.setitem(METHODS, "against", lambda a, g: -g)


def block(x, *steps):
    for step in steps:
        x = step(x)
    return x


def conv(filters, kernel=3, **options):
    return K.Conv2D(filters, kernel, padding="same", **options)


def stem(x):
    return block(K.Rescaling(1 / 255)(x), conv(8, strides=2), K.BatchNormalization(), K.ReLU())


def plain(x):
    return conv(8, activation="relu")(x)


def pooled_last(x):
    return K.Dropout(0.5)(K.MaxPooling2D()(plain(x)))


def residual(x):
    y = block(x, conv(8), K.BatchNormalization(), K.ReLU(), conv(8), K.BatchNormalization())
    return K.ReLU()(K.Add()([x, y]))


def pre_activation(x):
    return K.Add()([x, block(x, K.BatchNormalization(), K.ReLU(), conv(8))])


def bottleneck(x):
    y = block(x, conv(4, 1), K.ReLU(), conv(4), K.ReLU(), conv(16, 1))
    return K.ReLU()(K.Add()([conv(16, 1)(x), y]))


def dense_blocks(x):
    for _ in range(3):
        x = K.Concatenate()([x, block(x, K.BatchNormalization(), K.ReLU(), conv(4))])
    return block(x, K.BatchNormalization(), K.ReLU())


def inception(x):
    paths = [conv(4, 1)(x), conv(4)(x), conv(4, 5)(x), conv(4, 1)(K.MaxPooling2D(3, 1, "same")(x))]
    return K.Concatenate()([K.ReLU()(y) for y in paths])


def squeeze_and_excite(x):
    s = block(K.GlobalAveragePooling2D(keepdims=True)(x), conv(2, 1), K.ReLU(), conv(8, 1))
    return K.Multiply()([x, K.Activation("sigmoid")(s)])


def depthwise(x):
    return block(x, K.DepthwiseConv2D(3, padding="same"), K.BatchNormalization(), K.ReLU(6.0))


def separable(x):
    return K.ReLU()(K.SeparableConv2D(8, 3, padding="same")(x))


def transposed(x):
    return K.ReLU()(K.Conv2DTranspose(8, 3, strides=2, padding="same")(x))


def grouped(x):
    return K.ReLU()(conv(8, groups=2)(x))


def dilated(x):
    return K.ReLU()(conv(8, dilation_rate=2)(x))


def group_norm(x):
    return K.Activation("relu")(K.GroupNormalization(2)(conv(8)(x)))


def layer_norm(x):
    return K.Activation("gelu")(K.LayerNormalization()(conv(8)(x)))


def other_norms(x):
    return block(x, conv(8), K.UnitNormalization(), conv(8), K.RMSNormalization(), K.LeakyReLU())


def convnext(x):
    y = block(
        x, K.DepthwiseConv2D(7, padding="same"), K.LayerNormalization(), K.Dense(16), K.Dense(8)
    )
    return x + y


def pointwise(x):
    return block(x, K.Dense(12, activation="gelu"), K.Dense(8, activation="relu"))


def operations(x):
    y = keras.ops.relu(conv(8)(x))
    return keras.ops.relu(keras.ops.concatenate([x, y], -1) * 2.0 - 0.1)


def spatial_attention(x):
    mean = keras.ops.mean(x, -1, keepdims=True)
    return K.Multiply()([x, conv(1, 7, activation="sigmoid")(mean)])


def tokens(x):
    """A transformer block on the cells of the grid, and back."""
    _, h, w, c = x.shape
    t = K.Reshape((h * w, c))(x)
    t = K.Add()([t, K.MultiHeadAttention(2, 4)(t, t)])
    return K.Reshape((h, w, c))(K.LayerNormalization()(t))


def pyramid(x):
    """Two scales, of which the coarse one is brought back to the fine one."""
    y = conv(8)(K.UpSampling2D()(conv(8, strides=2)(x)))
    return K.ReLU()(K.Add()([conv(8)(x), y]))


BLOCKS = [
    *[plain, pooled_last, residual, pre_activation, bottleneck, dense_blocks, inception],
    *[squeeze_and_excite, depthwise, separable, transposed, grouped, dilated, group_norm],
    *[layer_norm, other_norms, convnext, pointwise, operations, spatial_attention, tokens, pyramid],
]


def pooled(x):
    return K.GlobalAveragePooling2D()(x)


HEADS = {"mean": pooled, "places": lambda x: K.Flatten()(x)}


def scored(inputs, x, head=pooled):
    # Of biases that are not zero, so that they are missed where they are forgotten.
    dense = K.Dense(
        CLASSES, bias_initializer=keras.initializers.RandomNormal(seed=3), name="scores"
    )
    return keras.Model(inputs, dense(head(x)))


def completeness(model, images, layer=None):
    """Sum of the map before its ReLU, and the logit less its bias, of each image and class."""
    n, cells = len(images), []
    images, classes = np.repeat(images, CLASSES, 0), np.tile(np.arange(CLASSES), n)
    for method in ("hirescam", "against"):
        cam = GradCAM(model, layer, method=method)
        found = cam(images, classes)
        cells.append(found.raw.astype(np.float64).sum((1, 2)))
    bias = model.get_layer("scores").bias.numpy()[classes]
    return cam, cells[0] - cells[1], found.logits[np.arange(len(classes)), classes] - bias


def last_convolution(cam):
    """What used to be taken: the last convolution with a grid, whatever goes past it."""
    kinds = K.Conv2D, K.Conv2DTranspose, K.DepthwiseConv2D, K.SeparableConv2D
    return [v for v in cam.layers if isinstance(v, kinds) and min(v.output.shape[1:3]) > 1][-1]


def share(total, logit):
    """Least squares: which part of the logits the maps sum to."""
    return float(total @ logit / (logit @ logit))


def images(rng, channels=1, size=SIZE):
    return rng.integers(0, 256, (3, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BLOCKS, ids=lambda f: f.__name__)
def test_the_map_sums_to_the_logit_less_its_bias(body, head, rng, request):
    if head == "places" and body not in (residual, inception, pooled_last, convnext):
        pytest.skip("of each head some")
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIZE, SIZE, 1))
    model = scored(inputs, body(stem(inputs)), HEADS[head])
    x = images(rng)
    cam, total, logit = completeness(model, x)
    np.testing.assert_allclose(total, logit, atol=1e-4 * abs(logit).max())
    branches = {residual, pre_activation, bottleneck, dense_blocks, inception, convnext, pyramid}
    if body in branches and head == "mean":
        _, part, _ = completeness(model, x, last_convolution(cam))
        assert abs(share(part, logit) - 1) > 0.05, "the last convolution is a branch"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (plain, "conv2d_1"),
        (pooled_last, "conv2d_1"),
        (residual, "re_lu_2"),
        (inception, "concatenate"),
        (squeeze_and_excite, "multiply"),
        (group_norm, "activation"),
    ],
    ids=lambda of: getattr(of, "__name__", None),
)
def test_the_layer_is_named(body, expected):
    keras.backend.clear_session()
    inputs = keras.Input((SIZE, SIZE, 1))
    assert GradCAM(scored(inputs, body(stem(inputs)))).layer.name == expected


def test_a_tensor_between_two_layers_is_found_too(rng):
    """Inside a layer of one's own, where the last map is no layer's result."""

    class Gate(K.Layer):
        def call(self, x):
            return keras.ops.mean(keras.ops.relu(x) + 0.1 * x, (1, 2))

    inputs = keras.Input((SIZE, SIZE, 1))
    x = conv(8, name="before")(stem(inputs))
    cam, total, logit = completeness(scored(inputs, x, Gate()), images(rng))
    assert cam.layer.name == "before"
    np.testing.assert_allclose(total, logit, atol=1e-4 * abs(logit).max())


APPLICATIONS = {
    # By name: side of the image, and what the last convolution alone may give.
    **dict.fromkeys(["MobileNet", "MobileNetV2", "MobileNetV3Small", "VGG16", "ResNet50"], 64),
    **dict.fromkeys(["ResNet50V2", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"], 64),
    **dict.fromkeys(["NASNetMobile", "ConvNeXtTiny"], 64),
    **dict.fromkeys(["InceptionV3", "InceptionResNetV2", "Xception"], 96),
}


def application(name):
    keras.utils.set_random_seed(2)
    size = APPLICATIONS[name]
    make = getattr(keras.applications, name)
    backbone = make(input_shape=(size, size, 3), include_top=False, weights=None)
    inputs = keras.Input((size, size, 1))
    x = K.Concatenate()([K.Rescaling(1 / 127.5, -1)(inputs)] * 3)
    return scored(inputs, backbone(x)), size


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_networks_of_keras_applications(name, rng, keep_figures):
    model, size = application(name)
    # Random weights may let the signal die away: the head makes logits of ordinary size again.
    features = keras.Model(model.inputs, model.get_layer("scores").input)
    spread = features.predict(images(np.random.default_rng(0), size=size), verbose=0).std()
    model.get_layer("scores").kernel.assign(model.get_layer("scores").kernel / spread)
    x = images(rng, size=size)
    cam, total, logit = completeness(model, x)
    np.testing.assert_allclose(total, logit, atol=2e-4 * abs(logit).max())
    old = last_convolution(cam)
    _, part, _ = completeness(model, x, old)
    keep_figures(
        f"completeness of {name}",
        **{f"{cam.layer.name}": share(total, logit), f"last: {old.name}": share(part, logit)},
    )


@pytest.mark.parametrize("name", sorted(set(list_models()) - {"resnet50", "efficientnet_b3"}))
@pytest.mark.filterwarnings("ignore:'last_conv' lies on one of several")  # Of dual_path.
def test_of_the_zoo_the_marked_layer_is_taken(name):
    assert GradCAM(build_model(name)).layer.name == "last_conv"


# --- where there is none ---


def branches(shared=False):
    inputs = keras.Input((SIZE, SIZE, 1))
    start = stem(inputs) if shared else K.Rescaling(1 / 255)(inputs)
    paths = [pooled(conv(4, activation="relu", name=name)(start)) for name in ("left", "right")]
    return keras.Model(inputs, K.Dense(CLASSES, name="scores")(K.Concatenate()(paths)))


def ensemble():
    inputs = keras.Input((SIZE, SIZE, 1))
    members = []
    for name in ("one", "two"):
        x = keras.Input((SIZE, SIZE, 1))
        y = K.MaxPooling2D()(residual(stem(x)))
        members.append(keras.Model(x, K.Dense(CLASSES, "softmax")(K.Flatten()(y)), name=name))
    return keras.Model(inputs, K.Average()([member(inputs) for member in members]))


def multi_scale():
    """A skip from the stem to the head, past everything that follows."""
    inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Rescaling(1 / 255)(inputs)
    y = conv(4, activation="relu", name="early")(x)
    late = conv(4, activation="relu", name="late")(K.MaxPooling2D()(y))
    x = K.Concatenate()([pooled(late), pooled(x)])
    return keras.Model(inputs, K.Dense(CLASSES)(x))


def test_branches_that_meet_behind_pooling_are_named(rng):
    with pytest.raises(ValueError, match=r"must be named.*They end in \['right', 'left'\]"):
        GradCAM(branches())
    for name in ("left", "right"):
        assert GradCAM(branches(), name).layer.name == name
    shared = GradCAM(branches(shared=True))
    assert isinstance(shared.layer, K.ReLU), "what both begin with is on every path"


def test_a_side_branch_is_not_taken_for_its_name(rng):
    """Other people too may call a layer `last_conv`; it is taken where every path goes through."""
    inputs = keras.Input((SIZE, SIZE, 1))
    trunk = stem(inputs)
    side = conv(8, name="last_conv")(trunk)
    cam, total, logit = completeness(scored(inputs, K.Add()([trunk, side])), images(rng))
    assert cam.layer.name.startswith("add")
    np.testing.assert_allclose(total, logit, rtol=1e-4, atol=1e-5)
    late = K.Concatenate()([pooled(trunk), pooled(K.Rescaling(1 / 255)(inputs))])
    alone = scored(inputs, K.Concatenate()([pooled(side), late]), lambda x: x)
    with pytest.warns(UserWarning, match="'last_conv' lies on one of several branches"):
        assert GradCAM(alone).layer.name == "last_conv"


def test_an_ensemble_has_candidates_and_no_default():
    keras.backend.clear_session()
    with pytest.raises(ValueError, match=r"They end in \['re_lu_2', 're_lu_5'\].*layer=None"):
        GradCAM(ensemble())


def test_a_skip_of_the_image_itself_is_a_path_too():
    with pytest.raises(ValueError, match=r"must be named.*They end in \['late'\]"):
        GradCAM(multi_scale())


def test_what_only_looks_like_a_grid_is_none(rng):
    """Four tokens of four heads have the form of a map of 4 × 4 cells."""
    inputs = keras.Input((16, 16, 1))
    x = conv(8, strides=8, name="patches")(inputs)
    t = K.Reshape((4, 8))(x)
    t = K.MultiHeadAttention(4, 4)(t, t)
    model = keras.Model(inputs, K.Dense(CLASSES)(K.Flatten()(t)))
    assert GradCAM(model).layer.name == "patches"
    x = K.Reshape((4, 4, 2))(K.Dense(32)(K.Flatten()(x)))
    model = keras.Model(inputs, K.Dense(CLASSES)(K.Flatten()(x)))
    assert GradCAM(model).layer.name == "patches"


# --- layouts ---


def layout(first):
    """One network with the channels last, or first; the weights of a convolution are the same."""
    keras.utils.set_random_seed(5)
    order = {"data_format": "channels_first" if first else "channels_last"}
    axis = 1 if first else -1
    inputs = keras.Input((1, SIZE, SIZE) if first else (SIZE, SIZE, 1))
    x = K.Rescaling(1 / 255)(inputs)
    for strides in (2, 1):
        x = K.Conv2D(6, 3, strides, "same", **order)(x)
        x = K.ReLU()(K.BatchNormalization(axis)(x))
        y = K.ReLU()(K.DepthwiseConv2D(3, padding="same", **order)(x))
        x = K.MaxPooling2D(2, **order)(K.Add()([x, y]))
    x = K.GroupNormalization(2, axis=axis)(x)
    return keras.Model(inputs, K.Dense(CLASSES)(K.GlobalAveragePooling2D(**order)(x)))


@pytest.mark.parametrize("method", ["grad-cam", "hirescam"])
def test_channels_first_gives_the_maps_of_its_twin(method, rng):
    last, first = layout(False), layout(True)
    first.set_weights(last.get_weights())
    x = images(rng)
    one, other = (GradCAM(model, method=method)(x) for model in (last, first))
    assert one.maps.std() > 0.01
    np.testing.assert_allclose(other.logits, one.logits, atol=1e-4)
    np.testing.assert_allclose(other.maps, one.maps, atol=1e-4)
    np.testing.assert_allclose(other.raw, one.raw, atol=1e-4 * one.raw.max())
    inputs = keras.Input((SIZE, SIZE, 1))
    inside = keras.Model(inputs, first(K.Permute((3, 1, 2))(inputs)))
    np.testing.assert_allclose(GradCAM(inside, method=method)(x).maps, one.maps, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'last_conv' lies on one of several")
def test_the_heatmap_page_names_the_layer_of_each_network():
    page = Path("models/heatmaps.md").read_text(encoding="utf-8")
    lines = list(layer_table())
    assert len(lines) == 2 + len(list_models())
    assert [line for line in lines if line not in page] == []
