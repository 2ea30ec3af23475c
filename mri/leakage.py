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
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mri.data import Scans
from mri.subjects import Subjects, recover_subjects, subject_split


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    Attributes
    ----------
    subjects : Subjects
        Of train and test together, train first.
    table : DataFrame
        One row a figure, columns `as published` and `subjects kept apart`.
    twins : ndarray of int64, shape (m,)
        For each test slice, its nearest slice of the train part (Euclidean distance of pixels).
    correlations : ndarray of float64, shape (m,)
        Pixel correlation of each test slice with its twin.
    strangers : ndarray of float64, shape (m,)
        The same with the nearest train slice of another subject.
    """

    subjects: Subjects
    table: pd.DataFrame
    twins: np.ndarray
    correlations: np.ndarray
    strangers: np.ndarray

    @property
    def verdict(self) -> str:
        """One sentence for a reader in a hurry."""
        share = self.table.loc["test slices whose subject stands in train", "as published"]
        if share == 0:
            return "No leak found: no subject of the test part stands in the train part."
        return (
            f"Leaky: {share:.0%} of the test slices show a subject of the train part. Figures on "
            "this test part measure recognition of people; use subject_split."
        )

    def __repr__(self) -> str:
        return f"{self.table.to_string(float_format='{:.3f}'.format, na_rep='–')}\n{self.verdict}"

    def _repr_html_(self) -> str:
        table = self.table.to_html(float_format="{:.3f}".format, na_rep="–")
        return f"{table}<p><b>{self.verdict}</b></p>"


def audit(
    train: Scans, test: Scans, *, subjects: Subjects | None = None, folds: int = 5, seed: int = 0
) -> Audit:
    """Measure how far a published split is one between people.

    Every figure stands twice: on the split as published, and with subjects kept apart, as the mean
    over stratified subject-wise folds of all slices. Three classifiers that know nothing of anatomy
    serve as probes: the nearest neighbour in pixels, a linear one on principal components, and the
    nearest neighbour after the diagnoses were *shuffled among the subjects*. The last cannot learn
    disease, so all that it gets right above chance is people recognised.

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
    """
    scans = train + test
    subjects = subjects or recover_subjects(scans.images, scans.labels)
    groups, labels = subjects.groups, scans.labels
    pixels = scans.images.reshape(len(scans), -1).astype(np.float32)
    everything = np.arange(len(scans))
    published = [(everything[: len(train)], everything[len(train) :])]
    apart = []
    with warnings.catch_warnings():
        # Rare classes are named once, by the split that the caller makes.
        warnings.simplefilter("ignore", UserWarning)
        for fold in range(folds):
            rows = subject_split(labels, groups, fold=fold, folds=folds, seed=seed).test
            apart.append((np.setdiff1d(everything, rows), rows))
    shuffled = _shuffle_diagnoses(labels, groups, seed)
    majority = np.bincount(labels[published[0][0]]).argmax()
    columns, twins = {}, None
    for column, parts in (("as published", published), ("subjects kept apart", apart)):
        truth = np.concatenate([test for _, test in parts])
        nearest = np.concatenate([_nearest(pixels, *part) for part in parts])
        linear = np.concatenate([_linear_probe(pixels, labels, *part, seed) for part in parts])
        twins = nearest if twins is None else twins
        columns[column] = {
            "test slices whose subject stands in train": _shared(groups, parts),
            "pixel-identical slices across": _identical(scans.images, parts),
            "majority class: accuracy": float((labels[truth] == majority).mean()),
            **_scores("1-nearest neighbour", labels[truth], labels[nearest]),
            **_scores("linear probe", labels[truth], linear),
            **_scores("1-NN, diagnoses shuffled", shuffled[truth], shuffled[nearest]),
        }
    test_rows = published[0][1]
    strangers = _nearest_stranger(pixels, groups, *published[0])
    return Audit(
        subjects,
        pd.DataFrame(columns),
        twins,
        _correlation(pixels[test_rows], pixels[twins]),
        _correlation(pixels[test_rows], pixels[strangers]),
    )


def _nearest(pixels: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return for each test row the nearest train row."""
    return train[pairwise_distances_argmin(pixels[test], pixels[train])]


def _nearest_stranger(
    pixels: np.ndarray, groups: np.ndarray, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Return for each test row the nearest train row of another subject."""
    found = np.empty(len(test), np.int64)
    for start in range(0, len(test), 256):
        rows = test[start : start + 256]
        distance = euclidean_distances(pixels[rows], pixels[train], squared=True)
        distance[groups[rows][:, None] == groups[train]] = np.inf
        found[start : start + 256] = train[distance.argmin(axis=1)]
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)).astype(np.float64)


def _linear_probe(
    pixels: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    probe = make_pipeline(
        PCA(min(50, len(train), pixels.shape[1]), svd_solver="randomized", random_state=seed),
        StandardScaler(),
        LogisticRegression(max_iter=1000),
    )
    return probe.fit(pixels[train], labels[train]).predict(pixels[test])


def _scores(name: str, truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    recall = recall_score(truth, guess, average=None, labels=np.unique(truth), zero_division=0)
    return {
        f"{name}: accuracy": float((truth == guess).mean()),
        f"{name}: balanced accuracy": float(recall.mean()),
    }


def _shared(groups: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    seen = [np.isin(groups[test], groups[train]) for train, test in parts]
    return float(np.concatenate(seen).mean())


def _identical(images: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    keys = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    return float(sum(np.isin(keys[test], keys[train]).sum() for train, test in parts))


def _shuffle_diagnoses(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Deal the labels out again among the subjects: each keeps one, its anatomy means nothing."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(labels[first])[member]
