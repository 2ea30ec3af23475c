"""What knows nothing of anatomy and is right all the same: copies, and simple classifiers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mri.subjects.identity import doubted
from mri.subjects.likeness import Found

Parts = list[tuple[np.ndarray, np.ndarray]]
"""Row numbers of train and test, of one division or several."""

DUPLICATE = 0.99
"""Pixel correlation from which two slices count as near duplicates."""

PUBLISHED, APART = "as published", "subjects kept apart"
SHARED = "test slices whose subject stands in train"
IDENTICAL = "pixel-identical slices across"
NEAR = f"test slices with a near duplicate in train (r ≥ {DUPLICATE})"
DISPUTED = f"copies of one with another label, exact or near (r ≥ {DUPLICATE})"
TURNED = f"test slices that are a mirrored, turned or inverted copy (r ≥ {DUPLICATE})"

# By how much the nearest neighbour may do better as published before people are doubted.
_SUSPICIOUS = 0.15


@dataclass(frozen=True, eq=False)
class Probes:
    """Classifiers that know nothing of anatomy, measured on one division or several.

    Of labels, pixels in some detail, and numbers that only equal slices share, of all slices.
    """

    labels: np.ndarray
    pixels: np.ndarray
    keys: np.ndarray
    groups: np.ndarray | None
    seed: int

    def figures(self, parts: Parts, found: Found, name: str) -> dict[str, float]:
        """Return the figures of one column of the table."""
        labels, groups, keys = self.labels, self.groups, self.keys
        rows = np.concatenate([test for _, test in parts])
        similar, neighbour = found[name][1][rows], found[f"{name}: pixels"][0]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            guesses = list(pool.map(self._linear, *zip(*parts, strict=True)))
        tests = [test for _, test in parts]
        truth, neighbours = [labels[of] for of in tests], [neighbour[of] for of in tests]
        majorities = [np.bincount(labels[train]).argmax() for train, _ in parts]
        majority = [(of == most).mean() for of, most in zip(truth, majorities, strict=True)]
        shared = np.nan if groups is None else _across(groups, parts) / len(rows)
        figures = {
            "subjects": np.nan if groups is None else float(len(np.unique(groups))),
            SHARED: shared,
            IDENTICAL: _across(keys, parts),
            NEAR: float((similar >= DUPLICATE).mean()),
            TURNED: np.nan,
            "highest correlation across": float(similar.max()),
            "majority class: accuracy": float(np.mean(majority)),
            **_scores("1-nearest neighbour", truth, [labels[of] for of in neighbours]),
            **_scores("linear probe", truth, guesses),
        }
        if groups is not None:
            shuffled = shuffle_diagnoses(labels, groups, seed=self.seed)
            truth, guesses = [shuffled[of] for of in tests], [shuffled[of] for of in neighbours]
            figures |= _scores("1-NN, diagnoses shuffled", truth, guesses)
        return figures

    def _linear(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        if len(np.unique(self.labels[train])) < 2:
            return np.full(len(test), self.labels[train[0]])
        probe = linear_probe(self.pixels[train], self.labels[train], seed=self.seed)
        return probe.predict(self.pixels[test])


def disagreement(
    labels: np.ndarray, groups: np.ndarray, found: Found, test: np.ndarray
) -> tuple[str, ...]:
    """Say so if the nearest neighbour does much better as published, on the same slices.

    Of slices of people who do not stand in the train part: those who do explain it. Compared person
    by person, so that a test part of few easy people is not accused.
    """
    if not len(test):
        return ()
    published, apart = (
        labels[found[f"{name}: pixels"][0][test]] == labels[test] for name in (PUBLISHED, APART)
    )
    _, person = np.unique(groups[test], return_inverse=True)
    gains = np.bincount(person, published.astype(float) - apart) / np.bincount(person)
    gain, error = gains.mean(), gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0
    if gain < _SUSPICIOUS or gain - 2 * error <= 0:
        return ()
    return (
        f"the nearest neighbour names {published.mean():.0%} of the test slices rightly as "
        f"published and {apart.mean():.0%} with the people kept apart that were found, which "
        "people found rightly do not explain",
    )


def disputed(keys: np.ndarray, labels: np.ndarray, found: Found) -> np.ndarray:
    """Return which of n slices stand there with another label too, exactly or nearly, bool."""
    wrong = doubted(keys, labels)
    for twins, alike in found.values():
        rows = np.flatnonzero((alike >= DUPLICATE) & (labels[twins] != labels))
        wrong[rows] = wrong[twins[rows]] = True
    return np.isin(keys, keys[wrong])


def shuffle_diagnoses(labels: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Deal the labels out again among the subjects, so that anatomy means nothing.

    The control for every result: a method that does better than chance on these has recognised
    people or seen its test part. Of classes and subjects of slices, (n,); a subject's first slice
    gives its class. Returns labels (n,), one a subject, each as often as before.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(labels[first])[member]


def linear_probe(pixels: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Pipeline:
    """Fit a logistic regression on 50 principal components of pixels, float (n, h w)."""
    probe = make_pipeline(
        PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=seed, iterated_power=3),
        StandardScaler(),
        LogisticRegression(max_iter=1000),
    )
    return probe.fit(pixels, labels)


def _across(numbers: np.ndarray, parts: Parts) -> float:
    """Count the test slices whose number stands in train too."""
    return float(sum(np.isin(numbers[test], numbers[train]).sum() for train, test in parts))


def _scores(name: str, truth: list[np.ndarray], guess: list[np.ndarray]) -> dict[str, float]:
    pairs = list(zip(truth, guess, strict=True))
    balanced = [recall_score(*pair, average="macro", labels=np.unique(pair[0])) for pair in pairs]
    return {
        f"{name}: accuracy": float(np.mean([(t == g).mean() for t, g in pairs])),
        f"{name}: balanced accuracy": float(np.mean(balanced)),
    }
