"""Classes in another order, or spelt otherwise, are the same classes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mri._keras import keras
from mri.data.labels import places_of
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.evaluation.comparison import compare
from mri.evaluation.metrics import evaluate
from mri.evaluation.significance import pairwise
from mri.models.files import save_model
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


def test_a_comparison_settles_the_order_of_the_classes_by_name(tmp_path, striped_scans):
    """Twins that number the classes in two ways have the same figures, on slices in either way."""
    subjects = np.repeat(np.arange(40), 2)
    scans = striped_scans(subjects, 16, CLASS_NAMES, np.random.default_rng(0))
    at = [2, 3, 0, 1]
    turned = replace(scans, class_names=TURNED, labels=scans.labels_as(TURNED))
    np.testing.assert_array_equal(turned.labels, np.argsort(at)[scans.labels])
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(4)]
    )
    card = {"split": {"protocol": "subject"}, "temperature": 1.0, "test_rows": list(range(40))}
    for name, own in (("public", scans), ("turned", turned)):
        facts = card | {"class_names": list(own.class_names), "data": own.fingerprint()}
        save_model(model, tmp_path / f"{name}.keras", facts)
        kernel, bias = model.get_weights()
        model.set_weights([kernel[:, at], bias[at]])
    figures = ["balanced_accuracy_3", "accuracy", "macro_f1", "macro_auc", "log_loss", "ece"]
    expected = None
    for given in ((scans, subjects), (turned, subjects), (None, None)):
        found = compare(*given, tmp_path)
        table = found.table.set_index("model")
        assert (table["protocol"] == "subject").all(), table["note"].tolist()
        rows = table.loc[["public", "turned"], figures].to_numpy(float)
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
        assert table.loc["public", "low"] == pytest.approx(table.loc["turned", "low"])
        expected = rows if expected is None else expected
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        if given[0] is not None:  # Else nobody knows that they are the same slices.
            assert found.p_values["subject"].loc["public", "turned"] == 1
        names = CLASS_NAMES if given[0] is None else given[0].class_names
        shown = found.evaluations["turned"].class_names
        assert places_of(names, shown) == [0, 1, 2, 3], "in the order of the slices"
        assert len(found.disagreements("public", "turned")) == 0
    others = replace(scans, class_names=("a", "b", "c", "d"))
    notes = compare(others, subjects, tmp_path).table["note"]
    assert notes.str.contains("those compared have ('a', 'b', 'c', 'd')", regex=False).all()
