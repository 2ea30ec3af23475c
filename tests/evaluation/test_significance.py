"""Paired tests against SciPy, closed forms and brute force, and what they promise in simulation."""

from itertools import product
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score

from mri.evaluation.metrics import evaluate, pooled_three
from mri.evaluation.significance import (
    ADDITIVE,
    auc_difference,
    holm,
    leading_group,
    pairwise,
    share_difference,
    shares_of,
    sign_flip,
)

NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")


def measured(labels, logits, subjects, names=NAMES):
    return evaluate(labels, logits, subjects, class_names=names, draws=1)


@pytest.fixture
def people(rng):
    """Labels and subjects of 30 people of 1 to 6 slices each, all four classes."""
    sizes = rng.integers(1, 7, 30)
    subjects = np.repeat(np.arange(30), sizes)
    return (np.arange(30) % 4)[subjects], subjects


def mcnemar(first, second):
    """McNemar's exact test: the two-sided binomial tail of those who differ."""
    better, differing = int((first & ~second).sum()), int((first != second).sum())
    tail = sum(comb(differing, i) for i in range(min(better, differing - better) + 1))
    return min(1, 2 * tail / 2**differing)


# --- Holm ---


def slow_holm(p):
    """Go down the ranks by the definition: max over smaller ones of (m - rank) p."""
    finite = [value for value in p if np.isfinite(value)]
    adjusted = []
    for value in p:
        if not np.isfinite(value):
            adjusted.append(np.nan)
            continue
        steps = [(sum(q >= s for q in finite) * s) for s in finite if s <= value]
        adjusted.append(min(1.0, max(steps)))
    return adjusted


def test_holm_by_its_definition(rng):
    for m in (1, 2, 7, 30):
        p = rng.random(m) ** 3
        np.testing.assert_allclose(holm(p), slow_holm(p))
    p[[3, 9]] = np.nan
    np.testing.assert_allclose(holm(p), slow_holm(p))


def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(rng):
    p = rng.random(20)
    found = holm(p)
    assert (found >= p).all()
    assert (found <= np.minimum(1, 20 * p) + 1e-12).all()
    assert (np.diff(found[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("wrong", [[0.1, 1.2], [-0.1], [[0.1]]])
def test_holm_wants_probabilities(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(wrong)


# --- randomisation ---


def test_few_people_are_counted_out_as_scipy_does(rng):
    for n in (1, 3, 8, 10):
        x, y = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
        if n == 1:
            expected = 1.0
        else:
            expected = permutation_test(
                (x, y),
                lambda a, b: (a - b).sum(),
                permutation_type="samples",
                n_resamples=np.inf,
            ).pvalue
        assert sign_flip([x - y], draws=10)[0] == pytest.approx(expected)


def test_ties_and_people_without_a_difference_are_counted_by_brute_force():
    differences = np.array([1.0, 1.0, -1.0, 0.0, 2.0, 0.0])
    signs = np.array(list(product((-1, 1), repeat=6)))
    expected = (np.abs(signs @ differences) >= 3).mean()
    assert sign_flip([differences], draws=1)[0] == pytest.approx(expected)


def test_many_people_are_drawn_and_agree_with_the_count(rng):
    shared = rng.normal(0.25, 1, 12)
    # A thirteenth person with next to no difference takes the way of the draws.
    drawn = sign_flip([np.append(shared, 1e-9)], draws=40_000)[0]
    counted = sign_flip([shared])[0]
    assert drawn == pytest.approx(counted, abs=4 * np.sqrt(counted * (1 - counted) / 40_000))


def test_a_drawn_p_value_is_never_zero_and_its_seed_matters(rng):
    clear = np.full((1, 50), 1.0)
    assert sign_flip(clear, draws=999)[0] == 1 / 1000
    close = rng.normal(0.1, 1, (1, 50))
    assert sign_flip(close, draws=500, seed=1) == sign_flip(close, draws=500, seed=1)
    assert sign_flip(close, draws=500, seed=1) != sign_flip(close, draws=500, seed=2)


# --- shares ---


@pytest.mark.parametrize("unit", ["slice", "subject"])
@pytest.mark.parametrize("metric", ADDITIVE)
def test_what_people_add_sums_to_the_figure_of_scikit_learn(metric, unit, people, rng):
    labels, subjects = people
    evaluation = measured(labels, rng.normal(size=(len(labels), 4)), subjects)
    y, logits, _ = evaluation.sample(unit)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth, pooled = pooled_three(y, logits, NAMES)
    expected = {
        "accuracy": accuracy_score(y, logits.argmax(1)),
        "balanced_accuracy": balanced_accuracy_score(y, logits.argmax(1)),
        "balanced_accuracy_3": balanced_accuracy_score(truth, pooled.argmax(1)),
        "log_loss": log_loss(y, probabilities),
    }[metric]
    shares = shares_of(evaluation.sample(unit), metric, evaluation.class_names)
    assert shares.shape == (30,)
    assert shares.sum() == pytest.approx(expected)
    assert evaluation.metrics[unit][metric].value == pytest.approx(expected)


# --- pairs ---


def test_with_one_slice_a_person_accuracy_is_mcnemars_exact_test(rng):
    labels = rng.integers(0, 2, 9)
    logits = rng.normal(size=(2, 9, 2))
    found = {
        name: measured(labels, of, np.arange(9), ("a", "b"))
        for name, of in zip("xy", logits, strict=True)
    }
    right = logits.argmax(2) == labels
    p = pairwise(found, metric="accuracy")
    assert p.loc["x", "y"] == pytest.approx(mcnemar(*right))


def test_the_matrix_is_symmetric_corrected_and_empty_on_the_diagonal(people, rng):
    labels, subjects = people
    good = 4.0 * np.eye(4)[labels]
    logits = {
        "good": good + rng.normal(size=(len(labels), 4)),
        "same": good + rng.normal(size=(len(labels), 4)),
        "bad": rng.normal(size=(len(labels), 4)),
    }
    found = {name: measured(labels, of, subjects) for name, of in logits.items()}
    p = pairwise(found)
    assert list(p.index) == list(p.columns) == ["good", "same", "bad"]
    np.testing.assert_array_equal(p, p.T)
    assert np.isnan(np.diag(p)).all()
    shares = {
        name: shares_of(e.sample("slice"), "balanced_accuracy", e.class_names)
        for name, e in found.items()
    }
    pairs = [("good", "same"), ("good", "bad"), ("same", "bad")]
    raw = sign_flip([shares[a] - shares[b] for a, b in pairs])
    for (a, b), value in zip(pairs, slow_holm(raw), strict=True):
        assert p.loc[a, b] == pytest.approx(value)
    assert leading_group(p, "good") == ["good", "same"]
    assert leading_group(p, "bad") == ["bad"]


def test_one_model_has_no_pair(people, rng):
    labels, subjects = people
    p = pairwise({"m": measured(labels, rng.normal(size=(len(labels), 4)), subjects)})
    assert p.shape == (1, 1)
    assert leading_group(p, "m") == ["m"]


def test_other_slices_or_people_cannot_be_compared(people, rng):
    labels, subjects = people
    logits = rng.normal(size=(len(labels), 4))
    one = measured(labels, logits, subjects)
    for other in (
        measured((labels + 1) % 4, logits, subjects),
        measured(labels, logits, np.arange(len(labels))),
        measured(labels[:-1], logits[:-1], subjects[:-1]),
    ):
        with pytest.raises(ValueError, match="'b' was measured on other slices than 'a'"):
            pairwise({"a": one, "b": other})


def test_a_metric_that_is_no_sum_is_refused(people, rng):
    labels, subjects = people
    one = measured(labels, rng.normal(size=(len(labels), 4)), subjects)
    with pytest.raises(ValueError, match=r"one of .*'log_loss'\)\. Received: metric='macro_auc'"):
        pairwise({"a": one}, metric="macro_auc")


# --- what the leading group promises ---


def simulate(rng, skill, people=40, slices=8):
    """Return evaluations of models that are right about people, not slices, and so clustered."""
    labels = np.repeat(rng.integers(0, 2, people), slices)
    subjects = np.repeat(np.arange(people), slices)
    found = {}
    for i, gain in enumerate(skill):
        person = rng.normal(gain, 1, people)[subjects]
        margin = person + rng.normal(0, 0.3, people * slices)
        logits = np.where(labels[:, None] == np.arange(2), margin[:, None], 0.0)
        found[f"m{i}"] = measured(labels, logits, subjects, ("a", "b"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("skill", [[0.5] * 5, [0.6, 0.5, 0.5, 0.4, 0.3]])
def test_the_true_best_is_in_the_leading_group_where_slices_alone_would_lose_it(skill):
    """Nominal 95%; m0 is the best in truth (or one of five alike), seldom in the sample."""
    rng, kept, naive = np.random.default_rng(5), [], []
    for _ in range(120):
        found = simulate(rng, skill)
        value = {k: e.metrics["slice"]["accuracy"].value for k, e in found.items()}
        best = max(value, key=value.get)
        p = pairwise(found, metric="accuracy", draws=1000)
        kept.append("m0" in leading_group(p, best))
        right = {k: e.sample().logits.argmax(1) == e.sample().labels for k, e in found.items()}
        raw = {k: mcnemar(right[best], right[k]) for k in found if k != best}
        adjusted = pd.Series(holm(np.array(list(raw.values()))), index=list(raw))
        naive.append(best == "m0" or adjusted["m0"] > 0.05)
    assert np.mean(kept) >= 0.95
    assert np.mean(naive) < 0.9


def test_slices_whose_people_are_unknown_are_not_taken_for_people(people, rng):
    labels = np.arange(40) % 4
    found = {name: evaluate(labels, rng.normal(size=(40, 4))) for name in "ab"}
    with pytest.raises(ValueError, match="evaluate with subjects"):
        pairwise(found)


def test_auc_difference_is_that_of_brute_force(rng):
    scores = rng.integers(0, 6, (2, 3, 30)).astype(float)
    ill = np.arange(30) % 3 > 0
    means = [np.mean([roc_auc_score(ill, x) for x in of]) for of in scores]
    assert auc_difference(*scores, ill)[0] == pytest.approx(means[0] - means[1])


def test_auc_difference_knows_equal_from_better(rng):
    ill = np.repeat([False, True], [30, 60])
    noise = rng.normal(size=(2, 90))
    good = 1.5 * ill + 0.5 * noise
    assert auc_difference(good, good, ill) == (0.0, 0.0, 0.0, 1.0)
    value, low, high, p = auc_difference(good, noise, ill)
    assert 0 < low < value < high
    assert p < 0.01
    back = auc_difference(noise, good, ill)
    np.testing.assert_allclose(back[:3], (-value, -high, -low))
    with pytest.raises(ValueError, match="Some must be ill, some healthy"):
        auc_difference(good, noise, np.ones(90, bool))


def test_a_difference_of_shares_has_the_interval_of_its_strata(rng):
    """Against the normal approximation, with the variance within each stratum."""
    strata = np.repeat([0, 1], [300, 100])
    differences = (rng.normal(size=400) + strata) / 400
    value, low, high, p = share_difference(differences, strata, draws=4000)
    assert value == pytest.approx(differences.sum())
    of = [differences[strata == k] for k in (0, 1)]
    error = np.sqrt(sum(len(x) * x.var() for x in of))
    np.testing.assert_allclose([low, high], [value - 1.96 * error, value + 1.96 * error], rtol=0.15)
    assert p < 0.01


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_has_no_p_value(wrong, rng):
    with pytest.raises(ValueError, match=r"must be finite\. Received: rows=array\(\[1\]\)"):
        sign_flip([[0.1, 0.2], [wrong, 0.1]])
    scores, ill = rng.normal(size=(1, 10)), np.arange(10) < 4
    with pytest.raises(ValueError, match="scores must be finite"):
        auc_difference(np.full((1, 10), wrong), scores, ill)
