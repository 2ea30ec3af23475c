"""How much of a split's accuracy is recognition of people: the leakage report."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_argmin, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mri._arguments import integers, require, row_numbers
from mri.data.scans import Scans
from mri.subjects.recovery import Subjects, recover_subjects
from mri.subjects.splits import PARTS, Split, subject_split

Parts = list[tuple[np.ndarray, np.ndarray]]

DUPLICATE = 0.99
"""Pixel correlation from which two slices count as near duplicates."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    Attributes
    ----------
    subjects : Subjects
        Of train and test together, train first.
    table : DataFrame
        One row a figure, columns `as published` and `subjects kept apart`.
    within : DataFrame
        Duplicates inside each part, columns `train` and `test`.
    twins : ndarray of int64, shape (m,)
        For each test slice, the slice of the train part whose pixels correlate most with its own.
    correlations : ndarray of float64, shape (m,)
        Pixel correlation of each test slice with its twin.
    strangers : ndarray of float64, shape (m,)
        The same with the most similar train slice of another subject.
    """

    subjects: Subjects
    table: pd.DataFrame
    within: pd.DataFrame
    twins: np.ndarray
    correlations: np.ndarray
    strangers: np.ndarray

    @property
    def _shared(self) -> float:
        return float(self.table.loc["test slices whose subject stands in train", "as published"])

    @property
    def leaky(self) -> bool:
        """Whether a subject of the test part stands in the train part."""
        return self._shared > 0

    @property
    def verdict(self) -> str:
        """One sentence for a reader in a hurry."""
        share = self._shared
        if not self.leaky:
            return "No leak found: no subject of the test part stands in the train part."
        return (
            f"Leaky: {share:.0%} of the test slices show a subject of the train part. Figures on "
            "this test part measure recognition of people; use subject_split."
        )

    def __repr__(self) -> str:
        tables = (self.table, self.within)
        text = [t.to_string(float_format=_count_or_share, na_rep="–") for t in tables]
        return "\n\n".join([*text, self.verdict])

    def _repr_html_(self) -> str:
        tables = (self.table, self.within)
        text = [t.to_html(float_format=_count_or_share, na_rep="–") for t in tables]
        return "".join([*text, f"<p><b>{self.verdict}</b></p>"])


def _count_or_share(value: float) -> str:
    return f"{value:.0f}" if value > 1 else f"{value:.3f}"


def audit(
    train: Scans, test: Scans, *, subjects: Subjects | None = None, folds: int = 5, seed: int = 0
) -> Audit:
    """Measure how far a published split is one between people.

    Every figure stands twice: on the split as published, and with subjects kept apart, over
    stratified subject-wise folds of all slices (accuracies are means over the folds). Three
    classifiers that know nothing of anatomy serve as probes: the nearest neighbour in pixels, a
    linear one on principal components, and the nearest neighbour after the diagnoses were
    *shuffled among the subjects*. The last cannot learn disease, so all that it gets right above
    chance is people recognised.

    Parameters
    ----------
    train, test : Scans
    subjects : Subjects, optional
        Of ``train + test``; by default recovered from the pixels.
    folds, seed : int
        Of the subject-wise folds and the shuffle.

    Returns
    -------
    Audit

    Raises
    ------
    ValueError
        If a part is empty, the two do not go together, the subjects are not of their slices, or
        `folds` is below 2.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> phantoms, odd = make_phantoms(12, 16, size=64), np.arange(192) % 2 == 1
    >>> print(audit(phantoms.take(~odd).scans, phantoms.take(odd).scans).verdict.split(".")[0])
    Leaky: 100% of the test slices show a subject of the train part
    """
    sizes = len(train), len(test)
    require(min(sizes) >= 1, "train and test must have slices.", sizes=sizes)
    require(folds >= 2, "folds must be at least 2.", folds=folds)
    scans = train + test
    if subjects is not None:
        integers("subjects.groups", subjects.groups, len(scans))
    subjects = subjects or recover_subjects(scans.images, scans.labels)
    groups, labels = subjects.groups, scans.labels
    pixels = scans.images.reshape(len(scans), -1).astype(np.float32)
    shapes = _shapes(scans.images)
    everything = np.arange(len(scans))
    published: Parts = [(everything[: len(train)], everything[len(train) :])]
    apart: Parts = []
    with warnings.catch_warnings():
        # Rare classes are named once, by the split that the caller makes.
        warnings.simplefilter("ignore", UserWarning)
        for fold in range(folds):
            rows = subject_split(labels, groups, fold=fold, folds=folds, seed=seed).test
            apart.append((np.setdiff1d(everything, rows), rows))
    published_figures, twins = _figures(scans, groups, pixels, shapes, published, seed=seed)
    apart_figures, _ = _figures(scans, groups, pixels, shapes, apart, seed=seed)
    columns = {"as published": published_figures, "subjects kept apart": apart_figures}
    within = {side: _within(scans.images, shapes, rows)
              for side, rows in zip(("train", "test"), published[0], strict=True)}  # fmt: skip
    return Audit(
        subjects,
        pd.DataFrame(columns),
        pd.DataFrame(within),
        *twins,
        _closest(shapes, *published[0], groups)[1],
    )


def _figures(
    scans: Scans,
    groups: np.ndarray,
    pixels: np.ndarray,
    shapes: np.ndarray,
    parts: Parts,
    *,
    seed: int,
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Return the figures of one column, and the twins of its first part with correlations.

    `pixels` and `shapes` are the slices (n, h w), as they are and as `_shapes` scales them.
    """
    labels, shuffled = scans.labels, shuffle_diagnoses(scans.labels, groups, seed=seed)
    majority = np.bincount(labels[parts[0][0]]).argmax()
    truth = [labels[test] for _, test in parts]
    nearest = [train[pairwise_distances_argmin(pixels[test], pixels[train])]
               for train, test in parts]  # fmt: skip
    linear = [linear_probe(pixels[train], labels[train], seed=seed).predict(pixels[test])
              for train, test in parts]  # fmt: skip
    twins = [_closest(shapes, *part) for part in parts]
    similar = np.concatenate([correlations for _, correlations in twins])
    figures = {
        "subjects": float(len(np.unique(groups))),
        "test slices whose subject stands in train": _shared(groups, parts),
        "pixel-identical slices across": _identical(scans.images, parts),
        f"test slices with a near duplicate in train (r ≥ {DUPLICATE})": float(
            (similar >= DUPLICATE).mean()
        ),
        "highest correlation across": float(similar.max()),
        "majority class: accuracy": float(np.mean([(of == majority).mean() for of in truth])),
        **_scores("1-nearest neighbour", truth, [labels[rows] for rows in nearest]),
        **_scores("linear probe", truth, linear),
        **_scores(
            "1-NN, diagnoses shuffled",
            [shuffled[test] for _, test in parts],
            [shuffled[rows] for rows in nearest],
        ),
    }
    return figures, twins[0]


def shuffle_diagnoses(labels: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Deal the labels out again among the subjects, so that anatomy means nothing.

    The control for every result: a method that does better than chance on these has recognised
    people or seen its test part.

    Parameters
    ----------
    labels, groups : ndarray of int, shape (n,)
        Class and subject of each slice; a subject's first slice gives its class.
    seed : int

    Returns
    -------
    ndarray of int, shape (n,)
        One label a subject, each as often as before.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(labels[first])[member]


def _shapes(images: np.ndarray) -> np.ndarray:
    """Flatten and scale the slices so that their dot products are correlations."""
    shapes = images.reshape(len(images), -1).astype(np.float32)
    shapes -= shapes.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(shapes, axis=1, keepdims=True)
    # A slice of one gray value correlates with none.
    shapes /= np.where(norms > 0, norms, 1)
    return shapes


def _closest(
    shapes: np.ndarray, pool: np.ndarray, rows: np.ndarray, barred: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `rows` the most correlated of `pool`, and the correlation.

    What has the same number in `barred` as the row itself is left out; the correlation is NaN
    where that is all there is.
    """
    found, best = np.empty(len(rows), np.int64), np.empty(len(rows))
    candidates = shapes[pool]
    for start in range(0, len(rows), 256):
        block = rows[start : start + 256]
        similar = shapes[block] @ candidates.T
        if barred is not None:
            similar[barred[block][:, None] == barred[pool]] = -np.inf
        nearest = candidates[chosen := similar.argmax(axis=1)]
        found[start : start + 256] = pool[chosen]
        # Again in double precision: a long sum in single gives copies more than 1 on some machines.
        exact = np.einsum("ij,ij->i", shapes[block], nearest, dtype=np.float64, casting="safe")
        best[start : start + 256] = np.where(np.isinf(similar.max(axis=1)), np.nan, exact)
    return found, best


def _within(images: np.ndarray, shapes: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    copies = len(rows) - len(set(_digests(images[rows])))
    similar = _closest(shapes, rows, rows, np.arange(len(images)))[1]
    return {
        "slices": float(len(rows)),
        "pixel-identical to an earlier one": float(copies),
        f"with a near duplicate (r ≥ {DUPLICATE})": float((similar >= DUPLICATE).mean()),
        "highest correlation": float(similar.max()),
    }


def linear_probe(pixels: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Pipeline:
    """Fit a logistic regression on 50 principal components of pixels, float (n, h w)."""
    probe = make_pipeline(
        PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=seed),
        StandardScaler(),
        LogisticRegression(max_iter=1000),
    )
    return probe.fit(pixels, labels)


def _scores(name: str, truth: list[np.ndarray], guess: list[np.ndarray]) -> dict[str, float]:
    pairs = list(zip(truth, guess, strict=True))
    balanced = [recall_score(*pair, average="macro", labels=np.unique(pair[0])) for pair in pairs]
    return {
        f"{name}: accuracy": float(np.mean([(t == g).mean() for t, g in pairs])),
        f"{name}: balanced accuracy": float(np.mean(balanced)),
    }


def _shared(groups: np.ndarray, parts: Parts) -> float:
    seen = [np.isin(groups[test], groups[train]) for train, test in parts]
    return float(np.concatenate(seen).mean())


def _digests(images: np.ndarray) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def _identical(images: np.ndarray, parts: Parts) -> float:
    keys = np.array(_digests(images))
    return float(sum(np.isin(keys[test], keys[train]).sum() for train, test in parts))


def checklist(scans: Scans, split: Split, groups: np.ndarray) -> pd.DataFrame:
    """Answer the questions of a leakage checklist for one split, from what can be measured.

    The kinds of leakage are those of Kapoor & Narayanan 2023 (doi:10.1016/j.patter.2023.100804),
    which the reporting standard REFORMS (doi:10.1126/sciadv.adk3452) asks about.

    Parameters
    ----------
    scans : Scans
    split : Split
    groups : ndarray of int, shape (n,)
        Subject of each slice.

    Returns
    -------
    DataFrame
        One row a kind: the question, what was found, and whether it passes ('yes' or 'NO').

    Raises
    ------
    ValueError
        If the split or the groups are not of these slices, or a part is empty.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> from mri.subjects import image_split
    >>> phantoms = make_phantoms(12, 8, size=64)
    >>> split = image_split(phantoms.labels, test=range(0, 96, 5))
    >>> table = checklist(phantoms.scans, split, phantoms.subjects)
    >>> table.columns.tolist(), "NO" in table.iloc[:, -1].tolist()
    (['leakage', 'found', 'passes'], True)
    """
    groups = integers("groups", groups, len(scans))
    parts = {side: row_numbers(f"split.{side}", getattr(split, side), len(scans)) for side in PARTS}
    sizes = [len(part) for part in parts.values()]
    require(all(sizes), "Every part must have slices.", sizes=sizes)
    rows = np.concatenate(list(parts.values()))
    rest = np.concatenate([split.train, split.validation])
    people = {side: len(np.unique(groups[part])) for side, part in parts.items()}
    shared = len(np.intersect1d(groups[rest], groups[split.test]))
    copies = int(_identical(scans.images, [(rest, split.test)]))
    similar = _closest(_shapes(scans.images), rest, split.test)[1]
    near = int((similar >= DUPLICATE).sum())
    tested, first = np.unique(groups[split.test], return_index=True)
    counts = np.bincount(scans.labels[split.test][first], minlength=len(scans.class_names))
    few = [f"{n} {name}" for name, n in zip(scans.class_names, counts, strict=True) if n < 5]
    size = "/".join(str(n) for n in sizes)
    size += f" slices of {'/'.join(str(n) for n in people.values())} people"
    found = [
        ("L1.1 a test part of its own", size, len(set(rows)) == len(rows)),
        ("L1.4 no duplicates across", f"{copies} identical, {near} with r ≥ {DUPLICATE}",
         not (near or copies)),
        ("L3.2 independent of training", f"{shared} of {len(tested)} people on both sides",
         not shared),
        ("L3.3 enough of every class", f"in test fewer than 5 people: {', '.join(few) or 'none'}",
         not few),
    ]  # fmt: skip
    frame = pd.DataFrame(found, columns=["leakage", "found", "passes"])
    frame["passes"] = np.where(frame["passes"], "yes", "NO")
    return frame
