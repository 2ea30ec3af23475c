"""Read MRI slices of any source into one array, or batch by batch."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from mri._arguments import require
from mri.data.decode import DataError, check_size, declared_pixels, decode_into, first_shape
from mri.data.formats import Columns
from mri.data.glance import Glance
from mri.data.labels import Names, places_of, remedy
from mri.data.parquet import check_room
from mri.data.parts import Rows, load
from mri.data.sources import Slices, Source, Split, data_folder, describe

# Rows for each thread, so many that threads seldom wait; files, which may be long, are fewer.
_AT_A_TIME, _FILES = 896, 128

T = TypeVar("T")
New = Callable[[tuple[int, ...]], np.ndarray]
"""From a shape to a new array of uint8."""


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

        Memory-mapped slices stay in files. Class names are compared without case, spaces, '_' and
        '-'; both get the longer list of names. ValueError if sizes, class names or origin differ.
        """
        if self.synthetic != other.synthetic:
            raise ValueError(f"synthetic differ: {self.synthetic}, {other.synthetic}")
        if self.images.shape[1:] != other.images.shape[1:]:
            raise ValueError(f"sizes differ: {self.images.shape[1:]}, {other.images.shape[1:]}")
        names = max(self.class_names, other.class_names, key=len)
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

        `rejected` goes with the part that comes first. ValueError if there are none.
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

        ValueError if one of this set's names is not among them.
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
        In the order of the source: files by name, rows as they stand.

    Raises
    ------
    DataError
        If there are no slices, columns or sizes are wrong, the meaning of the labels cannot be
        told, no row is usable or, with ``on_error="raise"``, one is bad.

    Warns
    -----
    UserWarning
        If something had to be assumed, rows were rejected, or slices show next to nothing.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     read_scans(write_phantom(folder, subjects=8, slices=5), split="train")
    Scans(32 synthetic phantom slices of 128 × 128, 0 rows rejected)
    """
    columns = Columns(image or "image", label or "label")
    reading = _Reading(source, split, columns, class_names, size, on_error, threads)
    if cache is None:
        scans, told = reading.whole(_in_memory)
    else:
        from mri.data.cache import cached

        scans, told = cached(Path(cache), reading.stamp(), reading.whole)
    for said in told:
        warnings.warn(said, UserWarning, stacklevel=2)
    return scans


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
    images, labels : ndarray of uint8 (m, h, w), and of int64 (m,)

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     parquet = write_phantom(folder, subjects=8, slices=5)
    ...     [len(labels) for images, labels in iter_batches(parquet, batch_size=15)]
    [8, 15, 15, 2]
    """
    some = isinstance(batch_size, int | np.integer) and batch_size >= 1
    require(some, "batch_size must be an integer of at least 1.", batch_size=batch_size)
    columns = Columns(image or "image", label or "label")
    reading = _Reading(source, split, columns, class_names, size, on_error, threads)
    return _stream(reading, batch_size)


def _stream(reading: _Reading, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rejected = 0
    for batch in reading.batches(batch_size):
        rejected += len(batch.rejected)
        if len(batch.labels):
            yield batch.images, batch.labels
    for said in reading.told(rejected):
        warnings.warn(said, UserWarning, stacklevel=2)


class _Batch(NamedTuple):
    """Decoded rows, and file, row and cause of those that were rejected."""

    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    rejected: list[tuple[str, int, str]]


class _Decoded(NamedTuple):
    """Usable rows with their labels, contents and images; file, row and cause of the others."""

    rows: Rows
    values: np.ndarray
    views: list[np.ndarray | str | None]
    images: np.ndarray
    rejected: list[tuple[str, int, str]]


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items while a thread already makes the next one; keep none that was given away."""
    with ThreadPoolExecutor(1) as other:
        coming = other.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = other.submit(next, items, None)
            given = [item]
            del item
            yield given.pop()


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


@dataclass(eq=False)
class _Reading:
    """An opened source, and how to decode it; the fields are the arguments of `read_scans`."""

    source: Source
    split: Split
    columns: Columns
    class_names: Names | None
    size: tuple[int, int] | None
    on_error: str
    threads: int | None

    def __post_init__(self) -> None:
        check_size(self.size)
        known, threads = self.on_error in ("raise", "skip"), self.threads
        require(known, "on_error must be 'raise' or 'skip'.", on_error=self.on_error)
        some = threads is None or (isinstance(threads, int | np.integer) and threads >= 1)
        require(some, "threads must be an integer of at least 1.", threads=threads)
        self.workers, self.glance = threads or os.cpu_count() or 1, Glance()
        self.lost: set[int] = set()
        self.left: set[int] = set()
        told = data_folder()[0] if self.source is None else self.source
        if not isinstance(told, Slices):
            told = Slices(told, self.columns, class_names=self.class_names)
        self.slices = told
        self.parts = self.slices.select(self.split)
        self.total = sum(map(len, self.parts))
        if self.source is None:
            print(describe(self.slices.place, self.parts))
        self.slices.warn(self.parts, stacklevel=4)

    def stamp(self) -> str:
        """Return a text that changes with the data and with how they are read."""
        return f"{self.slices.stamp(self.parts)} {self.size} {self.on_error}"

    def told(self, rejected: int) -> Iterator[str]:
        """Yield how many rows were left out, if any, and what is doubtful about the others."""
        if rejected:
            names = [self.slices.class_names[label] for label in sorted(self.lost - self.left)]
            gone = f", no slice is left of {', '.join(names)}" if names else ""
            yield f"{rejected} of {self.total} rows rejected{gone}"
        yield from self.glance.told()

    def whole(self, new: New) -> tuple[Scans, list[str]]:
        """Decode all rows into one array that `new` makes; return what to warn of, too."""
        images, labels, splits, bad = zip(*self.batches(None, new), strict=True)
        rejected = pd.DataFrame(
            [row for rows in bad for row in rows], columns=["file", "row", "cause"]
        )
        # The batches are views that fill one array from its start, so it is their base.
        scans = Scans(
            images[-1].base[: sum(map(len, labels))],
            np.concatenate(labels),
            self.slices.class_names,
            rejected.astype({"row": np.int64}),
            self.parts[0].synthetic,
            np.concatenate(splits).astype(str),
        )
        return scans, [*self.told(len(rejected))]

    def batches(self, batch_size: int | None, new: New = _in_memory) -> Iterator[_Batch]:
        """Yield batches of up to `batch_size` rows.

        Without `batch_size`, the images are consecutive views of one array of all slices that
        `new` makes.
        """
        kept, held, bad = 0, 0, list[tuple[str, int, str]]()
        decoded = _one_ahead(self._decoded(batch_size, new))
        for rows, values, views, images, bad in decoded:
            self.left.update(np.unique(values).tolist())
            self.glance.look(images, rows.told, views)
            kept, held = kept + len(values), held + len(values)
            splits = rows.splits
            # Their bytes would stay in memory until the next rows are decoded. Arrow would keep the
            # room; to give it back takes as long as decoding a hundred slices.
            del rows, views
            if held >= self.workers * _AT_A_TIME:
                pa.default_memory_pool().release_unused()
                held = 0
            yield _Batch(images, values, splits, bad)
        if not kept:
            cause = f"the last: {bad[-1][2]}" if self.total else "the files are empty"
            raise DataError(f"{self.parts[-1].place}: no usable row among {self.total}; {cause}")

    def _decoded(self, batch_size: int | None, new: New) -> Iterator[_Decoded]:
        shape, whole, kept, asked = self.size, None, 0, 0
        stored = sum(part.size for part in self.parts)
        with ThreadPoolExecutor(self.workers) as pool:
            for rows, values, causes in _one_ahead(self._rows(batch_size)):
                on_disk = any(issubclass(kind, Path) for kind in set(map(type, rows.items)))
                views = list((pool.map if on_disk else map)(load, rows.items))
                if self.size is not None:  # Every picture may be as large as it likes.
                    asked += declared_pixels(views)
                elif shape is None and (shape := first_shape(views)) is not None:
                    asked = self.total * shape[0] * shape[1]
                if stored:
                    check_room(self.parts[0].place, stored, self.total, asked)
                n = len(views)
                if batch_size is None and shape is not None:
                    whole = new((self.total, *shape)) if whole is None else whole
                    out = whole[kept : kept + n]
                else:
                    out = _in_memory((n, *(shape or (0, 0))))
                failed = decode_into(out, views, self.size, pool, self.workers)
                self.lost |= {int(values[i]) for i in failed.keys() - causes.keys()}
                causes |= failed
                self._refuse(rows, causes)
                bad = [(*rows.place(i), causes[i]) for i in sorted(causes)]
                if causes:
                    keep = np.setdiff1d(np.arange(n), [*causes])
                    out[: len(keep)] = out[keep]
                    rows, values, views = rows.take(keep), values[keep], [views[i] for i in keep]
                kept += len(views)
                found = [_Decoded(rows, values, views, out[: len(views)], bad)]
                del rows, views  # Who takes them decides how long their bytes stay.
                yield found.pop()

    def _refuse(self, rows: Rows, causes: dict[int, str]) -> None:
        """Raise DataError for the first bad row, if bad rows are not to be left out."""
        mixed = [i for i, cause in causes.items() if cause.startswith("size")]
        for i in mixed or ([] if self.on_error == "skip" else sorted(causes)):
            what = "pass size=(h, w)" if mixed else remedy(causes[i])
            raise DataError(f"{rows.told(i)}: {causes[i]}; {what}")

    def _rows(self, size: int | None) -> Iterator[tuple[Rows, np.ndarray, dict[int, str]]]:
        """Yield rows with their labels and, by row, what is wrong with these."""
        for part in self.parts:
            meaning = self.slices.meaning(part)
            usual = self.workers * (_AT_A_TIME if part.files is None else _FILES)
            for rows in part.rows(size or usual):
                yield rows, *meaning.check(rows.labels)
