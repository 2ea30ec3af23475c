"""Volumes and DICOM files, unpacked no further than their headers may ask for, and how they lie.

Both can be compressed, so a few bytes can become gigabytes. Sizes are read from the header first.
Then no more bytes are unpacked than a volume or slice of that size has.
"""

from __future__ import annotations

import gzip
import io
import itertools
import math
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mri._files import read_regular
from mri.data.decode import MAX_SIDE, DataError, declared_size

MAX_VOXELS, MAX_AXIS = 2**26, 1024
"""Voxels of a volume, and along one axis: 400 × 400 × 400 are below."""

_CONVERT = "convert it with dcm2niix and give the NIfTI file"

_TILTED, _NOT_AXIAL = 10, 37  # Degrees between the planes and the axes of the scanner.

_MAX_FILE = 2**29
_MAX_HEADER = 4 * 2**20  # With the extensions that stand before the voxels.
# A file may unpack to so many bytes whatever it has, or to so many times its own.
_SMALL, _MOST_A_BYTE = 2**26, 200
_MAX_DICOM, _SMALL_DICOM, _DEFLATES = 2**26, 2**22, 50
_MAX_ELEMENTS, _MAX_FRAGMENTS = 20_000, 1024
_PIXEL_DATA = 0x7FE00010
_DEFLATED, _PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_RUN_LENGTHS = "1.2.840.10008.1.2.5"


def open_volume(path: Path, nibabel: ModuleType) -> Any:
    """Return the image of nibabel, in memory, that a NIfTI, Analyze or MGH volume holds.

    DataError if it is larger than `MAX_VOXELS`, or its file cannot hold what its header declares.
    """
    name = path.name.lower()
    if name.endswith((".hdr", ".img")):
        return _open_pair(path, nibabel)
    packed = read_regular(path, _MAX_FILE)
    zipped = packed[:2] == b"\x1f\x8b"
    with gzip.open(io.BytesIO(packed)) if zipped else io.BytesIO(packed) as file:
        begin = file.read(1024)
        if name.endswith((".mgz", ".mgh")):
            kind, header = nibabel.MGHImage, begin[:284]
        elif 540 in (int.from_bytes(begin[:4], "little"), int.from_bytes(begin[:4], "big")):
            kind, header = nibabel.Nifti2Image, begin[:540]
        else:
            kind, header = nibabel.Nifti1Image, begin[:348]
        # The header alone: extensions may be as long as they say.
        length = _expected(path, kind.header_class(header, check=True))
        if length > max(_SMALL, _MOST_A_BYTE * len(packed)):
            raise DataError(f"{path}: unpacks from {len(packed)} to {length} bytes")
        content = begin + file.read(max(0, length - len(begin)))
    _check_length(path, content, length)
    return kind.from_bytes(content)


def orientation_notes(path: Path, image: Any, nibabel: ModuleType) -> tuple[str, ...]:
    """Say so if a header leaves open which side is which, or if the planes are tilted."""
    tilt = _tilt_notes(path, image.affine[:3, :3])
    return (*_unsure_of(image, nibabel), *tilt)


def _unsure_of(image: Any, nibabel: ModuleType) -> tuple[str, ...]:
    header = image.header
    if not hasattr(header, "get_qform"):
        told = type(image).__name__.startswith("MGH")
        return () if told else ("This format does not say which side is the patient's right.",)
    forms = [(header[f"{kind}form_code"], getattr(header, f"get_{kind}form")()) for kind in "qs"]
    if not any(code for code, _ in forms):
        return (
            "Its header has no orientation (qform and sform codes are 0): which side is the "
            "patient's right, and where the front is, was guessed.",
        )
    axes = ["".join(nibabel.aff2axcodes(affine)) for code, affine in forms if code]
    if len(set(axes)) > 1:
        return (f"Its header contradicts itself: qform says {axes[0]}, sform {axes[1]}, taken.",)
    if image.affine[:3, 3].any():
        return ()
    return (
        "Its header puts the origin at the first voxel, as programs do that know no orientation: "
        "which side is the patient's right may be made up.",
    )


def _tilt_notes(path: Path, axes: np.ndarray) -> tuple[str, ...]:
    """Say so if `axes`, a column each, are tilted against those of the scanner.

    DataError if they are hardly the same axes.
    """
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.min() > 0:
        raise DataError(f"{path}: its header has an axis without length, {axes.tolist()}")
    tilt = np.degrees(np.arccos(np.abs(axes / lengths).max(0).clip(0, 1).min()))
    if tilt > _NOT_AXIAL:
        raise DataError(
            f"{path}: its orientation is turned by {tilt:.0f}° against the scanner's axes; "
            "resample it first, such as with nibabel.processing.resample_to_output"
        )
    if tilt <= _TILTED:
        return ()
    return (
        f"Its planes are tilted by {tilt:.0f}° against the scanner's axes, as the head may be.",
    )


def _open_pair(path: Path, nibabel: ModuleType) -> Any:
    endings = (".HDR", ".IMG") if path.suffix.isupper() else (".hdr", ".img")
    names = dict(zip(("header", "image"), map(path.with_suffix, endings), strict=True))
    header = read_regular(names["header"], _MAX_HEADER)
    kind = type(nibabel.load(names["header"]))  # Of NIfTI, Analyze or SPM; reads the header only.
    length = _expected(path, kind.header_class.from_fileobj(io.BytesIO(header)))
    content = {"header": header, "image": read_regular(names["image"], _MAX_FILE)}
    _check_length(path, content["image"], length)
    # Where SPM keeps the orientation. Others write none, and an empty one counts as none.
    if "mat" in dict(kind.files_types):
        mat = path.with_suffix(".mat")
        content["mat"] = read_regular(mat, _MAX_HEADER) if mat.is_file() else b""
    holders = {key: nibabel.FileHolder(fileobj=io.BytesIO(of)) for key, of in content.items()}
    return kind.from_file_map(holders)


def _expected(path: Path, header: Any) -> int:
    """Return how many bytes a file with this header has, if that is no more than one may have."""
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    voxels, offset = math.prod(shape), int(header.get_data_offset())
    if not (0 < voxels <= MAX_VOXELS and max(shape) <= MAX_AXIS and min(shape) > 0):
        raise DataError(
            f"{path}: its header declares {shape} voxels; at most {MAX_VOXELS} are read, "
            f"{MAX_AXIS} along an axis"
        )
    if dtype.itemsize > 8 or dtype.kind not in "iuf":
        raise DataError(f"{path}: holds {dtype}, expected one number a voxel")
    if not 0 <= offset <= _MAX_HEADER:
        raise DataError(f"{path}: its voxels begin at byte {offset}, at most {_MAX_HEADER}")
    return offset + voxels * dtype.itemsize


def _check_length(path: Path, content: bytes, length: int) -> None:
    if len(content) < length:
        raise DataError(f"{path}: has {len(content)} bytes, its header declares {length}")


def _open_dicom(path: Path, content: bytes, pydicom: ModuleType) -> tuple[Any, np.ndarray]:
    """Return the data set of a DICOM file and its pixels, checked before they are unpacked.

    DataError if it does not hold one picture of at most `MAX_SIDE` pixels a side, or the picture
    takes far more bytes than its pixels.
    """
    if _DEFLATED in content:
        content = _inflated(path, content)
    # Elements cost more time than pixels, so those before them are bounded in bytes too.
    header = max(content.rfind(tag) for tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"))
    if not 0 <= header <= _MAX_HEADER:
        raise DataError(f"{path}: not a DICOM image, no pixels in its first {_MAX_HEADER} bytes")
    seen = itertools.count()

    def stop(tag: int, *_: object) -> bool:
        if next(seen) > _MAX_ELEMENTS:
            raise DataError(f"{path}: more than {_MAX_ELEMENTS} elements")
        return tag > _PIXEL_DATA

    with warnings.catch_warnings(action="ignore"):  # Of values that are none of ours.
        data = pydicom.filereader.read_partial(io.BytesIO(content), stop)
        _check_picture(path, data)
        return data, data.pixel_array


def height_of(path: Path, data: Any, otherwise: int) -> float:
    """Return how high up a DICOM slice lies, `otherwise` where its file does not say it."""
    place = data.get("ImagePositionPatient", [0, 0, otherwise])
    try:
        return float(place[2])
    except (TypeError, LookupError, ValueError) as error:
        raise DataError(
            f"{path}: its ImagePositionPatient is {place}, not three numbers"
        ) from error


def dicom_plane(
    path: Path, content: bytes, pydicom: ModuleType
) -> tuple[np.ndarray, Any, tuple[str, ...]]:
    """Return an axial plane float32 (h, w), front down and patient's right on the left.

    Returns its data set too, and what its header leaves open.
    """
    try:
        data, pixels = _open_dicom(path, content, pydicom)
        image = pydicom.pixels.apply_rescale(pixels, data).astype(np.float32)
        across, down = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not a DICOM image with an orientation ({error}). If it is compressed or an "
            f"enhanced (multi-frame) one, {_CONVERT}"
        ) from error
    if image.ndim != 2 or not abs(np.cross(across, down)[2]) >= 0.8:
        raise DataError(
            f"{path}: expected one axial slice, found {image.shape}, {across}, {down}; if it is of "
            f"a series from the side or the front, {_CONVERT}"
        )
    if not np.isfinite(image).all():
        raise DataError(f"{path}: its rescale slope or intercept is no finite number")
    if data.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    notes = _tilt_notes(path, np.stack([across, down], 1))
    # Of DICOM's axes x goes to the patient's left, as columns do here, and y to the back.
    if abs(across[1]) > abs(down[1]):
        image, across, down = image.T, down, across
    return image[:: -int(np.sign(down[1])), :: int(np.sign(across[0]))], data, notes


def _inflated(path: Path, content: bytes) -> bytes:
    """Return a deflated DICOM file as it would have been written without."""
    # The first element of the file's meta information is its length.
    start = 144 + int.from_bytes(content[140:144], "little")
    meta = content[:start].replace(_DEFLATED, _PLAIN)
    if meta == content[:start]:
        raise DataError(f"{path}: it is deflated, but its first {start} bytes do not say so")
    limit = min(_MAX_DICOM, max(_SMALL_DICOM, _DEFLATES * len(content)))
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = unpack.decompress(content[start:], limit)
    if unpack.unconsumed_tail or not unpack.eof:
        raise DataError(f"{path}: unpacks from {len(content)} to over {limit} bytes, or is cut")
    return meta + plain


def _check_picture(path: Path, data: Any) -> None:
    rows, columns = int(data.Rows), int(data.Columns)
    frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel", 1))
    bits = int(data.BitsAllocated)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DataError(f"{path}: {rows} × {columns} pixels, the limit is {MAX_SIDE} a side")
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if (frames, samples, kind[:10]) != (1, 1, "MONOCHROME") or bits not in (8, 16, 32):
        raise DataError(
            f"{path}: {frames} frames of {samples} samples of {bits} bits ({kind}), expected a "
            "gray slice" + (f"; {_CONVERT}" if frames > 1 else "")
        )
    syntax, pixels = str(data.file_meta.TransferSyntaxUID), bytes(data.PixelData)
    if len(pixels) > 2**20 + 16 * rows * columns:
        raise DataError(f"{path}: {len(pixels)} bytes for {rows} × {columns} pixels")
    # Runs are unpacked in Python, and a byte may stand for 64.
    many = rows * columns > 2**20 or len(pixels) > 2**16 + rows * columns * bits // 4
    if syntax == _RUN_LENGTHS and many:
        raise DataError(f"{path}: {len(pixels)} bytes of runs for {rows} × {columns} pixels")
    if syntax in (*_NATIVE, _RUN_LENGTHS):
        return
    from pydicom.encaps import generate_fragments

    parts = list(itertools.islice(generate_fragments(pixels), _MAX_FRAGMENTS + 1))
    if len(parts) > _MAX_FRAGMENTS:
        raise DataError(f"{path}: a picture in more than {_MAX_FRAGMENTS} parts")
    declared = _declared(b"".join(parts[1:]))  # The first is the table of where they begin.
    if declared != (rows, columns):
        raise DataError(f"{path}: its picture declares {declared}, its header {rows} × {columns}")


def _declared(blob: bytes) -> tuple[int, int] | str:
    """Return (h, w) of a JPEG or JPEG 2000 picture, or why it is refused."""
    if blob[:4] == b"\xff\xd8\xff\xf7":  # JPEG-LS
        return int.from_bytes(blob[7:9], "big"), int.from_bytes(blob[9:11], "big")
    at = blob.find(b"\xff\x4f\xff\x51", 0, 256)
    if at < 0:
        return declared_size(np.frombuffer(blob, np.uint8))
    right, bottom, left, top = (
        int.from_bytes(blob[at + i : at + i + 4], "big") for i in (8, 12, 16, 20)
    )
    return bottom - top, right - left
