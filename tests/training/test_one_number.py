"""One number a person: what it measures, and how it is cut."""

import numpy as np
import pytest

from mri.data.phantom import Phantoms, make_phantoms
from mri.evaluation.metrics import pooled_three
from mri.subjects.person import person_tones
from mri.training.glass_box import fit_ordinal, severity_of
from mri.training.one_number import (
    ONE_NUMBER,
    fit_one_number,
    fluid_share,
    gray_share,
    ventricle_share,
)
from mri.training.people import SHUFFLED, judge_people
from mri.training.people_table import (
    against_one_number,
    auc_difference,
    compare_people,
    figures_by_division,
    people_table,
    wins,
)

NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")


def disc(radius: float, value: float, image: np.ndarray | None = None) -> np.ndarray:
    rows, columns = np.mgrid[:128, :128] - 63.5
    image = np.zeros((128, 128)) if image is None else image.copy()
    image[np.hypot(rows, columns) < radius] = value
    return image


def test_fluid_and_ventricles_of_a_head_of_discs():
    # Gray of radius 40 in a rim of fluid to 50, and a ventricle of radius 10 in the middle.
    head = disc(10, 30, disc(40, 130, disc(50, 30)))[None]
    ring, whole, inner = 50**2 - 40**2, 50**2, 10**2
    assert fluid_share(head) == pytest.approx((ring + inner) / whole, rel=0.02)
    assert ventricle_share(head) == pytest.approx(inner / whole, rel=0.05)


def test_gray_share_of_two_tones():
    head = disc(20, 140, disc(50, 110))[None]
    part = (20 / 50) ** 2
    assert gray_share(head) == pytest.approx(1 - part + part * np.exp(-1), rel=0.01)


def test_black_holes_count_as_fluid_and_the_outside_does_not():
    head = disc(10, 0, disc(50, 130))[None]
    assert fluid_share(head) == pytest.approx(0.04, rel=0.05)
    assert fluid_share(np.pad(head, ((0, 0), (30, 30), (30, 30)))) == fluid_share(head)


def test_signs_are_those_of_atrophy():
    phantoms = make_phantoms(16, 8, size=64, seed=3)
    ill = np.array([phantoms.labels[phantoms.subjects == p][0] != 2 for p in range(16)])
    tones = [person_tones(phantoms.images[phantoms.subjects == p]).images for p in range(16)]
    for name in ("ventricles", "all fluid"):
        number, sign = ONE_NUMBER[name]
        values = sign * np.array([number(images) for images in tones])
        assert wins(values[None], ill.astype(int)).mean() > 0.7


@pytest.mark.parametrize(
    "images", [np.zeros((3, 8)), np.full((1, 8, 8), np.nan), np.full((1, 8, 8), "a")]
)
def test_what_has_no_number_is_refused(images):
    for number, _ in ONE_NUMBER.values():
        with pytest.raises(ValueError, match=r"images must be finite \(n, h, w\)"):
            number(images)


def test_darkness_is_refused():
    with pytest.raises(ValueError, match="Some pixel must be above"):
        gray_share(np.zeros((2, 8, 8)))


def test_cuts_are_half_way_between_means_and_argmax_cuts_there(rng):
    labels = np.repeat([2, 3, 0, 1], [40, 30, 20, 4])
    severity = severity_of(labels, NAMES)
    values = severity + rng.normal(0, 0.7, len(labels))
    fitted = fit_one_number(values, labels, NAMES)
    means = [values[severity == k].mean() for k in range(3)]
    expected = [(means[0] + means[1]) / 2, (means[1] + means[2]) / 2]
    np.testing.assert_allclose(fitted.ordinal.cuts, expected)
    grid = np.linspace(-2, 4, 601)
    _, pooled = pooled_three(np.zeros(601, int), fitted.logits(grid), NAMES)
    found = severity_of(pooled.argmax(1), NAMES)
    np.testing.assert_array_equal(found, (grid > expected[0]) * 1 + (grid > expected[1]))
    np.testing.assert_array_equal(found, fitted.ordinal.severity(grid))


def test_steepness_has_the_least_log_loss(rng):
    labels = rng.choice(4, 300, p=[0.14, 0.01, 0.5, 0.35])
    severity = severity_of(labels, NAMES)
    values = 0.3 * severity + rng.normal(0, 0.2, 300)
    fitted = fit_ordinal(values, labels, NAMES)

    def loss(steepness: float) -> float:
        ranks = np.arange(3)
        z = steepness * (ranks * values[:, None] - np.array([0, *np.cumsum(fitted.cuts)]))
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return -np.log(p[np.arange(300), severity]).mean()

    best = loss(fitted.steepness)
    assert best < min(loss(0.95 * fitted.steepness), loss(1.05 * fitted.steepness))


def test_moderate_has_its_share_of_mild(rng):
    labels = np.repeat([0, 1, 2, 3], [9, 2, 20, 20])
    fitted = fit_ordinal(rng.normal(size=51) + severity_of(labels, NAMES), labels, NAMES)
    logits = fitted.logits(np.array([-1.0, 0.0, 3.0]))
    np.testing.assert_allclose(logits[:, 0] - logits[:, 1], np.log(9.5 / 2.5))


def test_scores_that_fall_with_severity_leave_the_middle_empty():
    labels = np.repeat([2, 3, 0], 4)
    fitted = fit_ordinal(-severity_of(labels, NAMES) + np.tile([0.0, 0.1], 6), labels, NAMES)
    assert fitted.cuts[0] == fitted.cuts[1]
    assert set(fitted.severity(np.linspace(-3, 1, 50))) == {0, 2}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [2, 3], "Each severity must have people"),
        ([1.0, 1.0, 1.0], [2, 3, 0], "scores must be finite and differ"),
        ([1.0, np.nan, 1.0], [2, 3, 0], "scores must be finite and differ"),
        ([1.0, 2.0], [2, 3, 0], "scores must be one a label"),
        ([1.0, 2.0, 3.0], [2, 3, 4], "labels must be 0 to 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_ordinal(np.array(scores), np.array(labels), NAMES)


def test_wins_against_brute_force(rng):
    from sklearn.metrics import roc_auc_score

    scores = rng.integers(0, 6, (3, 30)).astype(float)
    severity = np.arange(30) % 3
    expected = np.mean([roc_auc_score(severity > 0, x) for x in scores])
    assert wins(scores, severity).mean() == pytest.approx(expected)
    mild = severity != 1
    expected = np.mean([roc_auc_score(severity[mild] > 0, x[mild]) for x in scores])
    assert wins(scores, severity, (2,)).mean() == pytest.approx(expected)


def test_auc_difference_knows_equal_from_better(rng):
    severity = np.repeat([0, 1, 2], 30)
    noise = rng.normal(size=(2, 90))
    good = severity + 0.5 * noise
    assert auc_difference(good, good, severity) == (0.0, 0.0, 0.0, 1.0)
    value, low, high, p = auc_difference(good, noise, severity)
    assert 0 < low < value < high
    assert p < 0.01
    back = auc_difference(noise, good, severity)
    np.testing.assert_allclose(back[:3], (-value, -high, -low))


@pytest.fixture(scope="module")
def many() -> Phantoms:
    return make_phantoms(20, 32, size=64, seed=2)


def test_twenty_phantoms_end_to_end_and_resumed(many, tmp_path, monkeypatch):
    scans, groups = many.scans, many.subjects
    kept = ("glass box, registered", "gray share", "ventricles", "all fluid")
    options = {"models": kept, "divisions": 1, "folds": 4, "folder": tmp_path / "runs"}
    table = compare_people(scans, groups, output=tmp_path / "people", **options)
    assert list(table.index) == [m + end for m in kept for end in ("", SHUFFLED)]
    text = (tmp_path / "people.md").read_text()
    assert "20 people (synthetic phantom slices)" in text
    assert "| glass box, registered, less gray share |" in text
    assert (tmp_path / "people.parquet").stat().st_size < 100_000
    monkeypatch.setattr("mri.training.people._judge", lambda *_: pytest.fail("computed again"))
    frame = judge_people(scans, groups, **options)
    assert len(frame) == 2 * len(kept) * 20
    real = frame[~frame["model"].str.endswith(SHUFFLED)]
    truth = many.labels[::32]
    for _, of in real.groupby("model"):
        np.testing.assert_array_equal(of.sort_values("subject")["label"], truth)
    figures = figures_by_division(frame, scans.class_names)
    ventricles = figures[figures["model"] == "ventricles"].iloc[0]
    assert ventricles["auc"] > 0.7
    assert len(people_table(frame, scans.class_names)) == 2 * len(kept)
    against = against_one_number(frame, scans.class_names, rival="ventricles")
    assert "ventricles" not in against.index
    with pytest.raises(ValueError, match="rival must be one of"):
        against_one_number(frame, scans.class_names, rival="all")


def test_a_fold_does_not_see_whom_it_tests(many, tmp_path):
    """Scores of a fold stay the same when its own people's diagnoses and numbers change."""
    from mri.training.people import _judge, _prepared

    people = _prepared(many.scans, many.subjects)
    first = _judge("gray share", people, 0, 5)
    test = next(people.tested(0, 5))
    changed = people.labels.copy()
    changed[test] = np.roll(changed[test], 1)
    object.__setattr__(people, "labels", changed)
    second = _judge("gray share", people, 0, 5)
    mine = first["subject"].isin(np.unique(many.subjects)[test]) & (first["model"] == "gray share")
    logits = [f"logit_{name}" for name in NAMES]
    np.testing.assert_array_equal(first[mine][logits], second[mine][logits])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("oracle",)}, "models must be some of"),
        ({"models": ()}, "models must be some of"),
        ({"divisions": 0}, "divisions must be at least 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(many, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        judge_people(many.scans, many.subjects, folder=tmp_path, **options)


def test_a_table_without_the_rival_is_refused(many, tmp_path):
    with pytest.raises(ValueError, match=r"models must include \('gray share', 'all fluid'\)"):
        compare_people(many.scans, many.subjects, models=("ventricles",), folder=tmp_path)
