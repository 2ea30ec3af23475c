"""Which differences between models are real: paired tests on the same slices, by person.

Two models judge the same people, so they are compared within people. Suppose that neither model is
better. Then swapping their answers on one person only changes the sign of that person's share of
the difference (Fisher's randomisation test; Smucker et al. 2007, doi:10.1145/1321440.1321528). For
accuracy with one slice per person, this is McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from mri._arguments import require
from mri.data.labels import places_of
from mri.evaluation.metrics import Evaluation, Sample, pooled_three

ADDITIVE = ("accuracy", "balanced_accuracy", "balanced_accuracy_3", "log_loss")
"""Metrics that are sums over people; the tests here need such metrics."""

_EXACT = 12  # with at most this many differing people, all sign changes are counted
_BLOCK = 4096  # draws in memory at a time


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values (m,) corrected for their number; NaN is not counted.

    Source: Holm 1979, https://www.jstor.org/stable/4615733.
    """
    p = np.array(p_values, dtype=float)
    fits = p.ndim == 1 and not np.any((p < 0) | (p > 1))
    require(fits, "expected (m,) values between 0 and 1.", p_values=p_values)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return p


def pairwise(
    evaluations: Mapping[str, Evaluation],
    *,
    metric: str = "balanced_accuracy",
    unit: str = "slice",
    draws: int = 100_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the Holm-adjusted p-values of all pairs of models.

    The evaluations are of the same slices in the same order. The result, (models, models), is
    symmetric, with NaN on the diagonal.

    Parameters
    ----------
    metric : str
        One of `ADDITIVE`.
    unit : {'slice', 'subject'}
        With both, each person is kept whole.
    draws, seed : int
        Number and seed of the random sign changes. If at most 12 people differ, all sign changes
        are counted instead.

    Raises
    ------
    ValueError
        If the metric is not additive, an evaluation does not know its subjects, or the evaluations
        do not have the same labels and subjects in the same order.

    Examples
    --------
    >>> from mri.evaluation import evaluate
    >>> labels, people = np.repeat([0, 1], 20), np.arange(40)
    >>> right = 2 * np.eye(2)[labels]
    >>> guesses = np.random.default_rng(0).normal(size=(40, 2))
    >>> models = {"right": right, "guesses": guesses}
    >>> names = ("ill", "well")
    >>> found = {key: evaluate(labels, x, people, class_names=names) for key, x in models.items()}
    >>> bool(pairwise(found).loc["right", "guesses"] < 0.001)
    True
    """
    require(metric in ADDITIVE, f"metric must be one of {ADDITIVE}.", metric=metric)
    require(draws >= 1, "draws must be at least 1.", draws=draws)
    expected = "evaluations must be by name: {name: evaluate(…), …}."
    given = type(evaluations).__name__
    require(isinstance(evaluations, Mapping), expected, evaluations=given)
    names = list(evaluations)
    known = all("subject" in evaluation.metrics for evaluation in evaluations.values())
    require(known, "Slices of a person are not independent; evaluate with subjects.", models=names)
    matrix = pd.DataFrame(np.nan, names, names)
    if len(names) < 2:
        return matrix
    first, shares = evaluations[names[0]], {}
    for name, of in evaluations.items():
        # Labels are numbered as the model's classes are ordered: by name they must agree.
        at, sample = places_of(first.class_names, of.class_names), of.sample(unit)
        labels = np.array(at)[sample.labels] if at else np.array([])
        same = np.array_equal(sample.units, first.sample(unit).units)
        if not same or not np.array_equal(labels, first.sample(unit).labels):
            raise ValueError(f"{name!r} was measured on other slices than {names[0]!r}")
        shares[name] = shares_of(sample, metric, of.class_names)
    pairs = list(combinations(names, 2))
    differences = np.stack([shares[one] - shares[other] for one, other in pairs])
    p = holm(sign_flip(differences, draws=draws, seed=seed))
    for (one, other), value in zip(pairs, p, strict=True):
        matrix.loc[one, other] = matrix.loc[other, one] = value
    return matrix


def leading_group(p_values: pd.DataFrame, best: str, *, alpha: float = 0.05) -> list[str]:
    """Return the models that are not statistically distinguishable from `best`, itself first.

    `p_values` are those of `pairwise`; `alpha` is the probability of leaving out any model that is
    as good as the best.
    """
    return [best, *(name for name in p_values if name != best and p_values[best][name] > alpha)]


def sign_flip(differences: np.ndarray, *, draws: int = 100_000, seed: int = 0) -> np.ndarray:
    """Return two-sided p-values (pairs,) of the sums of rows (pairs, people) under random signs."""
    differences = np.asarray(differences, dtype=float)
    finite = np.isfinite(differences).all(-1)
    require(bool(finite.all()), "differences must be finite.", rows=np.flatnonzero(~finite))
    rng, reached = np.random.default_rng(seed), np.ones(len(differences))
    # Sums that are equal except for rounding count as reached.
    bound = np.abs(differences.sum(1)) * (1 - 1e-9) - 1e-12
    for start in range(0, draws, _BLOCK):
        shape = (min(_BLOCK, draws - start), differences.shape[1])
        sums = rng.choice((-1.0, 1.0), shape) @ differences.T
        reached += (np.abs(sums) >= bound).sum(0)
    # The observed signs count too, so no p-value is zero (Phipson & Smyth 2010,
    # doi:10.2202/1544-6115.1585).
    p = reached / (1 + draws)
    for row, values in enumerate(differences):
        values = values[values != 0]
        if len(values) <= _EXACT:
            signs = np.array(list(product((-1.0, 1.0), repeat=len(values))))
            p[row] = (np.abs(signs @ values) >= bound[row]).mean()
    return p


def auc_difference(
    first: np.ndarray, second: np.ndarray, ill: np.ndarray, *, draws: int = 5000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return the first's AUC less the second's, its 95% interval and a two-sided p-value.

    `first` and `second` (divisions, people) are scores of the same people, of whom some are `ill`
    (people,). The AUC is the mean over divisions. People are drawn with replacement, ill and
    healthy apart, for both models alike (paired bootstrap). The interval is the 2.5 and 97.5
    percentiles.
    """
    require(draws >= 40, "draws must be at least 40.", draws=draws)
    ill = np.asarray(ill, bool)
    mixed = bool(ill.any() and not ill.all())
    require(mixed, "Some must be ill, some healthy.", ill=int(ill.sum()))
    # How often each ill person scores above each healthy one: the mean is the AUC.
    wins = []
    for scores in (np.asarray(first, float), np.asarray(second, float)):
        fits = scores.ndim == 2 and scores.shape[1:] == ill.shape
        require(fits, "scores must be (divisions, people).", shape=scores.shape)
        finite = bool(np.isfinite(scores).all())
        require(finite, "scores must be finite.", finite=finite)
        gap = scores[:, ill, None] - scores[:, None, ~ill]
        wins.append(np.heaviside(gap, 0.5).mean(0))
    matrix = wins[0] - wins[1]
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in matrix.shape)
    drawn = ((rows @ matrix) * columns).sum(1)
    return (float(matrix.mean()), *_interval(drawn))


def share_difference(
    differences: np.ndarray, strata: np.ndarray, *, draws: int = 5000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return the sum of people's differences, its 95% interval and a two-sided p-value.

    `differences` (people,) are of `shares_of` two models, `strata` (people,) such as the diagnosis.
    The interval is of a bootstrap over the people of each stratum; the p-value is that of
    `sign_flip`.
    """
    require(draws >= 40, "draws must be at least 40.", draws=draws)
    differences, strata = np.asarray(differences, float), np.asarray(strata)
    rng, drawn = np.random.default_rng(seed), np.zeros(draws)
    for stratum in np.unique(strata):
        of = differences[strata == stratum]
        drawn += rng.multinomial(len(of), np.full(len(of), 1 / len(of)), draws) @ of
    low, high, _ = _interval(drawn)
    p = float(sign_flip(differences[None], draws=4 * draws, seed=seed)[0])
    return float(differences.sum()), low, high, p


def _interval(drawn: np.ndarray) -> tuple[float, float, float]:
    """Return the 2.5 and 97.5 percentiles of draws, and twice the smaller share beyond 0."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (side + 1) / (len(drawn) + 1))


def shares_of(sample: Sample, metric: str, class_names: tuple[str, ...]) -> np.ndarray:
    """Return the share of each person in a metric of `ADDITIVE`; the shares sum to its value."""
    labels, logits, people = sample
    if metric == "balanced_accuracy_3":
        labels, logits = pooled_three(labels, logits, class_names)
    if metric == "log_loss":
        values = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    else:
        values = (logits.argmax(1) == labels).astype(float)
    if metric in ("accuracy", "log_loss"):
        values /= len(labels)
    else:
        support = np.bincount(labels)
        values /= support[labels] * np.count_nonzero(support)
    return np.bincount(people, values)
