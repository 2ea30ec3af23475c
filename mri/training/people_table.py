"""The table per person: mean and spread over divisions, and who is better than one number.

A figure is computed in each division from all people's out-of-fold answers and then averaged; its
standard deviation says how much depends on who fell into which fold. Whether one model is better
than another is asked of people, not of divisions: they are drawn, or their signs flipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax

from mri._arguments import require
from mri._files import replacing
from mri.data.scans import Scans
from mri.evaluation.significance import sign_flip
from mri.training.glass_box import SEVERITY, severity_of
from mri.training.people import MODELS, SHUFFLED, judge_people

FIGURES = {
    "auc": "AUC, demented or not",
    "auc_very_mild": "AUC, very mild or not demented",
    "auc_mild": "AUC, mild or not demented",
    "balanced_accuracy_3": "Balanced accuracy, three classes",
    "log_loss_3": "Log loss, three classes",
}
"""Readable names by key. Mild includes the two people of moderate dementia everywhere."""

RIVALS = "gray share", "all fluid"
"""The single numbers that all are compared with: of the highest AUC, and of the best classes."""


def wins(scores: np.ndarray, severity: np.ndarray, ill: tuple[int, ...] = (1, 2)) -> np.ndarray:
    """Return how often each ill person scores above each healthy one: the mean of all is the AUC.

    Parameters
    ----------
    scores : ndarray of float, shape (divisions, people)
    severity : ndarray of int, shape (people,)
        0 is healthy.
    ill : tuple of int
        Severities that count as ill; the others are left out.

    Returns
    -------
    ndarray of float64, shape (ill, healthy)
        Mean over divisions, a tie counting half.

    Examples
    --------
    >>> wins(np.array([[0.1, 0.5, 0.3]]), np.array([0, 0, 1])).tolist()
    [[1.0, 0.0]]
    """
    scores, severity = np.asarray(scores, float), np.asarray(severity)
    fits = scores.ndim == 2 and scores.shape[1:] == severity.shape
    require(fits, "scores must be (divisions, people).", shape=scores.shape)
    healthy, above = severity == 0, np.isin(severity, ill)
    require(bool(healthy.any() and above.any()), "Some must be ill, some healthy.", ill=ill)
    gap = scores[:, above, None] - scores[:, None, healthy]
    return ((gap > 0) + 0.5 * (gap == 0)).mean(0)


def auc_difference(
    first: np.ndarray,
    second: np.ndarray,
    severity: np.ndarray,
    *,
    draws: int = 5000,
    seed: int = 0,
) -> tuple[float, float, float, float]:
    """Return the first's mean AUC less the second's, its 95% interval and a two-sided p-value.

    People are drawn with replacement, demented and others apart, for both models alike (paired
    bootstrap); the interval is the 2.5 and 97.5 percentiles.

    Parameters
    ----------
    first, second : ndarray of float, shape (divisions, people)
        Scores of the same people; the numbers of divisions may differ.
    severity : ndarray of int, shape (people,)
    draws, seed : int

    Returns
    -------
    difference, low, high, p : float
    """
    require(draws >= 40, "draws must be at least 40.", draws=draws)
    matrix = wins(first, severity) - wins(second, severity)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in matrix.shape)
    drawn = ((rows @ matrix) * columns).sum(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    side = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(matrix.mean()), float(low), float(high), min(1.0, 2 * (side + 1) / (draws + 1))


def figures_by_division(frame: pd.DataFrame, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Return a row a model and division, a column a figure of `FIGURES`.

    Parameters
    ----------
    frame : DataFrame
        From `mri.training.people.judge_people`.
    class_names : tuple of str
        In label order.
    """
    rows = []
    for (model, division), of in frame.groupby(["model", "division"], sort=False):
        severity, scores = severity_of(of["label"].to_numpy(), class_names), of["score"].to_numpy()
        right, loss = _per_person(of, class_names)
        shares = _shares(severity)
        row: dict[str, object] = {"model": model, "division": division}
        for key, ill in (("auc", (1, 2)), ("auc_very_mild", (1,)), ("auc_mild", (2,))):
            row[key] = float(wins(scores[None], severity, ill).mean())
        row |= {"balanced_accuracy_3": float(right @ shares), "log_loss_3": float(loss.mean())}
        rows.append(row)
    return pd.DataFrame(rows)


def _per_person(of: pd.DataFrame, class_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each row's severity is named rightly, and its log loss, float64 (n,) each."""
    logits = of[[f"logit_{name}" for name in class_names]].to_numpy()
    severity = severity_of(of["label"].to_numpy(), class_names)
    ranks = np.array([SEVERITY[name] for name in class_names])
    pooled = np.stack([np.logaddexp.reduce(logits[:, ranks == k], axis=1) for k in range(3)], 1)
    loss = -log_softmax(pooled, axis=1)[np.arange(len(of)), severity]
    return (pooled.argmax(1) == severity).astype(float), loss


def _shares(severity: np.ndarray) -> np.ndarray:
    """Return what one right answer adds to the balanced accuracy."""
    return 1 / (3 * np.bincount(severity, minlength=3)[severity])


def people_table(frame: pd.DataFrame, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Return a row a model: mean ± standard deviation over divisions of every figure, as text."""
    by_division = figures_by_division(frame, class_names).groupby("model", sort=False)
    means, spread = by_division.mean(), by_division.std(ddof=0)
    cells = {
        label: [f"{m:.3f} ± {s:.3f}" for m, s in zip(means[key], spread[key], strict=True)]
        for key, label in FIGURES.items()
    }
    return pd.DataFrame(
        {"divisions": by_division["division"].count().to_numpy(), **cells}, index=means.index
    )


def against_one_number(
    frame: pd.DataFrame, class_names: tuple[str, ...], *, rival: str = RIVALS[0], seed: int = 0
) -> pd.DataFrame:
    """Return how much better each model is than one number, on the same people.

    Parameters
    ----------
    frame : DataFrame
        From `mri.training.people.judge_people`; controls are left out.
    class_names : tuple of str
    rival : str
        A model in the frame.
    seed : int
        Of the draws.

    Returns
    -------
    DataFrame
        By model: difference of AUC with `low`, `high` and p (`auc_difference`), differences of
        balanced accuracy and of log loss with p (`sign_flip` over people, each person's mean over
        divisions). Not corrected for their number.
    """
    known = [m for m in frame["model"].unique() if not m.endswith(SHUFFLED)]
    require(rival in known, f"rival must be one of {known}.", rival=rival)
    of = {m: _by_person(frame[frame["model"] == m], class_names) for m in known}
    severity, scores, right, loss = of[rival]
    rows = {}
    for model in known:
        if model == rival:
            continue
        value, low, high, p = auc_difference(of[model][1], scores, severity, seed=seed)
        balanced = (of[model][2] - right) * _shares(severity)
        worse = (of[model][3] - loss) / len(severity)
        p_balanced, p_loss = sign_flip(np.stack([balanced, worse]), seed=seed)
        rows[model] = {
            "auc": value,
            "low": low,
            "high": high,
            "p": p,
            "balanced_accuracy_3": balanced.sum(),
            "p_balanced": p_balanced,
            "log_loss_3": worse.sum(),
            "p_loss": p_loss,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_person(
    of: pd.DataFrame, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return severity (people,), scores (divisions, people), and mean rightness and loss."""
    of = of.sort_values(["division", "subject"])
    divisions = of["division"].nunique()
    right, loss = _per_person(of, class_names)
    severity = severity_of(of["label"].to_numpy(), class_names).reshape(divisions, -1)[0]
    scores = of["score"].to_numpy().reshape(divisions, -1)
    return severity, scores, *(x.reshape(divisions, -1).mean(0) for x in (right, loss))


_ABOUT = """# All people, judged by models that never saw them

{people} people ({origin}), {folds} folds by person, divisions: {divisions}; mean ± standard
deviation over divisions. Template, weights, cut points and steepness come from the other folds.
Mild includes moderate dementia. Every model also stands here fitted to diagnoses dealt out anew,
which must be at chance: 0.5 and 0.333.

{figures}

## Better than one number?

Each model less one number: same people, same folds. AUC by paired bootstrap over people; balanced
accuracy and log loss (lower is better) by random signs over people. p-values are two-sided and not
corrected for their number.

{differences}

Written by `python -m mri people`.
"""


def markdown(frame: pd.DataFrame, class_names: tuple[str, ...], origin: str) -> str:
    """Return the tables as Markdown, with the sentences that a reader needs."""
    differences = [_differences(frame, class_names, rival) for rival in RIVALS]
    return _ABOUT.format(
        people=frame["subject"].nunique(),
        divisions=frame["division"].nunique(),
        folds=frame["fold"].nunique(),
        origin=origin,
        figures=_as_markdown(people_table(frame, class_names)),
        differences="\n\n".join(map(_as_markdown, differences)),
    )


def _differences(frame: pd.DataFrame, class_names: tuple[str, ...], rival: str) -> pd.DataFrame:
    """Return `against_one_number` as text."""
    columns = {
        "AUC [95% interval]": "{auc:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.3f}",
        "balanced accuracy": "{balanced_accuracy_3:+.3f}, p = {p_balanced:.3f}",
        "log loss": "{log_loss_3:+.3f}, p = {p_loss:.3f}",
    }
    rows = {
        f"{model}, less {rival}": {name: text.format(**row) for name, text in columns.items()}
        for model, row in against_one_number(frame, class_names, rival=rival).iterrows()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _as_markdown(table: pd.DataFrame) -> str:
    lines = [["model", *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[str(name), *map(str, row)] for name, *row in table.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compare_people(
    scans: Scans,
    groups: np.ndarray,
    *,
    models: tuple[str, ...] = MODELS,
    divisions: int = 10,
    folds: int = 5,
    folder: str | os.PathLike[str] = "runs/people",
    output: str | os.PathLike[str] = "models/people",
) -> pd.DataFrame:
    """Judge all people (`judge_people`), and write scores and tables to commit.

    Parameters
    ----------
    scans, groups, models, divisions, folds, folder
        See `judge_people`; the models must include `RIVALS`.
    output : path
        ``<output>.parquet`` gets the scores, ``<output>.md`` the tables.

    Returns
    -------
    DataFrame
        From `people_table`.
    """
    require(set(RIVALS) <= set(models), f"models must include {RIVALS}.", models=models)
    frame = judge_people(
        scans, groups, models=models, divisions=divisions, folds=folds, folder=folder
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    floats = [name for name in frame if name == "score" or name.startswith("logit_")]
    table = pa.Table.from_pandas(
        frame.astype(dict.fromkeys(floats, np.float32)), preserve_index=False
    )
    with replacing(output.with_suffix(".parquet")) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    text = markdown(frame, scans.class_names, scans.origin)
    with replacing(output.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return people_table(frame, scans.class_names)
