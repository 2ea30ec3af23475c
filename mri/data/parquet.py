"""The parquet container: its schema, checked before a row is read, and its rows as buffer views."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mri.data.decode import DataError, column_views

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


def _open(file: Path) -> pq.ParquetFile:
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


def check_files(files: Sequence[Path]) -> tuple[tuple[str, ...], bool, int]:
    """Check the schema of every file; return (class names, synthetic, number of rows)."""
    found, rows = [], 0
    for file in files:
        with _open(file) as opened:
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
    except (ValueError, AttributeError) as error:
        raise DataError(f"{file}: unreadable 'huggingface' metadata ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: class names {names!r} in its metadata, expected a list of names")
    return tuple(names), PHANTOM_KEY in metadata


def arrow_batches(
    files: Sequence[Path], rows: int
) -> Iterator[tuple[Path, int, list[np.ndarray | None], pa.Array]]:
    """Yield (file, number of the first row, image bytes as views, labels)."""
    for file in files:
        start = 0
        try:
            with _open(file) as opened:
                nested = pa.types.is_struct(opened.schema_arrow.field("image").type)
                columns = ["image.bytes" if nested else "image", "label"]
                for batch in opened.iter_batches(rows, columns=columns, use_threads=False):
                    yield file, start, column_views(batch.column("image")), batch.column("label")
                    start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file}, at or after row {start}: damaged parquet data ({error}); fetch it again"
            ) from error


def check_labels(
    labels: pa.Array, class_names: tuple[str, ...]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the labels as int64, and row to cause for those that are null or outside."""
    values = labels.fill_null(0).to_numpy(zero_copy_only=False)
    outside = (values < 0) | (values >= len(class_names))
    causes = {
        int(i): f"label {values[i]} is outside the {len(class_names)} classes {class_names}"
        for i in np.flatnonzero(outside)
    }
    null = labels.is_null().to_numpy(zero_copy_only=False)
    causes |= {int(i): "the label is null" for i in np.flatnonzero(null)}
    return values.astype(np.int64), causes
