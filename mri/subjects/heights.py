"""Where along the head a slice lies, told from what all heads have in common."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from threadpoolctl import threadpool_limits

LOW = 128
"""Numbers that low detail has."""

_SIDE, _PARTS, _BETWEEN = 16, 24, 0.2
UNIT = float(np.sqrt(1 - 0.88))
"""Length of a link between next neighbours, which correlate by some 0.88."""


def low_detail(canonical: np.ndarray) -> np.ndarray:
    """Return what slices of one height share: 16 × 16 pixels, made symmetric, (n, 128).

    Of canonical slices (n, 64, 64). Of mean 0 and length 1 each: blind to brightness, contrast and
    mirroring.
    """
    small = np.stack([cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
                      for image in canonical])  # fmt: skip
    low = (small + small[:, :, ::-1])[:, :, : _SIDE // 2].reshape(len(small), -1)
    low -= low.mean(1, keepdims=True)
    return low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)


def along_the_tree(
    rows: np.ndarray, columns: np.ndarray, similarity: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Return each slice's distance from one end of its group's spanning tree, in slices.

    A link within a group is the longer the weaker it is, 1 for next neighbours.
    """
    n = len(groups)
    length = np.sqrt(np.clip(1 - similarity, 1e-4, None)) / UNIT
    ends = np.unique(groups, return_index=True)[1]
    for _ in range(2):
        # One more node, tied to an end of every tree, measures all trees in one run.
        graph = csr_matrix(
            (
                np.concatenate([length, np.ones(len(ends))]),
                (np.concatenate([rows, ends]), np.concatenate([columns, np.full(len(ends), n)])),
            ),
            shape=(n + 1, n + 1),
        )
        distance = dijkstra(graph, directed=False, indices=n)[:n] - 1
        order = np.lexsort([distance, groups])
        last = np.flatnonzero(np.diff(groups[order], append=groups.max() + 1))
        ends = order[last]
    return distance


def heights(
    low: np.ndarray, position: np.ndarray, groups: np.ndarray, sets: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Estimate the height of every slice in slices, by a linear map learnt from within the groups.

    Each group says how far apart its own slices are, not where they begin nor which end is up; the
    map from low detail to height is the one that fits all of them.

    Parameters
    ----------
    low : ndarray of float32, shape (n, d)
    position : ndarray of float64, shape (n,)
        Along the group, from either end.
    groups : ndarray of int, shape (n,)
        Numbered from 0.
    sets : ndarray of int, shape (n,), optional
        Sets of groups that may stand at different heights; by default all at one.

    Returns
    -------
    height : ndarray of float64, shape (n,)
        From an arbitrary zero, in an arbitrary direction.
    trust : float
        Correlation of heights and positions within groups, by a map learnt from other groups.
    """
    sizes = np.bincount(groups)
    x = low - low.mean(0)
    parts = int(min(_PARTS, max(2, len(x) // 8), 2 + len(sizes), x.shape[1]))
    with threadpool_limits(1):
        directions = np.linalg.eigh(x.T @ x)[1][:, ::-1]
    x = x @ directions[:, :parts]
    means = np.stack([np.bincount(groups, column) for column in x.T], 1) / sizes[:, None]
    inner = x - means[groups]
    # What tells heads apart is no height: kept small, or four heads seem to stand in four places.
    between = means[groups] - _mean_of(x, np.zeros(len(x), int) if sets is None else sets)
    place = position - (np.bincount(groups, position) / sizes)[groups]
    many = len(sizes) >= 6
    halves = [groups % 2 == part for part in (0, 1)] if many else [np.ones(len(x), bool)] * 2
    trust = []
    for learn, test in (halves, halves[::-1]):
        weights = _map(inner[learn], between[learn], x[learn], place[learn], groups[learn])
        guess = inner[test] @ weights
        signs = _signs(guess, place[test], groups[test])
        trust.append(_cosine(guess, signs[groups[test]] * place[test]))
    weights = _map(inner, between, x, place, groups)
    return x @ weights, min(trust)


def _mean_of(x: np.ndarray, sets: np.ndarray) -> np.ndarray:
    sizes = np.maximum(np.bincount(sets), 1)[:, None]
    return (np.stack([np.bincount(sets, column) for column in x.T], 1) / sizes)[sets]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _signs(guess: np.ndarray, place: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.where(np.bincount(groups, guess * place) < 0, -1.0, 1.0)


def _map(
    inner: np.ndarray, between: np.ndarray, whole: np.ndarray, place: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Least squares of place on low detail, where each group's direction is to be found too.

    Where all heads are torn at one height, the lower parts do not say which way the upper ones
    run: of the maps that fit, the one with the widest range of heights does not fold them.
    """
    gram = inner.T @ inner
    gram += np.eye(len(gram)) * (1e-3 * np.trace(gram) / len(gram) + 1e-12)
    gram += _BETWEEN * between.T @ between
    one, two = inner[:, 0], inner[:, 1]
    found = []
    for guess in (one, two, one + two, one - two):
        for _ in range(8):
            target = _signs(guess, place, groups)[groups] * place
            weights = np.linalg.solve(gram, inner.T @ target)
            guess = inner @ weights
        # Least squares shrinks; stretched so that a step of one slice is one.
        weights *= np.linalg.norm(target) / max(float(np.linalg.norm(guess)), 1e-12)
        found.append((_cosine(guess, target), float((whole @ weights).std()), weights))
    best = max(fit for fit, _, _ in found)
    return max((f for f in found if f[0] > best - 0.02), key=lambda f: f[1])[2]
