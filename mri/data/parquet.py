"""The parquet container: which files there are, and their rows as Arrow batches."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mri.data.decode import DataError

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

_LONG = 1 << 20

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


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open `file`, or raise DataError saying why it is not parquet."""
    try:
        about = pq.read_metadata(file)
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        sizes = [g.column(i).total_compressed_size for g in groups for i in range(g.num_columns)]
        longest, whole = max(sizes, default=0), file.stat().st_size
        if longest > whole:
            raise OSError(f"a column of {longest} bytes in a file of {whole}")
        return pq.ParquetFile(
            file,
            metadata=about,
            # The default would hold all row groups in memory at once.
            pre_buffer=False,
            # Page by page a long column takes less, but each page as much as its header declares.
            buffer_size=1 << 16 if longest > _LONG else 0,
            page_checksum_verification=True,
        )
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {REMEDY}") from None
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error}); fetch it again") from error


def arrow_batches(
    file: Path, rows: int, columns: Sequence[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (number of the first row, up to `rows` rows of the columns) of a file."""
    start = 0
    try:
        with open_parquet(file) as opened:
            for batch in opened.iter_batches(rows, columns=list(columns), use_threads=False):
                yield start, batch
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}, at or after row {start}: damaged parquet data ({error}); fetch it again"
        ) from error


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
