"""One number a person: what it measures, and how it is cut."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mri.data.phantom import make_phantoms
from mri.evaluation.metrics import pooled_three
from mri.subjects.person import person_tones
from mri.training.one_number import ONE_NUMBER, fluid_share, gray_share, ventricle_share
from mri.training.ordinal import fit_ordinal, severity_of

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
    for name in ("ventricle volume", "all fluid"):
        number, sign = ONE_NUMBER[name]
        values = sign * np.array([number(images) for images in tones])
        assert roc_auc_score(ill, values) > 0.7


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
    fitted = fit_ordinal(values, labels, NAMES)
    means = [values[severity == k].mean() for k in range(3)]
    expected = [(means[0] + means[1]) / 2, (means[1] + means[2]) / 2]
    np.testing.assert_allclose(fitted.cuts, expected)
    grid = np.linspace(-2, 4, 601)
    _, pooled = pooled_three(np.zeros(601, int), fitted.logits(grid), NAMES)
    found = severity_of(pooled.argmax(1), NAMES)
    np.testing.assert_array_equal(found, (grid > expected[0]) * 1 + (grid > expected[1]))


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
    _, pooled = pooled_three(np.zeros(50, int), fitted.logits(np.linspace(-3, 1, 50)), NAMES)
    assert set(severity_of(pooled.argmax(1), NAMES)) == {0, 2}


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
