"""Pictures of the glass box: what counts where, on the mean brain and in one head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm

from mri._arguments import require
from mri.data.tone_map import SLAB, STEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = "RdBu_r"  # Blue against, red for: told apart by the colour-blind too.
_OUTSIDE = 12  # Mean gray value below which hardly anyone has brain or fluid.
_FAINT = 0.35  # Of the opacity, where the sign is not certain.


def slab_means(images: np.ndarray) -> np.ndarray:
    """Return the mean of every four slices, float64 (n / 4, h, w), as the model sees them."""
    images = np.asarray(images, float)
    fits = images.ndim == 3 and len(images) % SLAB == 0 and len(images) > 0
    require(fits, f"images must be (n, h, w), n a multiple of {SLAB}.", shape=images.shape)
    return images.reshape(-1, SLAB, *images.shape[1:]).mean(1)


def plot_weights(
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    brain: np.ndarray,
    *,
    people: int,
    title: str = "What gray matter counts where",
) -> Figure:
    """Draw the weights on the mean brain, slab by slab.

    Where the interval excludes 0, the colour is full and the place outlined; elsewhere it is faint.

    Parameters
    ----------
    weights, low, high : ndarray of float, shape (8, r, c)
        From `mri.training.glass_box.bootstrap_weights`.
    brain : ndarray of uint8, shape (32, 4 r, 4 c)
        `Template.mean`.
    people : int
        How many the weights were fitted to.
    title : str

    Returns
    -------
    Figure
    """
    weights, low, high = (np.asarray(x, float) for x in (weights, low, high))
    certain = (low > 0) | (high < 0)
    notes = f"{people} people; outlined: 95% bootstrap interval over people excludes 0"
    label = "weight of gray matter's tone: blue, speaks against dementia here; red, for it"
    return _draw(weights, slab_means(brain), certain, f"{title}\n{notes}", label)


def plot_person(
    contributions: np.ndarray, images: np.ndarray, *, severity: float, intercept: float, title: str
) -> Figure:
    """Draw what each place of one head adds to its severity, slab by slab.

    Parameters
    ----------
    contributions : ndarray of float, shape (8, r, c)
        From `GlassBox.contributions`: with `intercept` they add up to `severity`.
    images : ndarray of float, shape (32, 4 r, 4 c)
        `Person.images`.
    severity, intercept : float
        Of this person and of the average one.
    title : str
        Who, and from which split.

    Returns
    -------
    Figure
    """
    contributions = np.asarray(contributions, float)
    total = contributions.sum()
    notes = f"average person {intercept:.2f}, this head {total:+.2f}, severity {severity:.2f}"
    everywhere = np.ones(contributions.shape, bool)
    label = "adds to severity: blue, lowers it; red, raises it"
    return _draw(contributions, slab_means(images), everywhere, f"{title}\n{notes}", label)


def _draw(
    values: np.ndarray, brain: np.ndarray, certain: np.ndarray, title: str, label: str
) -> Figure:
    fits = values.ndim == 3 and len(values) == len(brain)
    fits = fits and brain.shape[1:] == (STEP * values.shape[1], STEP * values.shape[2])
    require(fits, "A slab needs a map of a quarter of its size.", maps=values.shape)
    # The few largest must not make all others pale.
    most = float(np.quantile(np.abs(values), 0.998)) or 1.0
    norm = TwoSlopeNorm(0, -most, most)
    figure, axes = plt.subplots(2, -(-len(values) // 2), figsize=(13.5, 8), layout="constrained")
    slabs = zip(axes.flat, values, brain, certain, strict=True)
    for number, (ax, value, slab, sure) in enumerate(slabs):
        _slab(ax, value, slab, sure, norm)
        first = number * SLAB + 1
        ax.set_title(f"slices {first} to {first + SLAB - 1}", fontsize=10)
    figure.suptitle(title)
    bar = figure.colorbar(
        ScalarMappable(norm, _COLOURS), ax=axes, location="bottom", shrink=0.5, aspect=40
    )
    bar.set_label(label)
    return figure


def _slab(
    ax: Axes, value: np.ndarray, brain: np.ndarray, certain: np.ndarray, norm: Normalize
) -> None:
    """Draw one slab: the brain in gray, the map over it, certain places outlined."""
    rows, columns = brain.shape
    # The blur reaches out of the head, where a weight means nothing to the eye.
    inside = brain[::STEP, ::STEP] > _OUTSIDE
    certain = certain & inside
    ax.imshow(brain, cmap="gray", vmin=0, vmax=230)
    strength = np.minimum(np.abs(value) / float(norm.vmax or 1.0), 1) ** 0.7
    coloured = colormaps[_COLOURS](norm(value))
    coloured[..., 3] = strength * inside * np.where(certain, 0.9, _FAINT)
    # Place i was read around pixel 4 i, so that its cell reaches two pixels to either side.
    half = STEP / 2
    extent = (-half, columns - half, rows - half, -half)
    ax.imshow(coloured, extent=extent, interpolation="bilinear")
    if certain.any() and not certain[inside].all():
        at = np.arange(0, columns, STEP), np.arange(0, rows, STEP)
        ax.contour(*at, certain.astype(float), levels=[0.5], colors="gold", linewidths=1.0)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.axis("off")
