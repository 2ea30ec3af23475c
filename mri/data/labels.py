"""What the labels of a source mean: names come from the data, and are compared loosely.

Case, spaces, ``_`` and ``-`` do not count: ``MildDemented`` is ``Mild_Demented``. What cannot be
told from the data is refused, or said in one warning.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mri.data.decode import DataError
from mri.data.parquet import CLASS_NAMES

Names = Sequence[str] | Mapping[Any, str]

_NUMBER = re.compile(r"\s*-?\d{1,9}(\.0*)?\s*")
_COPY = re.compile(r"^aug(mented)?|(aug(mented|mentation)?|copy|copie|kopie)?(\(\d+\))?$")
# What programs make of an empty cell. "None" and "NA" may mean healthy.
_GAPS = frozenset("nan <na> nat n/a #n/a null ? missing".split())
_MANY = 20  # Classes: folders or identifiers of people are as many.
_GRADE = re.compile(r"-?[0-9]{0,6}\.[0-9]{1,4}")
_NAME_THEM = "pass class_names=: the names in label order, or a dict from label to name"


@dataclass(frozen=True)
class Meaning:
    """Class names in label order, and which label each value of the data is.

    The keys of `values` are integers or what `name_key` returns. `said` is the warning about what
    had to be assumed, '' if nothing.
    """

    class_names: tuple[str, ...]
    values: dict[Any, int]
    said: str = ""

    def check(self, labels: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
        """Return the labels as int64, and row to cause for those that are null or of no class."""
        encoded = labels.dictionary_encode()
        raw = encoded.dictionary.to_pylist()
        # Nulls get the index behind the last value.
        at = encoded.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False).astype(int)
        found = [self._label(value) for value in raw]
        wrong = {i: self._outside(raw[i]) for i, label in enumerate(found) if label < 0}
        wrong[len(raw)] = "the label is null"
        causes = {int(i): wrong[at[i]] for i in np.flatnonzero(np.isin(at, list(wrong)))}
        return np.array([*found, 0], np.int64)[at], causes

    def _label(self, value: str | int) -> int:
        """Return the label of a value, -1 if it has none. Text may be a number."""
        if isinstance(value, str):
            key = name_key(value)
            number = _NUMBER.fullmatch(value) and key not in self.values
            value = int(float(value)) if number else key
        return self.values.get(value, self.values.get(str(value), -1))

    def _outside(self, value: object) -> str:
        if value == "":
            return "the label is empty"
        kind = "outside" if isinstance(value, int) else "none of"
        return f"label {value!r} is {kind} the {len(self.class_names)} classes {self.class_names}"


def remedy(cause: str) -> str:
    """Return what to do about a bad row: leaving out every row of a label would cost a class."""
    if cause.startswith("label ") and not cause.startswith("label -1 "):
        return _NAME_THEM
    other = "; convert other kinds to PNG" if cause.startswith("not a JPEG or PNG") else ""
    return f"pass on_error='skip' to leave it out{other}"


def name_key(name: str) -> str:
    """Return what two spellings of one name have in common; how an accent is stored is ignored.

    >>> name_key("MildDemented") == name_key("mild-demented") == name_key("Mild_Demented")
    True
    """
    if not name.isascii():
        shown = (of for of in name if unicodedata.category(of) != "Cf")
        name = unicodedata.normalize("NFKC", "".join(shown)).casefold()
    # The minus sign of a number is no hyphen.
    sign = "-" if re.match(r"\s*-\.?\d", name) else ""
    key = sign + re.sub(r"[\s_-]", "", name).lower()
    return f"{float(key):g}" if _GRADE.fullmatch(key) else key


def checked_names(place: object, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, in the public spelling where all are public.

    An empty name, or two spellings of one name, is a DataError.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = name_key(name)
        if not key:
            raise DataError(f"{place}: class name {name!r} among {list(names)} is empty; name it")
        if key in seen:
            raise DataError(
                f"{place}: class names {seen[key]!r} and {name!r} are the same name, case, spaces, "
                "'_' and '-' apart; rename or merge them"
            )
        seen[key] = name
    public = {name_key(name): name for name in CLASS_NAMES}
    return tuple(public[key] for key in seen) if seen.keys() <= public.keys() else tuple(names)


def places_of(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return where in `names` each of `wanted` stands, None where one is missing.

    >>> places_of(("Well", "Mild_Demented"), ("MildDemented", "well"))
    [1, 0]
    """
    at = {name_key(name): i for i, name in enumerate(names)}
    keys = [name_key(name) for name in wanted]
    return [at[key] for key in keys] if at.keys() >= set(keys) else None


def settle(
    place: object,
    columns: Sequence[pa.Array],
    names: Sequence[str] | None,
    class_names: Names | None = None,
) -> Meaning:
    """Decide what the labels of all parts of a source mean.

    Of all `columns` of labels, as `plain_labels` returns them; the `names` that the data give, in
    label order; and the caller's `class_names`, in label order or from label to name.
    """
    told: Any = [*class_names.values()] if isinstance(class_names, Mapping) else class_names
    listed = isinstance(told, list | tuple | np.ndarray) and len(told)
    if told is not None and not (listed and all(isinstance(of, str) for of in told)):
        raise ValueError(f"To name classes, {_NAME_THEM}. Received: class_names={class_names!r}")
    found = _distinct(place, columns, isinstance(class_names, Mapping))
    if isinstance(class_names, Mapping):
        numbers = not any(isinstance(value, str) for value in found)
        return _by_mapping(place, class_names, names if names and numbers else ())
    given = None if class_names is None else checked_names(place, list(class_names))
    if not any(isinstance(value, str) for value in found):
        return _by_number(place, found, checked_names(place, names) if names else None, given)
    # Sorted as they are compared: another spelling changes no order.
    spelt = {name_key(of): of.strip() for of in sorted(found, reverse=True) if of.strip()}
    named = given or checked_names(place, names or [spelt[key] for key in sorted(spelt)])
    values = {name_key(name): i for i, name in enumerate(named)}
    return Meaning(named, values, "" if given or names else _doubts(place, spelt))


def _doubts(place: object, spelt: Mapping[str, str]) -> str:
    """Return what to warn of about names that only the labels give: from key to one spelling."""
    said, keys = "", sorted(spelt)
    # What differs in digits only is no typo, and a thousand names would take long.
    plain = sorted({re.sub(r"\d", "", key) for key in keys})[:50]
    for near in (get_close_matches(key, plain, 2, 0.93) for key in plain):
        if len(near) == 2:
            said = f"{place}: the classes {near[0]} and {near[1]} are nearly the same; a typo?"
    if len(keys) >= _MANY:
        said = f"{place}: {len(keys)} classes, such as {spelt[keys[0]]!r} and "
        said += f"{spelt[keys[1]]!r}; are they people?"
    for gap in sorted(_GAPS.intersection(keys)):
        said = f"{place}: {spelt[gap]!r} is taken for a class; if it is a gap, leave the cell empty"
    for copy in keys:
        if (of := _COPY.sub("", copy)) != copy and of in spelt:
            said = f"{place}: is the class {spelt[copy]!r} a copy of {spelt[of]!r}? Merge the two"
    return said


def _by_mapping(place: object, told: Mapping[Any, str], names: Sequence[str]) -> Meaning:
    """Decide by a mapping from label to name, or from the names that the data give."""
    own, at = list(dict.fromkeys(told.values())), {name_key(of): i for i, of in enumerate(names)}
    # A grade such as 0.5 stands in the data as text.
    texts = [str(of) if isinstance(of, float) and of % 1 else of for of in told]
    keys = [name_key(of) if isinstance(of, str) else of for of in texts]
    keys = [at.get(key, key) for key in keys]
    if len(set(keys)) < len(keys):
        raise DataError(f"{place}: class_names {told} names a label twice; name it once")
    said = dict(zip(keys, map(name_key, told.values()), strict=True))
    for key, of in said.items():
        # To merge classes under the name of one of them is no contradiction.
        if of in at and said.get(at[of], of) != of:
            raise DataError(
                f"{place}: its classes are {tuple(names)} in label order, but class_names calls "
                f"label {key} {of!r}; leave it out, or make it a dict from these names"
            )
    labels = map(own.index, told.values())
    return Meaning(checked_names(place, own), dict(zip(keys, labels, strict=True)))


def _by_number(
    place: object,
    found: list[int],
    names: tuple[str, ...] | None,
    given: tuple[str, ...] | None,
) -> Meaning:
    own = given or names or CLASS_NAMES
    order = places_of(own, names or own)
    if order is None or (names and len(own) != len(names)):
        raise DataError(f"{place}: its classes are {names}. Received: class_names={given}")
    used = [value for value in found if value >= 0]
    low, high = min(used, default=0), max(used, default=0)
    if low >= 1 and high > len(own):
        raise DataError(
            f"{place}: labels {low} to {high} are not those of the {len(own)} classes {own}; "
            f"{_NAME_THEM}"
        )
    first = int(low >= 1 and high == len(own))
    values = {i + first: label for i, label in enumerate(order)}
    listing = ", ".join(f"{value} = {own[label]}" for value, label in values.items())
    said = f"{place}: labels count from 1: {listing}" if first else ""
    if not (names or given):
        said = f"{place}: no class names in the data, assumed: {listing}"
    if low >= 1 and not (first or names):
        said = f"{said or place}: labels {low} to {high} occur, taken to count from 0"
    return Meaning(own, values, f"{said}; {_NAME_THEM}" if said else "")


def _distinct(place: object, columns: Sequence[pa.Array], mapped: bool) -> list[Any]:
    """Return the distinct labels of all columns: all are text, or all are integers."""
    found = {value for column in columns for value in pc.unique(column).to_pylist()} - {None}
    texts = [value for value in found if isinstance(value, str)]
    if texts and len(texts) < len(found):
        raise DataError(f"{place}: labels are text in one part and numbers in another; rewrite one")
    # If all texts are numbers, such as folders 0 to 3, they are no names.
    if texts and all(map(_NUMBER.fullmatch, texts)):
        return [int(float(text)) for text in texts]
    numbers = sorted(filter(_NUMBER.fullmatch, texts))
    names = sorted(text for text in texts if re.search(r"[^\W\d_]", text))
    if numbers and names and not mapped:
        raise DataError(
            f"{place}: some labels are numbers, such as {numbers[0]!r}, and some are names, such "
            f"as {names[0]!r}; write one kind, or pass class_names=: a dict from label to name"
        )
    return list(found)


def plain_labels(place: object, labels: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return labels as one array of integers or strings, dictionaries and views spelt out.

    Numbers with fractions are a DataError.
    """
    if isinstance(labels, pa.ChunkedArray):
        labels = labels.combine_chunks()
    kind = labels.type
    if pa.types.is_dictionary(kind):
        labels, kind = labels.cast(kind.value_type), kind.value_type
    if pa.types.is_floating(kind):  # Gaps make floats of whole numbers.
        values = labels.to_numpy(zero_copy_only=False).astype(float)
        whole = (values == np.rint(values)) & (np.abs(values) < 2**53)
        for value in values[~whole & ~np.isnan(values)][:1]:
            raise DataError(
                f"{place}: labels must be whole numbers or names. Received: {value}; write grades "
                "such as 0.5 as text, and name them by class_names="
            )
        labels = pa.array(values, from_pandas=True)
    number = pa.types.is_null(kind) or pa.types.is_floating(kind)
    return labels.cast(pa.int64() if number else kind if pa.types.is_integer(kind) else pa.string())


def check_label_type(place: object, column: object, kind: pa.DataType) -> None:
    """Raise DataError unless a column of this Arrow type can hold labels: whole numbers or text."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.string(), pa.large_string(), pa.string_view())
    number = pa.types.is_integer(plain) or pa.types.is_floating(plain) or pa.types.is_null(plain)
    if not (number or plain in text):
        raise DataError(
            f"{place}: column {column!r} is {kind}, expected an integer class index or a name; "
            "write the names of the classes there"
        )
