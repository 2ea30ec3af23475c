"""The formats that slices come in: each is one function from a file, folder or table to `Part`s.

A new format is one function here. `READERS`, at the end, lists those of files by their ending.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mri.data.decode import DataError
from mri.data.footer import MAX_BATCH
from mri.data.labels import is_label_type, plain_labels, wrong_labels
from mri.data.parquet import (
    AGAIN,
    MAX_CLASSES,
    MAX_NAME,
    PHANTOM_KEY,
    REMEDY,
    arrow_batches,
    no_nulls,
    open_parquet,
)
from mri.data.parts import (
    Item,
    Part,
    Rows,
    begun_split,
    digest,
    file_stamp,
    is_image_type,
    item_of,
    items_of,
    one_split,
    only_paths,
    refuse_pointer,
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
        raise _wrong_columns(place, schema.names, image, label)
    of, classes = schema.field(image).type, schema.field(label).type
    if not is_image_type(of):
        raise DataError(
            f"{place}: column {image!r} is {of}, expected struct<bytes: binary, path: string> "
            "or binary; write the encoded JPEG or PNG bytes there"
        )
    if not is_label_type(classes):
        raise wrong_labels(place, label, classes)
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
    if len(names) > MAX_CLASSES or longest > MAX_NAME:
        raise DataError(
            f"{place}: {len(names)} class names of up to {longest} characters in its metadata, "
            f"expected at most {MAX_CLASSES} of {MAX_NAME}"
        )
    return tuple(names), PHANTOM_KEY in metadata


def _wrong_columns(place: object, found: list[str], image: str, label: str) -> DataError:
    return DataError(
        f"{place}: columns {found}, expected one {image!r} and one {label!r}; name them by image= "
        "and label="
    )


def from_parquet(file: Path, columns: Columns) -> list[Part]:
    """Read one parquet file."""
    image, label = columns.names()
    with open_parquet(file) as opened:
        schema = opened.file.schema_arrow
        names, synthetic = check_schema(file, schema, image, label)
        # Paths are read only where bytes may be missing.
        whole = no_nulls(opened.groups, f"{image}.bytes")
    wanted, homes = [f"{image}.bytes" if whole else image, label], [file.parent, Path()]
    size = file.stat().st_size
    changed = DataError(f"{file}: was changed while it was read; read it again")

    def same(found: pa.Schema) -> None:
        if check_schema(file, found, image, label) != (names, synthetic):
            raise changed

    def read(most: int) -> Iterator[Rows]:
        items: list[Item] = []
        values: list[pa.Array] = []
        start = 0
        for batch in arrow_batches(file, most, wanted, same):
            taken = 0
            while taken < batch.num_rows:
                some = batch.slice(taken, most - len(items))
                taken += some.num_rows
                items += items_of(some.column(image), homes)
                values.append(plain_labels(file, some.column(label)))
                if start + len(items) > len(labels):
                    raise changed
                if len(items) == most:
                    yield _rows(file, start, items, values)
                    start, items, values = start + most, [], []
            room = MAX_BATCH + 4 * size
            if sum(of.nbytes for of in items if isinstance(of, np.ndarray)) > room:
                raise DataError(
                    f"{file}, at or after row {start}: damaged parquet data ({len(items)} rows "
                    f"take more than {room} bytes; read fewer at a time); {AGAIN}"
                )
        if items:
            yield _rows(file, start, items, values)

    labels = _column(file, label)
    if not whole:
        only_paths(file, next((rows.items for rows in read(64)), []))
    splits = one_split(begun_split(file.name), len(labels))
    if "split" in schema.names and not any(splits):
        splits = _splits(file, _column(file, "split"))
    stamp = partial("{} {}".format, file_stamp(file), wanted)
    return [Part(str(file), labels, read, splits, names, synthetic, stamp=stamp, size=size)]


def _rows(file: Path, start: int, items: list[Item], labels: list[pa.Array]) -> Rows:
    numbers = np.arange(start, start + len(items))
    return Rows(str(file), numbers, items, pa.concat_arrays(labels))


def _column(file: Path, name: str) -> pa.Array:
    """Return one column of a parquet file, as plain labels."""
    batches = [plain_labels(file, of.column(0)) for of in arrow_batches(file, _MANY, [name])]
    return pa.concat_arrays(batches) if batches else pa.array([], pa.int64())


def _splits(place: object, column: pa.Array) -> np.ndarray:
    """Return the splits that a column `split` tells, str (n,).

    Raises
    ------
    DataError
        If a value is null or no usual name of a split: such rows would be in no part.
    """
    if not is_label_type(column.type):
        return one_split(None, len(column))
    values = plain_labels(place, column).to_pylist()
    told = np.array([split_of(value) or "" for value in values], object)
    for i in np.flatnonzero(told == "")[:1]:
        raise DataError(
            f"{place}, row {i}: column 'split' is {values[i]!r}, expected train, test or "
            "validation; drop the column if it means something else"
        )
    return told


def _table_part(
    place: str,
    labels: pa.Array | pa.ChunkedArray,
    cells: Callable[[int, int], list[Item]],
    splits: pa.Array | pa.ChunkedArray | None,
    **about: Any,
) -> list[Part]:
    """Return a table as a part.

    Parameters
    ----------
    place : str
        For messages.
    labels : pyarrow.Array or ChunkedArray
    cells : callable
        From the first row and that behind the last to the items between.
    splits : pyarrow.Array or ChunkedArray, optional
        The column `split`.
    **about
        `names`, `synthetic` and `stamp` of `Part`.
    """
    labels = plain_labels(place, labels)

    def read(size: int) -> Iterator[Rows]:
        for start in range(0, len(labels), size):
            stop = min(start + size, len(labels))
            numbers = np.arange(start, stop)
            yield Rows(place, numbers, cells(start, stop), labels.slice(start, stop - start))

    only_paths(place, cells(0, min(64, len(labels))))
    told = one_split(None, len(labels)) if splits is None else _splits(place, splits)
    return [Part(place, labels, read, told, **about)]


def from_table(
    place: str, table: pa.Table, columns: Columns, stamp: Callable[[], str]
) -> list[Part]:
    """Read an Arrow table."""
    image, label = columns.names()
    names, synthetic = check_schema(place, table.schema, image, label)
    homes = [Path(place).parent if os.sep in place else Path(), Path()]

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(table[image].slice(start, stop - start).combine_chunks(), homes)

    splits = table["split"] if "split" in table.column_names else None
    about = {"names": names, "synthetic": synthetic, "stamp": stamp}
    return _table_part(place, table[label], cells, splits, **about)


def from_saved(folder: Path, columns: Columns) -> list[Part]:
    """Read what `save_to_disk` of Hugging Face `datasets` wrote; that package is not needed."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        below = {str(split): folder / str(split) for split in splits}
        return from_splits(below, partial(from_saved, columns=columns))
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
    refuse_pointer(file)
    try:
        source = pa.memory_map(str(file))
        with suppress(pa.ArrowInvalid):
            return pa.ipc.open_stream(source).read_all()
        source.seek(0)
        return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Arrow file ({error}); save it again") from error


def _json(file: Path) -> dict[str, Any]:
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error}); save the data set again") from error


def from_splits(of: Mapping[str, Any], opened: Callable[[Any], list[Part]]) -> list[Part]:
    """Read a mapping from split to data set, as `DatasetDict` is one: what it says, is so."""
    return [part.as_split(split_of(key) or str(key)) for key in of for part in opened(of[key])]


def from_dataset(dataset: Any, columns: Columns) -> list[Part]:
    """Read a `datasets.Dataset`, known by its methods: the package is not imported for it."""
    if not hasattr(dataset, "__len__"):
        raise DataError("a streaming data set has no rows to count; load it without streaming=True")
    image, label = columns.names()
    place = f"the data set ({len(dataset)} rows)"
    arrow = dataset.with_format("arrow")
    classes = getattr(dataset.features.get(label), "names", None)
    features = {label: {"names": list(classes)}} if classes else {}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}})}
    schema = arrow[:1].replace_schema_metadata(metadata).schema
    names, synthetic = check_schema(place, schema, image, label)

    def column(name: str) -> pa.ChunkedArray:
        return dataset.select_columns([name]).with_format("arrow")[:][name]

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(arrow[start:stop][image].combine_chunks(), [Path()])

    # The package keeps one of its own, of the data and all that was done to them.
    known = getattr(dataset, "_fingerprint", None)
    stamp = partial(str, known) if known else lambda: digest(*arrow[:][image].to_pylist())
    splits = column("split") if "split" in dataset.column_names else None
    about = {"names": names, "synthetic": synthetic, "stamp": stamp}
    return _table_part(place, column(label), cells, splits, **about)


def from_frame(
    frame: pd.DataFrame, columns: Columns, place: str = "the table", home: Path | None = None
) -> list[Part]:
    """Read a pandas table of bytes, pixels, pictures or paths; paths are relative to `home`."""
    image, label = columns.names()
    if any(list(frame.columns).count(name) != 1 for name in (image, label)):
        raise _wrong_columns(place, list(frame.columns), image, label)
    values = frame[image].array

    def cells(start: int, stop: int) -> list[Item]:
        return [item_of(values[i], [home or Path(), Path()]) for i in range(start, stop)]

    splits = _series(place, frame["split"]) if "split" in frame.columns else None
    stamp = partial(_frame_stamp, frame[[image, label]])
    return _table_part(place, _series(place, frame[label]), cells, splits, stamp=stamp)


def _series(place: str, series: pd.Series) -> pa.Array:
    """Return a column of labels or splits."""
    try:
        found = pa.array(series, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{place}: column {series.name!r} mixes types ({error})") from error
    if not is_label_type(found.type):
        raise wrong_labels(place, series.name, found.type)
    return plain_labels(place, found)


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
    return [part.as_split(begun_split(file.name)) for part in parts]


Reader = Callable[[Path, Columns], list[Part]]
READERS: dict[str, Reader] = {
    ".parquet": from_parquet,
    ".pq": from_parquet,
    ".csv": from_csv,
    ".tsv": from_csv,
    ".arrow": from_arrow,
    ".feather": from_arrow,
}
"""How to read a file, by its ending in lower case."""
