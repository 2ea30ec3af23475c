"""The registry of networks: each builder is one short function, and everything else finds it.

A builder receives the rescaled image tensor and the number of classes and returns logits;
`build_model` adds the input, the rescaling and, on request, the augmentation around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from mri._arguments import require
from mri._keras import keras

layers = keras.layers

Builder = Callable[[keras.KerasTensor, int], keras.KerasTensor]
_BUILDERS: dict[str, Builder] = {}

MOMENTUM = 0.95
"""Of batch normalisation: Keras' 0.99 needs many hundred steps, and runs here are short."""

DOWNLOAD = True
"""Whether `resnet50` and `efficientnet_b3` may fetch ImageNet weights, once, into Keras' cache."""

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")

IMAGENET = "imagenet"


def register(builder: Builder) -> Builder:
    """Add a builder to the registry under its function name.

    A builder goes from an image tensor (batch, h, w, 1) of values 0 to 1, and the number of
    classes, to logits (batch, classes). Name the layer that Grad-CAM should look at ``last_conv``.
    The builder itself is returned, so that `register` is a decorator.

    Raises
    ------
    ValueError
        If it is not a function, or another builder has that name.

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
    named = callable(builder) and hasattr(builder, "__name__")
    require(named, "A builder must be a function with a name.", builder=builder)
    name = builder.__name__
    if name in _BUILDERS and _BUILDERS[name].__module__ != builder.__module__:
        raise ValueError(f"a builder named {name!r} exists; choose another function name")
    _BUILDERS[name] = builder
    return builder


def list_models() -> list[str]:
    """Return the names that `build_model` knows, sorted.

    Examples
    --------
    >>> "tissue" in list_models()
    True
    """
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
        If there is no builder of that name, it does not return logits of that shape, or shape,
        classes or dtype are none to build with.

    Examples
    --------
    >>> build_model("tissue").output_shape
    (None, 4)
    """
    if name not in _BUILDERS:
        raise ValueError(f"no model of that name, there are {list_models()}. Received: {name=}")
    sides = tuple(input_shape)
    fits = len(sides) == 3 and sides[2] == 1 and all(isinstance(n, int) and n > 0 for n in sides)
    require(fits, "input_shape must be (h, w, 1).", input_shape=input_shape)
    fits = isinstance(classes, int) and classes >= 2
    require(fits, "classes must be a number, at least 2.", classes=classes)
    require(dtype in DTYPES, f"dtype must be one of {DTYPES}.", dtype=dtype)
    outer = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        inputs = keras.Input(input_shape, name="slices", dtype="float32")
        x = layers.Rescaling(1 / 255, name="rescaling")(inputs)
        for layer in augmentation() if augment else []:
            # By default these layers vary even where nobody speaks of training.
            x = layer(x, training=False)
        try:
            x = _BUILDERS[name](x, classes)
        except ValueError as error:
            message = f"{name} cannot be built on slices of {sides[0]} × {sides[1]} pixels"
            raise ValueError(f"{message}; it may pool small ones away ({error})") from error
        logits = layers.Activation("linear", dtype="float32", name="logits")(x)
        if logits.shape != (None, classes):
            raise ValueError(f"{name} must return (batch, {classes}). Received: {logits.shape}")
        # Under the policy too: by the model's own, Keras scales the loss of float16.
        return keras.Model(inputs, logits, name=name)
    finally:
        keras.config.set_dtype_policy(outer)


def initial_weights(model: keras.Model) -> str:
    """Return what a network that `build_model` made starts from: 'ImageNet' or 'random'."""
    pretrained = any(layer.name.endswith(f"_{IMAGENET}") for layer in model.layers)
    return "ImageNet" if pretrained else "random"


def augmentation() -> list[keras.Layer]:
    """Return layers that vary a slice as another head position or scanner setting would."""
    fill = {"fill_mode": "constant", "fill_value": 0.0}
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.02, **fill),
        layers.RandomTranslation(0.04, 0.04, **fill),
        layers.RandomZoom((-0.06, 0.06), **fill),
        layers.RandomContrast(0.15, value_range=(0, 1)),
    ]


@register
def baseline(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Two convolutions and a dense layer of 8.4 million weights: the network of the benchmarks."""
    x = _stage(x, 32)
    x = _stage(x, 64, "pool", name="last_conv")
    return _dense(_dense(x, 128), classes, None)


@register
def baseline_dropout(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """`baseline` with dropout after everything."""
    return _baseline(x, classes, {32: 0.3, 64: 0.4}, dropout=0.5)


@register
def baseline_dropout_reduced(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """`baseline` with some dropout after the second block and the dense layer."""
    return _baseline(x, classes, {32: 0, 64: 0.2}, dropout=0.3)


@register
def baseline_dropout_light(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """`baseline` with a little dropout after the dense layer."""
    return _baseline(x, classes, {32: 0, 64: 0}, dropout=0.1)


@register
def baseline_deep(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """`baseline` with a third block, which halves its weights, and a little dropout."""
    return _baseline(x, classes, {32: 0, 64: 0, 128: 0}, dropout=0.1)


@register
def baseline_deep_plain(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """`baseline_deep` without dropout."""
    return _baseline(x, classes, {32: 0, 64: 0, 128: 0}, dropout=0)


@register
def small_5x5(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Two wide kernels, few filters, no normalisation."""
    x = _stage(x, 16, "pool", kernel=5)
    x = _stage(x, 32, "pool", kernel=5, name="last_conv")
    return _dense(_dense(x, 64), classes, None)


@register
def three_block_5x5(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Three blocks of wide kernels, normalised before pooling, with dropout."""
    for filters, dropout, name in ((16, 0.1, None), (32, 0.1, None), (64, 0.2, "last_conv")):
        x = _stage(x, filters, "norm pool", kernel=5, dropout=dropout, name=name)
    return _dense(_dense(_dense(x, 256), 64), classes, None)


@register
def keras_like(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Five normalised blocks down to a 4 × 4 grid, dropout in the later ones."""
    for filters, dropout in ((16, 0), (64, 0), (128, 0.05), (256, 0.2)):
        x = _stage(x, filters, "norm pool", dropout=dropout)
    x = _stage(x, 512, "norm pool", dropout=0.2, name="last_conv")
    x = layers.BatchNormalization(momentum=MOMENTUM)(_dense(x, 128))
    x = layers.Dropout(0.2)(_dense(x, 64))
    return _dense(x, classes, None)


@register
def dual_path(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Two paths side by side, of 3 × 3 kernels and, twice as wide, of 5 × 5: 27.6 million weights.

    ``last_conv`` is the fine path's.
    """
    paths = []
    for kernel, width, name in ((3, 16, "last_conv"), (5, 32, "last_conv_5x5")):
        y = x
        for filters in (width, 4 * width):
            y = _stage(_stage(y, filters, "", kernel=kernel), filters, "pool", kernel=kernel)
        y = _stage(y, 16 * width, kernel=kernel, dropout=0.2, name=name)
        paths.append(_dense(y, 128))
    return _dense(_dense(layers.Concatenate()(paths), 128), classes, None)


@register
def resnet50(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """ResNet-50 (He et al. 2016, doi:10.1109/CVPR.2016.90), fine-tuned from ImageNet if it can be.

    Where the weights can't be downloaded it starts from random ones; see `initial_weights`.
    """
    # What ImageNet's weights expect: three channels, 0 to 255, less the mean of each (BGR).
    means = [-103.939, -116.779, -123.68]
    x = layers.Rescaling(255.0, means, name="centring")(layers.Concatenate()([x] * 3))
    return _fine_tuned("ResNet50", x, classes)


@register
def efficientnet_b3(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """EfficientNet-B3 (Tan & Le 2019, arXiv:1905.11946), fine-tuned from ImageNet if it can be."""
    # It has its own rescaling inside.
    x = layers.Rescaling(255.0, name="gray_levels")(layers.Concatenate()([x] * 3))
    return _fine_tuned("EfficientNetB3", x, classes)


@register
def compact(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Three convolutions with batch normalisation, then a dense layer: 0.6 million weights.

    The first convolution takes every second pixel, because a slice of 128 pixels holds little finer
    detail. `_places` reads the flattened grid of 8 × 8 cells. So it knows where in the head a
    feature is, which a global average would lose. The slices are aligned well enough for that.
    """
    x = layers.MaxPooling2D()(_block(x, 32, kernel=5, strides=2))
    x = layers.MaxPooling2D()(_block(x, 64))
    x = layers.MaxPooling2D()(_block(x, 128, name="last_conv"))
    return layers.Dense(classes)(_places(x))


@register
def fast(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """One convolution in large strides at half resolution: a sixtieth of the work of `baseline`.

    What it takes to know a person's other slices again, and no more: 64 filters of 5 × 5, each
    read at 16 × 16 places.
    """
    x = layers.AveragePooling2D(2)(x)
    x = _block(x, 64, kernel=5, strides=4, name="last_conv")
    return layers.Dense(classes)(_places(x))


@register
def tissue(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """How much of each sixteenth of the slice has the tone of thinned gray matter: 68 weights.

    Too small to recognise a person. Each slice is standardised, since its file was scaled to its
    brightest pixel; a fixed Gaussian band of tones, the partial volume between cortex and fluid, is
    averaged over a 4 × 4 grid, and a linear layer reads the sixteen numbers.
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


def _places(x: keras.KerasTensor) -> keras.KerasTensor:
    """Read what is where: a normalised dense layer on all places of the grid."""
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    x = layers.Dense(64, use_bias=False)(x)
    return layers.Activation("relu")(layers.BatchNormalization(momentum=MOMENTUM)(x))


def _baseline(
    x: keras.KerasTensor, classes: int, stages: dict[int, float], *, dropout: float
) -> keras.KerasTensor:
    """Apply `baseline` with the dropout after each number of filters, and after the dense layer."""
    for filters, share in stages.items():
        name = "last_conv" if filters == max(stages) else None
        x = _stage(x, filters, dropout=share, name=name)
    return _dense(_dense(x, 128, dropout=dropout), classes, None)


def _stage(
    x: keras.KerasTensor,
    filters: int,
    steps: str = "pool norm",
    *,
    kernel: int = 3,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.KerasTensor:
    """Apply a convolution, then `steps` in their order, then dropout."""
    start = _fan_in()
    x = layers.Conv2D(
        filters, kernel, padding="same", activation="relu", kernel_initializer=start, name=name
    )(x)
    for step in steps.split():
        pool = step == "pool"
        x = (layers.MaxPooling2D() if pool else layers.BatchNormalization(momentum=MOMENTUM))(x)
    return layers.Dropout(dropout)(x) if dropout else x


def _dense(
    x: keras.KerasTensor, units: int, activation: str | None = "relu", *, dropout: float = 0.0
) -> keras.KerasTensor:
    """Apply a dense layer to all numbers of a slice, then dropout."""
    x = layers.Flatten()(x) if len(x.shape) > 2 else x
    x = layers.Dense(units, activation=activation, kernel_initializer=_fan_in())(x)
    return layers.Dropout(dropout)(x) if dropout else x


def _fan_in() -> keras.initializers.Initializer:
    """Return PyTorch's default, uniform in ±1/√fan_in, with which the original networks started.

    For a dense layer on 65,536 inputs, Keras' own default is two and a half times as wide, and
    `baseline_dropout` hardly learns from it.
    """
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def _fine_tuned(architecture: str, x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Apply a network of Keras' with ImageNet's weights, where they can be had, and a new head."""
    make = partial(
        getattr(keras.applications, architecture), include_top=False, input_shape=x.shape[1:]
    )
    try:
        if not DOWNLOAD:
            raise OSError("mri.models.builders.DOWNLOAD is off")
        network = make(weights="imagenet", name=f"{architecture.lower()}_{IMAGENET}")
    except Exception as error:  # Of a download almost any kind; the card says what it began with.
        if DOWNLOAD:
            warnings.warn(
                f"{architecture}: no ImageNet weights ({error}), so it starts from random ones",
                stacklevel=2,
            )
        network = make(weights=None, name=architecture.lower())
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = MOMENTUM
    # A layer of the outer graph, for Grad-CAM: those inside the backbone have no output there.
    x = layers.Activation("linear", name="last_conv")(network(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(classes)(x)
