"""Class folders of pictures: the name of a folder is the name of the class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mri.data.decode import DataError
from mri.data.labels import name_key
from mri.data.parts import Item, Part, Rows, digest, file_stamp

PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
"""Endings of what is decoded, in lower case."""

OTHER_PICTURES = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm", ".ima", ".nii", ".nii.gz")
"""Endings of what is no JPEG or PNG, but meant as a slice: such files are rejected, not ignored."""


def from_tree(folder: Path, classes: Sequence[Path], split: str | None) -> list[Part]:
    """Read class folders: the name of the folder is the name of the class.

    Parameters
    ----------
    folder : path
        That holds them.
    classes : sequence of path
        The class folders; their files may lie deeper, as in a folder for each person.
    split : str, optional
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
    names = pa.array([name or None for name, _ in found], pa.string())

    def read(size: int) -> Iterator[Rows]:
        for start in range(0, len(found), size):
            some = found[start : start + size]
            items: list[Item] = [
                file if name else "it lies in no class folder" for name, file in some
            ]
            files = [str(file) for _, file in some]
            zeros = np.zeros(len(some), np.int64)
            yield Rows(files, zeros, items, names.slice(start, len(some)))

    def stamp() -> str:
        return digest(*(f"{name} {file_stamp(file)}" for name, file in found))

    return [Part(str(folder), pa.chunked_array([names]), read, split, stamp=stamp)]


def _pictures(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Yield the pictures in a folder, sorted; of what is no JPEG or PNG those meant as slices."""
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if deep and is_visible(f))
        for name in sorted(filter(is_visible, names)):
            file = Path(home, name)
            if name.lower().endswith(PICTURES + OTHER_PICTURES) or (
                "." not in name and _begins_as_picture(file)
            ):
                yield file


def is_visible(name: str) -> bool:
    """Whether a file or folder is no by-product of a system, as ``.git`` or ``__MACOSX``."""
    return not name.startswith((".", "__"))


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture anywhere below a folder."""
    return next(_pictures(folder), None) is not None


def _begins_as_picture(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(4) in (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x89PNG")
    except OSError:
        return False
