"""What a parquet file declares, read before Arrow: its footer aborts the process on some lies.

Only Thrift's compact protocol is spoken here, in the few fields that say how much there will be:
see https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

MAX_BATCH = 48 * 2**20
"""Bytes that one batch of rows may take, beside what the file itself has."""

# A page may unpack to so many times its bytes, or to so many whatever it was, and never to more.
_RATIO, _FLOOR, _MAX_PAGE = 20, 32 * 2**20, 2**30
_MAX_NESTED = 24
_PAGES_A_ROW, _PAGES = 2, 64
_VALUES_A_ROW, _VALUES = 20, 200_000
# Of these a value may be far longer than what is stored for it.
_DICTIONARY_PAGE, _DELTA_BYTE_ARRAY = 2, 7
_WITH_VALUES = {0, 2, 3}  # Kinds of pages: data, dictionary, data of the second version.
_LENGTH = struct.Struct("<I")
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class FooterError(ValueError):
    """A footer or a page header that is damaged, or declares what cannot be."""


class Readable(Protocol):
    """What is needed of an open file."""

    def seek(self, position: int) -> object:
        """Go to a byte."""

    def read(self, nbytes: int) -> bytes:
        """Return so many bytes, fewer at the end."""

    def read_buffer(self, nbytes: int) -> Any:
        """Return so many bytes as a buffer, fewer at the end."""

    def size(self) -> int:
        """Return the number of bytes."""


class Chunk(NamedTuple):
    """A column of a row group: where its pages begin, and what they are said to hold.

    `nulls` is the number of nulls by the statistics of the column, -1 where there are none.
    """

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

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise FooterError("a number of more than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_NESTED:
            raise FooterError(f"it nests deeper than {_MAX_NESTED}")
        found: dict[int, Any] = {}
        field = 0
        while head := self.data[self.at]:
            self.at += 1
            field = field + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            found[field] = kind == 1 if kind < 3 else self.value(kind, depth)
        self.at += 1
        return found

    def value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self.integer()
        if kind == 8:
            length = self.varint()
            self.at += length
            if self.at > len(self.data):
                raise IndexError
            return self.data[self.at - length : self.at]
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self.data[self.at]
            self.at += 1
            count = head >> 4 if head >> 4 < 15 else self.varint()
            if count > len(self.data) - self.at:  # Each takes a byte at least.
                raise IndexError
            return [self.value(head & 15, depth) for _ in range(count)]
        if kind in (1, 2, 3):
            self.at += 1
            return self.data[self.at - 1]
        if kind == 7:
            self.at += 8
            return struct.unpack("<d", self.data[self.at - 8 : self.at])[0]
        raise FooterError(f"a field of the unknown kind {kind}")


def read_groups(file: Readable) -> list[Group]:
    """Return the row groups of an open parquet file, checked against its length.

    Raises
    ------
    FooterError
        If the footer is damaged, its numbers of rows do not add up, or a column lies outside.
    """
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
        rows = about[3]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise FooterError("its footer is damaged") from error
    if rows != sum(group.rows for group in groups):
        found = sum(group.rows for group in groups)
        raise FooterError(f"it declares {rows} rows, its row groups {found}")
    return groups


def _group(of: dict[int, Any], whole: int, kinds: list[int]) -> Group:
    rows, chunks = of[3], []
    if rows < 0:
        raise FooterError(f"a row group of {rows} rows")
    found = [column[3].get(1) for column in of[1]]
    if found != kinds:
        raise FooterError(f"columns of the types {found}, its schema says {kinds}")
    for column in of[1]:
        about = column[3]
        if not all(type(number) is int for number in (rows, *(about[i] for i in (4, 5, 7, 9)))):
            raise TypeError
        start = min(about[9], about[11]) if about.get(11, 0) > 0 else about[9]
        if start < 0 or about[7] < 0 or start + about[7] > whole:
            raise FooterError(f"a column of {about[7]} bytes in a file of {whole}")
        path = b".".join(about[3]).decode(errors="replace")
        nulls = about.get(12, {}).get(3, -1)
        chunks.append(Chunk(start, about[7], about[5], about[4], path, nulls))
    return Group(rows, chunks)


def check_pages(file: Readable, groups: list[Group], columns: Mapping[int, bool]) -> int:
    """Look at the header of every page of the given columns before Arrow makes room for them.

    Parameters
    ----------
    file : Readable
    groups : list of Group
    columns : mapping of int to bool
        Leaves of the schema with one value a row, and whether it is of bytes.

    Returns
    -------
    int
        Bytes that a value may have without being stored for its row; 0 where there is none.

    Raises
    ------
    FooterError
        If a page would unpack to far more than its size, or the pages hold other than the declared
        rows.
    """
    longest = values = 0
    most = _VALUES + _VALUES_A_ROW * sum(group.rows for group in groups)
    for group in groups:
        for column, of_bytes in columns.items() if group.rows else ():
            chunk, rows = group.chunks[column], 0
            for page in _pages(file, chunk, _PAGES + _PAGES_A_ROW * group.rows):
                rows += 0 if page.is_dictionary else page.values
                if page.is_dictionary and of_bytes:
                    values += page.values
                    if values > most:
                        raise FooterError(f"dictionaries of {values} values")
                    longest = max(longest, _longest(file, page, chunk.codec))
                elif page.of_prefixes:
                    longest = max(longest, page.unpacked)
            if not rows == chunk.values == group.rows:
                raise FooterError(
                    f"a row group of {group.rows} rows, a column of it has {chunk.values} and its "
                    f"pages {rows}"
                )
    return longest


def _longest(file: Readable, page: _Page, codec: int) -> int:
    """Return the length of the longest value of a dictionary page."""
    file.seek(page.start)
    data = file.read_buffer(page.packed)
    if codec in _CODECS:
        data = pa.Codec(_CODECS[codec]).decompress(data, page.unpacked)
    elif codec:
        return page.unpacked
    view, longest, at = memoryview(data), 0, 0
    try:
        for _ in range(page.values):
            (length,) = _LENGTH.unpack_from(view, at)
            at += 4 + length
            if length > longest:
                longest = length
    except struct.error:
        raise FooterError("a dictionary that is cut") from None
    return longest


class _Page(NamedTuple):
    start: int
    packed: int
    unpacked: int
    values: int
    is_dictionary: bool
    of_prefixes: bool


def _pages(file: Readable, chunk: Chunk, limit: int) -> Iterator[_Page]:
    at, end = chunk.start, chunk.start + chunk.length
    for _ in range(limit):
        if at >= end:
            return
        length, head = _page_header(file, at, end)
        kind, unpacked, packed = head.get(1), head.get(2, -1), head.get(3, -1)
        if packed < 0 or unpacked < 0 or at + length + packed > end:
            raise FooterError(f"a page of {packed} bytes where {end - at - length} are left")
        if unpacked > min(_MAX_PAGE, max(_FLOOR, _RATIO * packed)):
            raise FooterError(f"a page that unpacks from {packed} to {unpacked} bytes")
        about = head.get(5) or head.get(8) or head.get(7) or {}
        values = about.get(1, 0) if kind in _WITH_VALUES else 0
        if values < 0:
            raise FooterError(f"a page of {values} values")
        prefixes = about.get(4 if 8 in head else 2) == _DELTA_BYTE_ARRAY
        yield _Page(at + length, packed, unpacked, values, kind == _DICTIONARY_PAGE, prefixes)
        at += length + packed
    if at < end:
        raise FooterError(f"more than {limit} pages")


def _page_header(file: Readable, at: int, end: int) -> tuple[int, dict[int, Any]]:
    """Return the length of a page's header, and its fields."""
    for nbytes in (128, 2**16):  # Statistics make some long.
        file.seek(at)
        thrift = _Thrift(file.read(min(nbytes, end - at)))
        try:
            fields = _fields(thrift)
            return thrift.at, fields
        except (IndexError, KeyError, TypeError, AttributeError, struct.error):
            continue
    raise FooterError(f"a damaged page header at byte {at}")


def _fields(thrift: _Thrift) -> dict[int, Any]:
    found = thrift.struct()
    numbers = [found.get(key, 0) for key in (1, 2, 3)]
    for key in (5, 7, 8):
        numbers += [found.get(key, {}).get(of, 0) for of in (1, 2, 4)]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError
    return found
