"""Which slices are alike: patterns of folds in one pose, each beside its mirror image."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec

import cv2
import numpy as np
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from mri.subjects.pose import SIDE

Points = tuple[np.ndarray, np.ndarray]
"""Even and odd halves in a few components."""

COPY = 0.97
"""Correlation of patterns from which a slice counts as an altered copy of another."""

_COMMON, _SEARCHED, _SAMPLE, _BLOCK = 24, 64, 4000, 256
_AT_A_TIME = 20_000  # Possible mixtures, whose patterns are held together.
_UNLIKE = 0.35  # Likeness that strangers' slices do not reach.
_REACH = 30  # Of the disc that is compared, in pixels of a canonical slice.
_INDEXED = 20_000  # Slices from which an index is faster than comparing all pairs.
_PROBED = 16  # Cells of the index that a slice is compared with.


@dataclass(frozen=True, eq=False)
class Patterns:
    """Folding patterns split at the midline: mirroring a slice only turns the sign of `odd`.

    Their likeness is the larger of two correlations, with the other slice and with its mirror
    image: ``even · even + |odd · odd|``. What all heads have in common is not taken out of the
    patterns but subtracted from their products.

    Attributes
    ----------
    even, odd : ndarray of float32 or float16, shape (m, p)
        Half the sum and half the difference of the left half and the mirrored right half.
    rows : ndarray of int64, shape (n,)
        Which of them these n slices are.
    common_even, common_odd : ndarray of float32, shape (n, c)
        Coordinates of what is subtracted.
    scale : ndarray of float32, shape (n,)
        Makes the products correlations.
    """

    even: np.ndarray
    odd: np.ndarray
    rows: np.ndarray
    common_even: np.ndarray
    common_odd: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Patterns:
        """Return some of the slices; the patterns are shared."""
        of_slices = (self.rows, self.common_even, self.common_odd, self.scale)
        return Patterns(self.even, self.odd, *(part[rows] for part in of_slices))

    def between(self, one: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the likeness (k, m) of all pairs of k and m slices."""
        a, b = self.rows[one], self.rows[others]
        plain = _product(self.even, a, b) - self.common_even[one] @ self.common_even[others].T
        turned = _product(self.odd, a, b) - self.common_odd[one] @ self.common_odd[others].T
        return (plain + np.abs(turned)) * self.scale[one][:, None] * self.scale[others]

    def likeness(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the likeness of slices (m,) with those of their row of `columns` (m, k)."""
        found = np.empty(columns.shape)

        def fill(start: int) -> None:
            # Slice by slice, what is compared stays in the processor's cache.
            for i in range(start, min(start + _BLOCK, len(rows))):
                found[i] = self.between(rows[i : i + 1], columns[i])[0]

        in_threads(fill, range(0, len(rows), _BLOCK))
        return found

    def pairs(self, one: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the likeness (m,) of slices (m,) with others (m,), one with one."""
        found = np.empty(len(one))

        def fill(start: int) -> None:
            i, j = one[start : start + 64], others[start : start + 64]
            a, b = self.rows[i], self.rows[j]
            plain = _dots(self.even[a], self.even[b]) - _dots(
                self.common_even[i], self.common_even[j]
            )
            turned = _dots(self.odd[a], self.odd[b]) - _dots(self.common_odd[i], self.common_odd[j])
            found[start : start + 64] = (plain + np.abs(turned)) * self.scale[i] * self.scale[j]

        in_threads(fill, range(0, len(one), 64))
        return found


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b, dtype=np.float32)


def _product(half: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    one, other = (half[of].astype(np.float32, copy=False) for of in (a, b))
    return one @ other.T


def in_threads(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Run `work` on every block, a thread a core; the libraries' own threads would wait in turn."""
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, starts))


def unequal(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of slices that equal no earlier one, and for each slice its place in them."""
    known: dict[bytes, int] = {}
    which = np.empty(len(images), np.int64)
    for i, image in enumerate(images):
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        which[i] = known.setdefault(key, len(known))
    return np.unique(which, return_index=True)[1], which


def empty_patterns(n: int, posed: bool) -> Patterns:
    """Return room for the patterns of n slices; half as exact where they would not fit."""
    wide = len(_compared(posed)[0])
    kind = np.float32 if n <= 200_000 else np.float16
    even, odd = (np.empty((n, wide), kind) for _ in range(2))
    none = np.empty((n, 0), np.float32)
    return Patterns(even, odd, np.arange(n), none, none, np.ones(n, np.float32))


def _compared(posed: bool) -> tuple[np.ndarray, ...]:
    """Return which pixels of the left half are compared: what lies in the head, if it is known."""
    rows, columns = np.mgrid[:SIDE, : SIDE // 2] - (SIDE - 1) / 2
    return np.nonzero((rows**2 + columns**2 <= _REACH**2) | (not posed))


def folding_patterns(
    canonical: np.ndarray, posed: bool, into: Patterns | None = None, start: int = 0
) -> Patterns:
    """High-pass canonical slices (n, 64, 64) and split them at the midline.

    A slice without a pattern has zeros. Fills `into` from `start` on, or patterns of its own.
    """
    into = into or empty_patterns(len(canonical), posed)
    near = _compared(posed)
    for i, image in enumerate(canonical, start):
        sharp = image - cv2.GaussianBlur(image, (0, 0), 2)
        left, right = sharp[:, : SIDE // 2][near], sharp[:, : SIDE // 2 - 1 : -1][near]
        even, odd = left + right, left - right
        even -= even.mean()
        norm = np.sqrt(even @ even + odd @ odd)
        scale = 1 / norm if norm > 1e-3 else 0
        into.even[i], into.odd[i] = even * scale, odd * scale
    return into


def without_common_anatomy(
    patterns: Patterns, nodes: np.ndarray, seed: int
) -> tuple[Patterns, Points]:
    """Take out the leading components, which tell where a slice lies, not whose it is.

    They are what strangers' slices of one height share; without them a slice is twice as far
    above its best stranger. Components of the even and the odd halves are those of the slices
    together with their mirror images.

    Parameters
    ----------
    patterns : Patterns
        The mean of their even halves is taken out in place.
    nodes : ndarray of int, shape (n,)
        The slices wanted, and to learn the components from.
    seed : int
        Of the randomised decomposition.

    Returns
    -------
    own : Patterns
        The nodes' without the common components.
    points : (even, odd), float32, each (n, about 64)
        The same in the components that follow, to search in.
    """
    sample = np.random.default_rng(seed).permutation(nodes)[:_SAMPLE]
    count = min(_COMMON, len(sample) // 25)
    mean = patterns.even[sample].mean(0, dtype=np.float32).astype(patterns.even.dtype)
    in_threads(
        lambda start: np.subtract((part := patterns.even[start : start + 1024]), mean, out=part),
        range(0, len(patterns.even), 1024),
    )
    bases, strengths = [], []
    for half in (patterns.even, patterns.odd):
        part = half[sample].astype(np.float32)
        # On a busy machine the threads of a small decomposition wait for each other, tenfold.
        with threadpool_limits(1):
            found = randomized_svd(
                part, min(count + _SEARCHED, *part.shape), n_iter=3, random_state=seed
            )
        strengths.append(found[1])
        bases.append(found[2].T.astype(np.float32))
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:count]
    leading = int((order < len(strengths[0])).sum())
    even, odd = (np.empty((len(nodes), basis.shape[1]), np.float32) for basis in bases)
    energy = np.empty(len(nodes), np.float32)

    def fill(start: int) -> None:
        block = slice(start, start + 1024)
        energy[block] = 0
        halves = ((patterns.even, even, leading), (patterns.odd, odd, count - leading))
        for (half, found, common), basis in zip(halves, bases, strict=True):
            part = half[nodes[block]].astype(np.float32, copy=False)
            found[block] = part @ basis
            energy[block] += np.einsum("ij,ij->i", part, part)
            energy[block] -= (found[block, :common] ** 2).sum(1)

    in_threads(fill, range(0, len(nodes), 1024))
    scale = np.where(energy > 1e-6, 1 / np.sqrt(np.maximum(energy, 1e-6)), 0).astype(np.float32)
    rest = (even[:, leading:] * scale[:, None], odd[:, count - leading :] * scale[:, None])
    common = even[:, :leading].copy(), odd[:, : count - leading].copy()
    return Patterns(patterns.even, patterns.odd, nodes, *common, scale), rest


def nearest(points: Points, neighbours: int) -> np.ndarray:
    """Return the rows (n, neighbours) of each point's nearest others, in no order.

    Of many points only those in the cells around it are looked at, if faiss is installed.
    """
    even, odd = points
    n = len(even)
    if n > _INDEXED:
        if find_spec("faiss"):
            return _by_index(points, neighbours)
        warnings.warn(
            f"faiss is not installed: {n:,} slices are compared pair by pair, which takes longer. "
            "To change that: python -m pip install faiss-cpu",
            RuntimeWarning,
            stacklevel=2,
        )
    found = np.empty((n, neighbours), np.int64)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        like = odd[block] @ odd.T
        np.abs(like, out=like)
        like += even[block] @ even.T
        rows = np.arange(len(like))
        like[rows, start + rows] = -np.inf
        least = np.partition(like, n - neighbours, axis=1)[:, n - neighbours]
        taken = like >= least[:, None]
        for row in np.flatnonzero(taken.sum(1) > neighbours):
            # Of equals some are too many.
            taken[row] = False
            taken[row, np.argsort(-like[row], kind="stable")[:neighbours]] = True
        found[block] = np.nonzero(taken)[1].reshape(-1, neighbours)

    in_threads(fill, range(0, n, _BLOCK))
    return found


def _by_index(halves: Points, neighbours: int) -> np.ndarray:
    """Return nearly all of the nearest others, searched for themselves and for mirror images.

    An inverted file: points are sorted into cells, and compared with those of the nearest cells
    (Sivic & Zisserman 2003, doi:10.1109/ICCV.2003.1238663), by faiss.
    """
    import faiss

    points, wide = np.concatenate(halves, axis=1), halves[0].shape[1]
    n = len(points)
    faiss.omp_set_num_threads(os.cpu_count())
    cells = round(2 * np.sqrt(n))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(points.shape[1]), points.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter, index.nprobe = 8, _PROBED
    index.train(points[:: max(1, n // (40 * cells))])
    index.add(points)
    found = np.empty((n, neighbours), np.int64)
    for start in range(0, n, 16384):
        block = slice(start, start + 16384)
        like, rows = index.search(points[block], neighbours + 1)
        mirrored = points[block].copy()
        mirrored[:, wide:] *= -1
        turned, others = index.search(mirrored, neighbours + 1)
        found[block] = _merged(
            np.concatenate([like, turned], axis=1), np.concatenate([rows, others], axis=1), start, n
        )
    return found


def _merged(like: np.ndarray, rows: np.ndarray, start: int, n: int) -> np.ndarray:
    """Return the best half of the candidates, each once and none the row itself."""
    order = np.lexsort([-like, rows])
    like, rows = np.take_along_axis(like, order, 1), np.take_along_axis(rows, order, 1)
    own = np.arange(start, start + len(rows))[:, None]
    like[:, 1:][rows[:, 1:] == rows[:, :-1]] = -np.inf
    like[(rows < 0) | (rows == own)] = -np.inf
    neighbours = rows.shape[1] // 2 - 1
    best = np.argpartition(like, -neighbours, axis=1)[:, -neighbours:]
    missing = ~np.isfinite(np.take_along_axis(like, best, 1))
    # Where cells hold too few, any other slice fills the row: it is judged by its likeness.
    any_other = (own + 1 + np.arange(neighbours)) % n
    return np.where(missing, any_other, np.take_along_axis(rows, best, 1))


def altered_copies(columns: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Return for each slice the row of the one it is an altered copy of, or its own, int64 (n,).

    Of each slice's nearest others (n, k) and their likeness. A slice that is a copy of none takes
    all that are copies of it; chains are not followed, so that neighbouring slices of a fine stack
    do not become one.
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
    rows, at = np.nonzero(np.take_along_axis(similarity, ranked, 1) > _UNLIKE)
    one, other = columns[rows, ranked[rows, 0]], columns[rows, ranked[rows, at]]
    unlike = own.pairs(one, other) < _UNLIKE
    rows, one, other = rows[unlike], one[unlike], other[unlike]
    score = np.zeros(len(rows))
    for start in range(0, len(rows), _AT_A_TIME):
        block = slice(start, start + _AT_A_TIME)
        involved, place = np.unique([rows[block], one[block], other[block]], return_inverse=True)
        of, first, second = place.reshape(3, -1)
        patterns = plain(involved)
        to_first, to_second = patterns.pairs(of, first), patterns.pairs(of, second)
        between = patterns.pairs(first, second)
        product = 2 * to_first * to_second * between
        explained = (to_first**2 + to_second**2 - product) / np.maximum(1 - between**2, 1e-3)
        added = (explained - to_first**2) / np.maximum(1 - to_first**2, 1e-3)
        score[block] = np.where(added > 0.7, explained, 0)
    best = np.lexsort([-score, rows])
    best = best[np.unique(rows[best], return_index=True)[1]]
    best = best[score[best] > 0.985]
    return rows[best], one[best], other[best]
