"""One slice out of a JPEG, PNG, parquet, NIfTI or DICOM file, laid out as in the data set.

There the back of the head is up. The patient's right is taken to be on the left, though no file
says so. Heads are skull-stripped and registered to an atlas, so they have one size. `check_slice`
refuses other images: it compares them with the mean phantom, which has the same layout. No scan is
stored for it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from mri._arguments import require
from mri._files import read_regular
from mri.data.decode import DataError, declared_pixels, dict_to_image
from mri.data.formats import READERS, Columns
from mri.data.glance import Glance, rim
from mri.data.headers import dicom_plane, height_of, open_volume, orientation_notes
from mri.data.labels import Names
from mri.data.phantom import make_phantoms
from mri.data.sources import Slices, one_row

SIZE = 128
"""Height and width of the slices in pixels."""

_DARK = 16  # Gray values up to here are background: JPEG leaves some ringing around the brain.
_BRIGHT = 237  # 99th percentile of the brain: the median over the public slices.
_USUAL = 160, 246  # From here to there it goes in 99 of 100 of them.
# What 6400 real slices keep to and other pictures do not: tests/test_slices.py counts both.
_LEAST_OVERLAP, _LEAST_LIKENESS, _LEAST_RIM = 0.95, 0.35, 0.7
_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": np.asarray,
    "by 180°": partial(np.rot90, k=2),
    "by 90° to the left": np.rot90,
    "by 90° to the right": partial(np.rot90, k=3),
}
_MAX_FILE = 2**26  # Of a picture or one slice.
_VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".img")
_MINC = (".mnc", ".mnc.gz", ".mnc2")
_OTHERS = tuple(
    ".nrrd .nhdr .mha .mhd .hdr.gz .img.gz .head .brik .brik.gz .nii.bz2 .nii.xz".split()
)
_LEAST_VALUES = 32  # Gray values of a slice: scans have over a hundred, maps of labels a few.
_MOST_FILES = 1024  # Of a series.
_FEWEST_LINES = 16  # Of an axial plane: views from the side have as many as they have planes.
_ENLARGED = 2  # So many times is said.
_SIDES = (
    "A picture does not say which side is the patient's right: it is taken to be on the left, as "
    "in the data set. A mirrored head may get another answer."
)
_ALONE = "One slice does not tell the size of its head: its outline was scaled to the usual one."
_EXTRAS = {
    "nibabel": ("NIfTI and Analyze volumes", "'nibabel~=5.4'"),
    "pydicom": ("DICOM files", "'pydicom~=3.0,>=3.0.2'"),
}


PHANTOM = "The slice is a synthetic phantom: nobody's head, drawn by this package."


class OneSlice(NamedTuple):
    """Pixels uint8 (128, 128), the label the file gives them (or None), and where they stood.

    `truth` is the name of the label, which another file or a network may number otherwise;
    `notes` say what the file leaves open.
    """

    image: np.ndarray
    label: int | None
    place: str
    truth: str | None = None
    notes: tuple[str, ...] = ()


def read_slice(
    path: str | os.PathLike[str],
    *,
    row: int = 0,
    plane: int | None = None,
    check: bool = True,
    image: str = "image",
    label: str = "label",
    class_names: Names | None = None,
) -> OneSlice:
    """Read one slice and lay it out as those of the data set.

    Volumes and DICOM are turned as their headers say. They are scaled until the brain has the size
    that it has in the data set. Other images are only resized to 128 × 128 pixels.

    Parameters
    ----------
    path : path
        A table (``.parquet``, ``.csv``, ``.arrow``). A volume (``.nii``, ``.nii.gz``, ``.mgz``,
        ``.mgh``, ``.hdr``), in which NaN counts as background. A DICOM file of one axial slice, or
        a folder of one DICOM series. A JPEG or PNG image.
    row : int
        Of a table, from 0.
    plane : int, optional
        Axial plane of a volume or series, from 0 at its lowest; by default the one most like the
        data set.
    check : bool
        Refuse what `check_slice` refuses.
    image, label, class_names
        Of a table, as in `read_scans`.

    Returns
    -------
    OneSlice

    Raises
    ------
    DataError
        If the file cannot be read, has no such row or plane, or is not such a slice.
    ModuleNotFoundError
        If nibabel or pydicom is needed and absent; the message has the command.
    """
    if not os.fspath(path):
        raise DataError("the name of the file is empty; give a file, or none at all")
    for what, number in {"row": row, "plane": 0 if plane is None else plane}.items():
        whole = isinstance(number, int | np.integer)
        require(whole, f"{what} must be an integer.", **{what: number})
    path = Path(path)
    name = path.name.lower()
    table = (path / "state.json").is_file() or (path.is_file() and name.endswith(tuple(READERS)))
    volume = not table and (path.is_dir() or name.endswith(_VOLUMES))
    if path.exists() and ((row and not table) or (plane and not volume)):
        raise DataError(
            f"{path}: rows are of a table, planes of a volume or a series. "
            f"Received: row={row}, plane={plane}"
        )
    if table:
        slices = Slices(path, Columns(image, label), class_names=class_names)
        found = _from_table(slices, row, check)
    elif path.is_dir():
        found = _from_series(path, plane, check)
    elif not path.is_file():
        raise DataError(f"{path}: no such file; give a JPEG, PNG, parquet, NIfTI or DICOM file")
    elif volume:
        found = _from_volume(path, plane, check)
    elif name.endswith(_MINC):
        raise DataError(f"{path}: a MINC volume; convert it with mnc2nii and give the NIfTI file")
    elif name.endswith(_OTHERS):
        raise DataError(f"{path}: a volume of another format; convert it to NIfTI (.nii.gz) first")
    else:
        content = _content(path)
        is_dicom = _is_dicom(path, content)
        found = (_from_dicom if is_dicom else _from_picture)(path, content, check)
    if check and (problem := check_slice(found.image)):
        why = [note for note in found.notes if note != _SIDES]
        raise DataError(". ".join([f"{found.place}: {problem}", *why]))
    return found


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_FILE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _is_dicom(path: Path, content: bytes) -> bool:
    return path.name.lower().endswith((".dcm", ".ima")) or content[128:132] == b"DICM"


def check_slice(image: np.ndarray) -> str | None:
    """Say why an image is not an axial T1 slice like those of the data set, None where it is.

    Parameters
    ----------
    image : ndarray of uint8, shape (128, 128)

    Examples
    --------
    >>> slices = make_phantoms(4, 1).images
    >>> check_slice(slices[0]) is None
    True
    >>> check_slice(slices[0][::-1, ::-1])
    'it looks turned: turn it by 180° first; expected a skull-stripped axial T1 slice ...'
    """
    expected = (
        "expected a skull-stripped axial T1 slice on black, at the height of thalamus and "
        "ventricles, back of the head up"
    )
    if image.shape != (SIZE, SIZE):
        return f"it has {image.shape} pixels; {expected}"
    overlap, likeness, turned = _compare(image)
    if overlap < _LEAST_OVERLAP:
        return f"its outline overlaps {overlap:.2f}, {_LEAST_OVERLAP} is needed; {expected}"
    if turned:
        return f"it looks turned: turn it {turned} first; {expected}"
    if likeness < _LEAST_LIKENESS:
        return (
            f"its inside correlates by {likeness:.2f} with the mean, {_LEAST_LIKENESS} is needed; "
            f"{expected}"
        )
    if rim(image, _DARK) < _LEAST_RIM:
        return f"a dark ring below its outline looks like the skull: strip it first; {expected}"
    return None


@cache
def _reference() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return share of heads (h, w) that cover a pixel, inner pixels (h, w), patterns of both.

    There is one pattern for each quarter of the heights: (4, h * w) and (4, inner pixels).
    """
    phantoms = make_phantoms(4, 32)
    share = (phantoms.images > _DARK).mean(0)
    inner = ndimage.binary_erosion(share > 0.5, iterations=5)
    quarters = np.array_split(np.argsort(phantoms.z, kind="stable"), 4)
    means = [_coarse(phantoms.images[of].mean(0)) for of in quarters]
    whole, inside = ([_pattern(mean[where]) for mean in means] for where in (..., inner))
    return share, inner, np.stack(whole), np.stack(inside)


def _coarse(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float64), 3)


def _pattern(values: np.ndarray) -> np.ndarray:
    """Return the values in one row, of mean 0 and length 1."""
    values = values.ravel() - values.mean()
    return values / max(np.sqrt(np.sum(values**2)), 1e-9)


def _likeness(pattern: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest correlation of a pattern (n,) with those expected (k, n)."""
    # Not a matrix product: for so few numbers BLAS spends its time in waking its threads.
    return float((expected * pattern).sum(1).max())


def _compare(image: np.ndarray) -> tuple[float, float, str]:
    """Return overlap (Dice), likeness (correlation of the inside) and how to turn it, if so.

    The overlap is that of the image turned.
    """
    share, inner, whole, inside = _reference()
    coarse = _coarse(image)
    fits = {turn: _likeness(_pattern(of(coarse)), whole) for turn, of in _TURNS.items()}
    best = max(fits, key=fits.__getitem__)
    mask, head = _TURNS[best](image) > _DARK, share > 0.5
    overlap = 2 * (mask & head).sum() / (mask.sum() + head.sum())
    return float(overlap), _likeness(_pattern(coarse[inner]), inside), best


def _from_table(slices: Slices, row: int, check: bool) -> OneSlice:
    """Return a row of a file of slices and labels."""
    rows = one_row(slices, None, row)
    slices.warn([rows.part], stacklevel=3)
    content, place = rows.content(0), rows.told(0)
    values, causes = slices.meaning(rows.part).check(rows.labels)
    label = None if causes else int(values[0])
    truth = None if label is None else slices.class_names[label]
    # Pixels without a file are encoded, so that they are resized as the others are.
    blob = content if content.ndim == 1 else cv2.imencode(".png", content)[1]
    image, notes = _image(place, blob.tobytes(), check)
    notes += (PHANTOM,) if rows.part.synthetic else ()
    return OneSlice(image, label, place, truth, notes)


def _image(place: object, blob: bytes, check: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a picture and what is odd about it; DataError if it shows nothing."""
    try:
        image = dict_to_image(blob, size=(SIZE, SIZE))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    seen, view = Glance(), np.frombuffer(blob, np.uint8)
    seen.look(image[None], lambda _: str(place), [view])
    if check and seen.faint:
        raise DataError(next(seen.told()))
    return image, (*seen.told(), *_enlarged(SIZE / declared_pixels([view]) ** 0.5))


def _enlarged(times: float) -> tuple[str, ...]:
    if times <= _ENLARGED:
        return ()
    return (
        f"It is enlarged {times:.1f} times, so finer detail is missing, and with it part of "
        "what the answer rests on.",
    )


def _from_picture(path: Path, content: bytes, check: bool) -> OneSlice:
    image, notes = _image(path, content, check)
    whole = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    _refuse_values(path, whole, check)
    lit = image[image > _DARK]
    bright = np.percentile(lit, 99) if lit.size else 0
    if not _USUAL[0] <= bright <= _USUAL[1]:
        notes = (
            *notes,
            f"Its bright tissue has the gray value {bright:.0f}; in 99 of 100 slices of the data "
            f"set it is {_USUAL[0]} to {_USUAL[1]}. A darkened or brightened scan may get another "
            "answer.",
        )
    return OneSlice(image, None, str(path), None, (_SIDES, *notes))


def _refuse_values(place: object, image: np.ndarray, check: bool) -> None:
    """Raise DataError if an image is a map of labels, such as a segmentation, or has no black."""
    if check and 1 < (count := len(np.unique(image))) < _LEAST_VALUES:
        raise DataError(
            f"{place}: has {count} gray values, a scan has over a hundred; it looks like a "
            "segmentation or a mask, give the scan itself"
        )
    low, high = np.percentile(image, (5, 99))
    if check and low < -0.1 * high:
        raise DataError(
            f"{place}: its gray values go from {image.min():.4g} to {image.max():.4g}, expected 0 "
            "where nothing is and more in the brain; give the scan as it was before its values "
            "were normalised"
        )


def _from_volume(path: Path, plane: int | None, check: bool) -> OneSlice:
    nibabel = _extra("nibabel")
    try:
        stored = open_volume(path, nibabel)
        notes = orientation_notes(path, stored, nibabel)
        volume = nibabel.as_closest_canonical(stored).get_fdata(dtype=np.float32)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: nibabel cannot read it ({error})") from error
    # Axes of length 1 behind the third are of time or channels; (x, y, 1) is one slice.
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.ndim != 3:
        raise DataError(
            f"{path}: holds an array {volume.shape}, expected one volume (x, y, z); "
            "give one of them as a file"
        )
    volume = np.where(np.isnan(volume), np.float32(0), volume)
    if not np.isfinite(volume).all():
        raise DataError(f"{path}: holds voxels that are no finite numbers")
    # Canonical axes go to the patient's right, front and top; here rows go to the front, columns
    # to the left.
    found = _of_planes(path, volume[::-1].transpose(2, 1, 0), plane, check)
    return found._replace(notes=(*notes, *found.notes))


def _of_planes(path: Path, planes: np.ndarray, plane: int | None, check: bool) -> OneSlice:
    """Return one of axial planes (n, h, w), from below: by default that most like the data set."""
    frame = _frame(path, planes if len(planes) > 1 else planes[0], 0.0 if len(planes) > 1 else 0.5)
    if min(planes.shape[1:]) < _FEWEST_LINES:
        raise DataError(
            f"{path}: its axial planes have {planes.shape[1]} × {planes.shape[2]} pixels; it is of "
            "one view from the side or the front, give the whole volume"
        )
    if plane is None:
        plane = int(np.argmax([sum(_compare(frame.place(of))[:2]) for of in planes]))
    if not 0 <= plane < len(planes):
        raise DataError(f"{path}: has planes 0 to {len(planes) - 1}. Received: plane={plane}")
    _refuse_values(f"{path}, plane {plane}", planes[plane], check)
    place = f"{path}, plane {plane} of {len(planes)}"
    notes = (*((_ALONE,) if len(planes) == 1 else ()), *_enlarged(1 / frame.zoom.min()))
    return OneSlice(frame.place(planes[plane]), None, place, None, notes)


def _from_dicom(path: Path, content: bytes, check: bool) -> OneSlice:
    image, _, notes = dicom_plane(path, content, _extra("pydicom"))
    found = _of_planes(path, image[None], None, check)
    return found._replace(place=str(path), notes=(*notes, *found.notes))


def _from_series(folder: Path, plane: int | None, check: bool) -> OneSlice:
    # The table of contents of a disc shows nothing.
    shown = (of for of in folder.iterdir() if of.name[0] != "." and of.name != "DICOMDIR")
    files = sorted(of for of in shown if of.is_file())
    found: list[tuple[float, np.ndarray]] = []
    series: dict[str, Path] = {}
    for file in files:
        if len(found) > _MOST_FILES:  # Too many already.
            break
        content = _content(file)
        if _is_dicom(file, content):
            image, data, notes = dicom_plane(file, content, _extra("pydicom"))
            series.setdefault(str(data.get("SeriesInstanceUID", "")), file)
            found.append((height_of(file, data, len(found)), image))
    if not found:
        raise DataError(
            f"{folder}: a folder without DICOM files in it; give a file, the folder of one DICOM "
            "series, or that of one data set of save_to_disk"
        )
    sizes, places = {image.shape for _, image in found}, {place for place, _ in found}
    if not len(series) == len(sizes) == 1 or not len(places) == len(found) <= _MOST_FILES:
        first = ", ".join(file.name for file in [*series.values()][:4])
        raise DataError(
            f"{folder}: {len(found)} files of {len(series)} series and {len(sizes)} sizes at "
            f"{len(places)} heights, expected up to {_MOST_FILES} of one series, a file a height; "
            f"give each series a folder (first files: {first})"
        )
    planes = np.stack([image for _, image in sorted(found, key=lambda of: of[0])])
    one = _of_planes(folder, planes, plane, check)
    return one._replace(notes=(*notes, *one.notes))


class _Frame(NamedTuple):
    """Where a brain lies, and the gray value of its bright tissue."""

    zoom: np.ndarray
    offset: np.ndarray
    bright: float

    def place(self, image: np.ndarray) -> np.ndarray:
        """Return an image (h, w) of that brain as uint8 (128, 128), laid out as the data set."""
        # Without smoothing, the finer pixels between the coarse ones would be left out.
        smooth = ndimage.gaussian_filter(image, np.maximum(self.zoom - 1, 0) / 2)
        placed = ndimage.affine_transform(smooth, self.zoom, self.offset, (SIZE, SIZE), order=1)
        return np.rint(placed * (_BRIGHT / self.bright)).clip(0, 255).astype(np.uint8)


def _frame(place: object, whole: np.ndarray, reached: float) -> _Frame:
    """Return the frame in which the brain of `whole`, (h, w) or planes of it, fills its box.

    The box holds the pixels that more than the share `reached` of all slices cover: 0 for a whole
    head, 0.5 for one slice.
    """
    if not whole.max() > 0:
        raise DataError(f"{place}: is empty, no pixel is above 0")
    bright = float(np.percentile(whole[whole > 0], 99))
    brain = (whole > 0.1 * bright).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(brain if brain.ndim == 2 else brain.max(axis=0))
    covered = (_reference()[0] > reached).astype(np.uint8)
    to_left, to_top, to_width, to_height = cv2.boundingRect(covered)
    zoom = np.array([height / to_height, width / to_width])
    return _Frame(zoom, np.array([top, left]) - zoom * (to_top, to_left) + (zoom - 1) / 2, bright)


def _extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{_EXTRAS[name][0]} are read by {name}: "
            f".venv/bin/python -m pip install {_EXTRAS[name][1]}"
        ) from error
