"""What a model file says of its test part, kept beside it, so that it is run once.

``<name>.parquet`` holds rows, labels, subjects and logits, no pixels: with its card it is enough to
measure and rank a model whose file, or whose slices, are elsewhere.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mri.cards import ModelFileError, held_out_rows, inspect_model, load_model, read_card
from mri.crossval import write_table
from mri.data import Scans
from mri.files import file_sha256

_KEY = b"mri_logits"


class Predictions(NamedTuple):
    """Rows (n,) of the scans, labels (n,), subjects (n,) and logits (n, k), not calibrated.

    `about` has sha256 of the file, data (fingerprint), class_names, origin, parameters, bytes and
    milliseconds per call of batches of 1 and of 64.
    """

    rows: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    logits: np.ndarray
    about: dict[str, Any]


def keep_logits(
    path: str | os.PathLike[str], scans: Scans | None, groups: np.ndarray | None
) -> Predictions:
    """Run a model on its test part and keep the logits beside it, as ``<name>.parquet``.

    Parameters
    ----------
    path : path
        Of the ``.keras`` file.
    scans : Scans
    groups : ndarray of int, shape (n,)

    Returns
    -------
    Predictions

    Raises
    ------
    ModelFileError
        If the file is not safe, does not fit the slices, or nothing is left to measure it on.

    Warns
    -----
    UserWarning
        If the folder cannot be written; the result is whole all the same.
    """
    path = Path(path)
    inspect_model(path)
    if scans is None or groups is None:
        raise ModelFileError(f"{path}: no logits kept, and no slices to run it on")
    card = read_card(path)
    test = held_out_rows(path, card, scans)
    model = load_model(path)
    _check_fit(path, model, scans)
    from mri.models import predict_logits

    logits = predict_logits(model, scans.images[test])
    if not np.isfinite(logits).all():
        raise ModelFileError(f"{path}: gives logits that are not finite")
    about = {
        "sha256": file_sha256(path),
        "data": scans.fingerprint(),
        "class_names": scans.class_names,
        "origin": scans.origin,
        "parameters": model.count_params(),
        "bytes": path.stat().st_size,
        "milliseconds": [
            _milliseconds(partial(model.predict_on_batch, scans.images[test[:n], ..., None]))
            for n in (1, 64)
        ],
    }
    kept = Predictions(test, scans.labels[test], groups[test], logits, about)
    columns = {"row": kept.rows, "label": kept.labels, "subject": kept.subjects}
    columns |= {f"logit_{name}": logits[:, c] for c, name in enumerate(scans.class_names)}
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    try:
        write_table(table, path.with_suffix(".parquet"))
    except OSError as error:
        warnings.warn(f"{path}: logits not kept, so it will run again ({error})", stacklevel=2)
    return kept


def find_logits(path: Path, fingerprint: str | None = None) -> Predictions | None:
    """Return the logits kept of this very file and these test rows, None where there are none.

    Parameters
    ----------
    path : Path
        Of the ``.keras`` file, which may be absent: then its card says what it was.
    fingerprint : str, optional
        Of the slices at hand; a model without a card is measured anew on others.

    Raises
    ------
    ModelFileError
        If the file is not safe or not what its card says, or the card is damaged.
    """
    card = read_card(path)
    if path.is_file():
        inspect_model(path)
        sha256 = file_sha256(path)
    elif card is None:
        return None
    else:
        sha256 = card.get("sha256", "")
    with suppress(OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        table = pq.read_table(path.with_suffix(".parquet"))
        about = json.loads(table.schema.metadata[_KEY])
        frame = table.to_pandas()
        names = [f"logit_{name}" for name in about["class_names"]]
        rows, labels, subjects = (frame[key].to_numpy() for key in ("row", "label", "subject"))
        kept = Predictions(rows, labels, subjects, frame[names].to_numpy(), about)
        same = about["sha256"] == sha256
        if card is None:
            same &= fingerprint in (None, about["data"])
        else:
            same &= about["data"] == card["data"] and card["test_rows"] == kept.rows.tolist()
            same &= card["class_names"] == about["class_names"]
        if same:
            return kept
    return None


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that compiles."""
    call()
    times: list[float] = []
    while len(times) < 5 or (len(times) < 30 and sum(times) < 0.3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 2)


def _check_fit(path: Path, model: object, scans: Scans) -> None:
    expected = (None, *scans.images.shape[1:], 1)
    takes, gives = (getattr(model, f"{side}_shape", None) for side in ("input", "output"))
    if takes != expected:
        raise ModelFileError(f"{path}: takes {takes}, the slices are {expected}")
    if gives != (None, len(scans.class_names)):
        raise ModelFileError(f"{path}: gives {gives}, the data have classes {scans.class_names}")
