"""Check data, processor and disk before a first run: ``python -m mri check``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mri.data.parquet import REMEDY
from mri.data.scans import iter_batches
from mri.data.sources import Slices, describe, find_data

_NEEDED = 1 << 30
"""A generous number of bytes for models, executed notebooks and phantoms."""


def problems(folder: str | os.PathLike[str] = ".") -> Iterator[str]:
    """Yield what would stop a run that writes into `folder`: an old processor, a full disk."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # Without Linux, nothing is known about the processor.
        flags = ""
    # ARM processors list "Features" instead, and TensorFlow for ARM does not need AVX.
    if "\nflags" in flags and " avx" not in flags:
        yield (
            "this processor has no AVX, so TensorFlow stops with 'Illegal instruction'; "
            "use another machine, or a build of TensorFlow without AVX"
        )
    free = shutil.disk_usage(folder).free
    if free < _NEEDED:
        yield f"{Path(folder).resolve()}: {free >> 20} MB of disk are free, 1 GB is needed"


def describe_data(folder: str | os.PathLike[str] | None = None) -> str:
    """Say which slices a run will use, and why if they are phantoms.

    Parameters
    ----------
    folder : path, optional
        As for `find_data`.

    Raises
    ------
    DataError
        If a given folder holds no slices, or what is there cannot be read to its end.
    """
    if found := find_data(folder):
        slices, parts = Slices(found), ("train", "test")
        for _ in iter_batches(slices, split=parts):  # A bad row, or another size, stops a run too.
            pass
        return describe(found, slices.select(parts))
    path = Path("data")
    what = "no slices there" if path.is_dir() else "no such folder"
    here = sorted(p.name for p in path.glob("[!.]*") if p.is_file() and p.name != "README.md")
    if here:
        what = f"no train and test part among {here[:5]}"
    return f"{path}: {what}, so synthetic phantoms are used, and every title says so. {REMEDY}"
