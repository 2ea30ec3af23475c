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
    begun_split,
    digest,
    file_stamp,
    in_steps,
    is_image_type,
    item_of,
    items_of,
    one_split,
    refuse_only_paths,
    refuse_pointer,
    split_of,
)

_MANY = 1 << 16


class Columns(NamedTuple):
    """Names of the columns that hold slices and labels."""

    image: str = "image"
    label: str = "label"

    @classmethod
    def named(cls, image: str | None, label: str | None) -> Columns:
        """Return columns of these names; None is the usual one."""
        return cls(image or "image", label or "label")


def check_schema(
    place: object, schema: pa.Schema, columns: Columns
) -> tuple[tuple[str, ...] | None, bool]:
    """Return (class names, synthetic) of a table, after a check of its two columns.

    Raises
    ------
    DataError
        If a column is missing, stands twice or is of a wrong type, or the metadata are damaged.
    """
    image, label = columns
    _check_names(place, schema.names, columns)
    of, classes = schema.field(image).type, schema.field(label).type
    if not is_image_type(of):
        raise DataError(
            f"{place}: column {image!r} is {of}, expected struct<bytes: binary, path: string> "
            "or binary; write the encoded JPEG or PNG bytes there"
        )
    if not is_label_type(classes):
        raise wrong_labels(place, label, classes)
    metadata = schema.metadata or {}
    synthetic = PHANTOM_KEY in metadata
    try:
        features = json.loads(metadata.get(b"huggingface", "{}")).get("info", {})
        names = features.get("features", {}).get(label, {}).get("names") or None
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{place}: unreadable 'huggingface' metadata ({error})") from error
    if names is None:
        return None, synthetic
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{place}: class names {names!r:.200} in its metadata, expected a list of names"
        )
    longest = max(map(len, names))
    if len(names) > MAX_CLASSES or longest > MAX_NAME:
        raise DataError(
            f"{place}: {len(names)} class names of up to {longest} characters in its metadata, "
            f"expected at most {MAX_CLASSES} of {MAX_NAME}"
        )
    return tuple(names), synthetic


def _check_names(place: object, found: list[str], columns: Columns) -> None:
    if any(found.count(name) != 1 for name in columns):
        raise DataError(
            f"{place}: columns {found}, expected one {columns.image!r} and one {columns.label!r}; "
            "name them by image= and label="
        )


def from_parquet(file: Path, columns: Columns) -> list[Part]:
    """Read one parquet file."""
    image, label = columns
    with open_parquet(file) as opened:
        schema = opened.file.schema_arrow
        names, synthetic = check_schema(file, schema, columns)
        # Paths are read only where bytes may be missing.
        whole = no_nulls(opened.groups, f"{image}.bytes")
    wanted, homes = [f"{image}.bytes" if whole else image, label], [file.parent, Path()]
    size = file.stat().st_size
    labels = _column(file, label)
    changed = DataError(f"{file}: was changed while it was read; read it again")

    def same(found: pa.Schema) -> None:
        if check_schema(file, found, columns) != (names, synthetic):
            raise changed

    def read(most: int) -> Iterator[list[Item]]:
        items: list[Item] = []
        row = 0
        for batch in arrow_batches(file, most, wanted, same):
            if plain_labels(file, batch.column(label)) != labels.slice(row, len(batch)):
                raise changed
            row += len(batch)
            items += items_of(batch.column(image), homes)
            room = MAX_BATCH + 4 * size
            if sum(of.nbytes for of in items if isinstance(of, np.ndarray)) > room:
                raise DataError(
                    f"{file}, before row {row}: damaged parquet data ({len(items)} rows "
                    f"take more than {room} bytes; read fewer at a time); {AGAIN}"
                )
            while len(items) >= most:
                yield items[:most]
                items = items[most:]
        if items:
            yield items

    if not whole:
        refuse_only_paths(file, next(read(64), []))
    splits = one_split(begun_split(file.name), len(labels))
    if "split" in schema.names and not any(splits):
        splits = _splits(file, _column(file, "split"))
    stamp = partial("{} {}".format, file_stamp(file), wanted)
    return [Part(str(file), labels, read, splits, names, synthetic, stamp=stamp, size=size)]


def _column(file: Path, name: str) -> pa.Array:
    """Return one column of a parquet file, as plain labels."""
    batches = [plain_labels(file, of.column(0)) for of in arrow_batches(file, _MANY, [name])]
    return pa.concat_arrays(batches) if batches else pa.array([], pa.int64())


def _splits(place: object, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the splits that a column `split` tells, str (n,)."""
    if not is_label_type(column.type):
        return one_split(None, len(column))
    values = plain_labels(place, column).to_pylist()
    told = np.array([split_of(value) or "" for value in values], object)
    for i in np.flatnonzero(told == "")[:1]:  # Such a row would be in no part.
        raise DataError(
            f"{place}, row {i}: column 'split' is {values[i]!r}, expected train, test or "
            "validation; drop the column if it means something else"
        )
    return told


def _table_part(
    place: str,
    columns: Columns,
    column: Callable[[str], pa.Array | pa.ChunkedArray | None],
    cells: Callable[[int, int], list[Item]],
    *,
    stamp: Callable[[], str],
    schema: pa.Schema | None = None,
) -> list[Part]:
    """Return a table as a part.

    `column` gives a column of labels or splits by name, None if there is none. `cells` gives the
    items from one row up to another.
    """
    about = (None, False) if schema is None else check_schema(place, schema, columns)
    labels = plain_labels(place, column(columns.label))
    refuse_only_paths(place, cells(0, min(64, len(labels))))
    split = column("split")
    splits = one_split(None, len(labels)) if split is None else _splits(place, split)
    return [Part(place, labels, in_steps(len(labels), cells), splits, *about, stamp=stamp)]


def from_table(
    place: str, table: pa.Table, columns: Columns, stamp: Callable[[], str]
) -> list[Part]:
    """Read an Arrow table."""
    homes = [Path(place).parent if os.sep in place else Path(), Path()]

    def column(name: str) -> pa.ChunkedArray | None:
        return table[name] if name in table.column_names else None

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(table[columns.image][start:stop].combine_chunks(), homes)

    return _table_part(place, columns, column, cells, stamp=stamp, schema=table.schema)


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
    image, label = columns
    arrow = dataset.with_format("arrow")
    classes = getattr(dataset.features.get(label), "names", None)
    about = {"info": {"features": {label: {"names": list(classes)}} if classes else {}}}
    schema = arrow[:1].replace_schema_metadata({b"huggingface": json.dumps(about)}).schema

    def column(name: str) -> pa.ChunkedArray | None:
        if name not in dataset.column_names:
            return None
        return dataset.select_columns([name]).with_format("arrow")[:][name]

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(arrow[start:stop][image].combine_chunks(), [Path()])

    # The package keeps a fingerprint of the data and of all that was done to them.
    known = getattr(dataset, "_fingerprint", None)
    stamp = partial(str, known) if known else lambda: digest(*arrow[:][image].to_pylist())
    return _table_part(
        f"the data set ({len(dataset)} rows)", columns, column, cells, stamp=stamp, schema=schema
    )


def from_frame(
    frame: pd.DataFrame, columns: Columns, place: str = "the table", home: Path | None = None
) -> list[Part]:
    """Read a pandas table of bytes, pixels, pictures or paths; paths are relative to `home`."""
    _check_names(place, list(frame.columns), columns)
    values, homes = frame[columns.image].array, [home or Path(), Path()]

    def column(name: str) -> pa.Array | None:
        if name not in frame.columns:
            return None
        try:
            found = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"{place}: column {name!r} mixes types ({error})") from error
        if not is_label_type(found.type):
            raise wrong_labels(place, name, found.type)
        return found

    def cells(start: int, stop: int) -> list[Item]:
        return [item_of(values[i], homes) for i in range(start, stop)]

    return _table_part(
        place, columns, column, cells, stamp=partial(_frame_stamp, frame[[*columns]])
    )


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
