"""Which slices are alike: one pass over all pairs, in coarse detail, then exactly.

A slice is described by the lowest frequencies of its cosine transform, which keep lengths and
angles. All pairs are compared there once; the few best candidates of each are then correlated
pixel by pixel. Mirroring and turning a slice only changes signs and places of frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np
from scipy.fft import dct

from mri.subjects.identity import in_threads

_DETAIL, _TURNED_DETAIL = 48, 24
_CANDIDATES = 3, 8  # By correlation, and by distance, where strangers are nearly equally far.
_BLOCK, _FEW = 256, 2  # Of pixels only as many slices at once as the cache holds.

Progress = Callable[[str, float], None]
"""Is told what is being done, and which share of it is done."""

Found = dict[str, tuple[np.ndarray, np.ndarray]]
"""Answers by name: for each slice the nearest one, int64 (n,), and their correlation, (n,)."""


class Likeness:
    """Slices (n, h, w), uint8, prepared for comparison.

    `coarse` (n, k) are frequencies without the mean, of length 1 as whole slices are. `means` and
    `norms` (n,) are the mean gray values, and the lengths of the pixels without them.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        n, h, w = images.shape
        self.detail = min(_DETAIL, h), min(_DETAIL, w)
        down, across = (
            dct(np.eye(side), axis=0, norm="ortho")[:keep].astype(np.float32)
            for side, keep in zip((h, w), self.detail, strict=True)
        )
        self.coarse = np.empty((n, self.detail[0] * self.detail[1]), np.float32)
        self.means, self.norms = np.empty(n), np.empty(n)

        def fill(start: int) -> None:
            block = slice(start, start + _BLOCK)
            pixels = images[block].astype(np.float32)
            self.means[block] = pixels.mean((1, 2), dtype=np.float64)
            pixels -= self.means[block].astype(np.float32)[:, None, None]
            self.norms[block] = np.sqrt(np.einsum("nhw,nhw->n", pixels, pixels, dtype=np.float64))
            self.coarse[block] = (down @ pixels @ across.T).reshape(len(pixels), -1)

        in_threads(fill, range(0, n, _BLOCK))
        # A slice of one gray value is like none.
        self.coarse[self.norms < 1e-3] = 0
        self.coarse /= np.where(self.norms < 1e-3, 1, self.norms).astype(np.float32)[:, None]

    def __len__(self) -> int:
        return len(self.norms)

    def frequencies(self) -> np.ndarray:
        """Return the slices in coarse detail, means included, float32 (n, k).

        They have the leading principal components of the pixels.
        """
        found = self.coarse * self.norms[:, None].astype(np.float32)
        found[:, 0] = self.means * np.sqrt(self.images[0].size)
        return found

    def exact(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the pixel correlations of rows (m,) with others (m, k), float64 (m, k).

        A slice of one gray value correlates with none: 0.
        """
        found = np.empty(others.shape)
        flat = self.images.reshape(len(self), -1)
        for start in range(0, len(rows), _FEW):
            of = slice(start, start + _FEW)
            one = flat[rows[of]].astype(np.float32) - self.means[rows[of], None].astype(np.float32)
            two = flat[others[of]].astype(np.float32)
            # The mean of the second falls out, as the first has none.
            found[of] = np.matmul(two, one[:, :, None])[..., 0]
        scale = self.norms[rows][:, None] * self.norms[others]
        return np.where(scale > 1e-6, found / np.maximum(scale, 1e-6), 0).clip(-1, 1)

    def closeness(self, rows: np.ndarray, others: np.ndarray, alike: np.ndarray) -> np.ndarray:
        """Return what is largest where the distance of the pixels is smallest, by correlations.

        It is half the squared distance, turned round, without the length of the row itself.
        """
        size, means = self.images[0].size, self.means
        products = self.norms[rows][:, None] * self.norms[others] * alike
        products += size * means[rows][:, None] * means[others]
        return products - (self.norms[others] ** 2 + size * means[others] ** 2) / 2


class View(NamedTuple):
    """A question about slices: for each of `rows`, which of the `pool` is nearest.

    Slices that have the row's own number in `numbers` (n,) do not count. Near is by correlation, or
    by distance of the pixels where `distance`.
    """

    rows: np.ndarray
    pool: np.ndarray
    numbers: np.ndarray
    distance: bool = False


def nearest(like: Likeness, views: dict[str, View], progress: Progress | None = None) -> Found:
    """Answer several questions in one pass over all pairs.

    Where no slice counts, or none was asked about, the correlation is NaN.
    """
    n = len(like)
    found = {name: (np.zeros(n, np.int64), np.full(n, np.nan)) for name in views}
    asked = {name: np.isin(np.arange(n), view.rows) for name, view in views.items()}
    needed = np.flatnonzero(np.any([*asked.values()], axis=0))
    done = count(1)

    def fill(start: int) -> None:
        block = needed[start : start + _BLOCK]
        alike = like.coarse[block] @ like.coarse.T
        for name, view in views.items():
            here = asked[name][block]
            if here.any():
                which, correlation = found[name]
                rows, score = block[here], alike[np.ix_(here, view.pool)]
                which[rows], correlation[rows] = _best(like, view, rows, score)
        if progress:
            progress("comparing all slices", min(1, next(done) * _BLOCK / len(needed)))

    in_threads(fill, range(0, len(needed), _BLOCK))
    return found


def _best(
    like: Likeness, view: View, rows: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact best among the best candidates by coarse correlations, and correlation."""
    if view.distance:
        score = like.closeness(rows, view.pool, score)
    score[view.numbers[rows][:, None] == view.numbers[view.pool]] = -np.inf
    order = np.arange(len(rows))
    candidates, known = [], []
    for _ in range(min(_CANDIDATES[view.distance], len(view.pool))):
        candidates.append(score.argmax(1))
        known.append(np.isfinite(score[order, candidates[-1]]))
        score[order, candidates[-1]] = -np.inf
    picked, possible = view.pool[np.stack(candidates, 1)], np.stack(known, 1)
    exact = correlation = like.exact(rows, picked)
    if view.distance:
        exact = like.closeness(rows, picked, correlation)
    # Of equals the first, whatever order the coarse score has them in.
    exact = np.where(possible, exact, -np.inf)
    best = exact.max(1, keepdims=True)
    leading = exact >= best - 1e-7 * np.abs(best).clip(1)
    winner = np.where(leading, picked, len(like)).min(1)
    at = (leading & (picked == winner[:, None])).argmax(1)
    return winner, np.where(possible.any(1), correlation[order, at], np.nan)


def turned_copies(like: Likeness, rows: np.ndarray, pool: np.ndarray, least: float) -> np.ndarray:
    """Return which rows (m,) are mirrored, turned or inverted copies of slices of the pool.

    `least` is the pixel correlation from which two are copies.
    """
    found = np.zeros(len(rows), bool)
    side = min(_TURNED_DETAIL, *like.detail)
    low = like.coarse.reshape(-1, *like.detail)[:, :side, :side]
    inside = np.linalg.norm(low, axis=(1, 2))
    # By their angle a copy is nearest; the energy outside bounds what that can add.
    low = low / np.where(inside > 0, inside, 1)[:, None, None]
    outside = np.where(like.norms < 1e-3, 0, np.sqrt((1 - inside**2).clip(0)))
    pooled = low[pool].reshape(len(pool), -1)
    signs = (-1.0) ** np.arange(side, dtype=np.float32)
    square = like.images.shape[1] == like.images.shape[2]
    for way in range(8 if square else 4):
        turned = low[rows] * (signs if way & 1 else 1) * (signs[:, None] if way & 2 else 1)
        turned = np.swapaxes(turned, 1, 2) if way & 4 else turned
        for start in range(0, len(rows), _BLOCK):
            block = np.arange(start, min(start + _BLOCK, len(rows)))
            # A slice as it stands counts as a near duplicate elsewhere, unless it is a negative.
            alike = turned[block].reshape(len(block), -1) @ pooled.T
            alike = np.abs(alike) if way else -alike
            best = alike.argmax(1)
            one, two = rows[block], pool[best]
            bound = alike[np.arange(len(block)), best] * inside[one] * inside[two]
            likely = (bound + outside[one] * outside[two] >= least) & ~found[block]
            for i, j in zip(block[likely], two[likely], strict=True):
                pair = turn(like.images[rows[i]], way).ravel(), like.images[j].ravel()
                exact = np.corrcoef(*pair)[0, 1]
                found[i] = (abs(exact) if way else -exact) >= least
    return found


def turn(image: np.ndarray, way: int) -> np.ndarray:
    """Return an image mirrored (bits 1 and 2: left to right, upside down) or transposed (bit 4)."""
    image = image[:, ::-1] if way & 1 else image
    image = image[::-1] if way & 2 else image
    return image.T if way & 4 else image
