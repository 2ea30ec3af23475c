"""How much of a split's accuracy is recognition of people: the leakage report."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mri._arguments import integers, require, row_numbers
from mri.data.scans import Scans
from mri.subjects.identity import unequal
from mri.subjects.likeness import Likeness, Progress, View, columns, nearest, others, turned_copies
from mri.subjects.probes import (
    APART,
    DUPLICATE,
    IDENTICAL,
    NEAR,
    PUBLISHED,
    SHARED,
    TURNED,
    Parts,
    Probes,
    disagreement,
)
from mri.subjects.recovery import Subjects, UnclearSubjectsError, recover_subjects
from mri.subjects.splits import PARTS, Split, folds_of_people


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    Attributes
    ----------
    subjects : Subjects or None
        Of train and test together, train first; None where they could not be told.
    table : DataFrame
        One row a figure, columns `as published` and `subjects kept apart` (NaN where unknown).
    within : DataFrame
        Duplicates inside each part, columns `train` and `test`, or `all`.
    twins : ndarray of int64, shape (m,)
        For each test slice, the slice of the train part whose pixels correlate most with its own.
    correlations : ndarray of float64, shape (m,)
        Pixel correlation of each test slice with its twin.
    strangers : ndarray of float64, shape (m,)
        The same with the most similar train slice of another subject.
    reasons : tuple of str
        Why it cannot be said that there is no leak; empty where nothing speaks against it.
    """

    subjects: Subjects | None
    table: pd.DataFrame
    within: pd.DataFrame
    twins: np.ndarray
    correlations: np.ndarray
    strangers: np.ndarray
    reasons: tuple[str, ...] = ()

    def _figure(self, name: str) -> float:
        return float(self.table.loc[name, PUBLISHED]) if name in self.table.index else np.nan

    @property
    def status(self) -> str:
        """One of 'leaky', 'undecided', 'clean' and, of a source without parts, 'undivided'."""
        if "train" not in self.within:
            return "undivided"
        if self._figure(SHARED) > 0 or self._copied > 0:
            return "leaky"
        return "undecided" if self.reasons else "clean"

    @property
    def _copied(self) -> float:
        """Share of test slices that are copies of a train slice, turned ones among them."""
        near, apart = self._figure(NEAR), self.table.loc[NEAR].get(APART, np.nan)
        # Where strangers are as alike, likeness is no proof of a copy.
        proof = near if not apart > 0 else 0.0
        share = max(proof, self._figure(TURNED) if not apart > 0 else 0.0)
        return max(share, self._figure(IDENTICAL) / len(self.twins))

    @property
    def leaky(self) -> bool:
        """Whether a subject of the test part stands in the train part, or copies of its slices."""
        return self.status == "leaky"

    @property
    def verdict(self) -> str:
        """One sentence for a reader in a hurry."""
        why = "; ".join(self.reasons)
        if self.status == "undivided":
            text = "Not divided: there is no train and test part to compare; "
            text += f"undecided who is who, because {why}." if why else self._people()
            return text
        if self._figure(SHARED) > 0:
            return (
                f"Leaky: {self._figure(SHARED):.0%} of the test slices show a subject of the "
                "train part. Figures on this test part measure recognition of people; use "
                "subject_split."
            )
        if self.leaky:
            return (
                f"Leaky: {self._copied:.1%} of the test slices are copies of a train slice, exact, "
                "near, mirrored, turned or inverted. Figures on this test part measure memory; "
                "take them out."
            )
        if why:
            return (
                f"Undecided: whether people stand in both parts cannot be decided, because {why}."
            )
        return "No leak found: no subject of the test part stands in the train part."

    def _people(self) -> str:
        count = len(np.unique(self.subjects.groups)) if self.subjects else 0
        return f"{count} subjects found. Divide with subject_split."

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, status, reasons and figures, ready for JSON (None for NaN)."""

        def plain(table: pd.DataFrame) -> dict[str, Any]:
            return {
                str(name): {key: None if np.isnan(v) else float(v) for key, v in of.items()}
                for name, of in table.items()
            }

        return {
            "verdict": self.verdict,
            "status": self.status,
            "leaky": self.leaky,
            "reasons": list(self.reasons),
            "figures": plain(self.table),
            "within": plain(self.within),
            "twins": self.twins.tolist(),
            "correlations": [None if np.isnan(r) else round(r, 6) for r in self.correlations],
        }

    def __repr__(self) -> str:
        tables = (self.table, self.within)
        text = [t.to_string(float_format=_count_or_share, na_rep="–") for t in tables if len(t)]
        return "\n\n".join([*text, self.verdict])

    def _repr_html_(self) -> str:
        tables = (self.table, self.within)
        text = [t.to_html(float_format=_count_or_share, na_rep="–") for t in tables if len(t)]
        return "".join([*text, f"<p><b>{self.verdict}</b></p>"])


def _count_or_share(value: float) -> str:
    return f"{value:.0f}" if value > 1 else f"{value:.3f}"


def audit(
    train: Scans,
    test: Scans | None = None,
    *,
    subjects: Subjects | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Measure how far a published split is one between people.

    Every figure stands twice: on the split as published, and with subjects kept apart, over
    stratified subject-wise folds of all slices (accuracies are means over the folds). Three
    classifiers that know nothing of anatomy serve as probes: the nearest neighbour in pixels, a
    linear one on principal components, and the nearest neighbour after the diagnoses were
    *shuffled among the subjects*. The last cannot learn disease, so all that it gets right above
    chance is people recognised.

    Where the pixels do not say who is who, copies, twins and probes are reported all the same, and
    the verdict is that it cannot be decided, or that copies alone make a leak. There is no clean
    bill while the nearest neighbour does much better as published than with people kept apart.

    Parameters
    ----------
    train, test : Scans
        Without `test`, nothing is compared across: duplicates within and subjects are reported.
    subjects : Subjects, optional
        Of ``train + test``; by default recovered from the pixels.
    folds, seed : int
        Of the subject-wise folds and the shuffle.
    progress : callable, optional
        Is told what is being done, and which share of it is done, 0 to 1.

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
    >>> phantoms, odd = make_phantoms(8, 24, size=64), np.arange(192) % 2 == 1
    >>> print(audit(phantoms.take(~odd).scans, phantoms.take(odd).scans).verdict.split(".")[0])
    Leaky: 100% of the test slices show a subject of the train part
    """
    sizes = (len(train),) if test is None else (len(train), len(test))
    require(min(sizes) >= 1, "train and test must have slices.", sizes=sizes)
    require(folds >= 2, "folds must be at least 2.", folds=folds)
    scans = train if test is None else train + test
    if subjects is not None:
        integers("subjects.groups", subjects.groups, len(scans))
    told = progress or _silent
    told("finding people", 0.0)
    subjects, reasons = (subjects, _doubts(subjects)) if subjects else _people(scans)
    groups = None if subjects is None else subjects.groups
    told("preparing slices", 0.0)
    like = Likeness(scans.images)
    everything = np.arange(len(scans))
    published = everything[: len(train)], everything[len(train) :]
    apart = [] if groups is None or test is None else _folds(scans.labels, groups, folds, seed)
    found = nearest(like, _views(published, apart, groups, len(scans)), told)
    keys = unequal(scans.images)[1]
    names = ("all",) if test is None else ("train", "test")
    within = pd.DataFrame(
        {side: _within(keys[rows], found[f"within {side}"][1])
         for side, rows in zip(names, published, strict=False)}
    )  # fmt: skip
    if test is None:
        none = np.empty(0)
        empty = pd.DataFrame(columns=[PUBLISHED, APART])
        return Audit(subjects, empty, within, none.astype(np.int64), none, none, reasons)
    told("probes", 0.0)
    probes = Probes(scans, like.frequencies(), groups, seed)
    figures = {PUBLISHED: probes.figures([published], found, PUBLISHED, keys)}
    turned = turned_copies(like, published[1], published[0], DUPLICATE)[1] > 0
    figures[PUBLISHED][TURNED] = float(turned.mean())
    rows_of_figures = list(figures[PUBLISHED])
    figures[APART] = (
        probes.figures(apart, found, APART, keys)
        if apart
        else dict.fromkeys(rows_of_figures, np.nan)
    )
    told("probes", 1.0)
    table = pd.DataFrame(figures).reindex(rows_of_figures)
    if apart:
        reasons += disagreement(scans.labels, groups, found, published[1])
    strangers = found["strangers"][1] if apart else np.full(len(published[1]), np.nan)
    return Audit(subjects, table, within, *found[PUBLISHED], strangers, tuple(reasons))


def _silent(what: str, share: float) -> None:
    pass


def _people(scans: Scans) -> tuple[Subjects | None, tuple[str, ...]]:
    """Return who is who, or None, and what is doubtful about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = recover_subjects(scans.images, scans.labels)
        except UnclearSubjectsError as error:
            return None, (str(error),)
    for of in caught:
        warnings.warn_explicit(of.message, of.category, of.filename, of.lineno)
    said = [str(of.message) for of in caught if issubclass(of.category, UserWarning)]
    return found, tuple(dict.fromkeys([*said, *_doubts(found)]))


def _doubts(subjects: Subjects) -> tuple[str, ...]:
    return tuple(getattr(subjects, "doubts", ()))


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Parts:
    """Return (train, test) of subject-wise folds; none where there are too few people for them."""
    folds = min(folds, len(np.unique(groups)))
    if folds < 3:
        return []
    with warnings.catch_warnings():
        # Rare classes are named once, by the split that the caller makes.
        warnings.simplefilter("ignore", UserWarning)
        return folds_of_people(labels, groups, folds, seed)


def _views(
    published: tuple[np.ndarray, np.ndarray], apart: Parts, groups: np.ndarray | None, n: int
) -> dict[str, View]:
    """Return all that is asked of the pairs of slices, so that they are compared once."""
    train, test = published
    if not len(test):
        return {"within all": View(train, columns(train, n))}
    views = {
        "within train": View(train, columns(train, n)),
        "within test": View(test, columns(test, n)),
        PUBLISHED: View(test, columns(train, n)),
        f"{PUBLISHED}: pixels": View(test, columns(train, n), distance=True),
    }
    if apart:
        fold = np.empty(n, np.int64)
        for number, (_, rows) in enumerate(apart):
            fold[rows] = number
        everything = np.arange(n)
        views |= {
            APART: View(everything, others(fold)),
            f"{APART}: pixels": View(everything, others(fold), distance=True),
        }
    if apart and groups is not None:
        inside = np.isin(np.arange(n), train)
        views["strangers"] = View(test, others(groups, inside))
    return views


def _within(keys: np.ndarray, similar: np.ndarray) -> dict[str, float]:
    known = similar[np.isfinite(similar)]
    return {
        "slices": float(len(keys)),
        "pixel-identical to an earlier one": float(len(keys) - len(np.unique(keys))),
        f"with a near duplicate (r ≥ {DUPLICATE})": float((similar >= DUPLICATE).mean()),
        "highest correlation": float(known.max()) if len(known) else np.nan,
    }


def checklist(scans: Scans, split: Split, groups: np.ndarray | None) -> pd.DataFrame:
    """Answer the questions of a leakage checklist for one split, from what can be measured.

    The kinds of leakage are those of Kapoor & Narayanan 2023 (doi:10.1016/j.patter.2023.100804),
    which the reporting standard REFORMS (doi:10.1126/sciadv.adk3452) asks about.

    Parameters
    ----------
    scans : Scans
    split : Split
    groups : ndarray of int, shape (n,), or None
        Subject of each slice; None where that is not known.

    Returns
    -------
    DataFrame
        One row a kind: the question, what was found, and whether it passes ('yes', 'NO', or
        'undecided' where `audit` would not give a clean bill either).

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
    n = len(scans)
    groups = None if groups is None else integers("groups", groups, n)
    parts = {side: row_numbers(f"split.{side}", getattr(split, side), n) for side in PARTS}
    sizes = [len(part) for part in parts.values()]
    require(all(sizes), "Every part must have slices.", sizes=sizes)
    rows, test = np.concatenate(list(parts.values())), split.test
    rest = np.concatenate([split.train, split.validation])
    apart = [] if groups is None else _folds(scans.labels, groups, 5, 0)
    like, keys = Likeness(scans.images), unequal(scans.images)[1]
    wanted = (PUBLISHED, f"{PUBLISHED}: pixels", f"{APART}: pixels")
    views = _views((rest, test), apart, groups, n)
    found = nearest(like, {name: view for name, view in views.items() if name in wanted})
    copies = int(np.isin(keys[test], keys[rest]).sum())
    near = int((found[PUBLISHED][1] >= DUPLICATE).sum())
    turned = int((turned_copies(like, test, rest, DUPLICATE)[1] > 0).sum())
    told = f"{copies} identical, {near} with r ≥ {DUPLICATE}"
    told += f", {turned} mirrored, turned or inverted" if turned else ""
    size = "/".join(str(n) for n in sizes)
    unique = len(set(rows)) == len(rows)
    if groups is None:
        size += " slices, people unknown"
        people: list[tuple[str, str, bool | None]] = [
            ("L3.2 independent of training", "people unknown", None),
            ("L3.3 enough of every class", "people unknown", None),
        ]
    else:
        doubts = disagreement(scans.labels, groups, found, test) if apart else ()
        count = [str(len(np.unique(groups[part]))) for part in parts.values()]
        size += f" slices of {'/'.join(count)} people"
        people = _about_people(scans, groups, rest, test, doubts)
    frame = pd.DataFrame(
        [
            ("L1.1 a test part of its own", size, unique),
            ("L1.4 no duplicates across", told, not (near or copies or turned)),
            *people,
        ],
        columns=["leakage", "found", "passes"],
    )
    frame["passes"] = [{True: "yes", False: "NO"}.get(of, "undecided") for of in frame["passes"]]
    return frame


def _about_people(
    scans: Scans, groups: np.ndarray, rest: np.ndarray, test: np.ndarray, doubts: tuple[str, ...]
) -> list[tuple[str, str, bool | None]]:
    """Return the rows of the checklist that ask about people."""
    shared = len(np.intersect1d(groups[rest], groups[test]))
    tested, first = np.unique(groups[test], return_index=True)
    counts = np.bincount(scans.labels[test][first], minlength=len(scans.class_names))
    few = [f"{n} {name}" for name, n in zip(scans.class_names, counts, strict=True) if n < 5]
    told = f"{shared} of {len(tested)} people on both sides"
    if not shared:
        told = "; but ".join([told, *doubts])
    apart = False if shared else None if doubts else True
    return [
        ("L3.2 independent of training", told, apart),
        (
            "L3.3 enough of every class",
            f"in test fewer than 5 people: {', '.join(few) or 'none'}",
            not few,
        ),
    ]
