"""Figures for the notebooks: each function draws what it is given and computes nothing.

A function of one panel takes `ax=None` and returns the axes; one of a grid returns the figure. None
calls `show`: a notebook shows a figure by itself (end the line with a semicolon). Classes stand in
order of severity and keep their colours (Okabe & Ito 2008, safe for the colour-blind). Make axes to
be passed in under ``plt.rc_context(STYLE)``, so that they look like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from mri.evaluation import metric_label, reliability_bins

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

    from mri.evaluation import Evaluation
    from mri.gradcam import Explanation

COLOURS = {
    "Non_Demented": "#0072B2",
    "Very_Mild_Demented": "#56B4E9",
    "Mild_Demented": "#E69F00",
    "Moderate_Demented": "#D55E00",
}
"""Colours of the four public classes, in order of severity."""

BLUE, GREEN, PINK, GREY, BLACK = "#0072B2", "#009E73", "#CC79A7", "#777777", "#000000"

# Part of the head, as shares of width and height: where it is, where its name stands, the name.
_PARTS = [
    (np.array(at) / 128, np.array(place) / 128, name)
    for at, place, name in (
        ((64, 26), (134, 18), "fissure between the hemispheres"),
        ((64, 52), (134, 46), "corpus callosum: white matter\nthat joins them"),
        ((70, 66), (134, 76), "thalamus: gray matter"),
        ((66, 84), (134, 106), "lateral ventricle, front horn: fluid"),
        ((47, 48), (-6, 32), "lateral ventricle, back horn: fluid"),
        ((24, 66), (-6, 68), "sulci, the grooves between\nturns of the cortex: fluid"),
        ((36, 97), (-6, 104), "cortex, the gray rim, on\nwhite matter"),
    )
]

STYLE: dict[RcKeyType, Any] = {
    "axes.edgecolor": "#555555",
    "axes.facecolor": "white",
    "axes.labelcolor": "black",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 84,
    "figure.facecolor": "white",
    "figure.titlesize": 10.5,
    "font.size": 9,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "text.color": "black",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}
"""One look, set for the time of a call, whatever the notebook's own style is."""

# A notebook's backend is switched on by the first figure; within a style context the switch to
# interactive would be undone at its end, and no later figure shown.
plt.switch_backend(plt.get_backend())


@mpl.rc_context(STYLE)
def class_counts(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    unit: str = "slices",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw how many of `labels` (n,) each class has, with its share; `unit` says of what."""
    ax = _panel(ax, 6, 2.2)
    order = _order(class_names)
    counts = np.bincount(labels, minlength=len(class_names))[order]
    names = [_readable(class_names[c]) for c in order]
    bars = ax.barh(names, counts, color=[_colour(class_names, c) for c in order], height=0.7)
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
    """Draw random slices of uint8 `images` (n, h, w), a row a class, with the class's count."""
    rng, order = np.random.default_rng(seed), _order(class_names)
    size = (1.25 * per_class + 1.2, 1.3 * len(order) + 0.4)
    fig, axes = plt.subplots(len(order), per_class, figsize=size, squeeze=False)
    for row, c in zip(axes, order, strict=True):
        found = np.flatnonzero(labels == c)
        name = "\n".join([*class_names[c].split("_"), f"n = {len(found)}"])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        chosen = rng.choice(found, min(per_class, len(found)), replace=False)
        for i, ax in enumerate(row):
            _bare(ax)
            if i < len(chosen):
                _show(ax, images[chosen[i]])
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def anatomy(image: np.ndarray, *, title: str = "") -> Figure:
    """Draw uint8 `image` (h, w), a slice from the middle of a head, with its parts named.

    The places are those of the average head; slices of this set are aligned well enough for them.
    """
    # Room for names on both sides, which a layout that knows of them would take from the slice.
    fig = plt.figure(figsize=(9, 4.4), layout="none")
    ax = fig.add_axes((0.27, 0.01, 0.46, 0.92))
    size = np.array(image.shape[::-1])
    _show(ax, image)
    for at, place, name in _PARTS:
        side = np.sign(place[0] - 0.5)
        ax.annotate(
            name,
            at * size - 0.5,
            place * size - 0.5,
            ha="left" if side > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": PINK, "linewidth": 1.2, "shrinkA": 0},
        )
    centred: dict[str, Any] = {"color": "white", "ha": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.98, "back of the head", va="top", **centred)
    ax.text(0.5, 0.02, "forehead", **centred)
    ax.set_title(title)
    return fig


@mpl.rc_context(STYLE)
def training_curves(
    history: Mapping[str, Sequence[float]], *, best_epoch: int | None = None, title: str = ""
) -> Figure:
    """Draw loss and accuracy by epoch from 1, training beside validation.

    `history` has lists under loss, val_loss, accuracy, val_accuracy, and perhaps
    val_balanced_accuracy. `best_epoch`, from 1, is the one that was kept.
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
            _mark(ax, best_epoch, f"best: {best_epoch}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set(xlabel="epoch", ylabel=quantity)
        ax.grid(axis="y")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def confusion(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw the counts over their share of the true class, which gives the colour."""
    ax = _panel(ax, 4.8, 4.6)
    order = _order(evaluation.class_names)
    counts = evaluation.confusion(unit)[np.ix_(order, order)]
    shares = evaluation.confusion(unit, normalize=True)[np.ix_(order, order)]
    ax.imshow(shares, cmap="magma_r", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares):
        text = "–" if np.isnan(share) else f"{counts[i, j]}\n{share:.0%}"
        ax.text(j, i, text, ha="center", va="center", color="white" if share > 0.45 else "black")
    ticks = [evaluation.class_names[c].replace("_", "\n") for c in order]
    ax.set_xticks(range(len(order)), ticks)
    ax.set_yticks(range(len(order)), ticks)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(
        xlabel="predicted class",
        ylabel="true class (shares and colours by row)",
        title=_title(evaluation, unit),
    )
    return ax


@mpl.rc_context(STYLE)
def roc(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw the one-vs-rest ROC curve of every class, with its AUC and 95% interval."""
    ax = _panel(ax, 4.8, 4.6)
    names, curves = evaluation.class_names, evaluation.roc(unit)
    ax.plot((0, 1), (0, 1), color=GREY, linestyle=":", linewidth=1)
    for c in (c for c in _order(names) if names[c] in curves):
        auc = evaluation.metrics[unit][f"auc_{names[c]}"]
        label = f"{_readable(names[c])}\n{auc}"
        ax.plot(*curves[names[c]], color=_colour(names, c), label=label, linewidth=1.8)
    if curves:
        ax.legend(loc="lower right", title="AUC, 95% interval", alignment="left")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=_title(evaluation, unit))
    return ax


@mpl.rc_context(STYLE)
def reliability(evaluation: Evaluation, *, unit: str = "slice", ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence in each bin of the ECE: a line a gap, an area a count."""
    ax = _panel(ax, 4.8, 4.6)
    bins = reliability_bins(*evaluation.sample(unit)[:2]).dropna()
    x, y, n = bins["confidence"], bins["accuracy"], bins["count"]
    ax.plot((0, 1), (0, 1), color="black", linestyle=":", linewidth=1)
    ax.vlines(x, x, y, color="#56B4E9", linewidth=0.6 + 2.4 * n / n.max())
    ax.scatter(x, y, s=6 + 120 * n / n.max(), color=BLUE, zorder=3)
    options: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    for confidence, accuracy, count in zip(x, y, n, strict=True):
        away = 11 if accuracy > confidence else -11
        ax.annotate(f"{count}", (confidence, accuracy), (0, away), fontsize=7, **options)
    ece = f"ECE {evaluation.metrics[unit]['ece']}"
    ax.text(0.98, 0.02, f"{ece}\nnumbers and areas: {unit}s in the bin", ha="right", va="bottom")
    ax.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy")
    ax.set(xlim=(0, 1.05), ylim=(0, 1.05), aspect="equal", title=_title(evaluation, unit))
    return ax


@mpl.rc_context(STYLE)
def metric_intervals(
    evaluations: Mapping[str, Evaluation],
    *,
    metric: str = "balanced_accuracy",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw a metric of several named evaluations with 95% intervals, per slice and per subject."""
    ax = _panel(ax, 7.5, 1 + 0.5 * len(evaluations))
    for unit, marker, colour, shift in (
        ("slice", "o", GREY, -0.17),
        ("subject", "s", BLACK, 0.17),
    ):
        for i, evaluation in enumerate(evaluations.values()):
            if unit in evaluation.metrics:
                value, low, high = estimate = evaluation.metrics[unit][metric]
                ax.hlines(i + shift, low, high, color=colour, linewidth=1.8)
                ax.plot(value, i + shift, marker, color=colour, markersize=5)
                text = "–" if np.isnan(value) else str(estimate)
                place = {"xycoords": ("axes fraction", "data"), "fontsize": 8}
                _beside(ax, f"{text} per {unit}", (1, i + shift), color=colour, **place)
    ax.set_yticks(range(len(evaluations)), evaluations)
    ax.set_ylim(len(evaluations) - 0.5, -0.5)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=f"{metric_label(metric)}, 95% interval", title=title)
    return ax


def overlay(
    image: np.ndarray, heatmap: np.ndarray, *, alpha: float = 0.6, cmap: str = "magma"
) -> np.ndarray:
    """Return a uint8 (h, w, 3) image: `heatmap` in [0, 1] over a uint8 slice, both (h, w).

    Opacity is `alpha` times the strength, so that the anatomy shows where the map is weak.
    """
    if np.shape(image) != np.shape(heatmap) or np.ndim(image) != 2:
        raise ValueError(
            "image and heatmap must be (h, w) alike. "
            f"Received: image.shape={np.shape(image)}, heatmap.shape={np.shape(heatmap)}"
        )
    heat, grey = np.asarray(heatmap, dtype=float), np.asarray(image, dtype=float)
    colours, opacity = 255 * mpl.colormaps[cmap](heat)[..., :3], alpha * heat[..., None]
    return np.rint((1 - opacity) * grey[..., None] + opacity * colours).astype(np.uint8)


def overlay_scale(peak: float = 1.0, *, alpha: float = 0.6) -> mpl.cm.ScalarMappable:
    """Return what a colour bar needs: the colours of `overlay` from 0 to `peak`, on middle gray."""
    strengths = np.linspace(0, 1, 256)[None]
    over_gray = overlay(np.full(strengths.shape, 128, np.uint8), strengths, alpha=alpha)
    colours = mpl.colors.ListedColormap(over_gray[0] / 255)
    return mpl.cm.ScalarMappable(mpl.colors.Normalize(0, peak), colours)


@mpl.rc_context(STYLE)
def heatmap_grid(
    images: np.ndarray,
    explanation: Explanation,
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draw a row a slice: original, heatmap, overlay, and what was predicted and explained.

    `images` are uint8 (n, h, w), `labels` (n,) or None where unknown, `probabilities` (n, k).
    """
    n, names = len(images), [_readable(name) for name in class_names]
    size = (6.8, 1.48 * n + 0.95)
    fig, axes = plt.subplots(n, 3, figsize=size, squeeze=False, layout="compressed")
    for row, image, heatmap, label, shares, c, zero in zip(
        axes,
        images,
        explanation.maps,
        [None] * n if labels is None else labels,
        probabilities,
        explanation.classes,
        explanation.zero,
        strict=True,
    ):
        _show(row[0], image)
        drawn = _show(row[1], heatmap, cmap="magma", vmax=1)
        _show(row[2], overlay(image, heatmap))
        if zero:
            frame = {"transform": row[1].transAxes, "ha": "center", "va": "center"}
            row[1].text(0.5, 0.5, "no evidence", color="white", **frame)
        guess = np.argmax(shares)
        lines = [f"predicted: {names[guess]}, {shares[guess]:.0%}"]
        if label is not None:
            right = "✓ correct" if guess == label else "✗ wrong"
            lines = [f"true: {names[label]}", *lines, right]
        if c != guess:
            lines.append(f"explained: {names[c]}, {shares[c]:.0%}")
        _beside(row[2], "\n".join(lines), (1, 0.5), xycoords="axes fraction", linespacing=1.5)
    for ax, name in zip(axes[0], ("slice", "heatmap", "overlay"), strict=True):
        ax.set_title(name, loc="center")
    label = "evidence, share of\nthe map's maximum"
    fig.colorbar(drawn, ax=axes[:, 1], location="bottom", aspect=12, pad=0.01, label=label)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def slice_pairs(
    left: np.ndarray,
    right: np.ndarray,
    captions: Sequence[str],
    *,
    names: tuple[str, str] = ("test slice", "nearest in training"),
    title: str = "",
) -> Figure:
    """Draw uint8 slices (n, h, w) beside their partners, three pairs a row, with captions."""
    columns = min(3, len(left))
    rows = -(-len(left) // columns)
    fig = plt.figure(figsize=(3.1 * columns, 1.9 * rows + 0.3))
    cells = fig.subfigures(rows, columns, squeeze=False).flat
    trios = zip(left, right, captions, strict=True)
    for cell, (*pair, caption) in zip(cells, trios, strict=False):
        axes = cell.subplots(1, 2)
        for ax, image, name in zip(axes, pair, names, strict=True):
            _show(ax, image)
            ax.set_title(name, loc="center", fontsize=8)
        axes[0].set_xlabel(caption, x=1.03, fontsize=8)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def similarity_histogram(
    same: np.ndarray,
    different: np.ndarray,
    threshold: float | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw correlations (n,) within a subject and between two; what is NaN is left out."""
    ax = _panel(ax, 7, 3.2)
    same, different = (np.asarray(x)[np.isfinite(x)] for x in (same, different))
    found = np.concatenate([same, different, [1]])  # rounding may exceed 1
    bins = np.linspace(found.min(), found.max(), 81).tolist()
    for values, who, colour in ((different, "two subjects", PINK), (same, "one subject", GREEN)):
        label = f"slices of {who} (n = {len(values)})"
        ax.hist(values, bins, color=colour, alpha=0.75, label=label)
    if threshold is not None:
        _mark(ax, threshold, f"threshold {threshold:.3f}")
    # Filled, so that the line of the threshold ends behind it.
    ax.legend(loc="upper left", frameon=True, facecolor="w", edgecolor="none", framealpha=1)
    ax.set(xlabel="correlation", ylabel="number of correlations")
    ax.set_title(title, pad=18)
    return ax


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _order(class_names: Sequence[str]) -> list[int]:
    """Return the labels by severity; those of other class names as they are."""
    if set(class_names) <= set(COLOURS):
        return sorted(range(len(class_names)), key=lambda c: list(COLOURS).index(class_names[c]))
    return list(range(len(class_names)))


def _colour(class_names: Sequence[str], label: int) -> str:
    spare = [*COLOURS.values(), "#009E73", "#CC79A7", "#F0E442", "#000000"]
    return COLOURS.get(class_names[label], spare[label % len(spare)])


def _title(evaluation: Evaluation, unit: str) -> str:
    size = f"per {unit}, n = {len(evaluation.sample(unit).labels)}"
    return f"{evaluation.title}\n{size}" if evaluation.title else size


def _panel(ax: Axes | None, width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _show(ax: Axes, image: np.ndarray, **options: Any) -> AxesImage:
    """Draw an image, gray values 0 to 255 unless told, without ticks and frame."""
    _bare(ax)
    return ax.imshow(image, **{"cmap": "gray", "vmin": 0, "vmax": 255, **options})


def _beside(ax: Axes, text: str, place: tuple[float, float], **options: Any) -> None:
    ax.annotate(text, place, (6, 0), textcoords="offset points", va="center", **options)


def _mark(ax: Axes, x: float, text: str) -> None:
    """Draw a vertical line with its name on top."""
    ax.axvline(x, color="black", linestyle=":", linewidth=1)
    frame: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(text, (x, 1), (0, 2), ha="center", **frame)
