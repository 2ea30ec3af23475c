"""The audit against explicit loops, and the leak that the phantoms have on purpose."""

import numpy as np
import pandas as pd
import pytest

from mri.data import Scans, read_scans
from mri.leakage import audit
from mri.phantom import make_phantoms
from mri.subjects import recover_subjects, subject_split


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


def test_twins_are_the_nearest_training_slices_by_brute_force(parts, report):
    train, test, _ = parts
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    pool = np.arange(len(train))
    assert report.twins.tolist() == [nearest(pixels, 120 + i, pool) for i in range(len(test))]
    for i in (0, 7, 39):
        pair = pixels[120 + i].ravel(), pixels[report.twins[i]].ravel()
        np.testing.assert_allclose(report.correlations[i], np.corrcoef(*pair)[0, 1], atol=1e-5)


def test_strangers_are_nearest_among_other_subjects(parts, report):
    train, test, truth = parts
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    for i in range(0, len(test), 5):
        pool = np.flatnonzero(truth[: len(train)] != truth[120 + i])
        found = nearest(pixels, 120 + i, pool)
        expected = np.corrcoef(pixels[120 + i].ravel(), pixels[found].ravel())[0, 1]
        np.testing.assert_allclose(report.strangers[i], expected, atol=1e-5)


def test_figures_equal_a_recomputation(parts, report):
    train, test, truth = parts
    labels = np.concatenate([train.labels, test.labels])
    pixels = np.concatenate([train.images, test.images]).astype(np.float64)
    found = labels[report.twins]
    accuracy = (found == test.labels).mean()
    recalls = [(found[test.labels == c] == c).mean() for c in np.unique(test.labels)]
    column = report.table["as published"]
    assert column["1-nearest neighbour: accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert column["1-nearest neighbour: balanced accuracy"] == pytest.approx(np.mean(recalls))
    majority = np.bincount(train.labels).argmax()
    assert column["majority class: accuracy"] == pytest.approx((test.labels == majority).mean())
    right = []
    for fold in range(5):
        with pytest.warns(UserWarning, match="fewer subjects than the 5 folds"):
            rows = subject_split(labels, report.subjects.groups, fold=fold).test
        pool = np.flatnonzero(~np.isin(truth, truth[rows]))
        right += [labels[nearest(pixels, i, pool)] == labels[i] for i in rows]
    assert len(right) == len(labels)
    apart = report.table["subjects kept apart"]
    assert apart["1-nearest neighbour: accuracy"] == pytest.approx(np.mean(right))


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


def test_identical_slices_are_counted(parts):
    train, test, _ = parts
    images = test.images.copy()
    images[:3] = train.images[:3]
    copied = Scans(images, test.labels, test.class_names, test.rejected)
    subjects = recover_subjects(np.concatenate([train.images, test.images]))
    found = audit(train, copied, subjects=subjects)
    assert found.table.loc["pixel-identical slices across", "as published"] == 3


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
    assert 0.45 < nearest_figures["subjects kept apart"] < 0.55
    assert table.loc["1-NN, diagnoses shuffled: accuracy", "as published"] > 0.99
