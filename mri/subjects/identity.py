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

Halves = tuple[np.ndarray, np.ndarray]
"""Half the sum and half the difference of the left half and the mirrored right half."""

_COMMON, _SEARCHED, _SAMPLE, _BLOCK = 24, 64, 4000, 256
_TOGETHER = 16  # Slices whose likeness with others is found at once.
_ONE = 2**14  # Values from -2 to 2 as int16: that many steps are 1.
_REACH, _SHORT_REACH = 30, 27  # Of the disc that is compared, in pixels of a canonical slice.


@dataclass(frozen=True, eq=False)
class Patterns:
    """Folding patterns split at the midline: mirroring a slice only turns the sign of the odd half.

    The likeness of two slices is the larger of two correlations, with the other slice and with its
    mirror image: ``even · even + |odd · odd|``. What all heads have in common is not taken out of
    the patterns but subtracted from their products.

    `halves` are the even and the odd half, each (m, p), and `rows` (n,) says which of them these n
    slices are. `common` are coordinates (n, c) of what is subtracted in each half. `scale` (n,)
    makes the products correlations.
    """

    halves: Halves
    rows: np.ndarray
    common: Halves
    scale: np.ndarray

    @classmethod
    def whole(cls, halves: Halves) -> Patterns:
        """Return patterns from which nothing is subtracted."""
        n = len(halves[0])
        none = np.empty((n, 0), np.float32)
        return cls(halves, np.arange(n), (none, none), np.ones(n, np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> Patterns:
        """Return some of the slices; the patterns are shared."""
        even, odd = self.common
        return Patterns(self.halves, self.rows[rows], (even[rows], odd[rows]), self.scale[rows])

    def between(self, one: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the likeness (k, m) of all pairs of k and m slices."""
        even, odd = (
            _floats(half, self.rows[one]) @ _floats(half, self.rows[others]).T
            - common[one] @ common[others].T
            for half, common in zip(self.halves, self.common, strict=True)
        )
        return (even + np.abs(odd)) * self.scale[one][:, None] * self.scale[others]

    def likeness(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the likeness of slices (m,) with those of their row of `columns` (m, k)."""
        found = np.empty(columns.shape)
        # Slices of one head name the same others. Together they are compared with all of these.
        order = np.argsort(np.minimum(rows, columns.min(1)), kind="stable")

        def fill(start: int) -> None:
            block = order[start : start + _TOGETHER]
            others, place = np.unique(columns[block], return_inverse=True)
            like = self.between(rows[block], others)
            found[block] = np.take_along_axis(like, place.reshape(len(block), -1), 1)

        in_threads(fill, range(0, len(rows), _TOGETHER))
        return found

    def pairs(self, one: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the likeness (m,) of slices (m,) with others (m,), one with one."""
        found = np.empty(len(one))

        def fill(start: int) -> None:
            i, j = one[start : start + 64], others[start : start + 64]
            even, odd = (
                np.vecdot(_floats(half, self.rows[i]), _floats(half, self.rows[j]))
                - np.vecdot(common[i], common[j])
                for half, common in zip(self.halves, self.common, strict=True)
            )
            found[start : start + 64] = (even + np.abs(odd)) * self.scale[i] * self.scale[j]

        in_threads(fill, range(0, len(one), 64))
        return found


def _floats(half: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = half[rows].astype(np.float32, copy=False)
    if half.dtype != found.dtype:
        found /= _ONE
    return found


def in_threads(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Run `work` on every block, a thread a core; the libraries' own threads would wait in turn."""
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, starts))


def unequal(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of slices that equal no earlier one, and for each slice its place in them."""
    keys = [b""] * len(images)

    def fill(start: int) -> None:
        for row, image in enumerate(images[start : start + _BLOCK], start):
            keys[row] = hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    in_threads(fill, range(0, len(images), _BLOCK))
    known: dict[bytes, int] = {}
    which = np.array([known.setdefault(key, len(known)) for key in keys], np.int64)
    return np.unique(which, return_index=True)[1], which


def doubted(numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which of n slices have a number that stands there with another label too, bool."""
    pairs = np.unique(np.stack([numbers, labels]), axis=1)[0]
    return np.isin(numbers, pairs[1:][np.diff(pairs) == 0])


def room_for(n: int, posed: bool, many: bool = False) -> Halves:
    """Return empty halves of n slices; of `many` in whole numbers, which take half the memory."""
    wide = np.count_nonzero(_compared(posed, many))
    kind = np.int16 if many else np.float32
    return np.empty((n, wide), kind), np.empty((n, wide), kind)


def _compared(posed: bool, many: bool) -> np.ndarray:
    """Return which pixels of the left half are compared: what lies in the head, if it is known."""
    rows, columns = np.mgrid[:SIDE, : SIDE // 2] - (SIDE - 1) / 2
    reach = _SHORT_REACH if many else _REACH if posed else SIDE
    return rows**2 + columns**2 <= reach**2


def folding_patterns(canonical: np.ndarray, posed: bool, many: bool = False) -> Halves:
    """High-pass canonical slices (n, 64, 64) and split them at the midline.

    The halves of a slice have length 1 together; a slice without a pattern has zeros. Of `many`,
    the rim is left out, and they are whole numbers, int16, of which `_ONE` stands for 1.
    """
    sharp = np.empty_like(canonical)
    for out, image in zip(sharp, canonical, strict=True):
        np.subtract(image, cv2.GaussianBlur(image, (0, 0), 2), out=out)
    rows, columns = np.nonzero(_compared(posed, many))
    flat = sharp.reshape(len(sharp), -1)
    left = flat.take(rows * SIDE + columns, axis=1)
    right = flat.take(rows * SIDE + SIDE - 1 - columns, axis=1)
    even, odd = left + right, left - right
    even -= even.mean(1, keepdims=True)
    norm = np.sqrt(np.vecdot(even, even) + np.vecdot(odd, odd))[:, None]
    scale = np.where(norm > 1e-3, 1 / np.maximum(norm, 1e-3), 0)
    if many:
        even, odd = (np.rint(half * (_ONE * scale)).astype(np.int16) for half in (even, odd))
        return even, odd
    return even * scale, odd * scale


def without_common_anatomy(
    patterns: Patterns, nodes: np.ndarray, seed: int
) -> tuple[Patterns, Halves]:
    """Take out the leading components, which tell where a slice lies, not whose it is.

    They are what strangers' slices of one height share; without them a slice is twice as far
    above its best stranger. Components of the even and the odd halves are those of the slices
    together with their mirror images.

    They are learnt from the `nodes` (n,). Returns the patterns of these without them, and their
    halves in the components that follow, to search in. The mean of all even halves is taken out in
    place.
    """
    sample = np.random.default_rng(seed).permutation(nodes)[:_SAMPLE]
    count = min(_COMMON, len(sample) // 25)
    even = patterns.halves[0]
    mean = even[sample].mean(0, dtype=np.float32)
    mean = (mean if even.dtype == mean.dtype else np.rint(mean)).astype(even.dtype)
    for start in range(0, len(even), 1024):
        even[start : start + 1024] -= mean
    bases, strengths = [], []
    for half in patterns.halves:
        part = _floats(half, sample)
        wanted = min(count + _SEARCHED, *part.shape)
        # On a busy machine the threads of a small decomposition wait for each other, tenfold.
        with threadpool_limits(1):
            _, strength, basis = randomized_svd(part, wanted, n_iter=3, random_state=seed)
        strengths.append(strength)
        bases.append(basis.T.astype(np.float32))
    order = np.argsort(-np.concatenate(strengths), kind="stable")[:count]
    leading = int((order < len(strengths[0])).sum())
    places = [np.empty((len(nodes), basis.shape[1]), np.float32) for basis in bases]
    energy = np.zeros(len(nodes), np.float32)

    def fill(start: int) -> None:
        block = slice(start, start + 1024)
        parts = zip(patterns.halves, bases, places, (leading, count - leading), strict=True)
        for half, basis, place, common in parts:
            part = _floats(half, nodes[block])
            place[block] = part @ basis
            energy[block] += np.vecdot(part, part) - (place[block, :common] ** 2).sum(1)

    in_threads(fill, range(0, len(nodes), 1024))
    scale = np.where(energy > 1e-6, 1 / np.sqrt(np.maximum(energy, 1e-6)), 0).astype(np.float32)
    even, odd = places
    rest = even[:, leading:] * scale[:, None], odd[:, count - leading :] * scale[:, None]
    common = even[:, :leading].copy(), odd[:, : count - leading].copy()
    return Patterns(patterns.halves, nodes, common, scale), rest
