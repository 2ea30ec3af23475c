"""What stands in a file or folder: parquet, tables, class folders, or a folder below with these."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mri.data.decode import DataError
from mri.data.formats import (
    Columns,
    file_split,
    from_arrow,
    from_csv,
    from_parquet,
    from_saved,
)
from mri.data.labels import name_key
from mri.data.parquet import REMEDY
from mri.data.parts import Part, split_of
from mri.data.trees import PICTURES, from_tree, has_pictures, is_visible

_EXPECTED = (
    "Expected train and test parquet files, class folders of JPEG or PNG images (with or without "
    "train/ and test/), a folder of save_to_disk or CSV files, there or in its data/"
)
_READERS = {
    ".parquet": from_parquet,
    ".pq": from_parquet,
    ".csv": from_csv,
    ".tsv": from_csv,
    ".arrow": from_arrow,
    ".feather": from_arrow,
}
_TABLES = (".csv", ".tsv")
# What a clone of this project holds beside its slices, pictures among it, is no data.
_CLONE = (".git", "pyproject.toml", "main.ipynb")
_DEPTH = 4


class NoSlicesError(DataError):
    """A file or folder is not there, or holds nothing that can be read as slices."""


class Found(NamedTuple):
    """Something readable: its place, the split its name tells, and how to read it."""

    path: Path
    split: str | None
    read: Callable[[Columns], list[Part]]


def layout(path: Path) -> list[Found]:
    """Return what there is to read at a path, or raise `NoSlicesError`."""
    if path.is_dir():
        if found := _inside(path):
            return found
        here = sorted(entry.name for entry in path.iterdir() if is_visible(entry.name))
        told = f"found {here[:8]}{' and more' if len(here) > 8 else ''}" if here else "it is empty"
        raise NoSlicesError(f"{path}: no slices in this folder, {told}. {_EXPECTED}. {REMEDY}")
    if path.exists():
        return [Found(path, file_split(path), reader(path))]
    files = [Path(name) for name in sorted(glob.glob(os.fspath(path)))]
    if not files:
        raise NoSlicesError(f"{path}: no parquet file found. {REMEDY}")
    return [Found(file, file_split(file), reader(file)) for file in files]


def reader(file: Path) -> Callable[[Columns], list[Part]]:
    """Return how to read a file; what is of no known kind is taken for parquet, which then says."""
    ending = file.suffix.lower()
    if ending in PICTURES:
        raise DataError(f"{file}: one picture without a label; put it into the folder of its class")
    if ending in (".zip", ".gz", ".tar", ".tgz", ".rar", ".7z"):
        raise DataError(f"{file}: an archive; unpack it and give the folder")
    return partial(_READERS.get(ending, from_parquet), file)


def _inside(folder: Path, depth: int = 0) -> list[Found]:
    """Return what there is to read in a folder, or in the one folder below it that has something.

    Raises
    ------
    DataError
        If there are two data sets: reading both would count slices twice.
    """
    entries = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.is_file()]
    here: dict[str, list[Found]] = {}
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved(folder)
    if shards := [file for file in files if file.suffix.lower() in (".parquet", ".pq")]:
        here["parquet files"] = [Found(f, file_split(f), reader(f)) for f in shards]
    clone = any((folder / name).exists() for name in _CLONE)
    data = [of for of in folders if of.name.lower() == "data"]
    tables = [] if clone else [file for file in files if file.suffix.lower() in _TABLES]
    if depth < _DEPTH:
        if not shards and (below := _below(data, depth)):
            return below
        if not clone and (trees := _trees(folder, folders, depth, bool(shards or tables))):
            here["folders"] = trees
    # A table beside class folders may be of something else, unless it has the columns.
    if tables and (not here or any(_lists_slices(file) for file in tables)):
        here["tables"] = [Found(f, file_split(f), reader(f)) for f in tables]
    if len(here) > 1:
        told = " and ".join(f"{kind} ({', '.join(_names(of))})" for kind, of in here.items())
        raise DataError(f"{folder}: two data sets, {told}; give one of them")
    return next(iter(here.values()), [])


def _lists_slices(file: Path) -> bool:
    """Whether the first line of a table names the usual columns."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        head = set(re.split(r"[,;\t]", opened.readline(10_000).strip().replace('"', "")))
    return set(Columns().names()) <= head


def _names(found: Sequence[Found]) -> list[str]:
    return [of.path.name for of in found[:4]]


def _below(folders: Sequence[Path], depth: int) -> list[Found]:
    """Return what is in the only one of some folders that holds slices."""
    held = {folder: found for folder in folders if (found := _inside(folder, depth + 1))}
    if len(held) > 1:
        splits = [split_of(folder.name) for folder in held]
        if all(splits) and len(set(splits)) == len(splits):
            return [
                Found(of.path, split, partial(_read_as, of.read, split))
                for split, found in zip(splits, held.values(), strict=True)
                for of in found
            ]
        raise DataError(
            f"{next(iter(held)).parent}: several data sets, in "
            f"{', '.join(folder.name for folder in held)}; give one of them"
        )
    return next(iter(held.values()), [])


def _read_as(
    read: Callable[[Columns], list[Part]], split: str | None, columns: Columns
) -> list[Part]:
    return [replace(part, split=part.split or split) for part in read(columns)]


def _trees(folder: Path, folders: Sequence[Path], depth: int, listed: bool) -> list[Found]:
    """Return class folders, under train and test or not, or what one folder below holds.

    Where files beside them list slices (`listed`), one folder of pictures belongs to these.
    """
    # Phantoms that a run has written are no data of the user's.
    folders = [of for of in folders if not of.name.startswith("phantom")]
    pictured = [of for of in folders if has_pictures(of)]
    if not pictured:
        return [] if listed else _below(folders, depth)
    splits = {of: split_of(of.name) for of in pictured}
    if any(splits.values()):
        if not all(splits.values()) or len(set(splits.values())) < len(splits):
            raise DataError(
                f"{folder}: the folders {[of.name for of in pictured]} are not one for each of "
                "train, test and validation; take away what is no part"
            )
        return [
            Found(of, split, partial(_read_as, found.read, split))
            for of, split in splits.items()
            for found in _inside(of, depth + 1)
        ]
    inner = [_subfolders(of) for of in pictured]
    if not any(_holds_pictures(of) for of in pictured):
        if len(pictured) == 1:
            return [] if listed else _below(pictured, depth)
        shared = [a & b for i, a in enumerate(inner) for b in inner[:i] if a & b]
        if shared:
            raise DataError(
                f"{folder}: several data sets, in {', '.join(of.name for of in pictured)}: each "
                f"has {', '.join(sorted(shared[0])[:4])}; give one of them"
            )
    # One folder alone is a class of a part, else just a folder of pictures.
    if len(pictured) == 1 and not split_of(folder.name):
        return []
    return [Found(folder, None, lambda columns: from_tree(folder, pictured, None))]


def _subfolders(folder: Path) -> set[str]:
    return {name_key(of.name) for of in folder.iterdir() if of.is_dir() and is_visible(of.name)}


def _holds_pictures(folder: Path) -> bool:
    return any(of.suffix.lower() in PICTURES and of.is_file() for of in folder.iterdir())


def _saved(folder: Path) -> list[Found]:
    return [Found(folder, None, partial(from_saved, folder))]
