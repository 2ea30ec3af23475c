"""Every model file of a folder, evaluated on slices that it has not seen, and ranked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from mri.cards import ModelFileError, load_model, read_card
from mri.data import Scans
from mri.evaluation import Evaluation, evaluate
from mri.models import predict_logits

RANKED_BY = "balanced_accuracy"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    table : DataFrame
        One row a file, best first: subject-wise models before image-level ones, because the
        figures of the latter are inflated, and files that could not be evaluated last, with the
        reason in the column `note`.
    evaluations : dict of str to Evaluation
        By model name, for those that could be evaluated.
    """

    table: pd.DataFrame
    evaluations: dict[str, Evaluation]

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.3f}".format, na_rep="–")

    def __repr__(self) -> str:
        return self.table.to_string(float_format="{:.3f}".format, na_rep="–")


def compare(
    scans: Scans, groups: np.ndarray, folder: str | os.PathLike = "models", *, seed: int = 0
) -> Comparison:
    """Evaluate every ``.keras`` file of `folder` on its own test part and rank them.

    A model is only measured on the test rows of its card, and only if the card names these very
    slices: whatever else it may have seen in training. A model without a card is listed with its
    figures on all slices and the warning that nobody knows what it was trained on.

    Parameters
    ----------
    scans : Scans
        All slices, in the order in which the models were trained.
    groups : ndarray of int, shape (n,)
        Subject of each slice.
    folder : path
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    Comparison

    Raises
    ------
    FileNotFoundError
        If the folder holds no ``.keras`` file.
    """
    files = sorted(Path(folder).glob("[!.]*.keras"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: no .keras file; run main.ipynb or python -m mri.training compact"
        )
    fingerprint = scans.fingerprint()
    rows, evaluations = [], {}
    for path in tqdm(files, desc="models", disable=None):
        row = {"model": path.stem, "size_mb": path.stat().st_size / 1e6}
        try:
            card = read_card(path)
            model = load_model(path)
            _check_fit(path, model, card, scans)
            test, row["protocol"], row["note"] = _test_rows(path, card, scans, fingerprint)
            logits = predict_logits(model, scans.images[test])
            if not np.isfinite(logits).all():
                raise ModelFileError(f"{path}: gives logits that are not finite")
        except ModelFileError as error:
            rows.append({**row, "protocol": "–", "note": str(error)})
            continue
        row["parameters"] = model.count_params()
        figures = evaluate(
            scans.labels[test],
            logits,
            groups[test],
            class_names=scans.class_names,
            title=f"{path.stem}: {len(test)} {scans.origin}, {row['protocol']} split",
            temperature=card["temperature"] if card is not None else 1.0,
            seed=seed,
        )
        evaluations[path.stem] = figures
        per_slice = figures.metrics["slice"]
        row |= {
            key: per_slice[key].value for key in ("accuracy", RANKED_BY, "macro_f1", "macro_auc")
        }
        row |= {"low": per_slice[RANKED_BY].low, "high": per_slice[RANKED_BY].high}
        rows.append(row)
    table = pd.DataFrame(rows)
    order = table["protocol"].map({"subject": 0, "image": 1, "unknown": 2}).fillna(3)
    score = table[RANKED_BY] if RANKED_BY in table else 0.0
    table = table.assign(order=order, score=score)
    table = table.sort_values(["order", "score"], ascending=[True, False], ignore_index=True)
    columns = ["model", "protocol", RANKED_BY, "low", "high", "accuracy", "macro_f1", "macro_auc"]
    columns += ["parameters", "size_mb", "note"]
    return Comparison(table.reindex(columns=columns).astype({"parameters": "Int64"}), evaluations)


def _check_fit(path: Path, model: object, card: dict | None, scans: Scans) -> None:
    expected = (None, *scans.images.shape[1:], 1)
    takes, gives = (getattr(model, f"{side}_shape", None) for side in ("input", "output"))
    if takes != expected:
        raise ModelFileError(f"{path}: takes {takes}, the slices are {expected}")
    if gives != (None, len(scans.class_names)):
        raise ModelFileError(f"{path}: gives {gives}, the data have classes {scans.class_names}")
    missing = {"class_names", "data", "split", "temperature", "test_rows"}.difference(card or ())
    if card is not None and missing:
        raise ModelFileError(f"{path}: its card lacks {sorted(missing)}; train the model again")
    if card is not None and tuple(card["class_names"]) != scans.class_names:
        raise ModelFileError(
            f"{path}: classes {card['class_names']}, the data have {scans.class_names}"
        )


def _test_rows(
    path: Path, card: dict | None, scans: Scans, fingerprint: str
) -> tuple[np.ndarray, str, str]:
    """Return (rows, protocol, note)."""
    if card is None:
        note = "no card: nobody knows what it was trained on, so these may be training slices"
        return np.arange(len(scans)), "unknown", note
    if card["data"] != fingerprint:
        raise ModelFileError(
            f"{path}: trained on other slices (fingerprint {card['data'][:12]}, these are "
            f"{fingerprint[:12]}); which of these it has seen cannot be told"
        )
    protocol = card["split"]["protocol"]
    note = "subjects in training too: inflated" if protocol == "image" else ""
    if not card["test_rows"]:
        raise ModelFileError(f"{path}: its card names no test rows, so nothing is left to measure")
    return np.array(card["test_rows"]), protocol, note
