"""Who is who: subjects recovered from pixels, and splits that keep a subject on one side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from mri.arguments import integers, require, row_numbers
from mri.heights import low_detail
from mri.identity import Patterns, folding_patterns, unequal
from mri.linking import people
from mri.pose import SIDE, resized, upright

PARTS = "train", "validation", "test"
"""Names of the sides of a `Split`."""


class DataLeakageError(ValueError):
    """A subject stands on both sides of a split that claims to keep subjects apart."""


class UnclearSubjectsError(ValueError):
    """The pixels do not say who is who: no clear gap between same and different subjects."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """Subjects found in a set of slices.

    Attributes
    ----------
    groups : ndarray of int64, shape (n,)
        Subject of each slice, numbered by first appearance.
    threshold : float
        Correlation above which two slices are linked: the middle of the gap.
    same : ndarray of float64
        Correlations of the links that join slices of one subject, ascending.
    different : ndarray of float64
        Strongest correlations between subjects, ascending.
    contradictory : tuple of int
        Groups whose slices carry more than one label (empty where no labels were given).
    warnings : tuple of str
        What is doubtful, with the groups concerned.
    """

    groups: np.ndarray
    threshold: float
    same: np.ndarray
    different: np.ndarray
    contradictory: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def margin(self) -> float:
        """Weakest link within a subject minus strongest correlation between two subjects."""
        return float(self.same[0] - self.different[-1])

    def __repr__(self) -> str:
        sizes = np.bincount(self.groups)
        return (
            f"Subjects({len(sizes)} subjects of {sizes.min()} to {sizes.max()} slices, "
            f"same ≥ {self.same[0]:.3f}, different ≤ {self.different[-1]:.3f}, "
            f"{len(self.contradictory)} with contradictory labels)"
        )


def recover_subjects(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    min_margin: float = 0.1,
    seed: int = 0,
) -> Subjects:
    """Group slices by subject from their pixels alone.

    Neighbouring slices of one head share its folding pattern, slices of two heads do not. Every
    slice is first brought into one pose by its outline and then by the inside of the head, and is
    compared with the others and with their mirror images: a transformed copy belongs to the person
    it came from. The coarse brightness that all heads have in common is removed by a high-pass
    filter, their common anatomy with the leading principal components; nearest neighbours (searched
    in the components that follow, then correlated exactly) are joined to a spanning tree, and the
    tree is cut at the widest gap between its correlations. Copies, and sums of two slices, are set
    aside before and given back to their people at the end.

    The heights of the slices, learnt from within the groups, then check these: a group with unlike
    slices of one height is two people, groups that share no heights may be one. What can be neither
    mended nor warned of by name is refused.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
        Slices in any order, roughly aligned.
    labels : ndarray of int, shape (n,), optional
        Only used to report groups with more than one label.
    min_margin : float
        Smallest gap of correlations that counts as clear.
    seed : int
        Of the randomised principal component analysis.

    Returns
    -------
    Subjects

    Raises
    ------
    ValueError
        If `images` is not (n, h, w) with n ≥ 3, a pixel is not finite, a slice is constant, there
        are not as many labels, or `min_margin` is not between 0 and 2.
    UnclearSubjectsError
        If a condition fails: which, what was found and what was wanted. Pass known subject ids to
        the splits instead.

    Warns
    -----
    UserWarning
        Names the groups that may be parts of one person, that were joined over missing slices, or
        that are linked by mixtures of two people.

    Examples
    --------
    >>> from mri.phantom import make_phantoms
    >>> phantoms = make_phantoms(4, 16, size=64)
    >>> found = recover_subjects(phantoms.images)
    >>> len(set(found.groups)), len(set(zip(found.groups, phantoms.subjects)))
    (4, 4)
    """
    images = np.asarray(images)
    fits = images.ndim == 3 and len(images) >= 3 and images.dtype.kind in "uif"
    expected = "images must be numbers (n, h, w) with n of at least 3."
    require(fits, expected, shape=images.shape, dtype=images.dtype)
    wrong = np.flatnonzero(~np.isfinite(images).all((1, 2)))[:5]
    require(not len(wrong), "Pixels must be finite.", slices=wrong)
    require(0 < min_margin < 2, "min_margin must be between 0 and 2.", min_margin=min_margin)
    labels = None if labels is None else integers("labels", labels, len(images))
    _refuse_flat(np.equal(images.min((1, 2)), images.max((1, 2))))
    # On a busy machine the libraries' own threads wait for each other; blocks have threads here.
    with threadpool_limits(1):
        first, which = unequal(images)
        canonical, posed = upright(images[first])
        patterns = folding_patterns(canonical, posed)
        some = np.logical_or(patterns.even.any(axis=1), patterns.odd.any(axis=1))
        _refuse_flat(~np.asarray(some)[which])

        def plain(rows: np.ndarray) -> Patterns:
            return folding_patterns(resized(images[first[rows]], SIDE), False)

        found = people(patterns, low_detail(canonical), plain, min_margin=min_margin, seed=seed)
    if isinstance(found, str):
        raise UnclearSubjectsError(
            f"no clear gap between same and different subjects: {found}; slices may be missing "
            "between neighbours. Pass the subject ids if you know them"
        )
    _, start, groups = np.unique(found.groups[which], return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(start))
    final, told = number[groups].astype(np.int64), []
    for text, concerned in found.doubts:
        named = tuple(sorted({int(final[which == row][0]) for row in concerned}))
        told.append(f"{text}: {_listed(named)}")
        warnings.warn(told[-1], stacklevel=2)
    mixed = _contradictory(final, labels)
    return Subjects(final, found.threshold, found.same, found.different, mixed, tuple(told))


def _refuse_flat(flat: np.ndarray) -> None:
    if flat.any():
        raise ValueError(
            f"{flat.sum()} slices are constant, the first at index {flat.argmax()}; leave them out"
        )


def _listed(groups: tuple[int, ...]) -> str:
    return f"group{'s' * (len(groups) > 1)} {', '.join(map(str, groups))}"


def _contradictory(groups: np.ndarray, labels: np.ndarray | None) -> tuple[int, ...]:
    if labels is None:
        return ()
    pairs = np.unique(np.stack([groups, labels]), axis=1)[0]
    return tuple(int(group) for group in np.flatnonzero(np.bincount(pairs) > 1))


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


def order_slices(images: np.ndarray) -> np.ndarray:
    """Return the order of one subject's slices along the head, from below upwards.

    Neighbouring slices are most alike, so the second eigenvector of the graph of their likeness
    puts them in line (spectral seriation; Atkins et al. 1998, doi:10.1137/S0097539795285771). Which
    end is below is told by the size of the brain, which shrinks towards the crown.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
        Slices of one subject in any order.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    images = np.asarray(images)
    if images.ndim != 3:
        raise ValueError(f"images must be (n, h, w). Received: shape {images.shape}")
    if len(images) < 3:
        likeness = np.ones((len(images),) * 2)
    else:
        likeness = np.corrcoef(images.reshape(len(images), -1).astype(np.float32))
    # Far slices are all alike unlike; only near ones say where a slice lies.
    likeness = np.exp((np.nan_to_num(likeness) - 1) / 0.02)
    laplacian = np.diag(likeness.sum(1)) - likeness
    order = np.argsort(np.linalg.eigh(laplacian)[1][:, min(1, len(images) - 1)], kind="stable")
    size = np.array([np.count_nonzero(image > 20) for image in images])[order]
    half = len(order) // 2
    return order[::-1] if size[:half].sum() < size[len(order) - half :].sum() else order


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
