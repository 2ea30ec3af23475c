"""What a parquet file declares, checked before Arrow reads it: some false footers end the process.

Only the fields of Thrift's compact protocol that say how much there will be are read here. See
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

MAX_BATCH = 48 * 2**20
"""Bytes that one batch of rows may take, beside what the file itself has."""

# A page may unpack to so many times its bytes, or to so many whatever it was, and never to more.
_RATIO, _FLOOR, _MAX_PAGE = 20, 32 * 2**20, 2**30
_MAX_NESTED = 24
_PAGES_A_ROW, _PAGES = 2, 64
_VALUES_A_ROW, _VALUES = 20, 200_000
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # Kinds of pages.
_DELTA_BYTE_ARRAY = 7  # An encoding whose values may be far longer than what is stored for them.
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_DAMAGED = (IndexError, KeyError, TypeError, AttributeError)


class FooterError(ValueError):
    """A footer or a page header that is damaged, or declares what cannot be."""


class Chunk(NamedTuple):
    """A column of a row group; `nulls` is -1 where its statistics do not count them."""

    start: int
    length: int
    values: int
    codec: int
    path: str
    nulls: int


class Group(NamedTuple):
    """A row group: its rows, and its columns in the order of the schema's leaves."""

    rows: int
    chunks: list[Chunk]


class _Thrift:
    """Reader of the compact protocol: structs become dicts by field number, lists lists."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def raw(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self.data):
            raise IndexError
        return self.data[self.at - length : self.at]

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise FooterError("a number of more than 64 bits")
        return value | byte << shift

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            found[field] = kind == 1 if kind < 3 else self.value(kind, depth + 1)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_NESTED:
            raise FooterError(f"it nests deeper than {_MAX_NESTED}")
        if kind in (1, 2, 3):
            return self.byte()
        if kind in (4, 5, 6):
            return self.integer()
        if kind in (7, 8):
            return self.raw(8 if kind == 7 else self.varint())
        if kind in (9, 10):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            if count > len(self.data) - self.at:  # Each takes a byte at least.
                raise IndexError
            return [self.value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.struct(depth)
        raise FooterError(f"a field of the unknown kind {kind}")


def _integers(*values: object) -> Any:
    """Return the values, or raise TypeError if one is no integer."""
    if not all(type(value) is int for value in values):
        raise TypeError
    return values


def read_groups(file: pa.NativeFile) -> list[Group]:
    """Return the row groups of an open parquet file, checked against its length."""
    whole = file.size()
    if whole < 12:
        raise FooterError(f"{whole} bytes are too few")
    file.seek(whole - 8)
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1":
        raise FooterError(f"it ends with {end[4:]!r}, expected b'PAR1'")
    if length > whole - 12:
        raise FooterError(f"a footer of {length} bytes in a file of {whole}")
    file.seek(whole - 8 - length)
    try:
        about = _Thrift(file.read(length)).struct()
        # Elements without children are leaves: Arrow ends the process if a column's type differs.
        kinds = [element.get(1) for element in about[2] if not element.get(5)]
        groups = [_group(of, whole, kinds) for of in about.get(4, [])]
        declared, found = about[3], sum(group.rows for group in groups)
    except _DAMAGED as error:
        raise FooterError("its footer is damaged") from error
    if declared != found:
        raise FooterError(f"it declares {declared} rows, its row groups {found}")
    return groups


def _group(of: dict[int, Any], whole: int, kinds: list[int]) -> Group:
    (rows,) = _integers(of[3])
    if rows < 0:
        raise FooterError(f"a row group of {rows} rows")
    columns = [column[3] for column in of[1]]
    if (found := [about.get(1) for about in columns]) != kinds:
        raise FooterError(f"columns of the types {found}, its schema says {kinds}")
    chunks = []
    for about in columns:
        codec, values, length, start = _integers(*(about[i] for i in (4, 5, 7, 9)))
        if about.get(11, 0) > 0:  # The dictionary page, if there is one.
            start = min(start, about[11])
        if start < 0 or length < 0 or start + length > whole:
            raise FooterError(f"a column of {length} bytes in a file of {whole}")
        path = b".".join(about[3]).decode(errors="replace")
        chunks.append(Chunk(start, length, values, codec, path, about.get(12, {}).get(3, -1)))
    return Group(rows, chunks)


def check_pages(file: pa.NativeFile, groups: list[Group], columns: Mapping[int, bool]) -> int:
    """Check the header of every page of some columns before Arrow makes room for them.

    `columns` are leaves of the schema with one value a row, and whether it is of bytes. Returns the
    bytes that a value may have without being stored for its row; 0 if there is none.
    """
    longest = values = 0
    most = _VALUES + _VALUES_A_ROW * sum(group.rows for group in groups)
    for group in groups:
        for column, of_bytes in columns.items() if group.rows else ():
            chunk, rows = group.chunks[column], 0
            for page in _pages(file, chunk, _PAGES + _PAGES_A_ROW * group.rows):
                if page.kind != _DICTIONARY:
                    rows += page.values
                    longest = max(longest, page.unpacked if page.of_prefixes else 0)
                elif of_bytes:
                    values += page.values
                    if values > most:
                        raise FooterError(f"dictionaries of {values} values")
                    longest = max(longest, _longest(file, page, chunk.codec))
            if not rows == chunk.values == group.rows:
                raise FooterError(
                    f"a row group of {group.rows} rows, a column of it has {chunk.values} and its "
                    f"pages {rows}"
                )
    return longest


class _Page(NamedTuple):
    kind: int
    start: int
    packed: int
    unpacked: int
    values: int
    of_prefixes: bool


def _longest(file: pa.NativeFile, page: _Page, codec: int) -> int:
    file.seek(page.start)
    data = file.read_buffer(page.packed)
    if codec:
        if codec not in _CODECS:
            return page.unpacked
        data = pa.Codec(_CODECS[codec]).decompress(data, page.unpacked)
    view, longest, at = memoryview(data), 0, 0
    try:
        for _ in range(page.values):
            (length,) = struct.unpack_from("<I", view, at)
            at += 4 + length
            longest = max(longest, length)
    except struct.error:
        raise FooterError("a dictionary that is cut") from None
    return longest


def _pages(file: pa.NativeFile, chunk: Chunk, limit: int) -> Iterator[_Page]:
    at, end = chunk.start, chunk.start + chunk.length
    for _ in range(limit):
        if at >= end:
            return
        page = _page(file, at, end)
        if page.packed < 0 or page.unpacked < 0 or page.start + page.packed > end:
            raise FooterError(f"a page of {page.packed} bytes where {end - page.start} are left")
        if page.unpacked > min(_MAX_PAGE, max(_FLOOR, _RATIO * page.packed)):
            raise FooterError(f"a page that unpacks from {page.packed} to {page.unpacked} bytes")
        if page.values < 0:
            raise FooterError(f"a page of {page.values} values")
        yield page
        at = page.start + page.packed
    if at < end:
        raise FooterError(f"more than {limit} pages")


def _page(file: pa.NativeFile, at: int, end: int) -> _Page:
    for nbytes in (128, 2**16):  # Statistics make some headers long.
        file.seek(at)
        thrift = _Thrift(file.read(min(nbytes, end - at)))
        try:
            head = thrift.struct()
            kind, unpacked, packed = _integers(*(head.get(key, -1) for key in (1, 2, 3)))
            about = head.get(5) or head.get(8) or head.get(7) or {}
            counted = kind in (_DATA, _DICTIONARY, _DATA_V2)
            (values,) = _integers(about.get(1, 0) if counted else 0)
            of_prefixes = about.get(4 if 8 in head else 2) == _DELTA_BYTE_ARRAY
            return _Page(kind, at + thrift.at, packed, unpacked, values, of_prefixes)
        except _DAMAGED:
            continue
    raise FooterError(f"a damaged page header at byte {at}")
