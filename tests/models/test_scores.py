"""What a model ends in: its logits are the same, whatever was put behind them."""

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax

from mri._keras import keras, tf
from mri.gradcam import GradCAM
from mri.models.scores import Scorer, are_probabilities, predict_logits, scale_of

K, ops = keras.layers, keras.ops
SIZE = 8


def body(units=4):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Conv2D(3, 3, activation="relu")(K.Rescaling(1 / 25)(x))
    return inputs, K.Dense(units, name="scores")(K.Flatten()(x))


def model(end, units=4):
    inputs, z = body(units)
    return keras.Model(inputs, end(z))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def z(images):
    return model(lambda z: z).predict(images[..., None], verbose=0)


class AlwaysOn(K.Dropout):
    def call(self, x, training=None):
        return super().call(x, training=True)


class Hidden(K.Layer):
    def call(self, x):
        return tf.function(ops.softmax)(x)


RECOVERED = {
    "logits": ("logits", lambda z: z),
    "softmax layer": ("softmax", K.Softmax()),
    "activation": ("softmax", K.Activation("softmax")),
    "operation": ("softmax", ops.softmax),
    "in float32": ("softmax", K.Activation("softmax", dtype="float32")),
    "reshaped": ("softmax", lambda z: K.Reshape((4,))(K.Softmax()(K.Reshape((1, 1, 4))(z)))),
    "log-softmax": ("log-softmax", K.Activation("log_softmax")),
    "log of softmax": ("log-softmax", lambda z: ops.log(K.Softmax()(z))),
    "sigmoid": ("sigmoid", K.Activation("sigmoid")),
    "softmax twice": ("twice", lambda z: K.Softmax()(K.Softmax()(z))),
    "sigmoid of softmax": ("twice", lambda z: ops.sigmoid(K.Softmax()(z))),
    "softmax of log-softmax": ("softmax", lambda z: K.Softmax()(ops.log_softmax(z))),
    "percent": ("softmax", lambda z: ops.softmax(z) * 100.0),
    "softmax twice averaged": ("softmax", lambda z: K.Average()([K.Softmax()(z), K.Softmax()(z)])),
    "averaged by operations": ("softmax", lambda z: ops.mean(
        ops.stack([ops.softmax(z), ops.softmax(z)]), 0)),
    "dict": ("softmax", lambda z: {"diagnosis": K.Softmax()(z)}),
    "list": ("softmax", lambda z: [K.Softmax()(z)]),
}  # fmt: skip
LOGARITHMS = {
    "in a function": Hidden(),
    "behind more": lambda z: K.ReLU()(K.Rescaling(1.0)(K.Softmax()(z))),
    "own formula": lambda z: ops.exp(z) / ops.sum(ops.exp(z), -1, keepdims=True),
}


@pytest.mark.parametrize(("kind", "end"), RECOVERED.values(), ids=list(RECOVERED))
def test_logits_behind_any_end(kind, end, images, z):
    scorer = Scorer(model(end))
    np.testing.assert_allclose(scorer(images), z, rtol=1e-6, atol=1e-6)
    assert scorer.kind == kind


@pytest.mark.parametrize("end", LOGARITHMS.values(), ids=list(LOGARITHMS))
def test_where_there_are_none_logarithms_give_the_same_answers(end, images, z):
    scorer = Scorer(model(end))
    np.testing.assert_allclose(scorer(images), log_softmax(z, 1), atol=1e-4)
    assert scorer.kind == "probabilities"


def test_an_ensemble_gives_the_logarithm_of_its_mean(images):
    inputs, z = body()
    keras.utils.set_random_seed(9)
    other = K.Dense(4)(K.Flatten()(inputs * 0.01))
    mean = keras.Model(inputs, K.Average()([K.Softmax()(z), K.Softmax()(other)]))
    expected = np.log(mean.predict(images[..., None], verbose=0))
    scorer = Scorer(mean)
    np.testing.assert_allclose(scorer(images), expected, atol=1e-5)
    assert scorer.kind == "probabilities"


def test_an_average_that_turns_the_order_round_is_not_looked_through(images):
    turned = Scorer(model(lambda z: K.Rescaling(-1.0)(K.Softmax()(z))))
    shares = model(K.Softmax()).predict(images[..., None], verbose=0)
    np.testing.assert_allclose(turned(images), -shares, atol=1e-6)


WEIGHTS = np.array([9.0, 0.1, 0.3, 3.0], np.float32)
ITS_OWN = {
    "classes weighted": ("unclear", lambda z: ops.softmax(z) * WEIGHTS),
    "classes weighted by division": ("unclear", lambda z: ops.softmax(z) / WEIGHTS),
    "shares as divisors": ("unclear", lambda z: 1.0 / ops.softmax(z)),
    "two by two": ("unclear", lambda z: K.Flatten()(K.Softmax()(K.Reshape((2, 2))(z)))),
    "over the slices": ("unclear", lambda z: ops.softmax(z, axis=0)),
    "largest of two": ("unclear", lambda z: ops.maximum(ops.softmax(z), ops.softmax(z / 3))),
    "two added": ("unclear", lambda z: ops.softmax(z) + ops.softmax(z / 3)),
    "sigmoids averaged": ("unclear", lambda z: (ops.sigmoid(z) + ops.sigmoid(z / 3)) / 2),
    "percent behind more": ("probabilities", lambda z: ops.relu(ops.softmax(z) * 100)),
    "one class of five left out": ("unclear", lambda z: ops.softmax(ops.pad(z, [[0, 0], [1, 0]]))[
        :, 1:]),
}  # fmt: skip


@pytest.mark.parametrize(("kinds", "end"), ITS_OWN.values(), ids=list(ITS_OWN))
def test_what_is_no_plain_softmax_keeps_its_own_answer(kinds, end, images):
    """It is not looked through, and where it may be shares, that is said."""
    made = model(end)
    scorer = Scorer(made)
    own = made.predict(images[..., None], verbose=0)
    np.testing.assert_array_equal(scorer(images).argmax(1), own.argmax(1))
    assert scorer.kind in kinds.split()


def test_a_softmax_of_each_place_is_not_that_of_the_slice(images):
    """Averaged over the grid, it has as many rows as places: none of them is the answer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 1))
    places = K.Conv2D(4, 3, activation="softmax")(K.Rescaling(1 / 25)(inputs))
    made = keras.Model(inputs, K.GlobalAveragePooling2D()(places))
    scorer = Scorer(made)
    own = made.predict(images[..., None], verbose=0)
    np.testing.assert_allclose(scorer(images), np.log(own), atol=1e-5)
    assert scorer.kind == "probabilities"


def test_logarithms_of_more_than_a_softmax_are_logits(images):
    scorer = Scorer(model(lambda z: ops.log(ops.softmax(z) + 1e-7)))
    assert scorer(images).max() < 0.01
    assert scorer.kind == "logits"


@pytest.mark.filterwarnings("ignore:.*You are using a softmax over axis -1")
def test_a_single_unit_of_softmax_says_nothing(images):
    always = Scorer(model(K.Softmax(), units=1))
    np.testing.assert_array_equal(always(images), [[-1.0, 1.0]] * len(images))
    assert always.kind == "unclear"


def test_an_image_without_an_axis_of_channels(images, z):
    whole = model(lambda z: z)
    inputs = keras.Input((SIZE, SIZE))
    flat = keras.Model(inputs, whole(K.Reshape((SIZE, SIZE, 1))(inputs)))
    np.testing.assert_allclose(predict_logits(flat, images), z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [[2, 0, 3, 1]])
def test_classes_put_in_another_order_behind_softmax(order, images, z):
    scorer = Scorer(model(lambda z: ops.take(K.Softmax()(z), order, axis=1)))
    np.testing.assert_allclose(scorer(images), z[:, order], rtol=1e-6, atol=1e-6)


def test_one_unit_is_two_classes(images):
    for end in (lambda z: z, K.Activation("sigmoid")):
        one = Scorer(model(end, units=1))
        unit = model(lambda z: z, units=1).predict(images[..., None], verbose=0)
        np.testing.assert_allclose(one(images), np.hstack([-unit, unit]), atol=1e-6)


def test_fixed_and_open_sizes(images, z):
    inputs = keras.Input(batch_shape=(4, SIZE, SIZE, 1))
    whole = model(K.Softmax())
    fixed = keras.Model(inputs, K.Softmax()(K.Reshape((4,))(whole(inputs))))
    np.testing.assert_allclose(Scorer(fixed)(images), z, rtol=1e-6, atol=1e-5)
    inputs = keras.Input((None, None, 1))
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3)(inputs))
    assert predict_logits(keras.Model(inputs, x), images).shape == (5, 4)


def test_the_live_model_is_left_alone(images):
    live = model(K.Softmax())
    before = live.to_json(), [w.tolist() for w in live.get_weights()]
    predict_logits(live, images)
    assert (live.to_json(), [w.tolist() for w in live.get_weights()]) == before
    np.testing.assert_allclose(live.predict(images[..., None], verbose=0).sum(1), 1, atol=1e-5)


def test_images_with_a_channel_and_unbuilt_models(images, z):
    np.testing.assert_array_equal(predict_logits(model(lambda z: z), images[..., None]), z)
    unbuilt = keras.Sequential([K.Flatten(), K.Dense(4)])
    with pytest.warns(UserWarning, match="a network that never got weights"):
        assert predict_logits(unbuilt, images).shape == (5, 4)


def test_what_does_not_fit_is_said(images):
    network = model(lambda z: z)
    with pytest.raises(
        ValueError, match=r"numbers \(n, h, w\) for a model of \(8, 8, 1\).*mri\.models\.adapt"
    ):
        predict_logits(network, images[:, :7])
    with pytest.raises(ValueError, match=r"Received: shape=\(8, 8\)"):
        predict_logits(network, images[0])
    two = keras.Model(network.inputs, [network.output, network.output])
    with pytest.raises(ValueError, match="`output` must be one of"):
        Scorer(two)
    with pytest.raises(ValueError, match="one image input"):
        Scorer(keras.Model([keras.Input((8, 8, 1)), keras.Input((3,))], body()[1]) if 0 else
               keras.Sequential([keras.Input((3,)), K.Dense(4)]))  # fmt: skip


def test_images_that_were_rescaled_before_are_noticed(images):
    with pytest.warns(UserWarning, match="values 0 to 1, and this model rescales"):
        predict_logits(model(lambda z: z), images / 255)
    plain = keras.Sequential([keras.Input((SIZE, SIZE, 1)), K.Flatten(), K.Dense(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_logits(plain, images / 255)


def normalised(x):
    return K.Normalization(mean=127.0, variance=80.0**2)(x)


@pytest.mark.parametrize(
    ("prepare", "scale"),
    [
        (lambda x: x / 255.0, 1 / 255),
        (lambda x: ops.subtract(x * (1 / 127.5), 1), 2 / 255),
        (keras.applications.mobilenet_v2.preprocess_input, 2 / 255),
        (lambda x: K.ZeroPadding2D()(K.Rescaling(1 / 255)(x)), 1 / 255),
        (normalised, 1 / 80),
        (lambda x: K.Rescaling(1 / 255)(K.Rescaling(1 / 255)(x)), 1 / 255**2),
        (lambda x: K.Rescaling(255)(K.Rescaling(1 / 255)(x)), 1),
        (lambda x: x, 1),
        (K.LayerNormalization(axis=(1, 2)), 0),
    ],
)
def test_rescaling_is_found_however_it_is_done(images, prepare, scale):
    inputs = keras.Input((SIZE, SIZE, 1))
    network = keras.Model(inputs, K.Dense(4)(K.Flatten()(K.Conv2D(2, 3)(prepare(inputs)))))
    assert scale_of(network) == pytest.approx(scale, rel=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict_logits(network, images / 255)
        GradCAM(network)(images / 255)
    told = ["values 0 to 1" in str(warning.message) for warning in caught]
    assert told == [True] * 2 * (0 < scale < 0.1)


def test_answers_that_are_drawn_are_warned_of(images):
    inputs, z = body()
    drawn = keras.Model(inputs, K.Dense(4)(AlwaysOn(0.5)(z)))
    with pytest.warns(UserWarning, match="draws random numbers"):
        predict_logits(drawn, images)
    with pytest.warns(UserWarning, match="draws random numbers"):
        GradCAM(drawn)
    usual = keras.Model(inputs, K.Dense(4)(K.Dropout(0.5)(K.GaussianNoise(1.0)(z))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict_logits(usual, images)


def test_images_that_are_not_finite_are_refused(images):
    damaged = images.astype(float)
    damaged[2, 3, 3] = np.nan  # A ReLU makes 0 of it, and an answer like any other.
    with pytest.raises(ValueError, match="images must be finite numbers"):
        predict_logits(model(lambda z: z), damaged)


def test_shares_are_told_from_logits():
    assert are_probabilities(np.array([[0.2, 0.8], [1.0, 0.0]]))
    assert not are_probabilities(np.array([[0.2, 0.8], [1.0, 0.1]]))
    assert not are_probabilities(np.array([[-0.2, 1.2]]))
    assert not are_probabilities(np.ones((3, 1)))
