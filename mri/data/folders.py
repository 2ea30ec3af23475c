"""What stands in a file or folder: parquet, tables, class folders, or a folder below with these."""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

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

# Endings of what is no JPEG or PNG, but meant as a slice: such files are rejected, not ignored.
_OTHER_PICTURES = tuple(
    ".bmp .gif .tif .tiff .webp .jp2 .avif .heic .pgm .dcm .ima .nii .nii.gz .mgz".split()
)
_EXPECTED = (
    "Expected train and test parquet files, class folders of JPEG or PNG images (with or without "
    "train/ and test/), a folder of save_to_disk or CSV files, there or in its data/"
)
_PARQUET, _TABLES = (".parquet", ".pq"), (".csv", ".tsv")
_ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".rar", ".7z")
# What a clone of this project holds beside its slices, pictures among it, is no data.
_CLONE = (".git", "pyproject.toml", "main.ipynb")
_DEPTH = 6
# Names of classes, not of the people that a class folder may hold.
_CLASS = re.compile(
    "dement|impair|mild|moderate|alzheimer|healthy|^(normal|controls?|ad|[el]?mci|cn|nc|hc)$"
)
_NO_CLASSES = frozenset(
    "mask masks annotation annotations segmentation segmentations thumbs thumbnails".split()
)


class NoSlicesError(DataError):
    """A file or folder is not there, or holds nothing that can be read as slices."""


def from_path(path: Path, columns: Columns) -> list[Part]:
    """Read a file, the files of a pattern, or what a folder holds."""
    if not path.exists():
        with suppress(RuntimeError):  # The home of somebody unknown.
            path = path.expanduser()
    try:
        if path.is_dir():
            return _inside(path, columns) or _nothing(path)
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    files = [path] if path.exists() else map(Path, sorted(glob.glob(os.fspath(path))))
    found = [part for file in files for part in from_file(file, columns)]
    if not found:
        raise NoSlicesError(f"{path}: no parquet file found. {REMEDY}")
    return found


def _nothing(folder: Path) -> list[Part]:
    here = sorted(entry.name for entry in folder.iterdir() if _is_visible(entry.name))
    told = f"found {here[:8]}{' and more' if len(here) > 8 else ''}" if here else "it is empty"
    packed = [name for name in here if name.lower().endswith(_ARCHIVES) and ".nii" not in name]
    unpack = f" Unpack {packed[0]}, if they are in there." if packed else ""
    raise NoSlicesError(
        f"{folder}: no slices in this folder, {told}.{unpack} {_EXPECTED}. {REMEDY}"
    )


def from_file(file: Path, columns: Columns) -> list[Part]:
    """Read a file; refuse a picture alone, an archive, and what is of no known kind."""
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
    parts = READERS.get(ending, from_parquet)(file, columns)
    return [_of_split(part, file, begun_split(file.name)) for part in parts]


def _of_split(part: Part, home: Path, split: str | None) -> Part:
    """Return a part as one of the split that its file or folder is named after.

    A column that divides the rows goes before; it may set some of a train file aside.
    """
    told = part.split_names - {""}
    if split and told - {split, "validation" if split == "train" else split}:
        raise DataError(
            f"{home}: its name says {split}, but it holds {sorted(told)}; rename it, or drop the "
            "column that divides its rows"
        )
    return part if told else part.as_split(split)


def _inside(folder: Path, columns: Columns, depth: int = 0) -> list[Part]:
    """Read what a folder holds, or the one folder below it that holds something."""
    entries = sorted(entry for entry in folder.iterdir() if _is_visible(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    # Dead links are among the files: to ignore one part silently would be worse than its error.
    files = [entry for entry in entries if not entry.is_dir()]
    if {"dataset_dict.json", "state.json"} & {file.name for file in files}:
        return from_saved(folder, columns)
    clone = any((folder / name).exists() for name in _CLONE)
    shards = [file for file in files if file.suffix.lower() in _PARQUET]
    tables = [file for file in files if file.suffix.lower() in _TABLES and not clone]
    trees: list[Part] = []
    if depth < _DEPTH:
        data = [of for of in folders if of.name.lower() == "data"]
        if not shards and (below := _below(data, columns, depth)):
            rest = [] if clone else [of for of in folders if of not in data]
            if beside := [of.name for of in rest if next(_pictures(of), None)]:
                others = f"{folder}: data/ was read, and not the pictures in {', '.join(beside)}"
                warnings.warn(others, UserWarning, stacklevel=2)
            return below
        trees = [] if clone else _trees(folder, folders, columns, depth, bool(shards or tables))
    # A table beside slices may be of something else, unless it tells labels or files.
    if (shards or trees) and not any(_lists_slices(file, columns) for file in tables):
        tables = []
    found = {"parquet files": shards, "folders": [Path(of.place) for of in trees], "tables": tables}
    told = [f"{k} ({', '.join(of.name for of in v[:4])})" for k, v in found.items() if v]
    if len(told) > 1:
        raise DataError(f"{folder}: two data sets, {' and '.join(told)}; give one of them")
    return trees or [part for file in shards or tables for part in from_file(file, columns)]


def _lists_slices(file: Path, columns: Columns) -> bool:
    """Whether the first line of a table names the column of labels, or one of files."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        head = re.split(r"[,;\t]", opened.readline(10_000).strip().replace('"', ""))
    return not {name_key(columns.label), "filename"}.isdisjoint(map(name_key, head))


def _below(folders: Sequence[Path], columns: Columns, depth: int) -> list[Part]:
    """Read the only one of some folders that holds slices, or one for each split."""
    held = {of: parts for of in folders if (parts := _inside(of, columns, depth + 1))}
    if len(held) < 2:
        return next(iter(held.values()), [])
    splits = _splits_of(list(held))
    if all(splits.values()) and len(set(splits.values())) == len(splits):
        return [_of_split(part, of, splits[of]) for of, parts in held.items() for part in parts]
    raise DataError(
        f"{next(iter(held)).parent}: several data sets, in {', '.join(of.name for of in held)}; "
        "give one of them"
    )


def _splits_of(folders: Sequence[Path]) -> dict[Path, str | None]:
    """Return the splits that folders are named after, all of them or as many as there are."""
    begun = {of: begun_split(of.name) for of in folders}
    return begun if all(begun.values()) else {of: split_of(of.name) for of in folders}


def _trees(
    folder: Path, folders: Sequence[Path], columns: Columns, depth: int, listed: bool
) -> list[Part]:
    """Read class folders, under train and test or not, or what one folder below holds.

    Where files beside them list slices (`listed`), one folder of pictures belongs to these.
    """
    pictured = [of for of in folders if next(_pictures(of), None)]
    # Phantoms that a run has written, which are no pictures, are no data of the user's.
    folders = [of for of in folders if of in pictured or not of.name.startswith("phantom")]
    if not pictured:
        return [] if listed else _below(folders, columns, depth)
    splits = _splits_of(pictured)
    if any(splits.values()):
        if not all(splits.values()) or len(set(splits.values())) < len(splits):
            raise DataError(
                f"{folder}: folders {[of.name for of in pictured]}, expected one for each of "
                "train, test and validation, and no other; move the others away"
            )
        empty = [of.name for of in folders if of not in pictured and begun_split(of.name)]
        _tell(folder, empty, "these parts are empty")
        inside = {of: _inside(of, columns, depth + 1) for of in pictured}
        unread = [of.name for of, parts in inside.items() if not parts]
        if 0 < len(unread) < len(inside):
            raise DataError(
                f"{folder}: the pictures in {', '.join(unread)} are in no class folders; give a "
                "table of their labels, or move them away"
            )
        return [_of_split(part, of, splits[of]) for of, parts in inside.items() for part in parts]
    if not any(of.suffix.lower() in PICTURES for up in pictured for of in up.iterdir()):
        if len(pictured) == 1:
            return [] if listed else _below(pictured, columns, depth)
        _refuse_shared(folder, pictured)
    # One folder alone is a class of a part, else just a folder of pictures.
    if len(pictured) == 1 and not split_of(folder.name):
        return []
    for of in pictured:
        _refuse_classes_in(of)
    _tell(folder, [of.name for of in folders if of not in pictured], "these are no classes")
    return [from_tree(folder, pictured)]


def _tell(folder: Path, names: list[str], what: str) -> None:
    """Warn of folders without pictures, if there are any."""
    if names:
        told = f"{folder}: no JPEG or PNG images in {', '.join(names)}, so {what}"
        warnings.warn(told, UserWarning, stacklevel=2)


def _refuse_shared(folder: Path, classes: Sequence[Path]) -> None:
    """Raise DataError if folders hold folders of the same names: they are no classes."""
    inner = [
        {name_key(of.name) for of in up.iterdir() if of.is_dir() and _is_visible(of.name)}
        for up in classes
    ]
    for i, names in enumerate(inner):
        for shared in filter(None, (names & others for others in inner[:i])):
            hint = ", or put train/ and test/ above the class folders"
            raise DataError(
                f"{folder}: several data sets, in {', '.join(of.name for of in classes)}: each "
                f"has {', '.join(sorted(shared)[:4])}; give one of them"
                f"{hint if any(map(split_of, shared)) else ''}"
            )


def _refuse_classes_in(folder: Path) -> None:
    """Raise DataError if what stands for a class holds folders that are named as classes are."""
    own, named = name_key(folder.name), dict[str, str]()
    for of in sorted(folder.iterdir()):
        key = re.sub(r"\d", "", name_key(of.name))  # People may be numbered in their class.
        if _CLASS.search(key) and own not in key and of.is_dir() and next(_pictures(of), None):
            named.setdefault(key, of.name)
    if len(named) > 1:
        raise DataError(
            f"{folder}: stands for a class, but holds {', '.join([*named.values()][:4])}; give the "
            "one folder whose folders are the classes"
        )


def from_tree(folder: Path, classes: Sequence[Path]) -> Part:
    """Read class folders: the name of each is its class; pictures may lie deeper in it."""
    spelt: dict[str, Path] = {}
    for of in classes:
        if (other := spelt.setdefault(name_key(of.name), of)) is not of:
            raise DataError(
                f"{folder}: the folders {other.name!r} and {of.name!r} name the same class; "
                "merge or rename one"
            )
    found: list[tuple[str | None, Path]] = [
        (of.name, file) for of in classes for file in _pictures(of)
    ]
    for home in sorted({file.parent for _, file in found}):
        own, *deeper = home.relative_to(folder).parts
        if not _NO_CLASSES.isdisjoint(map(name_key, (own, *deeper))):
            below = str(home.relative_to(folder))
            raise DataError(f"{folder}: the folder {below!r} is no class; move it away")
        if any(map(split_of, [*deeper, *re.split("[^a-z]+", own.lower())])):
            raise DataError(
                f"{home}: is named after a part, but stands for a class or inside of one; put "
                "train/ and test/ above the class folders"
            )
    found += [(None, file) for file in _pictures(folder, deep=False)]
    refuse_pointer(found[0][1])
    items: list[Item] = [file if name else "it lies in no class folder" for name, file in found]
    return Part(
        str(folder),
        pa.array([name for name, _ in found], pa.string()),
        in_steps(len(items), lambda start, stop: items[start:stop]),
        one_split(None, len(items)),
        files=[str(file) for _, file in found],
        stamp=lambda: digest(*(f"{name} {file_stamp(file)}" for name, file in found)),
    )


def _pictures(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Yield the pictures in a folder, sorted, and the other files that are meant as slices.

    PermissionError if a folder in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {folder.resolve(), *folder.resolve().parents}  # Links may lead round.
    for home, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        below = {Path(home, of).resolve(): of for of in sorted(folders) if deep and _is_visible(of)}
        folders[:] = [of for real, of in below.items() if real not in seen]
        seen |= below.keys()
        for name in sorted(filter(_is_visible, names)):
            file = Path(home, name)
            if name.lower().endswith(PICTURES + _OTHER_PICTURES) or (
                "." not in name and first_bytes(file).startswith((b"\xff\xd8\xff", b"\x89PNG"))
            ):
                yield file


def _is_visible(name: str) -> bool:
    """Whether a file or folder is no by-product of a system: ``.git``, ``__MACOSX``, ``@eaDir``."""
    return not name.startswith((".", "__", "@", "$"))
