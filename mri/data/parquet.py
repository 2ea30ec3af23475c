"""The parquet container: which files there are, and their rows as Arrow batches."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mri.data.decode import DataError
from mri.data.footer import MAX_BATCH, FooterError, check_pages, read_groups

HUB_REPOSITORY = "Falah/Alzheimer_MRI"
HUB_REVISION = "daac24f"
HUB_FILES = (
    "train-00000-of-00001-c08a401c53fe5312.parquet",
    "test-00000-of-00001-44110b9df98c5585.parquet",
)
REMEDY = (
    f"Put {HUB_FILES[0]} and {HUB_FILES[1]} from https://huggingface.co/datasets/{HUB_REPOSITORY} "
    "(folder data) into data/ or the folder named by MRI_DATA, "
    "or run: python -m mri download"
)

AGAIN = "fetch it again"

CLASS_NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
"""Class names of the public set in label order: the index of a name is its label."""

_FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"},
}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
"""Arrow schema of the files, with the class names where Hugging Face `datasets` keeps them."""

PHANTOM_KEY = b"mri_phantom"
"""Schema metadata key that marks a file as synthetic."""

MAX_CLASSES, MAX_NAME = 1000, 200
"""Number of class names, and of characters of one."""

_LONG = 1 << 20
_GIVE_BACK = 1024  # rows
# What a table may ask for, by its size: rows that repeat a value or are null cost next to nothing.
_MAX_ROWS, _LEAST_ROW = 20_000, 16
_ROOM, _MOST_A_BYTE = 2**28, 1000

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def parquet_files(source: Source, *, split: str | None = None) -> list[Path]:
    """List the parquet files that `source` stands for, sorted by name.

    Parameters
    ----------
    source, split
        As in `read_scans`: ``split="train"`` finds ``train.parquet`` and the hub's
        ``train-00000-of-00001-….parquet``.

    Returns
    -------
    list of Path

    Raises
    ------
    DataError
        If there is no such file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     [path.name for path in parquet_files(write_phantom(folder, subjects=4), split="test")]
    ['test.parquet']
    """
    if not isinstance(source, str | os.PathLike):
        files = [Path(name) for name in source]
    elif Path(source).is_dir():
        files = sorted(Path(source).glob("[!.]*.[pP][aA][rR][qQ][uU][eE][tT]"))
    elif Path(source).exists():
        files = [Path(source)]
    else:
        files = [Path(name) for name in sorted(glob.glob(os.fspath(source)))]
    if split is not None:
        files = [file for file in files if names_split(file, split)]
    if not files:
        wanted = f" whose name begins with {split!r}" if split else ""
        raise DataError(f"{source}: no parquet file{wanted} found. {REMEDY}")
    return files


def names_split(file: Path, split: str) -> bool:
    """Whether a file's name begins with that of a split, as the hub names them.

    >>> names_split(Path("Train-0.parquet"), "train"), names_split(Path("testing.parquet"), "test")
    (True, False)
    """
    return bool(re.match(rf"{re.escape(split)}(?![a-z])", file.name, re.IGNORECASE))


@contextmanager
def open_parquet(file: Path, columns: Sequence[str] = ()) -> Iterator[tuple[pq.ParquetFile, int]]:
    """Open `file` once; give it and how many rows Arrow may take at a time, if `columns` are read.

    Raises
    ------
    DataError
        If it is not parquet, or declares what it cannot hold.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError("it is no regular file")
        with pa.OSFile(os.fspath(file)) as handle:
            groups = read_groups(handle)
            rows, whole = sum(group.rows for group in groups), handle.size()
            if rows > _MAX_ROWS + whole // _LEAST_ROW:
                raise FooterError(f"{rows} rows in {whole} bytes")
            longest = max((chunk.length for group in groups for chunk in group.chunks), default=0)
            handle.seek(0)
            opened = pq.ParquetFile(
                handle,
                # The default would hold all row groups in memory at once.
                pre_buffer=False,
                # A long column page by page takes less; its page headers are checked below.
                buffer_size=1 << 16 if longest > _LONG else 0,
                page_checksum_verification=True,
            )
            at_a_time = rows
            if columns:
                try:
                    longest_value = check_pages(handle, groups, _leaves(opened.schema, columns))
                except (FooterError, pa.ArrowException, OSError) as error:
                    raise DataError(f"{file}: damaged parquet data ({error}); {AGAIN}") from error
                at_a_time = max(1, MAX_BATCH // max(1, longest_value))
            yield opened, at_a_time
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {REMEDY}") from None
    except (FooterError, pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error}); {AGAIN}") from error


def _leaves(schema: pq.ParquetSchema, columns: Sequence[str]) -> dict[int, bool]:
    """Return the leaves of some columns with one value a row, and whether they are of bytes."""
    found = {}
    for i, leaf in ((i, schema.column(i)) for i in range(len(schema))):
        named = any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns)
        if named and leaf.max_repetition_level == 0:
            found[i] = leaf.physical_type == "BYTE_ARRAY"
    return found


def check_room(place: object, size: int, rows: int, pixels: int) -> None:
    """Raise DataError if the pixels of `rows` pictures are more than files of `size` can hold.

    A column repeats a value for next to nothing, so a small file can ask for all memory there is.
    """
    if pixels > _ROOM and pixels > _MOST_A_BYTE * size:
        raise DataError(
            f"{place}: {rows} rows unpack to {pixels / 2**20:,.0f} MiB of pixels, more than "
            f"{_MOST_A_BYTE} for each byte of the files; make sure that they are what they say"
        )


def arrow_batches(
    file: Path, rows: int, columns: Sequence[str], same: Callable[[pa.Schema], object] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some columns, up to `rows` at a time, fewer where values are long.

    `same` is called with the schema and raises if it is not that expected.
    """
    start, pool = 0, pa.default_memory_pool()
    with open_parquet(file, columns) as (opened, at_a_time):
        if same is not None:
            same(opened.schema_arrow)
        size = max(1, min(rows, at_a_time))
        try:
            for batch in opened.iter_batches(size, columns=list(columns), use_threads=False):
                yield batch
                start += batch.num_rows
                # What was read of a page is of no use any more, but kept for the next; to give it
                # back takes as long as decoding five slices.
                if start % _GIVE_BACK < batch.num_rows:
                    pool.release_unused()
        except (pa.ArrowException, OSError, FooterError) as error:
            raise DataError(
                f"{file}, at or after row {start}: damaged parquet data ({error}); {AGAIN}"
            ) from error
        declared = opened.metadata.num_rows
    if start != declared:
        raise DataError(f"{file}: declares {declared} rows, has {start}; {AGAIN}")


def no_nulls(opened: pq.ParquetFile, column: str) -> bool:
    """Whether the statistics of a file say that a column, in dotted form, has no nulls."""
    about = opened.metadata
    try:
        for group in (about.row_group(i) for i in range(about.num_row_groups)):
            chunks = [group.column(i) for i in range(group.num_columns)]
            found = [of.statistics for of in chunks if of.path_in_schema == column]
            if not all(of is not None and of.has_null_count and not of.null_count for of in found):
                return False
            if not found:
                return False
    except UnicodeError:  # A damaged name: reading the column will say so.
        return False
    return about.num_row_groups > 0
