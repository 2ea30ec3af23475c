"""The formats that slices come in: each is one function from a file, folder or table to `Part`s.

A new format is one function here. `READERS`, at the end, lists those of files by their ending.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from mri.data.decode import DataError
from mri.data.footer import MAX_BATCH
from mri.data.labels import check_label_type, name_key, plain_labels
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
    digest,
    file_stamp,
    in_steps,
    is_image_type,
    item_of,
    items_of,
    may_hold_paths,
    one_split,
    refuse_only_paths,
    refuse_pointer,
    split_of,
)

_MANY = 1 << 16
# Columns that often divide the rows of a table, as `name_key` has them.
_DIVIDING = frozenset(
    "split splits datasplit splitname traintest subset set dataset partition phase usage fold "
    "istrain istest".split()
)


class Columns(NamedTuple):
    """Names of the columns that hold slices and labels."""

    image: str = "image"
    label: str = "label"

    def among(self, place: object, names: Sequence[Any]) -> Columns:
        """Return the two as a table has them: exactly, or spelt as the names of classes may be."""
        found = []
        for wanted in self:
            same = [of for of in names if of == wanted] or [
                of for of in names if name_key(str(of)) == name_key(wanted)
            ]
            if len(same) != 1:
                raise DataError(
                    f"{place}: columns {list(names)}, expected one {self.image!r} and one "
                    f"{self.label!r}; name them by image= and label="
                )
            found += same
        return Columns(*found)


def check_schema(
    place: object, schema: pa.Schema, columns: Columns
) -> tuple[tuple[str, ...] | None, bool]:
    """Return (class names, synthetic) of a table, after a check of its two columns."""
    image, label = columns.among(place, schema.names)
    of = schema.field(image).type
    if not is_image_type(of):
        raise DataError(
            f"{place}: column {image!r} is {of}, expected struct<bytes: binary, path: string> "
            "or binary; write the encoded JPEG or PNG bytes there"
        )
    check_label_type(place, label, schema.field(label).type)
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


def from_parquet(file: Path, columns: Columns) -> list[Part]:
    """Read one parquet file."""
    with open_parquet(file) as opened:
        schema = opened.file.schema_arrow
        names, synthetic = check_schema(file, schema, columns)
        image, label = columns.among(file, schema.names)
        # Paths are read only where bytes may be missing.
        whole = no_nulls(opened.groups, f"{image}.bytes")
    wanted, homes = [f"{image}.bytes" if whole else image, label], [file.parent, Path()]
    size = file.stat().st_size
    batches = [plain_labels(file, of.column(0)) for of in arrow_batches(file, _MANY, [label])]
    labels = pa.concat_arrays(batches) if batches else pa.array([], pa.int64())
    changed = DataError(f"{file}: was changed while it was read; read it again")

    def values(name: str) -> list[Any]:
        return [of for batch in arrow_batches(file, _MANY, [name])
                for of in batch.column(0).to_pylist()]  # fmt: skip

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
    splits = _divided(file, len(labels), schema.names, (image, label), values)
    now = f"{file_stamp(file)} {wanted}"

    def stamp() -> str:
        items = (of for some in read(_MANY) for of in some) if not whole else ()
        return digest(now, *(file_stamp(of) for of in items if isinstance(of, Path)))

    return [Part(str(file), labels, read, splits, names, synthetic, stamp=stamp, size=size)]


def _divided(
    place: object,
    n: int,
    names: Sequence[Any],
    used: Sequence[str],
    values: Callable[[Any], list[Any]],
) -> np.ndarray:
    """Return the splits that a column tells, str (n,), '' for all if there is none.

    A column `split`, however it is spelt, has to name one in every row. A column of another usual
    name divides the rows if it does so, and is warned of if not. `values` gives the cells of one.
    """
    found: dict[Any, np.ndarray] = {}
    for name in names:
        key = name_key(str(name))
        if name in used or key not in _DIVIDING:
            continue
        cells = values(name)
        splits = np.array([split_of(cell) or "" for cell in cells], object)
        if all(splits):
            found[name] = splits
            continue
        i = int(np.flatnonzero(splits == "")[0])  # Such a row would be in no part.
        told = f"{place}, row {i}: column {name!r} is {cells[i]!r}, expected train, test or "
        if key == "split":
            raise DataError(f"{told}validation; drop the column if it means something else")
        warnings.warn(f"{told}validation, so it divides no rows", UserWarning, stacklevel=2)
    for name in found:
        first = next(iter(found))
        if (found[name] != found[first]).any():
            raise DataError(f"{place}: columns {first!r} and {name!r} divide the rows differently")
    return next(iter(found.values()), one_split(None, n))


def _table_part(
    place: str,
    columns: Columns,
    column: Callable[[str], pa.Array | pa.ChunkedArray],
    cells: Callable[[int, int], list[Item]],
    *,
    names: Sequence[Any],
    stamp: Callable[[], str],
    about: tuple[tuple[str, ...] | None, bool] = (None, False),
) -> list[Part]:
    """Return a table as a part: `column` gives one of `names`, `cells` items from row to row."""
    labels = plain_labels(place, column(columns.label))
    refuse_only_paths(place, cells(0, 64))
    splits = _divided(place, len(labels), names, columns, lambda name: column(name).to_pylist())
    return [Part(place, labels, in_steps(len(labels), cells), splits, *about, stamp=stamp)]


def from_table(
    place: str, table: pa.Table, columns: Columns, stamp: Callable[[], str]
) -> list[Part]:
    """Read an Arrow table."""
    homes = [Path(place).parent if os.sep in place else Path(), Path()]
    own, names = columns.among(place, table.column_names), table.column_names

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(table[own.image][start:stop].combine_chunks(), homes)

    def with_files() -> str:
        paths = may_hold_paths(table.schema.field(own.image).type)
        return digest(stamp(), *_contents(cells, len(table) if paths else 0))

    about = check_schema(place, table.schema, own)
    return _table_part(place, own, table.column, cells, names=names, stamp=with_files, about=about)


def from_saved(folder: Path, columns: Columns) -> list[Part]:
    """Read what `save_to_disk` of Hugging Face `datasets` wrote; that package is not needed."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if not isinstance(splits, list):
            raise DataError(f"{folder}: its dataset_dict.json has no list of splits; save it again")
        below = {str(split): folder / str(split) for split in splits}
        return from_splits(below, partial(from_saved, columns=columns))
    held = _json(folder / "state.json").get("_data_files")
    if not (isinstance(held, list) and held and all(isinstance(of, dict) for of in held)):
        raise DataError(f"{folder}: its state.json names no data files; save it again")
    files = [folder / str(of.get("filename")) for of in held]
    about = json.dumps({"info": _json(folder / "dataset_info.json")})
    # The names in the files are those of the time they were written: dataset_info.json is newer.
    try:
        table = pa.concat_tables([_arrow_table(file) for file in files])
    except pa.ArrowInvalid as error:
        raise DataError(f"{folder}: its files differ ({error}); save it again") from error
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
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: unreadable ({error}); save the data set again") from error


def from_splits(of: Mapping[str, Any], opened: Callable[[Any], list[Part]]) -> list[Part]:
    """Read a mapping from split to data set, as `DatasetDict` is one: what it says, is so."""
    names, found = [split_of(key) or str(key) for key in of], []
    known = [name for name in names if split_of(name)]
    if len(set(names)) < len(names) or 0 < len(known) < len(names):
        raise DataError(f"parts {[*of]}, expected one each of train, test and validation, no other")
    for name, key in zip(names, of, strict=True):
        parts = opened(of[key])
        told = set().union(*(part.split_names for part in parts))
        if len(told) > 1 and "test" in told:
            raise DataError(
                f"{parts[0].place}: has parts of its own, {sorted(told)}, but was given as {key!r} "
                "alone; give one of them"
            )
        found += [part.as_split(name) for part in parts]
    return found


def from_dataset(dataset: Any, columns: Columns) -> list[Part]:
    """Read a `datasets.Dataset`, known by its methods: the package is not imported for it."""
    if not hasattr(dataset, "__len__"):
        raise DataError("a streaming data set has no rows to count; load it without streaming=True")
    place = f"the data set ({len(dataset)} rows)"
    image, label = own = columns.among(place, dataset.column_names)
    arrow = dataset.with_format("arrow")
    classes = getattr(dataset.features.get(label), "names", None)
    info = {"info": {"features": {label: {"names": list(classes)}} if classes else {}}}
    schema = arrow[:1].replace_schema_metadata({b"huggingface": json.dumps(info)}).schema

    def column(name: str) -> pa.ChunkedArray:
        return dataset.select_columns([name]).with_format("arrow")[:][name]

    def cells(start: int, stop: int) -> list[Item]:
        return items_of(arrow[start:stop][image].combine_chunks(), [Path()])

    # The package keeps a fingerprint of the data and of all that was done to them.
    known = getattr(dataset, "_fingerprint", None)
    asked = len(dataset) if not known or may_hold_paths(schema.field(image).type) else 0

    def stamp() -> str:
        return digest(str(known), *_contents(cells, asked))

    about, names = check_schema(place, schema, own), dataset.column_names
    return _table_part(place, own, column, cells, names=names, stamp=stamp, about=about)


def from_frame(
    frame: pd.DataFrame, columns: Columns, place: str = "the table", home: Path | None = None
) -> list[Part]:
    """Read a pandas table of bytes, pixels, pictures or paths; paths are relative to `home`."""
    image, label = own = columns.among(place, [*frame.columns])
    frame = frame.loc[:, ~frame.columns.duplicated()]
    values, homes = frame[image].array, [home or Path(), Path()]

    def column(name: str) -> pa.Array:
        if name != label:
            return pa.array(frame[name].astype(str))
        try:
            found = pa.array(frame[label], from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{place}: column {label!r} mixes types ({error})") from error
        check_label_type(place, label, found.type)
        return found

    def cells(start: int, stop: int) -> list[Item]:
        return [item_of(value, homes) for value in values[start:stop]]

    def stamp() -> str:
        return digest(*frame[label], *_contents(cells, len(frame)))

    return _table_part(place, own, column, cells, names=[*frame.columns], stamp=stamp)


def _contents(cells: Callable[[int, int], list[Item]], n: int) -> Iterator[object]:
    """Yield what changes with the items of `n` rows: pixels, bytes, and facts of their files."""
    for start in range(0, n, _MANY):
        for item in cells(start, min(start + _MANY, n)):
            yield file_stamp(item) if isinstance(item, Path) else item


def from_csv(file: Path, columns: Columns) -> list[Part]:
    """Read a CSV or TSV file of paths, of bytes as text, or of arrays as JSON."""
    # Only an empty cell is missing: "None" and "NA" may be the names of classes. All is text: what
    # looks like a number may be a grade such as 0.5, or begin with a zero.
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "dtype": str}
    options |= {"index_col": False, "encoding": "utf-8-sig"}
    try:
        with file.open(encoding="utf-8-sig") as opened:
            # Below it, a comma may also be that of a decimal fraction.
            head = opened.readline(_MANY)
        frame = pd.read_csv(file, sep=max(",;\t", key=head.count), **options)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. {REMEDY}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not a readable CSV file ({error}); save it as UTF-8") from error
    return from_frame(frame, columns, str(file), file.parent)


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
