"""Every model file of a folder, measured on slices that it has not seen, ranked and told apart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from mri._arguments import integers
from mri._text import for_code, for_line, for_markdown, progress
from mri.data.labels import places_of
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.evaluation.claims import NO_SLICES, OTHER_SLICES, VERIFIED, Claims
from mri.evaluation.leaderboard import COSTS, INFLATED, PROTOCOLS, SEED, Comparison
from mri.evaluation.logits import LogitsTable, find_logits, keep_logits
from mri.evaluation.metrics import Evaluation, evaluate
from mri.evaluation.significance import ADDITIVE, pairwise
from mri.models.child import CHILD
from mri.models.files import ModelFile, ModelFileError
from mri.models.formats import may_be_model
from mri.models.inputs import READ_AS

RANKED_BY = "balanced_accuracy_3"
"""Of three classes: the few people with moderate dementia are in one protocol's test part only."""

_OWN_FOLDERS = "zoo", "crossval"
_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss", "ece")


def compare(
    scans: Scans | None = None,
    groups: np.ndarray | None = None,
    folder: str | os.PathLike[str] = "models",
    *,
    by: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Evaluate every model of `folder` and of its subfolder ``zoo`` and rank them.

    Classes are told by their names: the order of a card may be another than that of the slices.
    A model is only measured on the test rows of its card, and only if the card names these very
    slices: whatever else it may have seen in training. A model without a card is listed with its
    figures on all slices and the warning that nobody knows what it was trained on. Where logits
    were kept from these rows and this file, they are taken (see `mri.evaluation.logits`); a card
    whose model file is absent is ranked by them alone.

    Parameters
    ----------
    scans : Scans, optional
        All slices, in the order in which the models were trained; without them, only what has kept
        logits can be ranked.
    groups : ndarray of int, shape (n,)
        Subject of each slice; needed with `scans`.
    folder : path
    by : str, optional
        Metric of the ranking, per slice of the test part; one of
        `mri.evaluation.significance.ADDITIVE`. By default the balanced accuracy of three classes,
        mild and moderate dementia pooled; of all classes where the data have others.
    seed : int
        Of the bootstrap over subjects and the tests.

    Returns
    -------
    Comparison

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        If the metric cannot be tested, or is of the part by which the models were chosen, or the
        groups are not of these slices.

    Examples
    --------
    >>> found = compare(folder="models/zoo")  # By the logits that were kept: no slices are needed.
    >>> "tissue-subject" in found.table["model"].tolist()
    True
    """
    _check_call(scans, groups, by)
    files = {name: ModelFile(path) for name, path in _files(Path(folder)).items()}
    if not files:
        raise FileNotFoundError(
            f"{folder}: no .keras file; run main.ipynb or python -m mri train compact"
        )
    found, claims, anew, rows = _answers(files, scans, groups)
    names = _class_names(scans, found)
    by = by or (RANKED_BY if _alike(names, CLASS_NAMES) else "balanced_accuracy")
    kept = {}
    for name, of in found.items():
        if (same := of.named(names)) is not None:
            kept[name] = same
            continue
        told = f"classes {of.about['class_names']!s:.200}, those compared have {names!s:.200}"
        error = ModelFileError(f"{files[name].path}: {told}")
        rows.append(_refused(name, files[name].path, error))
    measured = joblib.Parallel(n_jobs=-1, prefer="threads")(
        joblib.delayed(_measure)(name, files[name], found, claims[name], by=by, seed=seed)
        for name, found in kept.items()
    )
    rows += [row for row, _ in measured]
    evaluations = {row["model"]: figures for row, figures in measured if figures is not None}
    table = _ordered(rows, by)
    boards = _boards(table, kept)
    boards.sort(key=lambda names: (all(claims[of] != VERIFIED for of in names), -len(names)))
    p_values = _test(table, evaluations, boards, by, seed)
    columns = [name for name in table if name not in ("other", "claimed")]
    return Comparison(
        table[columns].astype({"parameters": "Int64"}),
        evaluations,
        p_values,
        by,
        {name: kept[name].rows for name in evaluations},
        {name: file.path for name, file in files.items()},
        tuple(name for name in anew if name in evaluations),
        {name: claims[name] for name in evaluations},
    )


def _check_call(scans: Scans | None, groups: np.ndarray | None, by: str | None) -> None:
    if by is not None and by.startswith("val"):
        raise ValueError(
            f"{by!r} is what the models were selected by, so it ranks luck; take a metric of the "
            f"test part: {ADDITIVE}"
        )
    if by not in (None, *ADDITIVE):
        raise ValueError(f"by must be one of {ADDITIVE}. Received: {by!r}")
    if (scans is None) != (groups is None):
        raise ValueError("scans and groups belong together. Received only one of them")
    if scans is not None:
        integers("groups", groups, len(scans))


class _Slices:
    """The slices at hand as each card numbers their classes; each order is made once."""

    def __init__(self, scans: Scans | None, groups: np.ndarray | None) -> None:
        self._given, self._groups = scans, groups
        self._made: dict[tuple[str, ...], tuple[Scans | None, str | None, Claims]] = {}
        self.fingerprint = None if scans is None else scans.fingerprint()

    def of(self, file: ModelFile) -> tuple[Scans | None, str | None, Claims]:
        """Return slices, their fingerprint and what checks claims, in the order of a card."""
        scans = self._given
        names = tuple((file.card or {}).get("class_names", ())) if file.trained_here else ()
        if scans is not None:
            names = names if _alike(names, scans.class_names) else scans.class_names
        if names not in self._made:
            fingerprint = self.fingerprint
            if scans is not None and names != scans.class_names:
                scans = replace(scans, class_names=names, labels=scans.labels_as(names))
                fingerprint = scans.fingerprint()
            self._made[names] = scans, fingerprint, Claims(scans, self._groups)
        return self._made[names]


def _alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same class names, in whatever order and spelling."""
    return bool(names) and sorted(places_of(names, others) or []) == list(range(len(names)))


def _answers(
    files: Mapping[str, ModelFile], scans: Scans | None, groups: np.ndarray | None
) -> tuple[dict[str, LogitsTable], dict[str, str], list[str], list[dict[str, Any]]]:
    """Return logits and claim of each file, the files that were run, and rows of the others."""
    kept, said, anew, refused = {}, {}, [], []
    slices = _Slices(scans, groups)
    for name, file in progress(files.items(), "models", len(files)):
        try:
            own, fingerprint, claims = slices.of(file)
            found = find_logits(file, fingerprint)
            if new := found is None:
                found = keep_logits(file, own, groups, fingerprint, CHILD.run)
                anew.append(name)
            said[name] = claims.check(file, found, fingerprint, new)
            if groups is not None and found.about["data"] == fingerprint:
                people = np.asarray(groups)[found.rows]
                # The same slices, in whichever order a card has their classes.
                about = found.about | {"data": slices.fingerprint}
                found = replace(found, frame=found.frame.assign(subject=people), about=about)
            kept[name] = found
        except Exception as error:  # Whatever one file holds, the others are ranked.
            refused.append(_refused(name, file.path, error))
        finally:
            file.release()
    return kept, said, anew, refused


def _ordered(rows: list[dict[str, Any]], by: str) -> pd.DataFrame:
    """Return the table, best first: subject-wise, image-level, unknown, and what was refused."""
    columns = ["model", "protocol", by, "low", "high", *(key for key in _FIGURES if key != by)]
    table = pd.DataFrame(rows).reindex(
        columns=[*columns, *COSTS, "data", "note", "other", "claimed"]
    )
    order = table["protocol"].map({protocol: i for i, protocol in enumerate(PROTOCOLS)})
    table = table.assign(order=order.fillna(len(PROTOCOLS))).sort_values(
        ["order", "other", "claimed", by],
        ascending=[True, True, True, by == "log_loss"],
        ignore_index=True,
    )
    return table.drop(columns="order")


def _boards(table: pd.DataFrame, kept: Mapping[str, LogitsTable]) -> list[list[str]]:
    """Return groups of models that were measured on the same slices of the same people."""
    boards: dict[tuple[Any, ...], list[str]] = {}
    measured = table[table["protocol"].isin(PROTOCOLS)]
    for name, protocol in zip(measured["model"], measured["protocol"], strict=True):
        found = kept[name]
        people = np.unique(found.subjects, return_inverse=True)[1]
        same = (
            (found.about["data"], protocol, *found.about["class_names"]),
            *(of.tobytes() for of in (found.rows, found.labels, people)),
        )
        boards.setdefault(same, []).append(name)
    return list(boards.values())


def _test(
    table: pd.DataFrame,
    evaluations: Mapping[str, Evaluation],
    boards: list[list[str]],
    by: str,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Test all pairs of each protocol; a note in `table` names the models left out."""
    p_values = {}
    firsts = table[~table["model"].str.contains(SEED)]
    for protocol, of in firsts.groupby("protocol", sort=False):
        if protocol not in PROTOCOLS:
            continue
        # Of the largest board with something verified: one odd row makes no others odd.
        peers = next(names for names in boards if set(names) & set(of["model"]))
        best = next(name for name in of["model"] if name in peers)
        ranked = {name: evaluations[name] for name in of["model"] if name in peers}
        p_values[protocol] = pairwise(ranked, metric=by, seed=seed)
        alone = table["model"].isin(set(of["model"]) - set(peers)) & ~table["other"]
        notes = table.loc[alone, "note"] + f"; not tested: other slices than those of {best}"
        table.loc[alone, "note"] = notes.str.removeprefix("; ")
    return p_values


def _class_names(scans: Scans | None, kept: Mapping[str, LogitsTable]) -> tuple[str, ...]:
    """Return the classes that are compared, which no single file can change for the others.

    They are those of the slices; without slices the public ones, where any file has them, else
    those that most files have.
    """
    if scans is not None:
        return scans.class_names
    found = [tuple(of.about["class_names"]) for of in kept.values()]
    if any(_alike(names, CLASS_NAMES) for names in found):
        return CLASS_NAMES
    most = max(found, key=lambda names: sum(_alike(names, of) for of in found), default=CLASS_NAMES)
    return tuple(most)


def _files(folder: Path) -> dict[str, Path]:
    """Return name to model file, present or known by card and logits; `folder` goes first."""
    found = {}
    for place in (folder / "zoo", folder):
        for path in place.glob("[!.]*.json"):
            if path.with_suffix(".parquet").is_file():
                found[path.stem] = path.with_suffix(".keras")
        found |= {path.stem: path for path in place.glob("[!.]*.keras")}
        # Named with the reason, rather than passed over in silence.
        for path in place.glob("[!.]*"):
            own = path.suffix == ".keras" or (path.is_dir() and path.name in _OWN_FOLDERS)
            if not own and may_be_model(path):
                found[path.name] = path
    return dict(sorted(found.items()))


def _measure(
    name: str,
    file: ModelFile,
    found: LogitsTable,
    claim: str,
    *,
    by: str,
    seed: int,
) -> tuple[dict[str, Any], Evaluation | None]:
    """Return the row of a model and its evaluation, None where its card is of no use."""
    about = found.about
    try:
        card = file.card
        other = claim == OTHER_SLICES
        protocol, note = _protocol(file, found.about, claim)
        figures = evaluate(
            found.labels,
            found.logits,
            found.subjects,
            class_names=tuple(about["class_names"]),
            title=f"{name}: {len(found.rows)} {about['origin']}, {protocol} split",
            temperature=(card or {})["temperature"] if file.trained_here else 1.0,
            seed=seed,
        )
        per_slice = figures.metrics["slice"]
        row = {"model": name, "protocol": protocol, "other": other, "note": note}
        row["claimed"] = claim not in (VERIFIED, NO_SLICES)
        row |= {key: per_slice[key].value for key in (*_FIGURES, by)}
        row |= {"low": per_slice[by].low, "high": per_slice[by].high}
        row |= {"parameters": int(about["parameters"]), "size_mb": about["bytes"] / 1e6}
        row["ms_1"], row["ms_64"] = map(float, about["milliseconds"])
        row["seconds"] = float((card or {}).get("seconds", np.nan))
        if not np.isfinite(per_slice[by].value):
            raise ModelFileError(f"{file.path}: its test part lacks classes, so {by} has no value")
        return {**row, "data": about["origin"]}, figures
    except Exception as error:
        return _refused(name, file.path, error), None


def _refused(name: str, path: Path, error: Exception) -> dict[str, Any]:
    cause = f"{path}: cannot be measured ({type(error).__name__}: {error})"
    note = for_line(error if isinstance(error, ModelFileError) else cause, 600)
    return {"model": name, "other": False, "claimed": False, "protocol": "–", "note": note}


def _protocol(file: ModelFile, about: Mapping[str, Any], claim: str) -> tuple[str, str]:
    """Return (protocol, note)."""
    read = [of for of in (READ_AS[about.get("output", "logits")], *about.get("doubts", [])) if of]
    if not file.trained_here:
        card = "no card" if file.card is None else "its card says what it expects, no more"
        notes = [OTHER_SLICES] if claim == OTHER_SLICES else []
        notes += [
            *read,
            f"{card}: nobody knows what it was trained on; these may be training slices",
        ]
        return "unknown", "; ".join(notes)
    notes = [claim, *read]
    protocol = (file.card or {})["split"]["protocol"]
    if protocol not in ("subject", "image"):
        raise ValueError(f"unknown protocol {protocol!r} in its card")
    if protocol == "image":
        notes.append(INFLATED)
    return protocol, "; ".join(notes)


def reported_table(folder: str | os.PathLike[str] = "models/zoo") -> str:
    """Return the networks of a folder as a Markdown table, best on people never seen first.

    Image-level accuracy as reported and as found, in percent, with its interval; then accuracy and
    balanced accuracy, mild and moderate pooled, on people never seen, all per slice of the test
    part. Stars mark the leaders. What the original authors report is in ``reported.json``.

    Parameters
    ----------
    folder : path

    Returns
    -------
    str
    """
    reported = json.loads((Path(folder) / "reported.json").read_text(encoding="utf-8"))["reported"]
    found = compare(folder=folder)
    lines = [
        "| network | image-level, reported | image-level, here | people never seen "
        "| the same, balanced over three classes | weights |",
        "|---|---|---|---|---|---|",
    ]
    networks = found.networks()
    for name, row in found.leaderboard().iterrows():
        cells = [for_markdown(reported.get(name, ""))]
        of = (("image", "accuracy"), ("subject", "accuracy"), ("subject", found.by))
        for protocol, metric in of:
            if (model := networks[name].get(protocol)) is None:
                cells.append("")
                continue
            value, low, high = found.evaluations[model].metrics["slice"][metric]
            cells.append(f"{100 * value:.2f} [{100 * low:.1f}, {100 * high:.1f}]")
        star = " *" if row["leading"] else ""
        weights = f"{row['parameters']:,.0f}"
        lines.append(f"| {for_code(name, 80)}{star} | {' | '.join([*cells, weights])} |")
    return "\n".join(lines)
