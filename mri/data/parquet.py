"""The parquet container: a file checked before Arrow reads it, and its rows as Arrow batches."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mri.data.decode import DataError
from mri.data.footer import MAX_BATCH, FooterError, Group, check_pages, read_groups

HUB_REPOSITORY = "Falah/Alzheimer_MRI"
HUB_REVISION = "daac24f9597236b45837d82f7eb9c9ad1f8c60c8"
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
_GIVE_BACK = 2**22  # Bytes.
# What a table may ask for, by its size: rows that repeat a value or are null cost next to nothing.
_MAX_ROWS, _LEAST_ROW = 20_000, 16
_ROOM, _MOST_A_BYTE = 2**28, 1000


class Opened(NamedTuple):
    """A parquet file that is held open, its row groups, and how many rows to take at a time."""

    file: pq.ParquetFile
    groups: list[Group]
    rows: int


@contextmanager
def open_parquet(file: Path, columns: Sequence[str] = ()) -> Iterator[Opened]:
    """Open a file once; check its footer, and the pages of `columns` if these are to be read.

    DataError if it is not parquet, or declares what it cannot hold.
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
            yield Opened(opened, groups, at_a_time)
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
    """Raise DataError if the pixels of `rows` pictures are more than files of `size` can hold."""
    if pixels > _ROOM and pixels > _MOST_A_BYTE * size:
        raise DataError(
            f"{place}: {rows} rows unpack to {pixels / 2**20:,.0f} MiB of pixels, more than "
            f"{_MOST_A_BYTE} for each byte of the files; make sure that they are what they say"
        )


def arrow_batches(
    file: Path, rows: int, columns: Sequence[str], same: Callable[[pa.Schema], object] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some columns, up to `rows` at a time, fewer where values are long.

    `same` gets the schema, and raises if it is not the expected one.
    """
    start, held, pool = 0, 0, pa.default_memory_pool()
    with open_parquet(file, columns) as opened:
        if same is not None:
            same(opened.file.schema_arrow)
        size = max(1, min(rows, opened.rows))
        try:
            for batch in opened.file.iter_batches(size, columns=list(columns), use_threads=False):
                if batch.num_columns != len(columns):  # Two places of the footer name a column.
                    raise FooterError(f"columns {batch.schema.names}, expected {list(columns)}")
                yield batch
                start, held = start + batch.num_rows, held + batch.nbytes
                # Arrow keeps what it read of a page for the next one. To give it back takes as
                # long as decoding a hundred slices.
                if held >= _GIVE_BACK:
                    pool.release_unused()
                    held = 0
        except (pa.ArrowException, OSError, FooterError) as error:
            raise DataError(
                f"{file}, at or after row {start}: damaged parquet data ({error}); {AGAIN}"
            ) from error
        declared = sum(group.rows for group in opened.groups)
    if start != declared:
        raise DataError(f"{file}: declares {declared} rows, has {start}; {AGAIN}")


def no_nulls(groups: Sequence[Group], column: str) -> bool:
    """Whether the statistics of a file say that a column, in dotted form, has no nulls.

    They are read here and not by Arrow, which ends the process if they contradict the schema.
    """
    nulls = [chunk.nulls for group in groups for chunk in group.chunks if chunk.path == column]
    return len(nulls) == len(groups) > 0 and not any(nulls)
