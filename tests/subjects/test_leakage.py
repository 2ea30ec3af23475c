"""The audit against explicit loops, and the leak that the phantoms have on purpose."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mri.data.phantom import make_phantoms
from mri.data.scans import Scans, read_scans
from mri.subjects.leakage import _closest, audit, checklist, shuffle_diagnoses
from mri.subjects.recovery import recover_subjects
from mri.subjects.splits import Split, image_split, subject_split


@pytest.fixture(scope="module")
def parts() -> tuple[Scans, Scans, np.ndarray]:
    """Train and test parts of 16 subjects, divided by slice, and the true subject of each."""
    phantom = make_phantoms(16, 10, seed=3)
    rows = np.random.default_rng(1).permutation(len(phantom.labels))
    train, test = rows[:120], rows[120:]
    none = pd.DataFrame(columns=["file", "row", "cause"])
    names = ("a", "b", "c", "d")
    made = [Scans(phantom.images[r], phantom.labels[r], names, none) for r in (train, test)]
    return *made, phantom.subjects[np.r_[train, test]]


@pytest.fixture(scope="module")
def report(parts):
    return audit(parts[0], parts[1])


def nearest(pixels: np.ndarray, query: int, pool: np.ndarray) -> int:
    distances = [((pixels[query] - pixels[i]) ** 2).sum() for i in pool]
    return int(pool[int(np.argmin(distances))])


def correlation(pixels: np.ndarray, query: int, pool: np.ndarray) -> tuple[int, float]:
    """The most correlated of the pool and the correlation, by NumPy's own function."""
    found = [np.corrcoef(pixels[query].ravel(), pixels[i].ravel())[0, 1] for i in pool]
    return int(pool[int(np.argmax(found))]), max(found)


def test_twins_are_the_most_correlated_training_slices(parts, report):
    train, test, _ = parts
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    for i in range(0, len(test), 3):
        twin, expected = correlation(pixels, 120 + i, np.arange(len(train)))
        assert report.twins[i] == twin
        np.testing.assert_allclose(report.correlations[i], expected, atol=1e-5)


def test_strangers_are_the_most_correlated_of_other_subjects(parts, report):
    train, test, truth = parts
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    for i in range(0, len(test), 5):
        pool = np.flatnonzero(truth[: len(train)] != truth[120 + i])
        expected = correlation(pixels, 120 + i, pool)[1]
        np.testing.assert_allclose(report.strangers[i], expected, atol=1e-5)


def test_figures_equal_a_recomputation(parts, report):
    train, test, truth = parts
    labels = np.concatenate([train.labels, test.labels])
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    pool = np.arange(len(train))
    found = np.array([labels[nearest(pixels, 120 + i, pool)] for i in range(len(test))])
    recalls = [(found[test.labels == c] == c).mean() for c in np.unique(test.labels)]
    column = report.table["as published"]
    assert column["subjects"] == 16
    assert column["1-nearest neighbour: accuracy"] == pytest.approx((found == test.labels).mean())
    assert column["1-nearest neighbour: balanced accuracy"] == pytest.approx(np.mean(recalls))
    majority = np.bincount(train.labels).argmax()
    assert column["majority class: accuracy"] == pytest.approx((test.labels == majority).mean())
    accuracy, balanced, tested = [], [], 0
    for fold in range(5):
        with pytest.warns(UserWarning, match="fewer subjects than the 5 folds"):
            rows = subject_split(labels, report.subjects.groups, fold=fold).test
        pool = np.flatnonzero(~np.isin(truth, truth[rows]))
        right = np.array([labels[nearest(pixels, i, pool)] == labels[i] for i in rows])
        accuracy.append(right.mean())
        balanced.append(np.mean([right[labels[rows] == c].mean() for c in np.unique(labels[rows])]))
        tested += len(rows)
    assert tested == len(labels)
    apart = report.table["subjects kept apart"]
    assert apart["1-nearest neighbour: accuracy"] == pytest.approx(np.mean(accuracy))
    assert apart["1-nearest neighbour: balanced accuracy"] == pytest.approx(np.mean(balanced))


def test_random_diagnoses_are_read_off_as_well_as_true_ones_until_subjects_are_kept_apart(report):
    figure = report.table.loc["1-NN, diagnoses shuffled: accuracy"]
    assert figure["as published"] > 0.97
    assert figure["subjects kept apart"] < 0.6


def test_verdict_names_the_share(parts, report):
    assert report.verdict.startswith("Leaky: 100% of the test slices show a subject of the train")
    assert report.verdict in repr(report) and report.verdict in report._repr_html_()


def test_clean_split_is_not_accused(parts):
    train, test, truth = parts
    scans = train + test
    held_out = np.isin(truth, [0, 5, 9])

    def take(rows):
        return Scans(scans.images[rows], scans.labels[rows], scans.class_names, scans.rejected)

    found = audit(take(~held_out), take(held_out))
    assert found.verdict.startswith("No leak found")
    assert found.table.loc["test slices whose subject stands in train", "as published"] == 0


def test_copies_and_near_copies_are_counted_across_and_within(parts):
    train, test, _ = parts
    images, first = test.images.copy(), train.images.copy()
    images[:3] = train.images[:3]
    # A gray value off in one corner: no copy, but nothing a reader would call another slice.
    first[5], first[6] = train.images[4], train.images[4]
    first[6, 0, 0] += 1
    copied = Scans(images, test.labels, test.class_names, test.rejected)
    train = Scans(first, train.labels, train.class_names, train.rejected)
    truth = recover_subjects(np.concatenate([parts[0].images, test.images]))
    found = audit(train, copied, subjects=truth)
    assert found.table.loc["pixel-identical slices across", "as published"] == 3
    assert found.table.loc["highest correlation across", "as published"] == pytest.approx(1)
    assert found.within.loc["pixel-identical to an earlier one"].tolist() == [1, 0]
    assert found.within.loc["slices"].tolist() == [120, 40]
    name = "with a near duplicate (r ≥ 0.99)"
    for side, images in (("train", first), ("test", copied.images)):
        similar = np.corrcoef(images.reshape(len(images), -1))
        np.fill_diagonal(similar, -1)
        assert found.within.loc[name, side] == pytest.approx((similar.max(1) >= 0.99).mean())
    across = np.corrcoef(np.concatenate([first, images]).reshape(160, -1))[120:, :120].max(1)
    name = "test slices with a near duplicate in train (r ≥ 0.99)"
    assert found.table.loc[name, "as published"] == pytest.approx((across >= 0.99).mean())
    assert "near duplicate (r" in repr(found) and "near duplicate (r" in found._repr_html_()


def test_shuffled_diagnoses_keep_one_a_subject_and_every_count(parts):
    _, _, truth = parts
    labels = truth % 3
    shuffled = shuffle_diagnoses(labels, truth, seed=1)
    dealt = [np.unique(shuffled[truth == subject]) for subject in range(16)]
    assert all(len(values) == 1 for values in dealt)
    kept = [np.unique(labels[truth == subject])[0] for subject in range(16)]
    assert sorted(np.concatenate(dealt)) == sorted(kept) and dealt != kept
    assert (shuffle_diagnoses(labels, truth, seed=1) == shuffled).all()
    assert (shuffle_diagnoses(labels, truth, seed=2) != shuffled).any()


@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_checklist_passes_an_honest_split_and_fails_a_leaky_one(parts):
    train, test, truth = parts
    scans = train + test
    leaky = checklist(scans, image_split(scans.labels, np.arange(120, 160)), truth)
    honest = checklist(scans, subject_split(scans.labels, truth, folds=4), truth)
    assert leaky["passes"].tolist()[:3] == ["yes", "NO", "NO"]
    assert honest["passes"].tolist() == ["yes", "yes", "yes", "NO"]
    people = len(np.unique(truth[120:]))
    assert leaky["found"][2] == f"{people} of {people} people on both sides"
    similar = np.corrcoef(scans.images.reshape(160, -1))[120:, :120].max(1)
    assert leaky["found"][1] == f"0 identical, {(similar >= 0.99).sum()} with r ≥ 0.99"
    assert honest["found"][2].startswith("0 of ")
    assert "fewer than 5 people: " in honest["found"][3]


@pytest.mark.real_data
def test_real_split_is_leaky_in_every_subject(real_data):
    parts = [read_scans(real_data, split=part) for part in ("train", "test")]
    scans = parts[0] + parts[1]
    subjects = recover_subjects(scans.images, scans.labels)
    for side in (subjects.groups[: len(parts[0])], subjects.groups[len(parts[0]) :]):
        assert len(np.unique(side)) == 200
    table = audit(*parts, subjects=subjects).table
    nearest_figures = table.loc["1-nearest neighbour: accuracy"]
    assert nearest_figures["as published"] > 0.99
    assert nearest_figures["subjects kept apart"] == pytest.approx(0.50, abs=0.02)
    balanced = table.loc["1-nearest neighbour: balanced accuracy"]
    assert balanced["as published"] > 0.99
    assert balanced["subjects kept apart"] == pytest.approx(0.37, abs=0.02)
    assert table.loc["1-NN, diagnoses shuffled: accuracy", "as published"] > 0.99


def test_one_black_slice_hides_no_duplicate(parts):
    train, test, _ = parts
    scans = train + test
    images = scans.images.copy()
    images[len(train) : len(train) + 5] = images[:5]
    groups = np.arange(len(scans))
    split = Split(
        "image", np.arange(len(train) - 4), np.arange(len(train) - 4, len(train)),
        np.arange(len(train), len(scans)),
    )  # fmt: skip
    rows = []
    for black in (False, True):
        if black:
            images[len(train) - 5] = 0
        table = checklist(replace(scans, images=images), split, groups).set_index("leakage")
        rows.append(table.loc["L1.4 no duplicates across"].tolist())
    assert rows[0] == rows[1]
    assert rows[0][0].startswith("5 identical") and rows[0][1] == "NO"


def test_a_slice_without_a_stranger_has_no_correlation_with_one():
    found, best = _closest(np.eye(3, dtype=np.float32), np.array([0]), np.arange(2), np.zeros(3))
    assert np.isnan(best).all() and found.tolist() == [0, 0]


def test_a_row_on_two_sides_fails_the_checklist(parts):
    scans = parts[0] + parts[1]
    rows = np.arange(len(scans))
    split = Split("image", rows[:50], rows[49:60], rows[60:])
    table = checklist(scans, split, rows).set_index("leakage")
    assert table.loc["L1.1 a test part of its own", "passes"] == "NO"
