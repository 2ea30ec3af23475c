"""The parquet container: its schema, checked before a row is read, and its rows as buffer views."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mri.data.decode import DataError, column_views
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
        files = sorted(Path(source).glob("[!.]*.parquet"))
    elif Path(source).exists():
        files = [Path(source)]
    else:
        files = [Path(name) for name in sorted(glob.glob(os.fspath(source)))]
    if split is not None:
        files = [file for file in files if re.match(rf"{re.escape(split)}(?![a-z])", file.name)]
    if not files:
        wanted = f" whose name begins with {split!r}" if split else ""
        raise DataError(f"{source}: no parquet file{wanted} found. {REMEDY}")
    return files


def find_data(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder that holds a train and a test file, None where there is none.

    Parameters
    ----------
    folder : path, optional
        By default the environment variable ``MRI_DATA``, else ``data``.

    Raises
    ------
    DataError
        If one of the two is there without the other: phantoms in its stead would be a surprise.

    Examples
    --------
    >>> print(find_data("no such folder"))
    None
    """
    path = Path(folder if folder is not None else os.environ.get("MRI_DATA") or "data")
    found = {}
    for split in ("train", "test"):
        with suppress(DataError):
            found[split] = parquet_files(path, split=split)
    if len(found) == 1:
        (here,), (missing,) = found, {"train", "test"}.difference(found)
        name = found[here][0].name
        raise DataError(f"{path}: {name} is there, but no {missing} file beside it. {REMEDY}")
    return path if found else None


@contextmanager
def _open(file: Path, *, pages: bool = False) -> Iterator[tuple[pq.ParquetFile, int]]:
    """Open `file` once; give it and how many rows Arrow may take at a time, if `pages` are read.

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
            if pages:
                try:
                    longest_value = check_pages(handle, groups, _leaves(opened.schema))
                except (FooterError, pa.ArrowException, OSError) as error:
                    raise DataError(f"{file}: damaged parquet data ({error}); {AGAIN}") from error
                at_a_time = max(1, MAX_BATCH // max(1, longest_value))
            yield opened, at_a_time
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {REMEDY}") from None
    except (FooterError, pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error}); {AGAIN}") from error


def _leaves(schema: pq.ParquetSchema) -> dict[int, bool]:
    """Return the columns that are read, and whether they are of bytes."""
    paths = {i: schema.column(i).path for i in range(len(schema))}
    bytes_of = {"image": True, "image.bytes": True, "label": False}
    return {i: bytes_of[path] for i, path in paths.items() if path in bytes_of}


def check_files(files: Sequence[Path]) -> tuple[tuple[str, ...], bool, int]:
    """Check the schema of every file; return (class names, synthetic, number of rows)."""
    found, rows = [], 0
    for file in files:
        with _open(file) as (opened, _):
            found.append(_check_schema(file, opened.schema_arrow))
            rows += opened.metadata.num_rows
        if found[-1] != found[0]:
            raise DataError(
                f"{file}: class names and origin {found[-1]} differ from {found[0]} of "
                f"{files[0]}; read the files separately"
            )
    return *found[0], rows


def _check_schema(file: Path, schema: pa.Schema) -> tuple[tuple[str, ...], bool]:
    """Return (class names, synthetic)."""
    if any(schema.names.count(name) != 1 for name in ("image", "label")):
        raise DataError(f"{file}: columns {schema.names}, expected one 'image' and one 'label'")
    image, label = schema.field("image").type, schema.field("label").type
    kind = image
    if pa.types.is_struct(image):
        at = image.get_field_index("bytes")
        kind = image.field(at).type if at >= 0 else None
    elif pa.types.is_dictionary(image):
        kind = image.value_type
    if kind not in (pa.binary(), pa.large_binary(), pa.binary_view()):
        raise DataError(
            f"{file}: column 'image' is {image}, expected struct<bytes: binary, path: string> "
            "or binary; write the encoded JPEG or PNG bytes there"
        )
    if not pa.types.is_integer(label):
        raise DataError(f"{file}: column 'label' is {label}, expected an integer class index")
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", "{}")).get("info", {})
        names = features.get("features", {}).get("label", {}).get("names") or list(CLASS_NAMES)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: unreadable 'huggingface' metadata ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{file}: class names {names!r:.200} in its metadata, expected a list of names"
        )
    longest = max(map(len, names), default=0)
    if len(names) > MAX_CLASSES or longest > MAX_NAME or len(set(names)) < len(names):
        raise DataError(
            f"{file}: {len(names)} class names of up to {longest} characters in its metadata, "
            f"expected at most {MAX_CLASSES} different ones of {MAX_NAME}"
        )
    return tuple(names), PHANTOM_KEY in metadata


def check_room(files: Sequence[Path], rows: int, pixels: int) -> None:
    """Raise DataError if the pixels of `rows` pictures are more than the files can hold.

    A column repeats a value for next to nothing, so a small file can ask for all memory there is.
    """
    if pixels > _ROOM and pixels > _MOST_A_BYTE * sum(file.stat().st_size for file in files):
        raise DataError(
            f"{files[0]}: {rows} rows unpack to {pixels / 2**20:,.0f} MiB of pixels, more than "
            f"{_MOST_A_BYTE} for each byte of the files; make sure that they are what they say"
        )


def arrow_batches(
    files: Sequence[Path], rows: int, checked: tuple[tuple[str, ...], int] | None = None
) -> Iterator[tuple[Path, int, list[np.ndarray | None], pa.Array]]:
    """Yield (file, number of the first row, image bytes as views, labels).

    `checked` are class names and number of rows that `check_files` found.
    """
    left = checked[1] if checked else 0
    for file in files:
        start = 0
        with _open(file, pages=True) as (opened, at_a_time):
            names, _ = _check_schema(file, opened.schema_arrow)
            left -= opened.metadata.num_rows
            if checked and (names != checked[0] or left < 0):
                raise DataError(f"{file}: was changed while it was read; read it again")
            try:
                room = MAX_BATCH + 4 * file.stat().st_size
                for views, labels in _batches(opened, rows, min(rows, at_a_time), room):
                    yield file, start, views, labels
                    start += len(views)
            except (pa.ArrowException, OSError, FooterError) as error:
                raise DataError(
                    f"{file}, at or after row {start}: damaged parquet data ({error}); {AGAIN}"
                ) from error
            declared = opened.metadata.num_rows
        if start != declared:
            raise DataError(f"{file}: declares {declared} rows, has {start}; {AGAIN}")


def _batches(
    opened: pq.ParquetFile, rows: int, at_a_time: int, room: int
) -> Iterator[tuple[list[np.ndarray | None], pa.Array]]:
    """Yield views and labels of `rows` rows, of which Arrow takes `at_a_time`, in `room` bytes."""
    nested = pa.types.is_struct(opened.schema_arrow.field("image").type)
    columns = ["image.bytes" if nested else "image", "label"]
    views: list[np.ndarray | None] = []
    labels: list[pa.Array] = []
    for batch in opened.iter_batches(at_a_time, columns=columns, use_threads=False):
        taken = 0
        while taken < batch.num_rows:
            part = batch.slice(taken, rows - len(views))
            taken += part.num_rows
            views += column_views(part.column("image"))
            labels.append(part.column("label"))
            if len(views) == rows:
                yield views, pa.concat_arrays(labels)
                views, labels = [], []
        if sum(len(view) for view in views if view is not None) > room:
            raise FooterError(
                f"{len(views)} rows take more than {room} bytes; read fewer at a time"
            )
    if views:
        yield views, pa.concat_arrays(labels)


def check_labels(
    labels: pa.Array, class_names: tuple[str, ...]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the labels as int64, and row to cause for those that are null or outside."""
    values = labels.fill_null(0).to_numpy(zero_copy_only=False)
    outside = (values < 0) | (values >= len(class_names))
    causes = {
        int(i): f"label {values[i]} is outside the {len(class_names)} classes {class_names!s:.200}"
        for i in np.flatnonzero(outside)
    }
    null = labels.is_null().to_numpy(zero_copy_only=False)
    causes |= {int(i): "the label is null" for i in np.flatnonzero(null)}
    return values.astype(np.int64), causes
