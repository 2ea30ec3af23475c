"""Who is who: subjects recovered from pixels, and splits that keep a subject on one side."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from mri._arguments import integers, require
from mri.subjects.heights import LOW, low_detail
from mri.subjects.identity import Patterns, empty_patterns, folding_patterns, in_threads, unequal
from mri.subjects.linking import people
from mri.subjects.pose import LEARNT, SIDE, Pose, resized

_BLOCK, _BYTES = 256, 2**24  # Slices, and bytes of them, that are held at once.


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
    aside before and given back to their people at the end. More than 20,000 slices are searched by
    an approximate index where faiss is installed (``python -m pip install faiss-cpu``), and small
    groups are then compared with all slices; otherwise pair by pair. The correlations are exact in
    both.

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
        patterns, low = _described(images, first)
        any_pattern = np.logical_or(patterns.even.any(axis=1), patterns.odd.any(axis=1))
        _refuse_flat(~np.asarray(any_pattern)[which])

        def plain(rows: np.ndarray) -> Patterns:
            whole, blocks = empty_patterns(len(rows), False), _blocks(images, rows)
            for start in blocks:
                some = first[rows[start : start + blocks.step]]
                folding_patterns(resized(images[some], SIDE), False, whole, start)
            return whole

        found = people(patterns, low, plain, min_margin=min_margin, seed=seed)
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


def _blocks(images: np.ndarray, rows: np.ndarray) -> range:
    """Return where blocks of rows begin whose slices are small enough to be held at once."""
    return range(0, len(rows), max(1, min(_BLOCK, _BYTES // images[0].nbytes)))


def _described(images: np.ndarray, rows: np.ndarray) -> tuple[Patterns, np.ndarray]:
    """Return patterns and low detail of some slices, block by block."""
    some = rows[:: max(1, len(rows) // LEARNT)]
    blocks = _blocks(images, some)
    small = [
        resized(images[some[start : start + blocks.step]], SIDE, keep_shape=True)
        for start in blocks
    ]
    pose = Pose.learn(np.concatenate(small))
    patterns = empty_patterns(len(rows), pose.outline is not None)
    low = np.empty((len(rows), LOW), np.float32)
    blocks = _blocks(images, rows)

    def fill(start: int) -> None:
        canonical = pose.draw(images[rows[start : start + blocks.step]])
        folding_patterns(canonical, pose.outline is not None, patterns, start)
        low[start : start + len(canonical)] = low_detail(canonical)

    in_threads(fill, blocks)
    return patterns, low


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
