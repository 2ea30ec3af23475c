"""The formats that slices come in: each is one function from a file, folder or table to `Part`s."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mri.data.decode import DataError
from mri.data.footer import MAX_BATCH
from mri.data.labels import is_label_type, plain_labels
from mri.data.parquet import (
    AGAIN,
    MAX_CLASSES,
    MAX_NAME,
    PHANTOM_KEY,
    REMEDY,
    arrow_batches,
    names_split,
    no_nulls,
    open_parquet,
)
from mri.data.parts import (
    LFS_REMEDY,
    Item,
    Part,
    Rows,
    digest,
    file_stamp,
    is_image_type,
    is_pointer,
    item_of,
    items_of,
    only_paths,
    split_of,
)

_MANY = 1 << 16


class Columns(NamedTuple):
    """Names of the columns that hold slices and labels; None is the usual name."""

    image: str | None = None
    label: str | None = None

    def names(self) -> tuple[str, str]:
        """Return both names."""
        return self.image or "image", self.label or "label"


def check_schema(
    place: object, schema: pa.Schema, image: str, label: str
) -> tuple[tuple[str, ...] | None, bool]:
    """Return (class names, synthetic) of a table, after a check of its two columns.

    Parameters
    ----------
    place : object
        Of messages.
    schema : pyarrow.Schema
    image, label : str
        Names of the columns.

    Raises
    ------
    DataError
        If a column is missing, stands twice or is of a wrong type, or the metadata are damaged.
    """
    if any(schema.names.count(name) != 1 for name in (image, label)):
        raise DataError(
            f"{place}: columns {schema.names}, expected one {image!r} and one {label!r}; name "
            "them by image= and label="
        )
    of, classes = schema.field(image).type, schema.field(label).type
    if not is_image_type(of):
        raise DataError(
            f"{place}: column {image!r} is {of}, expected struct<bytes: binary, path: string> "
            "or binary; write the encoded JPEG or PNG bytes there"
        )
    if not is_label_type(classes):
        raise DataError(
            f"{place}: column {label!r} is {classes}, expected an integer class index or a name"
        )
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", "{}")).get("info", {})
        names = features.get("features", {}).get(label, {}).get("names") or None
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{place}: unreadable 'huggingface' metadata ({error})") from error
    if names is None:
        return None, PHANTOM_KEY in metadata
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{place}: class names {names!r:.200} in its metadata, expected a list of names"
        )
    longest = max(map(len, names), default=0)
    if len(names) > MAX_CLASSES or longest > MAX_NAME or len(set(names)) < len(names):
        raise DataError(
            f"{place}: {len(names)} class names of up to {longest} characters in its metadata, "
            f"expected at most {MAX_CLASSES} different ones of {MAX_NAME}"
        )
    return tuple(names), PHANTOM_KEY in metadata


def from_parquet(file: Path, columns: Columns) -> list[Part]:
    """Read one parquet file, one part for each value of a column `split` where there is one."""
    image, label = columns.names()
    if file.is_file() and is_pointer(file):
        raise DataError(f"{file}: {LFS_REMEDY}")
    with open_parquet(file) as (opened, _):
        schema = opened.schema_arrow
        names, synthetic = check_schema(file, schema, image, label)
        # Paths are read only where bytes may be missing.
        whole = no_nulls(opened, f"{image}.bytes")
    wanted, homes = [f"{image}.bytes" if whole else image, label], [file.parent, Path()]
    room = MAX_BATCH + 4 * file.stat().st_size

    def same(found: pa.Schema) -> None:
        if check_schema(file, found, image, label) != (names, synthetic):
            raise DataError(f"{file}: was changed while it was read; read it again")

    def read(size: int) -> Iterator[Rows]:
        items: list[Item] = []
        values: list[pa.Array] = []
        start = 0
        for batch in arrow_batches(file, size, wanted, same):
            taken = 0
            while taken < batch.num_rows:
                some = batch.slice(taken, size - len(items))
                taken += some.num_rows
                items += items_of(some.column(image), homes)
                values.append(plain_labels(some.column(label)))
                if len(items) == size:
                    yield _rows(file, start, items, values)
                    start, items, values = start + size, [], []
            if sum(of.nbytes for of in items if isinstance(of, np.ndarray)) > room:
                raise DataError(
                    f"{file}, at or after row {start}: damaged parquet data ({len(items)} rows "
                    f"take more than {room} bytes; read fewer at a time); {AGAIN}"
                )
            if start + len(items) > len(labels):
                raise DataError(f"{file}: was changed while it was read; read it again")
        if items:
            yield _rows(file, start, items, values)

    labels = _column(file, label)
    if not whole:
        only_paths(file, next((rows.items for rows in read(64)), []))
    split = file_split(file)
    part = Part(
        str(file), labels, read, split, names, synthetic,
        stamp=lambda: f"{file_stamp(file)} {wanted}", size=file.stat().st_size,
    )  # fmt: skip
    if split is None and _splits_rows(schema):
        return by_column(part, _column(file, "split"))
    return [part]


def _rows(file: Path, start: int, items: list[Item], labels: list[pa.Array]) -> Rows:
    numbers = np.arange(start, start + len(items))
    return Rows(str(file), numbers, items, pa.concat_arrays(labels))


def _column(file: Path, name: str) -> pa.ChunkedArray:
    """Return one column of labels of a parquet file."""
    batches = [plain_labels(of.column(0)) for of in arrow_batches(file, _MANY, [name])]
    return pa.chunked_array(batches, batches[0].type if batches else pa.int64())


def _splits_rows(schema: pa.Schema) -> bool:
    return "split" in schema.names and is_label_type(schema.field("split").type)


def by_column(part: Part, splits: pa.ChunkedArray) -> list[Part]:
    """Divide a part by the values of its column `split`.

    Raises
    ------
    DataError
        If a value is null or no usual name of a split: such rows would be in no part.
    """
    values = plain_labels(splits).to_pylist()
    told = np.array([split_of(value) or "" for value in values], object)
    for i in np.flatnonzero(told == "")[:1]:
        raise DataError(
            f"{part.place}, row {i}: column 'split' is {values[i]!r}, expected train, test or "
            "validation; drop the column if it means something else"
        )
    return [replace(part, split=split, kept=told == split) for split in dict.fromkeys(told)]


def from_table(
    place: str, table: pa.Table, columns: Columns, stamp: Callable[[], str]
) -> list[Part]:
    """Read an Arrow table."""
    image, label = columns.names()
    names, synthetic = check_schema(place, table.schema, image, label)
    homes = [Path(place).parent if os.sep in place else Path(), Path()]

    def read(size: int) -> Iterator[Rows]:
        start = 0
        for batch in table.select([image, label]).to_batches(size):
            numbers = np.arange(start, start + batch.num_rows)
            yield Rows(place, numbers, items_of(batch.column(0), homes), batch.column(1))
            start += batch.num_rows

    only_paths(place, next((rows.items for rows in read(64)), []))
    part = Part(place, table[label], read, None, names, synthetic, stamp=stamp)
    return by_column(part, table["split"]) if _splits_rows(table.schema) else [part]


def from_saved(folder: Path, columns: Columns) -> list[Part]:
    """Read what `save_to_disk` of Hugging Face `datasets` wrote; that package is not needed."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        return [
            _with_split(part, str(split))
            for split in splits
            for part in from_saved(folder / str(split), columns)
        ]
    files = [folder / str(of.get("filename")) for of in _json(folder / "state.json")["_data_files"]]
    about = json.dumps({"info": _json(folder / "dataset_info.json")})
    tables = [_arrow_table(file) for file in files]
    if not tables:
        raise DataError(f"{folder}: its state.json names no data files; save it again")
    # The names in the files are those of the time they were written: dataset_info.json is newer.
    table = pa.concat_tables(tables)
    metadata = {**(table.schema.metadata or {}), b"huggingface": about.encode()}
    table = table.replace_schema_metadata(metadata)
    return from_table(str(folder), table, columns, lambda: " ".join(map(file_stamp, files)))


def from_arrow(file: Path, columns: Columns) -> list[Part]:
    """Read one Arrow file or stream."""
    return from_table(str(file), _arrow_table(file), columns, lambda: file_stamp(file))


def _arrow_table(file: Path) -> pa.Table:
    if file.is_file() and is_pointer(file):
        raise DataError(f"{file}: {LFS_REMEDY}")
    try:
        source = pa.memory_map(str(file))
        with suppress(pa.ArrowInvalid):
            return pa.ipc.open_stream(source).read_all()
        source.seek(0)
        return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Arrow file ({error}); save it again") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error}); save the data set again") from error


def _with_split(part: Part, split: str) -> Part:
    return replace(part, split=part.split or split_of(split) or split)


def from_splits(of: Mapping[str, Any], opened: Callable[[Any], list[Part]]) -> list[Part]:
    """Read a mapping from split to data set, as `DatasetDict` is one."""
    return [_with_split(part, str(split)) for split in of for part in opened(of[split])]


def from_dataset(dataset: Any, columns: Columns) -> list[Part]:
    """Read a `datasets.Dataset`, known by its methods: the package is not imported for it."""
    if not hasattr(dataset, "__len__"):
        raise DataError("a streaming data set has no rows to count; load it without streaming=True")
    image, label = columns.names()
    place = f"the data set ({len(dataset)} rows)"
    missing = {image, label}.difference(dataset.column_names)
    if missing:
        raise DataError(
            f"{place}: columns {dataset.column_names}, expected one {image!r} and one {label!r}; "
            "name them by image= and label="
        )
    arrow = dataset.with_format("arrow")
    metadata = {b"huggingface": json.dumps({"info": {"features": _features(dataset, label)}})}
    names, synthetic = check_schema(
        place, arrow[:1].replace_schema_metadata(metadata).schema, image, label
    )
    labels = dataset.select_columns([label]).with_format("arrow")[:][label]

    def read(size: int) -> Iterator[Rows]:
        for start in range(0, len(dataset), size):
            table = arrow[start : start + size].select([image, label]).combine_chunks()
            (batch,) = table.to_batches() or [None]
            if batch is not None:
                numbers = np.arange(start, start + batch.num_rows)
                yield Rows(place, numbers, items_of(batch.column(0), [Path()]), batch.column(1))

    only_paths(place, next((rows.items for rows in read(64)), []))
    # The package keeps one of its own, of the data and all that was done to them.
    known = getattr(dataset, "_fingerprint", None)
    stamp = partial(str, known) if known else lambda: digest(*arrow[:][image].to_pylist())
    part = Part(place, labels, read, None, names, synthetic, stamp=stamp)
    if "split" in dataset.column_names:
        splits = dataset.select_columns(["split"]).with_format("arrow")[:]["split"]
        return by_column(part, splits) if is_label_type(splits.type) else [part]
    return [part]


def _features(dataset: Any, label: str) -> dict[str, Any]:
    names = getattr(dataset.features[label], "names", None)
    return {label: {"names": list(names)}} if names else {}


def from_frame(
    frame: pd.DataFrame, columns: Columns, place: str = "the table", home: Path | None = None
) -> list[Part]:
    """Read a pandas table of bytes, pixels, pictures or paths; paths are relative to `home`."""
    image, label = columns.names()
    if any(list(frame.columns).count(name) != 1 for name in (image, label)):
        raise DataError(
            f"{place}: columns {list(frame.columns)}, expected one {image!r} and one {label!r}; "
            "name them by image= and label="
        )
    homes = [home or Path(), Path()]
    labels = _series(place, label, frame[label])
    cells = frame[image].array

    def read(size: int) -> Iterator[Rows]:
        for start in range(0, len(frame), size):
            numbers = np.arange(start, min(start + size, len(frame)))
            items: list[Item] = [item_of(cells[i], homes) for i in numbers]
            yield Rows(place, numbers, items, labels.slice(start, len(items)))

    only_paths(place, next((rows.items for rows in read(64)), []))
    stamp = partial(_frame_stamp, frame[[image, label]])
    part = Part(place, pa.chunked_array([labels]), read, stamp=stamp)
    if "split" in frame.columns:
        return by_column(part, pa.chunked_array([_series(place, "split", frame["split"])]))
    return [part]


def _series(place: str, name: str, series: pd.Series) -> pa.Array:
    """Return a column as integers or text; whole numbers that gaps made floats are integers."""
    if series.dtype.kind == "f":
        known = series.dropna()
        if (known == np.rint(known)).all():
            series = series.astype("Int64")
    try:
        found = pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{place}: column {name!r} mixes types ({error})") from error
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    if not is_label_type(found.type):
        raise DataError(
            f"{place}: column {name!r} is {found.type}, expected an integer class index or a name"
        )
    return plain_labels(found)


def _frame_stamp(frame: pd.DataFrame) -> str:
    cells = (np.asarray(v) if hasattr(v, "shape") else v for of in frame.items() for v in of[1])
    return digest(*cells)


def from_csv(file: Path, columns: Columns) -> list[Part]:
    """Read a CSV or TSV file of paths, of bytes as text, or of arrays as JSON."""
    # Only an empty cell is missing: "None" and "NA" may be the names of classes.
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}
    try:
        frame = pd.read_csv(file, sep="\t" if file.suffix.lower() == ".tsv" else ",", **options)
        if len(frame.columns) == 1 and ";" in str(frame.columns[0]):
            frame = pd.read_csv(file, sep=";", **options)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {REMEDY}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not a readable CSV file ({error})") from error
    parts = from_frame(frame, columns, str(file), file.parent)
    return [_with_split(p, s) if (s := file_split(file)) else p for p in parts]


def file_split(file: Path) -> str | None:
    """Return the split that a file's name begins with, None where it is none."""
    splits = ("train", "test", "validation", "valid", "val")
    return split_of(next((split for split in splits if names_split(file, split)), None))
