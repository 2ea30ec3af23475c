"""What decoded slices look like at a glance, so that what is not meant as it stands is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

_NOTHING = 16  # Range of gray values of a slice: 12 bits of 16 leave it 15, and 0 to 1 leaves one.
_DIM = 128  # Whole sets reach 255 or nearly so.
_PART = 0.05  # Of the slices; single ones at the end of a head may be dim.
_SMALL = 256  # Pixels of a picture that is too small to tell.
_CLOSELY, _EVERY = 4, 256  # Slices of a batch looked at closely, and the least of so many.
_FEW = 16  # Fewer gray values than scans have.
_LAYERS = 16  # Pixels below the outline, where the skull would be.
_SCALE = "scale the values to 0 to 255 first if they were of 10 or 12 bits, or from 0 to 1"


def rim(image: np.ndarray, dark: int) -> float:
    """Return how bright the darkest layer below the outline is, as a share of those around it.

    A brain alone has at least 0.8 (6400 real slices). In a whole head, the skull between scalp and
    brain brings it to 0.6 or less.
    """
    mask = np.pad((image > dark).astype(np.uint8), 1)
    cv2.floodFill(outside := mask.copy(), None, (0, 0), 1)
    mask[outside == 0] = 1
    depth = np.ceil(cv2.distanceTransform(mask, cv2.DIST_L2, 5)[1:-1, 1:-1]).astype(int)
    layers = [float(image[depth == i].mean()) for i in range(1, min(_LAYERS, depth.max()) + 1)]
    shares = [
        layers[i] / max(1.0, min(max(layers[:i]), max(layers[i + 1 :])))
        for i in range(1, len(layers) - 3)
    ]
    return min(shares, default=1.0)


class Glance:
    """Looks at slices batch by batch: one line of a slice tells that it shows something.

    Only the others, and a few of each batch, are looked at as a whole: a class may come from
    another place than those before it.
    """

    def __init__(self) -> None:
        self.slices = self.brightest = self.faint = self.dim = self.due = 0
        self.first = self.dimmed = self.depth = self.odd = self.few = ""

    def look(
        self, images: np.ndarray, name: Callable[[int], str], views: Sequence[object] = ()
    ) -> None:
        """Look at slices uint8 (m, h, w), whose names `name` gives, and at the bytes of some."""
        if not len(images) or images[0].size < _SMALL:
            return
        if self.slices >= self.due:
            self._closely(images, name, views)
            self.due = self.slices + _EVERY
        line = images[:, images.shape[1] // 2]
        low, high = line.min(1), line.max(1)
        self.brightest = max(self.brightest, int(high.max()))
        if self.brightest < _DIM:
            self.brightest = max(self.brightest, int(images.max()))
        for i in np.flatnonzero(high - low < _NOTHING).tolist():
            if np.ptp(images[i]) < _NOTHING:
                self.first = self.first or name(i)
                self.faint += 1
        for i in np.flatnonzero(high < _DIM).tolist():
            if images[i].max() < _DIM:
                self.dimmed = self.dimmed or name(i)
                self.dim += 1
        self.slices += len(images)

    def _closely(
        self, images: np.ndarray, name: Callable[[int], str], views: Sequence[object]
    ) -> None:
        step = min(len(images) // _CLOSELY + 1, _EVERY)
        counts = [np.count_nonzero(np.bincount(image.ravel())) for image in images[::step]]
        few = [i for i, count in enumerate(counts) if count < _FEW]
        # One alone may be the end of a head.
        if len(few) >= min(2, len(counts)) and not self.few:
            named = self.slices or few[0]
            which = f"slices such as {name(few[0] * step)}" if named else "the first slices"
            self.few = f"{which} have {counts[few[0]]} gray values in all; masks? Give the scans"
        for i, blob in list(enumerate(views))[::step]:
            if isinstance(blob, np.ndarray) and blob.ndim == 1:
                whole = cv2.imdecode(blob, cv2.IMREAD_UNCHANGED)
                if whole.dtype == np.uint16:
                    self.depth = "; a PNG of 16 bits, of which the upper 8 are read"
                if whole.ndim == 3 and not self.odd:
                    self._colours(whole / np.iinfo(whole.dtype).max, name(i))

    def _colours(self, whole: np.ndarray, name: str) -> None:
        # Gray pictures stored in three channels differ by the rounding of JPEG.
        if (np.ptp(whole[..., :3], axis=2) > 0.16).mean() > 0.01:
            self.odd = f"{name} is in colours; only its brightness was read, which is not the gray"
            self.odd += " of the scan if they are false colours"
        elif whole[..., 3:].min(initial=1) < 1:
            self.odd = f"{name} is transparent in part; the gray that is stored there was read"

    def told(self) -> Iterator[str]:
        """Yield what to warn of."""
        if self.faint:
            yield (
                f"{self.faint} of {self.slices} slices show next to nothing: all gray values of "
                f"{self.first} are within {_NOTHING} of 256{self.depth}; {_SCALE}"
            )
        elif self.slices and self.brightest < _DIM:
            yield (
                f"the brightest pixel of all {self.slices} slices is {self.brightest} of "
                f"255{self.depth}; {_SCALE}"
            )
        elif self.dim > _PART * self.slices:
            yield (
                f"{self.dim} of {self.slices} slices are dimmer than the others, with no pixel of "
                f"{_DIM} or more; the first is {self.dimmed}{self.depth}; {_SCALE}"
            )
        elif self.few:
            yield self.few
        if self.odd:
            yield self.odd
