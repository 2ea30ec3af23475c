"""What a model goes through in the process for strangers, step by step in this one."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mri._keras import keras
from mri.evaluation.logits import fitting_scorer
from mri.models.cards import ModelFileError
from mri.models.files import ModelFile, try_out
from mri.models.graph import check_graph

pytestmark = pytest.mark.slow

K = keras.layers
PATH = Path("m.keras")
NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")


def functional(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: functional((65, 2), K.LSTM(2, unroll=True)), "repeats its steps 65 times"),
        (lambda: functional((65, 2), K.TimeDistributed(K.Dense(2))), "repeats its steps 65 times"),
        (lambda: functional((4500, 2), Attention()), "gives 20250000 numbers for one slice"),
        (lambda: functional((64, 2), K.LSTM(2)), None),
    ],
)
def test_a_network_that_would_grow_is_refused_before_it_runs(model, message):
    if message is None:
        check_graph(PATH, model())
        return
    with pytest.raises(ModelFileError, match=rf"^m\.keras: .*{message}"):
        check_graph(PATH, model())


class Attention(keras.layers.Layer):
    """Compares all places of an input with all."""

    def build(self, shape):
        self.inner = K.MultiHeadAttention(1, 2)
        self.inner.build(shape, shape)

    def call(self, x):
        return self.inner(x, x)


def test_a_network_of_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr("mri.models.graph._MAX_STEPS", 20)
    with pytest.raises(ModelFileError, match=r"^m\.keras: its network has more than 20 steps$"):
        check_graph(PATH, functional((8, 2), K.LSTM(2)))


def handed(path, model):
    with warnings.catch_warnings(action="ignore"):  # Keras warns of what is saved unbuilt.
        model.save(path)
    return ModelFile(path).handed()


@pytest.mark.parametrize("shape", [(128, 128, 1), (None, None, 1), (7,)])
def test_a_model_is_tried_on_one_blank_slice(tmp_path, shape):
    pool = [K.GlobalAveragePooling2D()] if len(shape) == 3 else []
    with handed(tmp_path / "m.keras", functional(shape, *pool, K.Dense(4))) as told:
        assert list(try_out(told, {})) == [({}, {}), ({}, {})]


def test_a_network_saved_before_it_was_built_says_so(tmp_path):
    with (
        handed(tmp_path / "m.keras", keras.Sequential([K.Dense(4)])) as told,
        pytest.raises(ModelFileError, match=r"m\.keras: holds no weights, its network was saved"),
    ):
        next(try_out(told, {}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: functional((64, 32, 3), K.Flatten(), K.Dense(4)), "--size 64 32 --channels 3 "),
        (lambda: functional((16, 16, 1), K.Flatten(), K.Dense(3)), r"gives \(None, 3\), the data"),
        (lambda: functional((256,), K.Dense(4)), "needs one image input"),
    ],
)
def test_a_network_that_does_not_fit_the_slices_is_told_what_to_declare(model, message):
    with pytest.raises(ModelFileError, match=rf"^m\.keras: .*{message}"):
        fitting_scorer("m.keras", model(), (5, 16, 16), NAMES)
    fits = fitting_scorer("m.keras", functional((16, 16, 1), K.Flatten(), K.Dense(4)), (5, 16, 16),
                          NAMES)  # fmt: skip
    assert fits(np.zeros((2, 16, 16), np.uint8)).shape == (2, 4)
