"""What stands in a file or folder: parquet, tables, class folders, or a folder below with these."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from mri.data.decode import DataError
from mri.data.formats import READERS, Columns, from_parquet, from_saved
from mri.data.labels import name_key
from mri.data.parquet import REMEDY
from mri.data.parts import (
    Item,
    Part,
    begun_split,
    digest,
    file_stamp,
    first_bytes,
    in_steps,
    one_split,
    refuse_pointer,
    split_of,
)

PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
"""Endings of what is decoded, in lower case."""

_OTHER_PICTURES = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm", ".ima", ".nii", ".nii.gz")
"""Endings of what is no JPEG or PNG, but meant as a slice: such files are rejected, not ignored."""


_EXPECTED = (
    "Expected train and test parquet files, class folders of JPEG or PNG images (with or without "
    "train/ and test/), a folder of save_to_disk or CSV files, there or in its data/"
)
_PARQUET, _TABLES = (".parquet", ".pq"), (".csv", ".tsv")
_ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".rar", ".7z")
# What a clone of this project holds beside its slices, pictures among it, is no data.
_CLONE = (".git", "pyproject.toml", "main.ipynb")
_DEPTH = 6


class NoSlicesError(DataError):
    """A file or folder is not there, or holds nothing that can be read as slices."""


class Found(NamedTuple):
    """Something readable: its place, the split its name tells, and how to read it."""

    path: Path
    split: str | None
    read: Callable[[Columns], list[Part]]

    def as_split(self, split: str | None) -> Found:
        """Return it as a part of the data set, unless its own name says which part it is."""

        def read(columns: Columns) -> list[Part]:
            parts = self.read(columns)
            return [part if any(part.split_names) else part.as_split(split) for part in parts]

        return Found(self.path, self.split or split, read)


def layout(path: Path) -> list[Found]:
    """Return what there is to read at a path, or raise `NoSlicesError`."""
    try:
        if not path.exists():
            path = path.expanduser()
        if path.is_dir():
            return _inside(path) or _nothing(path)
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if path.exists():
        return [found_file(path)]
    files = [Path(name) for name in sorted(glob.glob(os.fspath(path)))]
    if not files:
        raise NoSlicesError(f"{path}: no parquet file found. {REMEDY}")
    return [found_file(file) for file in files]


def _nothing(folder: Path) -> list[Found]:
    here = sorted(entry.name for entry in folder.iterdir() if is_visible(entry.name))
    told = f"found {here[:8]}{' and more' if len(here) > 8 else ''}" if here else "it is empty"
    packed = [name for name in here if name.lower().endswith(_ARCHIVES[:1] + _ARCHIVES[2:])]
    unpack = f" Unpack {packed[0]}, if they are in there." if packed else ""
    raise NoSlicesError(
        f"{folder}: no slices in this folder, {told}.{unpack} {_EXPECTED}. {REMEDY}"
    )


def found_file(file: Path) -> Found:
    """Return how to read a file.

    Raises
    ------
    DataError
        If it is of no known kind, a picture alone, an archive or a pointer of Git LFS.
    """
    ending = file.suffix.lower()
    if ending in PICTURES:
        raise DataError(f"{file}: one picture without a label; put it into the folder of its class")
    if ending in _ARCHIVES:
        raise DataError(f"{file}: an archive; unpack it and give the folder")
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: it is no regular file; give files, or one folder alone")
    refuse_pointer(file)
    begins = first_bytes(file)[:4]
    if ending not in READERS and begins and begins != b"PAR1":
        raise DataError(
            f"{file}: of no known kind, it begins with {begins!r}; expected one of "
            f"{', '.join(READERS)}, or a folder of class folders"
        )
    return Found(file, begun_split(file.name), partial(READERS.get(ending, from_parquet), file))


def _inside(folder: Path, depth: int = 0) -> list[Found]:
    """Return what there is to read in a folder, or in the one folder below it that has something.

    Raises
    ------
    DataError
        If there are two data sets: reading both would count slices twice.
    """
    entries = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    # Dead links among them: leaving out one part in silence would be worse than its error.
    files = [entry for entry in entries if not entry.is_dir()]
    here: dict[str, list[Found]] = {}
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return [Found(folder, None, partial(from_saved, folder))]
    if shards := [file for file in files if file.suffix.lower() in _PARQUET]:
        here["parquet files"] = [found_file(file) for file in shards]
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
        here["tables"] = [found_file(file) for file in tables]
    if len(here) > 1:
        told = " and ".join(f"{kind} ({', '.join(_names(of))})" for kind, of in here.items())
        raise DataError(f"{folder}: two data sets, {told}; give one of them")
    return next(iter(here.values()), [])


def _lists_slices(file: Path) -> bool:
    """Whether the first line of a table names the usual columns."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as opened:
        head = set(re.split(r"[,;\t]", opened.readline(10_000).strip().replace('"', "")))
    return set(Columns()) <= head


def _names(found: Sequence[Found]) -> list[str]:
    return [of.path.name for of in found[:4]]


def _splits_of(folders: Sequence[Path]) -> dict[Path, str | None]:
    """Return the splits that folders are named after, all of them or as many as there are."""
    begun = {of: begun_split(of.name) for of in folders}
    return begun if all(begun.values()) else {of: split_of(of.name) for of in folders}


def _below(folders: Sequence[Path], depth: int) -> list[Found]:
    """Return what is in the only one of some folders that holds slices."""
    held = {folder: found for folder in folders if (found := _inside(folder, depth + 1))}
    if len(held) > 1:
        splits = _splits_of(list(held))
        if all(splits.values()) and len(set(splits.values())) == len(splits):
            return [of.as_split(splits[folder]) for folder, found in held.items() for of in found]
        raise DataError(
            f"{next(iter(held)).parent}: several data sets, in "
            f"{', '.join(folder.name for folder in held)}; give one of them"
        )
    return next(iter(held.values()), [])


def _trees(folder: Path, folders: Sequence[Path], depth: int, listed: bool) -> list[Found]:
    """Return class folders, under train and test or not, or what one folder below holds.

    Where files beside them list slices (`listed`), one folder of pictures belongs to these.
    """
    # Phantoms that a run has written are no data of the user's.
    folders = [of for of in folders if not of.name.startswith("phantom")]
    pictured = [of for of in folders if next(_pictures(of), None)]
    if not pictured:
        return [] if listed else _below(folders, depth)
    splits = _splits_of(pictured)
    if any(splits.values()):
        if not all(splits.values()) or len(set(splits.values())) < len(splits):
            raise DataError(
                f"{folder}: folders {[of.name for of in pictured]}, expected one for each of "
                "train, test and validation, and no other; move the others away"
            )
        return [
            found.as_split(split)
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
    return [Found(folder, None, lambda columns: from_tree(folder, pictured))]


def _subfolders(folder: Path) -> set[str]:
    return {name_key(of.name) for of in folder.iterdir() if of.is_dir() and is_visible(of.name)}


def _holds_pictures(folder: Path) -> bool:
    return any(of.suffix.lower() in PICTURES and of.is_file() for of in folder.iterdir())


def from_tree(folder: Path, classes: Sequence[Path]) -> list[Part]:
    """Read class folders of pictures: the name of a folder is the name of its class.

    Parameters
    ----------
    folder : path
        That holds them.
    classes : sequence of path
        The class folders; their files may lie deeper, as in a folder for each person.
    """
    spelt: dict[str, Path] = {}
    for of in classes:
        if (other := spelt.setdefault(name_key(of.name), of)) is not of:
            raise DataError(
                f"{folder}: the folders {other.name!r} and {of.name!r} name the same class; "
                "merge or rename one"
            )
    found = [(of.name, file) for of in classes for file in _pictures(of)]
    found += [("", file) for file in _pictures(folder, deep=False)]
    labels = pa.array([name or None for name, _ in found], pa.string())
    if found:
        refuse_pointer(found[0][1])

    items: list[Item] = [file if name else "it lies in no class folder" for name, file in found]

    def stamp() -> str:
        return digest(*(f"{name} {file_stamp(file)}" for name, file in found))

    return [
        Part(
            str(folder),
            labels,
            in_steps(len(items), lambda start, stop: items[start:stop]),
            one_split(None, len(items)),
            files=[str(file) for _, file in found],
            stamp=stamp,
        )
    ]


def _pictures(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Yield the pictures in a folder, sorted; of what is no JPEG or PNG those meant as slices."""
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if deep and is_visible(f))
        for name in sorted(filter(is_visible, names)):
            file = Path(home, name)
            if name.lower().endswith(PICTURES + _OTHER_PICTURES) or (
                "." not in name and _begins_as_picture(file)
            ):
                yield file


def is_visible(name: str) -> bool:
    """Whether a file or folder is no by-product of a system, as ``.git`` or ``__MACOSX``."""
    return not name.startswith((".", "__"))


def _begins_as_picture(file: Path) -> bool:
    return first_bytes(file).startswith((b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x89PNG"))
