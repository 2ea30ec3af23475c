"""Each slice's nearest others, copies and sums among them, and the tree of the strongest links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from sklearn.cluster import KMeans

from mri.subjects.identity import Halves, Patterns, in_threads, without_common_anatomy

COPY = 0.97
"""Correlation of patterns from which a slice counts as an altered copy of another."""

_NEIGHBOURS, _MOST, _BLOCK = 40, 640, 256  # Neighbours looked at, at first and at most.
_UNLIKE = 0.35  # Likeness that strangers' slices do not reach.
_AT_A_TIME = 4000  # Possible mixtures, whose patterns are held together.
_ALL_PAIRS = 20_000  # Slices up to which all pairs are compared.
_CELL, _AROUND = 100, 0.2  # Slices in a cell, and the share of all that they are compared with.


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distinct slices and their nearest others.

    `nodes` (m,) are the rows of slices that are altered copies of none, and `original` (n,) says
    for every row which node it is a copy of. The patterns of the nodes are `own`, those to search
    in `points`. `columns` (m, k) are the nearest other nodes, `similarity` their likeness. `exact`
    (m,) says which nodes were compared with all others, and `fresh` are those last looked at.
    """

    nodes: np.ndarray
    original: np.ndarray
    own: Patterns
    points: Halves
    columns: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray
    fresh: np.ndarray


def distinct(patterns: Patterns, seed: int) -> Neighbours:
    """Set altered copies aside, so that they shape neither the components nor the neighbours."""
    nodes = np.arange(len(patterns))
    original = nodes.copy()
    for last in (False, False, False, False, True):
        own, points = without_common_anatomy(patterns, nodes, seed)
        rows = np.arange(len(nodes))
        columns = nearest(points, min(_NEIGHBOURS, len(nodes) - 1))
        similarity = own.likeness(rows, columns)
        copies = altered_copies(columns, similarity)
        kept = np.flatnonzero(copies == rows)
        if last or len(kept) == len(nodes) or len(kept) < 3:
            break
        original = np.searchsorted(kept, copies[original])
        nodes = nodes[kept]
    exact = np.full(len(nodes), len(nodes) <= _ALL_PAIRS)
    return Neighbours(nodes, original, own, points, columns, similarity, exact, rows)


def looked_further(near: Neighbours, groups: np.ndarray, pure: np.ndarray) -> Neighbours | None:
    """Look for links that the groups (m,) may lack; None where there is nothing to look for.

    A slice sees its nearest stranger only if it has more neighbours than slices of its own. What
    cells tore off a person is a small group: its slices are compared with all others, but a tenth
    of all slices at most. What is not `pure` (m,) stands alone because it is a mixture.
    """
    sizes, k, n = np.bincount(groups), near.columns.shape[1], len(groups)
    most = min(_MOST, n - 1)
    if k <= sizes.max() <= 2 * _MOST and k < most:
        columns, fresh = nearest(near.points, min(2 * k, most)), np.arange(n)
        similarity, exact = near.own.likeness(fresh, columns), np.full(n, n <= _ALL_PAIRS)
        return replace(near, columns=columns, similarity=similarity, exact=exact, fresh=fresh)
    # Of any two parts of a person one has half of the slices at most.
    small = sizes[groups] <= np.quantile(sizes[groups], 0.8) / 2
    rows = np.flatnonzero(small & pure & ~near.exact)
    rows = rows[np.argsort(sizes[groups[rows]], kind="stable")]
    rows = np.sort(rows[: max(n // 10 - near.exact.sum(), 0)])
    if not len(rows):
        return None
    columns, similarity, exact = near.columns.copy(), near.similarity.copy(), near.exact.copy()
    columns[rows] = _blockwise(near.points, rows, np.arange(n), k)
    similarity[rows] = near.own.likeness(rows, columns[rows])
    exact[rows] = True
    return replace(near, columns=columns, similarity=similarity, exact=exact, fresh=rows)


def nearest(points: Halves, neighbours: int) -> np.ndarray:
    """Return the rows (n, neighbours) of each point's nearest others, in no order.

    Of more than 20,000 points only those in the cells around it are looked at, as in an inverted
    file (Sivic & Zisserman 2003, doi:10.1109/ICCV.2003.1238663), and around its mirror image.
    """
    whole, n = np.concatenate(points, axis=1), len(points[0])
    if n <= _ALL_PAIRS:
        return _blockwise(points, np.arange(n), np.arange(n), neighbours)
    cells = KMeans(n // _CELL, init="random", n_init=1, max_iter=5, random_state=0)
    of = cells.fit(whole[:: max(1, _CELL // 40)]).predict(whole)
    centres = cells.cluster_centers_
    even, odd = np.split(centres, [points[0].shape[1]], axis=1)
    alike = even @ even.T + np.abs(odd @ odd.T) - (centres**2).sum(1) / 2
    order = np.argsort(of, kind="stable")
    members = np.split(order, np.searchsorted(of[order], np.arange(1, n // _CELL)))
    sizes = np.array([len(rows) for rows in members])
    found = np.empty((n, neighbours), np.int64)

    def fill(cell: int) -> None:
        around = np.argsort(-alike[cell], kind="stable")
        enough = np.searchsorted(np.cumsum(sizes[around]), _AROUND * n + neighbours) + 1
        pool = np.sort(np.concatenate([members[i] for i in around[:enough]]))
        found[members[cell]] = _compared(points, members[cell], pool, neighbours)

    in_threads(fill, range(len(members)))
    return found


def _blockwise(points: Halves, rows: np.ndarray, pool: np.ndarray, neighbours: int) -> np.ndarray:
    found = np.empty((len(rows), neighbours), np.int64)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        found[block] = _compared(points, rows[block], pool, neighbours)

    in_threads(fill, range(0, len(rows), _BLOCK))
    return found


def _compared(points: Halves, rows: np.ndarray, pool: np.ndarray, neighbours: int) -> np.ndarray:
    """Return the nearest others (m, neighbours) of some rows among those of the pool."""
    even, odd = points if len(pool) == len(points[0]) else (half[pool] for half in points)
    like = points[1][rows] @ odd.T
    np.abs(like, out=like)
    like += points[0][rows] @ even.T
    like[rows[:, None] == pool] = -np.inf
    return pool[np.argpartition(like, -neighbours, axis=1)[:, -neighbours:]]


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


def mixtures(near: Neighbours, plain: Callable[[np.ndarray], Patterns]) -> np.ndarray:
    """Find fresh slices that are sums of two unlike ones, as interpolating oversamplers make them.

    Such a slice is explained almost wholly by two others that do not resemble each other, and what
    the first leaves of it by the second; of a real slice a stranger explains nothing. `plain` gives
    the patterns of nodes as they stand in the picture, since sums were made before any pose.
    Returns (3, m): the mixtures, their larger parts and the smaller.
    """
    columns, similarity = near.columns[near.fresh], near.similarity[near.fresh]
    ranked = np.argsort(-similarity, axis=1)[:, :16]
    at, place = np.nonzero(np.take_along_axis(similarity, ranked, 1) > _UNLIKE)
    rows, one, other = near.fresh[at], columns[at, ranked[at, 0]], columns[at, ranked[at, place]]
    unlike = near.own.pairs(one, other) < _UNLIKE
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
    best = best[score[best] > 0.94]
    return np.stack([rows[best], one[best], other[best]])


@dataclass(frozen=True, eq=False)
class Tree:
    """Spanning tree (or forest) of the strongest links, by ascending likeness, each (m,)."""

    rows: np.ndarray
    columns: np.ndarray
    similarity: np.ndarray

    def take(self, links: np.ndarray) -> Tree:
        """Return some of the links."""
        return Tree(self.rows[links], self.columns[links], self.similarity[links])

    def groups(self, n: int) -> np.ndarray:
        """Return the number of the connected part of each of `n` slices."""
        graph = csr_matrix((np.ones(len(self.rows)), (self.rows, self.columns)), (n, n))
        return connected_components(graph, directed=False)[1]


def spanning_tree(columns: np.ndarray, similarity: np.ndarray, kept: np.ndarray) -> Tree:
    """Join nearest others to a tree of the strongest links, without the rows not `kept`."""
    n = len(columns)
    rows, columns = np.repeat(np.arange(n), columns.shape[1]), columns.ravel()
    use = kept[rows] & kept[columns]
    # Distances must be positive: SciPy's sparse graphs take a zero for a missing edge.
    graph = csr_matrix((2.0 - similarity.ravel()[use], (rows[use], columns[use])), (n, n))
    tree = minimum_spanning_tree(graph).tocoo()
    order = np.argsort(-tree.data, kind="stable")
    return Tree(tree.row[order], tree.col[order], 2.0 - tree.data[order])
