"""From compressed bytes to pixels: one JPEG or PNG, or a whole Arrow column on a thread pool."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

MAX_SIDE = 4096
"""Largest height or width in pixels; a header that declares more is refused unread."""

# What a picture may cost beside its pixels: bytes for each, chunks or segments, scans of a JPEG.
_MOST_BYTES, _SPARE_BYTES = 16, 4 * 2**20
_MOST_PARTS, _PIXELS_A_PART = 1024, 64
_MOST_SCANS = 32

# The start-of-frame markers of JPEG: C0 to CF without Huffman, reserved and arithmetic tables.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Without a length to skip by: behind one, a frame could hide from this reader but not from OpenCV.
_BARE_MARKERS = frozenset([*range(0xC0), *range(0xD0, 0xDA)])

# Baseline and extended frames, Huffman or arithmetic: of one component they have one scan.
_SINGLE_SCAN = frozenset({0xC0, 0xC1, 0xC9})


class _Begin(NamedTuple):
    """The first bytes of a JPEG, up to and with its frame header, and (h, w) as they have it."""

    content: bytes
    size: tuple[int, int]


# Of the last JPEG with a single scan: the slices of a set begin alike, and comparing costs less.
_last, _SHORT = _Begin(b"", (0, 0)), 4096


class DataError(ValueError):
    """A file or a row that cannot be used; the message names both, the cause and the remedy."""


def dict_to_image(
    record: Mapping[str, Any] | bytes, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode one record of the parquet file.

    Parameters
    ----------
    record : mapping or bytes
        A value of the `image` column, ``{"bytes": ..., "path": ...}``, or the bytes alone.
    size : tuple of int, optional
        Resize to (h, w) in pixels; by default the image keeps its size.

    Returns
    -------
    ndarray of uint8, shape (h, w)
        Gray values 0 to 255; colour is converted with the weights of BT.601.

    Raises
    ------
    DataError
        If it is null, empty, truncated, neither JPEG nor PNG, or has a side over 4096 pixels.

    Examples
    --------
    >>> import cv2, numpy as np
    >>> png = cv2.imencode(".png", np.full((2, 3), 7, np.uint8))[1].tobytes()
    >>> dict_to_image({"bytes": png, "path": None})
    array([[7, 7, 7],
           [7, 7, 7]], dtype=uint8)
    """
    check_size(size)
    blob = record.get("bytes") if isinstance(record, Mapping) else record
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise DataError(
            f"expected the bytes of a JPEG or PNG image. Received: record={record!r:.200}"
        )
    image = _image(np.frombuffer(bytes(blob), np.uint8), size)
    if isinstance(image, str):
        raise DataError(f"{image}; expected the bytes of a JPEG or PNG image")
    return image


def check_size(size: tuple[int, int] | None) -> None:
    """Raise ValueError unless `size` is None or (h, w) within `MAX_SIDE`."""
    pair = size if isinstance(size, tuple | list) and len(size) == 2 else (0, 0)
    if size is not None and not all(isinstance(of, int) and 1 <= of <= MAX_SIDE for of in pair):
        raise ValueError(f"size must be (h, w), each 1 to {MAX_SIDE}. Received: size={size!r}")


def column_views(column: pa.Array) -> list[np.ndarray | None]:
    """Return one uint8 view a row into the Arrow buffer of `column`, None where it is null.

    The column is of a binary type, or a struct with `bytes` as its only field.
    """
    if pa.types.is_struct(column.type):
        column = column.flatten()[0]
    # Plain binary is cast without a copy of its bytes; dictionaries and views are spelt out.
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1].tolist()
    pixels = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    null = column.is_null().to_pylist()
    return [None if null[i] else pixels[ends[i] : ends[i + 1]] for i in range(len(column))]


def first_shape(views: Sequence[np.ndarray | str | None]) -> tuple[int, int] | None:
    """Return (h, w) of the first row that decodes, None where none does."""
    for view in views:
        if not isinstance(image := _image(view, None), str):
            return image.shape
    return None


def declared_pixels(views: Sequence[np.ndarray | str | None]) -> int:
    """Return how many pixels the headers of `views` declare in all."""
    encoded = [v for v in views if isinstance(v, np.ndarray) and v.ndim == 1 and v.size]
    found = [declared_size(view) for view in encoded]
    return sum(of[0] * of[1] for of in found if not isinstance(of, str))


def decode_into(
    out: np.ndarray,
    views: Sequence[np.ndarray | str | None],
    size: tuple[int, int] | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> dict[int, str]:
    """Decode row i of `views` into ``out[i]``, resized to `size` if that is given.

    Returns the causes of the rows that failed; `out` keeps its old content there.
    """
    rows = iter(range(len(views)))  # Of all threads: each takes the next one, so that none waits.

    def part(_: int) -> dict[int, str]:
        causes = {}
        for i in rows:
            image = _image(views[i], size)
            if isinstance(image, str):
                causes[i] = image
            elif image.shape != out.shape[1:]:
                causes[i] = f"size {image.shape} differs from {out.shape[1:]} of the first slice"
            else:
                out[i] = image
        return causes

    return {i: cause for causes in pool.map(part, range(threads)) for i, cause in causes.items()}


def _image(view: np.ndarray | str | None, size: tuple[int, int] | None) -> np.ndarray | str:
    """Return the image of a row, or the reason why there is none."""
    if view is None:
        return "the image is null"
    if isinstance(view, str):
        return view
    image = view if view.ndim == 2 else _decode(view)
    if size is None or isinstance(image, str) or image.shape == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=method)


def _decode(blob: np.ndarray) -> np.ndarray | str:
    if not blob.size:
        return "the image has zero bytes"
    declared = declared_size(blob)
    if isinstance(declared, str):
        return declared
    height, width = declared
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        return f"the header declares {height} × {width} pixels, the limit is {MAX_SIDE} a side"
    if blob.size > _MOST_BYTES * height * width + _SPARE_BYTES:
        return f"{blob.size} bytes for {height} × {width} pixels, at most {_MOST_BYTES} each"
    try:
        image = cv2.imdecode(blob, cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        return f"OpenCV cannot decode it ({error.err})"
    return f"the image is truncated or corrupt ({blob.size} bytes)" if image is None else image


def declared_size(blob: np.ndarray) -> tuple[int, int] | str:
    """Return (h, w) as the header has it, or the reason to refuse the picture before decoding.

    So a bomb gets no memory and no time.
    """
    head, begin = blob.data, _last
    if begin.content and head[: len(begin.content)] == begin.content:
        return begin.size
    if head[:16].tobytes() == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" and len(head) >= 24:
        return _declared_by_png(head)
    if head[:2].tobytes() == b"\xff\xd8":
        return _declared_by_jpeg(blob)
    return f"not a JPEG or PNG image, it begins with {bytes(head[:8])!r}"


def _declared_by_png(head: memoryview) -> tuple[int, int] | str:
    # OpenCV reserves what a chunk declares, up to 2 GB, and checks no sums of an animation.
    height, width = int.from_bytes(head[20:24]), int.from_bytes(head[16:20])
    most = _MOST_PARTS + min(height * width, MAX_SIDE**2) // _PIXELS_A_PART
    at, parts = 8, 0
    while head[at + 4 : at + 8].tobytes() != b"IEND":
        end = at + 8 + int.from_bytes(head[at : at + 4])
        if end + 4 > len(head) or zlib.crc32(head[at + 4 : end]) != int.from_bytes(
            head[end : end + 4]
        ):
            return f"the image is truncated or corrupt ({len(head)} bytes)"
        at, parts = end + 4, parts + 1
        if parts > most:
            return f"more than {most} chunks in one PNG"
    return height, width


def _declared_by_jpeg(blob: np.ndarray) -> tuple[int, int] | str:
    global _last
    head, at = blob.data, 2
    for _ in range(_MOST_PARTS):
        if at + 10 > len(head) or head[at] != 0xFF or head[at + 1] in _BARE_MARKERS:
            return f"the JPEG header is truncated or corrupt ({len(head)} bytes)"
        if (marker := head[at + 1]) in _FRAME_MARKERS:
            break
        # Fill bytes may precede a marker; every other marker here is followed by its length.
        at += 1 if marker == 0xFF else 2 + (head[at + 2] << 8 | head[at + 3])
    else:
        return f"more than {_MOST_PARTS} segments or fill bytes before the JPEG frame"
    size = head[at + 5] << 8 | head[at + 6], head[at + 7] << 8 | head[at + 8]
    if marker in _SINGLE_SCAN and head[at + 9] == 1:
        if at < _SHORT:
            _last = _Begin(bytes(head[: at + 10]), size)
        return size
    # Each scan visits all pixels again. These two bytes always begin one.
    scans = np.count_nonzero((blob[:-1] == 0xFF) & (blob[1:] == 0xDA))
    if scans > _MOST_SCANS:
        return f"{scans} scans of one picture, at most {_MOST_SCANS} are read"
    return size
