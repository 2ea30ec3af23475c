"""How much of a split's accuracy is recognition of people: the leakage report."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mri._arguments import integers, require, row_numbers
from mri.data.scans import Scans
from mri.subjects.identity import doubted, unequal
from mri.subjects.likeness import Likeness, Progress, View, nearest, turned_copies
from mri.subjects.probes import (
    APART,
    DISPUTED,
    DUPLICATE,
    IDENTICAL,
    NEAR,
    PUBLISHED,
    SHARED,
    TURNED,
    Parts,
    Probes,
    disagreement,
    disputed,
)
from mri.subjects.recovery import Subjects, recover_subjects
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
    correlations, strangers : ndarray of float64, shape (m,)
        Pixel correlation of each test slice with its twin, and with the most similar train slice
        of another subject.
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

    @property
    def status(self) -> str:
        """One of 'leaky', 'undecided', 'clean' and, of a source without parts, 'undivided'."""
        return self._judged()[0]

    @property
    def leaky(self) -> bool:
        """Whether a subject of the test part stands in the train part, or copies of its slices."""
        return self.status == "leaky"

    @property
    def verdict(self) -> str:
        """One sentence for a reader in a hurry, and one more if labels contradict each other."""
        said, wrong = self._judged()[1], int(self.within.loc[DISPUTED].sum())
        if wrong:
            said += f" {wrong} slices stand there with another label too; correct the labels."
        return said

    def _judged(self) -> tuple[str, str]:
        why = "; ".join(self.reasons)
        if "train" not in self.within:
            count = len(np.unique(self.subjects.groups)) if self.subjects else 0
            people = f"undecided who is who, because {why}." if why else (
                f"{count} subjects found. Divide with subject_split."
            )  # fmt: skip
            text = "Not divided: there is no train and test part to compare; "
            return "undivided", text + people
        more = f" Whether it is more cannot be decided, because {why}." if why else ""
        figure, apart = self.table[PUBLISHED], self.table.loc[NEAR, APART]
        if figure[SHARED] > 0:
            return "leaky", (
                f"Leaky: {figure[SHARED]:.0%} of the test slices show a subject of the train part. "
                f"Figures on this test part measure recognition of people; use subject_split.{more}"
            )
        # Where strangers are as alike, likeness is no proof of a copy.
        copied = 0.0 if apart > 0 else max(figure[NEAR], figure[TURNED])
        copied = max(copied, figure[IDENTICAL] / len(self.twins))
        if copied > 0:
            return "leaky", (
                f"Leaky: {copied:.1%} of the test slices are copies of a train slice, exact, near, "
                "mirrored, turned or inverted. Figures on this test part measure memory; take them "
                f"out.{more}"
            )
        if not why and apart > 0 and max(figure[NEAR], figure[TURNED]) > 0:
            why = "test slices are as like train slices as copies are, but so are other people's"
        if why:
            text = f"whether people stand in both parts cannot be decided, because {why}."
            return "undecided", f"Undecided: {text}"
        return "clean", "No leak found: no subject of the test part stands in the train part."

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, status, reasons and figures, ready for JSON (None for NaN)."""
        return {
            "verdict": self.verdict,
            "status": self.status,
            "leaky": self.leaky,
            "reasons": list(self.reasons),
            "figures": json.loads(self.table.to_json(double_precision=15)),
            "within": json.loads(self.within.to_json(double_precision=15)),
            "twins": self.twins.tolist(),
            "correlations": [
                None if np.isnan(r) else round(r, 6) for r in self.correlations.tolist()
            ],
        }

    def __repr__(self) -> str:
        return "\n\n".join([*self.shown("to_string"), self.verdict])

    def _repr_html_(self) -> str:
        return "".join([*self.shown("to_html"), f"<p><b>{self.verdict}</b></p>"])

    def shown(self, how: str) -> list[str]:
        """Return the tables as a method of pandas writes them."""
        tables = [table for table in (self.table, self.within) if len(table)]
        return [getattr(of, how)(float_format=_count_or_share, na_rep="–") for of in tables]


def _count_or_share(value: float) -> str:
    return f"{value:.0f}" if value > 1 else f"{value:.3f}"


def audit(
    train: Scans,
    test: Scans | None = None,
    *,
    subjects: Subjects | Sequence[Any] | np.ndarray | None = None,
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
    subjects : Subjects or sequence of ids, optional
        Of ``train + test``, train first; by default recovered from the pixels. Where they keep the
        parts apart and the pixels speak against it, the verdict is that it cannot be decided. Where
        ids share people whom the pixels keep apart, a warning says so.
    folds, seed : int
        Of the subject-wise folds (2 at least) and the shuffle.
    progress : callable, optional
        Is told what is being done, and which share of it is done, 0 to 1.

    Raises
    ------
    ValueError
        If a part is empty, the two do not go together, or the subjects are not of their slices.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> phantoms, odd = make_phantoms(8, 24, size=64), np.arange(192) % 2 == 1
    >>> print(audit(phantoms.take(~odd).scans, phantoms.take(odd).scans).verdict.split(".")[0])
    Leaky: 100% of the test slices show a subject of the train part
    """
    given = (train,) if test is None else (train, test)
    kinds = [type(of).__name__ for of in given]
    require(all(isinstance(of, Scans) for of in given), "Pass Scans, of read_scans.", given=kinds)
    sizes = tuple(map(len, given))
    require(min(sizes) >= 1, "train and test must have slices.", sizes=sizes)
    require(folds >= 2, "folds must be at least 2.", folds=folds)
    scans = train if test is None else train + test
    first, second = np.split(np.arange(len(scans)), [len(train)])
    told = progress or (lambda what, share: None)
    told("finding people", 0.0)
    if subjects is None:
        people, reasons = _people(scans)
    else:
        people, reasons = _asserted(scans, subjects, first, second)
    groups = None if people is None else people.groups
    told("preparing slices", 0.0)
    like, keys = _prepared(scans.images)
    apart = [] if groups is None or test is None else _folds(scans.labels, groups, folds, seed)
    sides = {"all": first} if test is None else {"train": first, "test": second}
    views = {f"within {side}": View(of, of, np.arange(len(scans))) for side, of in sides.items()}
    if test is not None:
        views |= _across(first, second, apart, groups, len(scans))
    found = nearest(like, views, told)
    wrong = disputed(keys, scans.labels, found)
    within = pd.DataFrame(
        {
            side: _within(keys[of], found[f"within {side}"][1][of], wrong[of])
            for side, of in sides.items()
        }
    )
    if test is None:
        none, empty = np.empty(0), pd.DataFrame(columns=[PUBLISHED, APART])
        return Audit(people, empty, within, none.astype(np.int64), none, none, reasons)
    told("probes", 0.0)
    probes = Probes(scans.labels, like.frequencies(), keys, groups, seed)
    published = [(first, second)]
    # Each keeps one core busy. On so few numbers the threads of BLAS mostly wait for each other.
    with threadpool_limits(1), ThreadPoolExecutor(3) as pool:
        turned = pool.submit(turned_copies, like, second, first, DUPLICATE)
        kept_apart = pool.submit(probes.figures, apart, found, APART) if apart else None
        figures = pd.DataFrame({PUBLISHED: probes.figures(published, found, PUBLISHED)})
        figures.loc[TURNED, PUBLISHED] = turned.result().mean()
        figures[APART] = pd.Series(kept_apart.result() if kept_apart else {}, dtype=float)
    told("probes", 1.0)
    if apart and groups is not None:
        # Where people stand in both parts, they explain it.
        others = second[~np.isin(groups[second], groups[first])]
        reasons += disagreement(scans.labels, groups, found, others)
    strangers = found["strangers"][1][second] if apart else np.full(len(second), np.nan)
    twins, correlations = (of[second] for of in found[PUBLISHED])
    return Audit(people, figures, within, twins, correlations, strangers, reasons)


def _people(scans: Scans) -> tuple[Subjects | None, tuple[str, ...]]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*of equal pixels carry")  # The verdict says so.
            found = recover_subjects(scans.images, scans.labels)
    except ValueError as error:  # Unclear, too few, or some are of one gray value.
        if np.ptp(scans.images) == 0:
            raise
        return None, (str(error),)
    return found, found.warnings


def _seen(scans: Scans) -> tuple[Subjects | None, tuple[str, ...]]:
    """Return `_people` without warnings, which would name other groups than the given ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _people(scans)


def _asserted(
    scans: Scans, subjects: Any, train: np.ndarray, test: np.ndarray
) -> tuple[Subjects, tuple[str, ...]]:
    """Return given people, and what in their labels and in the pixels speaks against them."""
    people = _given(subjects, scans.labels)
    if not len(test):
        return people, people.warnings
    if not hasattr(subjects, "groups"):
        _warn_of_ids_begun_anew(scans, people.groups, train, test)
    against = _contradiction(scans, people.groups, train, test, stacklevel=4)
    return people, people.warnings + against


def _given(subjects: Any, labels: np.ndarray) -> Subjects:
    """Return given people, or make them of the ids of slices."""
    n = len(labels)
    if hasattr(subjects, "groups"):
        groups = integers("subjects.groups", subjects.groups, n)
        known: Subjects = replace(subjects, groups=groups)
        return known
    ids = np.asarray(subjects)
    fits = ids.shape == (n,) and not pd.isna(ids).any()
    expected = f"subjects must be an id of each of {n} slices, train first."
    require(fits, expected, shape=ids.shape, dtype=ids.dtype)
    groups, unknown = pd.factorize(ids.astype(str))[0], np.array([np.nan])
    mixed = tuple(np.unique(groups[doubted(groups, labels)]).tolist())
    return Subjects(groups, np.nan, unknown, unknown, mixed)


def _contradiction(
    scans: Scans, groups: np.ndarray, rest: np.ndarray, test: np.ndarray, stacklevel: int = 3
) -> tuple[str, ...]:
    """Say so if the pixels show people in both parts, whom the groups (n,) keep apart."""
    if np.isin(groups[test], groups[rest]).any():
        return ()
    found, why = _seen(scans)
    if found is None:
        told = f"the given subjects are believed; the pixels cannot check them, because {why[0]}"
        warnings.warn(told, stacklevel=stacklevel)
    shared = np.isin(found.groups[test], found.groups[rest]).mean() if found else 0
    text = "test slices show a subject of the train part, whom the given subjects take for another"
    return (f"by the pixels {shared:.1%} of the {text}",) if shared else ()


def _warn_of_ids_begun_anew(
    scans: Scans, groups: np.ndarray, train: np.ndarray, test: np.ndarray
) -> None:
    """Warn if ids (n,) name people of both parts, of whom the pixels show none in both."""
    if not len(shared := test[np.isin(groups[test], groups[train])]):
        return
    found, _ = _seen(scans)
    if found is None or np.isin(found.groups[shared], found.groups[train]).any():
        return
    warnings.warn(
        f"by the ids {len(np.unique(groups[shared]))} people stand in both parts, by the pixels "
        "none of them does. If the ids begin anew in each part, write the part before each id",
        stacklevel=4,
    )


def _prepared(images: np.ndarray) -> tuple[Likeness, np.ndarray]:
    """Return slices to compare, and numbers that equal ones share; a blank slice has its own."""
    like, keys = Likeness(images), unequal(images)[1]
    return like, np.where(like.norms < 1e-3, len(keys) + np.arange(len(keys)), keys)


def _folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Parts:
    """Return (train, test) of subject-wise folds; none where there are too few people for them."""
    folds = min(folds, len(np.unique(groups)), int(np.bincount(labels).max()))
    if folds < 3:
        return []
    with warnings.catch_warnings():
        # Rare classes are named once, by the split that the caller makes.
        warnings.simplefilter("ignore", UserWarning)
        return folds_of_people(labels, groups, folds, seed)


def _across(
    train: np.ndarray, test: np.ndarray, apart: Parts, groups: np.ndarray | None, n: int
) -> dict[str, View]:
    """Return what is asked of pairs of slices on two sides, so that they are compared once."""
    everything = np.arange(n)
    views = {PUBLISHED: View(test, train, everything)}
    if apart and groups is not None:
        fold = np.empty(n, np.int64)
        for number, (_, rows) in enumerate(apart):
            fold[rows] = number
        views[APART] = View(everything, everything, fold)
        views["strangers"] = View(test, train, groups)
    for name in {PUBLISHED, APART} & views.keys():
        views[f"{name}: pixels"] = views[name]._replace(distance=True)
    return views


def _within(keys: np.ndarray, similar: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    known = similar[np.isfinite(similar)]
    return {
        "slices": float(len(keys)),
        "pixel-identical to an earlier one": float(len(keys) - len(np.unique(keys))),
        DISPUTED: float(wrong.sum()),
        f"with a near duplicate (r ≥ {DUPLICATE})": float((similar >= DUPLICATE).mean()),
        "highest correlation": float(known.max()) if len(known) else np.nan,
    }


def checklist(scans: Scans, split: Split, groups: np.ndarray | None) -> pd.DataFrame:
    """Answer the questions of a leakage checklist for one split, from what can be measured.

    The kinds of leakage are those of Kapoor & Narayanan 2023 (doi:10.1016/j.patter.2023.100804),
    which the reporting standard REFORMS (doi:10.1126/sciadv.adk3452) asks about.

    Of a split and the subject of each slice (n,), or None where that is not known. Returns one row
    a kind: the question, what was found, and whether it passes ('yes', 'NO', or 'undecided' where
    `audit` would not give a clean bill either).

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
    parts = [row_numbers(f"split.{side}", getattr(split, side), n) for side in PARTS]
    require(all(map(len, parts)), "Every part must have slices.", sizes=[*map(len, parts)])
    rest, test = np.concatenate(parts[:2]), parts[2]
    apart = [] if groups is None else _folds(scans.labels, groups, 5, 0)
    like, keys = _prepared(scans.images)
    everything = np.arange(n)
    views = _across(rest, test, apart, groups, n)
    views = {name: views[name] for name in views if name not in (APART, "strangers")}
    found = nearest(like, views | {"all": View(everything, everything, everything)})
    copies = int(np.isin(keys[test], keys[rest]).sum())
    near = int((found[PUBLISHED][1] >= DUPLICATE).sum())
    turned = int(turned_copies(like, test, rest, DUPLICATE).sum())
    told = f"{copies} identical, {near} with r ≥ {DUPLICATE}"
    told += f", {turned} mirrored, turned or inverted" if turned else ""
    wrong = int(disputed(keys, scans.labels, found).sum())
    told += f"; {wrong} stand there with another label too" if wrong else ""
    size = "/".join(str(len(part)) for part in parts) + " slices"
    people = few = "people unknown"
    kept_apart = enough = None
    if groups is None:
        size += ", people unknown"
    else:
        count = "/".join(str(len(np.unique(groups[part]))) for part in parts)
        size += f" of {count} people"
        doubts = _contradiction(scans, groups, rest, test)
        doubts += disagreement(scans.labels, groups, found, test) if apart else ()
        tested, first = np.unique(groups[test], return_index=True)
        shared = len(np.intersect1d(groups[rest], tested))
        people = f"{shared} of {len(tested)} people on both sides"
        people = people if shared else "; but ".join([people, *doubts])
        kept_apart = False if shared else None if doubts else True
        classes = np.bincount(scans.labels[test][first], minlength=len(scans.class_names))
        rare = [f"{n} {of}" for of, n in zip(scans.class_names, classes, strict=True) if n < 5]
        few, enough = f"in test fewer than 5 people: {', '.join(rare) or 'none'}", not rare
    rows = [
        ("L1.1 a test part of its own", size, len({*rest, *test}) == len(rest) + len(test)),
        ("L1.4 no duplicates across", told, not (near or copies or turned)),
        ("L3.2 independent of training", people, kept_apart),
        ("L3.3 enough of every class", few, enough),
    ]
    passes = {True: "yes", False: "NO", None: "undecided"}
    told_rows = [(what, of, passes[passed]) for what, of, passed in rows]
    return pd.DataFrame(told_rows, columns=["leakage", "found", "passes"])
