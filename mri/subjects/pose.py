"""Canonical pose: every slice turned, scaled and centred by its outline, before any comparison."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

SIDE = 64
"""Rows and columns of a canonical slice, in pixels."""

_RADIUS = 25.5  # Of the brain in a canonical slice, in pixels: leaves room for what sticks out.
_STEPS, _REACH = 64, 0.75 * SIDE  # Samples of a ray, and its length in pixels.
_RAYS = 32, 32, 128  # Rays of an outline: few are enough to find the centre.
_HARMONICS, _FINE = np.arange(2, 25), 1024  # Of an outline; angles that are tried in a turn.
_ROUNDS, _BLOCK = 2, 128
_THUMB, _KINDS = 32, 12  # Side of a thumbnail; mean heads to lay them on, mostly by height.
_MOST = np.array([1, 1, 0.05, 0.1])  # A larger correction says that the mean head is a wrong one.


Heads = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pose:
    """Mean heads that slices are laid on, so that a turned, scaled or moved copy is its original.

    The outline of a head (its distance from the centre along 128 rays) gives centre and size. Its
    circular correlation with the mean outline gives the angle. The inside of the head corrects all
    three. The mean heads are symmetric, so a mirrored slice has the mirrored pose.

    `outline` are the Fourier coefficients (23,) of the mean outline. It is None where most slices
    have no outline inside the picture; these are only resized. `heads` are, for each round of
    corrections, the mean heads (kinds, 1024) and what corrections are read off with.
    """

    outline: np.ndarray | None
    heads: tuple[Heads, ...] = ()

    @classmethod
    def learn(cls, images: np.ndarray) -> Pose:
        """Learn the mean heads from slices (n, h, w), a few for all."""
        blocks = [images[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = [*pool.map(_outlines, blocks)]
        poses, waves, inside, small = map(np.concatenate, zip(*parts, strict=True))
        if inside.mean() <= 0.5:
            return cls(None)
        outline = _mean_outline(waves)
        poses[:, 3] = _fit(waves, outline)[0]
        heads: list[Heads] = []
        for _ in range(_ROUNDS):
            thumbs = _drawn(small, poses, _THUMB)
            heads.append(_mean_heads(thumbs))
            poses = _settled(thumbs, poses, heads[-1])
        return cls(outline, tuple(heads))

    def draw(self, images: np.ndarray) -> np.ndarray:
        """Return slices (n, h, w) in canonical pose, float32 (n, 64, 64)."""
        if self.outline is None:
            return resized(images, SIDE)
        poses, waves, _, small = _outlines(images)
        poses[:, 3] = _fit(waves, self.outline)[0]
        for heads in self.heads:
            poses = _settled(_drawn(small, poses, _THUMB), poses, heads)
        factor = max(images.shape[1:]) / SIDE
        poses[:, :2] = (poses[:, :2] + 0.5) * factor - 0.5
        poses[:, 2] *= factor
        # Drawn at twice the resolution and halved, so that fine folds do not alias.
        return _drawn(images, poses, SIDE, fine=2)


def resized(images: np.ndarray, longest: int, *, keep_shape: bool = False) -> np.ndarray:
    """Resize slices (n, h, w) to squares, or to the longer side, float32 (n, rows, columns)."""
    height, width = images.shape[1:]
    size = (longest, longest)
    if keep_shape:
        scale = longest / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if max(height, width) > longest else cv2.INTER_LINEAR
    found = np.empty((len(images), *size[::-1]), np.float32)
    for out, image in zip(found, images, strict=True):
        cv2.resize(np.float32(image), size, dst=out, interpolation=way)
    return found


def _outlines(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return poses (n, 5), waves of the outlines, which lie inside, and small slices.

    A pose is the centre x, y and radius (of a disc of the same area) in pixels of the small slices,
    an angle to be found, and -1 for a negative, a head darker than its ground.
    """
    small = resized(images, SIDE, keep_shape=True)
    for image in small:
        cv2.GaussianBlur(image, (0, 0), 0.7, dst=image)
    edge = np.concatenate([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], axis=1)
    small -= np.median(edge, axis=1)[:, None, None]
    sign = np.where(small.sum((1, 2)) < 0, -1, 1)
    apart = np.abs(small)
    flat = apart[:, ::2, ::2].reshape(len(small), -1)
    level = 0.2 * np.partition(flat, int(0.9 * flat.shape[1]), axis=1)[:, int(0.9 * flat.shape[1])]
    mask = apart > level[:, None, None]
    height, width = mask.shape[1:]
    total = np.maximum(mask.sum((1, 2)), 1)
    x = mask.sum(1) @ np.arange(width) / total
    y = mask.sum(2) @ np.arange(height) / total
    for rays in _RAYS:
        turn = np.arange(rays) * (2 * np.pi / rays)
        cos, sin = np.cos(turn), np.sin(turn)
        radii = _crossings(apart, level, x, y, rays)
        area = np.maximum((radii**2).mean(1), 1)
        if rays < _RAYS[-1]:
            x = x + (radii**3 @ cos) * (2 / 3 / rays) / area
            y = y + (radii**3 @ sin) * (2 / 3 / rays) / area
    ends_x, ends_y = x[:, None] + radii * cos, y[:, None] + radii * sin
    out = (ends_x < 1) | (ends_x > width - 2) | (ends_y < 1) | (ends_y > height - 2)
    inside = (out.mean(1) < 0.1) & (area > 0.05 * height * width)
    poses = np.column_stack([x, y, np.sqrt(area), np.zeros(len(x)), sign])
    shapes = radii / poses[:, 2:3]
    waves = np.fft.rfft(shapes - shapes.mean(1, keepdims=True), axis=1)[:, _HARMONICS]
    for image in small:
        cv2.GaussianBlur(image, (0, 0), 1, dst=image)
    return poses, waves, inside, small


def _crossings(
    small: np.ndarray, level: np.ndarray, x: np.ndarray, y: np.ndarray, rays: int
) -> np.ndarray:
    """Return the outermost distance (n, rays) at which each ray is above the slice's level."""
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = np.empty((len(small), rays, _STEPS), np.float32)
    for out, image, *centre in zip(polar, small, x.tolist(), y.tolist(), strict=True):
        cv2.warpPolar(image, (_STEPS, rays), centre, _REACH, flags, dst=out)
    above = polar > level[:, None, None]
    above[:, :, 0] = True
    last = _STEPS - 1 - above[:, :, ::-1].argmax(2)
    after = np.minimum(last + 1, _STEPS - 1)
    one, two = (np.take_along_axis(polar, at[:, :, None], 2)[:, :, 0] for at in (last, after))
    part = np.where(one > two, (one - level[:, None]) / np.maximum(one - two, 1e-6), 0).clip(0, 1)
    return (last + part) * (_REACH / _STEPS)


def _mean_outline(waves: np.ndarray) -> np.ndarray:
    """Return the symmetric mean (23,) of outlines, each turned to fit it best."""
    few = waves[:: max(1, len(waves) // 64)]
    likeness = np.stack([_fit(few, one)[1] for one in few])
    mean = few[likeness.mean(1).argmax()]
    for _ in range(4):
        angles = _fit(waves, mean)[0]
        mean = (waves * np.exp(1j * _HARMONICS * angles[:, None])).mean(0)
        # An outline times itself, not its conjugate, is a correlation with the mirror image.
        itself = _correlation((mean * mean)[None])[0]
        off = (itself.argmax() * (2 * np.pi / _FINE) - np.pi) / 2
        # Of the two ends of the axis, the one that turns the slices less.
        off -= np.pi * np.round(off / np.pi)
        mean = mean * np.exp(1j * _HARMONICS * off)
        mean = (mean + np.conj(mean) * np.exp(-1j * _HARMONICS * np.pi)) / 2
    return mean


def _correlation(waves: np.ndarray) -> np.ndarray:
    full = np.zeros((len(waves), _FINE // 2 + 1), np.complex64)
    full[:, _HARMONICS] = waves
    return np.fft.irfft(full, n=_FINE, axis=1)


def _fit(waves: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best angle of each outline against `mean`, and the correlation there."""
    found = _correlation(waves * np.conj(mean))
    best = found.argmax(1)
    rows = np.arange(len(found))
    left, top, right = (found[rows, (best + d) % _FINE] for d in (-1, 0, 1))
    curve = np.minimum(left - 2 * top + right, -1e-12)
    angle = (best + (left - right) / (2 * curve)) * (2 * np.pi / _FINE)
    norms = np.linalg.norm(waves, axis=1) * np.linalg.norm(mean)
    return (angle + np.pi) % (2 * np.pi) - np.pi, top / np.maximum(norms, 1e-12)


def _mean_heads(thumbs: np.ndarray) -> Heads:
    """Return symmetric mean heads of length 1 or less, one a cluster, and their inverses.

    An inverse (1024, 6) maps a thumbnail to contrast, brightness, shift, zoom and turn.
    """
    flat = unit(thumbs + thumbs[:, :, ::-1])
    kinds = min(_KINDS, max(1, len(flat) // 40))
    with threadpool_limits(1):
        heads = KMeans(kinds, n_init=1, max_iter=20, random_state=0).fit(flat).cluster_centers_
    rows, columns = np.mgrid[:_THUMB, :_THUMB] - (_THUMB - 1) / 2
    pictures = heads.reshape(-1, _THUMB, _THUMB)
    down, right = np.gradient(pictures, axis=(1, 2))
    zoomed, turned = right * columns + down * rows, down * columns - right * rows
    design = np.stack([pictures, np.ones_like(pictures), right, down, zoomed, turned], 1)
    return heads, np.linalg.pinv(design.reshape(kinds, 6, -1)).astype(np.float32)


def unit(images: np.ndarray) -> np.ndarray:
    """Return images in rows of mean 0 and length 1, of which a dot product is a correlation."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _settled(thumbs: np.ndarray, poses: np.ndarray, found: Heads) -> np.ndarray:
    """Correct the poses by the inside of the heads: least squares onto the likest mean head.

    One step of the inverse compositional Lucas-Kanade method (Baker & Matthews 2004,
    doi:10.1023/B:VISI.0000011205.11775.fd) for angle, size and shift at once.
    """
    heads, inverses = found
    kind = (unit(thumbs + thumbs[:, :, ::-1]) @ heads.T - (heads**2).sum(1) / 2).argmax(1)
    flat, fits = unit(thumbs), np.empty((len(thumbs), 6))
    for number in np.unique(kind):
        fits[kind == number] = flat[kind == number] @ inverses[number]
    steps = fits[:, 2:] / np.maximum(fits[:, :1], 0.3)
    dx, dy, zoom, turn = steps.clip(-_MOST, _MOST).T
    x, y, radius, angle, sign = poses.T
    pixel = radius / (_RADIUS * _THUMB / SIDE)
    cos, sin = np.cos(angle) * pixel, np.sin(angle) * pixel
    x, y = x - (cos * dx - sin * dy), y - (sin * dx + cos * dy)
    return np.column_stack([x, y, radius * (1 - zoom), angle - turn, sign])


def _drawn(images: np.ndarray, poses: np.ndarray, side: int, fine: int = 1) -> np.ndarray:
    """Draw slices in their poses, float32 (n, side, side), by way of `fine` times the side."""
    x, y, radius, angle, sign = poses.T
    middle, scale = (fine * side - 1) / 2, radius / (_RADIUS * fine * side / SIDE)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    corner = x - (cos - sin) * middle, y - (sin + cos) * middle
    matrices = np.array([[cos, -sin, corner[0]], [sin, cos, corner[1]]])
    found = np.empty((len(images), side, side), np.float32)
    large = np.empty((fine * side, fine * side), np.float32)
    for out, image, matrix in zip(found, images, np.moveaxis(matrices, 2, 0), strict=True):
        cv2.warpAffine(
            np.float32(image), matrix, large.shape, dst=large if fine > 1 else out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        if fine > 1:
            cv2.resize(large, (side, side), dst=out, interpolation=cv2.INTER_AREA)
    return found * sign.astype(np.float32)[:, None, None]
