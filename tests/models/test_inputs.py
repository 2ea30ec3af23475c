"""What a model expects, declared beside it or in a call, reaches it, and its maps stay in place."""

import json

import numpy as np
import pytest

from mri.__main__ import main
from mri._keras import keras
from mri.data.parquet import CLASS_NAMES
from mri.gradcam.cam import GradCAM
from mri.models.files import ModelFile, ModelFileError, declare, load_model
from mri.models.inputs import Expects, adapt, declared, only_declares
from mri.models.scores import predict_logits

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
K = keras.layers
TURNED = ["Very mild demented", "NON-DEMENTED", "moderate_demented", "MildDemented"]


def echo(shape, channels=1):
    """A model whose four scores are the mean of what reaches it, by quarter of its rows."""
    inputs = keras.Input((*shape, channels))
    x = K.AveragePooling2D((shape[0] // 4, shape[1]))(inputs)
    x = K.Conv2D(1, 1, kernel_initializer="ones", name="sum")(x)
    return keras.Model(inputs, K.Flatten()(x))


def bars(n=2, size=128):
    """Slices of four bars of one tone each."""
    tones = np.array([[0, 255, 51, 102], [10, 20, 30, 40]])[:n]
    return np.repeat(np.repeat(tones, size // 4, 1)[..., None], size, 2).astype(np.uint8), tones


@pytest.mark.parametrize(
    ("told", "channels", "expected"),
    [
        ({}, 1, lambda v: v),
        ({"range": (0, 1)}, 1, lambda v: v / 255),
        ({"range": [-1, 1]}, 3, lambda v: 3 * (v / 127.5 - 1)),
        ({"scale": 0.5, "offset": -3}, 1, lambda v: 0.5 * v - 3),
        ({"scale": [1, 2, 3]}, 3, lambda v: 6 * v),
        (
            {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            3,
            lambda v: (
                (v / 255 - 0.485) / 0.229 + (v / 255 - 0.456) / 0.224 + (v / 255 - 0.406) / 0.225
            ),
        ),
        ({"mean": 0.5}, 1, lambda v: v / 255 - 0.5),
    ],
)
def test_values_reach_the_model_as_declared(told, channels, expected):
    images, tones = bars()
    model = adapt(echo((128, 128), channels), channels=channels, **told)
    assert model.input_shape == (None, 128, 128, 1)
    np.testing.assert_allclose(predict_logits(model, images), expected(tones), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [64, 256, (64, 192)])
def test_sizes_are_interpolated(size):
    images, tones = bars()
    shape = (size, size) if isinstance(size, int) else size
    model = adapt(echo(shape), size=size)
    found = predict_logits(model, images)
    # Bars stay where they are but for the one line between two of them.
    np.testing.assert_allclose(found, tones, atol=255 / 16)
    np.testing.assert_allclose(predict_logits(adapt(echo(shape), range=(0, 255)), images), found)


def test_classes_are_put_in_order_by_name():
    images, tones = bars()
    model = adapt(echo((128, 128)), class_names=TURNED)
    np.testing.assert_allclose(predict_logits(model, images), tones[:, ::-1], rtol=1e-5)
    kept = adapt(echo((128, 128)), class_names=TURNED, order=TURNED)
    np.testing.assert_allclose(predict_logits(kept, images), tones, rtol=1e-5)
    with pytest.raises(ValueError, match=r"class_names must be those of the data.*'Healthy'"):
        adapt(echo((128, 128)), class_names=["Healthy", *CLASS_NAMES[:3]])


def test_maps_stay_on_the_pixels_of_the_slice():
    """A dot is found where it is in the slice, though the model sees it at another size."""
    inputs = keras.Input((256, 256, 3))
    x = K.Conv2D(1, 3, padding="same", kernel_initializer="ones", name="c")(inputs)
    scores = K.Dense(4, kernel_initializer="ones")(K.GlobalAveragePooling2D()(x))
    model = adapt(keras.Model(inputs, K.Softmax()(scores)), size=256, channels=3, range=(0, 1))
    image = np.zeros((128, 128), np.uint8)
    image[90:92, 30:32] = 255
    found = GradCAM(model, method="hirescam")(image, 0)
    assert found.maps.shape == (1, 128, 128)
    row, column = (
        (found.maps[0].sum(1 - a) * np.arange(128)).sum() / found.maps.sum() for a in (0, 1)
    )
    np.testing.assert_allclose([row, column], [90.5, 30.5], atol=0.05)


def test_channels_first_and_fixed_batches():
    images, tones = bars()
    inputs = keras.Input((3, 128, 128))
    x = K.Permute((2, 3, 1))(inputs)
    first = keras.Model(inputs, echo((128, 128), 3)(x))
    model = adapt(first, channels=3, range=(0, 1))
    np.testing.assert_allclose(predict_logits(model, images), tones / 85, rtol=1e-4)
    inputs = keras.Input(batch_shape=(8, 128, 128, 1))
    fixed = keras.Model(inputs, echo((128, 128))(inputs))
    np.testing.assert_allclose(
        predict_logits(adapt(fixed, range=(0, 255)), images), tones, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"size": 0}, "size must be rows and columns.*size=0"),
        ({"size": [1, 2, 3]}, "size must be"),
        ({"size": "224"}, "size must be"),
        ({"channels": 2}, "channels must be 1 or 3.*channels=2"),
        ({"range": [1, 0]}, "range must be two numbers"),
        ({"range": 1}, "range must be"),
        ({"scale": 0}, "scale must be above 0"),
        ({"std": [1, 0, 1]}, "std must be above 0"),
        ({"mean": "imagenet"}, "mean must be a number"),
        (
            {"mean": [123.7, 116.8, 103.9]},
            r"mean must be of gray values 0 to 1: divide by 255.*mean=\[123",
        ),
        ({"mean": 0.5, "std": 58.4}, "std must be of gray values 0 to 1"),
        ({"scale": 10**400}, "scale must be a number"),
        ({"range": [0, float("inf")]}, "range must be two numbers"),
        ({"range": [0, 1], "mean": 0.5}, "Only one of .*declared=\\['range', 'mean and std'\\]"),
        ({"class_names": ["a", "a"]}, "class_names must be distinct"),
        ({"class_names": "abcd"}, "class_names must be distinct"),
    ],
)
def test_what_is_no_declaration_is_refused(told, match):
    with pytest.raises(ValueError, match=match):
        Expects(**told)


def test_what_the_model_cannot_take_is_refused():
    model = echo((128, 128))
    with pytest.raises(ValueError, match=r"size must be that which the model takes, \(128, 128\)"):
        adapt(model, size=224)
    with pytest.raises(ValueError, match=r"channels must be 1 or 3 and those .* takes, 1"):
        adapt(model, channels=3)
    with pytest.raises(ValueError, match="must be one number, or one of 1 channels"):
        adapt(model, scale=[1, 2, 3])
    with pytest.raises(ValueError, match="The model gives 4 scores"):
        adapt(model, class_names=["a", "b"], order=["b", "a"])


def test_cards_in_either_form():
    flat = {"size": 224, "channels": 3, "range": [0, 1], "classes": TURNED}
    nested = {"expects": {**flat}}
    assert declared(flat) == declared(nested) == Expects(224, 3, [0, 1], class_names=TURNED)
    assert declared({"temperature": 1.0}) is None
    assert only_declares(flat) and only_declares(nested) and only_declares({"sha256": "", **flat})
    assert not only_declares({}) and not only_declares({"sha256": ""})
    assert not only_declares({**flat, "split": {}})
    with pytest.raises(ValueError, match=r"expects may hold .*unknown=\['sise'\]"):
        declared({"expects": {"sise": 3}})
    with pytest.raises(ValueError, match=r"may hold .*unknown=\['author', 'rnage'\]"):
        declared({"size": 64, "rnage": [0, 1], "author": "me", "sha256": ""})
    with pytest.raises(ValueError, match=r"must stand under 'expects'.*beside=\['range'\]"):
        declared({"split": {}, "class_names": ["a"], "range": [0, 1]})
    assert declared({"split": {}, "class_names": ["a"]}) is None


def test_whole_numbers_are_not_made_shares():
    inputs = keras.Input((128, 128, 1), dtype="uint8")
    model = keras.Model(inputs, echo((128, 128))(inputs))
    images, tones = bars()
    np.testing.assert_allclose(predict_logits(adapt(model, size=128), images), tones, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"takes uint8, whole numbers .* Received: scale=\[0\.0039"
    ):
        adapt(model, range=(0, 1))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.keras"
    echo((64, 64), 3).save(path)
    return path


def test_a_card_with_only_these_fields_is_enough(file):
    images, tones = bars()
    file.with_suffix(".json").write_text(json.dumps({"range": [0, 1], "class_names": TURNED}))
    model = load_model(file)
    assert model.input_shape == (None, 128, 128, 1)
    np.testing.assert_allclose(predict_logits(model, images), tones[:, ::-1] / 85, atol=0.1)
    assert not ModelFile(file).trained_here
    assert ModelFile(file).load(bare=True).input_shape == (None, 64, 64, 3)
    file.with_suffix(".json").write_text(json.dumps({"size": 32}))
    with pytest.raises(ModelFileError, match=r"mine\.json: size must be that which"):
        load_model(file)


def test_the_command_shows_and_writes_the_card(file, capsys, monkeypatch):
    card = file.with_suffix(".json")
    told = ["card", str(file), "--size", "64", "--channels", "3", "--range", "0", "1"]
    assert main([*told, "--dry-run"]) == 0
    assert not card.exists()
    assert "range: not declared, becomes [0.0, 1.0]" in capsys.readouterr().out
    assert main([*told, "--classes", *TURNED]) == 0
    out = capsys.readouterr().out
    assert "takes: (None, 64, 64, 3); a gray value of 0 reaches it as 0, one of 255 as 1" in out
    written = json.loads(card.read_text())
    assert list(written) == ["card_version", "sha256", "size", "channels", "range", "class_names"]
    assert main(["card", str(file), "--mean", "0.5", "--std", "0.2"]) == 0
    assert "range: [0.0, 1.0], becomes not declared" in capsys.readouterr().out
    assert json.loads(card.read_text())["size"] == [64, 64]
    assert main(["card", str(file), "--size", "32"]) == 1
    assert "size must be that which the model takes, (64, 64)" in capsys.readouterr().err


def test_a_card_of_a_training_keeps_what_it_says():
    before = ModelFile("models/zoo/tissue-subject.keras").card
    said = declare("tissue-subject", range=(0, 255), write=False)
    assert said.startswith("range: not declared")
    assert ModelFile("models/zoo/tissue-subject.keras").card == before
