"""Figures of slices, of a training, of the evaluation of one model, and of its notions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mri._arguments import require, row_numbers
from mri.evaluation.metrics import metric_label, reliability_bins
from mri.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PINK,
    STYLE,
    bare,
    class_colour,
    figure_title,
    mark_ends,
    mark_epoch,
    panel,
    readable,
    severity_order,
    show_image,
    stacked,
)

if TYPE_CHECKING:
    from mri.evaluation.metrics import Evaluation

# Parts of the head: place of the part and place of its name, as shares of the size, and the name.
_PARTS = [
    (np.array(at) / 128, np.array(place) / 128, name)
    for at, place, name in (
        ((64, 26), (134, 18), "fissure between the hemispheres"),
        ((64, 52), (134, 46), "corpus callosum: white matter\nthat joins the hemispheres"),
        ((70, 66), (134, 76), "thalamus: gray matter"),
        ((66, 84), (134, 106), "lateral ventricle, front horn: fluid"),
        ((47, 48), (-6, 32), "lateral ventricle,\nback part (atrium): fluid"),
        ((24, 66), (-6, 68), "sulci, the grooves between\nturns of the cortex: fluid"),
        ((36, 97), (-6, 104), "cortex, the gray rim, on\nwhite matter"),
    )
]


@mpl.rc_context(STYLE)
def class_counts(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    unit: str = "slices",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw count and share of each class in `labels` (n,); `unit` says what is counted."""
    labels = row_numbers("labels", labels, len(class_names))
    require(len(labels) > 0, "labels must not be empty.", labels=labels)
    ax = panel(ax, 6, 2.2)
    order = severity_order(class_names)
    counts = np.bincount(labels, minlength=len(class_names))[order]
    names = [readable(class_names[c]) for c in order]
    bars = ax.barh(names, counts, color=[class_colour(class_names, c) for c in order], height=0.7)
    ax.bar_label(bars, [f"{n}  ({n / counts.sum():.1%})" for n in counts], padding=4)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"number of {unit}", title=title, xlim=(0, 1.3 * counts.max()))
    return ax


@mpl.rc_context(STYLE)
def sample_grid(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    per_class: int = 6,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """Draw random slices of uint8 `images` (n, h, w), one row per class, with its count."""
    rng, order = np.random.default_rng(seed), severity_order(class_names)
    labels = row_numbers("labels", labels, len(class_names))
    of = f"labels must be of the {len(images)} images."
    require(len(labels) == len(images), of, labels=len(labels))
    size = (1.6 * per_class + 1.2, 1.65 * len(order) + 0.4)
    fig, axes = plt.subplots(len(order), per_class, figsize=size, squeeze=False)
    for row, c in zip(axes, order, strict=True):
        found = np.flatnonzero(labels == c)
        name = f"{stacked(class_names[c])}\nn = {len(found)}"
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        chosen = rng.choice(found, min(per_class, len(found)), replace=False)
        for i, ax in enumerate(row):
            bare(ax)
            if i < len(chosen):
                show_image(ax, images[chosen[i]])
        mark_ends(row[0])
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def anatomy(image: np.ndarray, *, title: str = "") -> Figure:
    """Draw uint8 `image` (h, w), a slice from the middle of a head, and name its parts.

    The places are those of the average head. The slices of this set are aligned well enough.
    """
    # Leave room for names on both sides; an automatic layout would shrink the slice instead.
    fig = plt.figure(figsize=(9, 4.4), layout="none")
    ax = fig.add_axes((0.27, 0.01, 0.46, 0.92))
    size = np.array(image.shape[::-1])
    show_image(ax, image)
    for at, place, name in _PARTS:
        side = "left" if place[0] > 0.5 else "right"
        line = {"arrowstyle": "-", "color": PINK, "linewidth": 1.2, "shrinkA": 2}
        line["relpos"] = (float(side == "right"), 0.5)  # from the end of the text, not its middle
        ends = at * size - 0.5, place * size - 0.5
        ax.annotate(name, *ends, ha=side, va="center", arrowprops=line)
    centred: dict[str, Any] = {"color": "white", "ha": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.98, "back of the head", va="top", **centred)
    ax.text(0.5, 0.02, "forehead", **centred)
    ax.set_title(title)
    return fig


@mpl.rc_context(STYLE)
def training_curves(
    history: Mapping[str, Sequence[float]], *, best_epoch: int | None = None, title: str = ""
) -> Figure:
    """Draw loss and accuracy by epoch, counted from 1, for training and validation.

    `history` has lists for loss, val_loss, accuracy, val_accuracy, and perhaps
    val_balanced_accuracy. `best_epoch`, counted from 1, is the epoch that was kept.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    epochs = np.arange(1, len(history["loss"]) + 1)
    curves = {"": ("training", GREY), "val_": ("validation", BLUE)}
    curves["val_balanced_"] = ("validation, balanced over the classes", PINK)
    for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, (name, colour) in curves.items():
            if prefix + quantity in history:
                values = history[prefix + quantity]
                ax.plot(epochs, values, color=colour, marker="o", markersize=2.5, label=name)
        ax.set_ylim(bottom=0 if quantity == "loss" else None)
        if best_epoch is not None:
            mark_epoch(ax, best_epoch, f"kept: {best_epoch}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set(xlabel="epoch", ylabel=quantity)
        ax.grid(axis="y")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def confusion(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw the counts and their shares of the true class; the share gives the colour."""
    ax = panel(ax, 4.8, 4.6)
    order = severity_order(evaluation.class_names)
    counts = evaluation.confusion(unit)[np.ix_(order, order)]
    shares = evaluation.confusion(unit, normalize=True)[np.ix_(order, order)]
    ax.imshow(shares, cmap="magma_r", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        text = "–" if np.isnan(share) else f"{counts[i, j]}\n{share:.0%}"
        ax.text(j, i, text, ha="center", va="center", color="white" if share > 0.45 else "black")
    ticks = [stacked(evaluation.class_names[c]) for c in order]
    ax.set_xticks(range(len(order)), ticks)
    ax.set_yticks(range(len(order)), ticks)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    absent = np.isnan(shares).any()
    ax.set(
        xlabel="predicted class" + f"\n–: no {unit}s of the true class" * int(absent),
        ylabel="true class (shares and colours by row)",
        title=figure_title(evaluation, unit),
    )
    return ax


@mpl.rc_context(STYLE)
def roc(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw the one-vs-rest ROC curve of every class, with its AUC and 95% interval."""
    ax = panel(ax, 4.8, 4.6)
    names, curves = evaluation.class_names, evaluation.roc(unit)
    ax.plot((0, 1), (0, 1), color=GREY, linestyle=":", linewidth=1)
    for c in (c for c in severity_order(names) if names[c] in curves):
        auc = evaluation.metrics[unit][f"auc_{names[c]}"]
        label = f"{readable(names[c])}\n{auc}"
        ax.plot(*curves[names[c]], color=class_colour(names, c), label=label, linewidth=1.8)
    if curves:
        ax.legend(loc="lower right", title="AUC, 95% interval", alignment="left")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=figure_title(evaluation, unit))
    return ax


@mpl.rc_context(STYLE)
def reliability(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence per ECE bin: lines show gaps, areas show counts."""
    ax = panel(ax, 4.8, 4.6)
    bins = reliability_bins(*evaluation.sample(unit)[:2]).dropna()
    x, y, n = bins["confidence"], bins["accuracy"], bins["count"]
    ax.plot((0, 1), (0, 1), color="black", linestyle=":", linewidth=1)
    ax.vlines(x, x, y, color="#56B4E9", linewidth=0.6 + 2.4 * n / n.max())
    ax.scatter(x, y, s=6 + 120 * n / n.max(), color=BLUE, zorder=3)
    notes = f"calibration error (ECE) {evaluation.metrics[unit]['ece']}"
    notes += f"\narea of a dot: {unit}s in its bin, at most {n.max()}"
    ax.set(xlabel=f"confidence (probability of the predicted class)\n{notes}", ylabel="accuracy")
    ax.set(xlim=(0, 1.05), ylim=(0, 1.05), aspect="equal", title=figure_title(evaluation, unit))
    return ax


@mpl.rc_context(STYLE)
def metric_intervals(
    evaluations: Mapping[str, Evaluation],
    *,
    metric: str = "balanced_accuracy",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw a metric of several evaluations per slice and per subject, with 95% intervals."""
    fits, of = isinstance(evaluations, Mapping), type(evaluations).__name__
    require(fits, "evaluations must be by name: {name: evaluate(…), …}.", evaluations=of)
    ax = panel(ax, 7.5, 1 + 0.5 * len(evaluations))
    known = {name for of in evaluations.values() for unit in of.metrics.values() for name in unit}
    require(metric in known, f"metric must be one of {sorted(known)}.", metric=metric)
    for unit, marker, colour, shift in (("slice", "o", GREY, -0.17), ("subject", "s", BLACK, 0.17)):
        for i, evaluation in enumerate(evaluations.values()):
            if unit in evaluation.metrics:
                value, low, high = estimate = evaluation.metrics[unit][metric]
                ax.hlines(i + shift, low, high, color=colour, linewidth=1.8)
                ax.plot(value, i + shift, marker, color=colour, markersize=5)
                text = "–" if np.isnan(value) else str(estimate)
                said: dict[str, Any] = {"fontsize": 8, "va": "center", "color": colour}
                said |= {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
                ax.annotate(f"{text} per {unit}", (1, i + shift), (6, 0), **said)
    ax.set_yticks(range(len(evaluations)), evaluations)
    ax.set_ylim(len(evaluations) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"{metric_label(metric)}, 95% interval", title=title)
    return ax


@mpl.rc_context(STYLE)
def similarity_histogram(
    same: np.ndarray,
    different: np.ndarray,
    threshold: float | None = None,
    *,
    names: tuple[str, str] = ("pairs within one subject", "pairs from two subjects"),
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw correlations (n,) within one subject and between two; NaN is left out."""
    ax = panel(ax, 9, 3)
    same, different = (np.asarray(x)[np.isfinite(x)] for x in (same, different))
    found = np.concatenate([same, different, [1]])  # rounding may exceed 1
    bins = np.linspace(found.min(), found.max(), 81).tolist()
    for values, name, colour in ((different, names[1], PINK), (same, names[0], GREEN)):
        label = f"{name} (n = {len(values)})"
        ax.hist(values, bins, color=colour, alpha=0.75, label=label)
    if threshold is not None:
        mark_epoch(ax, threshold, f"threshold {threshold:.3f}")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set(xlabel="correlation", ylabel="number of correlations")
    ax.set_title(title, pad=6 if threshold is None else 18)
    return ax


@mpl.rc_context(STYLE)
def separation(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    names: tuple[str, str] = ("non-demented", "demented"),
    title: str = "",
) -> Figure:
    """Draw the scores of two groups, one panel for each name of `panels` and one dot a person.

    A panel has scores, float (n,), and whether each is of the second group, bool (n,). Within a
    group, the height of a dot means nothing; it keeps the dots apart.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.9), sharey=True)
    for ax, (name, (scores, second)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for group, colour in ((0, BLUE), (1, PINK)):
            own = np.sort(scores[second == bool(group)])
            apart = 0.3 * np.sin(np.arange(len(own)) * 2.4)
            ax.plot(own, group + apart, "o", color=colour, markersize=4, alpha=0.55)
        ax.set_yticks((0, 1), names)
        ax.set(ylim=(-0.5, 1.5), xlabel="log odds of dementia", title=name)
        ax.tick_params(axis="y", length=0)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def within_person(
    scores: Mapping[str, np.ndarray], *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the score of each slice of several people, from low to high, and each person's mean."""
    ax = panel(ax, 9, 3.4)
    for (name, values), colour in zip(scores.items(), cycle((BLUE, PINK, GREEN, GREY))):
        places = np.arange(1, len(values) + 1)
        label = f"person {name.replace('_', ' ')}"
        ax.plot(places, values, "o-", color=colour, markersize=3, linewidth=1, label=label)
        ax.axhline(values.mean(), color=colour, linestyle="--", linewidth=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    ax.set(xlabel="slice, from the lowest", ylabel="log odds of dementia", title=title)
    ax.set_xlim(left=0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@mpl.rc_context(STYLE)
def bootstrap(
    draws: Mapping[str, np.ndarray], value: float, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the values of bootstrap draws, float (draws,), by what was drawn, and 95% intervals."""
    ax = panel(ax, 9, 3.2)
    bins = np.histogram_bin_edges(np.concatenate(list(draws.values())), 60).tolist()
    for (name, values), colour in zip(draws.items(), cycle((GREEN, GREY, PINK, BLUE))):
        low, high = np.percentile(values, (2.5, 97.5))
        label = f"drawing {name}: [{low:.3f}, {high:.3f}]"
        ax.hist(values, bins, color=colour, alpha=0.6, label=label)
        for end in (low, high):
            ax.axvline(end, color=colour, linestyle="--", linewidth=1.2)
    ax.axvline(value, color="black", linewidth=1, label=f"measured: {value:.3f}")
    ax.set(xlabel="value in one draw", ylabel="number of draws", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dashed: 95% interval")
    return ax
