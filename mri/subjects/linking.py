"""From likeness to people: one tree over all slices, cut where it is clear, checked by height."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mri.subjects.coverage import by_size, coverage, fitting_ends, strangers_within, two_levels
from mri.subjects.heights import along_the_tree, heights
from mri.subjects.identity import Patterns
from mri.subjects.neighbours import (
    Neighbours,
    Tree,
    distinct,
    looked_further,
    mixtures,
    spanning_tree,
)

CEILING = 0.45
"""Correlation that no two people reach: right answers had at most 0.41, wrong ones 0.72."""

_FLOOR = 0.3  # Links as weak as strangers' best correlations say nothing.
_TRUST = 0.8  # In heights, from which they serve to check groups.


def widest_gap(edges: np.ndarray) -> int:
    """Return the place of the widest gap that could lie between different and same people.

    Of the ascending correlations (m,) of a spanning tree. The gap is from ``edges[place]`` to the
    next; of gaps within reason if there are any.
    """
    gaps = np.diff(edges)
    middle = (edges[1:] + edges[:-1]) / 2
    within = (edges[:-1] <= CEILING) & (middle >= _FLOOR)
    return int(np.where(within, gaps, -1).argmax() if within.any() else gaps.argmax())


def why_unclear(
    edges: np.ndarray, cut: int, min_margin: float, count: int, slices: int
) -> str | None:
    """Say which condition a cut fails, what was found and what was wanted; None if it holds."""
    low, high = edges[cut], edges[cut + 1]
    answer = f"(correlations {low:.3f} to {high:.3f}; {count} groups of {slices} distinct slices)"
    if high - low < min_margin:
        return f"the widest is {high - low:.3f}, wanted {min_margin} {answer}"
    if low > CEILING:
        return (
            f"different subjects would correlate by up to {low:.3f}, wanted at most {CEILING} "
            f"{answer}"
        )
    if (low + high) / 2 < _FLOOR:
        middle = (low + high) / 2
        return f"the gap is centred at {middle:.3f}, wanted at least {_FLOOR} {answer}"
    if count > slices / 2:
        return f"most slices would stand alone, wanted two a subject at least {answer}"
    return None


@dataclass(frozen=True, eq=False)
class People:
    """Answer of `people`, as in `mri.subjects.Subjects`.

    `doubts` says what to warn of, with a row of each group concerned.
    """

    groups: np.ndarray
    threshold: float
    same: np.ndarray
    different: np.ndarray
    doubts: list[tuple[str, list[int]]]


def people(
    patterns: Patterns,
    low: np.ndarray,
    plain: Callable[[np.ndarray], Patterns],
    *,
    min_margin: float,
    seed: int,
) -> People | str:
    """Group slices by head, or say which condition failed.

    From patterns, low detail (n, 128) and, to find sums of slices, patterns as they stand in the
    picture. `min_margin` is the smallest gap of correlations that counts as clear.
    """
    if len(patterns) < 3:
        return f"there are {len(patterns)} different slices, wanted at least 3"
    near = distinct(patterns, seed)
    nodes = near.nodes
    n, low = len(nodes), low[nodes]
    further: Neighbours | None = near
    while further:
        near = further
        mixed, one, other = mixtures(
            near.own, near.columns, near.similarity, lambda rows: plain(nodes[rows])
        )
        pure = np.ones(n, bool)
        pure[mixed] = False
        if pure.sum() < 3:
            return f"{len(mixed)} of {n} distinct slices are mixtures of others"
        tree = spanning_tree(near.columns, near.similarity, pure)
        edges = tree.similarity
        if len(edges) < 2:
            return f"{n} distinct slices have too few links"
        cut = widest_gap(edges)
        threshold = float(edges[cut : cut + 2].mean())
        inside = tree.above(threshold)
        groups = inside.groups(n)
        further = looked_further(near, groups, pure)
    count = len(np.unique(groups[pure]))
    refusal = why_unclear(edges, cut, min_margin, count, int(pure.sum()))
    if refusal:
        return refusal
    return _checked(
        near, low, inside, threshold=threshold, edges=edges, cut=cut, mixture=(mixed, one, other)
    )


def _checked(
    near: Neighbours,
    low: np.ndarray,
    inside: Tree,
    *,
    threshold: float,
    edges: np.ndarray,
    cut: int,
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> People | str:
    """Check groups by their heights, then give mixtures and copies to those they come from."""
    n = len(near.nodes)
    pure = np.ones(n, bool)
    pure[mixture[0]] = False
    place, kept = np.cumsum(pure) - 1, np.flatnonzero(pure)
    own = near.own.take(kept)
    inside = Tree(place[inside.rows], place[inside.columns], inside.similarity)
    groups = inside.groups(len(kept))
    position = along_the_tree(inside.rows, inside.columns, inside.similarity, groups)
    sides = two_levels(low[kept], position, groups)
    size = f"({groups.max() + 1} groups of {len(kept)} distinct slices)"
    if sides is not None:
        return (
            f"groups fall into two sets that share no heights ({sides.sum()} and {(~sides).sum()} "
            f"of those looked at), as if all heads were torn, wanted one set {size}"
        )
    height, trust = heights(low[kept], position, groups)
    if trust > _TRUST:
        answer = _by_height(own, height, inside, groups, threshold=threshold, size=size)
        if isinstance(answer, str):
            return answer
        groups, doubts = answer
    else:
        sizes, doubts = np.bincount(groups), []
        if by_size(groups).any() or sizes.max() > 2 * np.median(sizes):
            return (
                f"groups have {sizes.min()} to {sizes.max()} distinct slices, and their heights "
                f"cannot be told to check them (trust {trust:.2f}, wanted {_TRUST}) {size}"
            )
    whole = np.full(n, -1)
    whole[kept] = groups
    between = _with_mixtures(whole, mixture)
    told = [(text, near.nodes[kept[rows]].tolist()) for text, rows in doubts]
    if len(between):
        text = f"{len(between)} slices are mixtures of two people"
        told.append((text, near.nodes[between.ravel()].tolist()))
    return People(whole[near.original], threshold, edges[cut + 1 :], edges[: cut + 1], told)


def _by_height(
    own: Patterns,
    height: np.ndarray,
    inside: Tree,
    groups: np.ndarray,
    *,
    threshold: float,
    size: str,
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]] | str:
    """Cut what joins two heads, join what is torn, and say which groups are doubtful."""
    doubts: list[tuple[str, np.ndarray]] = []
    cuts = strangers_within(own, height, inside, groups, threshold)
    if cuts is None:
        return (
            f"a group of {np.bincount(groups).max()} distinct slices holds slices of one height "
            f"that look different, wanted one head a group {size}"
        )
    if len(cuts):
        ends = np.concatenate([inside.rows[cuts], inside.columns[cuts]])
        left = np.setdiff1d(np.arange(len(inside.rows)), cuts)
        groups = Tree(inside.rows[left], inside.columns[left], inside.similarity[left]).groups(
            len(groups)
        )
        doubts.append(("slices that resemble two people link these, mixtures perhaps", ends))
    covered = coverage(height, groups)
    joined, likely = fitting_ends(own, height, groups, covered)
    first = np.unique(groups, return_index=True)[1]
    partial = covered.partial.copy()
    partial[[group for pair in joined for group in pair]] = False
    share = float(partial[groups].mean())
    if share > 0.5:
        return (
            f"{share:.0%} of the slices are in groups that cover only part of the heights, wanted "
            f"at most half {size}"
        )
    if joined:
        groups = groups.copy()
        for one, other in joined:
            groups[groups == groups[first[other]]] = groups[first[one]]
        groups = np.unique(groups, return_inverse=True)[1]
        text = "slices are missing inside these, whose parts were joined by their likeness"
        doubts.append((text, first[[one for one, _ in joined]]))
    if partial.any():
        concerned = sorted(
            {g for pair in likely for g in pair} | set(np.flatnonzero(partial).tolist())
        )
        text = (
            f"{partial.sum()} of {len(partial)} groups cover only part of the heights that others "
            "cover and may be parts of one person"
        )
        doubts.append((text, first[concerned]))
    return groups, doubts


def _with_mixtures(
    whole: np.ndarray, mixture: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Give each mixture to the group of its larger part; return parts of different groups (m, 2).

    Fills `whole` in place; what is a mixture of mixtures only stays alone.
    """
    mixed, one, other = mixture
    for _ in range(20):
        known = (whole[mixed] < 0) & (whole[one] >= 0)
        whole[mixed[known]] = whole[one[known]]
    alone = whole < 0
    whole[alone] = whole.max() + 1 + np.arange(alone.sum())
    between = whole[one] != whole[other]
    return np.column_stack([one[between], other[between]])
