"""All people judged by models that are not networks: probes, single numbers and the glass box.

Each division deals the people into folds by another seed. Everything in a person's answer comes
from the people of the other folds, the template and the cut points too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import pairwise_distances_argmin
from tqdm.auto import tqdm

from mri._arguments import integers, require
from mri.data.decode import DataError
from mri.data.scans import Scans
from mri.evaluation.doubts import known_logits
from mri.evaluation.logits import LogitsTable
from mri.evaluation.metrics import fit_temperature
from mri.subjects.person import Tones, people_tones
from mri.subjects.probes import linear_probe, shuffle_diagnoses
from mri.training.crossval import SHUFFLED, CrossValidation, answers, folds_of, held_out
from mri.training.glass_box import GlassBox, fit_glass_box, maps_of
from mri.training.one_number import ONE_NUMBER
from mri.training.ordinal import Ordinal, fit_ordinal

PROBES = "nearest neighbour", "linear probe"
"""Classifiers that know nothing about anatomy; see `cross_validate_probes`."""

GLASS_BOXES = {"glass box, registered": True, "glass box": False}
"""Name to whether the slices are moved onto a template of the people trained on."""

MODELS = (*PROBES, *ONE_NUMBER, *GLASS_BOXES)
"""All that `judge_people` can judge."""

_VERSION = 2  # Raise it with a change of the method: older results are then computed anew.


@dataclass(frozen=True, eq=False)
class _People:
    """What does not depend on the fold."""

    scans: Scans
    groups: np.ndarray
    labels: np.ndarray
    tones: list[Tones] = field(repr=False)

    def tested(self, division: int, folds: int) -> Iterator[np.ndarray]:
        """Yield, a fold, the positions of the people it tests."""
        numbers = np.unique(self.groups)
        for split in folds_of(self.scans.labels, self.groups, folds=folds, division=division):
            yield np.flatnonzero(np.isin(numbers, self.groups[split.test]))


def judge_people(
    scans: Scans,
    groups: np.ndarray,
    output: str | os.PathLike[str] = "models/people.parquet",
    *,
    models: tuple[str, ...] = MODELS,
    divisions: int = 10,
    folds: int = 5,
) -> CrossValidation:
    """Give every person logits from models that were fitted without them, and keep these.

    There is a row per person, model and division; for probes the mean over a person's slices.
    As a control, the same models are fitted to diagnoses dealt out anew (`shuffle_diagnoses`,
    seeded by the division) on the same folds. An interrupted call can be repeated: what stands in
    `output` is not computed again.

    Parameters
    ----------
    scans, groups
        The slices, and the person of each, int (n,).
    output : path
        A file that `read_crossval` reads.
    models : tuple of str
        Some of `MODELS`.
    divisions, folds : int
        How often the people are divided, with seeds 0, 1, ..., and into how many folds.

    Raises
    ------
    ValueError
        If a model is unknown, a number too small, or the people cannot be prepared or divided.
    """
    unknown = sorted(set(models) - set(MODELS))
    require(not unknown and len(models) > 0, f"models must be some of {MODELS}.", models=models)
    require(divisions >= 1, "divisions must be at least 1.", divisions=divisions)
    groups = integers("groups", groups, len(scans))
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    people = np.ascontiguousarray(groups.astype(np.int64)).tobytes()
    key = f"{_VERSION} {scans.fingerprint()} {hashlib.sha256(people).hexdigest()} {folds}"
    about = {"class_names": list(scans.class_names), "origin": scans.origin, "key": key}
    jobs = [(model, division) for division in range(divisions) for model in models]
    known, done = None, _done(output, about)
    for model, division in tqdm(jobs, desc="models and divisions", disable=None):
        if {(model, division), (model + SHUFFLED, division)} <= done.keys():
            continue
        if model in PROBES:
            slices = cross_validate_probes(scans, groups, folds=folds, division=division)
            found = _per_person(slices, scans.class_names)
        else:
            known = known or _prepared(scans, groups)
            found = _judge(model, known, division, folds)
        done |= _by_model(found)
        LogitsTable(pd.concat(done.values(), ignore_index=True), about).save(output)
    wanted = [(model + end, of) for model, of in jobs for end in ("", SHUFFLED)]
    frame = pd.concat([done[job] for job in wanted], ignore_index=True)
    return CrossValidation(frame, scans.class_names, scans.origin)


def _by_model(frame: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    return dict(iter(frame.groupby(["model", "division"], sort=False)))


def _done(path: Path, about: Mapping[str, Any]) -> dict[tuple[str, int], pd.DataFrame]:
    """Return what was kept of the same people, by model and division."""
    try:
        table = LogitsTable.read(path)
    except DataError:  # Absent or damaged: computed again.
        return {}
    if table.about.get("key") == about["key"]:
        return _by_model(table.frame)
    kept, new = (str(of.get("origin", "")).startswith("synthetic") for of in (table.about, about))
    expected = "Answers about real slices are not overwritten by phantoms'; choose another output."
    require(kept or not new, expected, output=str(path))
    return {}


def _prepared(scans: Scans, groups: np.ndarray) -> _People:
    tones = people_tones(scans.images, groups)
    labels = scans.labels[np.unique(groups, return_index=True)[1]]
    return _People(scans, groups, labels, list(tones.values()))


def _judge(model: str, people: _People, division: int, folds: int) -> pd.DataFrame:
    """Fit one model, and its control, to each fold's other people; judge those of the fold."""
    n, names = len(people.labels), people.scans.class_names
    truth = {"": people.labels}
    truth[SHUFFLED] = shuffle_diagnoses(people.labels, np.arange(n), seed=division)
    found = {end: np.empty((n, len(names))) for end in truth}
    fold_of = np.empty(n, np.int64)
    fit: Callable[..., GlassBox | Ordinal] = partial(fit_glass_box, seed=division)
    if model in ONE_NUMBER:
        (number, sign), fit = ONE_NUMBER[model], fit_ordinal
        values = sign * np.array([number(tones.images) for tones in people.tones])
    for fold, test in enumerate(people.tested(division, folds)):
        train = np.setdiff1d(np.arange(n), test)
        fold_of[test] = fold
        if model in GLASS_BOXES:
            known = [people.tones[i] for i in train]
            values = maps_of(people.tones, known, registered=GLASS_BOXES[model])[1]
        for end, labels in truth.items():
            found[end][test] = fit(values[train], labels[train], names).logits(values[test])
    numbers, rows = np.unique(people.groups, return_index=True)
    about = {"division": division, "fold": fold_of, "seed": 0, "part": "test"}
    about |= {"row": rows, "subject": numbers}
    frames = []
    for end, labels in truth.items():
        logits = {f"logit_{name}": found[end][:, c] for c, name in enumerate(names)}
        frames.append(pd.DataFrame({"model": model + end} | about | {"label": labels} | logits))
    return pd.concat(frames, ignore_index=True)


def cross_validate_probes(
    scans: Scans, groups: np.ndarray, *, folds: int = 5, division: int = 0
) -> pd.DataFrame:
    """Cross-validate two classifiers that know nothing about anatomy, and their controls.

    They are the nearest neighbour in pixels and a linear probe on principal components; a network
    should be better than both. The temperature is fitted on the validation part, as for a network.
    The controls are fitted to diagnoses dealt out anew. See `CrossValidation.frame`.
    """
    pixels, classes = (
        scans.images.reshape(len(scans), -1).astype(np.float32),
        len(scans.class_names),
    )
    control = shuffle_diagnoses(scans.labels, groups, seed=division)
    truth = {"": scans, SHUFFLED: replace(scans, labels=control)}
    frames = []
    for split in folds_of(scans.labels, groups, folds=folds, division=division):
        rows, train, n = held_out(split), pixels[split.train], len(split.validation)
        nearest = split.train[pairwise_distances_argmin(pixels[rows], train)]
        for end, dealt in truth.items():
            labels = dealt.labels
            probe = linear_probe(train, labels[split.train])
            shares = np.zeros((len(rows), classes))
            shares[:, probe.classes_] = probe.predict_proba(pixels[rows])
            votes = np.eye(classes)[labels[nearest]]
            for name, logits in zip(PROBES, (votes, np.log(shares.clip(1e-9))), strict=True):
                with known_logits():
                    logits = logits / fit_temperature(labels[split.validation], logits[:n])
                frames.append(answers(name + end, dealt, groups, split, logits))
    return pd.concat(frames, ignore_index=True)


def _per_person(frame: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Return the test rows with the mean logits of each person, at their first row."""
    tested, logits = frame[frame["part"] == "test"], [f"logit_{name}" for name in names]
    keys = ["model", "division", "fold", "seed", "part", "subject", "label"]
    by = tested.groupby(keys, as_index=False, sort=False)
    return by.agg({"row": "min"} | dict.fromkeys(logits, "mean"))
