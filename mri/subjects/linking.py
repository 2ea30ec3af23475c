"""From likeness to people: one tree over all slices, cut where it is clear, checked by height."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mri.subjects.coverage import coverage, fitting_ends, strangers_within, two_levels
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
_NAMED = 3  # Groups that stand for all.
_WEAKEST = 1000  # Links of an unclear answer, whose ends are looked at again.

Doubts = list[tuple[str, np.ndarray]]
"""What to warn of, with a row of each group concerned."""


class UnclearSubjectsError(ValueError):
    """The pixels do not say who is who: no clear gap between same and different subjects."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"no clear gap between same and different subjects: {found}; slices may be missing "
            "between neighbours. Pass the subject ids if you know them"
        )


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
    if high - low < min_margin:
        text = f"the widest is {high - low:.3f}, wanted {min_margin}"
    elif low > CEILING:
        text = f"different subjects would correlate by up to {low:.3f}, wanted at most {CEILING}"
    elif (low + high) / 2 < _FLOOR:
        text = f"the gap is centred at {(low + high) / 2:.3f}, wanted at least {_FLOOR}"
    elif count > slices / 2:
        text = "most slices would stand alone, wanted two a subject at least"
    else:
        return None
    answer = f"correlations {low:.3f} to {high:.3f}; {count} groups of {slices} distinct slices"
    return f"{text} ({answer})"


def people(
    patterns: Patterns,
    low: np.ndarray,
    plain: Callable[[np.ndarray], Patterns],
    *,
    min_margin: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, int, Doubts]:
    """Group slices by head, or raise `UnclearSubjectsError` with the condition that failed.

    From patterns, low detail (n, 128) and, to find sums of slices, patterns as they stand in the
    picture. `min_margin` is the smallest gap of correlations that counts as clear. Returns the
    groups (n,), the ascending correlations of the tree, the place of the gap, and the doubts.
    """
    if len(patterns) < 3:
        raise UnclearSubjectsError(f"there are {len(patterns)} different slices, wanted at least 3")
    near = distinct(patterns, seed)
    nodes, n = near.nodes, len(near.nodes)
    further: Neighbours | None = near
    sums, new = np.empty((3, 0), np.int64), np.arange(n)
    while further:
        near = further
        found = mixtures(near, lambda rows: plain(nodes[rows]), new)
        sums = np.concatenate([sums[:, ~np.isin(sums[0], new)], found], axis=1)
        pure = ~np.isin(np.arange(n), sums[0])
        if pure.sum() < 3:
            text = f"{len(sums[0])} of {n} distinct slices are mixtures of others"
            raise UnclearSubjectsError(text)
        tree = spanning_tree(near.columns, near.similarity, pure)
        edges = tree.similarity
        cut = widest_gap(edges)
        threshold = float(edges[cut : cut + 2].mean())
        inside = tree.take(edges > threshold)
        groups = inside.groups(n)
        # Where the gap is not clear, an index may have missed better links than the weakest.
        unclear = edges[cut + 1] - edges[cut] < min_margin
        links = np.column_stack([inside.rows, inside.columns])
        weak = links[: _WEAKEST if unclear else 0].ravel()
        if further := looked_further(near, groups, pure, weak):
            before, after = near.columns, further.columns
            same = before.shape == after.shape
            new = np.flatnonzero((before != after).any(1)) if same else np.arange(n)
    own, original = near.own, near.original
    del near, further  # Of a million slices their neighbours take a gigabyte.
    kept = np.flatnonzero(pure)
    refusal = why_unclear(edges, cut, min_margin, len(np.unique(groups[kept])), len(kept))
    if refusal:
        raise UnclearSubjectsError(refusal)
    rows, columns = (np.searchsorted(kept, of) for of in (inside.rows, inside.columns))
    inside = Tree(rows, columns, inside.similarity)
    groups, doubts = _checked(own.take(kept), low[nodes[kept]], inside, threshold)
    doubts = [(text, nodes[kept[concerned]]) for text, concerned in doubts]
    whole = np.full(n, -1)
    whole[kept] = groups
    between = _with_mixtures(whole, *sums)
    if len(between):
        text = f"{len(between)} slices are mixtures of two people"
        doubts.append((text, nodes[between.ravel()]))
    return whole[original], edges, cut, doubts


def _checked(
    own: Patterns, low: np.ndarray, inside: Tree, threshold: float
) -> tuple[np.ndarray, Doubts]:
    """Check groups by their heights: cut what joins two heads, join what is torn, tell doubts."""
    groups = inside.groups(len(own))
    position = along_the_tree(inside, groups)
    sides = two_levels(low, position, groups)
    sizes = np.bincount(groups)
    size = f"({len(sizes)} groups of {len(own)} distinct slices)"
    if sides is not None:
        raise UnclearSubjectsError(
            f"groups fall into two sets that share no heights ({sides.sum()} and {(~sides).sum()} "
            f"of those looked at), as if all heads were torn, wanted one set {size}"
        )
    height, trust = heights(low, position, groups)
    if trust <= _TRUST:
        if sizes.min() < 0.5 * np.quantile(sizes, 0.8) or sizes.max() > 2 * np.median(sizes):
            raise UnclearSubjectsError(
                f"groups have {sizes.min()} to {sizes.max()} distinct slices, and their heights "
                f"cannot be told to check them (trust {trust:.2f}, wanted {_TRUST}) {size}"
            )
        text = (
            f"the heights of the slices cannot be told (trust {trust:.2f}, wanted {_TRUST}), so it "
            "is not checked that a group is a whole head, for example"
        )
        return groups, [(text, np.unique(groups, return_index=True)[1][:_NAMED])]
    doubts: Doubts = []
    cuts = strangers_within(own, height, inside, groups, threshold)
    if cuts is None:
        raise UnclearSubjectsError(
            f"a group of {sizes.max()} distinct slices holds slices of one height that look "
            f"different, wanted one head a group {size}"
        )
    if len(cuts):
        ends = np.concatenate([inside.rows[cuts], inside.columns[cuts]])
        groups = inside.take(np.delete(np.arange(len(inside.rows)), cuts)).groups(len(own))
        doubts.append(("slices that resemble two people link these, mixtures perhaps", ends))
    return _joined(own, height, groups, doubts, size)


def _joined(
    own: Patterns, height: np.ndarray, groups: np.ndarray, doubts: Doubts, size: str
) -> tuple[np.ndarray, Doubts]:
    """Join parts of one head, and add what is doubtful about groups that are parts."""
    covered = coverage(height, groups)
    joined, likely = fitting_ends(own, height, groups, covered)
    first = np.unique(groups, return_index=True)[1]
    partial = covered.partial.copy()
    partial[[group for pair in joined for group in pair]] = False
    share = float(partial[groups].mean())
    if share > 0.5:
        raise UnclearSubjectsError(
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
        concerned = {group for pair in likely for group in pair} | {*np.flatnonzero(partial)}
        text = (
            f"{partial.sum()} of {len(partial)} groups cover only part of the heights that others "
            "cover and may be parts of one person"
        )
        doubts.append((text, first[[*concerned]]))
    return groups, doubts


def _with_mixtures(
    whole: np.ndarray, mixed: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Give each mixture to the group of its larger part; return parts of different groups (m, 2).

    Fills `whole` in place; what is a mixture of mixtures only stays alone.
    """
    for _ in range(20):
        known = (whole[mixed] < 0) & (whole[one] >= 0)
        whole[mixed[known]] = whole[one[known]]
    alone = whole < 0
    whole[alone] = whole.max() + 1 + np.arange(alone.sum())
    between = whole[one] != whole[other]
    return np.column_stack([one[between], other[between]])
