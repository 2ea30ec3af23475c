"""The audit against explicit loops, and the leak that the phantoms have on purpose."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from mri.__main__ import main
from mri.data import sources
from mri.data.phantom import make_phantoms
from mri.data.scans import Scans, read_scans
from mri.subjects.leakage import audit, checklist
from mri.subjects.likeness import Likeness, View, nearest, turn
from mri.subjects.probes import TURNED, disagreement, shuffle_diagnoses
from mri.subjects.recovery import Subjects, recover_subjects
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


def closest_pixels(pixels: np.ndarray, query: int, pool: np.ndarray) -> int:
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
    found = np.array([labels[closest_pixels(pixels, 120 + i, pool)] for i in range(len(test))])
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
        right = np.array([labels[closest_pixels(pixels, i, pool)] == labels[i] for i in rows])
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
    found = audit(*parts, subjects=subjects)
    # The people in both parts explain what the nearest neighbour gains: nothing is left undecided.
    assert found.status == "leaky" and not found.reasons
    assert found.verdict.endswith("use subject_split.")
    table = found.table
    nearest_figures = table.loc["1-nearest neighbour: accuracy"]
    assert nearest_figures["as published"] > 0.99
    assert nearest_figures["subjects kept apart"] == pytest.approx(0.50, abs=0.02)
    balanced = table.loc["1-nearest neighbour: balanced accuracy"]
    assert balanced["as published"] > 0.99
    assert balanced["subjects kept apart"] == pytest.approx(0.37, abs=0.02)
    assert table.loc["1-NN, diagnoses shuffled: accuracy", "as published"] > 0.99


@pytest.mark.filterwarnings("ignore:the given subjects are believed")
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


def test_a_slice_without_a_stranger_has_no_correlation_with_one(parts):
    like = Likeness(parts[0].images[:3])
    found = nearest(like, {"strangers": View(np.arange(3), np.arange(3), np.zeros(3))})
    assert np.isnan(found["strangers"][1]).all()


def test_a_row_on_two_sides_fails_the_checklist(parts):
    scans = parts[0] + parts[1]
    rows = np.arange(len(scans))
    split = Split("image", rows[:50], rows[49:60], rows[60:])
    table = checklist(scans, split, rows).set_index("leakage")
    assert table.loc["L1.1 a test part of its own", "passes"] == "NO"


# A verdict that agrees with its probes ------------------------------------------------------------


def scans_of(images, labels, names=("a", "b", "c", "d")):
    return Scans(images, labels, names, pd.DataFrame(columns=["file", "row", "cause"]))


@pytest.mark.parametrize(
    "way", [1, 2, *(pytest.param(way, marks=pytest.mark.slow) for way in range(3, 8))]
)
def test_a_test_part_that_is_the_train_part_turned_is_leaky_whoever_people_are_taken_for(way):
    phantom = make_phantoms(12, 8, size=64, seed=4)
    turned = np.stack([turn(image, way) for image in phantom.images])
    train, test = scans_of(phantom.images, phantom.labels), scans_of(turned, phantom.labels)
    # As if the turned copies were of other people.
    strangers = recover_subjects(phantom.images)
    strangers = replace(strangers, groups=np.r_[phantom.subjects, phantom.subjects + 12])
    found = audit(train, test, subjects=strangers)
    assert found.leaky and found.status == "leaky"
    assert found.verdict.startswith("Leaky: 100.0% of the test slices are copies of a train slice")
    assert found.table.loc[TURNED, "as published"] == 1
    split = Split("subject", np.arange(80), np.arange(80, 96), np.arange(96, 192))
    table = checklist(train + test, split, strangers.groups).set_index("leakage")
    assert table.loc["L1.4 no duplicates across", "passes"] == "NO"


def test_a_test_part_that_is_the_train_part_inverted_is_leaky_whoever_people_are_taken_for():
    phantom = make_phantoms(12, 8, size=64, seed=4)
    parts = [scans_of(of, phantom.labels) for of in (phantom.images, 255 - phantom.images)]
    found = audit(*parts)
    assert found.verdict.startswith("Leaky: 100% of the test slices show a subject of the train")
    strangers = replace(found.subjects, groups=np.r_[phantom.subjects, phantom.subjects + 12])
    found = audit(*parts, subjects=strangers)
    assert found.table.loc[TURNED, "as published"] == 1 and found.leaky
    assert "exact, near, mirrored, turned or inverted" in found.verdict


HEIGHT, PERSON = np.tile(np.arange(24), 8), np.repeat(np.arange(8), 24)


@pytest.mark.parametrize(
    ("train", "test", "change", "answers"),
    [
        (PERSON < 6, PERSON >= 6, None, {"clean"}),
        (PERSON < 6, PERSON < 6, lambda x: x[:, ::-1], {"leaky"}),
        (PERSON < 6, PERSON < 6, lambda x: np.rot90(x, axes=(1, 2)), {"leaky"}),
        (PERSON < 6, PERSON < 6, lambda x: 255 - x, {"leaky"}),
        (PERSON < 6, PERSON < 6, lambda x: enlarged(x, 4), {"leaky", "undecided"}),
        (PERSON < 6, PERSON >= 5, lambda x: x[:, :, ::-1], {"leaky"}),
        (PERSON < 6, (PERSON < 6) & (HEIGHT % 7 == 0), None, {"leaky"}),
        (HEIGHT < 12, HEIGHT >= 12, None, {"leaky", "undecided"}),
        (PERSON == 0, PERSON == 1, None, {"clean", "undecided"}),
        (HEIGHT == 11, HEIGHT == 12, None, {"leaky", "undecided"}),
    ],
    ids=["apart", "upside down", "quarter turn", "negative", "cropped", "one person in both",
         "part of train", "lower and upper", "two people", "one slice a person"],
)  # fmt: skip
def test_whatever_the_parts_are_there_is_no_wrong_clean_bill(train, test, change, answers):
    phantom = make_phantoms(8, 24, size=64, seed=4)
    images = phantom.images[test] if change is None else change(phantom.images[test])
    parts = (
        scans_of(phantom.images[train], phantom.labels[train]),
        scans_of(np.ascontiguousarray(images), phantom.labels[test]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = audit(*parts)
    assert found.status in answers, found.verdict
    rows, first = np.arange(train.sum() + test.sum()), int(train.sum())
    split = Split("image", rows[: first - 2], rows[first - 2 : first], rows[first:])
    groups = None if found.subjects is None else found.subjects.groups
    table = checklist(parts[0] + parts[1], split, groups).set_index("leakage")["passes"]
    passes = {table["L1.4 no duplicates across"], table["L3.2 independent of training"]}
    assert ("NO" in passes) == (found.status == "leaky")


def enlarged(images, margin):
    inner = images[:, margin:-margin, margin:-margin]
    return np.stack([cv2.resize(image, images.shape[:0:-1]) for image in inner])


def test_a_neighbour_far_better_as_published_is_no_clean_bill(parts):
    labels = np.concatenate([parts[0].labels, parts[1].labels])
    same, other = (np.flatnonzero(of)[0] for of in (labels == 0, labels != 0))
    rows = np.flatnonzero(labels == 0)[:20]
    persons = np.arange(160) // 2
    found = {
        "as published: pixels": (np.full(160, same), None),
        "subjects kept apart: pixels": (np.full(160, other), None),
    }
    (told,) = disagreement(labels, persons, found, rows)
    assert "names 100% of the test slices rightly as published and 0% with the people" in told
    found["subjects kept apart: pixels"] = (np.full(160, same), None)
    assert disagreement(labels, persons, found, rows) == ()


@pytest.mark.parametrize("quality", [90, 60])
def test_near_copies_between_people_that_are_said_to_differ_are_no_clean_bill(quality):
    """Everybody of the test part is somebody of the train part, encoded anew."""
    made = make_phantoms(12, 10, size=64)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    blobs = [cv2.imencode(".jpg", image, options)[1] for image in made.images]
    again = replace(made.scans, images=np.stack([cv2.imdecode(blob, 0) for blob in blobs]))
    said = np.concatenate([made.subjects, made.subjects + 100])
    wrong = Subjects(said, 0.4, np.array([0.9]), np.array([0.1]))
    found = audit(made.scans, again, subjects=wrong)
    assert found.status in ("leaky", "undecided") and "No leak" not in found.verdict


@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_one_person_whom_the_given_ids_take_for_another_is_no_clean_bill():
    """Ids that begin anew in the test part, of which one person of two is in train too."""
    made = make_phantoms(8, 24, size=64, seed=4)
    height, person = np.tile(np.arange(24), 8), made.subjects
    moved = (person == 7) & (height % 2 == 0)
    train, test = (person < 6) | moved, (person >= 6) & ~moved
    rows = np.r_[np.flatnonzero(train), np.flatnonzero(test)]
    ids = [f"{'train' if train[i] else 'test'} {person[i]}" for i in rows]
    sides = [scans_of(made.images[of], made.labels[of]) for of in (train, test)]
    found = audit(*sides, subjects=ids)
    assert (found.status, found.table.iloc[0, 0]) == ("undecided", 9)
    # 12 slices of the person in both parts, and 24 of the other one.
    assert "because by the pixels 33.3% of the test slices show a subject of the" in found.verdict
    places = np.arange(len(rows))
    split = Split("subject", places[:100], places[100:156], places[156:])
    table = checklist(sides[0] + sides[1], split, np.unique(ids, return_inverse=True)[1])
    assert table["passes"][2] == "undecided" and "by the pixels 33.3%" in table["found"][2]


def test_ids_that_the_pixels_cannot_check_are_believed_with_a_warning():
    noise = np.random.default_rng(0).integers(0, 256, (40, 24, 24), dtype=np.uint8)
    sides = [scans_of(noise[of], np.zeros(20, int)) for of in (slice(20), slice(20, 40))]
    with pytest.warns(UserWarning, match="pixels cannot check them, because no clear gap"):
        assert audit(*sides, subjects=np.arange(40) // 4).status == "clean"


@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_ids_that_begin_anew_in_each_part_are_warned_of(parts):
    """Three people of 16 are in test: by ids from 0 they are the first three of train."""
    train, test, truth = parts
    held = np.isin(truth, [0, 5, 9])
    scans = train + test
    sides = [scans_of(scans.images[of], scans.labels[of]) for of in (~held, held)]
    anew = np.concatenate([np.unique(truth[of], return_inverse=True)[1] for of in (~held, held)])
    with pytest.warns(UserWarning, match="by the ids 3 people stand in both parts, by the pixels"):
        assert audit(*sides, subjects=anew).leaky
    named = [f"{'train' if i < (~held).sum() else 'test'}-{who}" for i, who in enumerate(anew)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert audit(*sides, subjects=named).status == "clean"
        assert audit(train, test, subjects=truth).leaky, "these people do stand in both parts"


def test_ids_of_any_kind_are_taken_and_others_refused(parts):
    train, test, truth = parts
    held = np.isin(truth, [0, 5, 9])
    scans, order = train + test, np.r_[np.flatnonzero(~held), np.flatnonzero(held)]
    sides = [scans_of(scans.images[of], scans.labels[of]) for of in (~held, held)]
    ids = truth[order]
    for given in (ids, ids.tolist(), pd.Series(ids), [f"OAS1_{i:04d}" for i in ids], ids - 4.0):
        found = audit(*sides, subjects=given)
        assert (found.status, found.table.iloc[0, 0]) == ("clean", 16)
        assert len(set(zip(found.subjects.groups, ids, strict=True))) == 16
    for wrong in (ids[: len(train)], np.where(ids == 3, np.nan, ids), ids[:, None]):
        with pytest.raises(ValueError, match="must be an id of each of 160 slices, train first"):
            audit(*sides, subjects=wrong)
    with pytest.raises(ValueError, match=r"Pass Scans.*given=\['ndarray', 'ndarray'\]"):
        audit(train.images, test.images)


def test_blank_slices_in_both_parts_are_no_copies(parts):
    """As exports of whole volumes have them below and above the head."""
    train, test, truth = parts
    held = np.isin(truth, [0, 5, 9])
    scans = train + test
    blank = np.zeros_like(scans.images[:2])
    sides = [scans_of(np.r_[scans.images[of], blank], np.r_[scans.labels[of], [0, 1]])
             for of in (~held, held)]  # fmt: skip
    found = audit(*sides)
    assert found.status == "undecided" and "4 slices are constant" in found.verdict
    assert found.table.loc["pixel-identical slices across", "as published"] == 0
    assert "another label" not in found.verdict
    n, first = len(scans) + 4, len(sides[0])
    split = Split("subject", np.arange(50), np.arange(50, first), np.arange(first, n))
    table = checklist(sides[0] + sides[1], split, None).set_index("leakage")
    assert table.loc["L1.4 no duplicates across", "passes"] == "yes"


def test_where_nobody_can_be_told_copies_twins_and_probes_are_reported():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 24, 24), dtype=np.uint8)
    labels = np.arange(60) % 3
    found = audit(scans_of(noise[:40], labels[:40]), scans_of(noise[40:], labels[40:]))
    assert found.subjects is None and found.status == "undecided" and not found.leaky
    assert found.verdict.startswith("Undecided: ") and "because no clear gap" in found.verdict
    assert found.table["subjects kept apart"].isna().all()
    assert np.isfinite(found.table.loc["1-nearest neighbour: accuracy", "as published"])
    assert len(found.twins) == 20
    copied = noise[40:].copy()
    copied[:5], copied[5] = noise[:5], noise[7][:, ::-1]
    found = audit(scans_of(noise[:40], labels[:40]), scans_of(copied, labels[40:]))
    assert found.subjects is None and found.leaky
    assert found.table.loc["pixel-identical slices across", "as published"] == 5
    assert found.table.loc[TURNED, "as published"] == 1 / 20
    assert found.verdict.startswith("Leaky: 25.0% of the test slices are copies")
    # Who takes these out would believe that the others are clean.
    assert "take them out. Whether it is more cannot be decided, because no cle" in found.verdict
    split = Split("image", np.arange(30), np.arange(30, 40), np.arange(40, 60))
    table = checklist(scans_of(noise, labels), split, None).set_index("leakage")["passes"]
    assert table.tolist() == ["yes", "yes", "undecided", "undecided"]


def test_what_recovery_doubts_is_no_clean_bill(parts, monkeypatch):
    train, test, truth = parts
    scans, held = train + test, np.isin(truth, [0, 5, 9])

    def doubtful(images, labels):
        return replace(recover_subjects(images, labels), warnings=("halves: groups 1, 2",))

    monkeypatch.setattr("mri.subjects.leakage.recover_subjects", doubtful)
    sides = [scans_of(scans.images[of], scans.labels[of]) for of in (~held, held)]
    found = audit(*sides)
    assert found.status == "undecided"
    assert "because halves: groups 1, 2" in found.verdict


def test_one_source_without_parts_is_searched_within(parts):
    train, _, _ = parts
    images = train.images.copy()
    images[7] = images[3]
    found = audit(scans_of(images, train.labels), subjects=recover_subjects(train.images))
    assert found.status == "undivided" and not found.leaky
    assert found.verdict.startswith("Not divided: there is no train and test part to compare; 16 s")
    assert found.within.loc["pixel-identical to an earlier one", "all"] == 1
    assert len(found.table) == len(found.twins) == 0
    assert "with a near duplicate" in repr(found)


@pytest.mark.parametrize("change", [0, 1], ids=["to the pixel", "encoded anew"])
def test_one_picture_with_different_labels_is_told(change):
    phantom, rows = make_phantoms(8, 5, size=64, seed=4), np.arange(40)
    images, labels = phantom.images.copy(), phantom.labels.copy()
    images[7], images[9], labels[9] = images[3], images[3], (labels[3] + 1) % 4
    images[9] = (images[9].astype(int) + change * (np.arange(64) % 3 - 1)).clip(0, 255)
    labels[7] = labels[3]
    known = Subjects(phantom.subjects, 0.5, np.ones(1), np.zeros(1))
    told = " 3 slices stand there with another label too; correct the labels."
    whole, parts = scans_of(images, labels), (rows % 4 > 0, rows % 4 == 0)
    sides = [scans_of(images[of], labels[of]) for of in parts]
    order = np.concatenate([rows[of] for of in parts])
    divided = audit(*sides, subjects=replace(known, groups=phantom.subjects[order]))
    for found in (divided, audit(whole, subjects=known)):
        assert found.verdict.endswith(told) and found.to_dict()["verdict"].endswith(told)
        assert (
            found.within.loc["copies of one with another label, exact or near (r ≥ 0.99)"].sum()
            == 3
        )
        assert told.strip() in found._repr_html_()
    split = Split("image", rows[:20], rows[20:30], rows[30:])
    table = checklist(whole, split, None).set_index("leakage")["found"]
    assert "; 3 stand there with another label too" in table["L1.4 no duplicates across"]
    whole = scans_of(phantom.images, phantom.labels)
    assert "another label" not in audit(whole, subjects=known).verdict


@pytest.mark.parametrize("n", [2, 40])
def test_where_recovery_cannot_be_tried_the_audit_says_why(n):
    """A black slice, or too few: copies are told all the same."""
    images = np.random.default_rng(1).integers(0, 256, (n, 24, 24), dtype=np.uint8)
    images[0] = 0
    labels = np.arange(n) % 2
    sides = (slice(None, n // 2), slice(n // 2, None))
    found = audit(*(scans_of(images[of], labels[of]) for of in sides))
    why = "n of at least 3" if n == 2 else "1 slices are constant, the first at index 0"
    assert found.status == "undecided" and why in found.verdict


# The command --------------------------------------------------------------------------------------


def folders(root, sides):
    """Write class folders for each side, PNG."""
    for side, scans in sides.items():
        for i, (image, label) in enumerate(zip(scans.images, scans.labels, strict=True)):
            folder = root / side / scans.class_names[label]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    return root


@pytest.mark.slow
def test_the_command_on_folders_writes_page_and_figures(tmp_path, capsys):
    phantom = make_phantoms(12, 24, size=64, seed=4)
    odd = np.arange(288) % 2 == 1
    sides = {side: scans_of(phantom.images[of], phantom.labels[of])
             for side, of in (("train", ~odd), ("test", odd))}  # fmt: skip
    root = folders(tmp_path / "set", sides)
    arguments = [
        "audit",
        str(root),
        "--html",
        str(tmp_path / "a/r.html"),
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Leaky: 100% of the test slices show a subject of the train part")
    assert "comparing all slices: 100%" in err
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["status"], told["leaky"], len(told["twins"])) == ("leaky", True, 144)
    assert told["figures"]["as published"]["subjects"] == 12
    page = (tmp_path / "a/r.html").read_text()
    assert page.index("Leaky: 100%") < page.index("<table")
    assert page.count("data:image/png;base64,") == 24
    both = [str(root / side) for side in ("train", "test")]
    assert main(["audit", *both, "--quiet", "--cache", str(tmp_path / "c.npy")]) == 1
    assert capsys.readouterr().err == "" and (tmp_path / "c.npy").exists()
    assert main(["audit", str(root / "train"), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("Not divided: ")
    assert main(["audit", str(tmp_path / "gone")]) == 1
    assert "no parquet file found" in capsys.readouterr().err


def test_the_command_ends_with_3_where_nothing_is_decided(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (60, 24, 24), dtype=np.uint8)
    labels = np.arange(60) % 3
    root = folders(tmp_path, {"train": scans_of(noise[:40], labels[:40]),
                              "test": scans_of(noise[40:], labels[40:])})  # fmt: skip
    assert main(["audit", str(root), "--quiet"]) == 3
    assert capsys.readouterr().out.startswith("Undecided: ")


def test_the_command_opens_its_source_once(tmp_path, monkeypatch, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (12, 24, 24), dtype=np.uint8)
    made = {side: scans_of(of, np.arange(12) % 2)
            for side, of in (("train", noise), ("test", noise[:, ::-1]))}  # fmt: skip
    root, opened = folders(tmp_path, made), []
    from_path = sources.from_path
    monkeypatch.setattr(sources, "from_path", lambda *of: opened.append(of) or from_path(*of))
    assert main(["audit", str(root), "--quiet"]) == 1
    assert capsys.readouterr().out.startswith("Leaky: 100.0%") and len(opened) == 1


def test_messages_of_the_command_name_its_options(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sizes = [(24, 24)] * 20 + [(24, 26)] * 20
    pictures = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    blobs = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]

    def file(name, labels):
        frame = pd.DataFrame({"image": blobs, "label": labels})
        frame["split"] = ["train", "test"] * 20
        frame.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    def told(*arguments):
        status = main(["audit", *arguments, "--quiet"])
        return status, capsys.readouterr()

    numbers = file("numbers.parquet", np.arange(40) // 10)
    named, size = ["--classes", "a,b,c,d"], ["--size", "24", "24"]
    assert told(numbers, *named)[1].err.rstrip().endswith("pass --size H W")
    for names in ("a,b,c,d", "3=d,0=a, 1=b ,2=c"):
        status, said = told(numbers, *size, "--classes", names)
        assert (status, said.err) == (3, "") and said.out.startswith("Undecided: ")
    said = told(numbers, *size, "--classes", "a,b")[1].err
    assert "--classes NAME,NAME in label order, or --classes LABEL=NAME" in said
    assert "class_names" not in said
    texts = file("texts.parquet", np.array(["0.5", "1", "0", "0.5"])[np.arange(40) // 10])
    assert told(texts, *size, "--classes", "0.5=a")[0] == 1


@pytest.mark.slow
def test_a_warning_of_the_command_is_one_plain_line(tmp_path):
    blob = cv2.imencode(".png", np.arange(576, dtype=np.uint8).reshape(24, 24))[1].tobytes()
    frame = pd.DataFrame({"image": [blob] * 4, "label": range(4)})
    frame.to_parquet(tmp_path / "all.parquet")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mri", "audit", str(tmp_path / "all.parquet"), "--quiet"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False).stderr
    assert re.match(r"Warning: .*no class names in the data.*--classes LABEL=NAME.*\n", said)
    assert ".py:" not in said


def test_the_command_takes_the_validation_part_for_a_part_of_train(tmp_path, capsys):
    """The test part repeats it, which a comparison with train alone does not see."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 24, 24), dtype=np.uint8)
    labels = np.arange(60) % 3
    sides = {"train": slice(0, 40), "val": slice(40, 60), "test": slice(40, 60)}
    made = {side: scans_of(noise[of], labels[of]) for side, of in sides.items()}
    made["test"] = scans_of(noise[40:, ::-1], labels[40:])
    root = folders(tmp_path / "set", made)
    assert main(["audit", str(root), "--quiet", "--json", str(tmp_path / "a.json")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Leaky: 100.0% of the test slices are copies")
    assert "Compared: test with train and validation." in out
    assert len(json.loads((tmp_path / "a.json").read_text())["twins"]) == 20
    shutil.rmtree(root / "test")
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert main(["audit", str(root), "--quiet", *files]) == 3
    # In the figures the validation part is called test.
    told = "Compared: validation with train."
    assert told in capsys.readouterr().out and told in (tmp_path / "a.html").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["compared"] == told
    shutil.rmtree(root / "train")
    (root / "val").rename(root / "test")
    assert main(["audit", str(root), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("Not divided: ")
