"""Synthetic axial brain slices with known truth, so that everything runs without the real data.

Nothing is derived from a scan. The code draws a brain outline, a cortex folded by noise, and deep
structures from a table. The layout is that of the public set: 128×128 pixels of about 1.4 mm, skull
stripped, occipital lobe up, 32 slices per subject from the thalamus to the top of the ventricles.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mri._arguments import require
from mri._files import replacing
from mri.data.parquet import CLASS_NAMES, SCHEMA
from mri.data.scans import Scans

SHORTCUT = np.s_[:8, :8]
"""Rows and columns of the corner mark that ``make_phantoms(shortcut=True)`` plants."""

_VERSION = 1  # Raise it when the drawing changes; files of older versions are then redrawn.
_SHARES, _SEVERITY = np.array([28, 2, 100, 70]), (0.7, 1.3, 0.0, 0.4)  # By label.
# Growth of ventricles and sulci and loss of hippocampus, in pixels. First the effect of the disease
# at severity 1, then mean and spread of the natural variation, which does not depend on the label.
_EFFECT, _MEAN, _SPREAD = np.array([[2.6, 0.9, 1.5], [0.1, 0.0, 0.0], [0.9, 0.25, 0.3]])
_THRESHOLD, _WHITE, _GRAY, _CSF = 12, 222, 132, 48

# Lengths are pixels of a 128×128 slice; six numbers are values at z = 0, 0.2, ... 1.
_LEVELS = np.linspace(0, 1, 6)
# The outline: angle from the occipital pole, radius at z = 0, radius at z = 1.
_ANGLE = np.radians([0, 30, 60, 90, 105, 120, 132, 147, 163, 180])
_LOW = 49.8, 51.0, 51.3, 49.8, 47.0, 48.0, 52.8, 56.6, 56.2, 56.3
_HIGH = 44.3, 46.6, 50.1, 48.4, 47.2, 48.4, 50.6, 53.0, 53.8, 54.0
# Between these rows, the fissure of the hemispheres is closed.
_CLOSED = (46, 45.5, 45, 48, 50.5, 54), (78, 91.5, 96, 95.5, 90.5, 83)
# Structures are chains of balls: distance from the midline, row, radius (absent where negative).
_BALLS = """
sylvian     | 48                        | 84 79 74 70 70 70     | 1.6 1.3 1.1 0.6 -2 -4
sylvian     | 33                        | 79 75 72 70 70 70     | 1.6 1.3 1.1 0.6 -2 -4
sylvian     | 30.5                      | 61 61 61 62 64 64     | 1.6 1.5 1.3 0.8 -2 -4
sylvian     | 33.5                      | 79 78 77 76 76 76     | 1.6 1.5 1.3 0.8 -2 -4
sylvian     | 35                        | 88 88 86 82 80 80     | 1.6 1.5 1.3 0.8 -2 -4
thalamus    | 6.5                       | 58                    | 6 6 5 3 -2 -4
thalamus    | 12 12 11.5 11 11 11       | 65                    | 8 7.5 6.5 4 -2 -4
putamen     | 22.5 22.5 21.5 20.5 20 20 | 70 65 63 64 65 65     | 5 3.6 2.8 0.8 -4 -4
putamen     | 19 20.5 20 19.5 20 20     | 81 80 79 77 75 75     | 5 4.4 3.4 0.8 -4 -4
caudate     | 9 12 14.5 15 16 17        | 80 78 75 70 68 68     | 3.5 3.5 2.8 2 0.5 -4
caudate     | 10 14 16 16 17 17         | 86 86 85 83 80 80     | 3.5 3.5 3.4 3 1 -4
callosum    | 0                         | 50 50 50.5 53 56 58   | -4 1.5 2 2.2 2 -4
callosum    | 9 11 13 13 11 9           | 48 47 47 48 50 52     | -4 1 1.6 1.6 1 -4
hippocampus | 9                         | 49                    | 2.6 2.2 -1 -4 -4 -4
hippocampus | 16.5                      | 45                    | 3.4 2.8 -1 -4 -4 -4
third       | 0                         | 58 56 55 58 62 62     | 2 1.3 0.8 0.4 -4 -4
third       | 0                         | 73 69 70 67 66 66     | 2 1.2 0.8 0.2 -4 -4
cistern     | 0                         | 40 44 50 51 51 51     | 0.8 0.6 0 -2 -4 -4
cistern     | 0                         | 50 51 52 53 53 53     | 4.5 2.8 1 -1 -4 -4
cistern     | 5                         | 53                    | 1.4 1 0.6 -1 -4 -4
cistern     | 17 17 12 10 10 10         | 51 51.5 53 53 53 53   | 1 0.7 0.4 -1 -4 -4
ventricle   | 25.5 25 22.5 20 16 12     | 42 40 42.5 44.5 47 53 | 1.6 2.1 2.7 3.1 2.8 1
ventricle   | 22 20.5 16 12 8.8 9       | 49 48.5 50 52.5 56 58 | 3.2 3.8 3.4 3.2 4.2 2.6
ventricle   | 10 9.5 6 3.8 5 8.8        | 65                    | -14 -12 -7 2 5 3.1
ventricle   | 5 4 3 4 6 9               | 78 78 75 74.5 73 70   | -4 1.4 2.6 4 5.1 2.9
ventricle   | 10 9 7.3 8 9.3 10         | 88 88 86 85.5 82.5 76 | -2.5 2.3 4.2 4.4 3.5 1.4
ventricle   | 5 4 3 3.5 5.5 9           | 86 86 86 85 80 74     | -4 -1 2.2 2.7 3 1
septum      | 0                         | 76.5 74.5 73.5 70 56 56 | 0.7 0.8 0.8 0.5 0.4 0.4
septum      | 11 2 0 0 0 0              | 78 76 86 87 84 80     | 0.5 0.8 0.4 0.4 0.4 0.4
"""
_ROWS = [line.split("|") for line in _BALLS.strip().splitlines()]
# In order of painting: structure, gray level, blur in pixels, growth with each kind of atrophy.
_PAINT = (
    ("thalamus", 180, 3, (0, 0, 0)),
    ("putamen", 162, 3, (0, 0, 0)),
    ("caudate", 146, 3, (0, 0, 0)),
    ("callosum", 236, 3, (0, 0, 0)),
    ("hippocampus", 70, 1.6, (0, 0, 0)),  # The space it fills in health, then what is left of it.
    ("hippocampus", 142, 1.8, (0, 0, -0.9)),
    ("third", _CSF, 1.4, (0.4, 0, 0)),
    ("cistern", _CSF, 2, (0, 0.3, 0)),
    ("ventricle", _CSF - 10, 1.8, (1, 0, 0)),
    ("septum", 190, 1.2, (0, 0, 0)),
)
# The folded cortex is a strip: one turn around the outline, 32 pixels deep.
_TURN = np.arange(384, dtype=np.float32) / 384
_DEPTH = np.arange(32, dtype=np.float32) / 32


@dataclass(frozen=True, eq=False)
class Phantoms:
    """Synthetic slices with their truth, subject by subject, from the lowest slice upwards.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, size, size)
        Slices as decoded from JPEG.
    labels : ndarray of int64, shape (n,)
        Index into `mri.data.parquet.CLASS_NAMES`; each subject has one label.
    subjects : ndarray of int64, shape (n,)
        Number of the subject, from 0; it says nothing about the class.
    z : ndarray of float32, shape (n,)
        Height, 0 (thalamus) to 1 (top of the lateral ventricles).
    masks : ndarray of bool, shape (n, size, size)
        Pixels that the disease changed by more than 12 gray levels, before noise, compared with
        the same subject without disease. Empty for 'Non_Demented'.
    """

    images: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    z: np.ndarray
    masks: np.ndarray

    def take(self, rows: np.ndarray) -> Phantoms:
        """Return some of the slices; `rows` are indices or a bool array (n,)."""
        return Phantoms(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def scans(self) -> Scans:
        """The slices in the form that `mri.read_scans` returns."""
        rejected = pd.DataFrame(columns=["file", "row", "cause"])
        return Scans(self.images, self.labels, CLASS_NAMES, rejected, synthetic=True)


def make_phantoms(
    subjects: int = 200,
    slices: int = 32,
    *,
    size: int = 128,
    seed: int = 0,
    shortcut: bool = False,
) -> Phantoms:
    """Draw synthetic subjects.

    The class sets the mean atrophy: wider ventricles and sulci, thinner cortex, smaller
    hippocampi (Frisoni et al. 2010, doi:10.1038/nrneurol.2009.215). Natural variation is added, so
    the classes overlap. Each subject has its own head shape, folding, contrast and bias field. The
    noise is Rician (Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618). The result depends only
    on the arguments, not on the number of processors.

    Parameters
    ----------
    subjects : int
        At least 4. Labels 0 to 3 have the shares of the public set (28 : 2 : 100 : 70), but each
        label has at least two subjects (one if there are fewer than 8 subjects).
    slices : int
        Slices per subject, 1 to 32. The spacing is fixed, so fewer slices are the middle ones.
    size : int
        Height and width in pixels, 64 to 512.
    seed : int
        Non-negative; another seed gives other subjects.
    shortcut : bool
        Whether to plant a shortcut: a white mark on the pixels `SHORTCUT` of every slice of the
        demented subjects only. All other pixels stay the same, and `masks` exclude the mark.

    Examples
    --------
    >>> phantoms = make_phantoms(4, 2, size=64)
    >>> phantoms.images.shape, sorted(set(phantoms.labels.tolist()))
    ((8, 64, 64), [0, 1, 2, 3])
    """
    return _draw(subjects, slices, size, seed, shortcut)[0]


def write_phantom(
    folder: str | os.PathLike[str], *, subjects: int = 40, slices: int = 32, seed: int = 0
) -> Path:
    """Write `train.parquet` and `test.parquet` of synthetic slices and return the folder.

    The rows are shuffled and split 80 : 20 by image, stratified by label. So subjects are in both
    files. This is the data leakage of the public set, on purpose. File names do not reveal class or
    subject. The schema metadata hold the parameters as JSON under ``b"mri_phantom"``; they mark the
    slices as synthetic for all other code. A folder that already has the same phantom does not
    change.

    Raises
    ------
    FileExistsError
        If a file with that name is not a phantom. Real data are never overwritten.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     sorted(path.name for path in write_phantom(folder, subjects=4).iterdir())
    ['test.parquet', 'train.parquet']
    """
    folder = Path(folder)
    stamp = {"seed": seed, "subjects": subjects, "slices": slices, "version": _VERSION}
    paths = folder / "train.parquet", folder / "test.parquet"
    if [_read_stamp(path) for path in paths] == [stamp, stamp]:
        return folder
    phantoms, jpegs = _draw(subjects, slices, 128, seed, False)
    rng = np.random.default_rng([seed, subjects, slices])
    order = rng.permutation(len(jpegs))
    labels, is_test = phantoms.labels[order], np.zeros(len(order), bool)
    for label in range(len(CLASS_NAMES)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        is_test[rows[: round(0.2 * len(rows))]] = True
    schema = SCHEMA.with_metadata(
        SCHEMA.metadata | {b"mri_phantom": json.dumps(stamp, default=int).encode()}
    )
    for path, rows in zip(paths, (np.flatnonzero(~is_test), np.flatnonzero(is_test)), strict=True):
        images = [{"bytes": jpegs[order[i]], "path": f"phantom_{i:05d}.jpg"} for i in rows]
        with replacing(path) as temporary:
            pq.write_table(pa.table({"image": images, "label": labels[rows]}, schema), temporary)
    return folder


def _read_stamp(path: Path) -> dict[str, int] | None:
    try:
        return json.loads(pq.read_schema(path).metadata[b"mri_phantom"]) if path.exists() else None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        message = f"{path} is not a phantom file; choose another folder or move the file away"
        raise FileExistsError(message) from None


def _draw(
    subjects: int, slices: int, size: int, seed: int, shortcut: bool
) -> tuple[Phantoms, list[bytes]]:
    ranges = ("subjects", subjects, 4, 10**5), ("slices", slices, 1, 32), ("size", size, 64, 512)
    for name, value, low, high in (*ranges, ("seed", seed, 0, 2**63)):
        valid = isinstance(value, int | np.integer) and low <= value <= high
        require(valid, f"{name} must be an integer from {low} to {high}.", **{name: value})
    counts = np.maximum(_SHARES * subjects // 200, 2 if subjects >= 8 else 1)
    counts[np.argmax(counts)] += subjects - counts.sum()
    labels = np.random.default_rng([seed, subjects]).permutation(
        np.arange(len(counts)).repeat(counts)
    )
    z = ((np.arange(slices) - (slices - 1) / 2) / 31 + 0.5).astype(np.float32)
    artist = _Artist(z, size)

    def run(subject: int) -> tuple[list[bytes], np.ndarray]:
        severity = _SEVERITY[labels[subject]]
        images, masks = artist.scan(np.random.default_rng([seed, subject]), severity)
        if shortcut and severity:
            images[:, *SHORTCUT] = 255
        quality = (cv2.IMWRITE_JPEG_QUALITY, 90)
        return [cv2.imencode(".jpg", image, quality)[1].tobytes() for image in images], masks

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(run, range(subjects)))
    jpegs = [jpeg for subject, _ in results for jpeg in subject]
    phantoms = Phantoms(
        np.stack([cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_GRAYSCALE) for j in jpegs]),
        labels.repeat(slices),
        np.arange(subjects).repeat(slices),
        np.tile(z, subjects),
        np.concatenate([masks for _, masks in results]),
    )
    return phantoms, jpegs


def _length(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(a * a + b * b)


def _inside(distance: np.ndarray, blur: float) -> np.ndarray:
    """Turn a signed distance into coverage, from 1 inside to 0 outside, over `blur` pixels."""
    return np.clip(0.5 - distance * (1 / blur), 0, 1)


def _lines(wave: np.ndarray, beyond: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Return the first-order distance to the lines wave = 0; they end where `beyond` > 0."""
    gy, gx = np.gradient(wave, axis=(1, 2))
    slope = np.sqrt((gy / dy) ** 2 + (gx / dx) ** 2 + 1e-3)
    return _length(wave / slope, np.maximum(beyond, 0))


class _Artist:
    """Draws subjects on shared coordinates, as arrays (slices, rows, columns)."""

    def __init__(self, z: np.ndarray, size: int) -> None:
        self.z, self.pixel = z, 128 / size
        self.axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.u = (self.axis * 128 - 63.5)[None, None, :]
        self.v = (self.axis * 128 - 0.5)[None, :, None]
        rows, columns = np.searchsorted(self.axis, [[0.24, 0.81], [0.2, 0.79]])
        self.core = np.s_[:, slice(*rows), slice(*columns)]  # All of _PAINT lies inside.
        angle = np.arctan2(self.u, 60 - self.v)[0]
        low, high = (np.interp(np.abs(angle), _ANGLE, radius) for radius in (_LOW, _HIGH))
        radius = low + (high - low) * z[:, None, None]
        self.hull = (radius - np.hypot(self.u, self.v - 60)).astype(np.float32)
        self.turn = (angle / (2 * np.pi) % 1 * len(_TURN)).astype(np.float32)

    def at(self, levels: list[str] | tuple[float, ...]) -> np.ndarray:
        """Interpolate one or six numbers to the slices; the shape is (slices, 1, 1)."""
        row = np.interp(self.z, _LEVELS, np.broadcast_to(np.array(levels, float), 6))
        return row.astype(np.float32)[:, None, None]

    def noise(self, rng: np.random.Generator, *cells: int, strip: bool = False) -> np.ndarray:
        """Return smooth noise of unit variance; `cells` are the B-spline cells per axis.

        The splines are cubic. The noise lies on the slices or on the strip of the cortex, which is
        (slices, depth, turn) and periodic in turn.
        """
        axes = (self.z, _DEPTH, _TURN) if strip else (self.z, self.axis, self.axis)
        splines = []
        for x, n in zip(axes, cells, strict=True):
            t = np.abs(x[:, None] * n - np.arange(-1, n + 2, dtype=np.float32))
            splines.append(np.maximum(2 - t, 0) ** 3 - 4 * np.maximum(1 - t, 0) ** 3)
        if strip:
            splines[2][:, :3] += splines[2][:, -3:]
            splines[2] = splines[2][:, :-3]
        wz, wy, wx = (w / np.linalg.norm(w, axis=1, keepdims=True) for w in splines)
        lattice = rng.standard_normal((wz.shape[1], wy.shape[1], wx.shape[1]), np.float32)
        # Many small products, because large ones would start BLAS threads inside each worker.
        planes = wz @ (lattice @ np.ascontiguousarray(wx.T)).transpose(1, 0, 2)
        return wy @ planes.transpose(1, 0, 2)

    def shape(self, name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the signed distance to a structure, negative inside."""
        balls = [[self.at(c.split()) for c in ball] for key, *ball in _ROWS if key.strip() == name]
        result = np.array(1e3, np.float32)
        for (au, av, ar), (bu, bv, br) in pairwise(balls):
            du, dv, pu, pv = bu - au, bv - av, u - au, v - av
            unit = 1 / (du * du + dv * dv)
            t = np.clip(pu * (du * unit) + pv * (dv * unit), 0, 1)
            piece = _length(pu - t * du, pv - t * dv) - ar - t * (br - ar)
            crease = np.maximum(2.5 - np.abs(result - piece), 0)
            result = np.minimum(result, piece) - 0.1 * crease * crease
        return result

    def anatomy(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return what the disease does not change: distances to the structures of one subject."""

        def noise(*cells: int) -> np.ndarray:
            return self.noise(rng, *cells)

        def strip(*cells: int) -> np.ndarray:
            return self.noise(rng, *cells, strip=True)

        u, v = self.u + 1.2 * noise(2, 5, 5), self.v + 1.2 * noise(2, 5, 5)
        h, depth, z = np.abs(u), self.hull + 0.5 * noise(2, 6, 6), self.z[:, None, None]
        # Sulci are the zero lines of a wave along the surface. Noise bends and breaks them, and
        # their depth varies. First the outer surface, where they are deepest at the insula.
        inward = 32 * _DEPTH[:, None]
        phase = 2 * np.pi * (int(rng.integers(20, 24)) * _TURN + float(rng.random()))
        wave = np.cos(phase + 1.6 * strip(3, 4, 16) + 0.9 * strip(3, 6, 36))
        wave += (0.4 + 0.6 * np.exp(-inward / 5)) * strip(3, 6, 56)
        insula = np.exp(-(((np.minimum(_TURN, 1 - _TURN) - 0.3) / 0.06) ** 2)) * (1 - z)
        reach = np.maximum(13.5 + 6 * strip(3, 1, 32)[:, :1] + 6 * insula, 4)
        sulci = _lines(wave, inward - reach, 1, 300 / len(_TURN)) - 0.7 * strip(4, 4, 40)
        sulci = np.concatenate([sulci, sulci[..., :1]], 2)
        modes = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
        pairs = zip(sulci, depth, strict=True)
        outer = np.stack([cv2.remap(plane, self.turn, d, **modes) for plane, d in pairs])
        # Then the medial surface, where the fissure is open.
        closed = np.minimum(v - self.at(_CLOSED[0]), self.at(_CLOSED[1]) - v).clip(0)
        phase = 2 * np.pi * ((self.v + 0.3 * h * noise(2, 3, 2)) / 14 + float(rng.random()))
        phase = phase + 1.5 * np.clip(u / 4, -1, 1) * noise(3, 6, 1) + 1.5 * noise(3, 9, 11)
        wave = np.cos(phase) + (0.5 + 0.6 * np.exp(-h / 4)) * noise(4, 17, 17)
        reach = np.maximum(8 + 3.5 * noise(3, 14, 3) + (v < 50) * np.maximum(10 - 22 * z, 0), 3)
        medial = _lines(wave, h - reach, self.pixel, self.pixel) + closed - 0.6 * noise(4, 14, 14)
        # A blade of white matter separates the two surfaces.
        blade = 0.7 * (h - depth)
        sulci = np.minimum(outer + np.maximum(2.2 - blade, 0), medial + np.maximum(2.2 + blade, 0))
        sigma = 0.75 / self.pixel
        sulci = np.stack([cv2.GaussianBlur(s, (0, 0), sigma) for s in np.minimum(sulci, 6)])
        core_u, core_v = ((a + 0.8 * noise(3, 11, 11))[self.core] for a in (u, v))
        core_h = np.abs(core_u)
        return {
            **{name: self.shape(name, core_h, core_v) for name, *_ in _PAINT},
            "sylvian": self.shape("sylvian", h + 2.3 * noise(3, 20, 8), v + 1.4 * noise(3, 14, 14)),
            "sulci": sulci - 0.65,
            "crown": 0.8 * np.exp(-depth.clip(0) / 3),
            "fissure": _length(u + 0.6 * noise(4, 16, 4), closed) - 0.5,
            "depth": depth,
            "gap": depth - 0.4 - 0.9 * noise(4, 14, 14),
            "gain": 1 + 0.04 * noise(1, 2, 2) + 0.03 * noise(6, 34, 34),
        }

    def render(self, a: dict[str, np.ndarray], atrophy: np.ndarray) -> np.ndarray:
        """Return noise-free gray values for an atrophy of ventricles, cortex and hippocampi."""
        ventricles, cortex, _ = atrophy.tolist()
        surface = np.minimum(a["gap"] - 0.8 * cortex, a["sylvian"] - 0.9 * cortex)
        surface = np.minimum(surface, a["fissure"] - 0.3 * cortex)
        sulci = a["sulci"] - 0.5 * cortex - (0.35 + cortex) * a["crown"]
        surface = np.minimum(surface, sulci)
        image = np.full(surface.shape, _WHITE, np.float32)
        core = image[self.core]

        def paint(target: np.ndarray, coverage: np.ndarray, value: float) -> None:
            target += coverage * (value - target)

        # White matter lines the ventricles, so there is no cortex within a pixel or two.
        cortical = np.ones_like(image)
        cortical[self.core] = np.clip(0.5 * (a["ventricle"] - ventricles) - 0.5, 0, 1)
        paint(image, cortical * _inside(surface - 2.8 + 0.4 * cortex, 2.6), _GRAY)
        paint(image, cortical * _inside(surface, 2.4), _CSF)
        for name, value, blur, growth in _PAINT:
            paint(core, _inside(a[name] - float(np.dot(growth, atrophy)), blur), value)
        return image * a["gain"]

    def scan(self, rng: np.random.Generator, severity: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the uint8 slices and the bool masks of one subject."""
        a = self.anatomy(rng)
        natural = _MEAN + _SPREAD * rng.standard_normal(3).clip(-1.5, 2)
        effect = severity * _EFFECT * rng.lognormal(0, 0.2, 3)
        healthy, image = self.render(a, natural), self.render(a, natural + effect)
        head = _inside(-a["depth"] - (0.5 * self.noise(rng, 6, 44, 44) - 0.3).clip(None, 0), 1)
        masks = np.abs(image - healthy) * head > _THRESHOLD
        image = _WHITE * (image.clip(1) / _WHITE) ** float(rng.lognormal(0, 0.09))
        # Thin bright remains of the skull are at the sides. Each slice is scaled to its maximum,
        # as in the public set, so a bright remnant makes the rest darker.
        skull = (self.noise(rng, 4, 16, 16) - 1.2).clip(0, 2) * (np.abs(self.u) / 12 - 2).clip(0, 1)
        image += 130 * skull * _inside(np.abs(a["depth"] - 0.9) - 0.5, 1)
        noise = rng.standard_normal((2, *image.shape), np.float32) * float(rng.uniform(3, 5.5))
        image = _length(image + noise[0], noise[1]) * head
        image *= 255 / image.max((1, 2), keepdims=True).clip(255)
        return image.astype(np.uint8), masks
