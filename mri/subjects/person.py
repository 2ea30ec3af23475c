"""What needs the whole person: order, brightness, tissues, and the way to a mean brain.

The public files hold slices of one head in any order, each scaled to its own brightest pixel.
`prepare_person` undoes both; what it returns is the input of `mri.models.glass_box`. No diagnosis
is looked at here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.stats import norm

from mri._arguments import integers, require
from mri.data.tone_map import ANCHORS, HEIGHTS
from mri.subjects.pose import unit
from mri.subjects.recovery import order_slices
from mri.subjects.template import Template, move, slice_flows

BRAIN = 20
"""Gray value above which a pixel counts as brain or fluid, not as the black around the head."""

_BRIGHT = 80  # Gray and white matter: where neighbouring slices are compared.
_FEW = 8  # Slices below which brightness and tissues are not to be relied on.
_REACH = 2  # Heights over which the next slice stands in for one that is missing.
_ALIKE = 0.7  # Least mean correlation with the template; the lowest of 200 people is 0.86.
_LEAST = 200  # Pixels that a slice must have above `BRAIN` to say anything.
_WHITE_RANK = 0.87  # White matter is about a quarter of these slices: the middle of the brightest.
_MEANS = np.array([[0.08, 0.45, 0.9], [0.4, 0.8, 1.1]])  # Where they may lie, white being 1.
_ROUNDS = 200  # Of the fit of three normals, which ends sooner once it stands still.


@dataclass(frozen=True, eq=False)
class Tissue:
    """Normal distributions (3,) of the gray values of fluid, gray matter and white matter."""

    means: np.ndarray
    deviations: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False)
class Tones:
    """The slices of a person in order and on common gray values: all that needs no template.

    `images`, float32 (n, h, w), go from below upwards, with fluid, gray and white matter at
    `ANCHORS` and the outside 0. Image i was row `order[i]` of the given slices, and was divided by
    its relative brightness `gain[i]`; `tissue` is that of the result. `warnings` say what is
    lacking.
    """

    images: np.ndarray = field(repr=False)
    order: np.ndarray = field(repr=False)
    gain: np.ndarray = field(repr=False)
    tissue: Tissue
    warnings: tuple[str, ...] = ()


def person_tones(slices: np.ndarray) -> Tones:
    """Order the slices of a person and bring their gray values onto the common anchors.

    Parameters
    ----------
    slices : ndarray of uint8 or float, shape (n, h, w)
        Gray values 0 to 255 of one person, black outside the head, in any order.

    Raises
    ------
    ValueError
        If `slices` are not finite numbers (n, h, w), one is constant or holds no brain, or the
        gray values do not part into three tissues.

    Examples
    --------
    >>> from mri.data.phantom import make_phantoms
    >>> phantoms = make_phantoms(4, 32)
    >>> person_tones(phantoms.images[phantoms.subjects == 0]).images.shape
    (32, 128, 128)
    """
    slices = _checked(slices)
    text = f"brightness and tissues are judged by {len(slices)} of {HEIGHTS} slices: "
    lacking = (text + "the gray values are uncertain",) if len(slices) < _FEW else ()
    order = order_slices(slices)
    images = slices[order]
    gain = slice_gain(images)
    images = images / gain[:, None, None].astype(np.float32)
    tissue = fit_tissue(images[images > BRAIN])
    mapped = np.interp(images, [0, *tissue.means], [0, *ANCHORS]).astype(np.float32)
    # Beyond white matter the line goes on as between gray and white, so that nothing is clipped.
    slope = (ANCHORS[2] - ANCHORS[1]) / (tissue.means[2] - tissue.means[1])
    mapped += np.maximum(images - tissue.means[2], 0).astype(np.float32) * np.float32(slope)
    return Tones(mapped, order, gain, tissue, lacking)


def slice_gain(images: np.ndarray) -> np.ndarray:
    """Return how much brighter each slice (n, h, w) of a person was written than the others, (n,).

    Neighbouring slices show nearly the same anatomy, so the median ratio of their bright pixels is
    the ratio of their gains. Its errors add up along the head; the white matter's mode, which is
    the same all over a head, takes the slow drift out. The mean logarithm of the gains is 0.
    """
    images = np.asarray(images, np.float32)
    steps = np.zeros(len(images))
    for i, (below, above) in enumerate(pairwise(images), start=1):
        both = (below > _BRIGHT) & (above > _BRIGHT)
        if both.any():
            steps[i] = np.median(np.log(above[both] / below[both]))
    log_gain = np.cumsum(steps)
    log_gain -= log_gain.mean()
    if len(images) > 1:
        log_gain += _drift(images / np.exp(log_gain)[:, None, None].astype(np.float32))
        log_gain -= log_gain.mean()
    return np.exp(log_gain)


def _drift(images: np.ndarray) -> np.ndarray:
    """Return the logarithm of each slice's white-matter mode over that of all, smooth in height."""
    counts = np.stack([_histogram(image) for image in images])
    white = _white(counts.sum(0))
    near = np.abs(np.arange(counts.shape[1]) / white - 1) < 0.12
    modes = np.where(near, counts, -1).argmax(1)
    return gaussian_filter1d(np.log(modes / white), 2, mode="nearest")


def _histogram(image: np.ndarray) -> np.ndarray:
    """Return the smoothed counts of the gray values 0 to 399 above `BRAIN`."""
    values = image[image > BRAIN].astype(np.int64).clip(0, 399)
    return gaussian_filter1d(np.bincount(values, minlength=400).astype(float), 4)


def _white(counts: np.ndarray) -> int:
    """Return about where white matter lies in a histogram: above most, below the few brightest.

    Its mode would be surer, but heads of little contrast have none apart from the gray one.
    """
    return int(np.searchsorted(np.cumsum(counts) / counts.sum(), _WHITE_RANK))


def fit_tissue(values: np.ndarray) -> Tissue:
    """Fit three normal distributions to gray values (m,): fluid, gray matter, white matter.

    Expectation and maximisation (Dempster et al. 1977, doi:10.1111/j.2517-6161.1977.tb01600.x) on
    the histogram, from the white matter's mode downwards. Fewer than 200 values, and tissues that
    do not come out in order and apart, are refused.
    """
    values = np.asarray(values, float).ravel()
    require(len(values) >= _LEAST, f"values must be at least {_LEAST}.", values=len(values))
    require(values.min() < values.max(), "values must differ.", value=values[0])
    counts, edges = np.histogram(values, np.arange(np.floor(values.min()), values.max() + 2, 2))
    bins = (edges[:-1] + edges[1:]) / 2
    white = bins[_white(counts)]
    means, deviations = white * _MEANS.mean(0), white * np.array([0.08, 0.17, 0.06])
    shares = np.array([0.15, 0.5, 0.35])
    for _ in range(_ROUNDS):
        density = shares * norm.pdf(bins[:, None], means, deviations) + 1e-300
        weight = counts[:, None] * density / density.sum(1, keepdims=True)
        total = weight.sum(0) + 1e-9
        before, means = means, np.clip(weight.T @ bins / total, *(white * _MEANS))
        spread = (weight * (bins[:, None] - means) ** 2).sum(0) / total
        # A normal may neither shrink onto one bin, where the likelihood has no bound, nor may the
        # white one swallow the gray, which it does in heads of little contrast.
        deviations = np.sqrt(spread).clip(3.0, white * np.array([0.1, 0.25, 0.1]))
        shares = total / total.sum()
        if np.abs(means - before).max() < 0.01:
            break
    apart = bool((np.diff(means) > 10).all() and means[0] > 0)
    require(apart, "Gray values must part into fluid, gray and white.", means=means.round(1))
    return Tissue(means, deviations, shares)


@dataclass(frozen=True, eq=False)
class Person:
    """A person as `mri.models.glass_box` takes them.

    `images`, float32 (32, h, w), are one slice a height, from below upwards, moved onto the
    template if that is registered. The given slices were put to `heights` (n,); `known` (32,) says
    which heights have one. `tones` are the slices before they were moved. `warnings` say what is
    lacking.
    """

    images: np.ndarray = field(repr=False)
    heights: np.ndarray = field(repr=False)
    known: np.ndarray = field(repr=False)
    tones: Tones = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> np.ndarray:
        """The slices as channels, float32 (h, w, 32): the input of the Keras model."""
        return np.moveaxis(self.images, 0, -1)


def prepare_person(slices: np.ndarray | Tones, template: Template) -> Person:
    """Do everything that needs the whole person: from raw slices to the input of the glass box.

    The slices are put in order, their gains undone, their gray values brought onto common anchors
    (`person_tones`), put to the 32 heights of the template, and moved onto it if it is registered.
    32 slices have a height each. Fewer or more are put where they correlate best with the template,
    in order; a height without a slice takes the next one, up to two heights off, and counts as
    average beyond: what is not known then speaks neither for nor against.

    Parameters
    ----------
    slices : ndarray of uint8 or float, shape (n, h, w), or Tones
        Of one person, in any order; or what `person_tones` made of them.
    template : Template
        Of the people that the model was trained on.

    Raises
    ------
    ValueError
        As `person_tones` does.
    """
    tones = slices if isinstance(slices, Tones) else person_tones(slices)
    images, lacking = tones.images, list(tones.warnings)
    size = template.mean.shape[1:]
    if images.shape[1:] != size:
        lacking.append(f"slices of {images.shape[1:]} pixels were resized to {size}")
        resized = [cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA) for x in images]
        images = np.stack(resized)
    order, heights, alike = _place(images, template.mean)
    images = images[order]
    if alike < _ALIKE:
        lacking.append(
            f"the slices hardly look like the template's (correlation {alike:.2f}): other heights, "
            "or no brain; do not rely on the answer"
        )
    turns = (1, 2, 3) if size[0] == size[1] else (2,)
    turned = (np.rot90(images, turn, (1, 2)) for turn in turns)
    if max(_place(of, template.mean)[2] for of in turned) > alike:
        lacking.append("the slices look more like the template's when turned; turn them as its are")
    if template.registered:
        images = move(images, slice_flows(images, template.mean[heights]))
    filled, known, gaps = _fill(images, heights, template)
    heights_given = np.empty(len(heights), np.int64)
    heights_given[tones.order[order]] = heights
    return Person(filled, heights_given, known, tones, (*lacking, *gaps))


def _place(images: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the order of the slices, the height of each, rising, and their mean correlation.

    Which end is below is told by `order_slices` from the brain's size, which a few slices may not
    show: the template decides.
    """
    # Every third pixel of each row and column tells heights apart as well, in a ninth of the time.
    images, mean = (unit(of[:, ::3, ::3].astype(np.float32)) for of in (images, mean))
    upwards = np.arange(len(images))
    found = []
    for order in (upwards, upwards[::-1]):
        heights = upwards if len(images) == HEIGHTS else _rising(images[order] @ mean.T)
        alike = np.vecdot(images[order], mean[heights]).mean()
        found.append((order, heights, float(alike)))
    return max(found, key=lambda way: way[2])


def _rising(likeness: np.ndarray) -> np.ndarray:
    """Put slices to heights so that they rise and the likeness (n, 32) has the largest sum.

    By dynamic programming; only where there are more slices than heights may two share one.
    """
    n = len(likeness)
    strict = int(n <= HEIGHTS)
    best, back = likeness[0].copy(), np.zeros((n, HEIGHTS), np.int64)
    columns = np.arange(HEIGHTS)
    for i in range(1, n):
        peak = np.maximum.accumulate(best)
        at = np.maximum.accumulate(np.where(best == peak, columns, 0))
        back[i, strict:] = at[: HEIGHTS - strict]
        best = np.where(columns >= strict, likeness[i] + peak[back[i]], -np.inf)
    heights = np.empty(n, np.int64)
    heights[-1] = best.argmax()
    for i in range(n - 1, 0, -1):
        heights[i - 1] = back[i, heights[i]]
    return heights


def _fill(
    images: np.ndarray, heights: np.ndarray, template: Template
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return a slice for every height, which heights have their own, and what is lacking."""
    distance = np.abs(np.arange(HEIGHTS)[:, None] - heights)
    nearest = distance.min(1)
    filled = template.typical.astype(np.float32)
    for height in np.flatnonzero(nearest <= _REACH):
        filled[height] = images[distance[height] == nearest[height]].mean(0)
    known, average = nearest == 0, int((nearest > _REACH).sum())
    missing = int((~known).sum())
    text = (
        f"{missing} of {HEIGHTS} heights have no slice: {missing - average} take the next one, "
        f"{average} count as average, which draws the answer to the average person's"
    )
    return filled, known, (text,) if missing else ()


def people_tones(images: np.ndarray, groups: np.ndarray) -> dict[int, Tones]:
    """Return `person_tones` of every person, by their number: it does not depend on a fold.

    Of slices (n, h, w), uint8, and the person of each, (n,). A ValueError of `person_tones` gets a
    note that names the person.
    """
    groups = integers("groups", groups, len(images))
    found = {}
    for person in np.unique(groups).tolist():
        try:
            found[person] = person_tones(images[groups == person])
        except ValueError as error:
            error.add_note(f"person {person}, {np.sum(groups == person)} slices")
            raise
    return found


def prepare_people(people: Sequence[Tones], template: Template) -> Iterator[Person]:
    """Yield `prepare_person` of each, in order, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(lambda tones: prepare_person(tones, template), people)


def _checked(slices: np.ndarray) -> np.ndarray:
    slices = np.asarray(slices)
    fits = slices.ndim == 3 and slices.dtype.kind in "uif" and slices.size > 0
    require(fits, "slices must be numbers (n, h, w).", shape=slices.shape, dtype=str(slices.dtype))
    require(bool(np.isfinite(slices).all()), "Pixels must be finite.", slices=slices.shape)
    flat = np.flatnonzero(np.ptp(slices.astype(np.float32), axis=(1, 2)) == 0)
    require(not len(flat), "Slices must not be constant.", slices=flat[:5].tolist())
    empty = np.flatnonzero((slices > BRAIN).sum((1, 2)) < _LEAST)
    expected = f"Each slice must have {_LEAST} pixels above {BRAIN}, in gray values 0 to 255."
    require(not len(empty), expected, slices=empty[:5].tolist())
    bright = float(slices.max())
    require(bright <= 255 and slices.min() >= 0, "Pixels must be 0 to 255.", brightest=bright)
    return slices.astype(np.float32)
