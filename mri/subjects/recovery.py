"""Who is who: subjects recovered from pixels, and the order of their slices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mri._arguments import integers, require
from mri.subjects.heights import LOW, low_detail
from mri.subjects.identity import (
    Patterns,
    doubted,
    folding_patterns,
    in_threads,
    room_for,
    unequal,
)
from mri.subjects.linking import people
from mri.subjects.pose import SIDE, Pose, resized

_BLOCK, _BYTES = 256, 2**24  # Slices, and bytes of them, that are held at once.
_LEARNT = 2000  # Slices that mean heads are learnt from, about.
_MANY = 200_000  # Slices above which memory is saved.


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

    Neighbouring slices of one head share its folding pattern; slices of two heads do not.

    1. Every slice is brought into one pose by its outline and then by the inside of the head.
    2. A high-pass filter takes the coarse brightness out, and the leading principal components,
       which all heads have in common, are left out. A slice is compared with the others and with
       their mirror images, so a transformed copy belongs to the person it came from.
    3. Copies, and sums of two slices, are set aside until the end.
    4. Nearest neighbours are searched in the components that follow, then correlated exactly.
    5. A spanning tree joins them, and is cut at the widest gap between its correlations.
    6. The heights of the slices, learnt from within the groups, check these. What can be neither
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

    Raises
    ------
    ValueError
        If an argument is not of this kind, a pixel is not finite, or a slice is constant.
    UnclearSubjectsError
        If a condition fails: which, what was found and what was wanted.

    Warns
    -----
    UserWarning
        Names the groups that are doubtful. Counts slices of equal pixels and different labels.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> phantoms = make_phantoms(4, 16, size=64)
    >>> found = recover_subjects(phantoms.images)
    >>> len(set(found.groups)), len(set(zip(found.groups, phantoms.subjects)))
    (4, 4)
    """
    images = np.asarray(images)
    fits = images.ndim == 3 and len(images) >= 3 and images.dtype.kind in "uif"
    expected = "images must be numbers (n, h, w) with n of at least 3."
    require(fits, expected, shape=images.shape, dtype=images.dtype)
    require(0 < min_margin < 2, "min_margin must be between 0 and 2.", min_margin=min_margin)
    labels = None if labels is None else integers("labels", labels, len(images))
    # A minimum or maximum over NaN is NaN.
    ends = np.stack([(image.min(), image.max()) for image in images])
    wrong = np.flatnonzero(~np.isfinite(ends).all(1))[:5]
    require(not len(wrong), "Pixels must be finite.", slices=wrong)
    _refuse_flat(np.equal(*ends.T))
    # On a busy machine the libraries' own threads wait for each other; blocks have threads here.
    with threadpool_limits(1):
        first, which = unequal(images)
        twice = [] if labels is None else np.flatnonzero(doubted(which, labels)).tolist()
        if twice:
            warnings.warn(
                f"{len(twice)} slices of equal pixels carry different labels, such as those at "
                f"{twice[:4]}; correct the labels or leave them out",
                stacklevel=2,
            )
        patterns, low = _described(images, first)
        _refuse_flat(~np.any([half.any(axis=1) for half in patterns.halves], axis=0)[which])

        def plain(rows: np.ndarray) -> Patterns:
            halves = room_for(len(rows), False)
            _fill(
                halves,
                _blocks(images, first[rows]),
                lambda some: folding_patterns(resized(images[some], SIDE), False),
            )
            return Patterns.whole(halves)

        groups, edges, cut, doubts = people(patterns, low, plain, min_margin=min_margin, seed=seed)
    _, start, groups = np.unique(groups[which], return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(start))[groups].astype(np.int64)
    told = []
    for text, concerned in doubts:
        named = np.unique(groups[first[concerned]]).tolist()
        told.append(f"{text}: group{'s' * (len(named) > 1)} {', '.join(map(str, named))}")
        warnings.warn(told[-1], stacklevel=2)
    mixed = [] if labels is None else np.unique(groups[doubted(groups, labels)]).tolist()
    threshold = float(edges[cut : cut + 2].mean())
    same, different = edges[cut + 1 :], edges[: cut + 1]
    return Subjects(groups, threshold, same, different, tuple(mixed), tuple(told))


def _blocks(images: np.ndarray, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return blocks of rows whose slices are small enough to be held at once, and their starts."""
    step = max(1, min(_BLOCK, _BYTES // images[0].nbytes))
    return [(start, rows[start : start + step]) for start in range(0, len(rows), step)]


def _described(images: np.ndarray, rows: np.ndarray) -> tuple[Patterns, np.ndarray]:
    """Return patterns and low detail of some slices, block by block."""
    learnt = _blocks(images, rows[:: max(1, len(rows) // _LEARNT)])
    small = [resized(images[some], SIDE, keep_shape=True) for _, some in learnt]
    pose = Pose.learn(np.concatenate(small))
    posed, many = pose.outline is not None, len(rows) > _MANY
    halves, low = room_for(len(rows), posed, many), np.empty((len(rows), LOW), np.float32)

    def described(some: np.ndarray) -> tuple[np.ndarray, ...]:
        canonical = pose.draw(images[some])
        return *folding_patterns(canonical, posed, many), low_detail(canonical)

    _fill((*halves, low), _blocks(images, rows), described)
    return Patterns.whole(halves), low


def _fill(
    outs: Sequence[np.ndarray],
    blocks: Iterable[tuple[int, np.ndarray]],
    work: Callable[[np.ndarray], tuple[np.ndarray, ...]],
) -> None:
    """Put what `work` makes of the rows of each block into its place in `outs`, in threads."""
    rows = dict(blocks)

    def fill(start: int) -> None:
        for out, part in zip(outs, work(rows[start]), strict=True):
            out[start : start + len(part)] = part

    in_threads(fill, rows)


def _refuse_flat(flat: np.ndarray) -> None:
    if flat.any():
        raise ValueError(
            f"{flat.sum()} slices are constant, the first at index {flat.argmax()}; leave them out"
        )


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
    fits = images.ndim == 3 and len(images) > 0
    require(fits, "images must be (n, h, w).", shape=images.shape)
    if len(images) < 3:
        likeness = np.ones((len(images),) * 2)
    else:
        likeness = np.corrcoef(images.reshape(len(images), -1).astype(np.float32))
    # Distant slices are all equally unlike; only near ones say where a slice lies.
    likeness = np.exp((np.nan_to_num(likeness) - 1) / 0.02)
    laplacian = np.diag(likeness.sum(1)) - likeness
    order = np.argsort(np.linalg.eigh(laplacian)[1][:, min(1, len(images) - 1)], kind="stable")
    size = np.array([np.count_nonzero(image > 20) for image in images])[order]
    half = len(order) // 2
    return order[::-1] if size[:half].sum() < size[len(order) - half :].sum() else order
