"""The tables of all people: the ranking, the lead over one number, divisions, and atrophy.

Each row is a model. Tests and intervals draw people, not divisions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from mri._arguments import require
from mri._files import replacing
from mri._text import for_code
from mri.data.decode import DataError
from mri.evaluation.metrics import Evaluation, demented_odds, metric_label, pooled_three
from mri.evaluation.significance import auc_difference, holm, share_difference, shares_of
from mri.training.crossval import TABLE, CrossValidation, diagnoses, right_shares

NUMBERS = "gray share", "ventricle volume", "all fluid"
"""The single numbers that every other model has to beat; see `mri.training.one_number`."""

DIVIDED = {
    "demented_auc": "AUC, demented or not",
    "very_mild_auc": "AUC, very mild or not demented",
    "mild_auc": "AUC, mild or not demented",
    "balanced_accuracy_3": "balanced, 3 classes",
    "log_loss_3": "log loss, 3 classes",
}
"""Readable names of the figures over divisions; see `figures_of`."""

COMPARED = {"demented_auc": "AUC", "balanced_accuracy_3": "balanced accuracy, 3 classes"}
"""Figures in which a model is compared with a single number."""

BEGIN, END = "<!-- python -m mri folds --table -->", "<!-- end of the table -->"
"""Between these lines of a Markdown file stands the ranking."""


def figures_of(
    labels: np.ndarray, logits: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, float]:
    """Return the figures of labels (n,) and logits (n, 4) of people, without intervals.

    The keys are those of `DIVIDED`, `accuracy` and `balanced_accuracy`. Moderate dementia counts as
    mild, except in the last two.
    """
    truth, pooled = pooled_three(labels, logits, class_names)
    odds, healthy = demented_odds(logits, class_names), class_names.index("Non_Demented")
    found = right_shares(labels, logits)
    found["balanced_accuracy_3"] = right_shares(truth, pooled)["balanced_accuracy"]
    found["demented_auc"] = float(roc_auc_score(labels != healthy, odds))
    for key, name in (("very_mild_auc", "Very_Mild_Demented"), ("mild_auc", "Mild_Demented")):
        ill = class_names.index(name)
        rows = np.isin(truth, (healthy, ill))
        found[key] = float(roc_auc_score(truth[rows] == ill, odds[rows]))
    loss = -log_softmax(pooled, axis=1)[np.arange(len(truth)), truth]
    return found | {"log_loss_3": float(loss.mean())}


def _per_division(found: CrossValidation, model: str) -> pd.DataFrame:
    samples = [found.sample(model, division) for division in found.divisions(model)]
    return pd.DataFrame([figures_of(*x[:2], found.class_names) for x in samples])


def over_divisions(found: CrossValidation) -> pd.DataFrame:
    """Return mean and standard deviation over divisions of each model's figures per person.

    A division deals the people into folds by another seed. The deviation says how much depends on
    that. It is no standard error, since the people are the same. There is a row a model, controls
    included, with ``divisions``, how many, and ``<figure> mean`` and ``<figure> sd`` of `DIVIDED`.
    """
    rows = {}
    for model in found.models:
        of = _per_division(found, model)
        rows[model] = {"divisions": len(of)}
        for key in DIVIDED:
            rows[model] |= {f"{key} mean": of[key].mean(), f"{key} sd": of[key].std(ddof=0)}
    return pd.DataFrame.from_dict(rows, orient="index")


def best_number(found: CrossValidation, metric: str = "demented_auc") -> str:
    """Return the single number with the best figure, as a mean over divisions."""
    known = [name for name in NUMBERS if name in found.models]
    require(len(known) > 0, f"There must be rows of {NUMBERS}.", models=found.models)
    return max(known, key=lambda name: _per_division(found, name)[metric].mean())


def against_one_number(found: CrossValidation) -> pd.DataFrame:
    """Return how much better each model is than the best single number, on the same people.

    For each figure the rival is the number that is best in it. It is chosen on these very people,
    so the bar is a little too high. Figures are means over the divisions that both models have.

    Returns
    -------
    DataFrame
        By model: for both figures ``<figure>``, ``<figure>_low``, ``<figure>_high`` (95%, by
        bootstrap over people) and ``<figure>_p``, with Holm's correction over the models.
        ``<figure>_rival`` names the number; its own row has NaN.

    Raises
    ------
    ValueError
        If there are no rows of a single number, or of nothing else.
    """
    rows: dict[str, dict[str, object]] = {name: {} for name in found.ranked()}
    require(len(rows) > 1, "There must be another model than one number.", models=list(rows))
    for metric in COMPARED:
        rival = best_number(found, metric)
        others = [name for name in rows if name != rival]
        tests = [_difference(found, (name, rival), metric) for name in others]
        corrected = holm(np.array([test[3] for test in tests]))
        for name, (value, low, high, _), p in zip(others, tests, corrected, strict=True):
            rows[name] |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
            rows[name] |= {f"{metric}_p": p, f"{metric}_rival": rival}
    return pd.DataFrame.from_dict(rows, orient="index")


def _difference(
    found: CrossValidation, models: tuple[str, str], metric: str
) -> tuple[float, float, float, float]:
    """Return first less second: the difference, its 95% interval and the p-value."""
    names = found.class_names
    shared = sorted(set.intersection(*(set(found.divisions(model)) for model in models)))
    samples = [[found.sample(model, division) for division in shared] for model in models]
    labels = samples[0][0].labels
    if metric == "demented_auc":
        first, second = (np.stack([demented_odds(s.logits, names) for s in of]) for of in samples)
        return auc_difference(first, second, labels != names.index("Non_Demented"))
    first, second = (np.mean([shares_of(s, metric, names) for s in of], axis=0) for of in samples)
    return share_difference(first - second, labels)


def by_ventricles(found: CrossValidation) -> dict[str, dict[str, Evaluation]]:
    """Evaluate each ranked model on people of small and of large ventricles.

    Large ventricles are the commonest sign of atrophy. A model that knows more tells the demented
    among people whose ventricles are alike. The people are divided at the median of the answers of
    'ventricle volume', which rise with the volume. The keys are the half and the model.
    """
    volumes = demented_odds(found.sample("ventricle volume").logits, found.class_names)
    large = volumes > np.median(volumes)
    halves: dict[str, dict[str, Evaluation]] = {}
    for name, half in (("small ventricles", ~large), ("large ventricles", large)):
        people = {model: found.people(model)[half] for model in found.ranked()}
        halves[name] = {m: found.measured(of, f"{m}, {name}") for m, of in people.items()}
    return halves


def ranking_table(found: CrossValidation) -> str:
    """Return the ranking of all people as Markdown, the best first; stars mark the leaders."""
    comparison = found.ranking()
    leading, cells = comparison.leading(), {}
    for name, of in comparison.evaluations.items():
        figures = of.metrics["subject"]
        row = {metric_label(key): str(figures[key]) for key in TABLE}
        cells[_name(name) + " *" * (name in leading)] = row
    return _markdown(cells)


def _name(model: str) -> str:
    """Return the name of a network as code, any other as it is."""
    return model if " " in model else for_code(model, 80)


def _differences_table(found: CrossValidation) -> str:
    cells: dict[str, dict[str, str]] = {}
    table = against_one_number(found)
    for model, row in table.iterrows():
        of = cells.setdefault(_name(str(model)), {})
        for key, name in COMPARED.items():
            value, low, high, p = (row[f"{key}{end}"] for end in ("", "_low", "_high", "_p"))
            text = "–" if pd.isna(p) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.3f}"
            of[f"{name}, less {table[f'{key}_rival'].dropna().iloc[0]}"] = text
    return _markdown(cells)


def _divisions_table(found: CrossValidation) -> str:
    cells: dict[str, dict[str, str]] = {}
    for model, row in over_divisions(found).iterrows():
        of = cells[_name(str(model))] = {"divisions": f"{row['divisions']:.0f}"}
        for key, label in DIVIDED.items():
            mean, deviation = (f"{row[f'{key} {end}']:.3f}" for end in ("mean", "sd"))
            of[label] = f"{mean} ± {deviation}" if row["divisions"] > 1 else mean
    return _markdown(cells)


def _ventricles_table(found: CrossValidation) -> str:
    cells: dict[str, dict[str, str]] = {}
    for name, models in by_ventricles(found).items():
        for model, of in models.items():
            labels, healthy = of.sample("subject").labels, found.class_names.index("Non_Demented")
            who = f"{name} (n = {len(labels)}, {np.sum(labels != healthy)} demented)"
            figures = of.metrics["subject"]
            row = cells.setdefault(_name(model), {})
            row[f"AUC, {who}"] = str(figures["demented_auc"])
            row[f"balanced, 3 classes, {name}"] = str(figures["balanced_accuracy_3"])
    return _markdown(cells)


def _markdown(cells: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of cells by row and column; all rows have the columns of the first."""
    columns = list(next(iter(cells.values())))
    lines = [["model", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *row.values()] for name, row in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_PAGE = """# All people, judged by models that never saw them

{people} people ({origin}), five folds by person. Each person is judged by a model that was fitted
without them: by its mean logits over the person's slices, or by one answer for the whole person.
Mild includes moderate dementia in three classes. Chance is an AUC of 0.5 and a balanced accuracy of
0.333. All tables are made by `python -m mri folds --table` from kept logits.

## Ranking

By balanced accuracy in three classes, division 0, with 95% intervals over people. A star means: not
told apart from the best, by a paired test over people with Holm's correction over all pairs.

{ranking}

## Better than one number?

Each model less the single number that is best in the figure: same people, same folds, mean over the
divisions that both have. Intervals: 95%, paired bootstrap over people. p-values are two-sided, with
Holm's correction over the models of the column.

{differences}

## Divisions

Mean ± standard deviation over divisions: how much depends on who falls into which fold. Rows
'diagnoses shuffled' are the same models, fitted to diagnoses dealt out anew in each division: they
must be at chance. By chance alone, the AUC of one shuffle (demented or not) deviates from 0.5 with
a standard deviation of {error:.3f} or more: rows of several divisions show how much. In a division
all networks share one shuffle, so they deviate together.

{divisions}

## Who knows more than atrophy?

The people are divided at the median of the ventricle volume. The row 'ventricle volume' shows what
the ventricles alone still tell within each half.

{ventricles}
"""


def people_page(found: CrossValidation) -> str:
    """Return all tables as one page of Markdown, with the sentences that a reader needs."""
    demented = diagnoses(found.frame) != found.class_names.index("Non_Demented")
    pairs = int(demented.sum() * (~demented).sum())
    return _PAGE.format(
        people=found.frame["subject"].nunique(),
        origin=found.origin,
        # Of Mann and Whitney's statistic; what divides by zero has no AUC either.
        error=np.sqrt((len(demented) + 1) / (12 * max(pairs, 1))),
        ranking=ranking_table(found),
        differences=_differences_table(found),
        divisions=_divisions_table(found),
        ventricles=_ventricles_table(found),
    )


def write_tables(found: CrossValidation, folder: str | os.PathLike[str] = "models") -> list[Path]:
    """Write ``people.md``, and the ranking into a ``README.md`` with a place for it.

    Returns the files written. Raises DataError if the README has `BEGIN`, the line before the
    table, without `END`.
    """
    pages = {Path(folder, "people.md"): people_page(found)}
    readme = Path(folder, "README.md")
    if readme.is_file() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        before, _, rest = text.partition(BEGIN)
        if END not in rest:
            raise DataError(f"{readme}: expected {END!r} after {BEGIN!r}; put it after the table")
        after = rest.partition(END)[2]
        pages[readme] = f"{before}{BEGIN}\n\n{ranking_table(found)}\n\n{END}{after}"
    for path, text in pages.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(pages)
