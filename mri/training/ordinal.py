"""From one score a person to severity and classes: cut points and their steepness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mri._arguments import integers, require
from mri.evaluation.metrics import fit_temperature

SEVERITY = {
    "Non_Demented": 0,
    "Very_Mild_Demented": 1,
    "Mild_Demented": 2,
    "Moderate_Demented": 2,
}
"""Severity of each class; of moderate dementia there are two people, who count as mild."""


def severity_of(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return the severity 0, 1 or 2 of labels, int64 (n,); ValueError for other classes.

    Examples
    --------
    >>> severity_of([0, 1, 2, 3], tuple(sorted(SEVERITY))).tolist()
    [2, 2, 0, 1]
    """
    known = sorted(class_names) == sorted(SEVERITY)
    require(known, f"class_names must be {sorted(SEVERITY)}.", class_names=tuple(class_names))
    labels = integers("labels", labels, np.size(labels))
    inside = bool(np.isin(labels, range(len(class_names))).all())
    require(inside, f"labels must be 0 to {len(class_names) - 1}.", labels=np.unique(labels))
    return _severities(class_names)[labels]


def _severities(class_names: Sequence[str]) -> np.ndarray:
    return np.array([SEVERITY[name] for name in class_names])


@dataclass(frozen=True, eq=False)
class Ordinal:
    """From a score to class logits that are linear in it.

    The logit of severity k is ``steepness * ((k - 1/2) * score - sum of the first k cuts)``.
    Neighbours are therefore equal at a cut, and the largest of the three is what cutting gives.
    With k - 1/2 instead of k, the logit of 'Non_Demented' falls as the score rises, and can be
    explained too. Mild and moderate dementia share the logit of severity 2 in the proportion of the
    people fitted.

    `cuts` (2,) are the scores at which severity 1 and 2 begin, `shares` (k,) the part of its
    severity's people that each class has.
    """

    cuts: np.ndarray
    steepness: float
    shares: np.ndarray
    class_names: tuple[str, ...]

    @property
    def slopes(self) -> np.ndarray:
        """What a unit of the score adds to each logit, float64 (k,)."""
        return self.steepness * (_severities(self.class_names) - 0.5)

    @property
    def offsets(self) -> np.ndarray:
        """The logits at a score of 0, float64 (k,)."""
        passed = np.array([0.0, *np.cumsum(self.cuts)])
        return np.log(self.shares) - self.steepness * passed[_severities(self.class_names)]

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return class logits, float64 (n, k), of scores (n,)."""
        return np.asarray(scores, float)[:, None] * self.slopes + self.offsets


def fit_ordinal(scores: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Ordinal:
    """Cut scores half-way between the means of neighbouring severities; fit the steepness.

    `scores` (n,) of people whose `labels` (n,) the score was fitted to must be out-of-fold.
    ValueError if a severity has nobody, or the scores are not finite or all alike.
    """
    scores, severity = np.asarray(scores, float), severity_of(labels, class_names)
    require(scores.shape == severity.shape, "scores must be one a label.", shape=scores.shape)
    spread = float(np.std(scores))
    require(0 < spread < np.inf, "scores must be finite and differ.", spread=spread)
    counts = np.bincount(severity, minlength=3)
    require(bool(counts.min() > 0), "Each severity must have people.", counts=counts.tolist())
    means = np.bincount(severity, scores, 3) / counts
    cuts = (means[:-1] + means[1:]) / 2
    if cuts[0] > cuts[1]:
        # The scores do not rise with severity: nobody gets the middle one.
        cuts = np.full(2, cuts.mean())
    # In units of their spread the best steepness lies well within the bounds that are searched.
    unit = np.stack([np.zeros_like(scores), scores - cuts[0], 2 * scores - cuts.sum()], 1) / spread
    steepness = 1 / (fit_temperature(severity, unit) * spread)
    held = np.bincount(labels, minlength=len(class_names)) + 0.5
    of = _severities(class_names)
    return Ordinal(cuts, steepness, held / np.bincount(of, held)[of], class_names)
