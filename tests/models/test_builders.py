"""What every registered network must do, and the registry itself."""

import sys
import types

import numpy as np
import pytest

import mri.models.builders
from mri._keras import keras, tf
from mri.models.builders import (
    _BUILDERS,
    augmentation,
    build_model,
    initial_weights,
    list_models,
    register,
)
from mri.models.files import load_model, save_model
from mri.models.scores import predict_logits

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

layers = keras.layers
# What takes a minute for one of these is left to `make stress`.
HEAVY = {"dual_path", "resnet50", "efficientnet_b3"}
FEW = {"compact", "fast", "tissue"}


def tier(name):
    return pytest.mark.stress if name in HEAVY else pytest.mark.slow


EVERY = pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=tier(n)) for n in list_models()]
)


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    monkeypatch.setattr(mri.models.builders, "DOWNLOAD", False)


@pytest.fixture
def registry():
    """The registry, put back after the test."""
    kept = dict(_BUILDERS)
    yield _BUILDERS
    _BUILDERS.clear()
    _BUILDERS.update(kept)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 128, 128), dtype=np.uint8)


def linear(x, classes):
    return layers.Dense(classes)(layers.Flatten()(x))


# --- every network ---


@EVERY
def test_networks_give_finite_float32_logits(name, images):
    model = build_model(name)
    assert (model.name, model.input_shape) == (name, (None, 128, 128, 1))
    logits = model(images[..., None], training=False)
    assert logits.shape == (6, 4)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).min() > 0, "the logits do not depend on the slice"
    assert build_model(name, classes=7, input_shape=(64, 96, 1)).output_shape == (None, 7)


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_gradient_reaches_every_weight(name, images, dtype):
    keras.utils.set_random_seed(0)
    model = build_model(name, dtype=dtype)
    with tf.GradientTape() as tape:
        logits = model(images[..., None], training=True)
        assert logits.dtype == "float32"
        loss = keras.losses.sparse_categorical_crossentropy(
            np.arange(6) % 4, logits, from_logits=True
        )
    weights = model.trainable_variables
    assert all(weight.dtype == "float32" for weight in weights)
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient), weight.path


@EVERY
@pytest.mark.parametrize("augment", [False, True])
def test_a_saved_network_comes_back_equal(name, images, augment, tmp_path):
    model = build_model(name, augment=augment)
    save_model(model, tmp_path / "m.keras", {})
    again = load_model(tmp_path / "m.keras")
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(predict_logits(model, images), predict_logits(again, images))


@EVERY
def test_last_conv_is_a_map(name):
    shape = build_model(name).get_layer("last_conv").output.shape
    assert len(shape) == 4
    # The backbones of photographs halve the grid five times.
    assert min(shape[1:3]) >= (4 if name in ("resnet50", "efficientnet_b3") else 8)


@EVERY
def test_gray_values_are_rescaled_inside(name, images):
    """What leaves the layer `rescaling` is all that the others see: gray values over 255."""
    model = build_model(name)
    inner = keras.Model(model.input, model.get_layer("rescaling").output)
    np.testing.assert_allclose(inner(images[..., None])[..., 0], images / 255, atol=1e-6)
    assert len(model.get_layer("rescaling")._inbound_nodes) == 1
    (start,) = model.inputs
    assert [node.operation.name for node in start._keras_history.operation._outbound_nodes] == [
        "rescaling"
    ]


@EVERY
def test_the_same_seed_gives_the_same_weights(name):
    found = []
    for seed in (5, 5, 6):
        keras.utils.set_random_seed(seed)
        found.append(np.concatenate([w.ravel() for w in build_model(name).get_weights()]))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_sizes_are_those_that_are_documented():
    """Counted by hand: convolutions 320 and 18 496, normalisation 64 + 64, dense 8 388 736, 516."""
    baseline = build_model("baseline")
    assert sum(int(np.prod(w.shape)) for w in baseline.trainable_weights) == 8_408_132
    assert baseline.count_params() == 8_408_132 + 2 * 32
    kinds = [type(layer).__name__ for layer in baseline.layers[2:-1]]
    assert kinds == [
        *("Conv2D", "MaxPooling2D", "BatchNormalization", "Conv2D", "MaxPooling2D"),
        *("Flatten", "Dense", "Dense"),
    ]
    assert build_model("compact").count_params() <= 1_000_000


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("baseline", 8_408_132),
        ("baseline_dropout", 8_408_260),
        ("baseline_dropout_reduced", 8_408_260),
        ("baseline_dropout_light", 8_408_260),
        ("baseline_deep", 4_288_068),
        ("baseline_deep_plain", 4_288_068),
        ("dual_path", 27_575_060),
        ("keras_like", 2_618_052),
        ("three_block_5x5", 4_276_004),
        ("small_5x5", 2_110_724),
    ],
)
def test_networks_of_the_benchmarks_have_their_number_of_trainable_weights(name, weights):
    trainable = build_model(name).trainable_weights
    assert sum(int(np.prod(weight.shape)) for weight in trainable) == weights


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("baseline", []),
        ("baseline_dropout", [0.3, 0.4, 0.5]),
        ("baseline_dropout_reduced", [0.2, 0.3]),
        ("baseline_dropout_light", [0.1]),
        ("baseline_deep", [0.1]),
        ("baseline_deep_plain", []),
        ("keras_like", [0.05, 0.2, 0.2, 0.2]),
        ("three_block_5x5", [0.1, 0.1, 0.2]),
        ("dual_path", [0.2, 0.2]),
    ],
)
def test_dropout_is_where_it_was_said(name, rates):
    found = [layer.rate for layer in build_model(name).layers if isinstance(layer, layers.Dropout)]
    assert found == rates


def test_a_backbone_says_what_it_starts_from(monkeypatch):
    """Without a download from random weights; with one that fails too, and with a warning."""
    shape = (32, 32, 1)
    assert initial_weights(build_model("resnet50", input_shape=shape)) == "random"
    made = []

    def resnet(*, weights, name, include_top, input_shape):
        made.append(weights)
        if weights == "imagenet" and len(made) == 1:
            raise Exception("URL fetch failure")
        start = keras.Input(input_shape)
        return keras.Model(start, layers.Conv2D(3, 32)(start), name=name)

    monkeypatch.setattr(mri.models.builders, "DOWNLOAD", True)
    monkeypatch.setattr(keras.applications, "ResNet50", resnet)
    with pytest.warns(UserWarning, match=r"no ImageNet weights \(URL fetch failure\)"):
        model = build_model("resnet50", input_shape=shape)
    assert initial_weights(model) == "random"
    assert made == ["imagenet", None]
    assert initial_weights(build_model("resnet50", input_shape=shape)) == "ImageNet"


@pytest.mark.stress
def test_a_backbone_gets_what_imagenet_weights_were_trained_on(images):
    """Three channels of gray values less the mean colour, as `preprocess_input` makes them."""
    model = build_model("resnet50")
    inner = keras.Model(model.input, model.get_layer("centring").output)
    rgb = np.repeat(images[..., None], 3, -1).astype(np.float32)
    expected = keras.applications.resnet50.preprocess_input(rgb.copy())
    np.testing.assert_allclose(inner(images[..., None]), expected, atol=1e-3)
    model = build_model("efficientnet_b3")
    inner = keras.Model(model.input, model.get_layer("gray_levels").output)
    np.testing.assert_allclose(inner(images[..., None]), rgb, atol=1e-3)


# --- the registry ---


def test_a_registered_builder_is_listed_and_built(registry):
    assert register(linear) is linear
    assert list_models() == sorted([*registry])
    assert "linear" in list_models()
    model = build_model("linear", input_shape=(8, 8, 1), classes=3)
    assert model.count_params() == (64 + 1) * 3


def test_a_clash_of_names_is_refused(registry):
    register(linear)
    other = types.FunctionType(linear.__code__, globals(), "linear")
    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="a builder named 'linear' exists; choose another"):
        register(other)
    assert registry["linear"] is linear

    def baseline(x, classes):
        return linear(x, classes)

    with pytest.raises(ValueError, match="a builder named 'baseline' exists"):
        register(baseline)


def test_a_cell_may_be_run_again(registry):
    """Running a notebook cell twice defines the function anew, in the same module."""
    cell = types.ModuleType("cell")
    cell.__dict__.update(register=register, layers=layers)
    source = "@register\ndef once(x, classes):\n    return layers.Dense({})(layers.Flatten()(x))"
    for units in ("classes", "classes, use_bias=False"):
        exec(source.format(units), cell.__dict__)
    assert build_model("once", input_shape=(8, 8, 1)).count_params() == 64 * 4


def test_an_unknown_name_lists_the_models():
    with pytest.raises(ValueError, match=r"\['baseline', .*'compact'.*Received: name='no_such'"):
        build_model("no_such")


@pytest.mark.parametrize("bad", ["features", "map"])
def test_a_builder_that_returns_no_logits_is_refused(registry, bad):
    def wrong(x, classes):
        return layers.Dense(classes)(x) if bad == "map" else layers.Flatten()(x)

    register(wrong)
    with pytest.raises(ValueError, match=r"wrong must return \(batch, 4\). Received: \(None, "):
        build_model("wrong", input_shape=(8, 8, 1))


# --- the policy ---


def test_the_dtype_reaches_the_layers_but_not_the_global_policy(registry):
    register(linear)
    model = build_model("linear", input_shape=(8, 8, 1), dtype="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert model.layers[-2].compute_dtype == "bfloat16"
    assert model.layers[-2].variable_dtype == "float32"
    assert model.output.dtype == "float32"


def test_the_global_policy_survives_a_builder_that_raises(registry):
    @register
    def broken(x, classes):
        raise RuntimeError("inside the builder")

    for dtype, error, message in (
        ("mixed_bfloat16", RuntimeError, "inside the builder"),
        ("no_such_policy", ValueError, "no_such_policy"),
    ):
        with pytest.raises(error, match=message):
            build_model("broken", dtype=dtype)
        assert keras.config.dtype_policy().name == "float32"


def test_the_callers_own_policy_is_kept(registry):
    register(linear)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert build_model("linear").layers[-2].compute_dtype == "float32"
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_keras_scales_the_loss_of_float16(registry):
    register(linear)
    for dtype, expected in (("mixed_float16", True), ("mixed_bfloat16", False)):
        model = build_model("linear", input_shape=(8, 8, 1), dtype=dtype)
        model.compile("sgd", "mse")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) is expected


# --- augmentation ---


def head(size=64):
    """A bright ellipse off the centre, so that every move shows."""
    y, x = np.mgrid[:size, :size] / size
    return (((y - 0.45) / 0.3) ** 2 + ((x - 0.55) / 0.25) ** 2 < 1) * 0.6


def test_augmentation_works_in_training_only(registry):
    register(linear)
    keras.utils.set_random_seed(0)
    varied = build_model("linear", input_shape=(64, 64, 1), augment=True)
    plain = build_model("linear", input_shape=(64, 64, 1))
    plain.set_weights(varied.get_weights())
    x = np.repeat(255 * head()[None, ..., None], 8, 0)
    np.testing.assert_array_equal(varied(x, training=False), plain(x, training=False))
    np.testing.assert_array_equal(varied(x), plain(x))
    np.testing.assert_array_equal(varied.predict(x, verbose=0), plain.predict(x, verbose=0))
    first, second = (np.asarray(varied(x, training=True)) for _ in range(2))
    assert (first != second).any()
    assert np.ptp(first, axis=0).min() > 0, "every slice of a batch is varied by itself"
    np.testing.assert_array_equal(plain(x, training=True), plain(x, training=False))


def test_augmentation_follows_the_seed(registry):
    register(linear)
    x = np.repeat(255 * head()[None, ..., None], 8, 0)
    found = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        model = build_model("linear", input_shape=(64, 64, 1), augment=True)
        model.set_weights([np.ones((64 * 64, 4)), np.zeros(4)])
        found.append(np.asarray(model(x, training=True)))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_augmentation_moves_a_head_a_little_and_mirrors_half_of_them():
    keras.utils.set_random_seed(0)
    x = out = np.repeat(head().astype(np.float32)[None, ..., None], 200, 0)
    for layer in augmentation():
        out = layer(out, training=True)
    out = np.asarray(out)[..., 0]
    assert out.shape == (200, 64, 64)
    assert out.min() >= 0
    assert out.max() <= 1
    grid = (np.arange(64) + 0.5) / 64
    inside = out > 0.3
    columns = (inside * grid).sum((1, 2)) / inside.sum((1, 2))
    rows = (inside * grid[:, None]).sum((1, 2)) / inside.sum((1, 2))
    mirrored = columns < 0.5
    assert 70 < mirrored.sum() < 130
    assert np.abs(rows - 0.45).max() < 0.08, "never upside down"
    assert np.abs(np.where(mirrored, 1 - columns, columns) - 0.55).max() < 0.08
    area = inside.sum((1, 2)) / (x[0] > 0.3).sum()
    assert 0.85 < area.min() < 0.97
    assert 1.03 < area.max() < 1.2
    spread = np.abs(np.percentile(out[:, 20:38, 28:42], 50, axis=(1, 2)) - 0.6)
    assert 0.02 < spread.max() < 0.15, "contrast"


# --- prediction ---


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_predicted_logits_are_those_of_the_model(registry, rng, batch_size):
    register(linear)
    images = rng.integers(0, 256, (9, 8, 8), dtype=np.uint8)
    model = build_model("linear", input_shape=(8, 8, 1))
    kernel, bias = model.get_weights()
    logits = predict_logits(model, images, batch_size=batch_size)
    assert logits.dtype == np.float32
    expected = images.reshape(9, -1) / 255 @ kernel.astype(float) + bias
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    direct = [model(images[i : i + batch_size, ..., None]) for i in range(0, 9, batch_size)]
    np.testing.assert_allclose(logits, np.concatenate(direct), atol=1e-6)


def test_prediction_prints_nothing(registry, capfd):
    register(linear)
    model = build_model("linear", input_shape=(8, 8, 1))
    predict_logits(model, np.zeros((2, 8, 8), np.uint8))
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")


def test_tissue_is_the_share_of_a_tone_in_sixteen_fields():
    """The numbers before the linear layer, by NumPy, of standardised slices of any brightness."""
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (3, 32, 32)).astype(np.float32)
    model = build_model("tissue", input_shape=(32, 32, 1))
    pooled = next(x for x in model.layers if isinstance(x, keras.layers.AveragePooling2D))
    fields = keras.Model(model.inputs, pooled.output)
    standard = images - images.mean((1, 2), keepdims=True)
    standard /= np.sqrt((standard / 255).var((1, 2), keepdims=True) + 1e-3) * 255
    tone = np.exp(-(((standard - 0.65) / 0.25) ** 2))
    expected = tone.reshape(3, 4, 8, 4, 8).mean((2, 4))
    found = fields.predict(images[..., None], verbose=0)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert model.count_params() == 16 * 4 + 4 + 2  # and two statistics of the normalisation


def test_the_original_networks_start_within_pytorchs_limits():
    """Uniform in ±1/√fan_in, as in torch.nn.Linear and Conv2d; ±0.0039 on 65,536 inputs."""
    model = build_model("baseline_dropout")
    kernels = {w.shape: np.asarray(w) for w in model.weights if w.path.endswith("kernel")}
    assert (65536, 128) in kernels
    for shape, values in kernels.items():
        limit = np.prod(shape[:-1]) ** -0.5
        assert np.abs(values).max() <= limit
        assert values.std() == pytest.approx(limit / 3**0.5, rel=0.1)
