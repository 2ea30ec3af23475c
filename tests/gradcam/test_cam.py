"""Grad-CAM against loops, central differences and closed forms, over many kinds of models."""

import random
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from mri.gradcam.cam import METHODS, GradCAM
from mri.models.builders import build_model

K = keras.layers
SIZE, CLASSES = 8, 4
RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)

# One small network, in NumPy at double precision below and as many kinds of Keras model further on.
W = {
    "first": (RNG.normal(0, 0.6, (3, 3, 1, 3)), RNG.normal(0, 0.1, 3)),
    "norm": (*RNG.uniform(0.5, 1.5, (2, 3)), *RNG.uniform(0.1, 0.5, (2, 3))),
    "target": (RNG.normal(0, 0.5, (3, 3, 3, 4)), RNG.normal(0, 0.1, 4)),
    "hidden": (RNG.normal(0, 0.3, (4 * SIZE * SIZE // 4, 5)), RNG.normal(0, 0.1, 5)),
    "scores": (RNG.normal(0, 0.8, (5, CLASSES)), RNG.normal(0, 0.1, CLASSES)),
}


def convolve(x, kernel, bias):
    """Convolve (h, w, c), padded with zeros to the same size, then ReLU."""
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.empty((h, w, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            out[i, j] = np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias
    return np.maximum(out, 0)


def trunk(image):
    """Activations of `first` and `target`."""
    first = convolve(image[..., None] / 255.0, *W["first"])
    return first, tail(first)


def tail(first):
    """From the activations of `first` to those of `target`."""
    gamma, beta, mean, variance = W["norm"]
    normed = gamma * (first - mean) / np.sqrt(variance + 1e-3) + beta
    return convolve(normed, *W["target"])


def head(activations):
    """From the activations of `target` to the logits."""
    h, w, c = activations.shape
    pooled = activations.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))
    hidden = np.tanh(pooled.ravel() @ W["hidden"][0] + W["hidden"][1])
    return hidden @ W["scores"][0] + W["scores"][1]


def central_differences(function, x, step=1e-5):
    """Gradients (k, *x.shape) of the k values of `function`, one entry at a time."""
    gradients = np.empty((len(function(x)), x.size))
    for i in range(x.size):
        high, low = x.copy().ravel(), x.copy().ravel()
        high[i] += step
        low[i] -= step
        difference = function(high.reshape(x.shape)) - function(low.reshape(x.shape))
        gradients[:, i] = difference / (2 * step)
    return gradients.reshape(-1, *x.shape)


def slow_map(method, a, g):
    """Compute the map of one image before any scaling, straight from the papers' formulas."""
    h, w, channels = a.shape
    out = np.zeros((h, w))
    for k in range(channels):
        if method == "grad-cam":
            weight = np.full((h, w), sum(g[i, j, k] for i in range(h) for j in range(w)) / (h * w))
        elif method == "grad-cam++":
            total = 0.0
            for i in range(h):
                for j in range(w):
                    below = 2 * g[i, j, k] ** 2 + a[..., k].sum() * g[i, j, k] ** 3
                    alpha = g[i, j, k] ** 2 / below if below else 0.0
                    total += alpha * max(g[i, j, k], 0.0)
            weight = np.full((h, w), total)
        elif method == "hirescam":
            weight = g[..., k]
        elif method == "layercam":
            weight = np.maximum(g[..., k], 0)
        out += weight * a[..., k]
    return np.maximum(out, 0)


def slow_resize(x, h, w):
    """Stretch (hf, wf) to (h, w) bilinearly: pixel i of n is centred at (i + 0.5) / n."""
    out = np.empty((h, w))
    for i in range(h):
        for j in range(w):
            v = np.clip((i + 0.5) * x.shape[0] / h - 0.5, 0, x.shape[0] - 1)
            u = np.clip((j + 0.5) * x.shape[1] / w - 0.5, 0, x.shape[1] - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, x.shape[0] - 1), min(u0 + 1, x.shape[1] - 1)
            top = x[v0, u0] * (1 - u + u0) + x[v0, u1] * (u - u0)
            bottom = x[v1, u0] * (1 - u + u0) + x[v1, u1] * (u - u0)
            out[i, j] = top * (1 - v + v0) + bottom * (v - v0)
    return out


@pytest.fixture(scope="module")
def truth():
    """Return logits (3, 4) and, of each method, the raw maps (4, 3, 8, 8) of every class."""
    activations = [trunk(image)[1] for image in IMAGES]
    gradients = [central_differences(head, a) for a in activations]
    maps = {
        method: np.array(
            [
                [slow_map(method, a, g[c]) for a, g in zip(activations, gradients, strict=True)]
                for c in range(CLASSES)
            ]
        )
        for method in METHODS
    }
    return np.array([head(a) for a in activations]), maps


def new_layers(end=None, dropout=0.5):
    """Make the layers of the network, unbuilt; `end` are the last layers instead of the logits."""
    return [
        K.Rescaling(1 / 255, name="rescaling"),
        K.Conv2D(3, 3, padding="same", activation="relu", name="first"),
        K.BatchNormalization(name="norm"),
        K.Conv2D(4, 3, padding="same", activation="relu", name="target"),
        K.AveragePooling2D(2, name="pool"),
        K.Flatten(name="flat"),
        K.Dense(5, activation="tanh", name="hidden"),
        K.Dropout(dropout, name="dropout"),
        *([K.Dense(CLASSES, name="scores")] if end is None else end),
    ]


def fill(model, layers):
    """Give the layers of a built model their weights."""
    for layer in layers:
        if getattr(layer, "name", None) in W:
            layer.set_weights(W[layer.name])
    return model


def chain(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def functional(end=None, inputs=None):
    layers = new_layers(end)
    inputs = keras.Input((SIZE, SIZE, 1)) if inputs is None else inputs
    return fill(keras.Model(inputs, chain(layers, inputs)), layers)


def sequential():
    layers = new_layers()
    return fill(keras.Sequential([keras.Input((SIZE, SIZE, 1)), *layers]), layers)


def sequential_called():
    layers = new_layers()
    model = keras.Sequential(layers)
    model(np.zeros((2, SIZE, SIZE, 1), np.float32))
    return fill(model, layers)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.steps = new_layers()
        self.traces = 0

    def call(self, x):
        self.traces += 1
        return chain(self.steps, x)


class CompiledHead(Subclassed):
    @tf.function(autograph=False)
    def head(self, x):
        return chain(self.steps[4:], x)

    def call(self, x):
        return self.head(chain(self.steps[:4], x))


class Block(keras.Layer):
    def __init__(self, layers, **options):
        super().__init__(**options)
        self.steps = {"all": layers}

    def call(self, x):
        return chain(self.steps["all"], x)


def subclassed(kind=Subclassed):
    model = kind()
    model(np.zeros((2, SIZE, SIZE, 1), np.float32))
    return fill(model, model.steps)


def nested():
    """Preprocessing, a backbone within a backbone, a head."""
    layers = new_layers()
    inner_input = keras.Input((SIZE, SIZE, 3))
    inner = keras.Model(inner_input, chain(layers[2:4], inner_input), name="inner")
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 1)), layers[1], inner], name="outer")
    inputs = keras.Input((SIZE, SIZE, 1))
    return fill(keras.Model(inputs, chain([layers[0], outer, *layers[4:]], inputs)), layers)


def block():
    layers = new_layers()
    inputs = keras.Input((SIZE, SIZE, 1))
    blocks = [layers[0], Block(layers[1:4], name="block"), Block(layers[4:], name="rest")]
    return fill(keras.Model(inputs, chain(blocks, inputs)), layers)


def two_outputs(form):
    layers = new_layers()
    inputs = keras.Input((SIZE, SIZE, 1))
    features = chain(layers[:4], inputs)
    side = [K.Conv2D(2, 3, name="side"), K.GlobalAveragePooling2D(), K.Dense(2, name="other")]
    other = chain(side, features)
    scores = chain(layers[4:], features)
    outputs = {"b": other, "a": scores} if form == "dict" else [other, scores]
    return fill(keras.Model(inputs, outputs), layers)


def two_streams():
    """A convolution used twice: its last use counts."""
    layers = new_layers()
    inputs = keras.Input((SIZE, SIZE, 1))
    layers[3](K.Concatenate()([inputs] * 3))
    return fill(keras.Model(inputs, chain(layers, inputs)), layers)


def dense(activation):
    return [K.Dense(CLASSES, activation=activation, name="scores")]


def scores(*after):
    return [K.Dense(CLASSES, name="scores"), *after]


def compiled():
    model = functional(scores(K.Softmax()))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(IMAGES[..., None], np.zeros(3), verbose=0)
    return fill(model, model.layers)


TOPOLOGIES = {
    "functional": (functional, None),
    "sequential": (sequential, None),
    "sequential called": (sequential_called, None),
    "subclassed": (subclassed, None),
    "tf.function inside": (lambda: subclassed(CompiledHead), None),
    "nested": (nested, None),
    "custom layers": (block, None),
    "shared layer": (two_streams, None),
    "uint8 input": (lambda: functional(inputs=keras.Input((SIZE, SIZE, 1), dtype="uint8")), None),
    "compiled and trained": (compiled, None),
    "list, by name": (lambda: two_outputs("list"), "scores"),
    "list, by index": (lambda: two_outputs("list"), 1),
    "dict, by key": (lambda: two_outputs("dict"), "a"),
    "dense softmax": (lambda: functional(dense("softmax")), None),
    "dense sigmoid": (lambda: functional(dense("sigmoid")), None),
    "dense log-softmax": (lambda: functional(dense("log_softmax")), None),
    "activation layer": (lambda: functional(scores(K.Activation("softmax"))), None),
    "softmax layer": (lambda: functional(scores(K.Softmax(), K.Reshape((CLASSES,)))), None),
    "softmax function": (lambda: functional(scores(keras.ops.softmax)), None),
}


@pytest.fixture(scope="module", params=TOPOLOGIES)
def topology(request):
    build, output = TOPOLOGIES[request.param]
    return build(), output


def equal(maps, expected, tolerance=1e-4):
    """Compare (n, h, w) with the largest value of each expected map as the unit."""
    peaks = expected.max((1, 2), keepdims=True)
    assert (peaks > 0).mean() >= 0.5
    scale = np.where(peaks > 0, peaks, 1)
    np.testing.assert_allclose(maps / scale, expected / scale, atol=tolerance)


def scaled(raw):
    """Divide each map by its maximum where there is one."""
    peaks = raw.max((1, 2), keepdims=True)
    return raw / np.where(peaks > 0, peaks, 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_topology_agrees_with_central_differences(topology, method, truth):
    model, output = topology
    logits, maps = truth
    cam = GradCAM(model, method=method, output=output)
    explanation = cam(np.concatenate([IMAGES] * CLASSES), np.repeat(np.arange(CLASSES), 3))
    expected = maps[method].reshape(-1, SIZE, SIZE)
    assert cam.layer.name == "target"
    np.testing.assert_allclose(explanation.logits, np.concatenate([logits] * CLASSES), atol=1e-4)
    assert explanation.classes.tolist() == np.repeat(np.arange(CLASSES), 3).tolist()
    equal(explanation.raw, expected)
    # The grid of the layer is that of the image here: nothing to stretch.
    np.testing.assert_allclose(explanation.maps, scaled(expected), atol=1e-4)
    assert explanation.zero.tolist() == (expected.max((1, 2)) == 0).tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "build", [functional, sequential, sequential_called, nested], ids=lambda f: f.__name__
)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' loading
def test_loaded_from_disk_equals_live(build, method, truth, tmp_path):
    model = build()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    explanation = GradCAM(loaded, method=method)(IMAGES, 2)
    np.testing.assert_array_equal(explanation.raw, GradCAM(model, method=method)(IMAGES, 2).raw)
    equal(explanation.raw, truth[1][method][2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [functional, nested, subclassed], ids=lambda f: f.__name__)
def test_any_layer_by_name_or_object(build, method):
    model = build()
    image = IMAGES[:1]
    activations = trunk(image[0])[0]
    gradients = central_differences(lambda a: head(tail(a)), activations, 1e-6)
    expected = slow_map(method, activations, gradients[1])[None]
    cam = GradCAM(model, "first", method=method)
    assert cam.layer.name == "first"
    equal(cam(image, 1).raw, expected)
    equal(GradCAM(model, cam.layer, method=method)(image, 1).raw, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 0.05), ("mixed_float16", 3e-3)]
)
def test_mixed_precision_gives_float32_maps_of_the_same_look(policy, tolerance, method, truth):
    """Numbers of 8 and of 11 bits: that far the maps can be known."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = functional(scores(K.Activation("softmax", dtype="float32")))
    finally:
        keras.config.set_dtype_policy(before)
    explanation = GradCAM(model, method=method)(IMAGES, 2)
    assert explanation.maps.dtype == explanation.raw.dtype == explanation.logits.dtype == np.float32
    np.testing.assert_allclose(explanation.maps, scaled(truth[1][method][2]), atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_single_unit_has_a_logit_for_each_class(activation, method, truth):
    layers = new_layers([K.Dense(1, activation=activation, name="unit")])
    inputs = keras.Input((SIZE, SIZE, 1))
    model = fill(keras.Model(inputs, chain(layers, inputs)), layers)
    layers[-1].set_weights([W["scores"][0][:, [2]], W["scores"][1][[2]]])
    cam = GradCAM(model, method=method)
    activations = [trunk(image)[1] for image in IMAGES]
    against = [slow_map(method, a, -central_differences(head, a)[2]) for a in activations]
    for c, sign, expected in ((0, -1, np.array(against)), (1, 1, truth[1][method][2])):
        explanation = cam(IMAGES, c)
        equal(explanation.raw, expected)
        np.testing.assert_allclose(explanation.logits[:, c], sign * truth[0][:, 2], atol=1e-4)
    assert cam(IMAGES).classes.tolist() == (explanation.logits[:, 1] > 0).tolist()


class HiddenSoftmax(Subclassed):
    """Ends in probabilities, made where their logits cannot be seen."""

    def call(self, x):
        return tf.function(keras.ops.softmax)(super().call(x))


OUT_OF_REACH = {
    "in a function": lambda: subclassed(HiddenSoftmax),
    "not the last": lambda: functional(
        scores(K.Softmax(), K.Rescaling(1.0, name="kept"), K.ReLU())
    ),
}


@pytest.mark.parametrize("build", OUT_OF_REACH.values(), ids=list(OUT_OF_REACH))
def test_probabilities_whose_logits_are_out_of_reach_are_explained_by_their_log_odds(build, truth):
    """Of logits z, log odds have the gradient of z_c less that of the others by their shares."""
    cam = GradCAM(build(), method="hirescam")
    found = cam(IMAGES, 2)
    assert cam.kind == "probabilities"
    shares = np.exp(truth[0]) / np.exp(truth[0]).sum(1, keepdims=True)
    np.testing.assert_allclose(found.logits, np.log(shares), atol=1e-4)

    def log_odds(a):
        z = head(a)
        return z[2:3] - np.log(np.exp(np.delete(z, 2)).sum())

    activations = [trunk(image)[1] for image in IMAGES]
    expected = [slow_map("hirescam", a, central_differences(log_odds, a)[0]) for a in activations]
    equal(found.raw, np.array(expected))


def test_probabilities_that_are_rounded_to_one_are_an_error():
    model = functional(scores(K.Softmax(), K.Rescaling(1.0, name="kept"), K.ReLU()))
    model.get_layer("scores").set_weights([W["scores"][0] * 1000, W["scores"][1]])
    with pytest.raises(ValueError, match=r"rounds them to 1.*Received: 3 such images.*index 0"):
        GradCAM(model)(IMAGES)


def test_softmax_that_is_sure_still_has_its_map():
    layers = dense("softmax")
    model, plain = functional(layers), functional()
    for m in (model, plain):
        m.get_layer("scores").set_weights([W["scores"][0] * 1000, W["scores"][1]])
    probabilities = model.predict(IMAGES[..., None], verbose=0)
    assert probabilities.max(1).tolist() == [1, 1, 1]
    np.testing.assert_allclose(GradCAM(model)(IMAGES, 2).maps, GradCAM(plain)(IMAGES, 2).maps)
    assert not GradCAM(model)(IMAGES, 2).zero.any()


def pooled(filters=5, seed=0, size=12, kernel=3, **conv):
    """Make a convolution, global average pooling and one dense layer."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 1))
    x = K.Rescaling(1 / 255)(inputs)
    x = K.Conv2D(filters, kernel, padding="same", name="conv", **conv)(x)
    outputs = K.Dense(CLASSES, name="scores")(K.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("method", ["grad-cam", "hirescam"])
def test_after_global_average_pooling_it_is_the_class_activation_map(method, rng):
    """Zhou et al. 2016: relu(sum_k w_kc A_k); the mean over h w cells divides it by h w."""
    model = pooled(activation="relu", kernel=2, strides=2)
    images = rng.integers(0, 256, (6, 12, 12), dtype=np.uint8)
    classes = rng.integers(0, CLASSES, 6)
    convolution = keras.Model(model.inputs, model.get_layer("conv").output)
    activations = convolution.predict(images[..., None], verbose=0).astype(np.float64)
    weights = model.get_layer("scores").get_weights()[0]
    expected = np.maximum(np.einsum("nijk,kn->nij", activations, weights[:, classes]), 0) / 36
    explanation = GradCAM(model, method=method)(images, classes)
    np.testing.assert_allclose(explanation.raw, expected, rtol=1e-5, atol=1e-7)
    stretched = np.array([slow_resize(x, 12, 12) for x in expected])
    assert stretched.max() > 0
    np.testing.assert_allclose(explanation.maps, scaled(stretched), atol=1e-5)


def test_stretching_to_another_aspect_follows_half_pixel_centres(rng):
    inputs = keras.Input((12, 18, 1))
    x = K.Conv2D(3, (4, 3), strides=(4, 3), activation="relu")(inputs)
    model = keras.Model(inputs, K.Dense(CLASSES)(K.Flatten()(x)))
    explanation = GradCAM(model, method="layercam")(rng.uniform(0, 1, (4, 12, 18)))
    assert explanation.raw.shape == (4, 3, 6) and explanation.maps.shape == (4, 12, 18)
    stretched = np.array([slow_resize(x, 12, 18) for x in explanation.raw.astype(np.float64)])
    np.testing.assert_allclose(explanation.maps, scaled(stretched), atol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(1, 1), (2, 4), (4, 3)])
def test_a_dot_is_found_where_it_is(row, column):
    """A cell of the layer covers pixels 4i to 4i + 3, whose centre is 4i + 1.5."""
    inputs = keras.Input((24, 24, 1))
    conv = K.Conv2D(1, 4, strides=4, use_bias=False, kernel_initializer="ones")
    x = K.GlobalAveragePooling2D()(conv(inputs))
    model = keras.Model(inputs, K.Dense(2, kernel_initializer="ones")(x))
    image = np.zeros((24, 24), np.uint8)
    image[4 * row + 3, 4 * column] = 255
    heat = GradCAM(model)(image, 0).maps[0]
    centre = [(heat.sum(axis) * np.arange(24)).sum() / heat.sum() for axis in (1, 0)]
    np.testing.assert_allclose(centre, [4 * row + 1.5, 4 * column + 1.5], atol=1e-4)
    assert heat.max() == 1


def test_none_explains_the_predicted_class(rng):
    model = pooled(activation="relu")
    images = rng.integers(0, 256, (20, 12, 12), dtype=np.uint8)
    kernel, _ = model.get_layer("scores").get_weights()
    mean = model.predict(images[..., None], verbose=0).mean(0)
    model.get_layer("scores").set_weights([kernel, -mean])
    predicted = model.predict(images[..., None], verbose=0).argmax(1)
    assert len(set(predicted)) > 2
    cam = GradCAM(model, method="layercam")
    explanation = cam(images)
    assert explanation.classes.dtype == np.int64
    np.testing.assert_array_equal(explanation.classes, predicted)
    np.testing.assert_array_equal(explanation.maps, cam(images, predicted).maps)
    np.testing.assert_array_equal(cam(images, 3).maps, cam(images, np.full(20, 3)).maps)


@pytest.mark.parametrize("name", ["Non_Demented", "non demented", "NON-demented"])
def test_classes_go_by_name_too(name):
    model = functional()
    expected = GradCAM(model)(IMAGES, 2).maps
    np.testing.assert_array_equal(GradCAM(model)(IMAGES, name).maps, expected)
    np.testing.assert_array_equal(GradCAM(model)(IMAGES, [name] * 3).maps, expected)
    mine = GradCAM(model, class_names=["a", "b", "Nondemented", "c"])
    assert mine(IMAGES, ["b", name, "a"]).classes.tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="`class_names` must be 4 names"):
        GradCAM(model, class_names=["a"])


def test_batch_size_and_the_form_of_the_images_change_nothing(rng):
    model = subclassed()
    images = rng.integers(0, 256, (70, SIZE, SIZE), dtype=np.uint8)
    cam = GradCAM(model)
    traces = model.traces
    explanation = cam(images)
    for batch_size in (1, 7, 70):
        other = cam(images, batch_size=batch_size)
        np.testing.assert_array_equal(other.classes, explanation.classes)
        np.testing.assert_allclose(other.maps, explanation.maps, atol=1e-5)
        np.testing.assert_allclose(other.logits, explanation.logits, atol=1e-5)
    for form in (images[..., None], images.astype(np.float64), images.astype(np.int32).tolist()):
        np.testing.assert_array_equal(cam(form).maps, explanation.maps)
    np.testing.assert_allclose(cam(images[3]).maps[0], explanation.maps[3], atol=1e-5)
    assert cam(images[3]).maps.shape == (1, SIZE, SIZE)
    assert model.traces == traces, "the last, smaller batch must not trace the model again"


def test_images_of_any_size_where_the_model_takes_them(rng):
    inputs = keras.Input((None, None, 3))
    x = K.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, K.Dense(CLASSES)(K.GlobalAveragePooling2D()(x)))
    cam = GradCAM(model)
    for h, w in ((10, 12), (7, 9)):
        explanation = cam(rng.uniform(0, 1, (2, h, w, 3)))
        assert explanation.maps.shape == (2, h, w)
        assert explanation.raw.shape == (2, (h + 1) // 2, (w + 1) // 2)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_show_is_zero_and_said_so(method, rng):
    model = pooled(activation="relu")
    kernel = np.ones((5, CLASSES), np.float32)
    kernel[:, 0] = -1
    model.get_layer("scores").set_weights([kernel, np.zeros(CLASSES)])
    images = rng.integers(1, 256, (4, 12, 12), dtype=np.uint8)
    images[3] = 0
    explanation = GradCAM(model, method=method)(images, [0, 1, 0, 1])
    assert explanation.zero.tolist() == [True, False, True, True]
    assert explanation.zero.dtype == bool
    assert explanation.maps[[0, 2, 3]].max() == 0 == explanation.raw[[0, 2, 3]].max()
    assert explanation.maps[1].max() == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-20, 1e12])
def test_size_of_the_gradients_does_not_matter(method, factor, rng):
    """Squares and cubes of such gradients leave the range of float32."""
    images = rng.integers(0, 256, (4, 12, 12), dtype=np.uint8)
    images[:, :, 6:] //= 8
    model = pooled(activation="relu")
    conv, out = model.get_layer("conv"), model.get_layer("scores")
    kernel = np.abs(out.get_weights()[0])
    out.set_weights([kernel, np.zeros(CLASSES)])
    expected = GradCAM(model, method=method)(images, 1)
    out.set_weights([kernel * factor, np.zeros(CLASSES)])
    conv.set_weights([w / factor for w in conv.get_weights()])
    explanation = GradCAM(model, method=method)(images, 1)
    assert not explanation.zero.any()
    np.testing.assert_allclose(explanation.maps, expected.maps, atol=1e-4)


def test_reads_the_weights_of_the_moment(rng):
    model = pooled(activation="relu")
    images = rng.integers(0, 256, (3, 12, 12), dtype=np.uint8)
    cam = GradCAM(model)
    before = cam(images, 1).raw
    model.set_weights(pooled(activation="relu", seed=5).get_weights())
    assert np.abs(cam(images, 1).raw - before).max() > 1e-3
    np.testing.assert_array_equal(cam(images, 1).raw, GradCAM(model)(images, 1).raw)


def test_only_the_head_is_differentiated():
    def backward(layer):
        operations = GradCAM(functional(), layer)._explain.graph.get_operations()
        return sum(operation.type == "Conv2DBackpropInput" for operation in operations)

    assert backward("target") == 0
    assert backward("first") == 1


class Meddler(keras.Layer):
    """Counts its calls, draws random numbers, adds losses and knows if it is training."""

    def __init__(self):
        super().__init__(name="meddler", activity_regularizer="l2")
        self.seeds = keras.random.SeedGenerator(3)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=None):
        self.count.assign_add(1.0)
        self.add_loss(keras.ops.mean(x))
        noise = keras.random.normal(keras.ops.shape(x), seed=self.seeds)
        return x + (1.0 if training else 1e-9) * noise


def fingerprint(model):
    """Collect all that may not change."""
    layers = model._flatten_layers()
    return {
        "weights": [v.numpy().tolist() for v in model.variables],
        "optimizer": [v.numpy().tolist() for v in model.optimizer.variables],
        "seeds": [model.get_layer(name).seeds.state.numpy().tolist() for name in ["meddler"]],
        "dropout": model.get_layer("dropout").seed_generator.state.numpy().tolist(),
        "config": model.to_json(),
        "attributes": [{k: id(v) for k, v in vars(layer).items()} for layer in layers],
        "trainable": [layer.trainable for layer in layers],
        "activations": [getattr(layer, "activation", None) for layer in layers],
        "policies": [layer.dtype_policy.name for layer in layers],
        "nodes": [len(layer._inbound_nodes) for layer in layers],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "global policy": keras.config.dtype_policy().name,
        "call": keras.Layer.__call__,
        "learning": keras.tree.map_structure(float, model.optimizer.learning_rate.numpy()),
    }


@pytest.mark.filterwarnings("ignore:this model draws random numbers")  # The meddler does.
def test_the_model_is_left_as_it_was():
    model = functional([Meddler(), *dense("softmax")])
    model.get_layer("first").trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(IMAGES[..., None], np.zeros(3), verbose=0)
    predictions = model.predict(IMAGES[..., None], verbose=0)
    before = fingerprint(model)
    cam = GradCAM(model)
    explanation = cam(IMAGES)
    cam(IMAGES, 1, batch_size=2)
    after = fingerprint(model)
    for key, value in before.items():
        assert after[key] == value, key
    assert model.losses == [], "losses of the trace would leak its tensors"
    np.testing.assert_array_equal(model.predict(IMAGES[..., None], verbose=0), predictions)
    np.testing.assert_allclose(
        keras.ops.softmax(explanation.logits), predictions, atol=1e-5
    )  # no dropout, no batch statistics, next to no noise: inference
    model.fit(IMAGES[..., None], np.zeros(3), verbose=0)
    with pytest.raises(ValueError, match="layer='nowhere'"):
        GradCAM(model, "nowhere")
    assert keras.Layer.__call__ is before["call"]


def test_the_class_is_given_back_when_the_model_fails():
    class Broken(Subclassed):
        broken = False

        def call(self, x):
            if self.broken:
                raise RuntimeError("out of order")
            return super().call(x)

    model, call = subclassed(Broken), keras.Layer.__call__
    model.broken = True
    with pytest.raises(RuntimeError, match="out of order"):
        GradCAM(model)
    assert keras.Layer.__call__ is call
    model.broken = False
    GradCAM(model)(IMAGES)


def test_several_threads_do_not_mix_up_their_models(truth):
    call = keras.Layer.__call__
    models = [functional() for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        explanations = list(pool.map(lambda model: GradCAM(model)(IMAGES, 2), models))
    for explanation in explanations:
        equal(explanation.raw, truth[1]["grad-cam"][2])
    assert keras.Layer.__call__ is call


def test_works_where_functions_run_eagerly(truth):
    tf.config.run_functions_eagerly(True)
    try:
        explanation = GradCAM(functional())(IMAGES, 2)
    finally:
        tf.config.run_functions_eagerly(False)
    equal(explanation.raw, truth[1]["grad-cam"][2])


@pytest.mark.parametrize(
    "kind",
    [K.Conv2D, K.DepthwiseConv2D, K.SeparableConv2D, K.Conv2DTranspose],
    ids=lambda kind: kind.__name__,
)
def test_finds_the_last_convolution_that_has_a_grid_and_leads_on(kind):
    options = {} if kind is K.DepthwiseConv2D else {"filters": 3}
    inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Conv2D(3, 3)(inputs)
    x = kind(kernel_size=3, **options)(x)
    x = K.ReLU(name="wanted")(K.BatchNormalization()(x))
    x = K.MaxPooling2D(1)(x)
    K.Conv2D(2, 1, name="aside")(x)
    x = K.GlobalAveragePooling2D(keepdims=True)(x)
    x = K.Conv2D(8, 1, name="on_one_cell")(x)
    model = keras.Model(inputs, K.Dense(CLASSES)(K.Flatten()(x)))
    assert GradCAM(model).layer is model.get_layer("wanted")


def test_a_layer_of_the_agreed_name_goes_before_the_last_convolution(rng):
    """And need not be a convolution, as in `tissue`; another name does not count."""
    for name, expected in (("last_conv", "last_conv"), ("other", "deep")):
        x = inputs = keras.Input((8, 8, 1))
        x = keras.layers.Activation("tanh", name=name)(x)
        x = keras.layers.Conv2D(2, 3, name="deep")(x)
        x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
        cam = GradCAM(keras.Model(inputs, x))
        assert cam.layer.name == expected
    assert GradCAM(build_model("tissue")).layer.name == "last_conv"


def test_convolutions_of_other_outputs_do_not_count():
    model = two_outputs("list")
    assert GradCAM(model, output="other").layer.name == "side"
    assert GradCAM(model, output="scores").layer.name == "target"


@pytest.mark.slow
def test_backbone_of_keras_applications_in_closed_form(rng):
    """MobileNetV2 ends in convolution, normalisation, ReLU6, mean, here with a dense layer."""
    keras.utils.set_random_seed(2)  # Of some weights every map is zero.
    backbone = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, include_top=False, weights=None
    )
    images = rng.integers(0, 256, (2, 96, 96), dtype=np.uint8)
    pixels = K.Resizing(64, 64)(images[..., None].astype(np.float32)) / 127.5 - 1
    front = keras.Model(backbone.inputs, backbone.get_layer("Conv_1").output)
    a = front.predict(np.repeat(pixels, 3, -1), verbose=0).astype(np.float64)
    gamma, beta = rng.uniform(1, 3, (2, a.shape[-1]))
    norm = backbone.get_layer("Conv_1_bn")
    norm.set_weights([gamma, beta, a.mean((0, 1, 2)), a.var((0, 1, 2))])
    norm.epsilon = 0.0

    inputs = keras.Input((96, 96, 1))
    x = K.Concatenate()([K.Resizing(64, 64)(inputs)] * 3)
    x = backbone(K.Rescaling(1 / 127.5, -1)(x))
    scores = K.Dense(CLASSES, activation="softmax")
    outputs = scores(K.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    assert GradCAM(model).layer.name == "out_relu"
    normed = gamma * (a - a.mean((0, 1, 2))) / a.std((0, 1, 2)) + beta
    open_gate = (normed > 0) & (normed < 6)
    assert 0.1 < open_gate.mean() < 0.95
    slope = open_gate * gamma / a.std((0, 1, 2))
    weights = scores.kernel.numpy() / a[0, ..., 0].size
    for method in METHODS:
        cam = GradCAM(model, backbone.get_layer("Conv_1"), method=method)
        explanation = cam(np.repeat(images, CLASSES, 0), np.tile(np.arange(CLASSES), 2))
        assert explanation.maps.shape == (2 * CLASSES, 96, 96)
        of_all = [(i, c) for i in range(2) for c in range(CLASSES)]
        expected = np.array([slow_map(method, a[i], slope[i] * weights[:, c]) for i, c in of_all])
        zero = expected.max((1, 2)) == 0
        assert zero.tolist() == explanation.zero.tolist() and not zero.all()
        equal(explanation.raw[~zero], expected[~zero])


def twins():
    """Two backbones whose inner layers share their names."""
    parts = [
        keras.Sequential([keras.Input((None, None, 1)), K.Conv2D(1, 3, name="inner")], name=name)
        for name in ("left", "right")
    ]
    inputs = keras.Input((SIZE, SIZE, 1))
    return keras.Model(inputs, K.Dense(2)(K.Flatten()(chain(parts, inputs))))


def test_layers_of_one_name_are_told_apart_by_the_object():
    model = twins()
    for name in ("left", "right"):
        layer = model.get_layer(name).get_layer("inner")
        assert GradCAM(model, layer).layer is layer
    with pytest.raises(ValueError, match=r"get_layer\('inner'\).*layer='inner', several have this"):
        GradCAM(model, "inner")


def without_convolution():
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 1)), K.ReLU(name="r"), K.Flatten(), K.Dense(2)]
    )


def cut_off():
    inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Conv2D(2, 3, name="cut")(inputs)
    return keras.Model(inputs, K.Dense(2)(K.Flatten()(keras.ops.stop_gradient(x))))


def two_inputs():
    inputs = [keras.Input((SIZE, SIZE, 1)), keras.Input((3,))]
    x = K.Concatenate()([K.Flatten()(K.Conv2D(2, 3)(inputs[0])), inputs[1]])
    return keras.Model(inputs, K.Dense(2)(x))


def dense_map():
    return keras.Sequential([keras.Input((SIZE, SIZE, 1)), K.Conv2D(2, 3)])


@pytest.mark.parametrize(
    ("build", "options", "match"),
    [
        (functional, {"method": "guided"}, "one of .*'layercam'.*method='guided'"),
        (functional, {"layer": "nowhere"}, "4-D are .*'first'.*'target'.*layer='nowhere', none"),
        (functional, {"layer": "hidden"}, "4-D are .*'first'.*'target'.*layer='hidden', none"),
        (functional, {"layer": K.Conv2D(2, 3, name="x")}, "Received: layer=<Conv2D name=x.*, none"),
        (lambda: subclassed(CompiledHead), {"layer": "pool"}, "'pool', called inside a tf.func"),
        (without_convolution, {}, r"No layer can be explained: .* 4-D are \['r'\]"),
        (cut_off, {"layer": "cut"}, "layer='cut', no gradient reaches it"),
        (lambda: two_outputs("list"), {}, r"\['other', 'scores'\] .* below 2.*output=None"),
        (lambda: two_outputs("dict"), {"output": "c"}, r"\['b', 'a'\] .*output='c'"),
        (lambda: two_outputs("list"), {"output": 2}, "output=2"),
        (lambda: two_outputs("list"), {"output": -1}, "output=-1"),
        (lambda: two_outputs("list"), {"output": True}, "output=True"),
        (functional, {"output": "c"}, "output='c'"),
        (lambda: two_outputs("list"), {"output": 0, "layer": "pool"}, "'pool', no gradient"),
        (two_inputs, {}, r"one image input .*\(None, 3\)"),
        (dense_map, {}, r"class scores \(n, k\).*scores.shape="),
        (Subclassed, {}, "call it once on images"),
        (lambda: keras.Sequential(new_layers()), {}, "call it once on images"),
    ],
)
def test_what_cannot_be_explained_is_said_when_it_is_made(build, options, match):
    with pytest.raises(ValueError, match=match):
        GradCAM(build(), **options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": np.zeros((2, 9, 8))}, r"fit \(None, 8, 8, 1\).*images.shape=\(2, 9, 8\)"),
        ({"images": np.zeros((2, 8, 8, 3))}, r"images.shape=\(2, 8, 8, 3\)"),
        ({"images": np.zeros(8)}, r"images.shape=\(8,\)"),
        ({"images": np.zeros((0, 8, 8))}, r"images.shape=\(0, 8, 8\)"),
        ({"images": np.full((2, 8, 8), "a")}, "images.dtype=<U1"),
        ({"images": np.full((2, 8, 8), np.nan)}, "finite numbers"),
        ({"classes": 4}, r"in 0\.\.3. Received: classes=4"),
        ({"classes": -1}, "classes=-1"),
        ({"classes": [0, 1]}, r"3 of them.*classes=\[0, 1\]"),
        ({"classes": [0, 1, 4]}, r"classes=\[0, 1, 4\]"),
        ({"classes": "Demented"}, r"one of \['Mild_Demented', .* Received: classes='Demented'"),
        ({"classes": ["Non_Demented", 1, 2]}, "Received: classes="),
        ({"classes": 1.0}, "classes=1.0"),
        ({"classes": True}, "classes=True"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_wrong_arguments_of_a_call(arguments, match):
    cam = GradCAM(functional())
    with pytest.raises(ValueError, match=match):
        cam(**{"images": IMAGES, **arguments})


def test_results_that_are_not_finite_are_an_error():
    model = functional()
    images = np.stack([IMAGES[0] / 1.0, np.full((SIZE, SIZE), 1e38), IMAGES[2] / 1.0])
    model.get_layer("norm").set_weights([W["norm"][0] * 1e20, *W["norm"][1:]])
    with pytest.raises(ValueError, match=r"NaN or infinite.*Received: 1 such images.* index 1"):
        GradCAM(model)(images)
    model.get_layer("scores").set_weights([W["scores"][0], np.full(CLASSES, np.nan)])
    with pytest.raises(ValueError, match="Received: 3 such images, the first at index 0"):
        GradCAM(model)(IMAGES)
