"""Decoded slices kept in a file and mapped from it, so that they need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mri._files import alone, replacing
from mri.data.decode import DataError
from mri.data.scans import Scans

_VERSION = 2
New = Callable[[tuple[int, ...]], np.ndarray]


def cached(path: Path, stamp: str, read: Callable[[New], Scans]) -> Scans:
    """Return the slices kept at `path` under this stamp, read anew where there are none.

    Parameters
    ----------
    path : path
        Of a NumPy file, pixels uint8 (n, h, w); what belongs to them is in ``<path>.json``.
    stamp : str
        Of the data and of how they are read: another one makes the file anew.
    read : callable
        From a function that makes an array of a shape to the `Scans` that fill its beginning.

    Returns
    -------
    Scans
        `images` are mapped, read-only.

    Raises
    ------
    DataError
        If something else bears that name.
    """
    about = path.with_name(path.name + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not about.exists():
        raise DataError(f"{path}: is there, but no cache of slices; choose another cache=")
    with alone(about):
        if (found := _kept(path, about, stamp)) is None:
            _write(path, about, stamp, read)
            found = _kept(path, about, stamp)
    if found is None:
        raise DataError(f"{path}: the cache changed while it was read; run again")
    return found


def _write(path: Path, about: Path, stamp: str, read: Callable[[New], Scans]) -> None:
    with replacing(path) as temporary:

        def new(shape: tuple[int, ...]) -> np.ndarray:
            return np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)

        scans = read(new)
        if isinstance(scans.images.base, np.memmap):
            scans.images.base.flush()
    rejected = scans.rejected.values.tolist()
    facts = {"version": _VERSION, "stamp": stamp, "class_names": list(scans.class_names)}
    facts |= {"labels": scans.labels.tolist(), "rejected": rejected, "synthetic": scans.synthetic}
    numbers, names = pd.factorize(scans.splits)
    facts["splits"] = {"names": names.tolist(), "rows": numbers.tolist()}
    with replacing(about) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")


def _kept(path: Path, about: Path, stamp: str) -> Scans | None:
    try:
        facts = json.loads(about.read_text(encoding="utf-8"))
        if (facts["version"], facts["stamp"]) != (_VERSION, stamp):
            return None
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.array(facts["labels"], np.int64)
        splits = np.array(facts["splits"]["names"])[facts["splits"]["rows"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) < len(labels):
        return None
    rejected = pd.DataFrame(facts["rejected"], columns=["file", "row", "cause"])
    return Scans(
        images[: len(labels)],
        labels,
        tuple(facts["class_names"]),
        rejected.astype({"row": np.int64}),
        facts["synthetic"],
        splits,
    )
