"""Figures of heatmaps: one a slice with its probabilities, or several by method or model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mri._arguments import require, row_numbers
from mri.plots.style import (
    STYLE,
    class_colour,
    gray_values,
    mark_ends,
    readable,
    severity_order,
    show_image,
)

if TYPE_CHECKING:
    from mri.gradcam.cam import Explanation


def overlay(
    image: np.ndarray, heatmap: np.ndarray, *, alpha: float = 0.6, cmap: str = "magma"
) -> np.ndarray:
    """Return a uint8 (h, w, 3) image: `heatmap` in [0, 1] over a uint8 slice, both (h, w).

    Opacity is `alpha` times the strength, so the anatomy is visible where the map is weak.
    """
    heat, grey = np.asarray(heatmap), np.asarray(gray_values(image), float)
    maps = "heatmap must be one map of numbers, such as explanation.maps[0]."
    require(heat.dtype.kind in "buif", maps, heatmap=type(heatmap).__name__)
    heat = heat.astype(float)
    require(np.all((heat >= 0) & (heat <= 1)), "heatmap must be in [0, 1].", heatmap=heat)
    fits = grey.shape == heat.shape and grey.ndim == 2
    shapes = {"image": grey.shape, "heatmap": heat.shape}
    require(fits, "image and heatmap must have the same shape (h, w).", **shapes)
    colours, opacity = 255 * mpl.colormaps[cmap](heat)[..., :3], alpha * heat[..., None]
    return np.rint((1 - opacity) * grey[..., None] + opacity * colours).astype(np.uint8)


def overlay_scale(*, alpha: float = 0.6) -> mpl.cm.ScalarMappable:
    """Return what a colour bar needs: the colours of `overlay`, 0 to 1, on middle gray."""
    strengths = np.linspace(0, 1, 256)[None]
    over_gray = overlay(np.full(strengths.shape, 128, np.uint8), strengths, alpha=alpha)
    colours = mpl.colors.ListedColormap(over_gray[0] / 255)
    return mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), colours)


@mpl.rc_context(STYLE)
def heatmap_grid(
    images: np.ndarray,
    explanation: Explanation,
    labels: np.ndarray | None,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    opacity: float = 0.6,
    notes: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw one row per slice: slice, heatmap over it, and bars of the class probabilities.

    `images` are uint8 (n, h, w), `labels` (n,) or None if unknown, `probabilities` (n, k).
    `opacity`, 0 to 1, is that of the map where it is strongest. `notes` stand in the pictures.
    """
    n, shares = len(images), np.asarray(probabilities, float)
    _check_rows(n, labels, {"explanation": explanation}, class_names)
    fits = shares.shape == (n, len(class_names))
    fits = fits and bool((shares >= 0).all() and (abs(shares.sum(1) - 1) < 0.01).all())
    expected = (
        f"probabilities must be ({n}, {len(class_names)}), shares of 1 in each row: no logits."
    )
    require(fits, expected, probabilities=shares.ravel()[:8], shape=shares.shape)
    size = (10.4, 3.95 * n + 1.1)
    fig, axes = plt.subplots(n, 3, figsize=size, squeeze=False, width_ratios=(1, 1, 0.58))
    for i, (left, middle, right) in enumerate(axes):
        show_image(left, images[i])
        mark_ends(left)
        _show_map(middle, images[i], explanation, i, opacity=opacity)
        for line, note in enumerate(notes):
            frame = {"facecolor": "black", "edgecolor": "none", "alpha": 0.7, "pad": 1.5}
            place: dict[str, Any] = {"transform": middle.transAxes, "fontsize": 8, "bbox": frame}
            middle.text(0.02, 0.97 - 0.06 * line, note, color="#FFD966", va="top", **place)
        label = None if labels is None else int(labels[i])
        _bars(right, shares[i], class_names, int(explanation.classes[i]), label)
        right.set_xlabel("probability" if i == n - 1 else "")
    for ax, name in zip(axes[0], ("slice", "heatmap over it"), strict=False):
        ax.set_title(name, loc="center")
    _scale_below(fig, axes[:, :2], opacity)
    fig.suptitle(title)
    return fig


def _check_rows(
    n: int,
    labels: np.ndarray | None,
    explanations: Mapping[str, Explanation],
    class_names: Sequence[str],
) -> None:
    """Raise ValueError unless labels and explanations are of `n` images."""
    rows = {name: len(of.maps) for name, of in explanations.items()}
    if labels is not None:
        rows["labels"] = len(row_numbers("labels", labels, len(class_names)))
    require({*rows.values()} <= {n}, f"Each must be of the {n} images.", **rows)


def _scale_below(fig: Figure, axes: np.ndarray, opacity: float = 0.6) -> None:
    scale, label = overlay_scale(alpha=opacity), "evidence, share of the map's maximum"
    fig.colorbar(scale, ax=axes, location="bottom", aspect=40, pad=0.01, shrink=0.5, label=label)


def _show_map(
    ax: Axes, image: np.ndarray, explanation: Explanation, i: int, *, opacity: float = 0.6
) -> None:
    """Draw a map over its slice, or say that it is empty."""
    show_image(ax, overlay(image, explanation.maps[i], alpha=opacity))
    if explanation.zero[i]:
        frame: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "no evidence", color="white", **frame)


def _bars(
    ax: Axes, shares: np.ndarray, class_names: Sequence[str], explained: int, label: int | None
) -> None:
    """Draw the probability of each class; say which is true, which is given and explained."""
    order, guess = severity_order(class_names), int(np.argmax(shares))
    colours = [class_colour(class_names, c) for c in order]
    ax.barh(range(len(order)), shares[order], color=colours, height=0.45)
    for row, c in enumerate(order):
        mark = "  (explained)" if c == explained != guess else ""
        text = f"{readable(class_names[c])}: {shares[c]:.0%}{mark}"
        weight = "bold" if c == guess else "normal"
        ax.text(0, row - 0.27, text, va="bottom", fontsize=9, fontweight=weight)
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.75), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_box_aspect(1.4)
    if label is not None:
        right = "✓ correct" if guess == label else "✗ wrong"
        ax.set_title(f"true: {readable(class_names[label])}\n{right}", fontsize=9)


@mpl.rc_context(STYLE)
def overlay_columns(
    images: np.ndarray,
    explanations: Mapping[str, Explanation],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draw per slice: the slice, then map and prediction of each method or model, three a row.

    `images` are uint8 (n, h, w), `labels` (n,); the explanations, by name, are of these images.
    """
    n, k = len(images), len(explanations)
    _check_rows(n, labels, explanations, class_names)
    wide, deep = min(k + 1, 3), -(-(k + 1) // 3)
    size = (3.65 * wide + 0.5, 4.05 * n * deep + 0.6)
    fig, axes = plt.subplots(n * deep, wide, figsize=size, squeeze=False, layout="compressed")
    for i, (cells, image) in enumerate(zip(axes.reshape(n, -1), images, strict=True)):
        show_image(cells[0], image)
        mark_ends(cells[0])
        cells[0].set_title("slice", loc="center", fontsize=9.5)
        cells[0].set_xlabel(f"true: {readable(class_names[labels[i]])}", fontsize=9)
        for ax, (name, explanation) in zip(cells[1:], explanations.items(), strict=False):
            ax.set_title(name, loc="center", fontsize=9.5)
            _show_map(ax, image, explanation, i)
            said, asked = explanation.logits[i].argmax(), explanation.classes[i]
            text = f"{'✓' if said == labels[i] else '✗'} {readable(class_names[said])}"
            if asked != said:
                text += f"\nexplained: {readable(class_names[asked])}"
            ax.set_xlabel(text, fontsize=9)
        for ax in cells[k + 1 :]:
            ax.set_axis_off()
    _scale_below(fig, axes)
    fig.suptitle(title)
    return fig
