"""Canonical pose: every slice turned, scaled and centred by its outline, before any comparison."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

SIDE = 64
"""Rows and columns of a canonical slice, in pixels."""

LEARNT = 2000
"""Slices that mean heads are learnt from, about."""

_RADIUS = 25.5  # Of the brain in a canonical slice, in pixels: leaves room for what sticks out.
_RAYS, _STEPS, _FINE = 128, 64, 1024  # Rays of an outline, samples a ray, angles tried in a turn.
_FEW_RAYS = 32  # Enough to find the centre.
_HARMONICS = np.arange(2, 25)  # Without the mean and the centre; above is the noise of the edge.
_ROUNDS = 2
_THUMB, _KINDS = 32, 12  # Side of a thumbnail; mean heads to lay them on, mostly by height.


@dataclass(frozen=True, eq=False)
class Pose:
    """Mean heads that slices are laid on, so that a turned, scaled or moved copy is its original.

    The outline of a head (its distance from the centre along 128 rays) gives centre and size; its
    circular correlation with the mean outline gives the angle; the inside of the head corrects all
    three. The mean heads are symmetric, so that the pose of a mirrored slice is the mirrored pose:
    flipping the columns of a canonical slice is bringing its mirror image into pose.

    Attributes
    ----------
    outline : ndarray of complex, shape (23,), or None
        Fourier coefficients of the mean outline; None where most slices have no outline inside the
        picture: then they are only resized.
    heads : tuple of ndarray of float32, shape (kinds, 32, 32)
        Mean heads for each round of corrections.
    """

    outline: np.ndarray | None
    heads: tuple[np.ndarray, ...]

    @classmethod
    def learn(cls, images: np.ndarray) -> Pose:
        """Learn the mean heads from slices (n, h, w), a few for all."""
        poses, radii, inside, small, _ = _outlines(images)
        if inside.mean() <= 0.5:
            return cls(None, ())
        waves = _waves(radii / poses[:, 2:])
        outline = _mean_outline(waves)
        poses = np.column_stack([poses, _fit(waves, outline)[0]])
        heads = []
        for _ in range(_ROUNDS):
            thumbs = _thumbs(small, poses)
            heads.append(_mean_heads(thumbs))
            poses = _settled(thumbs, poses, heads[-1])
        return cls(outline, tuple(heads))

    def draw(self, images: np.ndarray) -> np.ndarray:
        """Return slices (n, h, w) in canonical pose, float32 (n, 64, 64), negatives below 0."""
        if self.outline is None:
            return resized(images, SIDE)
        poses, radii, _, small, sign = _outlines(images)
        poses = np.column_stack([poses, _fit(_waves(radii / poses[:, 2:]), self.outline)[0]])
        for heads in self.heads:
            poses = _settled(_thumbs(small, poses), poses, heads)
        factor = max(images.shape[1:]) / SIDE
        poses[:, :2] = (poses[:, :2] + 0.5) * factor - 0.5
        poses[:, 2] *= factor
        canonical = np.empty((len(images), SIDE, SIDE), np.float32)
        drawn = np.empty((2 * SIDE, 2 * SIDE), np.float32)
        for out, image, pose in zip(canonical, images, poses, strict=True):
            # Drawn at twice the resolution and halved, so that fine folds do not alias.
            _draw(image.astype(np.float32), tuple(pose), 2 * SIDE, drawn)
            cv2.resize(drawn, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_AREA)
        return canonical * sign


def resized(images: np.ndarray, longest: int, *, keep_shape: bool = False) -> np.ndarray:
    """Resize slices (n, h, w) to squares, or to the longer side, float32 (n, rows, columns)."""
    height, width = images.shape[1:]
    size = (longest, longest)
    if keep_shape:
        scale = longest / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if max(height, width) > longest else cv2.INTER_LINEAR
    return np.stack(
        [cv2.resize(np.float32(image), size, interpolation=way) for image in images]
    ).astype(np.float32, copy=False)


def _outlines(images: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return centre x, y and radius (n, 3), outlines (n, rays), which lie inside, small slices.

    In pixels of the small slices, which are bright on 0; last comes -1 for what was dark on bright.
    The radius is that of a disc of the same area.
    """
    small = resized(images, SIDE, keep_shape=True)
    for image in small:
        cv2.GaussianBlur(image, (0, 0), 0.7, dst=image)
    edge = np.concatenate([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], axis=1)
    small -= np.median(edge, axis=1)[:, None, None]
    # A negative, a head darker than its ground, is turned back.
    sign = np.where(small.sum((1, 2)) < 0, np.float32(-1), np.float32(1))[:, None, None]
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 1) for image in small]) * sign
    small = np.abs(small)
    flat = small[:, ::2, ::2].reshape(len(small), -1)
    bright = np.partition(flat, int(0.9 * flat.shape[1]), axis=1)[:, int(0.9 * flat.shape[1])]
    level = 0.2 * bright
    mask = small > level[:, None, None]
    height, width = mask.shape[1:]
    total = np.maximum(mask.sum((1, 2)), 1)
    x = mask.sum(1) @ np.arange(width) / total
    y = mask.sum(2) @ np.arange(height) / total
    for rays in (_FEW_RAYS, _FEW_RAYS, _RAYS):
        turn = np.arange(rays) * (2 * np.pi / rays)
        cos, sin = np.cos(turn), np.sin(turn)
        radii = _crossings(small, level, x, y, rays)
        area = np.maximum((radii**2).mean(1), 1)
        if rays < _RAYS:
            x = x + (radii**3 @ cos) * (2 / 3 / rays) / area
            y = y + (radii**3 @ sin) * (2 / 3 / rays) / area
    ends_x, ends_y = x[:, None] + radii * cos, y[:, None] + radii * sin
    out = (ends_x < 1) | (ends_x > width - 2) | (ends_y < 1) | (ends_y > height - 2)
    inside = (out.mean(1) < 0.1) & (area > 0.05 * height * width)
    return np.column_stack([x, y, np.sqrt(area)]), radii, inside, smooth, sign


def _crossings(
    small: np.ndarray, level: np.ndarray, x: np.ndarray, y: np.ndarray, rays: int
) -> np.ndarray:
    """Return the outermost distance (n, rays) at which each ray is above the slice's level."""
    reach = 0.75 * SIDE
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = np.stack(
        [
            cv2.warpPolar(image, (_STEPS, rays), (float(cx), float(cy)), reach, flags)
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


def _waves(outlines: np.ndarray) -> np.ndarray:
    """Return the Fourier coefficients (n, 23) of outlines (n, rays) that tell their angle."""
    return np.fft.rfft(outlines - outlines.mean(1, keepdims=True), axis=1)[:, _HARMONICS]


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


def _thumbs(small: np.ndarray, poses: np.ndarray) -> np.ndarray:
    thumbs = np.empty((len(small), _THUMB, _THUMB), np.float32)
    for out, image, pose in zip(thumbs, small, poses, strict=True):
        _draw(image, tuple(pose), _THUMB, out)
    return thumbs


def _mean_heads(thumbs: np.ndarray) -> np.ndarray:
    """Return symmetric mean heads (kinds, 32, 32) of length 1 or less, one a cluster."""
    flat = _unit(thumbs + thumbs[:, :, ::-1])
    kinds = min(_KINDS, max(1, len(flat) // 40))
    with threadpool_limits(1):
        found = KMeans(kinds, n_init=1, max_iter=20, random_state=0).fit(flat).cluster_centers_
    return found.reshape(-1, _THUMB, _THUMB)


def _unit(thumbs: np.ndarray) -> np.ndarray:
    flat = thumbs.reshape(len(thumbs), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _settled(thumbs: np.ndarray, poses: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Correct the poses by the inside of the heads: least squares onto the likest mean head.

    One step of the inverse compositional Lucas-Kanade method (Baker & Matthews 2004,
    doi:10.1023/B:VISI.0000011205.11775.fd) for angle, size and shift at once.
    """
    flat = heads.reshape(len(heads), -1)
    likest = _unit(thumbs + thumbs[:, :, ::-1]) @ flat.T - (flat**2).sum(1) / 2
    kind, unit, poses = likest.argmax(1), _unit(thumbs), poses.copy()
    rows, columns = np.mgrid[:_THUMB, :_THUMB] - (_THUMB - 1) / 2
    for number, head in enumerate(heads):
        members = np.flatnonzero(kind == number)
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
