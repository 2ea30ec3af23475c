"""Whether the groups cover the heights that others cover, or a head is torn in two."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

from mri.subjects.heights import UNIT, heights
from mri.subjects.identity import Patterns
from mri.subjects.neighbours import Tree

_SHARE = 0.4  # Of the usual range: heights are told to some two slices of 32, half a head lacks 16.
_TORN, _APART = 0.05, 0.3  # Cost of a cut: torn in all had up to 0.03, whole heads from 0.06.
_ENDS, _LINK, _LEAD = 6, 0.33, 0.08
_SEARCHED = 2000  # Larger groups are made of copies, or of nearly all slices.
_SMALL, _FEW = 400, 6
_FAR = 7.0  # In slices along a head.


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which groups cover only part of the heights, and the ends of each, all of shape (g,)."""

    partial: np.ndarray
    low: np.ndarray
    high: np.ndarray


def coverage(height: np.ndarray, groups: np.ndarray) -> Coverage:
    """Compare the range of heights of each group with the range that most reach."""
    count = int(groups.max()) + 1
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, groups, height)
    np.maximum.at(high, groups, height)
    bottom, top = np.quantile(low, 0.2), np.quantile(high, 0.8)
    slack = max(_SHARE * (top - bottom), 2.0)
    partial = (low > bottom + slack) | (high < top - slack)
    return Coverage(partial, low, high)


def by_size(groups: np.ndarray) -> np.ndarray:
    """Return which groups have less than half as many slices as is usual, where heights fail."""
    sizes = np.bincount(groups)
    return sizes < 0.5 * np.quantile(sizes, 0.8)


def fitting_ends(
    own: Patterns, height: np.ndarray, groups: np.ndarray, found: Coverage
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """For each group that covers only part of a head, look for the one that continues it.

    Returns pairs whose ends resemble each other more than those of strangers do, and more than any
    other candidate, which are two parts of one head; and the best candidate of each other one.
    """
    order = np.lexsort([height, groups])
    starts = np.searchsorted(groups[order], np.arange(len(found.low) + 1))
    members = [order[a:b] for a, b in pairwise(starts)]
    middle = (found.low + found.high) / 2
    best: dict[int, tuple[int, float, float]] = {}
    for group in np.flatnonzero(found.partial).tolist():
        overlap = np.minimum(found.high, found.high[group]) - np.maximum(
            found.low, found.low[group]
        )
        span = np.minimum(found.high - found.low, found.high[group] - found.low[group])
        others = np.flatnonzero(overlap <= np.maximum(3.0, 0.3 * span))
        others = others[others != group]
        if not len(others):
            continue
        above = middle[others] > middle[group]
        upper, lower = members[group][-_ENDS:], members[group][:_ENDS]
        scores = np.empty(len(others))
        for side, own_end in ((True, upper), (False, lower)):
            part = np.flatnonzero(above == side)
            for i in part:
                rows = members[others[i]]
                rows = rows[:_ENDS] if side else rows[-_ENDS:]
                scores[i] = own.between(own_end, rows).max()
        ranked = np.argsort(-scores, kind="stable")
        second = scores[ranked[1]] if len(ranked) > 1 else 0.0
        best[group] = int(others[ranked[0]]), float(scores[ranked[0]]), float(second)
    joined, likely = [], []
    for group, (other, score, second) in best.items():
        returned = best[other][0] == group if other in best else True
        if score > _LINK and score - second > _LEAD and returned:
            joined.append((group, other))
        else:
            likely.append((group, other))
    return joined, likely


def two_levels(low: np.ndarray, position: np.ndarray, groups: np.ndarray) -> np.ndarray | None:
    """Tell whether the groups fall into two sets that share no heights, as if all were torn.

    Every slice names the slices of other groups that look most like it in low detail, which are
    those of its own height. Where all people lack the same slices, lower parts name lower ones and
    upper parts upper ones: the normalised cut between the two sets (Shi & Malik 2000,
    doi:10.1109/34.868688) is nearly free. Large ventricles name large ones too, so the heights of
    the two sets are then measured, each set with a height of its own.

    From low detail (n, d) and places along the groups (n,). Returns the set of each of the groups
    looked at (at most 120), or None where there are not two.
    """
    rng = np.random.default_rng(0)
    sizes = np.bincount(groups)
    chosen = rng.permutation(np.flatnonzero(sizes >= 3))[:120]
    if len(chosen) < 3:
        return None
    place = np.full(len(sizes), -1)
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[groups] >= 0)
    of, x = place[groups[rows]], low[rows]
    ties = np.zeros((len(chosen), len(chosen)))
    for start in range(0, len(rows), 512):
        like = x[start : start + 512] @ x.T
        like[of[start : start + 512, None] == of] = -np.inf
        best = np.argpartition(like, len(rows) - 5, axis=1)[:, -5:]
        np.add.at(ties, (np.repeat(of[start : start + 512], 5), of[best].ravel()), 1)
    ties /= np.maximum(ties.sum(1, keepdims=True), 1)
    ties = ties + ties.T
    scale = 1 / np.sqrt(ties.sum(1))
    values, vectors = np.linalg.eigh(np.eye(len(ties)) - scale[:, None] * ties * scale)
    cut = vectors[:, 1] * scale
    # Without any tie both leading vectors are free to mix, and signs tell nothing.
    side = cut > (cut.max() + cut.min()) / 2
    balance = min(side.mean(), 1 - side.mean())
    if values[1] < _TORN and balance > 0.25 and len(chosen) <= 30:
        return side
    if values[1] > _APART:
        return None
    height = heights(x, position[rows], of, side[of].astype(int))[0]
    found = coverage(height, of)
    ends = [(np.median(found.low[s]), np.median(found.high[s])) for s in (side, ~side)]
    shared = min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])
    return side if shared < 0.25 * min(high - low for low, high in ends) else None


def strangers_within(
    own: Patterns, height: np.ndarray, tree: Tree, groups: np.ndarray, threshold: float
) -> np.ndarray | None:
    """Find links that join two heads: both sides cover the same heights and look different there.

    Returns the places in `tree` of the links to cut, None where a group is too large for one head.
    """
    cuts: list[int] = []
    usual = coverage(height, groups)
    # Two people share most of the heights; a shorter side may be one end of a head, misjudged.
    reach = 0.5 * float(np.median(usual.high - usual.low))
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 2))
    of_link = groups[tree.rows]
    links = np.argsort(of_link, kind="stable")
    link_starts = np.searchsorted(of_link[links], np.arange(groups.max() + 2))
    for group in np.flatnonzero(np.diff(starts) >= 6):
        rows = order[starts[group] : starts[group + 1]]
        if len(rows) > _SEARCHED:
            continue
        near = np.abs(height[rows][:, None] - height[rows]) < 1.5
        alike = own.between(rows, rows)
        odd = (near & (alike < 0.5 * threshold)).any(1)
        if odd.mean() > 0.25 and len(rows) > _SMALL:
            return None
        if odd.mean() > 0.25:
            inside = links[link_starts[group] : link_starts[group + 1]]
            cuts += _cuts(
                rows, inside, tree, near, alike, height=height, threshold=threshold, reach=reach
            )
    return np.array(sorted(cuts), np.int64)


def _cuts(
    rows: np.ndarray,
    inside: np.ndarray,
    tree: Tree,
    near: np.ndarray,
    alike: np.ndarray,
    *,
    height: np.ndarray,
    threshold: float,
    reach: float,
) -> list[int]:
    """Cut one group's links, the weakest first, where the sides cannot be one head."""
    place = {int(row): i for i, row in enumerate(rows)}
    ends = np.array([[place[int(tree.rows[e])], place[int(tree.columns[e])]] for e in inside])
    kept = np.ones(len(inside), bool)
    n = len(rows)
    length = np.sqrt(np.clip(1 - tree.similarity[inside], 1e-4, None)) / UNIT
    steps = dijkstra(csr_matrix((length, (ends[:, 0], ends[:, 1])), (n, n)), directed=False)
    # Heights are told to some two slices: what is that near along the chain may look different.
    near = near & (steps > _FAR)
    if (near & (alike < 0.5 * threshold)).any(1).mean() < 0.25:
        return []
    for i in np.argsort(tree.similarity[inside], kind="stable"):
        left = kept.copy()
        left[i] = False
        graph = csr_matrix((np.ones(left.sum()), (ends[left, 0], ends[left, 1])), (n, n))
        part = connected_components(graph, directed=False)[1]
        one, other = (np.flatnonzero(part == part[end]) for end in ends[i])
        small, large = sorted((one, other), key=len)
        if len(small) < _FEW:
            continue
        if np.ptp(height[rows[small]]) < reach:
            continue
        beside = near[np.ix_(small, large)]
        covered = beside.any(1)
        likest = np.where(beside, alike[np.ix_(small, large)], -1).max(1)
        if covered.mean() > 0.6 and np.median(likest[covered]) < 0.6 * threshold:
            kept[i] = False
    return [int(e) for e in inside[~kept]]
