"""The registry of networks: each builder is one short function, and everything else finds it.

A builder receives the rescaled image tensor and the number of classes and returns logits;
`build_model` adds the input, the rescaling and, on request, the augmentation around it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mri.backend import keras

layers = keras.layers

Builder = Callable[[keras.KerasTensor, int], keras.KerasTensor]
_BUILDERS: dict[str, Builder] = {}

MOMENTUM = 0.95
"""Of batch normalisation: Keras' 0.99 needs many hundred steps, and runs here are short."""


def register(builder: Builder) -> Builder:
    """Add a builder to the registry under its function name.

    Parameters
    ----------
    builder : callable
        From (image tensor (batch, h, w, 1) with values 0 to 1, number of classes) to logits
        (batch, classes); name the layer that Grad-CAM should look at ``last_conv``.

    Returns
    -------
    callable
        The builder itself, so that the function is used as a decorator.

    Raises
    ------
    ValueError
        If another builder has that name.

    Examples
    --------
    >>> from keras import layers
    >>> @register
    ... def tiny(x, classes):
    ...     x = layers.Conv2D(8, 3, activation="relu", name="last_conv")(x)
    ...     return layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
    >>> build_model("tiny").count_params()
    116
    >>> del _BUILDERS["tiny"]
    """
    name = builder.__name__
    if name in _BUILDERS and _BUILDERS[name].__module__ != builder.__module__:
        raise ValueError(f"a builder named {name!r} exists; choose another function name")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """Return the names that `build_model` knows, sorted."""
    return sorted(_BUILDERS)


def build_model(
    name: str,
    *,
    input_shape: tuple[int, int, int] = (128, 128, 1),
    classes: int = 4,
    augment: bool = False,
    dtype: str = "float32",
) -> keras.Model:
    """Build a registered network.

    Parameters
    ----------
    name : str
        One of `list_models`.
    input_shape : tuple of int
        (h, w, 1) of the slices.
    classes : int
        Number of logits.
    augment : bool
        Vary position, size, tilt, mirror side and contrast of the slices, in training only.
    dtype : {'float32', 'mixed_bfloat16', 'mixed_float16'}
        Policy of the layers; logits are float32 in any case.

    Returns
    -------
    keras.Model
        From images of gray values 0 to 255, shape (batch, h, w, 1), to float32 logits
        (batch, classes). The weights follow ``keras.utils.set_random_seed``.

    Raises
    ------
    ValueError
        If there is no builder of that name, or it does not return logits of that shape.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no model of that name, there are {list_models()}. Received: {name=}")
    outer = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        inputs = keras.Input(input_shape, name="slices", dtype="float32")
        x = layers.Rescaling(1 / 255, name="rescaling")(inputs)
        for layer in augmentation() if augment else []:
            # By default these layers vary even where nobody speaks of training.
            x = layer(x, training=False)
        logits = layers.Activation("linear", dtype="float32", name="logits")(
            _BUILDERS[name](x, classes)
        )
        if logits.shape != (None, classes):
            raise ValueError(f"{name} must return (batch, {classes}). Received: {logits.shape}")
        # Under the policy too: by the model's own, Keras scales the loss of float16.
        return keras.Model(inputs, logits, name=name)
    finally:
        keras.config.set_dtype_policy(outer)


def augmentation() -> list[layers.Layer]:
    """Return layers that vary a slice as another head position or scanner setting would."""
    fill = {"fill_mode": "constant", "fill_value": 0.0}
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.02, **fill),
        layers.RandomTranslation(0.04, 0.04, **fill),
        layers.RandomZoom((-0.06, 0.06), **fill),
        layers.RandomContrast(0.15, value_range=(0, 1)),
    ]


def predict_logits(model: keras.Model, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Return the logits of slices.

    Parameters
    ----------
    model : keras.Model
    images : ndarray of uint8, shape (n, h, w)
    batch_size : int

    Returns
    -------
    ndarray of float32, shape (n, classes)
    """
    return model.predict(images[..., None], batch_size=batch_size, verbose=0)


@register
def baseline(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Two convolutions and a dense layer of 8.4 million weights: the network of the benchmarks."""
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="last_conv")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    return layers.Dense(classes)(x)


@register
def compact(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Three normalised convolutions on a strided stem: 0.6 million weights, a seventh of the work.

    The stem halves the grid at once, since a 128-pixel slice holds little detail finer than two
    pixels; the flattened 8 × 8 grid keeps where in the head something is, which a global average
    would lose, and slices are aligned well enough for that to mean something.
    """
    x = _block(x, 32, kernel=5, strides=2)
    x = layers.MaxPooling2D()(x)
    x = _block(x, 64)
    x = layers.MaxPooling2D()(x)
    x = _block(x, 128, name="last_conv")
    x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    x = layers.Dense(64, use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=MOMENTUM)(x))
    return layers.Dense(classes)(x)


@register
def tissue(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """How much of each sixteenth of the slice has the tone of thinned gray matter: 68 weights.

    Too small to recognise a person, which is why it is the best here at judging strangers. Each
    slice is standardised, since its file was scaled to its brightest pixel; a fixed Gaussian band
    of tones, the partial volume between cortex and fluid, is averaged over a 4 × 4 grid, and a
    linear layer reads the sixteen numbers.
    """
    # All in float32: the band is narrow, and there is nothing here to speed up.
    exact = {"dtype": "float32"}
    x = layers.GroupNormalization(1, center=False, scale=False, **exact)(x)
    x = layers.Rescaling(4.0, -2.6, name="band", **exact)(x)  # (x - 0.65) / 0.25
    x = layers.Rescaling(-1.0, name="distance", **exact)(layers.Multiply(**exact)([x, x]))
    x = layers.Activation("exponential", name="last_conv", **exact)(x)
    x = layers.AveragePooling2D((x.shape[1] // 4, x.shape[2] // 4), **exact)(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, center=False, scale=False, **exact)(x)
    return layers.Dense(classes, **exact)(layers.Flatten(**exact)(x))


def _block(
    x: keras.KerasTensor,
    filters: int,
    *,
    kernel: int = 3,
    strides: int = 1,
    name: str | None = None,
) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    return layers.Activation("relu", name=name)(x)
