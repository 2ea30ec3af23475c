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
from mri.evaluation.metrics import Evaluation, pooled_three

ADDITIVE = ("accuracy", "balanced_accuracy", "balanced_accuracy_3", "log_loss")
"""Metrics that are sums over people; the tests here need such metrics."""

_EXACT = 12  # with at most this many differing people, all sign changes are counted
_BLOCK = 4096  # draws in memory at a time


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number; NaN is not counted.

    Parameters
    ----------
    p_values : ndarray of float, shape (m,)

    Returns
    -------
    ndarray of float, shape (m,)

    References
    ----------
    Holm 1979, https://www.jstor.org/stable/4615733.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.array(p_values, dtype=float)
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise ValueError(f"expected (m,) values between 0 and 1. Received: {p_values!r}")
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

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        Evaluations of the same slices in the same order.
    metric : str
        One of `ADDITIVE`.
    unit : {'slice', 'subject'}
        With both, each person is kept whole.
    draws, seed : int
        Number and seed of the random sign changes. If at most 12 people differ, all sign changes
        are counted instead.

    Returns
    -------
    DataFrame of float, shape (models, models)
        Symmetric, with NaN on the diagonal.

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
    names = list(evaluations)
    known = all("subject" in evaluation.metrics for evaluation in evaluations.values())
    require(known, "Slices of a person are not independent; evaluate with subjects.", models=names)
    matrix = pd.DataFrame(np.nan, names, names)
    if len(names) < 2:
        return matrix
    samples = [evaluation.sample(unit) for evaluation in evaluations.values()]
    classes = evaluations[names[0]].class_names
    for name, sample in zip(names, samples, strict=True):
        # Labels are numbered as the model's classes are ordered: by name they must agree.
        at = places_of(classes, evaluations[name].class_names)
        same = at is not None and np.array_equal(np.array(at)[sample.labels], samples[0].labels)
        if not same or not np.array_equal(sample.units, samples[0].units):
            raise ValueError(f"{name!r} was measured on other slices than {names[0]!r}")
    shares = np.stack([_shares(evaluations[name], unit, metric) for name in names])
    pairs = list(combinations(range(len(names)), 2))
    differences = np.stack([shares[i] - shares[j] for i, j in pairs])
    p = holm(sign_flip(differences, draws=draws, seed=seed))
    for (i, j), value in zip(pairs, p, strict=True):
        matrix.iloc[i, j] = matrix.iloc[j, i] = value
    return matrix


def leading_group(p_values: pd.DataFrame, best: str, *, alpha: float = 0.05) -> list[str]:
    """Return the models that are not statistically distinguishable from `best`, itself first.

    Parameters
    ----------
    p_values : DataFrame
        From `pairwise`.
    best : str
    alpha : float
        Probability of leaving out any model that is as good as the best.

    Returns
    -------
    list of str
    """
    return [best, *(name for name in p_values if name != best and p_values[best][name] > alpha)]


def sign_flip(differences: np.ndarray, *, draws: int = 100_000, seed: int = 0) -> np.ndarray:
    """Return the two-sided p-value of each row's sum under random signs of its entries.

    Parameters
    ----------
    differences : ndarray of float, shape (pairs, people)
    draws, seed : int

    Returns
    -------
    ndarray of float, shape (pairs,)
    """
    differences = np.asarray(differences, dtype=float)
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


def _shares(evaluation: Evaluation, unit: str, metric: str) -> np.ndarray:
    """Return the share of each person in the metric; the shares sum to its value."""
    labels, logits, people = evaluation.sample(unit)
    if metric == "balanced_accuracy_3":
        labels, logits = pooled_three(labels, logits, evaluation.class_names)
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
