"""Every figure of `mri.evaluation` against scikit-learn, SciPy, a closed form or explicit loops."""

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp, softmax
from sklearn import metrics as sk

import mri.evaluation.metrics
from mri.data.parquet import CLASS_NAMES
from mri.evaluation.metrics import (
    METRICS,
    evaluate,
    fit_temperature,
    metric_label,
    pick_examples,
    reliability_bins,
)

MILD, MODERATE, NON, VERY_MILD = range(4)


def slices_of(sizes, *, seed=0, signal=1.0, spread=1.0):
    """Labels, logits and shuffled subject numbers with gaps; `sizes` gives slices a subject."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.resize([0, 1, 2, 2, 2, 3, 3], len(sizes)))
    who = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centre = signal * np.eye(4)[label] + spread * rng.normal(size=(len(sizes), 4))
    return label[who], centre[who] + rng.normal(size=(len(who), 4)), 100 - 3 * who


@pytest.fixture(scope="module")
def uneven():
    """60 subjects of 1 to 9 slices, so that no sum over slices equals one over subjects."""
    return slices_of(1 + np.arange(60) % 9, seed=1)


@pytest.fixture(scope="module")
def evaluation(uneven):
    return evaluate(*uneven, title="fake logits, test split", draws=200)


def by_scikit_learn(labels, logits):
    """The same figures from scikit-learn; ECE and the pooled figures by explicit loops."""
    probability, predicted = softmax(logits, axis=1), logits.argmax(1)
    confidence, hit = probability.max(1), predicted == labels
    ece = 0.0
    for b in range(15):
        inside = [i for i in range(len(labels)) if b / 15 < confidence[i] <= (b + 1) / 15]
        ece += abs(hit[inside].sum() - confidence[inside].sum()) / len(labels)
    aucs = [sk.roc_auc_score(labels == c, probability[:, c]) for c in range(4)]
    three = {MILD: 0, MODERATE: 0, NON: 1, VERY_MILD: 2}
    pooled = np.stack([probability[:, [0, 1]].sum(1), probability[:, NON], probability[:, 3]], 1)
    truth = [three[c] for c in labels]
    score = logsumexp(logits[:, [MILD, MODERATE, VERY_MILD]], axis=1) - logits[:, NON]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "macro_auc": sk.roc_auc_score(labels, probability, multi_class="ovr", average="macro"),
        "log_loss": sk.log_loss(labels, probability),
        "ece": ece,
        "balanced_accuracy_3": sk.balanced_accuracy_score(truth, pooled.argmax(1)),
        "demented_auc": sk.roc_auc_score(labels != NON, score),
    }
    recalls = sk.recall_score(labels, predicted, average=None)
    expected |= {f"recall_{n}": r for n, r in zip(CLASS_NAMES, recalls, strict=True)}
    return expected | {f"auc_{n}": a for n, a in zip(CLASS_NAMES, aucs, strict=True)}


def values(evaluation, unit="slice"):
    return {key: e.value for key, e in evaluation.metrics[unit].items()}


def test_slice_figures_equal_scikit_learn(uneven, evaluation):
    labels, logits, _ = uneven
    assert values(evaluation) == pytest.approx(by_scikit_learn(labels, logits), abs=1e-12)
    assert len(set(np.round(list(values(evaluation).values()), 6))) == 15  # 16 with one stated twin


def test_subject_figures_are_of_the_mean_logits(uneven, evaluation):
    labels, logits, subjects = uneven
    people = np.unique(subjects)
    means = np.array([logits[subjects == s].mean(0) for s in people])
    truth = np.array([labels[subjects == s][0] for s in people])
    expected = by_scikit_learn(truth, means)
    assert values(evaluation, "subject") == pytest.approx(expected, abs=1e-12)


def test_temperature_divides_the_logits(uneven):
    labels, logits, subjects = uneven
    cooled = evaluate(labels, logits, subjects, temperature=2.5, draws=50)
    divided = evaluate(labels, logits / 2.5, subjects, draws=50)
    assert values(cooled) == values(divided)
    assert values(cooled)["ece"] != values(evaluate(labels, logits, draws=1))["ece"]


def test_ties_in_auc_count_half():
    logits = np.log([[0.2, 0.8], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5]])
    labels = np.array([1, 1, 0, 0, 0])
    found = evaluate(labels, logits, class_names=("a", "b"), draws=1)
    # Pairs: the first positive beats all 3; the second ties with 2 and beats 1.
    assert values(found)["auc_b"] == pytest.approx((3 + 2 * 0.5 + 1) / 6, abs=1e-15)


@pytest.mark.slow
def test_intervals_equal_a_bootstrap_by_loops(uneven, evaluation):
    """The same draws, slices repeated one by one and measured by scikit-learn."""
    labels, logits, subjects = uneven
    people = np.unique(subjects)
    rng = np.random.default_rng(0)
    drawn = {key: [] for key in METRICS}
    for counts in rng.multinomial(60, np.full(60, 1 / 60), 200):
        rows = np.concatenate(
            [np.tile(np.flatnonzero(subjects == s), c) for s, c in zip(people, counts, strict=True)]
        )
        for key, value in by_scikit_learn(labels[rows], logits[rows]).items():
            drawn.setdefault(key, []).append(value)
    for key, estimate in evaluation.metrics["slice"].items():
        low, high = np.percentile(drawn[key], (2.5, 97.5))
        if key == "ece":
            low, high = max(0, 2 * estimate.value - high), 2 * estimate.value - low
            high = max(high, estimate.value)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12), key


def test_accuracy_interval_agrees_with_scipy_on_independent_slices():
    labels, logits, subjects = slices_of(np.ones(150, int), seed=3)
    found = evaluate(labels, logits, subjects, draws=20_000).metrics["slice"]["accuracy"]
    hits = (logits.argmax(1) == labels).astype(float)
    expected = stats.bootstrap(
        (hits,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # A percentile of 20 000 draws of a proportion of 150 is off by at most about one slice.
    assert found[1:] == pytest.approx(tuple(expected), abs=1 / 150 + 1e-12)


def wilson(hit):
    """The closed formula of a 95% interval."""
    n, p, z = len(hit), hit.mean(), stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def test_subject_proportions_have_wilson_intervals(uneven, evaluation):
    labels, logits = evaluation.samples["subject"][:2]
    hits = logits.argmax(1) == labels
    cases = {"accuracy": hits}
    cases |= {f"recall_{n}": hits[labels == c] for c, n in enumerate(CLASS_NAMES)}
    for key, hit in cases.items():
        assert evaluation.metrics["subject"][key][1:] == pytest.approx(wilson(hit), abs=1e-12)


def test_clusters_widen_intervals_and_unknown_subjects_are_noted():
    labels, logits, subjects = slices_of(np.full(40, 16), spread=2.0)
    clustered = evaluate(labels, logits, subjects, draws=400)
    naive = evaluate(labels, logits, draws=400)
    for key in ("accuracy", "macro_auc", "log_loss"):
        wide, narrow = (e.metrics["slice"][key] for e in (clustered, naive))
        assert wide.value == pytest.approx(narrow.value, abs=1e-12)
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert list(naive.metrics) == ["slice"]
    assert "too narrow" in naive.notes[0] and not any("too narrow" in n for n in clustered.notes)


def test_draws_that_lack_a_class_do_not_enter_macro_intervals():
    """One moderate subject, always wrong: no draw may show a balanced accuracy of 1."""
    labels = np.repeat([MODERATE, MILD, NON, VERY_MILD], [1, 10, 10, 10])
    guess = np.where(labels == MODERATE, MILD, labels)
    found = evaluate(labels, 5 * np.eye(4)[guess], np.arange(31)).metrics["slice"]
    assert found["balanced_accuracy"] == pytest.approx((0.75, 0.75, 0.75))
    assert found["accuracy"].high == 1  # where draws without her count
    right = evaluate(labels, 5 * np.eye(4)[labels], np.arange(31)).metrics["slice"]
    assert right["macro_f1"] == right["balanced_accuracy"] == (1, 1, 1)


def test_calibration_error_has_an_interval_that_is_not_negative_and_holds_it():
    """Nearly honest probabilities, where most draws exceed the estimate."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0.5, 1, 150)
        labels = (rng.random(150) > p).astype(int)
        logits = np.log(np.stack([p, 1 - p], axis=1))
        figures = evaluate(labels, logits, np.arange(150), class_names=("a", "b"), draws=300)
        value, low, high = figures.metrics["slice"]["ece"]
        assert 0 <= low <= value <= high < 0.3
        if seed == 0:
            assert low == 0


def test_small_integer_labels_do_not_overflow():
    labels = np.arange(40, dtype=np.uint8) % 20
    names = tuple("abcdefghijklmnopqrst")
    found = evaluate(labels, 2 * np.eye(20)[labels], class_names=names, draws=2)
    assert values(found)["accuracy"] == 1 and values(found)["recall_t"] == 1


def test_few_subjects_and_zero_width_are_noted(uneven):
    labels = np.repeat([MILD, MODERATE, NON, VERY_MILD], [6, 2, 6, 6])
    notes = evaluate(labels, 9 * np.eye(4)[labels], np.arange(20), draws=300).notes
    assert notes[0].startswith("2 Moderate_Demented subjects: too few")
    assert notes[1].startswith("Zero-width") and len(notes) == 2
    assert evaluate(*slices_of(np.full(60, 2)), draws=50).notes == ()


def test_four_subjects_are_too_few_and_five_are_enough():
    labels = np.repeat([MILD, MODERATE, NON, VERY_MILD], [4, 5, 6, 1])
    logits = np.random.default_rng(0).normal(size=(16, 4))
    few = [note.split(":")[0] for note in evaluate(labels, logits, np.arange(16)).notes]
    assert few[:2] == ["4 Mild_Demented subjects", "1 Very_Mild_Demented subject"]


def test_absent_class_is_nan_noted_and_left_out():
    labels = np.repeat([MILD, NON, VERY_MILD], 10)
    logits = np.random.default_rng(1).normal(size=(30, 4))
    found = evaluate(labels, logits, np.arange(30), draws=100)
    recalls = sk.recall_score(labels, logits.argmax(1), average=None, labels=[0, 2, 3])
    f1 = sk.f1_score(labels, logits.argmax(1), average="macro", labels=[0, 2, 3])
    assert values(found)["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert values(found)["macro_f1"] == pytest.approx(f1)
    for key in ("recall_Moderate_Demented", "auc_Moderate_Demented"):
        for unit in ("slice", "subject"):
            assert np.isnan(found.metrics[unit][key]).all()
    assert any(note.startswith("0 Moderate_Demented subjects") for note in found.notes)
    assert np.isnan(found.confusion(normalize=True)[MODERATE]).all()
    assert "Moderate_Demented" not in found.roc()


def test_single_class_has_no_auc_and_does_not_fail():
    logits = np.random.default_rng(2).normal(size=(12, 4))
    found = evaluate(np.full(12, NON), logits, np.repeat(np.arange(6), 2), draws=50)
    for key in ("macro_auc", "demented_auc", "auc_Non_Demented"):
        assert np.isnan(found.metrics["slice"][key]).all()
    assert values(found)["balanced_accuracy"] == values(found)["accuracy"]
    assert "One class only: no AUC exists." in found.notes
    assert found.roc() == {}
    assert "–" in repr(found)


def test_pooled_figures_belong_to_the_four_public_classes(uneven):
    labels, logits, subjects = uneven
    for names, pooled in ((CLASS_NAMES, True), (("a", "b", "c", "d"), False)):
        found = evaluate(labels, logits, subjects, class_names=names, draws=5).metrics["slice"]
        assert ("demented_auc" in found) == ("balanced_accuracy_3" in found) == pooled


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (3, 0, 1, 2)])
def test_relabelling_changes_no_figure(uneven, evaluation, order):
    labels, logits, subjects = uneven
    names = tuple(CLASS_NAMES[c] for c in order)
    moved = evaluate(
        np.argsort(order)[labels], logits[:, order], subjects, class_names=names, draws=200
    )
    for unit in ("slice", "subject"):
        for key, estimate in evaluation.metrics[unit].items():
            assert moved.metrics[unit][key] == pytest.approx(estimate, abs=1e-12)


def test_order_of_slices_changes_no_figure(uneven, evaluation):
    rows = np.random.default_rng(5).permutation(len(uneven[0]))
    shuffled = evaluate(*(part[rows] for part in uneven), draws=200)
    for key, estimate in evaluation.metrics["slice"].items():
        assert shuffled.metrics["slice"][key] == pytest.approx(estimate, abs=1e-12)


def test_logits_shifted_by_a_constant_change_no_figure(uneven, evaluation):
    labels, logits, _ = uneven
    shifted = evaluate(labels, logits + np.arange(len(labels))[:, None] % 7, draws=1)
    assert values(shifted) == pytest.approx(values(evaluation), abs=1e-10)


def test_perfect_and_constant_logits():
    labels = np.resize([MILD, MODERATE, NON, VERY_MILD], 40)
    best = values(evaluate(labels, 60.0 * np.eye(4)[labels], np.arange(40), draws=50))
    assert all(best[key] == pytest.approx(1, abs=1e-12) for key in best if "macro" in key)
    assert best["log_loss"] < 1e-20 and best["ece"] < 1e-12 and best["accuracy"] == 1
    same = values(evaluate(labels, np.zeros((40, 4)), np.arange(40), draws=50))
    assert same["macro_auc"] == same["demented_auc"] == 0.5
    assert same["log_loss"] == pytest.approx(np.log(4)) and same["balanced_accuracy"] == 0.25


def test_seed_fixes_and_changes_the_intervals(uneven):
    one, again, other = (evaluate(*uneven, draws=100, seed=seed) for seed in (1, 1, 2))
    assert one.to_frame().equals(again.to_frame())
    assert one.to_frame()["value"].equals(other.to_frame()["value"])
    assert not one.to_frame()["low"].equals(other.to_frame()["low"])


def test_draws_in_blocks_equal_draws_at_once(monkeypatch, uneven):
    """A slice count that cuts 60 draws into blocks of 1 gives what one block gives."""
    whole = evaluate(*uneven, draws=60)
    monkeypatch.setattr(mri.evaluation.metrics, "BLOCK", 1)
    assert evaluate(*uneven, draws=60).to_frame().equals(whole.to_frame())


def test_input_is_neither_changed_nor_shared(uneven):
    labels, logits, subjects = (part.copy() for part in uneven)
    found = evaluate(labels, logits, subjects, draws=5)
    fit_temperature(labels, logits)
    reliability_bins(labels, logits)
    for part, original in zip((labels, logits, subjects), uneven, strict=True):
        np.testing.assert_array_equal(part, original)
        assert part.flags.writeable
    before = found.confusion()
    labels[:], logits[:] = 0, 0.0
    np.testing.assert_array_equal(found.confusion(), before)
    with pytest.raises(ValueError, match="read-only"):
        found.samples["slice"].labels[0] = 1


def test_confusion_matrix_against_loops(uneven, evaluation):
    labels, logits, _ = uneven
    expected = np.zeros((4, 4), int)
    for truth, row in zip(labels, logits, strict=True):
        expected[truth, row.argmax()] += 1
    np.testing.assert_array_equal(evaluation.confusion(), expected)
    shares = evaluation.confusion(normalize=True)
    np.testing.assert_allclose(shares, expected / expected.sum(1)[:, None])
    assert evaluation.confusion("subject").sum() == 60


def test_unknown_unit_is_named(uneven):
    naive = evaluate(*uneven[:2], draws=1)
    for method in (naive.sample, naive.confusion, naive.roc):
        with pytest.raises(ValueError, match=r"one of \['slice'\]. Received: unit='subject'"):
            method("subject")


def test_roc_curves_enclose_the_auc(evaluation):
    for unit in ("slice", "subject"):
        for name, (false_rate, true_rate) in evaluation.roc(unit).items():
            area = np.trapezoid(true_rate, false_rate)
            assert area == pytest.approx(evaluation.metrics[unit][f"auc_{name}"].value, abs=1e-12)


def test_reliability_bins_make_up_the_ece(uneven, evaluation):
    labels, logits, _ = uneven
    bins = reliability_bins(labels, logits)
    filled = bins[bins["count"] > 0]
    gap = (filled["accuracy"] - filled["confidence"]).abs()
    assert (gap * filled["count"]).sum() / len(labels) == pytest.approx(values(evaluation)["ece"])
    assert bins["count"].sum() == len(labels) and len(bins) == 15
    assert bins.loc[bins["count"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)
    assert (filled["low"] < filled["confidence"]).all()
    assert (filled["confidence"] <= filled["high"]).all()


def test_reliability_bin_includes_its_upper_edge():
    bins = reliability_bins(np.array([0]), np.zeros((1, 3)))  # confidence 5/15
    assert bins.loc[4, "count"] == 1 and bins.loc[4, "accuracy"] == 1


def test_temperature_recovers_the_truth():
    rng = np.random.default_rng(4)
    honest = 2 * rng.normal(size=(40_000, 4))
    labels = (softmax(honest, axis=1).cumsum(1) < rng.random((40_000, 1))).sum(1)
    for truth in (0.4, 1.0, 3.0):
        assert fit_temperature(labels, truth * honest) == pytest.approx(truth, rel=0.03)


def test_temperature_is_the_least_log_loss_on_a_grid(uneven):
    labels, logits, _ = uneven
    grid = np.geomspace(0.05, 20, 4001)
    rows = np.arange(len(labels))
    losses = [-log_softmax(logits / t, axis=1)[rows, labels].mean() for t in grid]
    assert fit_temperature(labels, logits) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_temperature_without_an_error_to_learn_from_is_one():
    labels = np.array([0, 1, 2])
    assert fit_temperature(labels, np.eye(3)) == 1.0
    assert fit_temperature(labels, np.zeros((3, 3))) == 1.0


def test_tables(evaluation):
    frame = evaluation.to_frame()
    assert list(frame.columns) == ["unit", "metric", "value", "low", "high"]
    assert len(frame) == 2 * 16
    assert ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()
    text, html = repr(evaluation), evaluation._repr_html_()
    estimate = evaluation.metrics["subject"]["macro_f1"]
    cell = f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    size = len(evaluation.samples["slice"].labels)
    moderate = np.sum(evaluation.samples["slice"].labels == MODERATE)
    for out in (text, html):
        assert "fake logits, test split" in out and cell in out
        assert f"slices (n={size})" in out and "subjects (n=60)" in out
        assert f"of {moderate}" in out
        assert all(name in out for name in METRICS.values())


def test_html_is_escaped_and_shows_notes(uneven):
    labels, logits, _ = uneven
    html = evaluate(labels, logits, title="a <b> & c", draws=2)._repr_html_()
    assert "a &lt;b&gt; &amp; c" in html and "too narrow" in html


def test_the_object_pickles():
    logits = np.random.default_rng(2).normal(size=(12, 4))
    found = evaluate(np.full(12, NON), logits, np.arange(12), draws=50)
    again = pickle.loads(pickle.dumps(found))
    assert repr(again) == repr(found)


def test_metric_labels():
    assert metric_label("macro_f1") == "Macro-F1"
    assert metric_label("auc_Very_Mild_Demented") == "AUC, Very Mild Demented"
    assert metric_label("recall_Non_Demented") == "Recall, Non Demented"


GOOD = {"labels": [0, 1, 2, 3], "logits": np.zeros((4, 4)), "subjects": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logits": np.zeros(4)}, r"logits must be \(n, k\).*Received: shape=\(4,\)"),
        ({"logits": np.zeros((0, 4)), "labels": []}, r"logits must be .*Received: shape=\(0, 4\)"),
        ({"logits": np.zeros((4, 1))}, r"k >= 2.*Received: shape=\(4, 1\)"),
        ({"logits": np.full((4, 4), np.nan)}, r"must be finite.*Received: row=array\(\[0\]\)"),
        ({"logits": np.diag([0, 0, np.inf, 0])}, r"must be finite.*row=array\(\[2\]\)"),
        ({"labels": [0, 1, 2]}, r"labels must be 4 integers.*Received: shape=\(3,\)"),
        ({"labels": [0.0, 1, 2, 3]}, r"labels must be 4 integers.*dtype\('float64'\)"),
        ({"labels": [0, 1, 2, 4]}, r"labels must be 0 to 3.*Received: labels=array\(\[0, 1, 2, 4"),
        ({"labels": [0, 1, 2, -1]}, r"labels must be 0 to 3.*Received: labels=array\(\[-1"),
        ({"subjects": [0, 1, 2]}, r"subjects must be 4 integers.*Received: shape=\(3,\)"),
        ({"subjects": [0, 1, 2, np.nan]}, r"subjects must be 4 integers.*dtype\('float64'\)"),
        ({"subjects": [7, 8, 9, 8]}, r"one label.*subject=array\(\[8\]\), labels=array\(\[1, 3"),
        ({"class_names": ("a", "b")}, r"Expected 4 class names.*Received: class_names=\('a', 'b'"),
        ({"class_names": ("a", "b", "c", "c")}, r"Expected 4 class names.*Received"),
        ({"temperature": 0.0}, r"temperature must be positive.*Received: temperature=0.0"),
        ({"temperature": np.nan}, r"temperature must be positive.*Received: temperature=nan"),
        ({"draws": 0}, r"draws must be at least 1.*Received: draws=0"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        evaluate(**GOOD | change)


def test_wrong_arguments_of_the_helpers():
    with pytest.raises(ValueError, match="labels must be 2 integers"):
        fit_temperature([0], np.zeros((2, 3)))


@pytest.mark.stress
def test_coverage_of_clustered_slices():
    """Intervals of 95% by subjects hold the true accuracy in about 95%; by slices they fail."""
    rng, people, each, repeats = np.random.default_rng(6), 60, 16, 400
    truth = expit(0.8 + 1.2 * rng.normal(size=2_000_000)).mean()
    labels = np.arange(people * each) // each % 2
    held = {"subjects": 0, "slices": 0}
    for _ in range(repeats):
        share = np.repeat(expit(0.8 + 1.2 * rng.normal(size=people)), each)
        guess = np.where(rng.random(people * each) < share, labels, 1 - labels)
        logits = np.eye(2)[guess] + 0.1 * rng.random((people * each, 2))
        for who, subjects in (("subjects", np.arange(people * each) // each), ("slices", None)):
            figures = evaluate(labels, logits, subjects, class_names=("a", "b"), draws=500)
            _, low, high = figures.metrics["slice"]["accuracy"]
            held[who] += low <= truth <= high
    # The standard error of a coverage of 95% in 400 repeats is 1.1 points.
    assert 0.91 < held["subjects"] / repeats < 0.98
    assert held["slices"] / repeats < 0.80


def test_pick_examples_takes_one_right_and_one_wrong_of_each_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    guess = np.array([0, 1, 0, 1, 1, 0])
    logits = np.eye(3)[guess]
    for seed in range(10):
        found = pick_examples(labels, logits, ("a", "b", "c"), seed=seed)
        assert labels[found].tolist() == [0, 0, 1, 2]
        assert (guess == labels)[found].tolist() == [True, False, True, False]
    assert len({pick_examples(labels, logits, ("a", "b", "c"), seed=s)[0] for s in range(20)}) == 2
