"""What a model expects of its slices, said beside its file or in a call, and made true.

Most people's models take other images than those of the data set: larger, in colour, of values 0
to 1, with their classes in another order. None of this can be seen in the file for sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mri._arguments import require
from mri.models.cards import SCHEMA

if TYPE_CHECKING:
    from mri._keras import keras


FIELDS = ("size", "channels", "range", "scale", "offset", "mean", "std", "class_names")
"""What may be declared of a model; see `adapt`."""

READ_AS = {
    "logits": "",
    "softmax": "ends in softmax: read by the logits before it",
    "log-softmax": "ends in log-softmax: read by the logits before it",
    "sigmoid": "ends in sigmoid: read by the logits before it",
    "twice": "ends in softmax or sigmoid twice, which flattens it: read by the logits before both",
    "probabilities": "gives probabilities whose logits are out of reach: read by their logarithms",
    "unclear": "gives what may be probabilities, though they do not add up to 1: taken for logits; "
    "if they are, save it with softmax or sigmoid as its last layer",
    "person": "judges whole people: each slice has its person's answer",
}
"""What a model may end in, and what a reader of its figures has to know of it."""

VALUES = {"range", "scale", "offset", "mean", "std"}
"""Those that say which values it takes."""

SLICE = (128, 128)
"""Rows and columns of the slices of the data set."""

_CHANNELS = 1, 3  # Gray, and RGB.
_BESIDE = {"sha256", "card_version"}


@dataclass(frozen=True)
class Expects:
    """What a model takes, and the order of its classes, as for `adapt`; checked when it is made."""

    size: Any = None
    channels: int | None = None
    range: Sequence[float] | None = None
    scale: Any = None
    offset: Any = None
    mean: Any = None
    std: Any = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no such declaration, and put it into one form."""
        sizes = [self.size] * 2 if isinstance(self.size, int) else self.size
        valid = sizes is None or (_list_of(int, sizes) and len(sizes) == 2 and min(sizes) > 0)
        require(valid, "size must be rows and columns, or one for both.", size=self.size)
        object.__setattr__(self, "size", sizes and tuple(sizes))
        valid = self.channels in (None, *_CHANNELS) and type(self.channels) in (int, type(None))
        require(valid, "channels must be 1 or 3.", channels=self.channels)
        span = self.range
        valid = span is None or (_list_of(float, span) and len(span) == 2 and span[0] < span[1])
        require(valid, "range must be two numbers, low and high.", range=span)
        for name in ("scale", "offset", "mean", "std"):
            if (value := getattr(self, name)) is None:
                continue
            values = value if isinstance(value, list | tuple) else [value]
            valid = _list_of(float, values) and len(values) in _CHANNELS
            require(valid, f"{name} must be a number, or one a channel.", **{name: value})
            valid = name in ("offset", "mean") or min(values) > 0
            require(valid, f"{name} must be above 0.", **{name: value})
            valid = name in ("scale", "offset") or 0 <= min(values) <= max(values) <= 1
            expected = "must be of gray values 0 to 1: divide by 255, or give scale, offset."
            require(valid, f"{name} {expected}", **{name: value})
        ways = {
            "range": self.range is not None,
            "scale and offset": (self.scale, self.offset) != (None, None),
            "mean and std": (self.mean, self.std) != (None, None),
        }
        given = [name for name, of in ways.items() if of]
        require(len(given) <= 1, f"Only one of {list(ways)} may be declared.", declared=given)
        names = self.class_names
        valid = names is None or (_list_of(str, names) and len(set(names)) == len(names))
        require(valid, "class_names must be distinct names.", class_names=names)

    @property
    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset of gray values 0 to 255, float (1,) or (channels,)."""
        scale = np.array([1.0 if self.scale is None else self.scale], float)
        offset = np.array([0.0 if self.offset is None else self.offset], float)
        if self.range is not None:
            scale, offset = np.diff(self.range) / 255, np.array(self.range[:1], float)
        elif (self.mean, self.std) != (None, None):
            std = np.array([1.0 if self.std is None else self.std], float)
            scale = 1 / (255 * std)
            offset = -np.array([0.0 if self.mean is None else self.mean], float) / std
        scale, offset = np.broadcast_arrays(scale.ravel(), offset.ravel())
        return scale, offset

    def declared(self) -> dict[str, Any]:
        """Return what was declared, JSON-ready."""
        given = ((name, getattr(self, name)) for name in FIELDS)
        return {
            name: list(value) if isinstance(value, list | tuple) else value
            for name, value in given
            if value is not None
        }


def _list_of(kind: type, values: Any) -> bool:
    if not isinstance(values, list | tuple) or not values:
        return False
    if kind is float:
        return all(type(value) in (int, float) and abs(value) < 1e9 for value in values)
    return all(type(value) is kind for value in values)


def declared(card: Mapping[str, Any]) -> Expects | None:
    """Return what a card declares, under ``expects`` or by itself; None where it says nothing."""
    told = card.get("expects", {})
    require(isinstance(told, Mapping), "expects must hold names and values.", expects=told)
    own = {name: value for name, value in card.items() if name not in {*_BESIDE, "expects"}}
    if not only_declares(card):
        # The class names are those of its training.
        own = {name: own[name] for name in FIELDS if name in own and name != "class_names"}
        expected = "Beside a training, what the model expects must stand under 'expects'."
        require(not own, expected, beside=list(own))
    return expected_of({**own, **told}) if own or told else None


def expected_of(told: Mapping[str, Any]) -> Expects:
    """Return what is declared by name, of which each must be one of `FIELDS`."""
    told = {"class_names" if name == "classes" else name: of for name, of in told.items()}
    unknown = sorted(told.keys() - set(FIELDS))
    require(not unknown, f"What a model expects may hold {list(FIELDS)}.", unknown=unknown)
    return Expects(**told)


def only_declares(card: Mapping[str, Any]) -> bool:
    """Whether a card says what a model expects and nothing of how it was trained."""
    trained = SCHEMA.keys() - _BESIDE - {"expects", "class_names"} | {"input"}
    told, known = card.keys() - _BESIDE, {*FIELDS, "classes", "expects"}
    declares = told & known if told <= known else told & (known - {"class_names"})
    return bool(declares) and not told & trained


def adapt(
    model: keras.Model,
    *,
    slices: tuple[int, int] = SLICE,
    order: Sequence[str] | None = None,
    **expects: Any,
) -> keras.Model:
    """Put what a model expects in front of it, so that it takes slices as the data set has them.

    All of it is part of the network that is returned: its heatmaps lie on the pixels of the slice.

    Parameters
    ----------
    model : keras.Model
        From one image input to class scores.
    slices : tuple of int
        Rows and columns of the slices.
    order : sequence of str, optional
        Class names in the order wanted; by default that of `mri.CLASS_NAMES`.
    size : int or tuple of int
        Rows and columns that the model takes; slices are interpolated bilinearly.
    channels : 1 or 3
        Of three, each is the gray value.
    range : pair of float
        What 0 and 255 become, such as (0, 1) or (-1, 1).
    scale, offset : float or one a channel
        Another way to say it: gray values 0 to 255 times `scale`, plus `offset`.
    mean, std : float or one a channel
        A third, as of ImageNet: gray values 0 to 1 less `mean`, by `std`.
    class_names : sequence of str
        In the order of the model's scores; case, spaces, ``_`` and ``-`` do not matter.

    Returns
    -------
    keras.Model
        From float32 (n, h, w, 1), gray values 0 to 255, to the scores in the order wanted. Its
        weights are those of `model`.

    Raises
    ------
    ValueError
        If the model cannot take what is declared, or its classes are others.

    Examples
    --------
    >>> from mri._keras import keras
    >>> model = keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Flatten(),
    ...                           keras.layers.Dense(4, activation="softmax")])
    >>> adapt(model, size=224, channels=3, range=(0, 1)).input_shape
    (None, 128, 128, 1)
    """
    from mri._keras import keras
    from mri.models.scores import image_input, one_output

    told = expected_of(expects)
    takes = image_input(model)
    n, *sides, channels = takes.shape
    size = told.size or tuple(of or wanted for of, wanted in zip(sides, slices, strict=True))
    fits = all(of in (None, wanted) for of, wanted in zip(sides, size, strict=True))
    require(fits, f"size must be that which the model takes, {tuple(sides)}.", size=told.size)
    color = told.channels or channels or 1
    fits = channels in (None, color) and color in _CHANNELS
    expected = f"channels must be 1 or 3 and those which the model takes, {channels}."
    require(fits, expected, channels=told.channels)
    values = [of.tolist() for of in told.values]
    expected = f"Scale and offset, or mean and std, must be one number, or one of {color} channels."
    require(len(values[0]) in (1, color), expected, scale=values[0], offset=values[1])
    plain = values == [[1.0], [0.0]]
    expected = f"The model takes {takes.dtype}, whole numbers from 0 to 255."
    require(plain or "int" not in takes.dtype, expected, scale=values[0], offset=values[1])
    x = inputs = keras.Input((*slices, 1), n, name="slices", dtype="float32")
    if size != tuple(slices):
        x = keras.layers.Resizing(*size, data_format="channels_last", dtype="float32")(x)
    if color == 3:
        x = keras.layers.Concatenate(dtype="float32")([x] * 3)
    if not plain:
        of = [value * (color // len(value)) for value in values]
        x = keras.layers.Rescaling(*of, name="as_expected", dtype="float32")(x)
    scores = one_output(model, model(keras.ops.cast(takes.arranged(x), takes.dtype)), None)
    if told.class_names is not None:
        scores = _ordered(scores, told.class_names, order)
    return keras.Model(inputs, scores, name=model.name)


def _ordered(
    scores: keras.KerasTensor, names: Sequence[str], order: Sequence[str] | None
) -> keras.KerasTensor:
    """Return scores (n, k) of the named classes in the order wanted."""
    from mri._keras import keras
    from mri.data.labels import places_of
    from mri.data.parquet import CLASS_NAMES

    order, given = CLASS_NAMES if order is None else order, list(names)
    at = places_of(names, order) or []
    alike = sorted(at) == list(range(len(names)))
    require(alike, f"class_names must be those of the data, {list(order)}.", class_names=given)
    n = scores.shape[1]
    require(n == len(names), f"The model gives {n} scores.", class_names=given)
    return scores if at == list(range(n)) else keras.ops.take(scores, at, axis=1)
