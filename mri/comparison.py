"""Every model file of a folder, measured on slices that it has not seen, ranked and told apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mri.arguments import integers
from mri.cards import ModelFileError, read_card
from mri.data import Scans
from mri.evaluation import Evaluation, evaluate, metric_label
from mri.parquet import CLASS_NAMES
from mri.predictions import Predictions, find_logits, keep_logits
from mri.significance import ADDITIVE, leading_group, pairwise

RANKED_BY = "balanced_accuracy_3"
"""Of three classes: the few people with moderate dementia are in one protocol's test part only."""

_SEED = re.compile(r"-seed[1-9]\d*(?=-|$)")
_INFLATED = "subjects in training too: inflated"
_OTHER_FORMATS = (".h5", ".hdf5", ".pkl", ".pt", ".pth")
PROTOCOLS = ("subject", "image", "unknown")
_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc", "log_loss", "ece")
_COSTS = ("parameters", "size_mb", "ms_1", "ms_64", "seconds")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; shows as its leaderboard.

    Attributes
    ----------
    table : DataFrame
        One row a file, best first: subject-wise models before image-level ones, because the
        figures of the latter are inflated, and files that could not be evaluated last, with the
        reason in the column `note`.
    evaluations : dict of str to Evaluation
        By model name, for those that could be evaluated.
    p_values : dict of str to DataFrame
        By protocol: Holm-adjusted p-values of all pairs, see `mri.significance.pairwise`, of the
        models measured on the same slices as the best of that protocol; of a network trained with
        several seeds, the first.
    by : str
        The metric of the ranking and the tests.
    rows : dict of str to ndarray of int
        By model name, the rows of the scans that it was measured on.
    files : dict of str to Path
        By model name; a file may be absent where a card and kept logits were enough.
    evaluated : tuple of str
        The models that were run this time; the others' logits were kept from before.
    """

    table: pd.DataFrame
    evaluations: dict[str, Evaluation]
    p_values: dict[str, pd.DataFrame]
    by: str
    rows: dict[str, np.ndarray]
    files: dict[str, Path]
    evaluated: tuple[str, ...]

    def leading(self, protocol: str = "subject") -> list[str]:
        """Return the models of a protocol that cannot be told from its best, itself first."""
        p = self.p_values.get(protocol)
        return [] if p is None else leading_group(p, p.index[0])

    def leaderboard(self) -> pd.DataFrame:
        """Return a row a network, its figures under both protocols side by side.

        What a network costs is that of its subject-wise file, where there is one; repeats with
        other seeds are left to `seeds`.
        """
        rows, leading = {}, self.leading()
        table = self.table.set_index("model")
        for name, models in self.networks().items():
            row = table.loc[next(iter(models.values())), list(_COSTS)].to_dict()
            row["leading"] = any(model in leading for model in models.values())
            for protocol, model in models.items():
                estimate = self.evaluations[model].metrics["slice"][self.by]
                row[protocol] = estimate.value
                row[f"{protocol}_interval"] = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
            rows[name] = row
        columns = [f"{p}{end}" for p in PROTOCOLS for end in ("", "_interval")]
        columns = ["leading", *columns, *_COSTS]
        return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)

    def networks(self) -> dict[str, dict[str, str]]:
        """Return by network, best first, its model under each protocol.

        Its files are those named alike but for ``-subject`` and ``-image``; where two of one
        protocol would be called the same, each keeps its whole name. Without repeats by seed.
        """
        measured = self.table[self.table["protocol"].isin(PROTOCOLS)]
        measured = measured[~measured["model"].str.contains(_SEED)]
        pairs = list(zip(measured["model"], measured["protocol"], strict=True))
        short = [(model.removesuffix(f"-{protocol}"), protocol) for model, protocol in pairs]
        found: dict[str, dict[str, str]] = {}
        for (model, protocol), key in zip(pairs, short, strict=True):
            name = model if short.count(key) > 1 else key[0]
            found.setdefault(name, {})[protocol] = model
        return found

    def best(self, protocol: str = "subject", n: int = 1) -> list[str]:
        """Return the names of the first `n` models of a protocol, without repeats by seed."""
        names = self.table["model"][self.table["protocol"] == protocol]
        return names[~names.str.contains(_SEED)].head(n).tolist()

    def recalls(self, protocol: str = "subject") -> pd.DataFrame:
        """Return a row a model, a column a class: its recall per slice, with the class's support.

        Slices of one person are alike: see the note of each evaluation on classes of few people.
        """
        rows = {}
        for name in self.best(protocol, len(self.table)):
            found = self.evaluations[name]
            support = found.confusion().sum(1)
            rows[name] = {
                f"{of} (n = {n})": found.metrics["slice"][f"recall_{of}"].value
                for of, n in zip(found.class_names, support, strict=True)
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def disagreements(self, first: str, second: str) -> pd.DataFrame:
        """Return the test slices that two models of the same test part answer differently.

        Columns: position (in the test part), subject (by rank), label, and the class each names;
        those on which the two are surest of their answers first.
        """
        one, two = (self.evaluations[name].sample() for name in (first, second))
        if not np.array_equal(one.labels, two.labels):
            raise ValueError(f"{first!r} and {second!r} were measured on other slices")
        a, b = one.logits.argmax(1), two.logits.argmax(1)
        rows = np.arange(len(a))
        at_odds = (one.logits - two.logits)[rows, a] - (one.logits - two.logits)[rows, b]
        chosen = np.flatnonzero(a != b)
        chosen = chosen[np.argsort(-at_odds[chosen], kind="stable")]
        columns = {"position": chosen, "subject": one.units[chosen], "label": one.labels[chosen]}
        return pd.DataFrame(columns | {first: a[chosen], second: b[chosen]})

    def pareto(self, cost: str = "parameters", protocol: str = "subject") -> list[str]:
        """Return the models than which none is both better and cheaper, cheapest first.

        `cost` is a column of `table`: parameters, size_mb, ms_1, ms_64 or seconds.
        """
        of = self.table[self.table["model"].isin(self.best(protocol, len(self.table)))]
        of = of.dropna(subset=[cost])
        score = -of[self.by] if self.by == "log_loss" else of[self.by]
        of = of.assign(score=score).sort_values([cost, "score"], ascending=[True, False])
        ahead = of["score"].cummax().shift(fill_value=-np.inf)
        return of["model"][of["score"] > ahead].tolist()

    def conclusion(self) -> str:
        """Return what the figures allow to say, in one paragraph made from them."""
        metric, told = metric_label(self.by).lower(), []
        for protocol, who in (("subject", "On people never seen"), ("image", "Image-level")):
            if protocol not in self.p_values:
                continue
            names, leading = list(self.p_values[protocol]), self.leading(protocol)
            estimate = self.evaluations[names[0]].metrics["slice"][self.by]
            told.append(
                f"{who}, {names[0]} is first of {len(names)} with a {metric} of {estimate}."
            )
            alike, worse = len(leading) - 1, len(names) - len(leading)
            if not worse and alike:
                told.append("None of the others can be told from it.")
            elif worse:
                told.append(
                    f"{alike} of the others cannot be told from it, {worse} "
                    f"{'are' if worse > 1 else 'is'} worse (p < 0.05 after Holm's correction)."
                    if alike
                    else f"{'All others are' if worse > 1 else 'The other is'} worse "
                    "(p < 0.05 after Holm's correction)."
                )
        board = self.leaderboard()[["subject", "image"]].dropna()
        if len(board) > 2:
            gap = (board["image"] - board["subject"]).median()
            rank = board.corr("spearman").iloc[0, 1]
            told.append(
                f"Over {len(board)} networks, the image-level figure is {abs(gap):.2f} "
                f"{'higher' if gap > 0 else 'lower'} (median), and the two orders have a rank "
                f"correlation of {rank:.2f}."
            )
        if refused := int((self.table["protocol"] == "–").sum()):
            told.append(f"{refused} file{'s' * (refused > 1)} could not be measured.")
        return " ".join(told)

    def seeds(self) -> pd.DataFrame:
        """Return mean and standard deviation over seeds of recipes that were trained several times.

        Columns: network, protocol, seeds, mean and sd of the metric of the ranking. Files of one
        network are those named alike but for ``-seed<number>``.
        """
        network = self.table["model"].str.replace(_SEED, "", regex=True)
        measured = self.table.assign(network=network)[self.table["protocol"].isin(PROTOCOLS)]
        of = measured.groupby(["network", "protocol"], sort=False)[self.by]
        found = of.agg(seeds="size", mean="mean", sd="std").reset_index()
        return found[found["seeds"] > 1].reset_index(drop=True)

    def _repr_html_(self) -> str:
        board = self.leaderboard().dropna(axis="columns", how="all")
        leading = board.pop("leading") if "leading" in board else pd.Series(dtype=bool)
        shade = ["background-color: #0072B244" if of else "" for of in leading]
        digits = {"subject": "{:.3f}", "image": "{:.3f}", "unknown": "{:.3f}", "ms_1": "{:.1f}"}
        digits |= {"parameters": "{:,.0f}", "size_mb": "{:.1f}", "ms_64": "{:.0f}"}
        digits["seconds"] = "{:.0f}"
        styled = board.style.format(digits, na_rep="–").apply(lambda _: shade, axis="index")
        said = ~self.table["note"].isin(["", _INFLATED])
        refused = self.table.loc[said, ["model", "note"]]
        notes = "" if refused.empty else refused.to_html(index=False)
        caption = f"{metric_label(self.by)} per slice; shaded: not told from the best of strangers"
        return styled.set_caption(caption).to_html() + notes

    def __repr__(self) -> str:
        return self.table.to_string(float_format="{:.3f}".format, na_rep="–")


def compare(
    scans: Scans | None = None,
    groups: np.ndarray | None = None,
    folder: str | os.PathLike[str] = "models",
    *,
    by: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Evaluate every model of `folder` and of its subfolder ``zoo`` and rank them.

    A model is only measured on the test rows of its card, and only if the card names these very
    slices: whatever else it may have seen in training. A model without a card is listed with its
    figures on all slices and the warning that nobody knows what it was trained on. Where logits
    were kept from these rows and this file, they are taken (see `mri.predictions`); a card whose
    model file is absent is ranked by them alone.

    Parameters
    ----------
    scans : Scans, optional
        All slices, in the order in which the models were trained; without them, only what has kept
        logits can be ranked.
    groups : ndarray of int, shape (n,)
        Subject of each slice; needed with `scans`.
    folder : path
    by : str, optional
        Metric of the ranking, per slice of the test part; one of `mri.significance.ADDITIVE`. By
        default the balanced accuracy of three classes, mild and moderate dementia pooled; of all
        classes where the data have others.
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
        groups = integers("groups", groups, len(scans))
    files = _files(Path(folder))
    if not files:
        raise FileNotFoundError(
            f"{folder}: no .keras file; run main.ipynb or python -m mri.training compact"
        )
    fingerprint = scans.fingerprint() if scans is not None else None
    rows, kept, evaluated = [], {}, []
    for name, path in tqdm(files.items(), desc="models", disable=None, leave=False):
        try:
            found = find_logits(path, fingerprint)
            if anew := found is None:
                found = keep_logits(path, scans, groups)
            elif groups is not None and found.about["data"] == fingerprint:
                found = found._replace(subjects=groups[found.rows])
        except Exception as error:  # Whatever one file holds, the others are ranked.
            rows.append(_refused(name, path, error))
            continue
        kept[name] = found
        evaluated += [name] if anew else []
    by = by or _ranked_by(kept)
    measured = joblib.Parallel(n_jobs=-1, prefer="threads")(
        joblib.delayed(_measure)(name, files[name], found, fingerprint, by, seed)
        for name, found in kept.items()
    )
    evaluations = {}
    boards: dict[tuple[str, str, bytes, bytes], list[str]] = {}
    for row, figures in measured:
        rows.append(row)
        if figures is not None:
            name, found = row["model"], kept[row["model"]]
            evaluations[name] = figures
            people = np.unique(found.subjects, return_inverse=True)[1]
            same = (found.about["data"], row["protocol"], found.rows.tobytes(), people.tobytes())
            boards.setdefault(same, []).append(name)
    evaluated = [name for name in evaluated if name in evaluations]
    columns = ["model", "protocol", by, "low", "high", *(key for key in _FIGURES if key != by)]
    columns += [*_COSTS, "data", "note"]
    table = pd.DataFrame(rows).reindex(columns=[*columns, "other"])
    place = {protocol: i for i, protocol in enumerate(PROTOCOLS)}
    order = table["protocol"].map(place).fillna(len(place))
    table = table.assign(order=order).sort_values(
        ["order", "other", by], ascending=[True, True, by == "log_loss"], ignore_index=True
    )
    p_values = {}
    firsts = table[~table["model"].str.contains(_SEED)]
    for protocol, of in firsts.groupby("protocol", sort=False):
        if protocol in place:
            best = of["model"].iloc[0]
            peers = next(names for names in boards.values() if best in names)
            ranked = {name: evaluations[name] for name in of["model"] if name in peers}
            p_values[protocol] = pairwise(ranked, metric=by, seed=seed)
            alone = table["model"].isin(set(of["model"]) - set(peers)) & ~table["other"]
            notes = table.loc[alone, "note"] + f"; not tested: other slices than those of {best}"
            table.loc[alone, "note"] = notes.str.removeprefix("; ")
    table = table[columns].astype({"parameters": "Int64"})
    tested = {name: kept[name].rows for name in evaluations}
    return Comparison(table, evaluations, p_values, by, tested, files, tuple(evaluated))


def _ranked_by(kept: Mapping[str, Predictions]) -> str:
    public = all(set(found.about["class_names"]) == set(CLASS_NAMES) for found in kept.values())
    return RANKED_BY if public else "balanced_accuracy"


def _files(folder: Path) -> dict[str, Path]:
    """Return name to model file, present or known by card and logits; `folder` goes first."""
    found = {}
    for place in (folder / "zoo", folder):
        for path in place.glob("[!.]*.json"):
            if path.with_suffix(".parquet").is_file():
                found[path.stem] = path.with_suffix(".keras")
        found |= {path.stem: path for path in place.glob("[!.]*.keras")}
        # Named with the reason, rather than passed over in silence.
        found |= {path.name: path for path in place.glob("[!.]*") if path.suffix in _OTHER_FORMATS}
    return dict(sorted(found.items()))


def _measure(
    name: str, path: Path, found: Predictions, fingerprint: str | None, by: str, seed: int
) -> tuple[dict[str, Any], Evaluation | None]:
    """Return the row of a model and its evaluation, None where its card is of no use."""
    about = found.about
    try:
        card = read_card(path)
        other = fingerprint not in (None, about["data"])
        protocol, note = _protocol(card, other)
        figures = evaluate(
            found.labels,
            found.logits,
            found.subjects,
            class_names=tuple(about["class_names"]),
            title=f"{name}: {len(found.rows)} {about['origin']}, {protocol} split",
            temperature=card["temperature"] if card is not None else 1.0,
            seed=seed,
        )
        per_slice = figures.metrics["slice"]
        row = {"model": name, "protocol": protocol, "other": other, "note": note}
        row |= {key: per_slice[key].value for key in (*_FIGURES, by)}
        row |= {"low": per_slice[by].low, "high": per_slice[by].high}
        row |= {"parameters": int(about["parameters"]), "size_mb": about["bytes"] / 1e6}
        row["ms_1"], row["ms_64"] = map(float, about["milliseconds"])
        row["seconds"] = float((card or {}).get("seconds", np.nan))
        return {**row, "data": about["origin"]}, figures
    except Exception as error:
        return _refused(name, path, error), None


def _refused(name: str, path: Path, error: Exception) -> dict[str, Any]:
    cause = f"{path}: cannot be measured ({type(error).__name__}: {error})"
    note = str(error) if isinstance(error, ModelFileError) else cause
    return {"model": name, "other": False, "protocol": "–", "note": note}


def _protocol(card: dict[str, Any] | None, other: bool) -> tuple[str, str]:
    """Return (protocol, note)."""
    notes = ["logits kept from other slices than these"] if other else []
    if card is None:
        notes.append("no card: nobody knows what it was trained on; these may be training slices")
        return "unknown", "; ".join(notes)
    protocol = card["split"]["protocol"]
    if protocol not in ("subject", "image"):
        raise ValueError(f"unknown protocol {protocol!r} in its card")
    if protocol == "image":
        notes.append(_INFLATED)
    return protocol, "; ".join(notes)
