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
from mri.data.labels import name_key
from mri.data.parquet import MAX_CLASSES, MAX_NAME

if TYPE_CHECKING:
    from mri.data.scans import Scans

CARD_VERSION = 1
"""Of the keys of `SCHEMA`; a card that names none is of this version too."""

_MAX_CARD = 32 * 2**20
_MEND = "write it anew (python -m mri card), or train the model again"
_MOST = 10**15  # Of anything counted: bytes, weights, rows, seconds.


class ModelFileError(DataError):
    """A model file that is damaged, not what its card says, or not safe to load."""


Check = Callable[[object], bool]


def _number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return a check for finite numbers; truth values are none."""
    return lambda value: (
        type(value) in (int, float)
        and low <= value <= high  # type: ignore[operator]
        and (type(value) is int or math.isfinite(value))  # type: ignore[arg-type]
    )


def _integer(low: int = 0, high: int = _MOST) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _list(of: Check, least: int = 0, most: int = 2**40, *, distinct: bool = False) -> Check:
    return lambda value: (
        isinstance(value, list)
        and least <= len(value) <= most
        and all(map(of, value))
        and not (distinct and len(set(value)) < len(value))
    )


def _object(of: Check) -> Check:
    """Return a check for objects of short texts to values for which `of` holds."""
    return lambda value: (
        isinstance(value, dict) and all(_text(key) and of(known) for key, known in value.items())
    )


def _fact(value: object) -> bool:
    return value is None or isinstance(value, bool) or _text(value) or _number()(value)


def _split(value: object) -> bool:
    if not isinstance(value, dict) or value.get("protocol") not in ("subject", "image"):
        return False
    counts = [value[key] for key in ("fold", "folds", "seed") if value.get(key) is not None]
    return (
        all(map(_integer(-1), counts))
        and _list(_integer(), 3, 3)(value.get("slices", [0, 0, 0]))
        and _digest(value.get("rows_sha256", "0" * 64))
    )


def _names(least: int) -> Check:
    names = _list(lambda name: _text(name) and name != "", least, MAX_CLASSES)
    return lambda value: names(value) and len(set(map(name_key, value))) == len(value)  # type: ignore[arg-type, call-overload]


_HASH = _digest, "a SHA-256 of 64 hexadecimal digits"
_TEXT = _text, f"a text of up to {MAX_NAME} characters"
_COUNT = _integer(), f"an integer from 0 to {_MOST}"
_FACTS = _object(_fact), "an object of texts and numbers"

SCHEMA: dict[str, tuple[Check, str]] = {
    "card_version": (
        _integer(1, CARD_VERSION),
        f"a version from 1 to {CARD_VERSION}, which is what this package reads",
    ),
    "sha256": (lambda value: value == "" or _digest(value), _HASH[1]),
    **dict.fromkeys(["network_sha256", "data", "signature"], _HASH),
    **dict.fromkeys(["builder", "initial_weights"], _TEXT),
    **dict.fromkeys(["recipe", "versions"], _FACTS),
    **dict.fromkeys(["seed", "parameters", "best_epoch"], _COUNT),
    "split": (_split, "an object with the protocol 'subject' or 'image'"),
    "class_names": (_names(1), "a list of different names"),
    "synthetic": (lambda value: isinstance(value, bool), "true or false"),
    "validation": (_object(_number(-_MOST, _MOST)), "an object of finite numbers"),
    "temperature": (_number(1e-6, 1e6), "a number above 0"),
    "seconds": (_number(0, _MOST), "a number from 0"),
    # A loss may have become infinite.
    "history": (
        _object(_list(lambda value: isinstance(value, int | float))),
        "an object of lists of numbers",
    ),
    "test_rows": (_list(_integer(0, 2**40), distinct=True), "a list of different row numbers"),
    "expects": (lambda value: isinstance(value, dict), "an object"),
}
"""What each key of a card is, where it is there: a check and the words for it."""

_DESCRIBED = {"split", "recipe", "versions", "validation", "builder", "synthetic", "data",
              "parameters", "seed", "best_epoch", "seconds", "sha256", "temperature"}  # fmt: skip

TABLE_SCHEMA: dict[str, tuple[Check, str]] = {
    **{key: SCHEMA[key] for key in ("sha256", "data", "parameters")},
    "class_names": (_names(2), "a list of at least two different names"),
    **dict.fromkeys(["origin", "output"], _TEXT),
    **dict.fromkeys(["version", "bytes"], _COUNT),
    "doubts": (_list(_text, 0, 20), "a list of texts"),
    "expects": (lambda value: value is None or isinstance(value, dict), "an object"),
    "milliseconds": (_list(_number(0, _MOST), 2, 2), "two numbers from 0"),
}
"""The same of what stands beside kept logits."""


def problem_of(facts: object, schema: Mapping[str, tuple[Check, str]] = SCHEMA) -> str | None:
    """Return what is wrong with a card, None where nothing is."""
    if not isinstance(facts, dict):
        return f"it is {facts!r:.60}, expected an object"
    for key, (check, expected) in schema.items():
        if key in facts and not check(facts[key]):
            return f"its {key!r} is {shorten(repr(facts[key]))}, expected {expected}"
    return None


def read_card(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the card beside the model file `path`, None where there is none.

    What is no JSON object of the types and ranges of `SCHEMA` is refused by `ModelFileError`.
    """
    card = Path(path).with_suffix(".json")
    try:
        text = read_regular(card, _MAX_CARD).decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_once)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ModelFileError(f"{card}: unreadable card ({error}); {_MEND}") from error
    if problem := problem_of(found):
        raise ModelFileError(f"{card}: unreadable card ({problem}); {_MEND}")
    return dict(found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def check_rows(rows: np.ndarray, n: int) -> str | None:
    """Return what is wrong with row numbers of `n` slices, None where nothing is."""
    if not len(rows):
        return "no rows"
    if rows.min() < 0 or rows.max() >= n:
        return f"row {rows.max() if rows.max() >= n else rows.min()}, there are 0 to {n - 1}"
    return "rows that stand there twice" if len(np.unique(rows)) < len(rows) else None


def rows_to_test(card: Mapping[str, Any], scans: Scans, fingerprint: str) -> np.ndarray:
    """Return the test rows, int (m,), of a card of a training on these very slices."""
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
    ### Model card: tissue, subject-wise split
    """
    missing, problem = sorted(_DESCRIBED.difference(card)), problem_of(dict(card))
    if "split" in card and problem is None:
        needed = {"slices"} if card["split"]["protocol"] == "image" else {"slices", "fold", "folds"}
        missing += [f"split: {key}" for key in sorted(needed.difference(card["split"]))]
    fits = not missing and problem is None
    expected = "Expected a card that mri.train has written."
    require(fits, expected, missing=missing, problem=problem)
    split, recipe, plain = card["split"], card["recipe"], for_markdown
    leaky = split["protocol"] != "subject"
    kind = "image-level" if leaky else "subject-wise"
    parts = zip(("train", "validation", "test"), split["slices"], strict=True)
    slices = ", ".join(f"{side} {count}" for side, count in parts)
    fold = "" if leaky else f", fold {split['fold']} of {split['folds']}"
    data = "Synthetic phantoms" if card["synthetic"] else "Slices of OASIS-1"
    figures = [f"{plain(k.replace('_', ' '))} {v:.3f}" for k, v in card["validation"].items()]
    # A model of people is fitted in one step and has no epochs.
    kept = f"epoch {card['best_epoch'] + 1} of {recipe.get('epochs')} kept; " * ("epochs" in recipe)
    chosen = ", by which the epoch was chosen" * str(recipe.get("monitor")).startswith("val_")
    told, versions = (
        ", ".join(f"{plain(key)} {plain(value)}" for key, value in card[of].items())
        for of in ("recipe", "versions")
    )
    caveats = (
        "Image-level split: the figures measure recognition of people."
        if leaky
        else "Few people per class; age and brain volume are confounded with the diagnosis."
    )
    return f"""### Model card: {plain(card["builder"])}, {kind} split

**Intended use.** Teaching and method comparison. **Not a diagnostic device.**

**Data.** {data}, fingerprint `{card["data"][:16]}`; {slices} slices{fold}.

**Training.** {card["parameters"]} weights; {told}; seed {card["seed"]}; {kept}\
{card["seconds"]} s. {versions}. File SHA-256 `{card["sha256"][:16]}`.

**Figures.** On the validation part{chosen}: {"; ".join(figures)}; \
temperature {card["temperature"]:.2f}. Test figures are in the notebooks, with intervals.

**Caveats.** {caveats}"""
