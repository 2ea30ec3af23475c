"""Splits into training, validation and test parts: by person or, for comparison, by image."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mri._arguments import integers, require, row_numbers

PARTS = "train", "validation", "test"
"""Names of the parts of a `Split`."""


class DataLeakageError(ValueError):
    """A subject is in two parts of a subject-wise split, or a slice in two parts of any."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows for training, for selection and for the test.

    Attributes
    ----------
    protocol : str
        'subject' (no subject is in two parts) or 'image' (leaky; only for comparison).
    train, validation, test : ndarray of int64
        Row numbers, disjoint.
    fold, folds, seed : int
        Number of this fold, number of folds, and seed of the split. A given test part has fold -1
        of 1.
    """

    protocol: str
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    test: np.ndarray = field(repr=False)
    fold: int = -1
    folds: int = 1
    seed: int = 0


def subject_split(
    labels: np.ndarray, groups: np.ndarray, *, fold: int = 0, folds: int = 5, seed: int = 0
) -> Split:
    """Split by subject: one fold to test, an eighth of the rest to select, and the rest to train.

    Parameters
    ----------
    labels, groups : ndarray of int, shape (n,)
        Class and subject of each slice.
    fold, folds : int
        Number of the test fold, from 0, and number of folds, from 2.
    seed : int

    Raises
    ------
    ValueError
        If an argument is not of this kind, or there are fewer subjects than folds, or fewer than 3.

    Warns
    -----
    UserWarning
        If a class has fewer subjects than folds, because some fold cannot test it.

    Examples
    --------
    >>> labels, groups = np.repeat([0, 1, 0, 1] * 5, 3), np.repeat(np.arange(20), 3)
    >>> split = subject_split(labels, groups)
    >>> len(split.train), len(split.validation), len(split.test)
    (42, 6, 12)
    >>> set(groups[split.train]) & set(groups[split.test])
    set()
    """
    labels = integers("labels", labels, np.size(labels))
    groups = integers("groups", groups, len(labels))
    whole = isinstance(folds, int | np.integer) and folds >= 2
    require(whole, "folds must be at least 2.", folds=folds)
    require(fold in range(folds), f"fold must be 0 to {folds - 1}.", fold=fold)
    subjects = np.unique(np.stack([groups, labels]), axis=1)
    found, needed = len(np.unique(groups)), max(folds, 3)
    wanted = f"{folds} folds and a validation part need at least {needed} subjects."
    require(found >= needed, wanted, subjects=found)
    counts = np.unique_counts(subjects[1])
    rare = {int(v): int(c) for v, c in zip(*counts, strict=True) if c < folds}
    if rare:
        listing = ", ".join(f"class {label}: {count}" for label, count in rare.items())
        warnings.warn(f"fewer subjects than the {folds} folds ({listing})", stacklevel=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        rest, test = folds_of_people(labels, groups, folds, seed)[fold]
        left = len(np.unique(groups[rest]))
        require(left >= 2, f"Fold {fold} leaves too few subjects; use more folds.", left=left)
        most = int(np.unique_counts(labels[rest]).counts.max())
        parts = min(8, left, max(2, most))
        train, validation = folds_of_people(labels[rest], groups[rest], parts, seed)[0]
    split = Split("subject", rest[train], rest[validation], test, fold, folds, seed)
    check_disjoint(split, groups)
    return split


def image_split(labels: np.ndarray, test: Sequence[int] | np.ndarray, *, seed: int = 0) -> Split:
    """Split by image, as the public benchmark does; use it only for comparison.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    test : sequence of int
        Different rows, of the published test file. 10 rows of some class must be left.
    seed : int
        Seed of the validation part: a tenth of the other rows, split by image too.

    Examples
    --------
    >>> split = image_split(np.repeat([0, 1], 40), test=range(60, 80))
    >>> len(split.train), len(split.validation), len(split.test)
    (54, 6, 20)
    """
    labels = integers("labels", labels, np.size(labels))
    test = row_numbers("test", test, len(labels))
    repeats = len(test) - len(np.unique(test))
    require(not repeats, "test must hold different rows.", repeats=repeats)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    most = int(np.unique_counts(labels[rest]).counts.max(initial=0))
    require(most >= 10, "test must leave 10 rows of some class to train on.", most=most)
    inner = StratifiedKFold(10, shuffle=True, random_state=seed)
    train, validation = next(inner.split(labels[rest], labels[rest]))
    return Split("image", rest[train], rest[validation], np.sort(test), seed=seed)


def check_disjoint(split: Split, groups: np.ndarray) -> None:
    """Raise `DataLeakageError` if a subject of `groups` (n,) is in two parts of `split`."""
    groups = np.asarray(groups)
    rows = {side: row_numbers(side, getattr(split, side), len(groups)) for side in PARTS}
    sides = {side: set(groups[of]) for side, of in rows.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared = sides[one] & sides[other]
        if shared:
            raise DataLeakageError(
                f"{len(shared)} of {len(sides[other])} subjects of the {other} part are also in "
                f"the {one} part, for example subject {min(shared)}. Split with subject_split."
            )


def folds_of_people(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (rest, test) of folds that tear no person in two and hold the classes' shares."""
    folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(folder.split(labels, labels, groups))


def split_facts(split: Split) -> dict[str, Any]:
    """Return what a card says of a split, JSON-ready: how it was made, and a hash of its rows."""
    rows = hashlib.sha256()
    for part in PARTS:
        rows.update(np.ascontiguousarray(getattr(split, part), np.int64).tobytes() + b"|")
    return {
        "protocol": split.protocol,
        "fold": split.fold,
        "folds": split.folds,
        "seed": split.seed,
        "slices": [len(getattr(split, part)) for part in PARTS],
        "rows_sha256": rows.hexdigest(),
    }
