"""Every model file of a folder, measured on slices that it has not seen, ranked and told apart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from mri._arguments import integers, require
from mri._text import for_code, for_line, for_markdown, progress
from mri.data.labels import places_of
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.evaluation.claims import NO_SLICES, OTHER_SLICES, VERIFIED, Claims
from mri.evaluation.doubts import known_logits
from mri.evaluation.leaderboard import COSTS, INFLATED, PROTOCOLS, Comparison, first_seeds
from mri.evaluation.logits import LogitsTable, find_logits, keep_logits
from mri.evaluation.metrics import Evaluation, evaluate
from mri.evaluation.significance import ADDITIVE, pairwise
from mri.models.child import CHILD
from mri.models.files import ModelFile, ModelFileError
from mri.models.formats import may_be_model
from mri.models.inputs import READ_AS
from mri.models.own import is_own

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
    by : str, optional
        Metric of the ranking, per slice of the test part; one of
        `mri.evaluation.significance.ADDITIVE`. By default the balanced accuracy of three classes,
        mild and moderate dementia pooled; of all classes where the data have others.
    seed : int
        Of the bootstrap over subjects and the tests.

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
    groups = _check_call(scans, groups, by)
    files = {name: ModelFile(path) for name, path in _files(Path(folder)).items()}
    if not files:
        raise FileNotFoundError(
            f"{folder}: no .keras file; run main.ipynb or python -m mri train compact"
        )
    found, claims, anew, rows = _answers(files, scans, groups)
    names = _class_names(scans, found)
    public = _alike(names, CLASS_NAMES)
    by = by or (RANKED_BY if public else "balanced_accuracy")
    expected = f"by may be {RANKED_BY!r} for the classes {CLASS_NAMES} alone."
    require(public or by != RANKED_BY, expected, class_names=names)
    kept = {}
    for name, of in found.items():
        if same := of.named(names):
            kept[name] = same
        else:
            told = f"classes {of.about['class_names']!s:.200}, those compared have {names!s:.200}"
            rows.append(_refused(files[name], ModelFileError(f"{files[name].path}: {told}"), name))
    measured = joblib.Parallel(n_jobs=-1, prefer="threads")(
        joblib.delayed(_measure)(name, files[name], of, claims[name], by=by, seed=seed)
        for name, of in kept.items()
    )
    evaluations = {row["model"]: figures for row, figures in measured if figures is not None}
    table = _ordered(rows + [row for row, _ in measured], by)
    p_values = _test(table, evaluations, kept, claims, by=by, seed=seed)
    return Comparison(
        table.drop(columns=["other", "claimed"]).astype({"parameters": "Int64"}),
        evaluations,
        p_values,
        by,
        {name: kept[name].rows for name in evaluations},
        {name: file.path for name, file in files.items()},
        tuple(name for name in anew if name in evaluations),
        {name: claims[name] for name in evaluations},
    )


def _check_call(
    scans: Scans | None, groups: np.ndarray | None, by: str | None
) -> np.ndarray | None:
    """Return the groups as an array; raise ValueError if the arguments do not fit."""
    if by is not None and by.startswith("val"):
        raise ValueError(
            f"{by!r} is what the models were selected by, so it ranks luck; take a metric of the "
            f"test part: {ADDITIVE}"
        )
    if by not in (None, *ADDITIVE):
        raise ValueError(f"by must be one of {ADDITIVE}. Received: {by!r}")
    expected = "scans must be what mri.read_scans returns; a folder is named: compare(folder=…)."
    require(isinstance(scans, Scans | None), expected, scans=type(scans).__name__)
    if (scans is None) != (groups is None):
        raise ValueError("scans and groups belong together. Received only one of them")
    return None if scans is None else integers("groups", groups, len(scans))


def _alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same class names, in whatever order and spelling."""
    return bool(names) and sorted(places_of(names, others) or []) == list(range(len(names)))


def _answers(
    files: Mapping[str, ModelFile], scans: Scans | None, groups: np.ndarray | None
) -> tuple[dict[str, LogitsTable], dict[str, str], list[str], list[dict[str, Any]]]:
    """Return logits and claim of each file, the files that were run, and rows of the others."""
    kept, said, anew, refused = {}, {}, [], []

    @cache
    def claims_of(names: tuple[str, ...]) -> Claims:
        """Return what checks cards that number the classes in this order."""
        if scans is None or not _alike(names, scans.class_names) or names == scans.class_names:
            return given
        turned = replace(scans, class_names=names, labels=scans.labels_as(names))
        return Claims(turned, groups)

    given = Claims(scans, groups)
    if scans is not None and any(of.path.is_file() and not is_own(of) for of in files.values()):
        CHILD.start()  # While this process does what it can do itself.
    # What may be a glass box comes first: it runs here. Its card is read where an error is told.
    queue = sorted(files.items(), key=lambda of: not of[1].path.with_suffix(".npz").is_file())
    for name, file in progress(queue, "models", len(queue)):
        try:
            order = (file.card or {}).get("class_names", ()) if file.trained_here else ()
            claims = claims_of(tuple(order))
            found = find_logits(file, claims.fingerprint)
            if new := found is None:
                found = keep_logits(file, claims.scans, groups, claims.fingerprint, CHILD.run)
                anew.append(name)
            said[name] = claims.check(file, found, new=new)
            if groups is not None and found.about["data"] == claims.fingerprint:
                people = np.asarray(groups)[found.rows]
                # The same slices, in whichever order a card has their classes.
                about = found.about | {"data": given.fingerprint}
                found = replace(found, frame=found.frame.assign(subject=people), about=about)
            kept[name] = found
        except Exception as error:  # Whatever one file holds, the others are ranked.
            refused.append(_refused(file, error, name))
        finally:
            file.release()
    return dict(sorted(kept.items())), said, sorted(anew), refused


def _ordered(rows: list[dict[str, Any]], by: str) -> pd.DataFrame:
    """Return the table, best first: subject-wise, image-level, unknown, and what was refused."""
    columns = ["model", "protocol", by, "low", "high", *(key for key in _FIGURES if key != by)]
    table = pd.DataFrame(rows).reindex(
        columns=[*columns, *COSTS, "data", "note", "other", "claimed"]
    )
    order = table["protocol"].map({of: i for i, of in enumerate((*PROTOCOLS, "–"))})
    return (
        table.assign(order=order)
        .sort_values(
            ["order", "other", "claimed", by],
            ascending=[True, True, True, by == "log_loss"],
            ignore_index=True,
        )
        .drop(columns="order")
    )


def _board(of: LogitsTable) -> tuple[object, ...]:
    """Return what models that were measured on the same slices of the same people share."""
    people = np.unique(of.subjects, return_inverse=True)[1]
    same = of.rows.tobytes(), of.labels.tobytes(), people.tobytes()
    return (of.about["data"], *of.about["class_names"], *same)


def _test(
    table: pd.DataFrame,
    evaluations: Mapping[str, Evaluation],
    kept: Mapping[str, LogitsTable],
    claims: Mapping[str, str],
    *,
    by: str,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Test all pairs of each protocol; a note in `table` names the models left out."""
    p_values = {}
    for protocol, names in first_seeds(table).groupby("protocol", sort=False)["model"]:
        boards: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            boards.setdefault(_board(kept[name]), []).append(name)
        # The largest with something verified: one odd row makes no others odd.
        peers = max(
            boards.values(), key=lambda of: (any(claims[n] == VERIFIED for n in of), len(of))
        )
        # Copies of a model are one: each more would cost all others certainty.
        first: dict[bytes, str] = {}
        same = {name: first.setdefault(kept[name].logits.tobytes(), name) for name in peers}
        ranked = {name: evaluations[name] for name in first.values()}
        tested = pairwise(ranked, metric=by, seed=seed).fillna(1.0)
        found = tested.loc[list(same.values()), list(same.values())]
        found.index = found.columns = pd.Index(peers)
        p_values[protocol] = found.mask(np.eye(len(peers), dtype=bool))
        for name, one in same.items():
            if name != one:
                note = table["note"][at := table["model"] == name] + f"; answers all as {one} does"
                table.loc[at, "note"] = note.str.removeprefix("; ")
        alone = table["model"].isin(set(names) - set(peers)) & ~table["other"].astype(bool)
        notes = table.loc[alone, "note"] + f"; not tested: other slices than those of {peers[0]}"
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
    if not found or any(_alike(names, CLASS_NAMES) for names in found):
        return CLASS_NAMES
    return max(found, key=lambda names: sum(_alike(names, of) for of in found))


def _files(folder: Path) -> dict[str, Path]:
    """Return name to model file, present or known by card and logits; `folder` goes first."""
    found, others = {}, {}
    for path in (*(folder / "zoo").glob("[!.]*"), *folder.glob("[!.]*")):
        if path.suffix == ".json" and path.with_suffix(".parquet").is_file():
            found[path.stem] = path.with_suffix(".keras")
        elif path.suffix == ".keras":
            found[path.stem] = path
        # Named with the reason, rather than passed over in silence.
        elif may_be_model(path) and not (path.is_dir() and path.name in _OWN_FOLDERS):
            others[path.name] = path
    # A folder may be called as a model is without its ending.
    named = {name if name not in found else f"./{name}": path for name, path in others.items()}
    return dict(sorted({**found, **named}.items()))


def _measure(
    name: str, file: ModelFile, found: LogitsTable, claim: str, *, by: str, seed: int
) -> tuple[dict[str, Any], Evaluation | None]:
    """Return the row of a model and its evaluation, None where its card is of no use."""
    about, card = found.about, (file.card or {}) if file.trained_here else {}
    try:
        protocol, note = _protocol(file, about, claim)
        with known_logits():
            figures = evaluate(
                found.labels,
                found.logits,
                found.subjects,
                class_names=tuple(about["class_names"]),
                title=f"{name}: {len(found.rows)} {about['origin']}, {protocol} split",
                temperature=card["temperature"] if card else 1.0,
                seed=seed,
            )
        per_slice = figures.metrics["slice"]
        if not np.isfinite(per_slice[by].value):
            raise ModelFileError(f"{file.path}: its test part lacks classes, so {by} has no value")
        milliseconds = map(float, about["milliseconds"])
        row = {
            **{key: per_slice[key].value for key in (*_FIGURES, by)},
            "low": per_slice[by].low,
            "high": per_slice[by].high,
            "parameters": int(about["parameters"]),
            "size_mb": about["bytes"] / 1e6,
            **dict(zip(("ms_1", "ms_64"), milliseconds, strict=True)),
            "seconds": float(card.get("seconds", np.nan)),
            "data": about["origin"],
        }
    except Exception as error:
        return _refused(file, error, name), None
    other, claimed = claim == OTHER_SLICES, claim not in (VERIFIED, NO_SLICES)
    told = {"model": name, "protocol": protocol, "note": note}
    return {**told, "other": other, "claimed": claimed, **row}, figures


def _refused(file: ModelFile, error: Exception, name: str) -> dict[str, Any]:
    cause = f"{file.path}: cannot be measured ({type(error).__name__}: {error})"
    note = for_line(error if isinstance(error, ModelFileError) else cause, 600)
    return {"model": name, "other": False, "claimed": False, "protocol": "–", "note": note}


def _protocol(file: ModelFile, about: Mapping[str, Any], claim: str) -> tuple[str, str]:
    read = [READ_AS[about.get("output", "logits")], *about.get("doubts", [])]
    if file.trained_here:
        protocol = (file.card or {})["split"]["protocol"]
        notes = [claim, *read, INFLATED * (protocol == "image")]
    else:
        protocol = "unknown"
        card = "no card" if file.card is None else "its card says what it expects, no more"
        unknown = "nobody knows what it was trained on; these may be training slices"
        if not (file.expects and file.expects.class_names):
            unknown += "; its classes are taken in the order of the data"
        notes = [OTHER_SLICES * (claim == OTHER_SLICES), *read, f"{card}: {unknown}"]
    return protocol, "; ".join(filter(None, notes))


def reported_table(folder: str | os.PathLike[str] = "models/zoo") -> str:
    """Return the networks of a folder as a Markdown table, best on people never seen first.

    Image-level accuracy as reported and as found, in percent, with its interval; then accuracy and
    balanced accuracy, mild and moderate pooled, on people never seen, all per slice of the test
    part. Stars mark the leaders. What the original authors report is in ``reported.json``.
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
            text = ""
            if model := networks[name].get(protocol):
                estimate = found.evaluations[model].metrics["slice"][metric]
                text = "{:.2f} [{:.1f}, {:.1f}]".format(*(100 * value for value in estimate))
            cells.append(text)
        star = " *" if row["leading"] else ""
        cells.append(f"{row['parameters']:,.0f}")
        lines.append(f"| {for_code(name, 80)}{star} | {' | '.join(cells)} |")
    return "\n".join(lines)
