"""Pictures of the glass box: what counts where, on the mean brain and in one head."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from mri._arguments import require
from mri.data.parquet import CLASS_NAMES
from mri.data.scans import Scans
from mri.data.tone_map import HEIGHTS, SLAB, STEP
from mri.evaluation.persons import Answer, PersonModel
from mri.models.files import ModelFile, load_model
from mri.models.inputs import SLICE
from mri.plots.maps import overlay, overlay_scale
from mri.plots.style import NAMES, mark_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SLABS = HEIGHTS // SLAB

_COLOURS = "RdBu_r"  # Blue against, red for: told apart by the colour-blind too.
_TITLE = "Where gray matter speaks for or against dementia"
_OUTSIDE = 12  # Mean gray value below which hardly anyone has brain or fluid.
_FAINT = 0.35  # Of the opacity, where the sign is not certain.
_NETWORK = "compact-subject"  # Of slices; its heatmaps fail their checks.


def slab_means(images: np.ndarray) -> np.ndarray:
    """Return the mean of every four of 32 slices, float64 (8, h, w), as the model sees them."""
    images = np.asarray(images, float)
    fits = images.ndim == 3 and len(images) == HEIGHTS
    require(fits, f"images must be ({HEIGHTS}, h, w).", shape=images.shape)
    return images.reshape(-1, SLAB, *images.shape[1:]).mean(1)


@rc_context(NAMES)
def plot_weights(
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    brain: np.ndarray,
    *,
    people: int,
    title: str = _TITLE,
) -> Figure:
    """Draw the weights on the mean brain, slab by slab.

    Where the interval excludes 0, the colour is full and the place outlined; elsewhere it is faint.

    `weights`, `low` and `high`, float (8, r, c), are from `mri.training.bootstrap_weights`. `brain`
    is `Template.mean`, uint8 (32, 4 r, 4 c), and `people` the number of those fitted to.
    """
    weights, low, high = (np.asarray(x, float) for x in (weights, low, high))
    certain = (low > 0) | (high < 0)
    notes = f"{people} people; outlined: 95% bootstrap interval over people excludes 0"
    label = "weight of gray matter: blue, it speaks against dementia here; red, for it"
    slabs = slab_means(brain)
    figure = _figure(weights, slabs)
    _draw(weights, slabs, certain, f"{title}\n{notes}", label, figure=figure)
    return figure


@rc_context(NAMES)
def plot_person(
    answer: Answer,
    *,
    title: str,
    beside: tuple[str, np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Draw what each place of one head adds to its severity, slab by slab.

    `answer` is from `mri.evaluation.persons.PersonModel.ask`; `title` says who, and from which
    split. `beside` is another model's view of the same head: its title, slices (32, h, w) in order,
    and heatmaps of them (32, h, w), 0 to 1. Slabs show the mean of four.
    """
    parts = np.asarray(answer.contributions, float)
    notes = (
        f"average person {answer.intercept:.2f}, this head {parts.sum():+.2f}, "
        f"severity {answer.severity:.2f} (0 non-demented, 1 very mild, 2 mild)"
    )
    slabs = slab_means(answer.person.images)
    label = "adds to severity: blue, speaks against dementia in this head; red, for it"
    sure, heading = np.ones(parts.shape, bool), f"{title}\n{notes}"
    figure = _figure(parts, slabs, 6 if beside is None else 12.2)
    if beside is None:
        _draw(parts, slabs, sure, heading, label, figure=figure)
        return figure
    upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _draw(parts, slabs, sure, heading, label, figure=upper)
    name, *stacks = beside
    axes = lower.subplots(2, SLABS // 2)
    pairs = zip(*map(slab_means, stacks), strict=True)
    for number, (ax, (slab, heat)) in enumerate(zip(axes.flat, pairs, strict=True)):
        ax.imshow(overlay(slab, heat))
        _name(ax, number)
        ax.axis("off")
    lower.suptitle(name)
    label = "heatmap, mean of four slices, each relative to its own largest value"
    lower.colorbar(overlay_scale(), ax=axes, location="bottom", shrink=0.5, aspect=40, label=label)
    return figure


def glass_box_pictures(
    path: str | os.PathLike[str],
    scans: Scans,
    groups: np.ndarray,
    folder: str | os.PathLike[str],
) -> list[Path]:
    """Write ``glass_box.png``, weights fitted to everybody, and ``glass_box_person.png``.

    The second shows one person whom neither model has seen: of those with mild dementia the one of
    the middle severity. Beside the glass box's map is the heatmap of a network.

    `path` is a glass box with a test part that `mri.training.save_glass_box` has made of `scans`
    and `groups`.
    """
    from mri.training import bootstrap_weights, severity_of, train_people

    fitted = train_people(scans, groups)
    severity = severity_of(fitted.labels, scans.class_names)
    about = f", {scans.origin}" if scans.synthetic else ""
    weights, low, high = bootstrap_weights(fitted.maps, severity)
    title, brain = f"{_TITLE}{about}", fitted.template.mean
    everybody = plot_weights(weights, low, high, brain, people=len(severity), title=title)
    model = PersonModel(ModelFile(path))
    who, answer = _middle_person(model, scans, groups)
    slices = scans.images[groups == who][np.argsort(answer.person.heights)]
    person = plot_person(
        answer,
        title=f"Glass box: a person of the test part with mild dementia{about}",
        beside=_heatmaps(slices) if slices.shape[1:] == SLICE else None,
    )
    found = []
    for name, figure in (("glass_box", everybody), ("glass_box_person", person)):
        found.append(Path(folder, f"{name}.png"))
        figure.savefig(found[-1], dpi=108)
        plt.close(figure)
    return found


def _middle_person(model: PersonModel, scans: Scans, groups: np.ndarray) -> tuple[int, Answer]:
    test = model.file.held_out(scans)
    mild = scans.labels[test] == scans.class_names.index("Mild_Demented")
    chosen = np.unique(groups[test[mild]]).tolist()
    require(len(chosen) > 0, "Somebody in the test part must have mild dementia.", people=0)
    asked = [(who, model.ask(scans.images[groups == who])) for who in chosen]
    return sorted(asked, key=lambda pair: pair[1].severity)[len(asked) // 2]


def _heatmaps(slices: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    from mri.gradcam.cam import GradCAM

    found = GradCAM(load_model(_NETWORK), method="hirescam")(slices)
    said = CLASS_NAMES[found.logits.mean(0).argmax()].replace("_", " ").lower()
    title = (
        f"{_NETWORK}, HiResCAM of its own answer for each slice; answer for the person: {said}\n"
        "this map fails its checks, so it is no evidence"
    )
    return title, slices, found.maps


def _name(ax: Axes, number: int) -> None:
    """Write over a slab which slices it has, and into the first where back and front are."""
    first, ends = number * SLAB + 1, {0: ", the lowest", SLABS - 1: ", the highest"}
    ax.set_title(f"slices {first} to {first + SLAB - 1}{ends.get(number, '')}", fontsize=10)
    if number == 0:
        mark_ends(ax)


def _figure(values: np.ndarray, brain: np.ndarray, height: float = 6) -> Figure:
    """Return an empty figure for maps that fit the brain."""
    fits = values.ndim == 3 and len(values) == len(brain)
    fits = fits and brain.shape[1:] == (STEP * values.shape[1], STEP * values.shape[2])
    require(fits, "A slab needs a map of a quarter of its size.", maps=values.shape)
    return plt.figure(figsize=(10, height), layout="constrained")


def _draw(
    values: np.ndarray,
    brain: np.ndarray,
    certain: np.ndarray,
    title: str,
    label: str,
    *,
    figure: Figure | SubFigure,
) -> None:
    # The few largest must not make all others pale.
    most = float(np.quantile(np.abs(values), 0.998)) or 1.0
    norm = TwoSlopeNorm(0, -most, most)
    axes = figure.subplots(2, -(-len(values) // 2))
    slabs = zip(axes.flat, values, brain, certain, strict=True)
    for number, (ax, value, slab, sure) in enumerate(slabs):
        _slab(ax, value, slab, sure, norm)
        _name(ax, number)
    figure.suptitle(title)
    scale = ScalarMappable(norm, _COLOURS)
    bar: dict[str, Any] = {"location": "bottom", "shrink": 0.5, "aspect": 40}
    figure.colorbar(scale, ax=axes, label=label, ticks=MaxNLocator(4), **bar)


def _slab(
    ax: Axes, value: np.ndarray, brain: np.ndarray, certain: np.ndarray, norm: Normalize
) -> None:
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
