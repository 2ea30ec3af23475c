"""Canonical pose: every slice turned, scaled and centred by its outline, before any comparison."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

SIDE = 64
"""Rows and columns of a canonical slice, in pixels."""

_RADIUS = 25.5  # Of the brain in a canonical slice, in pixels: leaves room for what sticks out.
_RAYS, _STEPS, _FINE = 128, 64, 1024  # Rays of an outline, samples a ray, angles tried in a turn.
_HARMONICS = slice(2, 25)  # Without the mean and the centre; above them is the noise of the edge.
_BLOCK, _ROUNDS = 512, 2
_THUMB, _KINDS = 32, 12  # Side of a thumbnail; mean heads to lay them on, mostly by height.


def upright(images: np.ndarray) -> tuple[np.ndarray, bool]:
    """Bring slices into one pose, so that a turned, scaled or moved copy lies on its original.

    The outline of a head (its distance from the centre along 128 rays) gives centre and size; its
    circular correlation with the mean outline gives the angle. The mean outline is made symmetric,
    so that the pose of a mirrored slice is the mirrored pose: flipping the columns of a canonical
    slice is the same as bringing its mirror image into pose. Where most slices have no outline
    inside the picture, all are only resized.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
        Bright on dark or dark on bright.

    Returns
    -------
    canonical : ndarray of float32, shape (n, 64, 64)
        In the gray values of `images`.
    posed : bool
        Whether the slices had outlines to go by.
    """
    starts = range(0, len(images), _BLOCK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda s: _outlines(images[s : s + _BLOCK]), starts))
        poses, radii, inside, small = (np.concatenate(part) for part in zip(*found, strict=True))
        posed = bool(inside.mean() > 0.5)
        if posed:
            poses = np.column_stack([poses, _angles(radii / poses[:, 2:])])
            shrunk = poses.copy()
            factor = max(images.shape[1:]) / SIDE
            shrunk[:, :2] = (poses[:, :2] + 0.5) / factor - 0.5
            shrunk[:, 2] /= factor
            for _ in range(_ROUNDS):
                small_and_pose = (
                    [small[s : s + _BLOCK] for s in starts],
                    np.split(shrunk, list(starts)[1:]),
                )
                shrunk = _settled(np.concatenate(list(pool.map(_thumbs, *small_and_pose))), shrunk)
            del small
            poses = shrunk.copy()
            poses[:, :2] = (shrunk[:, :2] + 0.5) * factor - 0.5
            poses[:, 2] *= factor
            parts = list(
                pool.map(lambda s: _warped(images[s : s + _BLOCK], poses[s : s + _BLOCK]), starts)
            )
        else:
            parts = list(pool.map(lambda s: resized(images[s : s + _BLOCK], SIDE), starts))
    return np.concatenate(parts), posed


def resized(images: np.ndarray, longest: int, *, keep_shape: bool = False) -> np.ndarray:
    """Resize slices to squares, or to the longer side.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
    longest : int
        Pixels.
    keep_shape : bool

    Returns
    -------
    ndarray of float32, shape (n, rows, columns)
    """
    height, width = images.shape[1:]
    size = (longest, longest)
    if keep_shape:
        scale = longest / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if max(height, width) > longest else cv2.INTER_LINEAR
    return np.stack(
        [cv2.resize(np.float32(image), size, interpolation=way) for image in images]
    ).astype(np.float32)


def _outlines(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centre x, y and radius (n, 3), outlines (n, rays), which lie inside, small slices.

    In pixels of the slices. The radius is that of a disc of the same area.
    """
    scale = max(images.shape[1:]) / SIDE
    small = resized(images, SIDE, keep_shape=True)
    for image in small:
        cv2.GaussianBlur(image, (0, 0), 0.7, dst=image)
    edge = np.concatenate([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], axis=1)
    ground = np.median(edge, axis=1)[:, None, None]
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 1) for image in small])
    small = np.abs(small - ground)
    flat = small[:, ::2, ::2].reshape(len(small), -1)
    bright = np.partition(flat, int(0.9 * flat.shape[1]), axis=1)[:, int(0.9 * flat.shape[1])]
    level = 0.2 * bright
    mask = small > level[:, None, None]
    total = np.maximum(mask.sum((1, 2)), 1)
    x = (mask.sum(1) * np.arange(mask.shape[2])).sum(1) / total
    y = (mask.sum(2) * np.arange(mask.shape[1])).sum(1) / total
    reach = 0.75 * SIDE
    turn = np.arange(_RAYS) * (2 * np.pi / _RAYS)
    cos, sin = np.cos(turn), np.sin(turn)
    for again in range(3):
        radii = _crossings(small, level, x, y, reach)
        area = np.maximum((radii**2).mean(1), 1)
        if again < 2:
            x = x + (radii**3 @ cos) * (2 / 3 / _RAYS) / area
            y = y + (radii**3 @ sin) * (2 / 3 / _RAYS) / area
    height, width = mask.shape[1:]
    ends_x, ends_y = x[:, None] + radii * cos, y[:, None] + radii * sin
    out = (ends_x < 1) | (ends_x > width - 2) | (ends_y < 1) | (ends_y > height - 2)
    inside = (out.mean(1) < 0.1) & (area > 0.05 * height * width)
    centre = np.stack([x, y], axis=1) * scale + (scale - 1) / 2
    poses = np.column_stack([centre, np.sqrt(area) * scale])
    return poses, radii * scale, inside, smooth


def _crossings(
    small: np.ndarray, level: np.ndarray, x: np.ndarray, y: np.ndarray, reach: float
) -> np.ndarray:
    """Return the outermost distance (n, rays) at which each ray is above the slice's level."""
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = np.stack(
        [
            cv2.warpPolar(image, (_STEPS, _RAYS), (float(cx), float(cy)), reach, flags)
            for image, cx, cy in zip(small, x, y, strict=True)
        ]
    )
    above = polar > level[:, None, None]
    above[:, :, 0] = True
    last = _STEPS - 1 - above[:, :, ::-1].argmax(2)
    after = np.minimum(last + 1, _STEPS - 1)
    one, two = (np.take_along_axis(polar, at[:, :, None], 2)[:, :, 0] for at in (last, after))
    drop = np.maximum(one - two, 1e-6)
    part = np.where(one > two, (one - level[:, None]) / drop, 0).clip(0, 1)
    return (last + part) * (reach / _STEPS)


def _angles(outlines: np.ndarray) -> np.ndarray:
    """Return the angle (n,) in radians at which each outline fits the symmetric mean outline."""
    waves = np.fft.rfft(outlines - outlines.mean(1, keepdims=True), axis=1)[:, _HARMONICS]
    number = np.arange(_RAYS // 2 + 1)[_HARMONICS]
    sample = waves[:: max(1, len(waves) // 2000)]
    few = sample[:: max(1, len(sample) // 64)]
    likeness = np.stack([_fit(few, one, number)[1] for one in few])
    mean = few[likeness.mean(1).argmax()]
    for _ in range(4):
        angles = _fit(sample, mean, number)[0]
        mean = (sample * np.exp(1j * number * angles[:, None])).mean(0)
        # An outline times itself, not its conjugate, is a correlation with the mirror image.
        itself = _correlation((mean * mean)[None], number)[0]
        twice = itself.argmax() * (2 * np.pi / _FINE)
        off = (twice - np.pi) / 2
        # Of the two ends of the axis, the one that turns the slices less.
        off -= np.pi * np.round(off / np.pi)
        mean = mean * np.exp(1j * number * off)
        mean = (mean + np.conj(mean) * np.exp(-1j * number * np.pi)) / 2
    return np.concatenate(
        [_fit(waves[s : s + 4096], mean, number)[0] for s in range(0, len(waves), 4096)]
    )


def _correlation(waves: np.ndarray, number: np.ndarray) -> np.ndarray:
    full = np.zeros((len(waves), _FINE // 2 + 1), np.complex64)
    full[:, number] = waves
    return np.fft.irfft(full, n=_FINE, axis=1)


def _fit(waves: np.ndarray, mean: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best angle of each outline against `mean`, and the correlation there."""
    found = _correlation(waves * np.conj(mean), number)
    best = found.argmax(1)
    rows = np.arange(len(found))
    left, top, right = (found[rows, (best + d) % _FINE] for d in (-1, 0, 1))
    curve = np.minimum(left - 2 * top + right, -1e-12)
    angle = (best + (left - right) / (2 * curve)) * (2 * np.pi / _FINE)
    norms = np.linalg.norm(waves, axis=1) * np.linalg.norm(mean)
    return (angle + np.pi) % (2 * np.pi) - np.pi, top / np.maximum(norms, 1e-12)


def _thumbs(small: np.ndarray, poses: np.ndarray) -> np.ndarray:
    thumbs = np.empty((len(small), _THUMB, _THUMB), np.float32)
    for out, image, pose in zip(thumbs, small, poses, strict=True):
        _draw(image, tuple(pose), _THUMB, out)
    return thumbs


def _settled(thumbs: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Correct the poses by the inside of the heads: least squares onto symmetric mean heads.

    One step of the inverse compositional Lucas-Kanade method (Baker & Matthews 2004,
    doi:10.1023/B:VISI.0000011205.11775.fd) for angle, size and shift at once.
    """
    n = len(thumbs)
    flat = (thumbs + thumbs[:, :, ::-1]).reshape(n, -1)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    sample = flat[:: max(1, n // 2000)]
    kinds = min(_KINDS, max(1, len(sample) // 40))
    with threadpool_limits(1):
        centres = KMeans(kinds, n_init=1, max_iter=20, random_state=0).fit(sample).cluster_centers_
        kind = (flat @ centres.T - (centres**2).sum(1) / 2).argmax(1)
    poses = poses.copy()
    unit = thumbs.reshape(n, -1) - thumbs.mean((1, 2)).reshape(n, 1)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
    middle = (_THUMB - 1) / 2
    rows, columns = np.mgrid[:_THUMB, :_THUMB] - middle
    for number, centre in enumerate(centres):
        members = np.flatnonzero(kind == number)
        head = centre.reshape(_THUMB, _THUMB)
        down, right = np.gradient(head)
        design = np.stack(
            [head, np.ones_like(head), right, down, right * columns + down * rows,
             down * columns - right * rows]
        ).reshape(6, -1)  # fmt: skip
        found = unit[members] @ np.linalg.pinv(design)
        steps = found[:, 2:] / np.maximum(found[:, :1], 0.3)
        # A step beyond what an outline can be wrong by says that the head is another one.
        dx, dy = np.clip(steps[:, 0], -1, 1), np.clip(steps[:, 1], -1, 1)
        zoom, turn = np.clip(steps[:, 2], -0.05, 0.05), np.clip(steps[:, 3], -0.1, 0.1)
        radius, angle = poses[members, 2], poses[members, 3]
        unit_length = radius / (_RADIUS * _THUMB / SIDE)
        cos, sin = np.cos(angle) * unit_length, np.sin(angle) * unit_length
        poses[members, 0] -= cos * dx - sin * dy
        poses[members, 1] -= sin * dx + cos * dy
        poses[members, 2] *= 1 - zoom
        poses[members, 3] -= turn
    return poses


def _draw(image: np.ndarray, pose: tuple[float, ...], side: int, out: np.ndarray) -> None:
    x, y, radius, angle = pose
    middle, scale = (side - 1) / 2, radius / (_RADIUS * side / SIDE)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, -sin, x - (cos - sin) * middle], [sin, cos, y - (sin + cos) * middle]])
    cv2.warpAffine(
        image, matrix, (side, side), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


def _warped(images: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Draw each slice in canonical pose, at twice the resolution and then halved."""
    canonical = np.empty((len(images), SIDE, SIDE), np.float32)
    drawn = np.empty((2 * SIDE, 2 * SIDE), np.float32)
    for out, image, pose in zip(canonical, images, poses, strict=True):
        _draw(image.astype(np.float32), tuple(pose), 2 * SIDE, drawn)
        cv2.resize(drawn, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_AREA)
    return canonical
