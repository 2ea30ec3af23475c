"""A mean brain, and the way of each slice to it.

It is made of people to train on, never of those to test on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mri._arguments import require
from mri._files import replacing
from mri.data.decode import DataError
from mri.data.tone_map import HEIGHTS, band, tone_with_band

_MOST = 2**26 + 2**16  # Bytes of a template: 32 slices of 1024 × 1024, twice, and headers.
_PLANE, _ALONG = 3.0, 3.0  # Blur of a flow: pixels in the plane, slices along the head.


@dataclass(frozen=True, eq=False)
class Template:
    """The mean of some people, to move others onto.

    `mean` and `typical` are uint8 (32, h, w), from below upwards, and symmetric: the mean of their
    gray values, and the gray value whose tone is their mean tone. A person's missing slice is taken
    from `typical`: it then adds nothing to a score that counts from the mean. Where `registered`,
    people are to be moved onto `mean`, as the `people` that it was made of have been.
    """

    mean: np.ndarray = field(repr=False)
    typical: np.ndarray = field(repr=False)
    registered: bool
    people: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the template as ``.npz``, whole or not at all."""
        path = Path(path)
        require(path.suffix == ".npz", "path must end in .npz.", path=str(path))
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **vars(self))


def read_template(path: str | os.PathLike[str]) -> Template:
    """Read what `Template.save` has written; raise `DataError` if it is not such a file."""
    try:
        # Opened here, since NumPy leaves a file open that is no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if sum(of.file_size for of in archive.zip.infolist()) > _MOST:
                raise ValueError(f"more than {_MOST} bytes")
            mean, typical = archive["mean"], archive["typical"]
            registered, people = bool(archive["registered"]), int(archive["people"])
    except Exception as error:  # A damaged archive can raise almost anything.
        raise DataError(f"{path}: no template ({error}); make it again") from error
    for array in (mean, typical):
        fits = array.shape == mean.shape and array.ndim == 3 and len(array) == HEIGHTS
        if not fits or array.dtype != np.uint8:
            found = f"this is {array.dtype} {array.shape}"
            raise DataError(f"{path}: a template is ({HEIGHTS}, h, w) of uint8, {found}")
    return Template(mean, typical, registered, people)


def make_template(people: Sequence[np.ndarray], *, registered: bool = True) -> Template:
    """Average people into a symmetric template, so that no side of the head is preferred.

    With `registered` there are two rounds of registration: each person is moved to the plain mean,
    the mean of the moved is the template, and to that `prepare_person` moves each one again.

    `people` are images of `person_tones`, float32 (32, h, w), all of one size.
    """
    shapes = {np.shape(person) for person in people}
    fits = len(shapes) == 1 and len(shape := next(iter(shapes))) == 3 and shape[0] == HEIGHTS
    require(fits, f"people must all be ({HEIGHTS}, h, w) of one size.", shapes=sorted(shapes))
    mean, typical = _averages(people, lambda person: person)
    if registered:
        plain = mean
        mean, typical = _averages(people, lambda person: move(person, slice_flows(person, plain)))
    return Template(mean, typical, registered, len(people))


def _averages(
    people: Sequence[np.ndarray], moved: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean gray values and the gray values of the mean tone, both symmetric, uint8."""
    gray = np.zeros(people[0].shape)
    tone = np.zeros_like(gray)
    # Sums in the order of the people, whatever thread is first, so that a run can be repeated.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for person in threads.map(moved, people):
            gray += person
            tone += band(person)
    gray, tone = ((x + x[..., ::-1]) / (2 * len(people)) for x in (gray, tone))
    return _bytes(gray), _bytes(tone_with_band(tone))


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(images).clip(0, 255).astype(np.uint8)


def slice_flows(images: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find how far each slice's anatomy lies from that of its target, float32 (n, h, w, 2).

    Dense inverse search (Kroeger et al. 2016, doi:10.1007/978-3-319-46493-0_29), then blurred in
    the plane and along the head: the shape of a head changes slowly, folds do not match anyway.
    Of slices in order along the head, gray values about 0 to 255, and a target of uint8. In pixels,
    right and down: what is at p in `target` is at p + flow in `images`.
    """
    # At half the resolution: the search ends at a quarter anyway, and the blur is wider than that.
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(1)
    size = target.shape[2:0:-1]
    half = tuple(max(16, side // 2) for side in size)
    pairs = zip(target, _bytes(images), strict=True)
    small = ((cv2.resize(x, half, interpolation=cv2.INTER_AREA) for x in pair) for pair in pairs)
    flows = [cv2.GaussianBlur(search.calc(*pair, None), (0, 0), _PLANE / 2) for pair in small]
    # All numbers of a slice lie in one row: the blur between rows is one along the head.
    rows, taps = np.stack(flows).reshape(len(flows), -1), (1, 8 * int(_ALONG) + 1)
    along = cv2.GaussianBlur(rows, taps, 1, sigmaY=_ALONG, borderType=cv2.BORDER_REPLICATE)
    smooth = along.reshape(len(flows), *half[::-1], 2) * np.divide(size, half, dtype=np.float32)
    return np.stack([cv2.resize(flow, size) for flow in smooth])


def move(images: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """Return slices, float32 (n, h, w), with their anatomy where that of the target lies."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]].astype(np.float32)
    pairs = zip(images.astype(np.float32), flows, strict=True)
    moved = [cv2.remap(image, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR)
             for image, flow in pairs]  # fmt: skip
    return np.stack(moved)
