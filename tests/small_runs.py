"""Training that takes seconds and depends on all that a run may depend on."""

import numpy as np
import pandas as pd

from mri._keras import keras
from mri.data.scans import Scans
from mri.models.files import load_model
from mri.models.scores import predict_logits
from mri.subjects.splits import Split
from mri.training.loop import train
from mri.training.recipe import Recipe

layers = keras.layers
N, SIZE = 120, 16


def speck(x, classes):
    """All that a run may depend on: normalisation, dropout, a nonlinearity."""
    x = layers.Conv2D(4, 3, strides=2, name="last_conv")(x)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return layers.Dense(classes)(x)


def steady(x, classes):
    """Nothing but dropout: at a vanishing learning rate its validation figures stand still."""
    return layers.Dense(classes)(layers.Dropout(0.5)(layers.Flatten()(x)))


def flat(x, classes):
    return layers.Dense(classes)(layers.Flatten()(x))


# Classes drawn equally, slices varied, dropout: all the randomness there is.
RECIPE = Recipe(
    epochs=4,
    batch_size=8,
    learning_rate=0.02,
    label_smoothing=0.1,
    balance="sampling",
    augment=True,
    monitor="val_balanced_accuracy",
    dtype="float32",
)
PATIENT = Recipe(
    epochs=9,
    batch_size=8,
    learning_rate=1e-9,
    monitor="val_balanced_accuracy",
    patience=3,
    dtype="float32",
)


def make_scans():
    """Noise with a faint bar whose place tells the class; 6 : 1 : 3 : 2."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), [60, 10, 30, 20]))
    images = rng.normal(110, 40, (N, SIZE, SIZE))
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 2] += 45
    rejected = pd.DataFrame(columns=["file", "row", "cause"])
    names = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
    return Scans(images.clip(0, 255).astype(np.uint8), labels, names, rejected, synthetic=True)


def make_split():
    rows = np.random.default_rng(1).permutation(N)
    return Split("subject", rows[:60], rows[60:100], rows[100:], fold=2, folds=6, seed=7)


def run(folder, builder="speck", recipe=RECIPE, **options):
    options = {"name": "m", "verbose": 0, "replace": True} | options
    return train(builder, make_scans(), make_split(), recipe=recipe, folder=folder, **options)


def assert_same_run(one, two):
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.history == two.history
    assert one.best_epoch == two.best_epoch
    varying = {"sha256", "seconds"}
    assert {k: v for k, v in one.card.items() if k not in varying} == {
        k: v for k, v in two.card.items() if k not in varying
    }
    images = make_scans().images
    np.testing.assert_array_equal(
        predict_logits(load_model(one.path), images), predict_logits(load_model(two.path), images)
    )
