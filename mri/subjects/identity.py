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

Points = tuple[np.ndarray, np.ndarray]
"""Even and odd halves in a few components."""

_COMMON, _SEARCHED, _SAMPLE, _BLOCK = 24, 64, 4000, 256
_REACH = 30  # Of the disc that is compared, in pixels of a canonical slice.


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

    Learnt from the `nodes` (n,), whose patterns without them are returned, beside those in the
    components that follow, to search in. The mean of all even halves is taken out in place.
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
