"""Which slices are alike: patterns of folds in one pose, each beside its mirror image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from mri.subjects.pose import SIDE

COPY = 0.97
"""Correlation of patterns from which a slice counts as an altered copy of another."""

_COMMON, _SEARCHED, _SAMPLE, _BLOCK = 24, 128, 4000, 256
_UNLIKE = 0.35  # Likeness that strangers' slices do not reach.
_REACH = 30  # Of the disc that is compared, in pixels of a canonical slice.


@dataclass(frozen=True, eq=False)
class Patterns:
    """Folding patterns split at the midline: mirroring a slice only turns the sign of `odd`.

    Attributes
    ----------
    even, odd : ndarray of float32, shape (n, p)
        Half the sum and half the difference of the left half and the mirrored right half, scaled
        so that ``even @ even.T + odd @ odd.T`` are correlations.
    """

    even: np.ndarray
    odd: np.ndarray

    def __len__(self) -> int:
        return len(self.even)

    def take(self, rows: np.ndarray) -> Patterns:
        """Return some of the patterns."""
        return Patterns(self.even[rows], self.odd[rows])

    def among(self, rows: np.ndarray) -> np.ndarray:
        """Return the likeness (m, m) of all pairs of `rows`."""
        even, odd = self.even[rows], self.odd[rows]
        return even @ even.T + np.abs(odd @ odd.T)

    def likeness(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the likeness of pairs: of the two correlations, plain and mirrored, the larger.

        Parameters
        ----------
        rows, columns : ndarray of int, shapes (m,) and (m, k)

        Returns
        -------
        ndarray of float64, shape (m, k)
        """
        found = np.empty(columns.shape)

        def fill(start: int) -> None:
            block = slice(start, start + 64)
            one, others = rows[block], columns[block]
            plain = np.matmul(self.even[others], self.even[one][:, :, None])[:, :, 0]
            turned = np.matmul(self.odd[others], self.odd[one][:, :, None])[:, :, 0]
            found[block] = plain + np.abs(turned)

        in_threads(fill, range(0, len(rows), 64))
        return found


def in_threads(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Run `work` on every block, a thread a core; the libraries' own threads would wait in turn."""
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, starts))


def unequal(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the slices that equal no earlier one in every pixel.

    Parameters
    ----------
    images : ndarray, shape (n, h, w)

    Returns
    -------
    first : ndarray of int64, shape (m,)
        Their rows, ascending.
    which : ndarray of int64, shape (n,)
        For each slice the position in `first` of the one it equals.
    """
    known: dict[bytes, int] = {}
    which = np.empty(len(images), np.int64)
    for i, image in enumerate(images):
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        which[i] = known.setdefault(key, len(known))
    return np.unique(which, return_index=True)[1], which


def folding_patterns(canonical: np.ndarray, posed: bool) -> Patterns:
    """High-pass canonical slices and split them at the midline.

    Parameters
    ----------
    canonical : ndarray of float32, shape (n, 64, 64)
    posed : bool
        Whether what lies outside the head may be left out.

    Returns
    -------
    Patterns
        All zero for a slice without a pattern.
    """
    rows, columns = np.mgrid[:SIDE, : SIDE // 2] - (SIDE - 1) / 2
    near = np.flatnonzero((rows**2 + columns**2 <= _REACH**2).ravel() | (not posed))
    even = np.empty((len(canonical), len(near)), np.float32)
    odd = np.empty_like(even)
    for i, image in enumerate(canonical):
        sharp = image - cv2.GaussianBlur(image, (0, 0), 2)
        left = sharp[:, : SIDE // 2].ravel()[near]
        right = sharp[:, : SIDE // 2 - 1 : -1].ravel()[near]
        even[i], odd[i] = left + right, left - right
    even -= even.mean(1, keepdims=True)
    return Patterns(*_scaled(even, odd))


def _scaled(even: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norms = np.sqrt(np.einsum("ij,ij->i", even, even) + np.einsum("ij,ij->i", odd, odd))
    scale = np.where(norms > 1e-3, 1 / np.maximum(norms, 1e-3), 0)[:, None].astype(np.float32)
    even *= scale
    odd *= scale
    return even, odd


def without_common_anatomy(
    patterns: Patterns, sample: np.ndarray, seed: int
) -> tuple[Patterns, Patterns]:
    """Remove the leading components, which tell where a slice lies, not whose it is.

    They are what strangers' slices of one height share; without them a slice is twice as far
    above its best stranger. Components of the even and the odd halves are those of the slices
    together with their mirror images.

    Parameters
    ----------
    patterns : Patterns
    sample : ndarray of int
        Rows to learn the components from.
    seed : int
        Of the randomised decomposition.

    Returns
    -------
    own : Patterns
        What is left.
    points : Patterns
        The same in the components that follow, to search in.
    """
    sample = np.random.default_rng(seed).permutation(sample)[:_SAMPLE]
    common = min(_COMMON, len(sample) // 25)
    halves, mean = (patterns.even, patterns.odd), patterns.even[sample].mean(0)
    bases, strengths = [], []
    for half, middle in zip(halves, (mean, np.float32(0)), strict=True):
        part = half[sample] - middle
        wanted = min(common + _SEARCHED // 2, *part.shape)
        # On a busy machine the threads of a small decomposition wait for each other, tenfold.
        with threadpool_limits(1):
            _, strength, basis = randomized_svd(part, wanted, n_iter=3, random_state=seed)
        bases.append(basis.astype(np.float32))
        strengths.append(strength)
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:common]
    leading = [int((order < len(strengths[0])).sum()), int((order >= len(strengths[0])).sum())]
    own = Patterns(*(np.empty_like(half) for half in halves))

    def fill(start: int) -> None:
        block = slice(start, start + 1024)
        rest = [halves[0][block] - mean, halves[1][block].copy()]
        for half, basis, count in zip(rest, bases, leading, strict=True):
            half -= half @ basis[:count].T @ basis[:count]
        own.even[block], own.odd[block] = _scaled(*rest)

    in_threads(fill, range(0, len(patterns), 1024))
    points = (
        half @ basis[count:].T
        for half, basis, count in zip((own.even, own.odd), bases, leading, strict=True)
    )
    return own, Patterns(*points)


def nearest(points: Patterns, neighbours: int) -> np.ndarray:
    """Return the rows (n, neighbours) of each point's nearest others, in no order."""
    n = len(points)
    found = np.empty((n, neighbours), np.int64)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        like = points.odd[block] @ points.odd.T
        np.abs(like, out=like)
        like += points.even[block] @ points.even.T
        rows = np.arange(len(like))
        like[rows, start + rows] = -np.inf
        found[block] = np.argpartition(like, n - neighbours, axis=1)[:, n - neighbours :]

    in_threads(fill, range(0, n, _BLOCK))
    return found


def altered_copies(columns: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Return for each slice the row of the one it is an altered copy of, or its own.

    A slice that is a copy of none takes all that are copies of it; chains are not followed, so
    that neighbouring slices of a fine stack do not become one.

    Parameters
    ----------
    columns, similarity : ndarray, shape (n, k)
        Nearest others and their likeness.
    """
    original = np.arange(len(columns))
    close = similarity >= COPY
    taken = np.zeros(len(columns), bool)
    for row in np.flatnonzero(close.any(1)):
        if not taken[row]:
            copies = columns[row, close[row]]
            copies = copies[~taken[copies]]
            original[copies] = row
            taken[copies] = taken[row] = True
    return original


def mixtures(
    own: Patterns,
    columns: np.ndarray,
    similarity: np.ndarray,
    plain: Callable[[np.ndarray], Patterns],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find slices that are sums of two unlike ones, as interpolating oversamplers make them.

    Such a slice is explained almost wholly by two others that do not resemble each other, and what
    the first leaves of it by the second; of a real slice a stranger explains nothing.

    Parameters
    ----------
    own : Patterns
    columns, similarity : ndarray, shape (n, k)
        Nearest others and their likeness.
    plain : callable
        Patterns of given rows as they stand in the picture: sums were made before any pose.

    Returns
    -------
    mixed, one, other : ndarray of int64, shape (m,)
        Rows of the mixtures, of their larger part and of the smaller.
    """
    ranked = np.argsort(-similarity, axis=1)[:, :16]
    similarity = np.take_along_axis(similarity, ranked, 1)
    columns = np.take_along_axis(columns, ranked, 1)
    unlike = own.likeness(columns[:, 0], columns) < _UNLIKE
    rows = np.flatnonzero((unlike & (similarity > _UNLIKE)).any(1))
    if not len(rows):
        return rows, rows, rows
    columns, unlike = columns[rows], unlike[rows]
    involved, place = np.unique(np.column_stack([rows, columns]), return_inverse=True)
    place = place.reshape(len(rows), -1)
    patterns = plain(involved)
    to_best = patterns.likeness(place[:, 0], place[:, 1:2])
    to_all = patterns.likeness(place[:, 0], place[:, 1:])
    between = patterns.likeness(place[:, 1], place[:, 1:])
    product = 2 * to_best * to_all * between
    explained = (to_best**2 + to_all**2 - product) / np.maximum(1 - between**2, 1e-3)
    added = (explained - to_best**2) / np.maximum(1 - to_best**2, 1e-3)
    score = np.where(unlike & (added > 0.7), explained, 0)
    fits, choice = score.max(1) > 0.985, score.argmax(1)
    return rows[fits], columns[fits, 0], columns[fits, choice[fits]]
