"""Which slices are alike: one pass over all pairs, in coarse detail, then exactly.

A slice is described by the lowest frequencies of its cosine transform, which keep lengths and
angles. All pairs are compared there once; the few best candidates of each are then correlated
pixel by pixel. Mirroring and turning a slice only changes signs and places of frequencies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np

from mri.subjects.identity import in_threads

_DETAIL = 48
_CANDIDATES = 3, 8  # By correlation, and by distance, where strangers are nearly equally far.
_BLOCK, _FEW = 256, 2  # Of pixels only as many slices at once as the cache holds.
_TURNED_DETAIL = 24

Mask = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[str, float], None]
"""Is told what is being done, and which share of it is done."""


class Likeness:
    """Slices prepared for comparison.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, h, w)

    Attributes
    ----------
    coarse : ndarray of float32, shape (n, k)
        Frequencies without the mean, of length 1 as whole slices are.
    means, norms : ndarray of float64, shape (n,)
        Mean gray value, and length of the pixels without it.
    """

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        n, h, w = images.shape
        self.detail = min(_DETAIL, h), min(_DETAIL, w)
        across, down = (
            _cosines(side, keep) for side, keep in zip((h, w), self.detail, strict=True)
        )
        self.coarse = np.empty((n, self.detail[0] * self.detail[1]), np.float32)
        self.means, self.norms = np.empty(n), np.empty(n)

        def fill(start: int) -> None:
            block = slice(start, start + _BLOCK)
            pixels = images[block].astype(np.float32)
            self.means[block] = pixels.mean((1, 2), dtype=np.float64)
            pixels -= self.means[block].astype(np.float32)[:, None, None]
            self.norms[block] = np.sqrt(np.einsum("nhw,nhw->n", pixels, pixels, dtype=np.float64))
            found = across @ pixels @ down.T
            self.coarse[block] = found.reshape(len(pixels), -1)

        in_threads(fill, range(0, n, _BLOCK))
        # A slice of one gray value is like none.
        self.coarse[self.norms < 1e-3] = 0
        self.coarse /= np.where(self.norms < 1e-3, 1, self.norms).astype(np.float32)[:, None]

    def __len__(self) -> int:
        """Return the number of slices."""
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
        return np.where(scale > 1e-6, found / np.where(scale > 1e-6, scale, 1), 0).clip(-1, 1)


class View(NamedTuple):
    """A question about slices: for each of `rows`, which of those that `allowed` lets is nearest.

    `allowed` maps a block of rows to bool (len(block), n). Near is by correlation, or by distance
    of the pixels where `distance`.
    """

    rows: np.ndarray
    allowed: Mask
    distance: bool = False


def nearest(
    like: Likeness, views: dict[str, View], progress: Progress | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Answer several questions in one pass over all pairs.

    Parameters
    ----------
    like : Likeness
    views : dict
        Name to `View`.
    progress : callable, optional

    Returns
    -------
    dict
        Name to the nearest slice of each of its rows, int64 (m,), and their correlation, float64
        (m,): NaN where no slice is allowed.
    """
    asked = {name: np.full(len(like), -1) for name in views}
    for name, view in views.items():
        asked[name][view.rows] = np.arange(len(view.rows))
    found = {
        name: (np.zeros(len(v.rows), np.int64), np.empty(len(v.rows))) for name, v in views.items()
    }
    needed = np.flatnonzero(np.any([at >= 0 for at in asked.values()], axis=0))
    squares = like.norms**2 + like.images[0].size * like.means**2
    done = count(1)

    def fill(start: int) -> None:
        block = needed[start : start + _BLOCK]
        alike = like.coarse[block] @ like.coarse.T
        for name, view in views.items():
            here = asked[name][block] >= 0
            if here.any():
                rows, score = block[here], alike[here]
                if view.distance:
                    # Half the squared distance of the pixels, turned round, but for the row's own.
                    score *= (like.norms[rows][:, None] * like.norms).astype(np.float32)
                    score = score + like.images[0].size * np.outer(like.means[rows], like.means)
                    score -= squares / 2
                score[~view.allowed(rows)] = -np.inf
                best, by = _best(like, rows, score, squares if view.distance else None)
                at = asked[name][rows]
                found[name][0][at], found[name][1][at] = best, by
        if progress:
            progress("comparing all slices", min(1, next(done) * _BLOCK / len(needed)))

    in_threads(fill, range(0, len(needed), _BLOCK))
    return found


def _best(
    like: Likeness, rows: np.ndarray, score: np.ndarray, squares: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact best among the best candidates by a coarse score (m, n), and correlation."""
    m, n = score.shape
    order = np.arange(m)
    wanted = min(_CANDIDATES[squares is not None], n)
    picked, possible = np.empty((m, wanted), np.int64), np.empty((m, wanted), bool)
    for k in range(wanted):
        picked[:, k] = score.argmax(1)
        possible[:, k] = np.isfinite(score[order, picked[:, k]])
        score[order, picked[:, k]] = -np.inf
    by = exact = like.exact(rows, picked)
    if squares is not None:
        exact = by * like.norms[rows][:, None] * like.norms[picked]
        exact = exact + like.images[0].size * like.means[rows][:, None] * like.means[picked]
        exact = exact - squares[picked] / 2
    # Of equals the first, whatever order the coarse score has them in.
    exact = np.where(possible, exact, -np.inf)
    best = exact.max(1, keepdims=True)
    leading = possible & (exact >= best - 1e-7 * np.abs(best).clip(1))
    winner = np.where(leading, picked, n).min(1) % n
    at = (leading & (picked == winner[:, None])).argmax(1)
    return winner, np.where(possible.any(1), by[order, at], np.nan)


def turned_copies(
    like: Likeness, rows: np.ndarray, pool: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find slices that are mirrored, turned or inverted copies of others.

    Parameters
    ----------
    like : Likeness
    rows, pool : ndarray of int
        Slices asked about, and those they may come from.
    least : float
        Pixel correlation from which two are copies.

    Returns
    -------
    found : ndarray of int64, shape (m,)
        For each row the slice of the pool that it is a copy of, -1 where it is none.
    how : ndarray of int64, shape (m,)
        In which way, see `turn`, with 8 for a negative; 0 where it is none.
    """
    found, how = np.full(len(rows), -1), np.zeros(len(rows), np.int64)
    side = min(_TURNED_DETAIL, *like.detail)
    square = like.images.shape[1] == like.images.shape[2]
    low = like.coarse.reshape(-1, *like.detail)[:, :side, :side]
    inside = np.sqrt(np.einsum("nij,nij->n", low, low))
    # By their angle a copy is nearest; the energy outside bounds what that can add.
    low = low / np.where(inside > 0, inside, 1)[:, None, None]
    outside = np.sqrt((1 - inside**2).clip(0))
    pooled = np.ascontiguousarray(low[pool].reshape(len(pool), -1))
    for way in range(8 if square else 4):
        turned = _turn_frequencies(low[rows], way).reshape(len(rows), -1)
        for start in range(0, len(rows), _BLOCK):
            block = np.arange(start, min(start + _BLOCK, len(rows)))
            # A slice as it stands counts as a near duplicate elsewhere, unless it is a negative.
            alike = turned[block] @ pooled.T
            alike = np.abs(alike, out=alike) if way else np.negative(alike, out=alike)
            best = alike.argmax(1)
            one, two = rows[block], pool[best]
            bound = alike[np.arange(len(block)), best] * inside[one] * inside[two]
            likely = (bound + outside[one] * outside[two] >= least) & (how[block] == 0)
            for i, j in zip(block[likely], two[likely], strict=True):
                exact = _correlation(turn(like.images[rows[i]], way), like.images[j])
                if -exact >= least or (way and exact >= least):
                    found[i], how[i] = j, way + 8 * (exact < 0)
    return found, how


def turn(image: np.ndarray, way: int) -> np.ndarray:
    """Return an image mirrored (bits 1 and 2: left to right, upside down) or transposed (bit 4)."""
    image = image[:, ::-1] if way & 1 else image
    image = image[::-1] if way & 2 else image
    return image.T if way & 4 else image


def _turn_frequencies(low: np.ndarray, way: int) -> np.ndarray:
    signs = (-1.0) ** np.arange(low.shape[1], dtype=np.float32)
    low = low * signs if way & 1 else low
    low = low * signs[:, None] if way & 2 else low
    return np.swapaxes(low, 1, 2) if way & 4 else low


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    a, b = (of.astype(np.float64) - of.mean() for of in (one, two))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _cosines(n: int, keep: int) -> np.ndarray:
    """Return the first rows of the orthonormal cosine transform (DCT-II), float32 (keep, n)."""
    angles = np.pi / n * np.outer(np.arange(keep), np.arange(n) + 0.5)
    found = np.cos(angles) * np.sqrt(2 / n)
    found[0] /= np.sqrt(2)
    return found.astype(np.float32)


def columns(pool: np.ndarray, n: int) -> Mask:
    """Return a mask that allows a fixed set of slices, but not the row itself."""
    allowed = np.zeros(n, bool)
    allowed[pool] = True
    return partial(_columns, allowed)


def _columns(allowed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mask = np.repeat(allowed[None], len(rows), 0)
    mask[np.arange(len(rows)), rows] = False
    return mask


def others(numbers: np.ndarray, within: np.ndarray | None = None) -> Mask:
    """Return a mask that allows slices of another number than the row, of `within` (n,) only."""

    def mask(rows: np.ndarray) -> np.ndarray:
        found = numbers[rows][:, None] != numbers
        return found if within is None else found & within

    return mask
