"""Whether the groups cover the heights that others cover, or a head is torn in two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from mri.subjects.heights import heights, lengths
from mri.subjects.identity import Patterns
from mri.subjects.neighbours import Tree

_SHARE = 0.4  # Of the usual range: heights are told to some two slices of 32, half a head lacks 16.
_TORN, _APART = 0.05, 0.3  # Cost of a cut: torn in all had up to 0.03, whole heads from 0.06.
_FREE = 0.01  # Cost of a cut that no heights need to confirm, however many groups there are.
_LOOKED, _TIES = 120, 5  # Groups, and links of each slice, from which that cost is estimated.
_ENDS, _LINK, _LEAD = 6, 0.33, 0.08  # Slices of an end; likeness of fitting ends, and its lead.
_SEARCHED = 2000  # Larger groups are made of copies, or of nearly all slices.
_SMALL, _FEW = 400, 6  # Slices of a group that is surely searched, and of a side that is cut off.
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
    return Coverage((low > bottom + slack) | (high < top - slack), low, high)


def fitting_ends(
    own: Patterns, height: np.ndarray, groups: np.ndarray, found: Coverage
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """For each group that covers only part of a head, look for the one that continues it.

    Returns pairs whose ends resemble each other more than those of strangers do, and more than any
    other candidate, which are two parts of one head; and the best candidate of each other one.
    """
    members = _members(groups, np.lexsort([height, groups]))
    middle, span = (found.low + found.high) / 2, found.high - found.low
    best: dict[int, tuple[int, float, float]] = {}
    for group in np.flatnonzero(found.partial).tolist():
        overlap = np.minimum(found.high, found.high[group])
        overlap = overlap - np.maximum(found.low, found.low[group])
        apart = overlap <= np.maximum(3.0, 0.3 * np.minimum(span, span[group]))
        apart[group] = False
        scores = []
        for other in np.flatnonzero(apart).tolist():
            lower, upper = sorted((group, other), key=middle.__getitem__)
            ends = own.between(members[lower][-_ENDS:], members[upper][:_ENDS])
            scores.append((float(ends.max()), other))
        scores.sort(reverse=True)
        if scores:
            score, other = scores[0]
            best[group] = other, score, scores[1][0] if len(scores) > 1 else 0.0
    joined: list[tuple[int, int]] = []
    likely: list[tuple[int, int]] = []
    for group, (other, score, second) in best.items():
        returned = other not in best or best[other][0] == group
        clear = score > _LINK and score - second > _LEAD and returned
        (joined if clear else likely).append((group, other))
    return joined, likely


def _members(groups: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each group, from an order of all rows by group."""
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


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
    sizes = np.bincount(groups)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(sizes >= 3))[:_LOOKED]
    if len(chosen) < 3:
        return None
    place = np.full(len(sizes), -1)
    place[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(place[groups] >= 0)
    of, x = place[groups[rows]], low[rows]
    ties = np.zeros((len(chosen), len(chosen)))
    for start in range(0, len(rows), 512):
        mine = of[start : start + 512]
        like = x[start : start + 512] @ x.T
        like[mine[:, None] == of] = -np.inf
        best = np.argpartition(like, -_TIES, axis=1)[:, -_TIES:]
        np.add.at(ties, (np.repeat(mine, _TIES), of[best].ravel()), 1)
    ties /= np.maximum(ties.sum(1, keepdims=True), 1)
    ties = ties + ties.T
    scale = 1 / np.sqrt(ties.sum(1))
    values, vectors = np.linalg.eigh(np.eye(len(ties)) - scale[:, None] * ties * scale)
    cut = vectors[:, 1] * scale
    # Without any tie both leading vectors are free to mix, and signs tell nothing.
    side = cut > (cut.max() + cut.min()) / 2
    balance = min(side.mean(), 1 - side.mean())
    if values[1] < (_TORN if len(chosen) <= 30 else _FREE) and balance > 0.25:
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
    usual = coverage(height, groups)
    # Two people share most of the heights; a shorter side may be one end of a head, misjudged.
    reach = 0.5 * float(np.median(usual.high - usual.low))
    cuts = [np.empty(0, np.int64)]
    for rows in _members(groups, np.argsort(groups, kind="stable")):
        if not _FEW <= len(rows) <= _SEARCHED:
            continue
        near = np.abs(height[rows][:, None] - height[rows]) < 1.5
        alike = own.between(rows, rows) / threshold
        if _odd(near, alike) <= 0.25:
            continue
        if len(rows) > _SMALL:
            return None
        inside = np.flatnonzero(groups[tree.rows] == groups[rows[0]])
        one, other = (np.searchsorted(rows, of[inside]) for of in (tree.rows, tree.columns))
        links = Tree(one, other, tree.similarity[inside])
        cuts.append(inside[_cut(links, near, alike, height[rows], reach)])
    return np.sort(np.concatenate(cuts))


def _odd(near: np.ndarray, alike: np.ndarray) -> float:
    """Return the share of slices that look unlike another one of their height."""
    return float((near & (alike < 0.5)).any(1).mean())


def _cut(
    links: Tree, near: np.ndarray, alike: np.ndarray, height: np.ndarray, reach: float
) -> np.ndarray:
    """Cut one group's links, the weakest first, where the sides cannot be one head."""
    n, cut = len(height), np.zeros(len(links.rows), bool)
    graph = csr_matrix((lengths(links.similarity), (links.rows, links.columns)), (n, n))
    # Heights are told to some two slices: what is that near along the chain may look different.
    near = near & (dijkstra(graph, directed=False) > _FAR)
    if _odd(near, alike) < 0.25:
        return cut
    for i in range(len(cut)):
        cut[i] = True
        part = links.take(~cut).groups(n)
        sides = (np.flatnonzero(part == part[end[i]]) for end in (links.rows, links.columns))
        small, large = sorted(sides, key=len)
        beside = near[np.ix_(small, large)]
        covered = beside.any(1)
        likest = np.where(beside, alike[np.ix_(small, large)], -1).max(1)
        cut[i] = (
            len(small) >= _FEW
            and np.ptp(height[small]) >= reach
            and covered.mean() > 0.6
            and np.median(likest[covered]) < 0.6
        )
    return cut
