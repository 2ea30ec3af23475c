"""Each slice's nearest others, copies and sums among them, and the tree of the strongest links."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from mri.subjects.identity import Halves, Patterns, in_threads, without_common_anatomy

COPY = 0.97
"""Correlation of patterns from which a slice counts as an altered copy of another."""

_NEIGHBOURS, _MOST, _BLOCK = 40, 640, 256  # Neighbours looked at, at first and at most.
_UNLIKE = 0.35  # Likeness that strangers' slices do not reach.
_LOOKED_AT = 2**16  # Nodes whose neighbours are looked at together for mixtures.
_AT_A_TIME = 4000  # Possible mixtures, whose patterns are held together.
_INDEXED = 20_000  # Slices from which an index is faster than comparing all pairs.
_PAIRS = 2**23  # Whose likeness a thread holds at once.
_ALONE = 2000  # Slices at most that are compared with all, of those that found least.
_IN_A_CELL, _PROBED = 100, 8  # Slices in a cell of the index; cells searched, more of many.


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distinct slices and their nearest others.

    `nodes` (m,) are the rows of slices that are altered copies of none, and `original` (n,) says
    for every row which node it is a copy of. The patterns of the nodes are `own`, those to search
    in `points`. `columns` (m, k) are the nearest other nodes, `similarity` their likeness. `exact`
    (m,) says which nodes were compared with all others.
    """

    nodes: np.ndarray
    original: np.ndarray
    own: Patterns
    points: Halves
    columns: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray


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
    exact = np.full(len(nodes), not _has_index(len(nodes)))
    return Neighbours(nodes, original, own, points, columns, similarity, exact)


def looked_further(
    near: Neighbours, groups: np.ndarray, pure: np.ndarray, weak: np.ndarray
) -> Neighbours | None:
    """Look for links that the groups (m,) may lack; return None if there is nothing to look for.

    A slice sees its nearest stranger only if it has more neighbours than slices of its own. What an
    index tore off a person is a small group, or hangs on a link that is far too weak: its slices
    are compared with all others, but a tenth of all slices at most, and no more than 20,000. A
    slice that is not `pure` (m,) is a mixture and stands alone. `weak` are the ends of weak links,
    the weakest first.
    """
    sizes, k = np.bincount(groups), near.columns.shape[1]
    most = min(_MOST, len(groups) - 1)
    if k <= sizes.max() <= 2 * _MOST and k < most:
        columns = nearest(near.points, min(2 * k, most))
        similarity = near.own.likeness(np.arange(len(groups)), columns)
        exact = np.full(len(groups), not _has_index(len(groups)))
        return replace(near, columns=columns, similarity=similarity, exact=exact)
    # Of any two parts of a person one has half of the slices at most.
    small = np.flatnonzero(sizes[groups] <= np.quantile(sizes[groups], 0.8) / 2)
    small = small[np.argsort(sizes[groups[small]], kind="stable")]
    rows = pd.unique(np.concatenate([small, weak]))
    left = min(len(groups) // 10, 10 * _ALONE) - near.exact.sum()
    rows = np.sort(rows[pure[rows] & ~near.exact[rows]][: max(0, left)])
    if not len(rows):
        return None
    columns, similarity, exact = near.columns.copy(), near.similarity.copy(), near.exact.copy()
    columns[rows] = _exactly(near.points, rows, k)
    similarity[rows] = near.own.likeness(rows, columns[rows])
    exact[rows] = True
    return replace(near, columns=columns, similarity=similarity, exact=exact)


def _has_index(n: int) -> bool:
    return n > _INDEXED and find_spec("faiss") is not None


def nearest(points: Halves, neighbours: int) -> np.ndarray:
    """Return the rows (n, neighbours) of each point's nearest others, in no order.

    Of many points only those in the cells around it are looked at, if faiss is installed.
    """
    n = len(points[0])
    if _has_index(n):
        return _by_index(points, neighbours)
    if n > _INDEXED:
        warnings.warn(
            f"faiss is not installed: {n:,} slices are compared pair by pair, which takes longer. "
            "To change that: python -m pip install faiss-cpu",
            RuntimeWarning,
            stacklevel=2,
        )
    return _exactly(points, np.arange(n), neighbours)


def _exactly(points: Halves, rows: np.ndarray, neighbours: int) -> np.ndarray:
    """Compare some rows with all points; return their nearest others."""
    (even, odd), n = points, len(points[0])
    found = np.empty((len(rows), neighbours), np.int32)
    step = min(_BLOCK, _PAIRS // n + 1)

    def fill(start: int) -> None:
        block = rows[start : start + step]
        like = odd[block] @ odd.T
        np.abs(like, out=like)
        like += even[block] @ even.T
        like[np.arange(len(block)), block] = -np.inf
        least = np.partition(like, n - neighbours, axis=1)[:, n - neighbours]
        taken = like >= least[:, None]
        for row in np.flatnonzero(taken.sum(1) > neighbours):
            # Of equals some are too many.
            taken[row] = False
            taken[row, np.argsort(-like[row], kind="stable")[:neighbours]] = True
        found[start : start + step] = np.nonzero(taken)[1].reshape(-1, neighbours)

    in_threads(fill, range(0, len(rows), step))
    return found


def _by_index(halves: Halves, neighbours: int) -> np.ndarray:
    """Return nearly all of the nearest others, searched for themselves and for mirror images.

    An inverted file: points are sorted into cells, and compared with those of the nearest cells
    (Sivic & Zisserman 2003, doi:10.1109/ICCV.2003.1238663), by faiss. The hundredth that finds
    least in them is compared with all points, lest a slice stay alone at the border of its cell.
    """
    import faiss

    n, wide = halves[0].shape
    both = wide + halves[1].shape[1]
    faiss.omp_set_num_threads(os.cpu_count())
    cells = min(n // _IN_A_CELL, 8192)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(both), both, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.nprobe = 8, max(_PROBED, cells // 256)

    def points(rows: slice) -> np.ndarray:
        return np.concatenate([half[rows] for half in halves], axis=1)

    index.train(points(slice(None, None, max(1, n // (40 * cells)))))
    blocks = [slice(start, start + 16384) for start in range(0, n, 16384)]
    for block in blocks:
        index.add(points(block))
    found, best = np.empty((n, neighbours), np.int32), np.empty(n, np.float32)
    for block in blocks:
        mirrored = points(block)
        like, rows = index.search(mirrored, neighbours + 1)
        mirrored[:, wide:] *= -1
        turned, others = index.search(mirrored, neighbours + 1)
        like, rows = np.concatenate([like, turned], axis=1), np.concatenate([rows, others], axis=1)
        found[block], best[block] = _merged(like, rows, block.start, n)
    del index
    alone = np.sort(np.argsort(best)[: min(n // 100, _ALONE)])
    found[alone] = _exactly(halves, alone, neighbours)
    return found


def _merged(
    like: np.ndarray, rows: np.ndarray, start: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best half of the candidates, each once and none the row itself; the best score."""
    order = np.lexsort([-like, rows])
    like, rows = np.take_along_axis(like, order, 1), np.take_along_axis(rows, order, 1)
    own = np.arange(start, start + len(rows))[:, None]
    like[:, 1:][rows[:, 1:] == rows[:, :-1]] = -np.inf
    like[(rows < 0) | (rows == own)] = -np.inf
    neighbours = rows.shape[1] // 2 - 1
    best = np.argpartition(like, -neighbours, axis=1)[:, -neighbours:]
    missing = ~np.isfinite(np.take_along_axis(like, best, 1))
    # Where cells hold too few, any other slice fills the row: it is judged by its likeness.
    any_other = (own + 1 + np.arange(neighbours)) % n
    return np.where(missing, any_other, np.take_along_axis(rows, best, 1)), like.max(1)


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


def mixtures(
    near: Neighbours, plain: Callable[[np.ndarray], Patterns], among: np.ndarray
) -> np.ndarray:
    """Find which of some nodes are sums of two unlike ones, as interpolating oversamplers make.

    Such a slice is explained almost wholly by two others that do not resemble each other, and what
    the first leaves of it by the second; of a real slice a stranger explains nothing. `plain` gives
    the patterns of nodes as they stand in the picture, since sums were made before any pose.
    Returns (3, m): the mixtures, their larger parts and the smaller.
    """
    blocks = [among[start : start + _LOOKED_AT] for start in range(0, len(among), _LOOKED_AT)]
    found = [_mixtures(near, plain, block) for block in blocks]
    return np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)


def _mixtures(
    near: Neighbours, plain: Callable[[np.ndarray], Patterns], among: np.ndarray
) -> np.ndarray:
    columns, similarity = near.columns[among], near.similarity[among]
    ranked = np.argsort(-similarity, axis=1)[:, :16]
    rows, place = np.nonzero(np.take_along_axis(similarity, ranked, 1) > _UNLIKE)
    one, other = columns[rows, ranked[rows, 0]], columns[rows, ranked[rows, place]]
    rows = among[rows]
    unlike = _alike(near, one, other) < _UNLIKE
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
    best = best[score[best] > 0.985]
    return np.stack([rows[best], one[best], other[best]])


def _alike(near: Neighbours, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the likeness (m,) of nodes (m,) with others (m,); most were compared before."""
    found, new = np.empty(len(one)), np.empty(len(one), bool)
    for start in range(0, len(one), _AT_A_TIME):
        block = slice(start, start + _AT_A_TIME)
        same = near.columns[one[block]] == other[block, None]
        found[block] = near.similarity[one[block], same.argmax(1)]
        new[block] = ~same.any(1)
    found[new] = near.own.pairs(one[new], other[new])
    return found


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
    use = kept[:, None] & kept[columns]
    ends = np.concatenate([[0], np.cumsum(use.sum(1))])
    # Distances must be positive: SciPy's sparse graphs take a zero for a missing edge.
    distance = similarity[use]
    np.subtract(2.0, distance, out=distance)
    graph = csr_matrix((distance, columns[use], ends), (len(columns),) * 2)
    tree = minimum_spanning_tree(graph, overwrite=True).tocoo()
    order = np.argsort(-tree.data, kind="stable")
    return Tree(tree.row[order], tree.col[order], 2.0 - tree.data[order])
