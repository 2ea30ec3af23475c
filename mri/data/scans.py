"""Read MRI slices of any source into one array, or say precisely what is wrong.

The public Alzheimer MRI set stores one JPEG a row (`image: struct<bytes, path>`, `label: int64`).
`mri.data.formats` lists the other formats. `read_scans` decodes a whole source on all cores. A
source larger than memory is read with its `cache=`, or streamed by `iter_batches`. The public files
come by ``python -m mri download``.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import pandas as pd

from mri._arguments import require
from mri.data.decode import DataError, check_size, declared_pixels, decode_into, first_shape
from mri.data.formats import Columns
from mri.data.labels import Names, places_of, remedy
from mri.data.parquet import check_room
from mri.data.parts import Item, Part, Rows, load
from mri.data.sources import Slices, Source, Split, data_folder, describe


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
    splits : ndarray of str, shape (n,), optional
        Which part each slice belongs to by its source: 'train', 'test', 'validation', or '' where
        the source does not tell. None if the slices were not read from a source.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    rejected: pd.DataFrame
    synthetic: bool = False
    splits: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of slices kept."""
        return len(self.labels)

    def __add__(self, other: Scans) -> Scans:
        """Return the slices of both, these first.

        Memory-mapped slices stay in files: neighbours in one file are not copied, others are
        copied into a temporary file.

        Class names are compared without case, spaces, '_' and '-'. If the other part has them in
        another order, or lacks some, its labels become those of this one.

        Raises
        ------
        ValueError
            If sizes, class names or origin differ.
        """
        if self.synthetic != other.synthetic:
            raise ValueError(f"synthetic differ: {self.synthetic}, {other.synthetic}")
        if self.images.shape[1:] != other.images.shape[1:]:
            raise ValueError(f"sizes differ: {self.images.shape[1:]}, {other.images.shape[1:]}")
        longer = max(self.class_names, other.class_names, key=len)
        names = self.class_names if len(self.class_names) == len(longer) else longer
        both = (self, other)
        splits = [np.full(len(of), "") if of.splits is None else of.splits for of in both]
        return Scans(
            _joined(self.images, other.images),
            np.concatenate([of.labels_as(names) for of in both]),
            names,
            pd.concat([of.rejected for of in both], ignore_index=True),
            self.synthetic,
            np.concatenate(splits),
        )

    def part(self, split: str) -> Scans:
        """Return the slices of one split, without a copy where they stand together.

        `rejected` goes with the part that comes first.

        Raises
        ------
        ValueError
            If there are none.
        """
        splits = np.full(len(self), "") if self.splits is None else self.splits
        rows = np.flatnonzero(splits == split)
        require(len(rows) > 0, f"split must be one of {sorted(set(splits.tolist()))}.", split=split)
        together = rows[-1] - rows[0] == len(rows) - 1
        where = slice(rows[0], rows[-1] + 1) if together else rows
        return replace(
            self,
            images=self.images[where],
            labels=self.labels[where],
            rejected=self.rejected if rows[0] == 0 else self.rejected[:0],
            splits=splits[where],
        )

    def labels_as(self, class_names: tuple[str, ...]) -> np.ndarray:
        """Return the labels as indices into other class names, int64 (n,).

        Raises
        ------
        ValueError
            If one of this set's names is not among them.
        """
        at = places_of(class_names, self.class_names)
        if at is None:
            raise ValueError(f"class_names differ: {class_names}, {self.class_names}")
        return np.array(at, np.int64)[self.labels]

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


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the images of both in a row; what is mapped from files takes no memory."""
    mapped = [of for of in (first, second) if isinstance(of, np.memmap)]
    if not mapped:
        return np.concatenate([first, second])
    shape = (len(first) + len(second), *first.shape[1:])
    behind = first.ctypes.data + first.nbytes == second.ctypes.data
    if behind and len(mapped) == 2 and first.base is second.base is not None:
        return np.lib.stride_tricks.as_strided(first, shape, subok=True, writeable=False)
    home = mapped[0].filename
    with TemporaryFile(dir=None if home is None else Path(home).parent) as file:
        whole = np.memmap(file, np.uint8, "w+", shape=shape)
    for images, start in ((first, 0), (second, len(first))):
        for at in range(0, len(images), _AT_A_TIME):
            some = images[at : at + _AT_A_TIME]
            whole[start + at :][: len(some)] = some
    whole.flags.writeable = False
    return whole


# Rows for each thread: few enough for the cache, many enough that threads seldom wait.
_AT_A_TIME = 256


class _Options(NamedTuple):
    """How to decode, and how far up the caller stands, who is warned."""

    size: tuple[int, int] | None
    on_error: str
    threads: int | None
    level: int

    def check(self) -> None:
        """Raise ValueError if one of them is wrong."""
        check_size(self.size)
        known = self.on_error in ("raise", "skip")
        require(known, "on_error must be 'raise' or 'skip'.", on_error=self.on_error)
        valid = self.threads is None or self.threads >= 1
        require(valid, "threads must be at least 1.", threads=self.threads)


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def read_scans(
    source: Source = None,
    *,
    split: Split = None,
    size: tuple[int, int] | None = None,
    on_error: str = "raise",
    threads: int | None = None,
    image: str | None = None,
    label: str | None = None,
    class_names: Names | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Scans:
    """Decode the slices of any source into one array.

    Parameters
    ----------
    source
        A file, a folder, a pattern such as ``"data/train-*.parquet"`` or a list of files: parquet,
        CSV, or Arrow with bytes, pixels or paths of images. A folder of class folders of JPEG or
        PNG images, with or without ``train/`` and ``test/``. A folder of `save_to_disk`, a
        `datasets.Dataset` or `DatasetDict`, a pandas or Arrow table, or a mapping from split to
        these. By default the data at hand: the folder that ``MRI_DATA`` names, else ``data``; one
        line says which. Phantoms never take their place.
    split : str or sequence of str, optional
        'train', 'test' or 'validation'. The name of a file or folder begins with it, or a column
        `split` of a table holds it. Several are read one after the other: ``("train", "test")``.
    size : tuple of int, optional
        Resize every slice to (h, w) pixels; needed where sizes are mixed.
    on_error : {'raise', 'skip'}
        What to do with a bad row: raise, or leave it out, list it in `Scans.rejected` and warn
        with the count.
    threads : int, optional
        Decoding threads; by default one per processor. The result does not depend on it.
    image, label : str, optional
        Names of the columns, by default 'image' and 'label'. Labels are integers or names.
    class_names : sequence of str or mapping, optional
        Where the data have none: names in label order, or a mapping from label to name. Where
        they have, the order to bring them into.
    cache : path, optional
        A file to keep the decoded slices in. The array is mapped from it, so it need not fit into
        memory. A later call on the same data decodes nothing.

    Returns
    -------
    Scans
        Slices in the order of the source: files by name, rows as they stand. Peak memory is the
        array and a few pages of a file.

    Raises
    ------
    DataError
        If a path is missing or holds no slices. If a table has the wrong columns. If sizes are
        mixed without `size`. If the meaning of the labels cannot be told. If no row is usable or,
        with ``on_error="raise"``, one is bad.

    Warns
    -----
    UserWarning
        If class names had to be assumed, labels count from 1, or rows were rejected.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     read_scans(write_phantom(folder, subjects=8, slices=5), split="train")
    Scans(32 synthetic phantom slices of 128 × 128, 0 rows rejected)
    """
    options = _Options(size, on_error, threads, 4 if cache is None else 6)
    slices, parts = _opened(
        source, split, Columns(image or "image", label or "label"), class_names, options
    )
    if cache is None:
        return _read(slices, parts, _in_memory, options)
    from mri.data.cache import cached

    stamp = f"{slices.stamp(parts)} {size} {on_error}"
    return cached(Path(cache), stamp, lambda new: _read(slices, parts, new, options))


def _opened(
    source: Source, split: Split, columns: Columns, names: Names | None, options: _Options
) -> tuple[Slices, list[Part]]:
    """Check the options, open a source and choose its parts; warn of what was assumed."""
    options.check()
    told = source
    if source is None:
        told, _ = data_folder()
    slices = Slices(told, columns, class_names=names)
    parts = slices.select(split)
    if source is None:
        print(describe(slices.place, parts))
    slices.warn(parts, stacklevel=3)
    return slices, parts


def _read(
    slices: Slices,
    parts: Sequence[Part],
    new: Callable[[tuple[int, ...]], np.ndarray],
    options: _Options,
) -> Scans:
    """Decode all rows into one array that `new` makes from its shape."""
    batches = _decoded(slices, parts, options, None, new=new)
    images, labels, splits, bad = zip(*batches, strict=True)
    rejected = pd.DataFrame(
        [row for rows in bad for row in rows], columns=["file", "row", "cause"]
    ).astype({"row": np.int64})
    kept = sum(map(len, labels))
    # The batches are views that fill one array from its start, so the last one's base is it.
    whole = images[-1].base
    return Scans(
        whole[:kept],
        np.concatenate(labels),
        slices.class_names,
        rejected,
        parts[0].synthetic,
        np.concatenate(splits).astype(str),
    )


def iter_batches(
    source: Source = None,
    *,
    batch_size: int = 256,
    split: Split = None,
    size: tuple[int, int] | None = None,
    on_error: str = "raise",
    threads: int | None = None,
    image: str | None = None,
    label: str | None = None,
    class_names: Names | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode a source batch by batch, at a memory that does not grow with its length.

    Parameters
    ----------
    source, split, size, on_error, threads, image, label, class_names
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
    options = _Options(size, on_error, threads, 3)
    slices, parts = _opened(
        source, split, Columns(image or "image", label or "label"), class_names, options
    )
    batches = _decoded(slices, parts, options, batch_size)
    return ((of.images, of.labels) for of in batches if len(of.labels))


class _Batch(NamedTuple):
    """Decoded rows, and file, row and cause of those that were rejected."""

    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    rejected: list[tuple[str, int, str]]


def _decoded(
    slices: Slices,
    parts: Sequence[Part],
    options: _Options,
    batch_size: int | None,
    *,
    new: Callable[[tuple[int, ...]], np.ndarray] = _in_memory,
) -> Iterator[_Batch]:
    """Yield batches of up to `batch_size` rows.

    Without it, the images are consecutive views into one array of all slices, made by `new`.
    """
    threads, size = options.threads or os.cpu_count() or 1, options.size
    total, shape, whole, kept, asked = sum(map(len, parts)), size, None, 0, 0
    stored = sum(part.size for part in parts)
    batches = _rows(slices, parts, batch_size or _AT_A_TIME * threads)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)  # Reads on while the others decode.
            rows, (values, causes) = batch
            views = _loaded(rows.items, pool)
            if size is not None:  # Every picture may be as large as it likes.
                asked += declared_pixels(views)
            elif shape is None and (shape := first_shape(views)) is not None:
                asked = total * shape[0] * shape[1]
            if stored:
                check_room(parts[0].place, stored, total, asked)
            if batch_size is None and whole is None and shape is not None:
                whole = new((total, *shape))
            n = len(views)
            out = np.empty((n, *(shape or (0, 0))), np.uint8) if whole is None else whole[kept:][:n]
            causes |= decode_into(out, views, size, pool, threads)
            mixed = [i for i, cause in causes.items() if cause.startswith("size")]
            for i in mixed or (sorted(causes) if options.on_error == "raise" else []):
                what = "pass size=(h, w)" if mixed else remedy(causes[i])
                raise DataError(f"{rows.told(i)}: {causes[i]}; {what}")
            keep = [i for i in range(n) if i not in causes]
            if causes:
                out[: len(keep)] = out[keep]
            kept += len(keep)
            bad = [(*rows.place(i), causes[i]) for i in sorted(causes)]
            yield _Batch(out[: len(keep)], values[keep], rows.splits[keep], bad)
    if not kept:
        cause = f"the last: {bad[-1][2]}" if total else "the files are empty"
        raise DataError(f"{parts[-1].place}: no usable row among {total}; {cause}")
    if kept < total:
        message = f"{total - kept} of {total} rows rejected"
        warnings.warn(message, UserWarning, stacklevel=options.level)


def _rows(
    slices: Slices, parts: Sequence[Part], size: int
) -> Iterator[tuple[Rows, tuple[np.ndarray, dict[int, str]]]]:
    """Yield rows with their labels and, by row, what is wrong with these."""
    for part in parts:
        meaning = slices.meaning(part)
        for rows in part.rows(size):
            yield rows, meaning.check(rows.labels)


def _loaded(items: Sequence[Item], pool: ThreadPoolExecutor) -> list[np.ndarray | str | None]:
    """Read what stands in files of its own; the other items are as they are."""
    if not any(isinstance(item, Path) for item in items):
        return list(items)  # type: ignore[arg-type]
    return list(pool.map(load, items))
