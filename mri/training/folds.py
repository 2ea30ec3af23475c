"""Train models × folds × seeds, each once even if the sweep is interrupted; keep their logits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from mri._arguments import integers, require
from mri._keras import keras, tf
from mri.data.decode import DataError
from mri.data.scans import Scans
from mri.evaluation.logits import LogitsTable, find_logits, keep_logits
from mri.models.builders import _BUILDERS, Builder, register
from mri.models.files import ModelFile
from mri.models.scores import predict_logits
from mri.subjects.probes import shuffle_diagnoses
from mri.subjects.splits import Split
from mri.training.crossval import (
    SHUFFLED,
    CrossValidation,
    answers,
    folds_of,
    held_out,
    read_crossval,
)
from mri.training.loop import Run, Trained, is_trained, train
from mri.training.recipe import Recipe, chosen_entries


def cross_validate(
    builders: Sequence[str] | str,
    scans: Scans,
    groups: np.ndarray,
    *,
    recipe: Recipe | None = None,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    division: int = 0,
    folder: str | os.PathLike[str] = "models/crossval",
    jobs: int | None = None,
) -> CrossValidation:
    """Train every builder on every subject-wise fold with every seed, and keep all logits.

    Each cell of the sweep trains with `mri.train` and leaves its network, its card and
    ``<cell>.parquet`` in `folder`. An interrupted sweep resumes when the call is repeated. On a
    cluster, put ``with joblib.parallel_config("dask"):`` (or ``"ray"``) around the call; all
    workers must see `folder` under the same path.

    Parameters
    ----------
    builders : str or sequence of str
        Names of registered builders, or of `mri.training.recipe.entries`.
    scans, groups
        The slices, and the subject of each, int (n,).
    recipe : Recipe, optional
        One recipe for all; by default each uses its own from `mri.training.RECIPES`.
    folds, division : int
        How many folds there are, and the seed that says who is in which.
    seeds : sequence of int
        Of weights, order and augmentation.
    folder : path
    jobs : int, optional
        How many networks train at a time, each on its share of the cores. By default one, or as
        many as the backend of ``joblib.parallel_config`` runs.

    Raises
    ------
    ValueError
        If a builder is unknown, builders or seeds are empty, the groups belong to other slices, or
        `folds` or `jobs` is too small.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import make_phantoms
    >>> from mri.training import Recipe
    >>> data, short = make_phantoms(16, 2, size=64), Recipe(epochs=1, batch_size=8)
    >>> options = {"recipe": short, "folds": 2}
    >>> with TemporaryDirectory() as folder:
    ...     found = cross_validate("tissue", data.scans, data.subjects, folder=folder, **options)
    >>> len(found.pooled())  # Every slice is in exactly one test part.
    32
    """
    builders = np.atleast_1d(builders).tolist()
    some = bool(builders) and np.ndim(seeds) == 1 and len(seeds) > 0
    given = {"builders": builders, "seeds": [*seeds] if np.ndim(seeds) else seeds}
    require(some, "builders and seeds must be lists, not empty.", **given)
    zoo = chosen_entries(builders)
    groups = integers("groups", groups, len(scans))
    require(folds >= 2, "folds must be at least 2.", folds=folds)
    require(jobs is None or jobs >= 1, "jobs must be None or at least 1.", jobs=jobs)
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    splits = folds_of(scans.labels, groups, folds=folds, division=division)
    cells = [
        (name, Run(zoo[name][0], scans, split, recipe or zoo[name][1], seed))
        for name in builders
        for seed in seeds
        for split in splits
    ]
    threads = max(1, (os.cpu_count() or 1) // (jobs or 1))
    frames = Parallel(n_jobs=jobs, return_as="list")(
        # The function itself is sent, because a worker knows only the builders of `mri.models`.
        delayed(_run_cell)(name, _BUILDERS[cell.builder], cell, groups, folder, threads=threads)
        for name, cell in tqdm(cells, desc="networks", disable=None)
    )
    return CrossValidation(pd.concat(frames, ignore_index=True), scans.class_names, scans.origin)


def _run_cell(
    entry: str, builder: Builder, cell: Run, groups: np.ndarray, folder: Path, *, threads: int
) -> pd.DataFrame:
    """Train one network unless it is trained, and return its logits on the held-out parts."""
    with suppress(RuntimeError):  # TensorFlow refuses once the process has computed.
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    register(builder)
    scans, split = cell.scans, cell.split
    settings = json.dumps([asdict(cell.recipe), scans.fingerprint(), split.folds], sort_keys=True)
    tag = hashlib.sha256(settings.encode()).hexdigest()[:8]
    name = f"{entry}-{tag}-fold{split.fold}-seed{cell.seed}"
    name += f"-division{split.seed}" * bool(split.seed)
    # The recipe is in the name, so another run of that name is of an older network.
    run = _train_quietly(cell, name, folder)
    path = folder / f"{name}.cell.parquet"
    people = hashlib.sha256(groups.astype(np.int64).tobytes()).hexdigest()
    key = f"{run.card['signature']} {people}"
    with suppress(DataError):  # If absent or damaged, it is computed again.
        table = LogitsTable.read(path)
        if table.about.get("key") == key:
            return table.frame
    logits = predict_logits(run.model, scans.images[held_out(split)]) / run.card["temperature"]
    frame = answers(entry, scans, groups, split, logits, seed=cell.seed)
    LogitsTable(frame, {"class_names": list(scans.class_names), "key": key}).save(path)
    keras.backend.clear_session()
    return frame


def _train_quietly(run: Run, name: str, folder: str | os.PathLike[str]) -> Trained:
    """Train a run under a name that is its own: what else is there may be replaced."""
    options: dict[str, Any] = {"recipe": run.recipe, "seed": run.seed, "folder": folder}
    return train(run.builder, run.scans, run.split, name=name, **options, verbose=0, replace=True)


def sweep(
    builders: Sequence[str],
    scans: Scans,
    groups: np.ndarray,
    output: str | os.PathLike[str] = "models/crossval.parquet",
    *,
    folds: int = 5,
    seeds: int = 1,
    divisions: int = 1,
) -> CrossValidation:
    """Cross-validate networks and their controls on all people; keep the logits in `output`.

    A control is the same network, trained on diagnoses shuffled among the subjects, anew for every
    division. The networks go into a folder named as `output` without its ending. See
    `cross_validate`; the people are divided with seeds 0, 1, ..., `divisions` times. What other
    networks answered stays in `output`; DataError, before any training, if that is of other people.
    """
    groups = integers("groups", groups, len(scans))
    require(divisions >= 1, "divisions must be at least 1.", divisions=divisions)
    named = Path(output).suffix == ".parquet"
    require(named, "output must end in .parquet.", output=str(output))
    before = [_kept_of(scans, groups, output)] if Path(output).is_file() else []
    options: dict[str, Any] = {"folds": folds, "folder": Path(output).with_suffix("")}
    found, controls = [], []
    for division in range(divisions):
        asked = {**options, "division": division}
        found += [cross_validate(builders, scans, groups, seeds=range(seeds), **asked)]
        dealt = shuffle_diagnoses(scans.labels, groups, seed=division)
        control = cross_validate(builders, replace(scans, labels=dealt), groups, **asked).frame
        controls += [control.assign(model=control["model"] + SHUFFLED)]
    new = [*(of.frame for of in found), *controls]
    names = {name for frame in new for name in frame["model"].unique()}
    kept = [frame[~frame["model"].isin(names)] for frame in before]
    result = replace(found[0], frame=pd.concat([*kept, *new], ignore_index=True))
    result.save(output)
    return result


def _kept_of(scans: Scans, groups: np.ndarray, output: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the logits kept in `output`, which must be of these people."""
    found = read_crossval(output)
    frame, names = found.frame, (found.class_names, found.origin)
    true = ~frame["model"].str.endswith(SHUFFLED)
    asked = (frame["row"], frame["subject"], frame["label"].where(true, -1))
    row, subject, label = (of.to_numpy() for of in asked)
    same = names == (scans.class_names, scans.origin) and row.max() < len(scans)
    if not same or (subject != groups[row]).any() or (true & (label != scans.labels[row])).any():
        raise DataError(f"{output}: holds logits of other people; name another file (--output)")
    return frame


def train_zoo(
    scans: Scans,
    splits: Mapping[str, Split],
    groups: np.ndarray,
    names: Sequence[str] = (),
    *,
    seeds: int = 1,
    folder: str | os.PathLike[str] = "models/zoo",
) -> Iterator[str]:
    """Train networks under both protocols and keep their logits; yield a line of text for each.

    Finished networks are not trained again. `splits` are by protocol, `groups` are the subjects
    (n,) of the slices, and `names` are some of `mri.training.recipe.entries`, by default all.
    Others raise ValueError.
    """
    zoo = chosen_entries(names)
    require(seeds >= 1, "seeds must be at least 1.", seeds=seeds)
    for name, seed, protocol in product(zoo, range(seeds), splits):
        builder, recipe = zoo[name]
        stem = f"{name}{f'-seed{seed}' if seed else ''}-{protocol}"
        path, split = Path(folder) / f"{stem}.keras", splits[protocol]
        # The repository has every card with its logits, but not every model file.
        known = is_trained(builder, scans, split, path, recipe=recipe, seed=seed)
        if known and find_logits(ModelFile(path)):
            yield f"{path}: trained before"
            continue
        run = _train_quietly(Run(builder, scans, split, recipe, seed), stem, folder)
        if find_logits(ModelFile(run.path)) is None:
            keep_logits(ModelFile(run.path), scans, groups)
        figures = ", ".join(f"{key} {value:.3f}" for key, value in run.card["validation"].items())
        yield f"{run.path}: validation {figures}, {run.card['seconds']} s"
