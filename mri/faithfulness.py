"""Whether to believe heatmaps: do they follow the weights, the prediction and the known truth.

Every figure of a map stands beside the same figure of control maps that know nothing of the
network: a map that does no better than noise or a spot in the middle of the brain explains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from scipy.special import logsumexp
from scipy.stats import rankdata

from mri.arguments import integers, require
from mri.evaluation import Estimate

if TYPE_CHECKING:
    from mri.backend import keras
    from mri.gradcam import GradCAM
    from mri.phantom import Phantoms

SANE, AGREEING = 0.2, 0.7
"""Bounds of rank correlation: as good as none, and half of the variance of the ranks in common."""

_PASSES, _FAILS, _OPEN = "passes", "fails", "not decidable"
_FEWEST, _DRAWS = 8, 2000  # subjects without which there is no interval, and of the bootstrap
_NETWORKS, _STAGES, _SLICES = 10, 8, 24  # of a cascade; deep networks lose some layers a stage


class Localisation(NamedTuple):
    """How well n maps find the pixels of their masks: float64 (n,) in [0, 1], 0 for a zero map.

    Attributes
    ----------
    pointing : whether the peak lies inside, or near by; of several equal peaks, the share that does
    iou : of the mask and as many of the map's largest pixels, equal ones counted in proportion
    energy : share of the map's sum that lies inside
    """

    pointing: np.ndarray
    iou: np.ndarray
    energy: np.ndarray


class Curves(NamedTuple):
    """Log odds of a class while pixels change, those of the largest map values first.

    Attributes
    ----------
    fractions : float64 (steps + 1,), share of the pixels changed, from 0 to 1
    deletion : float64 (n, steps + 1), from the slice to the blurred slice
    insertion : float64 (n, steps + 1), from the blurred slice to the slice
    """

    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray


class Cascade(NamedTuple):
    """What is left of n maps as the weights become random, from the output to the input.

    Attributes
    ----------
    layers : the layer nearest to the input among those random at each of s stages
    correlation : float64 (s, 10, n), Spearman's, of |map| with that of each of ten networks, over
        the pixels of the brain; NaN where one of the two is constant
    maps : float32 (10, n, h, w), of the last stage: all weights are random
    """

    layers: tuple[str, ...]
    correlation: np.ndarray
    maps: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class HeatmapCheck:
    """What `check_heatmaps` found; prints as a table.

    Attributes
    ----------
    title : model, method, layer and number of slices
    table : a row a check: `Estimate` of the maps and of each control, criterion and verdict
    cascade : a row a stage of the cascade, by its last layer: value, low, high
    verdict : 'passes', 'fails' or 'not decidable'
    reasons : why not, and what else a reader has to know
    """

    title: str
    table: pd.DataFrame
    cascade: pd.DataFrame
    verdict: str
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        table = self.table.map(str).to_string()
        return "\n".join([f"{self.title}: {self.verdict}", table, *self.reasons])

    def _repr_html_(self) -> str:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self.reasons)
        head = f"<b>{escape(self.title)}: {self.verdict}</b>"
        return f"{head}{self.table.map(str).to_html()}<ul>{reasons}</ul>"


def check_heatmaps(
    model: keras.Model,
    images: np.ndarray,
    *,
    subjects: np.ndarray | None = None,
    layer: str | keras.Layer | None = None,
    method: str = "grad-cam",
    seed: int = 0,
) -> HeatmapCheck:
    """Test the heatmaps of the classes that a model predicts, with a verdict.

    Each criterion is a margin whose mean has to be positive. A check passes if the 95% interval, by
    bootstrap over subjects, lies above zero, fails if it lies below, and is else not decidable; so
    is one with fewer than 8 subjects or where most figures do not exist, as of zero maps. The model
    fails if one check does and passes if all do.

    1. *random weights*: correlation at the last stage of `cascade` [1]_, over networks too, of 24
       slices at most: within ±0.2.
    2. *deletion*, *insertion*: area under the curves of `deletion_insertion` [2]_, 0 being the
       evidence of the blurred slice and 1 that of the slice (means): below, or above, that of each
       control. Slices whose evidence the blur does not lower are left out: nothing can be deleted.
    3. *outside the brain*: share of the map's sum: below half of the random control's.
    4. *agreement* with HiResCAM [3]_, which cannot point at what a linear head does not use: above
       0.7. With method 'hirescam' it is that with Grad-CAM, and no criterion.
    5. *one-pixel shift*: agreement with the map of the slice moved to each of four sides, moved
       back: above 0.7.

    Agreement and correlation are Spearman's over the pixels of `brain_mask`, since the black ones
    are ties. `control_maps` take the place of the maps, and margins from them are paired.

    Parameters
    ----------
    model : from one image input to class scores, as for `GradCAM`
    images : uint8 or float (n, h, w), some dozen slices
    subjects : int (n,), who each slice is from; without it slices are drawn
    layer, method : of `GradCAM`
    seed : of controls, random weights, ties and bootstrap

    Raises
    ------
    ValueError
        If shapes disagree, a slice shows no brain, or `GradCAM` refuses the model or the images.

    References
    ----------
    .. [1] Adebayo et al., Sanity checks for saliency maps, 2018, arXiv:1810.03292.
    .. [2] Petsiuk et al., RISE, 2018, arXiv:1806.07421.
    .. [3] Draelos and Carin, HiResCAM, 2020, arXiv:2011.08891.
    """
    from mri.gradcam import GradCAM

    images = np.asarray(images)
    brain, n = brain_mask(images), len(images)
    require(brain.any((1, 2)).all(), "Every slice must show a brain.", empty=~brain.any((1, 2)))
    subjects = np.arange(n) if subjects is None else integers("subjects", subjects, n)
    cam = GradCAM(model, layer, method=method)
    plain = cam(images)
    kinds = {"found": plain.maps, **control_maps(plain.maps, brain, seed=seed)}
    rows: dict[str, dict[str, Any]] = {}
    everything = np.arange(n)

    def interval(values: np.ndarray, at: np.ndarray = everything) -> Estimate:
        return _interval(np.where(plain.zero[at], np.nan, values), subjects[at], seed)

    def add(
        name: str,
        criterion: str,
        figures: dict[str, np.ndarray],
        margins: list[np.ndarray],
        at: np.ndarray = everything,
    ) -> None:
        estimates = {kind: interval(values, at) for kind, values in figures.items()}
        decided = [_decide(interval(margin, at)) for margin in margins]
        verdict = _worst(decided) if decided else "–"
        rows[name] = {**estimates, "criterion": criterion, "verdict": verdict}

    def agreement(
        others: Sequence[np.ndarray] | np.ndarray, at: np.ndarray = everything
    ) -> dict[str, np.ndarray]:
        return {
            kind: np.stack([_rank_correlation(maps[at], other, brain[at]) for other in others])
            for kind, maps in kinds.items()
        }

    few = np.linspace(0, n - 1, min(n, _SLICES)).round().astype(int)
    fallen = cascade(cam, images[few], seed=seed)
    figures = agreement(fallen.maps, few)
    margins = [SANE - figures["found"], SANE + figures["found"]]
    add("random weights", f"within ±{SANE}", figures, margins, few)

    curves = {
        kind: deletion_insertion(lambda x: cam(x).logits, images, maps, plain.classes, seed=seed)
        for kind, maps in kinds.items()
    }
    slice_, blurred = curves["found"].deletion[:, 0], curves["found"].deletion[:, -1]
    usable = np.flatnonzero(slice_ > blurred)
    unit = (slice_ - blurred)[usable].mean() if len(usable) else 1.0
    for name, sign in (("deletion", -1), ("insertion", 1)):
        figures = {
            kind: np.trapezoid(getattr(of, name) - blurred[:, None], of.fractions)[usable] / unit
            for kind, of in curves.items()
        }
        found, *controls = figures.values()
        margins = [sign * (found - control) for control in controls]
        add(name, f"{'below' if sign < 0 else 'above'} each control", figures, margins, usable)

    figures = {kind: 1 - localisation(maps, brain).energy for kind, maps in kinds.items()}
    margins = [figures["random"] / 2 - figures["found"]]
    add("outside the brain", "below half of random", figures, margins)
    moved = [
        np.roll(cam(np.roll(images, step, axis), plain.classes).maps, -step, axis)
        for axis in (1, 2)
        for step in (-1, 1)
    ]
    other = "grad-cam" if method == "hirescam" else "hirescam"
    reference = GradCAM(model, cam.layer, method=other)(images, plain.classes).maps
    figures, bound = agreement([reference]), f"above {AGREEING}"
    if method == "hirescam":
        add(f"agreement with {other}", "–", figures, [])
    else:
        add(f"agreement with {other}", bound, figures, [figures["found"] - AGREEING])
    figures = agreement(moved)
    add("one-pixel shift", bound, figures, [figures["found"] - AGREEING])

    reasons = [
        f"{name}: {row['verdict']}; {row['found']} is to be {row['criterion']}."
        for name, row in rows.items()
        if row["verdict"] in (_FAILS, _OPEN)
    ]
    if plain.zero.any():
        reasons.append(f"{plain.zero.sum()} of {n} maps are zero: nothing speaks for the class.")
    if len(usable) < n:
        reasons.append(f"{n - len(usable)} of {n} slices lose no evidence by the blur.")
    if len(np.unique(subjects)) == n:
        reasons.append("Each slice counts as a subject: if not so, the intervals are too narrow.")
    return HeatmapCheck(
        f"{model.name}, {method} at {cam.layer.name}, {n} slices",
        pd.DataFrame.from_dict(rows, orient="index"),
        pd.DataFrame([interval(stage, few) for stage in fallen.correlation], fallen.layers),
        _worst([row["verdict"] for row in rows.values()]),
        tuple(reasons),
    )


def cascade(cam: GradCAM, images: np.ndarray, *, seed: int = 0) -> Cascade:
    """Make the weights random layer by layer, from the output to the input, and compare the maps.

    Each variable is permuted, and the signs of those with more than one axis are drawn anew, which
    keeps the size of the activations and can be done to every layer, if not to a single number. New
    draws from the initialisers need not do either; and without the signs the weights behind a ReLU,
    most of them negative, leave nothing but zero maps. The classes are those predicted before
    (Adebayo et al. 2018, arXiv:1810.03292). At most 8 stages: of a deep network several layers fall
    at once. The model has its own weights again at the end, also after an error; meanwhile nothing
    else may use it.

    Parameters
    ----------
    cam : of the model; its traced graph serves all networks
    images : number (n, h, w)
    seed : of the random weights
    """
    plain, brain = cam(images), brain_mask(images)
    seen: set[int] = set()
    layers: list[tuple[str, list[keras.Variable]]] = []
    # Inner layers come first, so that what is new in an outer one is its own.
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
                row[:] = [a @ b for a, b in zip(ranks, _ranks(maps, brain), strict=True)]
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
    """Replace a slice by its blurred self, or the reverse, in the order of a map.

    The blur is Gaussian with a standard deviation of an eighth of the height, which leaves nothing
    of a brain but its bulk; beyond the rim all is black. Evidence is the log odds of the class, its
    logit less the log-sum-exp of the others: a probability saturates, and a lone logit may rise
    together with all others. Equal map values go in random order (Petsiuk et al. 2018,
    arXiv:1806.07421).

    Parameters
    ----------
    predict : from float32 (2 n, h, w) to logits (2 n, k); called `steps` + 1 times
    images, maps : number (n, h, w)
    classes : int (n,), the class whose evidence is followed
    steps, seed : number of steps, and the seed of the order of equal values

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


def ground_truth(
    model: keras.Model,
    phantoms: Phantoms,
    *,
    region: tuple[slice, slice] | None = None,
    classes: np.ndarray | int | None = None,
    layer: str | keras.Layer | None = None,
    tolerance: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how well the maps of each method find the pixels that are known to differ.

    Parameters
    ----------
    model : as for `GradCAM`
    phantoms : of which those slices serve that the disease changed
    region : rows and columns to be found instead of the masks, such as `mri.phantom.SHORTCUT`
    classes : class to explain, one for all or int (n,); by default the labels
    layer, tolerance : of `GradCAM` and of `localisation`
    seed : of controls and bootstrap

    Returns
    -------
    DataFrame
        A row a method and kind of map, 'found' or one of `control_maps`; under each measure of
        `localisation` its mean and 95% interval over subjects: value, low, high.

    Raises
    ------
    ValueError
        If no slice has a mask, the tolerance is negative, or `GradCAM` refuses the model or the
        classes.
    """
    from mri.gradcam import METHODS, GradCAM

    chosen = phantoms.masks.any((1, 2))
    require(chosen.any(), "No slice has a mask.", labels=np.unique(phantoms.labels))
    images, masks, subjects = (
        values[chosen] for values in (phantoms.images, phantoms.masks, phantoms.subjects)
    )
    classes = np.asarray(phantoms.labels if classes is None else classes)
    fits = classes.shape in ((), chosen.shape) and classes.dtype.kind in "iu"
    require(fits, f"classes must be one or {len(phantoms.labels)} integers.", classes=classes)
    require(tolerance >= 0, "tolerance must not be negative.", tolerance=tolerance)
    classes = np.broadcast_to(classes, chosen.shape)
    if region is not None:
        masks = np.zeros_like(masks)
        masks[:, *region] = True
        require(masks.any(), f"region must hold pixels of {masks.shape[1:]}.", region=region)
    rows, brain = {}, brain_mask(images)
    for method in METHODS:
        maps = GradCAM(model, layer, method=method)(images, classes[chosen]).maps
        for kind, of in {"found": maps, **control_maps(maps, brain, seed=seed)}.items():
            rows[method, kind] = {
                (measure, field): figure
                for measure, values in localisation(of, masks, tolerance=tolerance)
                ._asdict()
                .items()
                for field, figure in _interval(values, subjects, seed)._asdict().items()
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def localisation(maps: np.ndarray, masks: np.ndarray, *, tolerance: int = 0) -> Localisation:
    """Compare maps >= 0 with bool masks, both (n, h, w), no mask empty.

    In the pointing game (Zhang et al. 2016, arXiv:1608.00507) a peak may miss the mask by
    `tolerance` pixels: a map cannot point more finely than by the cells of its layer.

    Raises
    ------
    ValueError
        If shapes differ, a mask is empty, a map is negative or the tolerance is.

    Examples
    --------
    >>> maps, masks = np.array([[[3, 2, 1, 0]]]), np.array([[[True, False, True, False]]])
    >>> [figure.round(2).tolist() for figure in localisation(maps, masks)]
    [[1.0], [0.33], [0.67]]
    """
    maps, masks = np.asarray(maps, np.float64), np.asarray(masks, bool)
    fits = maps.ndim == 3 and maps.shape == masks.shape
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
    """Deal the values of each map out again, blind to the network.

    'random' is as smooth as the map: noise of the same power spectrum gives the order of its values
    (surrogate data; Theiler et al. 1992, doi:10.1016/0167-2789(92)90102-S). 'random in brain' puts
    the largest into the brain in that order, since black pixels change nothing. 'centre' is a round
    spot, falling from the middle of the brain outwards.

    Parameters
    ----------
    maps, brain : float (n, h, w), and bool alike, nowhere empty
    seed : of the noise
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

    Half of Otsu's threshold of each slice (1979, doi:10.1109/TSMC.1979.4310076), the largest part
    above it, its holes filled: bool (n, h, w), empty for a slice of one tone. ValueError for other
    shapes.
    """
    images = np.asarray(images)
    require(images.ndim == 3, "Expected images (n, h, w).", shape=images.shape)
    masks, width = np.zeros(images.shape, bool), 2 * max(1, images.shape[1] // 32) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    for image, mask in zip(images.astype(np.float32), masks, strict=True):
        if np.ptp(image):
            scaled = ((image - image.min()) * (255 / np.ptp(image))).astype(np.uint8)
            # Otsu's own parts white matter from the rest; fluid at the rim belongs to the brain.
            level = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 2
            bright = (scaled > level).astype(np.uint8)
            # Closing joins what wide sulci part.
            closed = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, disc)
            _, parts, sizes, _ = cv2.connectedComponentsWithStats(closed)
            largest = 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()
            mask[:] = binary_fill_holes(parts == largest)
    return masks


def _log_odds(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return float64 (n,): the logit of each row's class less the log-sum-exp of the others."""
    logits, own = logits.astype(np.float64), np.arange(logits.shape[1]) == classes[:, None]
    return logits[own] - logsumexp(np.where(own, -np.inf, logits), axis=1)


def _ranks(maps: np.ndarray, masks: np.ndarray) -> list[np.ndarray]:
    """Return the ranks of |map| within each mask, centred, of length 1; NaN of a constant map."""
    ranks = []
    for values, mask in zip(np.abs(maps), masks, strict=True):
        centred = rankdata(values[mask]) - (mask.sum() + 1) / 2
        length = np.linalg.norm(centred)
        ranks.append(centred / length if length else np.full_like(centred, np.nan))
    return ranks


def _rank_correlation(first: np.ndarray, second: np.ndarray, masks: np.ndarray) -> np.ndarray:
    pairs = zip(_ranks(first, masks), _ranks(second, masks), strict=True)
    return np.array([a @ b for a, b in pairs])


def _interval(values: np.ndarray, subjects: np.ndarray, seed: int) -> Estimate:
    """Return the mean of `values` (n,) or (r, n), NaN left out, and its interval.

    Subjects are drawn, and of several rows these too, independently (Owen 2007,
    doi:10.1214/07-AOAS122).
    """
    values, (names, units) = np.atleast_2d(values), np.unique(subjects, return_inverse=True)
    usable, of_unit = np.isfinite(values), (units[:, None] == np.arange(len(names))).astype(float)
    sums, counts = np.where(usable, values, 0) @ of_unit, usable @ of_unit
    mean = sums.sum() / counts.sum() if counts.any() else np.nan
    if counts.any(0).sum() < _FEWEST or usable.mean() < 0.5:
        return Estimate(float(mean), np.nan, np.nan)
    rng, (r, m) = np.random.default_rng(seed), sums.shape
    rows = rng.multinomial(r, np.full(r, 1 / r), _DRAWS)
    columns = rng.multinomial(m, np.full(m, 1 / m), _DRAWS)
    total, size = ((rows @ part * columns).sum(1) for part in (sums, counts))
    low, high = np.percentile(total[size > 0] / size[size > 0], (2.5, 97.5))
    return Estimate(float(mean), float(low), float(high))


def _decide(margin: Estimate) -> str:
    return _PASSES if margin.low > 0 else _FAILS if margin.high < 0 else _OPEN


def _worst(verdicts: list[str]) -> str:
    return next((verdict for verdict in (_FAILS, _OPEN) if verdict in verdicts), _PASSES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: check the maps of model files on held-out slices, print Markdown."""
    from mri.cards import load_model, read_card
    from mri.training import protocols

    parser = argparse.ArgumentParser(
        prog="python -m mri.faithfulness", description="Whether to believe a model's heatmaps."
    )
    parser.add_argument("models", nargs="+", metavar="FILE.keras")
    parser.add_argument("--methods", nargs="+", default=["grad-cam", "hirescam"])
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    scans, _, groups = protocols()
    for i, (path, method) in enumerate(product(options.models, options.methods)):
        model, card = load_model(path), read_card(path) or {}
        tested = card.get("test_rows", np.arange(len(scans)))
        few = np.random.default_rng(options.seed).choice(tested, options.slices, replace=False)
        found = check_heatmaps(
            model, scans.images[few], subjects=groups[few], method=method, seed=options.seed
        )
        if not i:
            names = [name.split(" with ")[0] for name in found.table.index]
            print(f"| network | method | {' | '.join(names)} | verdict |")
            print("|---" * (len(names) + 3) + "|")
        pairs = zip(found.table["found"], found.table["verdict"], strict=True)
        cells = " | ".join(f"{of.value:.2f} {verdict}" for of, verdict in pairs)
        print(f"| `{model.name}` | {method} | {cells} | **{found.verdict}** |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
