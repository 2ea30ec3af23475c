"""All people judged by models that never saw them, over several divisions.

Each division deals the people into five folds by another seed. A person's score is out of fold:
template, weights, cut points and steepness come from the people of the other four folds. Results
lie in small files, one a model and division, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from mri._arguments import integers, require
from mri._files import replacing
from mri.data.scans import Scans
from mri.data.tone_map import HEIGHTS, tone_map
from mri.subjects.person import Tones, people_tones, prepare_people
from mri.subjects.probes import shuffle_diagnoses
from mri.subjects.splits import subject_split
from mri.subjects.template import make_template
from mri.training.glass_box import PENALTY, fit_glass_box
from mri.training.one_number import ONE_NUMBER, fit_one_number

GLASS_BOXES = {"glass box, registered": True, "glass box": False}
"""Name to whether the slices are moved onto a template of the people trained on."""

MODELS = (*GLASS_BOXES, *ONE_NUMBER)
"""All that `judge_people` can judge."""

SHUFFLED = ", diagnoses shuffled"
"""What the name of a control ends in."""

_VERSION = 1  # A change of the method raises it, and older results are computed anew.
_KEY = b"mri.people"


class _Fitted(Protocol):
    def scores(self, values: np.ndarray) -> np.ndarray: ...
    def logits(self, values: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class _People:
    """What does not depend on the fold: the slices and what `person_tones` made of each person."""

    scans: Scans
    groups: np.ndarray
    labels: np.ndarray
    tones: list[Tones] = field(repr=False)

    def tested(self, division: int, folds: int) -> Iterator[np.ndarray]:
        """Yield, a fold, the positions of the people it tests."""
        numbers = np.unique(self.groups)
        for fold in range(folds):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "fewer subjects than the")
                split = subject_split(
                    self.scans.labels, self.groups, fold=fold, folds=folds, seed=division
                )
            yield np.flatnonzero(np.isin(numbers, self.groups[split.test]))


def judge_people(
    scans: Scans,
    groups: np.ndarray,
    *,
    models: tuple[str, ...] = MODELS,
    divisions: int = 10,
    folds: int = 5,
    folder: str | os.PathLike[str] = "runs/people",
) -> pd.DataFrame:
    """Give every person a score and logits from models that were fitted without them.

    The same models are fitted to diagnoses dealt out anew (`shuffle_diagnoses`, seeded by the
    division) on the same folds, as a control. The call can be repeated until it is done: what lies
    in `folder` is read.

    Parameters
    ----------
    scans : Scans
    groups : ndarray of int, shape (n,)
        Person of each slice.
    models : tuple of str
        Some of `MODELS`.
    divisions, folds : int
        How often the people are divided, with seeds 0, 1, ..., and into how many folds.
    folder : path

    Returns
    -------
    DataFrame
        A row a model, division and person: `model`, `division`, `fold`, `subject`, `label` (that
        of the control, in rows of one), `score` and `logit_<class>`.

    Raises
    ------
    ValueError
        If a model is unknown, a number too small, or the people cannot be prepared or divided.
    """
    unknown = sorted(set(models) - set(MODELS))
    require(not unknown and len(models) > 0, f"models must be some of {MODELS}.", models=models)
    require(divisions >= 1, "divisions must be at least 1.", divisions=divisions)
    groups = integers("groups", groups, len(scans))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    people = np.ascontiguousarray(groups.astype(np.int64)).tobytes()
    key = f"{_VERSION} {scans.fingerprint()} {hashlib.sha256(people).hexdigest()} {folds}"
    jobs = [(model, division) for division in range(divisions) for model in models]
    known, frames = None, []
    for model, division in tqdm(jobs, desc="models and divisions", disable=None):
        path = folder / f"{model.replace(', ', '-').replace(' ', '-')}-{division}.parquet"
        frame = _read(path, key.encode())
        if frame is None:
            known = known or _prepared(scans, groups)
            frame = _judge(model, known, division, folds)
            table = pa.Table.from_pandas(frame, preserve_index=False)
            with replacing(path) as temporary:
                pq.write_table(table.replace_schema_metadata({_KEY: key}), temporary)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _read(path: Path, key: bytes) -> pd.DataFrame | None:
    with suppress(OSError, pa.ArrowInvalid):  # Absent or damaged: computed again.
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(_KEY) == key:
            return table.to_pandas()
    return None


def _prepared(scans: Scans, groups: np.ndarray) -> _People:
    tones = people_tones(scans.images, groups)
    labels = scans.labels[np.unique(groups, return_index=True)[1]]
    return _People(scans, groups, labels, list(tones.values()))


def _judge(model: str, people: _People, division: int, folds: int) -> pd.DataFrame:
    """Fit one model to each fold's other people, twice, and judge the people of the fold."""
    n, names = len(people.labels), people.scans.class_names
    truth = {"": people.labels}
    truth[SHUFFLED] = shuffle_diagnoses(people.labels, np.arange(n), seed=division)
    found = {end: np.empty((n, 1 + len(names))) for end in truth}
    fold_of = np.empty(n, np.int64)
    values = None if model in GLASS_BOXES else _numbers(model, people)
    for fold, test in enumerate(people.tested(division, folds)):
        train = np.setdiff1d(np.arange(n), test)
        fold_of[test] = fold
        here = _maps(model, people, train) if values is None else values
        for end, labels in truth.items():
            fitted = _fit(model, here[train], labels[train], names, division)
            found[end][test, 0] = fitted.scores(here[test])
            found[end][test, 1:] = fitted.logits(here[test])
    frames = []
    for end, labels in truth.items():
        about = {"model": model + end, "division": division, "fold": fold_of}
        about |= {"subject": np.unique(people.groups), "label": labels, "score": found[end][:, 0]}
        logits = {f"logit_{name}": found[end][:, 1 + i] for i, name in enumerate(names)}
        frames.append(pd.DataFrame(about | logits))
    return pd.concat(frames, ignore_index=True)


def _numbers(model: str, people: _People) -> np.ndarray:
    number, sign = ONE_NUMBER[model]
    return sign * np.array([number(tones.images) for tones in people.tones])


def _maps(model: str, people: _People, train: np.ndarray) -> np.ndarray:
    """Return everybody's tone map, float32 (n, 8, r, c), by a template of people to train on."""
    whole = [people.tones[i].images for i in train if len(people.tones[i].images) == HEIGHTS]
    require(len(whole) > 0, f"Some person to train on must have {HEIGHTS} slices.", whole=0)
    template = make_template(whole, registered=GLASS_BOXES[model])
    return np.stack([tone_map(person.images) for person in prepare_people(people.tones, template)])


def _fit(
    model: str, values: np.ndarray, labels: np.ndarray, names: tuple[str, ...], seed: int
) -> _Fitted:
    if model in GLASS_BOXES:
        return fit_glass_box(values, labels, names, penalty=PENALTY, seed=seed)
    return fit_one_number(values, labels, names)
