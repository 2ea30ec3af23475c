"""Figures for one classifier: per slice and per subject, each with a 95% interval.

Slices of one person are not independent. The intervals therefore draw whole *subjects* with
replacement and take the 2.5 and 97.5 percentiles (cluster bootstrap; Field & Welsh 2007,
doi:10.1111/j.1467-9868.2007.00593.x). The input is labels, logits and subject numbers, no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, roc_curve

from mri._arguments import integers, require
from mri.data.labels import checked_names
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.evaluation.doubts import warn_of_shares

METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "macro_auc": "Macro AUC, one-vs-rest",
    "log_loss": "Log loss (lower is better)",
    "ece": "Calibration error, ECE (lower is better)",
    "balanced_accuracy_3": "Balanced accuracy (mild and moderate pooled)",
    "demented_auc": "AUC, demented against non-demented",
}
"""Readable names by key. Every class also has `recall_<class>` and `auc_<class>`."""

BINS = 15
BLOCK = 2**19  # slices × draws in memory at a time: a few MB, which stay in the cache


class Estimate(NamedTuple):
    """A figure and its 95% interval; NaN if it does not exist."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        return "{:.3f} [{:.3f}, {:.3f}]".format(*self)


class Sample(NamedTuple):
    """Rows to measure: slices, or subjects with the mean of their slices' logits.

    Labels are (n,), logits (n, k) after division by the temperature, and units (n,) the person of
    each row, 0 to m - 1.
    """

    labels: np.ndarray
    logits: np.ndarray
    units: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The figures of one model on one set of slices; it prints as a table.

    Attributes
    ----------
    title : model, data set and split, as given by the caller
    class_names : the k names in label order
    temperature : the logits were divided by it
    samples : a `Sample` for 'slice' and, if subjects are known, for 'subject'
    metrics : for the same units, a dict of `Estimate` by key
    notes : what a reader must know before trusting the figures
    """

    title: str
    class_names: tuple[str, ...]
    temperature: float
    samples: dict[str, Sample]
    metrics: dict[str, dict[str, Estimate]]
    notes: tuple[str, ...]

    def sample(self, unit: str = "slice") -> Sample:
        """Return labels and logits per 'slice' or, if subjects are known, per 'subject'."""
        require(unit in self.samples, f"unit must be one of {list(self.samples)}.", unit=unit)
        return self.samples[unit]

    def confusion(self, unit: str = "slice", *, normalize: bool = False) -> np.ndarray:
        """Return (k, k) counts, one row per true class, or shares of each row (NaN if empty)."""
        labels, logits, _ = self.sample(unit)
        counts = confusion_matrix(labels, logits.argmax(1), labels=range(len(self.class_names)))
        with np.errstate(invalid="ignore"):
            return counts / counts.sum(1, keepdims=True) if normalize else counts

    def roc(self, unit: str = "slice") -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return one-vs-rest false and true positive rates of every class that has an AUC."""
        labels, logits, _ = self.sample(unit)
        return {
            name: roc_curve(labels == c, _log_odds(logits, c))[:2]
            for c, name in enumerate(self.class_names)
            if np.isfinite(self.metrics[unit][f"auc_{name}"].value)
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per figure: unit, metric, value, low, high."""
        rows = [(unit, key, *e) for unit, of in self.metrics.items() for key, e in of.items()]
        return pd.DataFrame(rows, columns=["unit", "metric", *Estimate._fields])

    def _table(self) -> pd.DataFrame:
        columns = {}
        for unit, (labels, *_) in self.samples.items():
            support = {
                f"recall_{name}": np.sum(labels == c) for c, name in enumerate(self.class_names)
            }
            columns[f"{unit}s (n={len(labels)})"] = {
                metric_label(key): ("–" if np.isnan(of.value) else str(of))
                + (f" of {support[key]}" if key in support else "")
                for key, of in self.metrics[unit].items()
            }
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        return "\n".join([self.title, self._table().to_string(), *self.notes]).strip()

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<b>{escape(self.title)}</b>{self._table().to_html()}<ul>{notes}</ul>"


def evaluate(
    labels: np.ndarray | Scans,
    logits: np.ndarray,
    subjects: np.ndarray | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    title: str = "",
    temperature: float = 1.0,
    draws: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Measure a model's logits against the labels, per slice and per subject.

    A subject's logits are the mean over its slices. Macro figures average the classes that occur;
    draws that lack one of them are left out. One-vs-rest AUC ranks by class probability. ECE uses
    15 equal-width bins of top-label confidence (Guo et al. 2017, arXiv:1706.04599).

    For the four public classes there are two pooled figures. One is the balanced accuracy of three
    classes: the probabilities of mild and moderate are added, then the largest wins. The other is
    the AUC of demented against non-demented (logsumexp of the demented logits minus the other).

    Two intervals are not percentiles. Accuracy and recall of *subjects* are proportions and have
    Wilson intervals. ECE cannot be negative, so a sample overstates it, and a draw from the sample
    overstates it twice. Its interval is therefore reflected about the estimate, cut at 0, and
    widened to contain the estimate.

    Parameters
    ----------
    labels, logits : int (n,), 0 to k - 1, and float (n, k), not yet divided by the temperature.
        `Scans` instead of labels give their labels and class names
    subjects : int (n,), the person of each slice; without it, slices are drawn and a note says so
    class_names : the k names in the order of the logits: by default those of the scans, else the
        public four. Scans whose classes stand in another order are brought into this one by name
    title : model, data set and split, for the table
    temperature : divides the logits; from `fit_temperature` on validation data
    draws, seed : number of bootstrap draws, and their seed

    Raises
    ------
    ValueError
        If shapes, labels or names disagree, a logit is not finite, or a subject has two labels.

    Warns
    -----
    UserWarning
        If the logits look like probabilities, of which a softmax would be taken.

    Examples
    --------
    >>> labels, logits = [0, 1, 1, 0], [[2, 0], [0, 1], [3, 1], [1, 0]]
    >>> figures = evaluate(labels, logits, [0, 1, 2, 3], class_names=("ill", "well"))
    >>> figures.metrics["subject"]["accuracy"].value
    0.75
    """
    if isinstance(labels, Scans):
        class_names = class_names or labels.class_names
        labels = labels.labels_as(tuple(class_names))
    labels, logits = _checked(labels, logits)
    k, names = logits.shape[1], tuple(class_names or CLASS_NAMES)
    fits = len(set(names)) == len(names) == k and all(isinstance(name, str) for name in names)
    require(fits, f"Expected {k} class names.", class_names=names)
    names = checked_names("class_names", names)
    require(0 < temperature < np.inf, "temperature must be positive.", temperature=temperature)
    require(draws >= 1, "draws must be at least 1.", draws=draws)
    warn_of_shares(logits)
    logits /= temperature
    units = np.arange(len(labels)) if subjects is None else _subject_index(subjects, labels)
    samples = {"slice": Sample(labels, logits, units)}
    if subjects is not None:
        first, size = np.unique(units, return_index=True, return_counts=True)[1:]
        means = np.zeros((len(first), k))
        np.add.at(means, units, logits / size[units, None])
        samples["subject"] = Sample(labels[first], means, np.arange(len(first)))
    metrics = {}
    for unit, sample in samples.items():
        metrics[unit] = _estimates(sample, unit, names, draws, seed)
        for array in sample:
            array.flags.writeable = False
    notes = _notes(samples, metrics, names)
    return Evaluation(title, names, float(temperature), samples, metrics, notes)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the temperature from 1/20 to 20 that gives the smallest log loss.

    Use it on validation data. Division by the temperature keeps every predicted class and corrects
    over- or underconfidence (Guo et al. 2017, arXiv:1706.04599). If every label has the largest
    logit, lower temperatures are always better and none is best. The result is then 1.
    """
    labels, logits = _checked(labels, logits)
    rows = np.arange(len(labels))
    if (logits[rows, labels] == logits.max(1)).all():
        return 1.0
    warn_of_shares(logits)

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), axis=1)[rows, labels].mean()

    bounds = (-np.log(20), np.log(20))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def pick_examples(
    labels: np.ndarray, logits: np.ndarray, class_names: tuple[str, ...], *, seed: int = 0
) -> np.ndarray:
    """Choose for each class, at random, a correctly classified slice and a misclassified one.

    Labels are int (n,), logits float (n, k). The result is int64, at most (2 k,): indices, class by
    class, the correct one first. Missing kinds are left out.

    Raises
    ------
    ValueError
        If shapes, labels or names disagree, or a logit is not finite.

    Examples
    --------
    >>> labels, logits = [0, 0, 1, 1], [[2, 0], [0, 2], [0, 2], [0, 2]]
    >>> pick_examples(labels, logits, ("ill", "well")).tolist()
    [0, 1, 3]
    """
    labels, logits = _checked(labels, logits)
    k = logits.shape[1]
    require(len(class_names) == k, f"Expected {k} class names.", class_names=class_names)
    rng, right = np.random.default_rng(seed), logits.argmax(1) == labels
    kinds = [(labels == c) & of for c in range(k) for of in (right, ~right)]
    return np.array([rng.choice(np.flatnonzero(of)) for of in kinds if of.any()], np.int64)


def metric_label(key: str) -> str:
    """Return the readable name of a metric: 'recall_Non_Demented' is 'Recall, Non Demented'."""
    kind, _, name = key.partition("_")
    return METRICS.get(key) or f"{'AUC' if kind == 'auc' else 'Recall'}, {name.replace('_', ' ')}"


def pooled_three(
    labels: np.ndarray, logits: np.ndarray, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of labels (n,) and logits (n, 4) where moderate dementia counts as mild."""
    public = set(class_names) == set(CLASS_NAMES)
    require(public, f"Only of {CLASS_NAMES} can mild be pooled.", class_names=class_names)
    mild, moderate = (class_names.index(f"{name}_Demented") for name in ("Mild", "Moderate"))
    pooled = logits.copy()
    pooled[:, mild] = np.logaddexp(logits[:, mild], logits[:, moderate])
    pooled[:, moderate] = -np.inf
    return np.where(labels == moderate, mild, labels), pooled


def demented_odds(logits: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """Return the log odds of any dementia, float (n,), of logits (n, 4)."""
    return -_log_odds(logits, class_names.index("Non_Demented"))


def reliability_bins(labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Return the bins of the ECE, one row per bin: its edges, its count and two means.

    Columns: low (excluded), high (included), count, confidence, accuracy. Means of empty bins are
    NaN. ECE is the mean of |accuracy - confidence|, weighted by count.
    """
    labels, logits = _checked(labels, logits)
    confidence, bins = _confidence(logits)
    edges, count = np.linspace(0, 1, BINS + 1), np.bincount(bins, minlength=BINS)
    frame = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": count})
    means = pd.DataFrame({"confidence": confidence, "accuracy": logits.argmax(1) == labels})
    return frame.join(means.astype(float).groupby(bins).mean())


def _checked(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return copies as int64 (n,) and float64 (n, k)."""
    try:
        logits = np.array(logits, dtype=np.float64)
    except (TypeError, ValueError):
        kind = type(logits).__name__
        require(False, "logits must be numbers (n, k), such as predict_logits gives.", logits=kind)
    valid = logits.ndim == 2 and logits.shape[0] >= 1 and logits.shape[1] >= 2
    require(valid, "logits must be (n, k), n >= 1, k >= 2.", shape=logits.shape)
    labels = integers("labels", labels, len(logits))
    valid = labels.min() >= 0 and labels.max() < logits.shape[1]
    require(valid, f"labels must be 0 to {logits.shape[1] - 1}.", labels=np.unique(labels))
    wrong = np.flatnonzero(~np.isfinite(logits).all(1))[:1]
    require(not len(wrong), "logits must be finite.", row=wrong, logits=logits[wrong])
    return labels.astype(np.int64), logits


def _subject_index(subjects: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of each slice's subject, 0 to m - 1."""
    subjects = integers("subjects", subjects, len(labels))
    _, first, index = np.unique(subjects, return_index=True, return_inverse=True)
    wrong = np.flatnonzero(labels != labels[first][index])[:1]
    found = np.unique(labels[np.isin(subjects, subjects[wrong])])
    require(not len(wrong), "A subject has one label.", subject=subjects[wrong], labels=found)
    return index


def _confidence(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest probability of each row and its bin; bins include their upper edge."""
    confidence = np.exp(log_softmax(logits, axis=1).max(1))
    return confidence, np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)


def _log_odds(logits: np.ndarray, c: int) -> np.ndarray:
    """Return the log odds of class c; they rank like its probability but do not saturate."""
    return logits[:, c] - np.logaddexp.reduce(np.delete(logits, c, axis=1), axis=1)


def _auc(
    positive: np.ndarray, score: np.ndarray, units: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted share of (positive, negative) pairs in order; ties count half."""
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(score[negatives])]
    below = np.zeros((len(negatives) + 1, weights.shape[1]))
    np.cumsum(weights[units[negatives]], axis=0, out=below[1:])
    low, high = (np.searchsorted(score[negatives], score[positive], s) for s in ("left", "right"))
    wins = below[low] if (low == high).all() else (below[low] + below[high]) / 2
    weight = weights[units[positive]]
    return np.einsum("id,id->d", weight, wins) / (weight.sum(0) * below[-1])


def _metrics(sample: Sample, weights: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return every metric for every column of `weights` (m, draws); row `units[i]` weighs slice i.

    All metrics but AUC are ratios of sums over slices. Summed per unit first, they become sparse
    products.
    """
    labels, logits, units = sample
    k, predicted, (confidence, bins) = len(names), logits.argmax(1), _confidence(logits)
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]

    def total(cells: np.ndarray, n_cells: int, values: np.ndarray) -> np.ndarray:
        return csr_array((values, (cells, units)), shape=(n_cells, len(weights))) @ weights

    def hits_support_guesses(truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, ...]:
        confusion = total(truth * k + guess, k * k, np.ones(len(truth))).reshape(k, k, -1)
        return np.einsum("ccd->cd", confusion), confusion.sum(1), confusion.sum(0)

    with np.errstate(invalid="ignore"):
        hits, support, guesses = hits_support_guesses(labels, predicted)
        recall, n, occurring = hits / support, support.sum(0), np.unique(labels)
        f1 = np.where(support > 0, 2 * hits / (support + guesses), np.nan)
        auc = np.stack([_auc(labels == c, _log_odds(logits, c), units, weights) for c in range(k)])
        metrics = {
            "accuracy": hits.sum(0) / n,
            "balanced_accuracy": recall[occurring].mean(0),
            "macro_f1": f1[occurring].mean(0),
            "macro_auc": auc[occurring].mean(0),
            "log_loss": total(np.zeros_like(bins), 1, loss)[0] / n,
            "ece": np.abs(total(bins, BINS, (predicted == labels) - confidence)).sum(0) / n,
        }
        if set(names) == set(CLASS_NAMES):
            truth, pooled = pooled_three(labels, logits, names)
            hits, support, _ = hits_support_guesses(truth, pooled.argmax(1))
            metrics["balanced_accuracy_3"] = (hits / support)[np.unique(truth)].mean(0)
            # The AUC of non-demented against the rest is the same: both orders are reversed.
            metrics["demented_auc"] = auc[names.index("Non_Demented")]
    metrics |= {f"recall_{name}": recall[c] for c, name in enumerate(names)}
    return metrics | {f"auc_{name}": auc[c] for c, name in enumerate(names)}


def _estimates(
    sample: Sample, unit: str, names: tuple[str, ...], draws: int, seed: int
) -> dict[str, Estimate]:
    m, rng = sample.units.max() + 1, np.random.default_rng(seed)
    size = 1 + BLOCK // len(sample.labels)
    found = _metrics(sample, np.ones((m, 1)), names)
    blocks = []
    for start in range(0, draws, size):
        drawn = rng.multinomial(m, np.full(m, 1 / m), min(size, draws - start))
        blocks.append(_metrics(sample, np.ascontiguousarray(drawn.T, dtype=np.float64), names))
    hits = sample.logits.argmax(1) == sample.labels
    plain = {f"recall_{name}": hits[sample.labels == c] for c, name in enumerate(names)}
    plain = {"accuracy": hits, **plain} if unit == "subject" else {}
    estimates = {}
    for key, (value,) in found.items():
        drawn = np.concatenate([block[key] for block in blocks])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
        if len(plain.get(key, ())):
            # Wilson 1927, doi:10.1080/01621459.1927.10502953.
            test = binomtest(int(plain[key].sum()), len(plain[key]))
            low, high = test.proportion_ci(method="wilson")
        elif key == "ece":
            low, high = max(0, min(value, 2 * value - high)), max(value, 2 * value - low)
        estimates[key] = Estimate(*map(float, (value, low, high)))
    return estimates


def _notes(
    samples: dict[str, Sample], metrics: dict[str, dict[str, Estimate]], names: tuple[str, ...]
) -> tuple[str, ...]:
    unit, sample = list(samples.items())[-1]
    support = np.bincount(sample.labels, minlength=len(names))
    no_width = any(e.low == e.high for of in metrics.values() for e in of.values())
    notes = {
        "Subjects unknown: the intervals draw slices and are too narrow, because slices of one "
        "person are alike.": "subject" not in samples
    }
    for name, n in zip(names, support.tolist(), strict=True):
        few = f"{n} {name} {unit}{'s' * (n > 1)}: too few for a claim about this class or a macro"
        notes[f"{few} figure."] = 0 < n < 5
        notes[f"0 {name} {unit}s: no recall, no AUC; macro figures exclude this class."] = n == 0
    notes["One class only: no AUC exists."] = np.count_nonzero(support) == 1
    notes["Zero-width intervals prove nothing: all draws agree, for example if all are right."] = (
        no_width
    )
    return tuple(note for note, holds in notes.items() if holds)
