"""What a source is: files, folders, tables and data sets, all read as `Part`s."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mri._arguments import require
from mri.data.decode import DataError
from mri.data.folders import NoSlicesError, from_file, from_path
from mri.data.formats import Columns, from_dataset, from_frame, from_splits, from_table
from mri.data.labels import Meaning, Names, name_key, places_of, settle
from mri.data.parquet import REMEDY
from mri.data.parts import Part, Rows, digest, load, split_of

Source = Any
"""A path, pattern or list of files, a table, a data set, or a mapping from split to these."""

Split = str | Sequence[str] | None
"""The name of a split, several in the order to read them, or None for all slices as they stand."""


class Slices:
    """All `parts` of one source, and what their labels mean.

    The arguments are those of `read_scans`. `place` is for messages; `class_names`, in label order,
    are those of all parts alike. DataError if the source holds nothing usable.
    """

    def __init__(
        self,
        source: Source,
        columns: Columns | None = None,
        *,
        class_names: Names | None = None,
    ) -> None:
        self._columns = columns or Columns()
        self.parts = _open(source, self._columns)
        named = isinstance(source, str | os.PathLike)
        self.place = str(source) if named else self.parts[0].place
        self._meanings: dict[tuple[str, ...] | None, Meaning] = {}
        for names in dict.fromkeys(part.names for part in self.parts):
            of = [part for part in self.parts if part.names == names]
            place = self.place if len(of) == len(self.parts) else of[0].place
            self._meanings[names] = settle(place, [part.labels for part in of], names, class_names)
        # One part may lack classes of another: the longest names, of these the first.
        self.class_names = max((of.class_names for of in self._meanings.values()), key=len)

    @property
    def splits(self) -> list[str]:
        """Names of the splits there are, 'train' first."""
        found = set().union(*(part.split_names for part in self.parts)) - {""}
        return sorted(found, key=lambda split: (split != "train", split))

    def select(self, split: Split) -> list[Part]:
        """Return the parts of a split or of several in turn; of None all, as they stand.

        DataError if there is no such part, or their classes or origins differ; ValueError if none
        is named, or one twice.
        """
        names = [split] if isinstance(split, str) else list(split or ())
        wanted = [split_of(name) or name for name in names]
        some = split is None or len(set(wanted)) == len(wanted) > 0
        require(some, "split must name a part, or several different ones.", split=split)
        found = [part for name in wanted for part in self._of_split(name)] or self.parts
        for part in found:
            self.meaning(part)
            if part.synthetic != found[0].synthetic:
                kinds = {True: "phantoms", False: "real slices"}
                raise DataError(
                    f"{part.place}: has {kinds[part.synthetic]}, but {found[0].place} has "
                    f"{kinds[found[0].synthetic]}; read them separately"
                )
        return found

    def _of_split(self, split: str) -> list[Part]:
        found = [of for part in self.parts if (of := part.of_split(split)) is not None]
        if not found:
            files = all(part.place.endswith(".parquet") for part in self.parts)
            what = f"parquet file whose name begins with {split!r}" if files else f"part {split!r}"
            told = f"there are {self.splits}" if self.splits else "it is not divided"
            raise NoSlicesError(f"{self.place}: no {what} found, {told}. {REMEDY}")
        return found

    def meaning(self, part: Part) -> Meaning:
        """Return what the labels of a part mean, in the order of `class_names`."""
        own = self._meanings[part.names]
        at = places_of(self.class_names, own.class_names)
        if at is None:
            of_first = self._meanings
            first = next(p for p in self.parts if of_first[p.names].class_names == self.class_names)
            told = [of.names or "no class names" for of in (part, first)]
            raise DataError(
                f"{part.place}: has {told[0]}, but {first.place} has {told[1]}; pass "
                "class_names= for both, or read them separately"
            )
        values = {value: at[label] for value, label in own.values.items()}
        return Meaning(self.class_names, values, own.said)

    def warn(self, parts: Sequence[Part], stacklevel: int) -> None:
        """Warn once of what is doubtful about the labels of some parts."""
        said_of = [self._meanings[part.names].said for part in parts]
        for said in dict.fromkeys([*said_of, self._unseen(parts)]):
            if said:
                warnings.warn(said, UserWarning, stacklevel=stacklevel + 1)

    def _unseen(self, parts: Sequence[Part]) -> str:
        """Name the classes of the test part that no train part has, '' if there are none."""
        held: dict[str, set[int]] = {"train": set(), "test": set()}
        for part in parts:
            # Numbers have one spelling.
            for split in part.split_names & held.keys() if part.names is None else ():
                of = part.labels.filter(pa.array(part.splits == split))
                labels, causes = self.meaning(part).check(pc.unique(of))
                held[split].update(np.delete(labels, [*causes]).tolist())
        names = [self.class_names[label] for label in sorted(held["test"] - held["train"])]
        if not held["train"] or not names:
            return ""
        return (
            f"{self.place}: the test part has {', '.join(names)}, of which the train part has no "
            "slice; is it another spelling?"
        )

    def stamp(self, parts: Sequence[Part]) -> str:
        """Return a text that changes with some parts and with the meaning of their labels."""
        told = [
            (f"{of.place} {of.stamp()} {self.meaning(of)}", "\n".join(of.splits), of.kept)
            for of in parts
        ]
        return digest(*self._columns, *(value for of in told for value in of))


def _open(source: Source, columns: Columns) -> list[Part]:
    """Return the parts of a source of any kind; two copies of one are a DataError."""
    records = isinstance(source, Sequence)
    opened: list[Part]
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source).strip():
            raise ValueError(f"source must not be an empty path. Received: source={source!r}")
        opened = from_path(Path(source), columns)
    elif isinstance(source, pd.DataFrame):
        opened = from_frame(source, columns)
    elif isinstance(source, pa.Table):
        opened = from_table("the table", source, columns, lambda: digest(*source.to_pylist()))
    elif isinstance(source, Mapping) and _is_table(source, columns):
        table = {name: list(column) for name, column in source.items()}
        opened = from_frame(pd.DataFrame(table), columns)
    elif isinstance(source, Mapping) and source:
        if any(hasattr(of, "dtype") for of in source.values()):
            columns.among("the mapping", [*source])
        return from_splits(source, partial(_open, columns=columns))
    elif hasattr(source, "with_format"):
        opened = from_dataset(source, columns)
    elif hasattr(source, "to_arrow"):
        opened = _open(source.to_arrow(), columns)
    elif records and source and all(isinstance(of, Mapping) for of in source):
        opened = from_frame(pd.DataFrame(list(source)), columns)
    elif records and all(isinstance(of, str | os.PathLike) for of in source):
        opened = [part for file in source for part in from_file(Path(file), columns)]
    else:
        raise ValueError(
            "source must be a path, a list of files, a table or a data set. Received: "
            f"source={type(source).__name__}"
        )
    if not opened:
        raise NoSlicesError(f"{source}: no parquet file found. {REMEDY}")
    _refuse_copies(opened)
    return opened


def _is_table(source: Mapping[Any, Any], columns: Columns) -> bool:
    """Whether a mapping has the columns of slices and labels, however they are spelt."""
    lists = {name_key(str(key)) for key, of in source.items() if hasattr(of, "__len__")}
    return lists >= set(map(name_key, columns))


def _refuse_copies(parts: Sequence[Part]) -> None:
    """Raise DataError where one split stands there twice, or lacks one of its files."""
    loose = [part for part in parts if "" in part.split_names]
    if 0 < len(loose) < len(parts):
        raise DataError(
            f"{loose[0].place}: is of no part, but others beside it are of train, test or "
            "validation; name it after its part, or move it away"
        )
    for split in sorted(set().union(*(part.split_names for part in parts)) - {""}):
        of = [part for part in parts if split in part.split_names]
        names = " ".join(Path(part.place).name for part in of)
        shards = re.findall(r"-(\d{5})-of-(\d{5})", names)
        for total in {int(n) for _, n in shards}:
            there = {int(i) for i, n in shards if int(n) == total}
            if missing := sorted(set(range(total)) - there):
                raise DataError(
                    f"{of[0].place}: file {missing[0]} of 0 to {total - 1} of the {split} part is "
                    "missing; fetch it, or rename the others if it does not belong to them"
                )
            if len(of) > total:
                _refuse(of, split, "a whole series of files and another file")
    seen: dict[str, Part] = {}
    for part in parts if len(parts) > 1 else ():
        if (first := seen.setdefault(_content(part), part)) is not part and len(part) > 1:
            shared = first.split_names & part.split_names
            _refuse([first, part], min(shared, default="same"), "the same slices")


def _refuse(parts: Sequence[Part], split: str, what: str) -> None:
    raise DataError(
        f"{parts[0].place}: two copies of the {split or 'same'} part, {what} "
        f"({', '.join(Path(part.place).name for part in parts[:4])}); keep one of them"
    )


def _content(part: Part) -> str:
    """Return a digest of the labels and of the first slices of a part."""
    first = next(part.rows(8), None)
    items = [load(item) for item in first.items] if first else []
    return digest(part.labels.to_pylist(), *items)


def row_place(source: Source, *, split: str | None = None, row: int = 0) -> tuple[Path, int]:
    """Return the file that a row of a source stands in, and its number there."""
    file, number = one_row(Slices(source), split, row).place(0)
    return Path(file), number


def one_row(slices: Slices, split: Split, row: int) -> Rows:
    """Return a row of a source, as `Rows` of one; DataError if there is no such row."""
    left = row
    for part in slices.select(split):
        for rows in part.rows(1024):
            if 0 <= left < len(rows.items):
                return rows.take(np.array([left]))
            left -= len(rows.items)
    raise DataError(f"{slices.place}: has rows 0 to {row - left - 1}. Received: row={row}")


def find_data(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder that holds a train and a test part, None where nothing was asked for.

    Parameters
    ----------
    folder : path, optional
        By default the environment variable ``MRI_DATA``, else ``data``.

    Returns
    -------
    Path or None
        None only where neither `folder` nor the variable is given and ``data`` holds no slices.

    Raises
    ------
    DataError
        If a given folder holds no slices, or only one of the two parts. Phantoms never take the
        place of what was given. If files are present but unusable.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     find_data(write_phantom(folder, subjects=4)) is not None
    True
    """
    path, given = data_folder(folder)
    try:
        slices = Slices(path)
    except NoSlicesError:
        if given:
            raise
        return None
    missing = sorted({"train", "test"}.difference(slices.splits))
    if not missing:
        return path
    names = ", ".join(Path(part.place).name for part in slices.parts[:4])
    if len(missing) == 2:
        told = (
            f"slices are there ({names}), but not divided into a train and a test part; name the "
            "files or folders train and test, or add a column split. python -m mri audit takes "
            "them undivided"
        )
    elif path.is_file():
        told = (
            f"only the {slices.splits[0]} part; give the folder that holds the {missing[0]} part "
        )
        told += f"too, such as {path.parent}"
    else:
        told = f"{names} is there, but no {missing[0]} file beside it. {REMEDY}"
    raise DataError(f"{path}: {told}")


def describe(place: object, parts: Sequence[Part]) -> str:
    """Say in one line which slices will be used."""
    kind = "synthetic phantom" if parts[0].synthetic else "real"
    return f"{place}: {sum(map(len, parts))} {kind} slices."


def data_folder(folder: str | os.PathLike[str] | None = None) -> tuple[Path, bool]:
    """Return the folder of the data at hand, and whether somebody named it.

    An empty ``MRI_DATA`` counts as none; an empty `folder` is an error.
    """
    if folder is not None and not os.fspath(folder).strip():
        raise ValueError(f"folder must not be an empty path. Received: folder={folder!r}")
    given = folder or os.environ.get("MRI_DATA")
    return Path(given or "data"), bool(given)


def first_record(source: Source, *, split: str | None = None) -> dict[str, Any]:
    """Return the first row of a source as it is stored; `source` and `split` as in `read_scans`.

    Returns
    -------
    dict
        `image` with `bytes` (or `pixels`, where no bytes are stored) and `path`, and `label`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import write_phantom
    >>> with TemporaryDirectory() as folder:
    ...     record = first_record(write_phantom(folder, subjects=4), split="train")
    >>> sorted(record["image"]), record["label"] in range(4)
    (['bytes', 'path'], True)
    """
    rows = one_row(Slices(source), split, 0)
    loaded = rows.content(0)
    kind = "bytes" if loaded.ndim == 1 else "pixels"
    image = {kind: loaded.tobytes() if kind == "bytes" else loaded, "path": rows.place(0)[0]}
    return {"image": image, "label": rows.labels[0].as_py()}
