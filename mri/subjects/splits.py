"""Divisions into training, validation and test parts, by person or, for comparison, by image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from mri._arguments import integers, require, row_numbers

PARTS = "train", "validation", "test"
"""Names of the sides of a `Split`."""


class DataLeakageError(ValueError):
    """A subject stands on both sides of a split that claims to keep subjects apart."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows to train on, to select on and to test on.

    Attributes
    ----------
    protocol : str
        'subject' (no subject on two sides) or 'image' (leaky; only to compare with others).
    train, validation, test : ndarray of int64
        Row numbers, disjoint.
    fold, folds, seed : int
        Which of how many folds, and the seed of the division; -1 of 1 for a given test part.
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
    """Divide by subject: one fold to test, an eighth of the rest to select, the rest to train.

    Parameters
    ----------
    labels, groups : ndarray of int, shape (n,)
        Class and subject of each slice.
    fold, folds : int
        Which of how many test folds.
    seed : int

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If labels and groups are not as many integers, `fold` is not within `folds`, these are
        fewer than 2, or there are fewer subjects than folds, or than 3.
    DataLeakageError
        If a subject ends up on two sides (it cannot, unless `groups` is not what it says).

    Warns
    -----
    UserWarning
        Names the classes that have fewer subjects than folds: some fold cannot test them.

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
    require(folds >= 2, "folds must be at least 2.", folds=folds)
    require(fold in range(folds), f"fold must be 0 to {folds - 1}.", fold=fold)
    subjects = np.unique(np.stack([groups, labels]), axis=1)
    found, needed = len(np.unique(groups)), max(folds, 3)
    wanted = f"{folds} folds and a part to validate on take at least {needed} subjects."
    require(found >= needed, wanted, subjects=found)
    counts = np.unique_counts(subjects[1])
    rare = {int(v): int(c) for v, c in zip(*counts, strict=True) if c < folds}
    if rare:
        listing = ", ".join(f"class {label}: {count}" for label, count in rare.items())
        warnings.warn(f"fewer subjects than the {folds} folds ({listing})", stacklevel=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        rest, test = _nth_fold(
            StratifiedGroupKFold(folds, shuffle=True, random_state=seed), labels, groups, fold
        )
        left = len(np.unique(groups[rest]))
        require(left >= 2, f"Fold {fold} leaves too few subjects; take more folds.", left=left)
        most = int(np.unique_counts(labels[rest]).counts.max())
        parts = min(8, left, max(2, most))
        inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        train, validation = _nth_fold(inner, labels[rest], groups[rest], 0)
    split = Split("subject", rest[train], rest[validation], test, fold, folds, seed)
    check_disjoint(split, groups)
    return split


def image_split(labels: np.ndarray, test: Sequence[int] | np.ndarray, *, seed: int = 0) -> Split:
    """Divide as the public benchmark does, ignoring who is who: for comparison only.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    test : sequence of int
        Rows of the published test file.
    seed : int
        Of the validation part: a tenth of the other rows, by image like the test part.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If `labels` are not integers (n,), or `test` is not made of different row numbers that
        leave at least 10 others of some class.

    Examples
    --------
    >>> split = image_split(np.repeat([0, 1], 40), test=range(60, 80))
    >>> len(split.train), len(split.validation), len(split.test)
    (54, 6, 20)
    """
    labels = integers("labels", labels, np.size(labels))
    test = row_numbers("test", test, len(labels))
    repeats = len(test) - len(np.unique(test))
    require(not repeats, "test must be different rows.", repeats=repeats)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    most = int(np.unique_counts(labels[rest]).counts.max(initial=0))
    require(most >= 10, "test must leave 10 rows of some class to train on.", most=most)
    inner = StratifiedKFold(10, shuffle=True, random_state=seed)
    train, validation = _nth_fold(inner, labels[rest], None, 0)
    return Split("image", rest[train], rest[validation], np.sort(test), seed=seed)


def check_disjoint(split: Split, groups: np.ndarray) -> None:
    """Raise `DataLeakageError` if a subject stands on two sides of `split`.

    Parameters
    ----------
    split : Split
        Of any protocol: an image-level split fails, which is the point.
    groups : ndarray of int, shape (n,)
    """
    sides = {side: set(groups[getattr(split, side)]) for side in PARTS}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared = sides[one] & sides[other]
        if shared:
            raise DataLeakageError(
                f"{len(shared)} of {len(sides[other])} subjects of the {other} part stand in the "
                f"{one} part too, among them subject {min(shared)}; divide with subject_split"
            )


def _nth_fold(
    splitter: StratifiedKFold | StratifiedGroupKFold,
    labels: np.ndarray,
    groups: np.ndarray | None,
    fold: int,
) -> tuple[np.ndarray, np.ndarray]:
    return list(splitter.split(labels, labels, groups))[fold]
