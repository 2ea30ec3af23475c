"""Decoded slices kept in a file and mapped from it, so that they need not fit into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from mri._arguments import require
from mri._files import alone, replacing
from mri.data.decode import DataError
from mri.data.scans import New, Scans

_VERSION = 4

Told = tuple[Scans, list[str]]
"""Slices, and what to warn of."""


def cached(path: Path, stamp: str, read: Callable[[New], Told]) -> Told:
    """Return the slices kept at `path` under this stamp, mapped read-only; first read what is not.

    The file is one of NumPy, pixels uint8 (n, h, w); `<path>.json` has all that belongs to them.
    `read` takes a function that makes an array of a shape. DataError if the name is taken.
    """
    require(path.name != "", "cache must be the name of a file.", cache=str(path))
    about = path.with_name(path.name + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not about.exists():
        raise DataError(f"{path}: is there, but no cache of slices; choose another cache=")
    # Where it is absent, damaged, or of other data.
    unusable = suppress(OSError, LookupError, TypeError, ValueError)
    if not os.access(path.parent, os.W_OK):  # So nobody else changes it either.
        with unusable:
            return _kept(path, about, stamp)
    with alone(about):
        with unusable:
            return _kept(path, about, stamp)
        _write(path, about, stamp, read)
        return _kept(path, about, stamp)


def _write(path: Path, about: Path, stamp: str, read: Callable[[New], Told]) -> None:
    with replacing(path) as temporary:
        mapped = np.lib.format.open_memmap
        scans, told = read(lambda shape: mapped(temporary, "w+", np.uint8, shape))
        if isinstance(scans.images.base, np.memmap):
            scans.images.base.flush()
    facts = {
        "version": _VERSION,
        "stamp": stamp,
        "class_names": scans.class_names,
        "synthetic": scans.synthetic,
        "rows": {"label": scans.labels.tolist(), "split": np.array(scans.splits).tolist()},
        "rejected": scans.rejected.to_dict("list"),
        "told": told,
    }
    with replacing(about) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")


def _kept(path: Path, about: Path, stamp: str) -> Told:
    facts = json.loads(about.read_text(encoding="utf-8"))
    same = (facts["version"], facts["stamp"]) == (_VERSION, stamp)
    require(same, "The cache must be of these slices.", cache=str(path))
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    labels = np.array(facts["rows"]["label"], np.int64)
    splits = np.array(facts["rows"]["split"], str)
    rejected = pd.DataFrame(facts["rejected"]).astype({"row": np.int64})
    fits = images.dtype == np.uint8 and images.ndim == 3 and len(images) >= len(labels)
    require(fits, "The cache must hold uint8 (n, h, w).", cache=str(path))
    names = tuple(facts["class_names"])
    scans = Scans(images[: len(labels)], labels, names, rejected, facts["synthetic"], splits)
    return scans, [str(said) for said in facts["told"]]
