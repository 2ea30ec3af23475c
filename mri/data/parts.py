"""Rows of slices, wherever they stand: encoded bytes, pixels, or paths to read them from."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mri.data.decode import MAX_SIDE, DataError, column_views
from mri.data.labels import name_key

Item = np.ndarray | Path | str | None
"""A slice before it is decoded: encoded bytes uint8 (k,), gray pixels uint8 (h, w) or a path.

A text is the reason why there is no slice; None is a null.
"""

LFS = b"version https://git-lfs"
LFS_REMEDY = "is a Git LFS pointer, not the file itself; run: git lfs pull"
ONLY_PATHS = "only paths are stored here"

_LONGEST = 1 << 28  # Bytes of one image file: no picture of the largest size is as long.
_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
_SPLIT = re.compile(
    r"(?:(train|test)(?:ing)?|val|valid|validation|dev)(?:set|data|split|part|images|slices)?"
)


@dataclass(frozen=True, eq=False)
class Part:
    """One file, folder or table of slices.

    `place` names it in messages. `labels` are those of all rows, as
    `mri.data.labels.plain_labels` returns them. `read` goes from a number n to an iterator of lists
    of up to n items, in the order of the rows. `splits`, str (n,), are 'train', 'test' or
    'validation' for each row, '' where the source does not tell. `names` are the class names in
    label order, if the data give them. `files` has the file of each row, if each row has its own.
    `kept`, bool (n,), says which rows belong to this part; by default all. `stamp` makes a text
    that changes with the data, for caches. `size` are the bytes of the file, if a short file can
    repeat one picture many times; else 0.
    """

    place: str
    labels: pa.Array
    read: Callable[[int], Iterator[list[Item]]]
    splits: np.ndarray
    names: tuple[str, ...] | None = None
    synthetic: bool = False
    files: Sequence[str] | None = None
    kept: np.ndarray | None = None
    stamp: Callable[[], str] = str
    size: int = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels) if self.kept is None else int(self.kept.sum())

    @cached_property
    def split_names(self) -> set[str]:
        """The splits that its rows belong to, '' among them where the source does not tell."""
        return set(self.splits.tolist())

    def rows(self, size: int) -> Iterator[Rows]:
        """Yield the rows of this part, up to `size` at a time."""
        start = 0
        for items in self.read(size):
            rows = Rows(self, np.arange(start, start + len(items)), items)
            start += len(items)
            if self.kept is not None:
                rows = rows.take(np.flatnonzero(self.kept[rows.numbers]))
            if rows.items:
                yield rows

    def of_split(self, split: str) -> Part | None:
        """Return the rows of a split as a part, None where there are none."""
        if split not in self.split_names:
            return None
        return replace(self, kept=None if len(self.split_names) == 1 else self.splits == split)

    def as_split(self, split: str | None) -> Part:
        """Return all rows as those of one split; None changes nothing."""
        return self if split is None else replace(self, splits=one_split(split, len(self.splits)))


class Rows(NamedTuple):
    """Some rows of a part: their numbers in it, int (n,), and their items."""

    part: Part
    numbers: np.ndarray
    items: list[Item]

    @property
    def labels(self) -> pa.Array:
        """Labels of these rows."""
        return self.part.labels.take(pa.array(self.numbers))

    @property
    def splits(self) -> np.ndarray:
        """Splits of these rows, str (n,)."""
        return self.part.splits[self.numbers]

    def place(self, i: int) -> tuple[str, int]:
        """Return the file of the i-th of them, and its row there."""
        row = int(self.numbers[i])
        return (self.part.place, row) if self.part.files is None else (self.part.files[row], 0)

    def told(self, i: int) -> str:
        """Return the place of the i-th of them for a message."""
        file, row = self.place(i)
        return f"{file}, row {row}" if self.part.files is None else file

    def content(self, i: int) -> np.ndarray:
        """Return the encoded bytes uint8 (k,) or the pixels uint8 (h, w) of the i-th of them."""
        found = load(self.items[i])
        if found is None or isinstance(found, str):
            raise DataError(f"{self.told(i)}: {found or 'the image is null'}")
        return found

    def take(self, rows: np.ndarray) -> Rows:
        """Return some of them; `rows` are their places here, int (m,)."""
        return Rows(self.part, self.numbers[rows], [self.items[i] for i in rows])


def in_steps(
    n: int, cells: Callable[[int, int], list[Item]]
) -> Callable[[int], Iterator[list[Item]]]:
    """Return `Part.read` for n rows, from a function of the first row and that behind the last."""
    return lambda size: (cells(start, min(start + size, n)) for start in range(0, n, size))


def one_split(split: str | None, n: int) -> np.ndarray:
    """Return one split as that of `n` rows, '' for None; takes no memory for each."""
    return np.broadcast_to(np.array(split or "", object), n)


def split_of(name: object) -> str | None:
    """Return 'train', 'test' or 'validation' for one of their usual names, else None.

    >>> split_of("Training"), split_of("VAL"), split_of("MildDemented")
    ('train', 'validation', None)
    """
    found = _SPLIT.fullmatch(name_key(str(name)))
    return (found[1] or "validation") if found else None


def begun_split(name: str) -> str | None:
    """Return the split that the name of a file or folder begins with, None where it is none.

    >>> begun_split("Train-0.parquet"), begun_split("test_images"), begun_split("trained.csv")
    ('train', 'test', None)
    """
    return split_of(re.split("[^a-z]", name.lower(), maxsplit=1)[0])


def file_stamp(path: Path) -> str:
    """Return what tells whether a file has changed: name, size and time."""
    about = path.stat()
    return f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a regular file, none of what cannot be read."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(LFS))
    except OSError:
        pass
    return b""


def refuse_pointer(path: Path) -> None:
    """Raise DataError if a file is what Git LFS leaves where the content was not fetched."""
    if first_bytes(path) == LFS:
        raise DataError(f"{path}: {LFS_REMEDY}")


def load(item: Item) -> np.ndarray | str | None:
    """Return an item with its file read, if it is a path."""
    if not isinstance(item, Path):
        return item
    try:
        if not item.is_file():
            return f"{item}: no such file"
        if item.stat().st_size > _LONGEST:
            return f"{item}: {item.stat().st_size >> 20} MB are no picture of a slice"
        blob = item.read_bytes()
    except OSError as error:
        return f"{item}: cannot be read ({error})"
    return f"{item}: {LFS_REMEDY}" if blob.startswith(LFS) else np.frombuffer(blob, np.uint8)


def gray(pixels: np.ndarray) -> np.ndarray | str:
    """Return pixels as gray values uint8 (h, w), or what is wrong with them.

    They may be gray, (h, w) or (h, w, 1), or RGB(A), (h, w, 3 or 4). Colour is weighted as by the
    decoder (BT.601).
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if not (pixels.ndim == 2 or colour) or not pixels.size:
        return f"pixels are of shape {pixels.shape}, expected (h, w), (h, w, 1) or (h, w, 3)"
    if max(pixels.shape) > MAX_SIDE:
        return f"{pixels.shape[0]} × {pixels.shape[1]} pixels, the limit is {MAX_SIDE} a side"
    if pixels.dtype.kind not in "uif" or (pixels.dtype.kind == "f" and pixels.max() <= 1):
        return (
            f"pixels are {pixels.dtype} from {pixels.min()} to {pixels.max()}, expected gray "
            "values 0 to 255; if they go from 0 to 1, pass (255 * pixels).round().astype('uint8')"
        )
    if not (np.isfinite(pixels).all() and 0 <= pixels.min() and pixels.max() <= 255):
        return f"gray values go from {pixels.min()} to {pixels.max()}, expected 0 to 255"
    if colour:
        pixels = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    elif pixels.dtype.kind == "f" and (pixels != np.rint(pixels)).any():
        return "gray values are fractions, expected whole numbers 0 to 255; round them"
    return np.ascontiguousarray(np.rint(pixels).astype(np.uint8))


def item_of(value: Any, homes: list[Path]) -> Item:
    """Return a cell of a table as an item; paths are looked for in `homes` in turn."""
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        held = value.get("bytes")
        empty = held is None or (isinstance(held, bytes | bytearray | memoryview) and not held)
        value = value.get("path") if empty else held
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8:
            return value
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        return np.frombuffer(bytes(value), np.uint8)
    if isinstance(value, str):
        return _from_text(value, homes)
    if isinstance(value, Path):
        return find_path(str(value), homes)
    try:
        if hasattr(value, "getbands"):  # An image of Pillow.
            if value.getexif().get(274, 1) != 1:
                return "its EXIF data turn the picture; apply PIL.ImageOps.exif_transpose first"
            plain = value.mode in ("L", "RGB", "RGBA", "F") or value.mode[0] == "I"
            value = np.asarray(value if plain else value.convert("RGB"))
        if hasattr(value, "__array__") or isinstance(value, list | tuple):
            return gray(np.array(value.tolist() if hasattr(value, "tolist") else value))
    except OSError as error:
        return f"the image is truncated or corrupt ({error})"
    except (TypeError, ValueError):
        pass
    return f"a {type(value).__name__} is no image, expected bytes, pixels or a path"


def _from_text(text: str, homes: list[Path]) -> Item:
    """Read what CSV makes of bytes and arrays; other text is a path."""
    text = re.sub(r"^data:image/\w+;base64,", "", text)
    try:
        if text.startswith(("b'", 'b"')):
            return np.frombuffer(ast.literal_eval(text), np.uint8)
        if text.startswith("[["):
            return gray(np.array(json.loads(text)))
        if text.startswith(("/9j/", "iVBORw0KGgo")):
            return np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        return f"the text {text[:20]!r}… is neither bytes nor an array ({error})"
    return find_path(text, homes)


def find_path(name: str, homes: list[Path]) -> Path | str:
    """Return the file of that name in one of `homes`, or say that there is none."""
    # All files of a table are where the first is, lest two data sets be mixed.
    path = Path(name.strip().replace("\\", "/"))
    for home in homes:
        try:
            if (home / path).is_file():
                homes[:] = homes if path.is_absolute() else [home]
                return home / path
        except (OSError, ValueError):  # Too long a name, or a null in it.
            break
    where = " or ".join(dict.fromkeys(str(home.resolve()) for home in homes))
    return f"{ONLY_PATHS}, and {name[:200]!r} is no file in {where}"


def items_of(column: pa.Array, homes: list[Path]) -> list[Item]:
    """Return the items of an Arrow column: bytes, structs of bytes and path, text or pixels."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = _plain(column.type)
    if kind in _BYTES:
        return list(column_views(column))
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return [item_of(value, homes) for value in column.to_pylist()]
    fields = dict(zip([field.name for field in kind], column.flatten(), strict=True))
    items: list[Item] = list(column_views(fields["bytes"]))
    paths = "path" in fields and fields["path"].type in _TEXT
    if paths and any(item is None for item in items):
        for i, path in enumerate(fields["path"].to_pylist()):
            if items[i] is None and path:
                found = find_path(path, homes)
                items[i] = f"the image is null: {found}" if isinstance(found, str) else found
    return items


def is_image_type(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type can hold slices."""
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return fields["bytes"] in _BYTES if "bytes" in fields else fields.get("path") in _TEXT
    depth = 0
    while hasattr(kind, "value_type"):  # Lists of any kind.
        kind, depth = kind.value_type, depth + 1
    if depth:
        return depth in (2, 3) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
    return kind in _BYTES or kind in _TEXT


def may_hold_paths(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type may name files."""
    kind = _plain(kind)
    return kind in _TEXT or (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that is stored, and that of the values of a dictionary."""
    kind = getattr(kind, "storage_type", kind)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def refuse_only_paths(place: object, items: Sequence[Item]) -> None:
    """Raise DataError if the first rows hold nothing but paths where no file is."""
    told = [item for item in items if item is not None]
    if told and all(isinstance(item, str) and ONLY_PATHS in item for item in told):
        raise DataError(
            f"{place}: {told[0]}; put the images there, or write their bytes into the column"
        )


def digest(*values: object) -> str:
    """Return a SHA-256 of texts, bytes and arrays, in hexadecimal."""
    found = hashlib.sha256()
    for value in values:
        raw = value if isinstance(value, bytes) else None
        if isinstance(value, np.ndarray):
            found.update(f"{value.shape} {value.dtype}".encode())
            raw = np.ascontiguousarray(value).tobytes()
        found.update(repr(value).encode() if raw is None else raw)
    return found.hexdigest()
