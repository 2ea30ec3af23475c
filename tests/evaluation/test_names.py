"""Classes in another order, or spelt otherwise, are the same classes."""

import numpy as np
import pandas as pd
import pytest

from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.evaluation.metrics import evaluate
from mri.evaluation.significance import pairwise
from mri.plots.style import COLOURS, class_colour, severity_order

TURNED = ("NonDemented", "VeryMildDemented", "MildDemented", "ModerateDemented")


@pytest.fixture
def measured():
    """Labels and logits in public order, and the same data in another order of classes."""
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 80), rng.normal(size=(80, 4))
    # Where each class of the other order stands in the public one.
    at = [2, 3, 0, 1]
    turned = np.argsort(at)[labels]
    none = pd.DataFrame(columns=["file", "row", "cause"])
    scans = Scans(np.zeros((80, 2, 2), np.uint8), turned, TURNED, none)
    return labels, logits, logits[:, at], scans


def test_scans_bring_their_names_and_order(measured):
    labels, logits, turned, scans = measured
    expected = evaluate(labels, logits, draws=20).metrics["slice"]
    for found in (
        evaluate(scans, turned, draws=20),
        evaluate(scans, logits, class_names=CLASS_NAMES, draws=20),
    ):
        assert found.metrics["slice"].keys() == expected.keys()
        for key, estimate in expected.items():
            assert found.metrics["slice"][key].value == pytest.approx(estimate.value), key
    with pytest.raises(ValueError, match="class_names differ"):
        evaluate(scans, logits, class_names=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="are the same name"):
        evaluate(labels, logits, class_names=("a b", "A_B", "c", "d"))


def test_pairs_are_compared_by_name(measured):
    labels, logits, turned, scans = measured
    people = np.arange(80)
    one = evaluate(labels, logits, people, draws=20)
    two = evaluate(scans, turned, people, draws=20)
    for metric in ("balanced_accuracy", "balanced_accuracy_3", "log_loss"):
        assert pairwise({"one": one, "two": two}, metric=metric).loc["one", "two"] == 1
    other = evaluate(labels, turned, people, class_names=TURNED, draws=20)
    with pytest.raises(ValueError, match="'other' was measured on other slices than 'one'"):
        pairwise({"one": one, "other": other})


def test_figures_know_the_public_names_in_any_spelling():
    assert severity_order(TURNED) == [0, 1, 2, 3]
    assert [class_colour(TURNED, c) for c in range(4)] == list(COLOURS.values())
