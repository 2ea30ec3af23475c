"""Each slice's nearest others, copies and sums among them, and the tree of the strongest links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from mri.subjects.identity import Halves, Patterns, in_threads, without_common_anatomy

COPY = 0.97
"""Correlation of patterns from which a slice counts as an altered copy of another."""

_NEIGHBOURS, _MOST, _BLOCK = 40, 640, 256  # Neighbours looked at, at first and at most.
_UNLIKE = 0.35  # Likeness that strangers' slices do not reach.
_AT_A_TIME = 4000  # Possible mixtures, whose patterns are held together.


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distinct slices and their nearest others.

    `nodes` (m,) are the rows of slices that are altered copies of none, and `original` (n,) says
    for every row which node it is a copy of. The patterns of the nodes are `own`, those to search
    in `points`. `columns` (m, k) are the nearest other nodes, `similarity` their likeness.
    """

    nodes: np.ndarray
    original: np.ndarray
    own: Patterns
    points: Halves
    columns: np.ndarray
    similarity: np.ndarray


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
    return Neighbours(nodes, original, own, points, columns, similarity)


def looked_further(near: Neighbours, groups: np.ndarray) -> Neighbours | None:
    """Look at more neighbours where groups (m,) have more slices than that, else return None.

    A slice sees its nearest stranger only if it has more neighbours than slices of its own.
    """
    largest, k, most = np.bincount(groups).max(), near.columns.shape[1], min(_MOST, len(groups) - 1)
    if not k <= largest <= 2 * _MOST or k >= most:
        return None
    columns = nearest(near.points, min(2 * k, most))
    similarity = near.own.likeness(np.arange(len(groups)), columns)
    return replace(near, columns=columns, similarity=similarity)


def nearest(points: Halves, neighbours: int) -> np.ndarray:
    """Return the rows (n, neighbours) of each point's nearest others, in no order."""
    (even, odd), n = points, len(points[0])
    found = np.empty((n, neighbours), np.int64)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        like = odd[block] @ odd.T
        np.abs(like, out=like)
        like += even[block] @ even.T
        np.fill_diagonal(like[:, start:], -np.inf)
        found[block] = np.argpartition(like, -neighbours, axis=1)[:, -neighbours:]

    in_threads(fill, range(0, n, _BLOCK))
    return found


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
    """Find slices that are sums of two unlike ones, as interpolating oversamplers make them.

    Such a slice is explained almost wholly by two others that do not resemble each other, and what
    the first leaves of it by the second; of a real slice a stranger explains nothing. `plain` gives
    the patterns of nodes as they stand in the picture, since sums were made before any pose.
    Returns (3, m): the mixtures, their larger parts and the smaller.
    """
    columns, similarity = near.columns, near.similarity
    ranked = np.argsort(-similarity, axis=1)[:, :16]
    rows, place = np.nonzero(np.take_along_axis(similarity, ranked, 1) > _UNLIKE)
    one, other = columns[rows, ranked[rows, 0]], columns[rows, ranked[rows, place]]
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
