"""Groups checked by height, on drawn patterns: two heads in one are cut, parts joined."""

import numpy as np
import pytest

from mri.data.phantom import make_phantoms
from mri.subjects.coverage import strangers_within
from mri.subjects.identity import Patterns
from mri.subjects.linking import UnclearSubjectsError, _checked, _joined
from mri.subjects.neighbours import Tree, spanning_tree
from mri.subjects.recovery import recover_subjects

SLICES, STEP = 24, 0.9


@pytest.fixture
def cohort(rng):
    """From a number of people: patterns of their slices, next ones alike by `STEP`, and heights."""

    def drawn(people):
        found = np.empty((people, SLICES, 300))
        found[:, 0] = rng.normal(size=(people, 300))
        for i in range(1, SLICES):
            fresh = rng.normal(size=(people, 300))
            found[:, i] = STEP * found[:, i - 1] + np.sqrt(1 - STEP**2) * fresh
        flat = found.reshape(-1, 300).astype(np.float32)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        height = np.tile(np.arange(SLICES, dtype=float), people)
        return Patterns.whole((flat, np.zeros_like(flat))), height

    return drawn


def chained(people, *bridges):
    """The tree of people in order, and weaker links between rows of two of them."""
    rows = np.arange(people * SLICES).reshape(people, SLICES)
    pairs = [*bridges, *zip(rows[:, :-1].ravel(), rows[:, 1:].ravel(), strict=True)]
    similarity = np.array([0.6] * len(bridges) + [STEP] * (len(pairs) - len(bridges)))
    return Tree(*np.array(pairs).T, similarity)


def test_a_link_between_two_heads_is_cut_and_no_other(cohort):
    own, height = cohort(4)
    tree = chained(4, (10, SLICES + 10), (2 * SLICES + 20, 3 * SLICES + 20))
    groups = tree.groups(len(own))
    assert groups.max() == 1
    cuts = strangers_within(own, height, tree, groups, threshold=0.5)
    assert cuts.tolist() == [0, 1]
    whole = chained(4)
    assert not len(strangers_within(own, height, whole, whole.groups(len(own)), threshold=0.5))


def test_a_group_of_very_many_heads_is_not_searched_but_refused(cohort):
    own, height = cohort(20)
    tree = chained(20, *((SLICES * i + 5, SLICES * i + SLICES + 5) for i in range(19)))
    assert strangers_within(own, height, tree, tree.groups(len(own)), threshold=0.5) is None


def low_detail(height, rng):
    """What slices of one height share, beside what only they have."""
    angle = height[:, None] / SLICES * np.pi * np.arange(1, 5)
    found = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return (found + 0.02 * rng.normal(size=found.shape)).astype(np.float32)


def test_cut_links_are_warned_of_and_heads_in_one_large_group_refused(cohort, rng, monkeypatch):
    own, height = cohort(12)
    tree = chained(12, (10, SLICES + 10))
    low = low_detail(height, rng)
    groups, doubts = _checked(own, low, tree, 0.5)
    assert len(np.unique(groups)) == 12 and np.unique(groups[:SLICES]).size == 1
    (text, concerned), *others = doubts
    assert text == "slices that resemble two people link these, mixtures perhaps"
    assert sorted(concerned) == [10, SLICES + 10] and others == []
    monkeypatch.setattr("mri.subjects.coverage._SMALL", 2 * SLICES - 1)
    with pytest.raises(UnclearSubjectsError, match="a group of 48 distinct slices holds slices of"):
        _checked(own, low, tree, 0.5)


def test_parts_of_a_head_are_joined_where_their_ends_are_alike(cohort):
    own, height = cohort(8)
    kept = np.flatnonzero((np.arange(8 * SLICES) >= SLICES) | (height < 10) | (height > 13))
    groups = np.arange(8 * SLICES) // SLICES + (np.arange(8 * SLICES) > 11)
    own, height, groups = own.take(kept), height[kept], groups[kept]
    found, doubts = _joined(own, height, groups, [], "")
    np.testing.assert_array_equal(found, np.maximum(groups - 1, 0))
    assert [text for text, _ in doubts] == [
        "slices are missing inside these, whose parts were joined by their likeness"
    ]
    assert {*found[doubts[0][1]].tolist()} == {0}


def test_parts_without_a_fitting_end_are_named_and_too_many_are_refused(cohort):
    own, height = cohort(8)
    kept = np.flatnonzero((np.arange(8 * SLICES) >= SLICES) | (height < 9))
    groups = np.arange(8 * SLICES)[kept] // SLICES
    found, doubts = _joined(own.take(kept), height[kept], groups, [], "")
    np.testing.assert_array_equal(found, groups)
    (text, concerned), *others = doubts
    assert text.startswith("1 of 8 groups cover only part of the heights") and others == []
    assert 0 in groups[concerned]
    kept = np.flatnonzero((height < 9) | (np.arange(8 * SLICES) < 2 * SLICES))
    with pytest.raises(UnclearSubjectsError, match="only part of the heights, wanted at most"):
        _joined(own.take(kept), height[kept], np.arange(8 * SLICES)[kept] // SLICES, [], "")


def test_too_few_slices_that_differ_are_refused():
    phantoms = make_phantoms(4, 1, size=64)
    one, other = phantoms.images[:2]
    with pytest.raises(UnclearSubjectsError, match="are 2 different slices, wanted at least 3"):
        recover_subjects(np.stack([one, other, one]))
    between = ((one.astype(int) + other) // 2).astype(np.uint8)
    with pytest.raises(UnclearSubjectsError, match="1 of 3 distinct slices are mixtures of others"):
        recover_subjects(np.stack([one, other, between]))


def test_a_tree_without_some_slices_leaves_the_neighbours_as_they_were():
    columns = np.array([[1, 2], [0, 2], [1, 3], [2, 1]], np.int32)
    similarity = np.array([[0.9, 0.8], [0.9, 0.7], [0.7, 0.6], [0.6, 0.5]])
    kept = np.array([True, True, False, True])
    before = columns.copy(), similarity.copy()
    tree = spanning_tree(columns, similarity, kept)
    np.testing.assert_array_equal(columns, before[0])
    np.testing.assert_array_equal(similarity, before[1])
    links = {
        frozenset(pair) for pair in zip(tree.rows.tolist(), tree.columns.tolist(), strict=True)
    }
    assert links == {frozenset({0, 1}), frozenset({1, 3})}
    np.testing.assert_allclose(tree.similarity, [0.5, 0.9])
