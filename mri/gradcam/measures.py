"""Measures of heatmaps: they show whether maps follow the weights, the prediction and the truth.

`control_maps` know nothing of the network. A figure means something only beside theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from scipy.special import logsumexp
from scipy.stats import rankdata

from mri._arguments import require, row_numbers

if TYPE_CHECKING:
    from mri._keras import keras
    from mri.gradcam.cam import GradCAM


_NETWORKS, _STAGES = 10, 8  # of a cascade; in deep networks a stage has several layers


class Localisation(NamedTuple):
    """How well n maps find the pixels of their masks: float64 (n,) in [0, 1], 0 for a zero map.

    `pointing` is whether the peak lies inside or nearby; for equal peaks, the share that does.
    `iou` is the overlap of the mask with as many of the map's largest pixels; pixels that tie at
    the bound count in proportion. `energy` is the share of the map's sum that lies inside.
    """

    pointing: np.ndarray
    iou: np.ndarray
    energy: np.ndarray


class Curves(NamedTuple):
    """Log odds of a class while pixels change, starting at the largest map values.

    `fractions`, float64 (steps + 1,), are the shares of the pixels changed, from 0 to 1. `deletion`
    goes from the slice to the blurred slice, `insertion` back; both are float64 (n, steps + 1).
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray


class Cascade(NamedTuple):
    """How n maps change while the weights become random, from the output to the input.

    `layers` names, at each of s stages, the random layer that is nearest to the input.
    `correlation`, float64 (s, 10, n), is Spearman's, between the original |map| and |map| of each
    of ten random networks, over the pixels of the brain; NaN where a map is constant. `maps`,
    float32 (10, n, h, w), are those of the last stage, where all weights are random.
    """

    layers: tuple[str, ...]
    correlation: np.ndarray
    maps: np.ndarray


def cascade(cam: GradCAM, images: np.ndarray, *, seed: int = 0) -> Cascade:
    """Make the weights random layer by layer, from the output to the input, and compare the maps.

    The values of each variable are permuted. If a variable has more than one axis, its signs are
    drawn anew. This keeps the size of the activations, and it works for every layer, except for
    variables of a single number. New draws from the initialisers do not guarantee either. Without
    new signs, most weights behind a ReLU are negative, and all maps become zero.

    The explained classes are those that the original model predicts (Adebayo et al. 2018,
    arXiv:1810.03292). There are at most 8 stages; in a deep network, one stage has several layers.
    At the end the model gets its own weights back, even after an error. Nothing else may use the
    model meanwhile.

    All random networks use the traced graph of `cam`. `images` are numbers (n, h, w), and `seed` is
    of the random weights.
    """
    plain, brain = cam(images), brain_mask(images)
    seen: set[int] = set()
    layers: list[tuple[str, list[keras.Variable]]] = []
    # Inner layers come first, so the weights that are new in an outer layer are its own.
    for layer in cam.layers:
        own = [w for w in layer.weights if id(w) not in seen and np.prod(w.shape) > 1]
        seen.update(map(id, own))
        layers += [(layer.name, own)] if own else []
    layers.reverse()
    ends = np.linspace(0, len(layers), min(len(layers), _STAGES) + 1).round().astype(int)
    stages = [[w for _, own in layers[a:b] for w in own] for a, b in pairwise(ends)]
    kept = [(w, w.numpy()) for stage in stages for w in stage]
    ranks, last = _ranks(plain.maps, brain), []
    correlation = np.empty((len(stages), _NETWORKS, len(images)))
    try:
        for network in range(_NETWORKS):
            rng = np.random.default_rng([seed, network])
            for variable, value in kept:
                variable.assign(value)
            for row, stage in zip(correlation[:, network], stages, strict=True):
                for variable in stage:
                    value = rng.permuted(variable.numpy())
                    signs = rng.choice([-1, 1], value.shape) if value.ndim > 1 else 1
                    variable.assign((value * signs).astype(value.dtype))
                maps = cam(images, plain.classes).maps
                pairs = zip(ranks, _ranks(maps, brain), strict=True)
                row[:] = [_correlation(a, b) for a, b in pairs]
            last.append(maps)
    finally:
        for variable, value in kept:
            variable.assign(value)
    return Cascade(tuple(layers[end - 1][0] for end in ends[1:]), correlation, np.stack(last))


def deletion_insertion(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    classes: np.ndarray,
    *,
    steps: int = 16,
    seed: int = 0,
) -> Curves:
    """Replace a slice by its blurred copy, or the reverse, in the order of a map.

    The blur is Gaussian. Its standard deviation is an eighth of the height, so only the rough shape
    of the brain is left. Beyond the rim everything is black. Evidence is the log odds of the class:
    its logit minus the log-sum-exp of the others. A probability would saturate, and a single logit
    may rise together with all others. Equal map values come in random order (Petsiuk et al. 2018,
    arXiv:1806.07421).

    Parameters
    ----------
    predict : from float32 (2 n, h, w) to logits (2 n, k); it is called `steps` + 1 times
    images, maps : number (n, h, w)
    classes : int (n,), the class whose evidence is followed
    seed : for the order of equal values

    Raises
    ------
    ValueError
        If shapes disagree or `steps` is below 1.

    Examples
    --------
    >>> image, classes = np.zeros((1, 8, 8)), np.array([0])
    >>> image[0, 2, 2] = 64
    >>> def predict(x):
    ...     return np.stack([x[:, 2, 2], 0 * x[:, 2, 2]], 1)
    >>> curves = deletion_insertion(predict, image, image, classes, steps=2)
    >>> curves.insertion.round(1).tolist()
    [[10.2, 64.0, 64.0]]
    """
    images, maps, classes = np.asarray(images, np.float32), np.asarray(maps), np.asarray(classes)
    shapes = images.shape, maps.shape, classes.shape
    fits = images.ndim == 3 and shapes == (images.shape, images.shape, images.shape[:1])
    require(fits, "Expected images and maps (n, h, w) and classes (n,).", shapes=shapes)
    require(steps >= 1, "steps must be at least 1.", steps=steps)
    n, h, w = images.shape
    mixed = np.random.default_rng(seed).permutation(h * w)
    order = mixed[np.argsort(-maps.reshape(n, -1)[:, mixed], axis=1, kind="stable")]
    place = np.argsort(order, axis=1).reshape(n, h, w)
    black = {"borderType": cv2.BORDER_CONSTANT}
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), h / 8, **black) for image in images])
    fractions, odds = np.linspace(0, 1, steps + 1), []
    for fraction in fractions:
        changed = place < round(fraction * h * w)
        both = np.where(changed, blurred, images), np.where(changed, images, blurred)
        odds.append(_log_odds(predict(np.concatenate(both)), np.tile(classes, 2)))
    return Curves(fractions, *np.stack(odds, 1).reshape(2, n, -1))


def localisation(maps: np.ndarray, masks: np.ndarray, *, tolerance: int = 0) -> Localisation:
    """Compare maps >= 0 with bool masks, both (n, h, w); no mask may be empty.

    In the pointing game (Zhang et al. 2016, arXiv:1608.00507) a peak may miss the mask by
    `tolerance` pixels, because a map cannot be more precise than the cells of its layer.

    Raises
    ------
    ValueError
        If shapes differ, a mask is empty, or a map or the tolerance is negative.

    Examples
    --------
    >>> maps, masks = np.array([[[3, 2, 1, 0]]]), np.array([[[True, False, True, False]]])
    >>> [figure.round(2).tolist() for figure in localisation(maps, masks)]
    [[1.0], [0.33], [0.67]]
    """
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks, bool)
    fits = maps.ndim == 3 and maps.shape == masks.shape and maps.size > 0
    require(fits, "Expected maps and masks (n, h, w).", shapes=(maps.shape, masks.shape))
    require(masks.any((1, 2)).all(), "No mask may be empty.", empty=~masks.any((1, 2)))
    require((maps >= 0).all(), "Maps must not be negative.", minimum=maps.min())
    require(tolerance >= 0, "tolerance must not be negative.", tolerance=tolerance)
    figures = np.zeros((len(maps), 3))
    for values, mask, row in zip(maps, masks, figures, strict=True):
        if values.any():
            area = mask.sum()
            bound = np.partition(values, -area, axis=None)[-area]
            above, equal = values > bound, values == bound
            common = mask[above].sum() + (area - above.sum()) * mask[equal].mean()
            near = distance_transform_edt(~mask) <= tolerance
            peak = near[values == values.max()].mean()
            row[:] = peak, common / (2 * area - common), values[mask].sum() / values.sum()
    return Localisation(*figures.T)


def control_maps(maps: np.ndarray, brain: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Rearrange the values of each map without any knowledge of the network.

    'random' is as smooth as the map: noise with the same power spectrum decides where the values go
    (surrogate data; Theiler et al. 1992, doi:10.1016/0167-2789(92)90102-S). 'random in brain' uses
    the same noise but puts the largest values into the brain, because black pixels change nothing.
    'centre' is a round spot: values fall from the middle of the brain outwards.

    `maps` are float and `brain` is bool, both (n, h, w); no brain may be empty. `seed` is of the
    noise.
    """
    (n, h, w), area = maps.shape, brain.sum((1, 2))
    noise = np.random.default_rng(seed).standard_normal(maps.shape)
    turned = np.abs(np.fft.rfft2(maps)) * np.exp(1j * np.angle(np.fft.rfft2(noise)))
    field = np.fft.irfft2(turned, (h, w))
    axes = np.arange(h)[:, None], np.arange(w)
    y, x = (axis - ((brain * axis).sum((1, 2)) / area)[:, None, None] for axis in axes)
    orders = {
        "random": field,
        "random in brain": field + brain * (np.ptp(field, (1, 2), keepdims=True) + 1),
        "centre": -np.hypot(y, x),
    }
    values, dealt = np.sort(maps.reshape(n, -1), axis=1), {}
    for kind, order in orders.items():
        flat = np.empty_like(values)
        np.put_along_axis(flat, np.argsort(order.reshape(n, -1), axis=1), values, 1)
        dealt[kind] = flat.reshape(maps.shape)
    return dealt


def brain_mask(images: np.ndarray) -> np.ndarray:
    """Find the brain in skull-stripped slices, numbers (n, h, w) on any scale.

    The threshold of each slice is half of Otsu's (1979, doi:10.1109/TSMC.1979.4310076). The mask is
    the largest part above it, with its holes filled. Returns bool (n, h, w), empty for a slice of
    one gray value. Other shapes raise ValueError.
    """
    images = np.asarray(images)
    require(images.ndim == 3, "Expected images (n, h, w).", shape=images.shape)
    require(bool(np.isfinite(images).all()), "images must be finite.", finite=False)
    masks, width = np.zeros(images.shape, bool), 2 * max(1, images.shape[1] // 32) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    for image, mask in zip(images.astype(np.float32), masks, strict=True):
        if np.ptp(image):
            scaled = ((image - image.min()) * (255 / np.ptp(image))).astype(np.uint8)
            # Otsu's own threshold separates white matter; fluid at the rim is brain too.
            level = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 2
            bright = (scaled > level).astype(np.uint8)
            # Wide sulci divide the brain; closing joins its parts.
            closed = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, disc)
            _, parts, sizes, _ = cv2.connectedComponentsWithStats(closed)
            largest = 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()
            mask[:] = binary_fill_holes(parts == largest)
    return masks


def _log_odds(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return float64 (n,): the logit of each row's class minus the log-sum-exp of the others."""
    row_numbers("classes", classes, logits.shape[1])
    logits, own = logits.astype(np.float64), np.arange(logits.shape[1]) == classes[:, None]
    return logits[own] - logsumexp(np.where(own, -np.inf, logits), axis=1)


def _ranks(maps: np.ndarray, masks: np.ndarray) -> list[np.ndarray]:
    """Return the ranks of |map| within each mask, centred, with norm 1; NaN if constant."""
    ranks = []
    for values, mask in zip(np.abs(maps), masks, strict=True):
        centred = rankdata(values[mask]) - (mask.sum() + 1) / 2
        length = np.linalg.norm(centred)
        ranks.append(centred / length if length else np.full_like(centred, np.nan))
    return ranks


def rank_correlation(first: np.ndarray, second: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of |first| and |second|, both (n, h, w), within each mask.

    It is NaN where one of them is constant, or the mask empty.
    """
    pairs = zip(_ranks(first, masks), _ranks(second, masks), strict=True)
    return np.array([_correlation(a, b) for a, b in pairs])


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second) if len(first) else np.nan
