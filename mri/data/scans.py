"""Read parquet files of MRI slices into one array, and say precisely what is wrong if that fails.

The public Alzheimer MRI set stores one JPEG a row (`image: struct<bytes, path>`, `label: int64`).
`dict_to_image` decodes one record, `read_scans` whole files on all cores without a Python object
per row, and `iter_batches` files larger than memory. ``python -m mri download`` fetches them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mri._arguments import require
from mri.data.decode import DataError, check_size, decode_into, first_shape
from mri.data.parquet import (
    Source,
    arrow_batches,
    check_files,
    check_labels,
    parquet_files,
)


@dataclass(frozen=True, eq=False)
class Scans:
    """Decoded slices with their labels, and the rows that were left out.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, h, w)
        Gray values 0 to 255.
    labels : ndarray of int64, shape (n,)
        Index into `class_names`.
    class_names : tuple of str
        Names in label order.
    rejected : DataFrame
        One row per rejected record: `file`, `row` (from 0 in that file), `cause`.
    synthetic : bool
        Whether the files are marked as phantoms rather than real slices.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    rejected: pd.DataFrame
    synthetic: bool = False

    def __len__(self) -> int:
        """Return the number of slices kept."""
        return len(self.labels)

    def __add__(self, other: Scans) -> Scans:
        """Return the slices of both, these first.

        Raises
        ------
        ValueError
            If sizes, class names or origin differ.
        """
        for what in ("class_names", "synthetic"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(f"{what} differ: {getattr(self, what)}, {getattr(other, what)}")
        if self.images.shape[1:] != other.images.shape[1:]:
            raise ValueError(f"sizes differ: {self.images.shape[1:]}, {other.images.shape[1:]}")
        return Scans(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
            self.class_names,
            pd.concat([self.rejected, other.rejected], ignore_index=True),
            self.synthetic,
        )

    def __repr__(self) -> str:
        n, h, w = self.images.shape
        return f"Scans({n} {self.origin} of {h} × {w}, {len(self.rejected)} rows rejected)"

    @property
    def origin(self) -> str:
        """What the slices are, for titles: 'MRI slices' or 'synthetic phantom slices'."""
        return "synthetic phantom slices" if self.synthetic else "MRI slices"

    def fingerprint(self) -> str:
        """Return the SHA-256 of shape, pixels, labels and class names, in hexadecimal."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """Return a DataFrame with columns `label` and `img_arr` ((h, w) uint8 views, no copies)."""
        return pd.DataFrame({"label": self.labels, "img_arr": list(self.images)})


def read_scans(
    source: Source,
    *,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    on_error: str = "raise",
    threads: int | None = None,
) -> Scans:
    """Decode parquet files into one array.

    Parameters
    ----------
    source : path, glob pattern or list of paths
        A file, a folder of shards or a pattern such as ``"data/train-*.parquet"``.
    split : str, optional
        'train' or 'test': only the files whose names begin with it, as the hub names them.
    size : tuple of int, optional
        Resize every slice to (h, w) pixels; needed where the file mixes sizes.
    on_error : {'raise', 'skip'}
        What to do with a bad row: raise, or leave it out, list it in `Scans.rejected` and warn
        with the count.
    threads : int, optional
        Decoding threads; by default one per processor. The result does not depend on it.

    Returns
    -------
    Scans
        Slices in file order. Peak memory is the array and a few pages of a file.

    Raises
    ------
    DataError
        If a file is missing, is not parquet, has the wrong schema, mixes sizes without `size`,
        has no usable row or (with ``on_error="raise"``) has a bad one.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     read_scans(write_phantom(folder, subjects=8, slices=5), split="train")
    Scans(32 synthetic phantom slices of 128 × 128, 0 rows rejected)
    """
    _check_options(size, on_error, threads)
    files = parquet_files(source, split=split)
    class_names, synthetic, total = check_files(files)
    batches = _decoded(
        files, class_names, total, None, size=size, on_error=on_error, threads=threads
    )
    images, labels, bad = zip(*batches, strict=True)
    rejected = pd.DataFrame(
        [row for rows in bad for row in rows], columns=["file", "row", "cause"]
    ).astype({"row": np.int64})
    # The batches are views that fill one array from its start, so the last one's base is it.
    kept = sum(map(len, labels))
    return Scans(images[-1].base[:kept], np.concatenate(labels), class_names, rejected, synthetic)


def iter_batches(
    source: Source,
    *,
    batch_size: int = 256,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    on_error: str = "raise",
    threads: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode parquet files batch by batch, at a memory that does not grow with their length.

    Parameters
    ----------
    source, split, size, on_error, threads
        As in `read_scans`; wrong ones raise here, bad rows when they are reached.
    batch_size : int
        Rows read at a time; a batch is shorter where rows were rejected or a file ends.

    Yields
    ------
    images : ndarray of uint8, shape (m, h, w)
    labels : ndarray of int64, shape (m,)

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     parquet = write_phantom(folder, subjects=8, slices=5)
    ...     [len(labels) for images, labels in iter_batches(parquet, batch_size=15)]
    [8, 15, 15, 2]
    """
    require(batch_size >= 1, "batch_size must be at least 1.", batch_size=batch_size)
    _check_options(size, on_error, threads)
    files = parquet_files(source, split=split)
    class_names, _, total = check_files(files)
    batches = _decoded(
        files, class_names, total, batch_size, size=size, on_error=on_error, threads=threads
    )
    return ((images, labels) for images, labels, _ in batches if len(labels))


def _check_options(size: tuple[int, int] | None, on_error: str, threads: int | None) -> None:
    check_size(size)
    known = on_error in ("raise", "skip")
    require(known, "on_error must be 'raise' or 'skip'.", on_error=on_error)
    require(threads is None or threads >= 1, "threads must be at least 1.", threads=threads)


def _decoded(
    files: Sequence[Path],
    class_names: tuple[str, ...],
    total: int,
    rows: int | None,
    *,
    size: tuple[int, int] | None,
    on_error: str,
    threads: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[str, int, str]]]]:
    """Yield (images, labels, rejected) of up to `rows` rows.

    Without `rows`, the images are consecutive views into one array of `total` slices.
    """
    threads = threads or os.cpu_count() or 1
    shape, whole, kept = size, None, 0
    batches = arrow_batches(files, rows or 64 * threads)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)  # Reads on while the others decode.
            file, start, views, labels = batch
            shape = shape or first_shape(views)
            if rows is None and whole is None and shape is not None:
                whole = np.empty((total, *shape), np.uint8)
            n = len(views)
            out = np.empty((n, *(shape or (0, 0))), np.uint8) if whole is None else whole[kept:][:n]
            values, causes = check_labels(labels, class_names)
            causes |= decode_into(out, views, size, pool, threads)
            mixed = [i for i, cause in causes.items() if cause.startswith("size")]
            for i in mixed or (sorted(causes) if on_error == "raise" else []):
                remedy = "pass size=(h, w)" if mixed else "pass on_error='skip' to leave it out"
                raise DataError(f"{file}, row {start + i}: {causes[i]}; {remedy}")
            keep = [i for i in range(n) if i not in causes]
            if causes:
                out[: len(keep)] = out[keep]
            kept += len(keep)
            bad = [(str(file), start + i, causes[i]) for i in sorted(causes)]
            yield out[: len(keep)], values[keep], bad
    if not kept:
        cause = f"the last: {bad[-1][2]}" if total else "the files are empty"
        raise DataError(f"{files[-1]}: no usable row among {total}; {cause}")
    if kept < total:
        warnings.warn(f"{total - kept} of {total} rows rejected", UserWarning, stacklevel=3)
