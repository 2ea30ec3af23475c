"""Hardly any slices, people or classes: each gets a figure, a warning or a clear error."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import mri
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.subjects.linking import UnclearSubjectsError
from mri.training.recipe import RECIPES, Recipe

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ONCE = Recipe(epochs=1, batch_size=4, dtype="float32")


def scans(labels, size=32, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(110, 40, (len(labels), size, size)).clip(0, 255).astype(np.uint8)
    rejected = pd.DataFrame(columns=["file", "row", "cause"])
    return Scans(images, np.asarray(labels), CLASS_NAMES, rejected, synthetic=True)


def logits(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4))


# --- few slices ---


def test_one_slice_is_measured_and_the_notes_warn():
    """Right or wrong, with Wilson's interval of one; its loss is the logarithm of its share."""
    evaluation = mri.evaluate(np.array([2]), logits(1), np.array([7]))
    found = evaluation.metrics["subject"]
    share = np.exp(logits(1)[0]) / np.exp(logits(1)[0]).sum()
    right, z = share.argmax() == 2, 1.959964
    wilson = (1 / (1 + z**2), 1) if right else (0, z**2 / (1 + z**2))
    assert found["accuracy"] == pytest.approx((float(right), *wilson))
    assert found["log_loss"].value == pytest.approx(-np.log(share[2]))
    assert str(found["macro_auc"]) == "undefined"
    notes = " ".join(evaluation.notes)
    assert "1 Non_Demented subject: too few for a claim" in notes
    assert "One class only: no AUC exists." in notes
    assert "Zero-width intervals" in notes


def test_ten_slices_of_one_person_are_not_divided():
    with pytest.raises(ValueError, match=r"need at least 5 subjects\. Received: subjects=1"):
        mri.subject_split(np.full(10, 2), np.zeros(10, int))


@pytest.mark.filterwarnings("ignore:fewer subjects than the")
@pytest.mark.parametrize(("subjects", "folds"), [(2, 2), (1, 2), (4, 5)])
def test_too_few_people_for_the_folds_are_counted(subjects, folds):
    groups = np.repeat(np.arange(subjects), 4)
    with pytest.raises(ValueError, match=rf"Received: subjects={subjects}"):
        mri.subject_split(groups % 2, groups, folds=folds)


def test_three_people_are_the_least_that_can_be_divided():
    groups = np.repeat(np.arange(3), 4)
    with pytest.warns(UserWarning, match=r"fewer subjects than the 3 folds \(class 0: 1"):
        split = mri.subject_split(groups, groups, folds=3)
    parts = [set(groups[getattr(split, side)]) for side in ("train", "validation", "test")]
    assert all(parts)
    assert sum(map(len, parts)) == 3


def test_ten_slices_of_strangers_are_no_subjects():
    """Rather than any answer."""
    few = scans([2] * 10)
    with pytest.raises(UnclearSubjectsError, match="no clear gap"):
        mri.recover_subjects(few.images, few.labels)
    verdict = mri.audit(few, scans([2] * 5, seed=1)).verdict
    assert verdict.startswith("Undecided: ") and "because no clear gap" in verdict


def test_ten_slices_are_trained_on(tmp_path):
    few = scans([0, 2] * 5)
    groups = np.arange(10)
    split = mri.subject_split(few.labels, groups)
    run = mri.train("tissue", few, split, recipe=ONCE, folder=tmp_path, verbose=0)
    assert set(run.card["validation"]) == {"accuracy", "balanced_accuracy"}
    assert mri.predict_logits(run.model, few.images).shape == (10, 4)


@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_a_fold_that_leaves_one_person_asks_for_more_folds():
    groups = np.repeat(np.arange(3), 4)
    with pytest.raises(ValueError, match=r"Fold 0 leaves too few subjects; use more folds"):
        mri.subject_split(groups, groups, fold=0, folds=2)


# --- few classes ---


def test_a_single_class_has_the_figures_that_exist():
    """Recall of the one class, and no AUC: there is nothing to tell it from."""
    n, values = 40, logits(40)
    found = mri.evaluate(np.full(n, 2), values, np.repeat(np.arange(8), 5)).metrics["slice"]
    right = (values.argmax(1) == 2).mean()
    assert found["accuracy"].value == pytest.approx(right)
    assert found["balanced_accuracy"].value == pytest.approx(right)
    assert np.isnan(found["macro_auc"].value)
    shares = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    expected = log_loss(np.full(n, 2), shares, labels=range(4))
    assert found["log_loss"].value == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_a_single_class_is_cross_validated(tmp_path):
    """Every fold lacks three classes."""
    one, groups = scans([2] * 40), np.repeat(np.arange(8), 5)
    options = {"recipe": ONCE, "folds": 2, "folder": tmp_path}
    found = mri.cross_validate("tissue", one, groups, **options)
    assert sorted(found.pooled()["row"]) == list(range(40))
    figures = found.evaluate().metrics["subject"]
    assert 0 <= figures["accuracy"].value <= 1
    assert str(figures["demented_auc"]) == "undefined"


def test_a_class_that_a_fold_lacks_is_named_and_measured_over_the_others():
    labels = np.repeat([0, 0, 0, 0, 1, 2, 2, 2, 2], 3)
    groups = np.repeat(np.arange(9), 3)
    with pytest.warns(UserWarning, match=r"than the 4 folds \(class 1: 1\)"):
        folds = [mri.subject_split(labels, groups, fold=fold, folds=4) for fold in range(4)]
    lacking = [fold for fold in folds if 1 not in labels[fold.test]]
    assert len(lacking) == 3
    rows, values = lacking[0].test, logits(len(labels))
    found = mri.evaluate(labels[rows], values[rows], groups[rows]).metrics["slice"]
    recalls = [(values[rows].argmax(1) == c)[labels[rows] == c].mean() for c in (0, 2)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))


# --- small and empty images ---


@pytest.mark.parametrize("name", sorted(set(mri.list_models()) - {"resnet50", "efficientnet_b3"}))
def test_a_network_on_one_pixel_says_that_it_is_too_small(name):
    with pytest.raises(ValueError, match=rf"{name} cannot be built on slices of 1 × 1 pixels"):
        mri.build_model(name, input_shape=(1, 1, 1))


def test_training_on_one_pixel_names_the_network(tmp_path):
    dots, groups = scans([0, 2] * 20, size=1), np.arange(40)
    split = mri.subject_split(dots.labels, groups)
    with pytest.raises(ValueError, match="compact cannot be built on slices of 1 × 1"):
        mri.train("compact", dots, split, recipe=RECIPES["default"], folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 32])
def test_slices_without_a_pattern_are_counted(size):
    blank = scans([0, 2] * 5, size=size)
    blank.images[:] = 7
    with pytest.raises(ValueError, match="10 slices are constant, the first at index 0"):
        mri.recover_subjects(blank.images, blank.labels)
    with pytest.raises(ValueError, match="slices are constant"):
        mri.audit(blank, blank)


@pytest.mark.slow
def test_black_slices_are_trained_on_without_a_number_that_is_none(tmp_path):
    blank, groups = scans([0, 2] * 20), np.arange(40)
    blank.images[:] = 0
    split = mri.subject_split(blank.labels, groups)
    run = mri.train("tissue", blank, split, recipe=ONCE, folder=tmp_path, verbose=0)
    assert np.isfinite(mri.predict_logits(run.model, blank.images)).all()
    assert np.isfinite(run.card["history"]["loss"]).all()
