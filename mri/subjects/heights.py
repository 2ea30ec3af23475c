"""Where along the head a slice lies, told from what all heads have in common."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from threadpoolctl import threadpool_limits

from mri.subjects.neighbours import Tree
from mri.subjects.pose import SIDE, unit

LOW = 128
"""Numbers that low detail has."""

_SIDE, _PARTS, _BETWEEN = 16, 24, 0.2
_UNIT = np.sqrt(1 - 0.88)  # Next neighbours correlate by some 0.88.


def low_detail(canonical: np.ndarray) -> np.ndarray:
    """Return what slices of one height share: 16 × 16 pixels, made symmetric, (n, 128).

    Of canonical slices (n, 64, 64). Of mean 0 and length 1 each: blind to brightness, contrast and
    mirroring.
    """
    pool = np.repeat(np.eye(_SIDE, dtype=np.float32), SIDE // _SIDE, axis=0)
    low = pool.T @ (canonical @ (pool + pool[::-1])[:, : _SIDE // 2])
    return unit(low)


def lengths(similarity: np.ndarray) -> np.ndarray:
    """Return how long links are, in slices: 1 between next neighbours, more where weaker."""
    return np.sqrt(np.clip(1 - similarity, 1e-4, None)) / _UNIT


def along_the_tree(tree: Tree, groups: np.ndarray) -> np.ndarray:
    """Return each slice's distance from one end of its group's spanning tree, in slices."""
    n = len(groups)
    ends = np.unique(groups, return_index=True)[1]
    for _ in range(2):
        # One more node, tied to an end of every tree, measures all trees in one run.
        links = np.r_[tree.rows, ends], np.r_[tree.columns, np.full(len(ends), n)]
        length = np.r_[lengths(tree.similarity), np.ones(len(ends))]
        graph = csr_matrix((length, links), (n + 1, n + 1))
        distance = dijkstra(graph, directed=False, indices=n)[:n] - 1
        order = np.lexsort([distance, groups])
        ends = order[np.flatnonzero(np.diff(groups[order], append=groups.max() + 1))]
    return distance


def heights(
    low: np.ndarray, position: np.ndarray, groups: np.ndarray, sets: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Estimate the height of every slice in slices, by a linear map learnt from within the groups.

    Each group says how far apart its own slices are, not where they begin nor which end is up; the
    map from low detail to height is the one that fits all of them.

    Of low detail (n, d), places along the group from either end (n,), and groups (n,) numbered from
    0. `sets` (n,) may stand at different heights. Returns the heights (n,), from an arbitrary zero
    in an arbitrary direction, and how far to trust them: the correlation of heights and positions
    within groups, by a map learnt from other groups.
    """
    count = groups.max() + 1
    x = low - low.mean(0)
    parts = int(min(_PARTS, max(2, len(x) // 8), 2 + count, x.shape[1]))
    with threadpool_limits(1):
        directions = np.linalg.eigh(x.T @ x)[1][:, ::-1]
    x = x @ directions[:, :parts]
    means = _means(x, groups)
    # What tells heads apart is no height: kept small, or four heads seem to stand in four places.
    between = means - _means(x, np.zeros(len(x), int) if sets is None else sets)
    inner, place = x - means, position - _means(position[:, None], groups)[:, 0]
    known, everything = (inner, between, x, place, groups), np.ones(len(x), bool)
    halves = (groups % 2 == 0, groups % 2 == 1) if count >= 6 else (everything, everything)
    trust = []
    for learn, test in (halves, halves[::-1]):
        guess = inner[test] @ _map(*(of[learn] for of in known))
        trust.append(_cosine(guess, _directed(guess, place[test], groups[test])))
    return x @ _map(*known), min(trust)


def _means(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    sums = np.stack([np.bincount(groups, column) for column in x.T], 1)
    return (sums / np.maximum(np.bincount(groups), 1)[:, None])[groups]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _directed(guess: np.ndarray, place: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the places with the direction of each group that fits the guess."""
    return np.where(np.bincount(groups, guess * place) < 0, -1.0, 1.0)[groups] * place


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
            target = _directed(guess, place, groups)
            weights = np.linalg.solve(gram, inner.T @ target)
            guess = inner @ weights
        # Least squares shrinks; stretched so that a step of one slice is one.
        weights *= np.linalg.norm(target) / max(float(np.linalg.norm(guess)), 1e-12)
        found.append((_cosine(guess, target), float((whole @ weights).std()), weights))
    best = max(fit for fit, _, _ in found)
    return max((f for f in found if f[0] > best - 0.02), key=lambda f: f[1])[2]
