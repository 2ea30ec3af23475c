"""The card of a model, checked where it is read: what a stranger wrote there is of these types.

A card is a JSON object beside the model file. Every key may be absent, keys that are not listed in
`SCHEMA` are kept as they are, and none is ever taken for what it is not.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri._arguments import require
from mri._files import read_regular
from mri._text import for_markdown, shorten
from mri.data.decode import DataError
from mri.data.parquet import MAX_CLASSES, MAX_NAME

if TYPE_CHECKING:
    from mri.data.scans import Scans

CARD_VERSION = 1
"""Of the keys of `SCHEMA`; a card that names none is of this version too."""

_MAX_CARD = 32 * 2**20
_MOST = 10**15  # Of anything counted: bytes, weights, rows, seconds.


class ModelFileError(DataError):
    """A model file that is damaged, not what its card says, or not safe to load."""


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a finite number, not a truth value, from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high and (isinstance(value, int) or math.isfinite(value))


def is_count(value: object) -> bool:
    """Whether `value` is an integer from 0, not a truth value, that fits any array."""
    return type(value) is int and 0 <= value <= _MOST


def is_text(value: object) -> bool:
    """Whether `value` is a text of a readable length."""
    return isinstance(value, str) and len(value) <= MAX_NAME


def is_digest(value: object) -> bool:
    """Whether `value` is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_class_names(value: object) -> bool:
    """Whether `value` is a list of different names."""
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_CLASSES
        and all(is_text(name) and name for name in value)
        and len(set(value)) == len(value)
    )


def is_rows(value: object) -> bool:
    """Whether `value` is a list of different row numbers."""
    return (
        isinstance(value, list)
        and all(type(row) is int and 0 <= row <= 2**40 for row in value)
        and len(set(value)) == len(value)
    )


def _is_facts(value: object) -> bool:
    """Whether `value` maps short texts to short texts, numbers, truth values or nothing."""
    return isinstance(value, dict) and all(
        is_text(key) and (of is None or isinstance(of, bool) or is_text(of) or is_number(of))
        for key, of in value.items()
    )


def _is_figures(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_text(key) and is_number(of) for key, of in value.items()
    )


def _is_history(value: object) -> bool:
    # A loss may have become infinite.
    return isinstance(value, dict) and all(
        is_text(key) and isinstance(of, list) and all(isinstance(x, int | float) for x in of)
        for key, of in value.items()
    )


def _is_split(value: object) -> bool:
    if not isinstance(value, dict) or value.get("protocol") not in ("subject", "image"):
        return False
    counts = [value.get(key) for key in ("fold", "folds", "seed")]
    slices = value.get("slices", [0, 0, 0])
    return (
        all(count is None or count == -1 or is_count(count) for count in counts)
        and isinstance(slices, list)
        and len(slices) == 3
        and all(map(is_count, slices))
        and is_digest(value.get("rows_sha256", "0" * 64))
    )


Check = Callable[[object], bool]
_HASH = is_digest, "a SHA-256 of 64 hexadecimal digits"
_TEXT = is_text, f"a text of up to {MAX_NAME} characters"
_COUNT = is_count, f"an integer from 0 to {_MOST}"

SCHEMA: dict[str, tuple[Check, str]] = {
    "card_version": (
        lambda value: type(value) is int and 1 <= value <= CARD_VERSION,
        f"a version from 1 to {CARD_VERSION}, which is what this package reads",
    ),
    "sha256": (lambda value: value == "" or is_digest(value), _HASH[1]),
    "network_sha256": _HASH,
    "data": _HASH,
    "signature": _HASH,
    "builder": _TEXT,
    "initial_weights": _TEXT,
    "recipe": (_is_facts, "an object of texts and numbers"),
    "versions": (_is_facts, "an object of texts and numbers"),
    "seed": _COUNT,
    "parameters": _COUNT,
    "best_epoch": _COUNT,
    "split": (_is_split, "an object with the protocol 'subject' or 'image'"),
    "class_names": (is_class_names, "a list of different names"),
    "synthetic": (lambda value: isinstance(value, bool), "true or false"),
    "validation": (_is_figures, "an object of finite numbers"),
    "temperature": (lambda value: is_number(value, 1e-6, 1e6), "a number above 0"),
    "seconds": (lambda value: is_number(value, 0, _MOST), "a number from 0"),
    "history": (_is_history, "an object of lists of numbers"),
    "test_rows": (is_rows, "a list of different row numbers"),
    "expects": (lambda value: isinstance(value, dict), "an object"),
}
"""What each key of a card is, where it is there: a check and the words for it."""

_DESCRIBED = {"split", "recipe", "versions", "validation", "builder", "synthetic", "data",
              "parameters", "seed", "best_epoch", "seconds", "sha256", "temperature"}  # fmt: skip

TABLE_SCHEMA: dict[str, tuple[Check, str]] = {
    key: SCHEMA[key] for key in ("sha256", "data", "parameters")
} | {
    "class_names": (
        lambda value: is_class_names(value) and value[1:] != [],
        "a list of at least two different names",
    ),
    "origin": _TEXT,
    "output": _TEXT,
    "version": _COUNT,
    "bytes": _COUNT,
    "doubts": (
        lambda value: isinstance(value, list) and len(value) <= 20 and all(map(is_text, value)),
        "a list of texts",
    ),
    "expects": (lambda value: value is None or isinstance(value, dict), "an object"),
    "milliseconds": (
        lambda value: (
            isinstance(value, list)
            and len(value) == 2
            and all(is_number(time, 0, _MOST) for time in value)
        ),
        "two numbers from 0",
    ),
}
"""The same of what stands beside kept logits."""


def problem_of(facts: object, schema: Mapping[str, tuple[Check, str]] = SCHEMA) -> str | None:
    """Return what is wrong with a card, None where nothing is.

    Examples
    --------
    >>> problem_of({"temperature": 1.5, "mine": "kept"}) is None
    True
    >>> problem_of({"temperature": -1})
    "its 'temperature' is -1, expected a number above 0"
    """
    if not isinstance(facts, dict):
        return f"it is {facts!r:.60}, expected an object"
    for key, (check, expected) in schema.items():
        if key in facts and not check(facts[key]):
            return f"its {key!r} is {shorten(repr(facts[key]))}, expected {expected}"
    return None


def read_card(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the card beside the model file `path`, None where there is none.

    Raises
    ------
    ModelFileError
        If the card is not a JSON object, or a value is not of the type and range of `SCHEMA`.
    """
    card = Path(path).with_suffix(".json")
    try:
        found = json.loads(read_regular(card, _MAX_CARD).decode("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ModelFileError(f"{card}: unreadable card ({error}); train the model again") from error
    if problem := problem_of(found):
        raise ModelFileError(f"{card}: unreadable card ({problem}); train the model again")
    return dict(found)


def check_rows(rows: np.ndarray, n: int) -> str | None:
    """Return what is wrong with row numbers of `n` slices, None where nothing is."""
    if not len(rows):
        return "no rows"
    if rows.min() < 0 or rows.max() >= n:
        return f"row {rows.max() if rows.max() >= n else rows.min()}, there are 0 to {n - 1}"
    return "rows that stand there twice" if len(np.unique(rows)) < len(rows) else None


def rows_to_test(card: Mapping[str, Any], scans: Scans, fingerprint: str) -> np.ndarray:
    """Return the test rows that a card of a training names, int (m,).

    Raises
    ------
    ModelFileError
        If it does not say, or is of other slices than these.
    """
    missing = {"class_names", "data", "split", "temperature", "test_rows"}.difference(card)
    if missing:
        raise ModelFileError(
            f"its card lacks {sorted(missing)}; train the model again, or leave in it only what "
            f"the model expects: size, channels, range, scale, offset, mean, std, class_names"
        )
    if tuple(card["class_names"]) != scans.class_names:
        raise ModelFileError(f"classes {card['class_names']}, the data have {scans.class_names}")
    if card["data"] != fingerprint:
        raise ModelFileError(
            f"trained on other slices (fingerprint {card['data'][:12]}, these are "
            f"{fingerprint[:12]}); which of these it has seen cannot be told"
        )
    if not card["test_rows"]:
        raise ModelFileError("its card names no test rows, so nothing is left to measure")
    rows = np.array(card["test_rows"])
    if problem := check_rows(rows, len(scans)):
        raise ModelFileError(f"the test rows of its card hold {problem}; train the model again")
    return rows


def describe(card: Mapping[str, Any]) -> str:
    """Render a card that `mri.train` has written as a model card in Markdown.

    The headings are those of Mitchell et al. 2019 (doi:10.1145/3287560.3287596).

    Raises
    ------
    ValueError
        If the card lacks what `mri.train` writes, naming it.

    Examples
    --------
    >>> print(describe(read_card("models/zoo/tissue-subject.keras")).splitlines()[0])
    ### Model card: tissue, subject-level split
    """
    missing = sorted(_DESCRIBED.difference(card))
    require(not missing, "Expected a card that mri.train has written.", missing=missing)
    problem = problem_of(dict(card))
    require(problem is None, "Expected a card that mri.train has written.", problem=problem)
    split, recipe, versions = card["split"], card["recipe"], card["versions"]
    leaky = split["protocol"] != "subject"
    parts = zip(("train", "validation", "test"), split["slices"], strict=True)
    slices = ", ".join(f"{side} {count}" for side, count in parts)
    builder, plain = for_markdown(card["builder"]), for_markdown
    fold = "" if leaky else f", fold {split['fold']} of {split['folds']}"
    figures = "; ".join(
        f"{plain(k.replace('_', ' '))} {v:.3f}" for k, v in card["validation"].items()
    )
    # A model of people is fitted in one step and has no epochs.
    kept = f"epoch {card['best_epoch'] + 1} of {recipe.get('epochs')} kept; " * ("epochs" in recipe)
    chosen = ", by which the epoch was chosen" * str(recipe.get("monitor")).startswith("val_")
    recommended = ", ".join(f"{plain(key)} {plain(value)}" for key, value in recipe.items())
    return "\n\n".join(
        [
            f"### Model card: {builder}, {split['protocol']}-level split",
            "**Intended use.** Teaching and method comparison. **Not a diagnostic device.**",
            f"**Data.** {'Synthetic phantoms' if card['synthetic'] else 'Slices of OASIS-1'}, "
            f"fingerprint `{card['data'][:16]}`; {slices} slices{fold}.",
            f"**Training.** {card['parameters']} weights; {recommended}; seed {card['seed']}; "
            f"{kept}{card['seconds']} s. "
            + ", ".join(f"{plain(key)} {plain(value)}" for key, value in versions.items())
            + f". File SHA-256 `{card['sha256'][:16]}`.",
            f"**Figures.** On the validation part{chosen}: {figures}; "
            f"temperature {card['temperature']:.2f}. "
            "Test figures are in the notebooks, with intervals.",
            "**Caveats.** Image-level split: the figures measure recognition of people."
            if leaky
            else "**Caveats.** Few people per class; "
            "age and brain volume are confounded with the diagnosis.",
        ]
    )
