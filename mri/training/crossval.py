"""Answers about all people, each from a model that was fitted without them, and their figures.

Networks answer slice by slice, other models once a person. Both are kept in one form.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from sklearn.metrics import recall_score

from mri._arguments import require
from mri.data.decode import DataError
from mri.data.scans import Scans
from mri.evaluation.doubts import known_logits
from mri.evaluation.leaderboard import COSTS, Comparison
from mri.evaluation.logits import LogitsTable, logits_frame
from mri.evaluation.metrics import Evaluation, Sample, evaluate, metric_label
from mri.evaluation.significance import pairwise
from mri.subjects.splits import Split, subject_split

SHUFFLED = ", diagnoses shuffled"
"""What the name of a control ends in."""

TABLE = "accuracy", "balanced_accuracy", "balanced_accuracy_3", "demented_auc"
"""Figures of a table, in its order."""


_T = TypeVar("_T")


def _most_people(rows: Mapping[_T, pd.DataFrame]) -> list[_T]:
    """Return the keys of the tables of `people` with the most people, who are the same in each."""
    people = {key: frozenset(of["subject"]) for key, of in rows.items()}
    most = max(people.values(), key=len, default=frozenset())
    return [key for key, of in people.items() if of == most]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Logits of every slice, or person, from models that have never seen the person.

    Attributes
    ----------
    frame : DataFrame
        One row per slice, part and model: model, division, fold, seed, part ('test' or
        'validation'), row (in the scans), subject, label, and one column `logit_<class>` per class.
        A model of whole people has one row a person, that of their first slice. The logits of
        networks are divided by the temperature fitted on their own validation part.
    class_names : tuple of str
        In label order.
    origin : str
        What kind of slices these are, for titles.
    """

    frame: pd.DataFrame = field(repr=False)
    class_names: tuple[str, ...]
    origin: str

    @property
    def models(self) -> list[str]:
        """Names of the models, in the requested order."""
        return list(self.frame["model"].unique())

    @property
    def _logits(self) -> list[str]:
        return [f"logit_{name}" for name in self.class_names]

    @property
    def _first(self) -> int:
        return int(self.frame["division"].min())

    def _wanted(self, models: Sequence[str] | str | None) -> list[str]:
        return self.models if models is None else np.atleast_1d(models).tolist()

    def pooled(
        self,
        models: Sequence[str] | str | None = None,
        part: str = "test",
        *,
        division: int | None = None,
    ) -> pd.DataFrame:
        """Return one row per slice, with the mean of its logits over the given models and seeds.

        Also averaged are the logits of a slice in the validation part of several folds. Divisions
        are never averaged, since that would be an ensemble; by default the first one is taken.
        """
        wanted, frame = self._wanted(models), self.frame
        division = self._first if division is None else division
        chosen = frame["model"].isin(wanted) & (frame["part"] == part)
        chosen = frame[chosen & (frame["division"] == division)]
        lacking = sorted(set(wanted) - set(chosen["model"]))
        if lacking or chosen.empty:
            parts, divisions = (sorted(frame[of].unique().tolist()) for of in ("part", "division"))
            raise ValueError(
                f"There are no {part} logits of {lacking or wanted} in division {division}. "
                f"Models: {self.models}, parts: {parts}, divisions: {divisions}"
            )
        answered = chosen.groupby("row")["model"].nunique()
        expected = "Models can be averaged only on slices that all of them have judged."
        others = int((answered < len(set(wanted))).sum())
        require(others == 0, expected, models=wanted, others=others)
        found = chosen.groupby(["row", "subject", "label"], as_index=False)[self._logits].mean()
        expected = "Only models with the same labels and subjects can be averaged."
        require(not found["row"].duplicated().any(), expected, models=wanted)
        return found

    def evaluate(
        self,
        models: Sequence[str] | str | None = None,
        *,
        part: str = "test",
        division: int | None = None,
        seed: int = 0,
    ) -> Evaluation:
        """Evaluate the mean logits of the given models (by default all) over all seeds.

        Several models, or several seeds of one, form an ensemble. Choose recipes by the `part`
        'validation', report 'test'. `seed` is of the bootstrap over subjects. If a model judges
        whole people, there are no figures per slice.

        Raises
        ------
        ValueError
            If there are no such logits, or the models have different labels or subjects.
        """
        frame = self.pooled(models, part, division=division)
        names = " + ".join(self._wanted(models))
        title = f"{names}, {part} parts of all folds, {len(frame)} {self.origin}"
        return self.measured(frame, title, seed)

    def measured(self, frame: pd.DataFrame, title: str, seed: int = 0) -> Evaluation:
        """Measure rows of `pooled`; without figures per slice where each person has one row."""
        labels, logits, people = (frame[of].to_numpy() for of in ("label", self._logits, "subject"))
        told: dict[str, Any] = {"class_names": self.class_names, "title": title, "seed": seed}
        with known_logits():
            found = evaluate(labels, logits, people, **told)
        if frame["subject"].duplicated().any():
            return found
        sample, metrics = found.samples["subject"], found.metrics["subject"]
        return replace(found, samples={"subject": sample}, metrics={"subject": metrics})

    def table(self, *, unit: str = "subject", part: str = "test") -> pd.DataFrame:
        """Return one row per model and one column of text per figure with its interval.

        The logits of several seeds are averaged, so such a row describes an ensemble. A model
        without the `part` ('test' or 'validation') is left out; one of whole people has no figures
        of `unit` 'slice'.
        """
        rows = {}
        for model in self.frame[self.frame["part"] == part]["model"].unique():
            found = self.evaluate(model, part=part).metrics.get(unit, {})
            rows[model] = {metric_label(key): str(found[key]) for key in TABLE if key in found}
        return pd.DataFrame(rows).T

    def per_fold(self, metric: str = "demented_auc", *, unit: str = "subject") -> pd.DataFrame:
        """Return one row per model and one column per fold: the figure on its people."""
        rows: dict[str, dict[str, float]] = {}
        first = self.frame[self.frame["division"] == self._first]
        for (model, fold), of in first.groupby(["model", "fold"], sort=False):
            found = replace(self, frame=of).evaluate(model).metrics.get(unit, {})
            if metric in found:
                rows.setdefault(model, {})[f"fold {fold}"] = found[metric].value
        return pd.DataFrame.from_dict(rows, orient="index")

    @cached_property
    def _by_person(self) -> dict[tuple[str, int], pd.DataFrame]:
        """The mean test logits of each person, of the first seed, by model and division."""
        tested = self.frame[self.frame["part"] == "test"]
        tested = tested[tested["seed"] == tested.groupby("model")["seed"].transform("min")]
        by = tested.groupby(["model", "division", "subject", "label"], as_index=False)
        means = by[self._logits].mean().groupby(["model", "division"])
        return {key: of.drop(columns=["model", "division"]) for key, of in means}

    def people(self, model: str, division: int | None = None) -> pd.DataFrame:
        """Return a row a person, in order: subject, label and the mean logits of the first seed."""
        key = model, self._first if division is None else division
        expected = f"There must be test logits of the model in this division: {self.models}."
        require(key in self._by_person, expected, model=model, division=key[1])
        return self._by_person[key]

    def sample(self, model: str, division: int | None = None) -> Sample:
        """Return the same as labels and logits, in the order of the subjects."""
        of = self.people(model, division)
        return Sample(of["label"].to_numpy(), of[self._logits].to_numpy(float), np.arange(len(of)))

    def divisions(self, model: str) -> list[int]:
        """Return the divisions in which a model has judged as many people as in its best one."""
        rows = {of: rows for (name, of), rows in self._by_person.items() if name == model}
        return _most_people(rows)

    def ranked(self) -> list[str]:
        """Return the models that have judged everybody in the first division, without controls."""
        known = [m for m in self.models if (m, self._first) in self._by_person]
        return _most_people({m: self.people(m) for m in known if not m.endswith(SHUFFLED)})

    def ranking(self, by: str = "balanced_accuracy_3", *, seed: int = 0) -> Comparison:
        """Rank all models by all people, and tell which are as good as the best.

        Each person's logits are the mean over their slices, of the first seed and division. The
        tests are paired, over people, with Holm's correction over all pairs
        (`mri.evaluation.significance.pairwise`, of which `by` is an `ADDITIVE` metric). Controls
        are left out. A model that has not judged everybody is not ranked; its note says so.

        Raises
        ------
        ValueError
            If no model has judged everybody, or `by` cannot be tested.
        """
        ranked = self.ranked()
        require(len(ranked) > 0, "Some model must have judged all people.", models=self.models)
        title = f"all people, {self.origin}"
        found = {n: self.measured(self.people(n), f"{n}, {title}", seed) for n in ranked}
        rows: list[dict[str, Any]] = []
        for name, of in found.items():
            figures = of.metrics["subject"]
            row = {key: figures[key].value for key in (*TABLE, "log_loss") if key in figures}
            require(by in row, f"by must be one of {list(row)}.", by=by)
            row |= {"low": figures[by].low, "high": figures[by].high}
            rows.append(row | {"model": name, "protocol": "subject", "note": ""})
        rows.sort(key=lambda row: row[by], reverse=by != "log_loss")
        ordered = {row["model"]: found[row["model"]] for row in rows}
        p_values = pairwise(ordered, metric=by, unit="subject", seed=seed)
        few = {"protocol": "–", "note": "has not judged everybody"}
        others = [n for n in self.models if n not in found and not n.endswith(SHUFFLED)]
        rows += [{"model": name, **few} for name in others]
        columns = ["model", "protocol", by, "low", "high", *(key for key in TABLE if key != by)]
        table = pd.DataFrame(rows).reindex(columns=[*columns, *COSTS, "note"])
        return Comparison(table, ordered, {"subject": p_values}, by, {}, {}, (), unit="subject")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the logits as parquet; all figures follow from them without training."""
        about = {"class_names": list(self.class_names), "origin": self.origin}
        LogitsTable(self.frame, about).save(Path(path))


def read_crossval(*paths: str | os.PathLike[str]) -> CrossValidation:
    """Read files of the same people that `CrossValidation.save` has written, as one.

    Raises
    ------
    DataError
        If one is another kind of file, is of other people or classes than the first, or repeats
        answers of another.

    Examples
    --------
    >>> found = read_crossval("models/crossval.parquet", "models/people.parquet")
    >>> {"tissue", "gray share"} <= set(found.models)
    True
    """
    require(len(paths) > 0, "There must be a file to read.", paths=paths)
    tables = {path: _read(path) for path in paths}
    first = tables[paths[0]]
    people = diagnoses(first.frame)
    for path, table in tables.items():
        for name in ("class_names", "origin"):
            if table.about[name] != first.about[name]:
                own, its = table.about[name], first.about[name]
                raise DataError(f"{path}: its {name} are {own}, those of {paths[0]} are {its}")
        # A network that has not been trained on all folds lacks some people.
        known, other = people.align(diagnoses(table.frame), join="inner")
        if known.empty or not known.equals(other):
            raise DataError(f"{path}: other people, or other diagnoses, than in {paths[0]}")
    frame = pd.concat([table.frame for table in tables.values()], ignore_index=True)
    twice = frame.duplicated(["model", "division", "fold", "seed", "part", "row"])
    if twice.any():
        models = frame.loc[twice, "model"].unique().tolist()
        raise DataError(f"{', '.join(map(str, paths))}: {models} stand in two of these files")
    return CrossValidation(frame, tuple(first.about["class_names"]), first.about["origin"])


def _read(path: str | os.PathLike[str]) -> LogitsTable:
    table = LogitsTable.read(path)
    lacking = {"model", "division", "fold", "seed", "part"} - set(table.frame)
    lacking |= {"origin"} - set(table.about)
    if lacking:
        raise DataError(f"{path}: no logits of a cross-validation; it lacks {sorted(lacking)}")
    return table


def diagnoses(frame: pd.DataFrame) -> pd.Series:
    """Return the diagnosis of each person, by number; controls have others."""
    real = frame[~frame["model"].str.endswith(SHUFFLED) & (frame["part"] == "test")]
    return real.drop_duplicates("subject").set_index("subject")["label"].sort_index().astype(int)


def folds_of(
    labels: np.ndarray, groups: np.ndarray, *, folds: int = 5, division: int = 0
) -> list[Split]:
    """Return the subject-wise split of each fold, without the warning that a class is rare."""
    options = {"folds": folds, "seed": division}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fewer subjects than the")
        return [subject_split(labels, groups, fold=fold, **options) for fold in range(folds)]


def held_out(split: Split) -> np.ndarray:
    """Return the rows of a split that are not trained on: validation first, then test."""
    return np.concatenate([split.validation, split.test])


def answers(
    model: str,
    scans: Scans,
    groups: np.ndarray,
    split: Split,
    logits: np.ndarray,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the rows of `CrossValidation.frame` that a model adds in one fold.

    `groups` are the subjects (n,) of all slices, `logits` (m, k) those of the rows of `held_out`.
    """
    found = logits_frame(scans, groups, held_out(split), logits.astype(np.float32))
    part = np.repeat(["validation", "test"], [len(split.validation), len(split.test)])
    of = {"division": split.seed, "fold": split.fold, "seed": seed}
    return pd.DataFrame({"model": model, **of, "part": part}).join(found)


def right_shares(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the accuracy and the balanced accuracy, the mean recall of the classes that occur."""
    guesses = logits.argmax(1)
    recalls = recall_score(labels, guesses, labels=np.unique(labels), average="macro")
    accuracy = float((guesses == labels).mean())
    return {"accuracy": accuracy, "balanced_accuracy": float(recalls)}


def keep_real(path: Path, scans: Scans, card: Mapping[str, Any]) -> None:
    """Raise ValueError if a model of phantoms would overwrite one of real slices."""
    expected = "A model of real slices is not overwritten by one of phantoms; use another folder."
    require(not scans.synthetic or card.get("synthetic", True), expected, path=str(path))
