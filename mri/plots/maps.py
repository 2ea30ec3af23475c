"""Figures of several heatmaps: by method or model, and their mean by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mri.plots.style import STYLE, bare, beside, readable, severity_order, show_image

if TYPE_CHECKING:
    from mri.gradcam.cam import Explanation


def overlay(
    image: np.ndarray, heatmap: np.ndarray, *, alpha: float = 0.6, cmap: str = "magma"
) -> np.ndarray:
    """Return a uint8 (h, w, 3) image: `heatmap` in [0, 1] over a uint8 slice, both (h, w).

    Opacity is `alpha` times the strength, so the anatomy is visible where the map is weak.
    """
    if np.shape(image) != np.shape(heatmap) or np.ndim(image) != 2:
        raise ValueError(
            "image and heatmap must have the same shape (h, w). "
            f"Received: image.shape={np.shape(image)}, heatmap.shape={np.shape(heatmap)}"
        )
    heat, grey = np.asarray(heatmap, dtype=float), np.asarray(image, dtype=float)
    colours, opacity = 255 * mpl.colormaps[cmap](heat)[..., :3], alpha * heat[..., None]
    return np.rint((1 - opacity) * grey[..., None] + opacity * colours).astype(np.uint8)


def overlay_scale(peak: float = 1.0, *, alpha: float = 0.6) -> mpl.cm.ScalarMappable:
    """Return what a colour bar needs: the colours of `overlay`, 0 to `peak`, on middle gray."""
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
    """Draw one row per slice: slice, heatmap, overlay, and predicted and explained class.

    `images` are uint8 (n, h, w), `labels` (n,) or None if unknown, `probabilities` (n, k).
    """
    n, names = len(images), [readable(name) for name in class_names]
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
        show_image(row[0], image)
        drawn = show_image(row[1], heatmap, cmap="magma", vmax=1)
        show_image(row[2], overlay(image, heatmap))
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
        beside(row[2], "\n".join(lines), (1, 0.5), xycoords="axes fraction", linespacing=1.5)
    for ax, name in zip(axes[0], ("slice", "heatmap", "overlay"), strict=True):
        ax.set_title(name, loc="center")
    label = "evidence, share of\nthe map's maximum"
    fig.colorbar(drawn, ax=axes[:, 1], location="bottom", aspect=12, pad=0.01, label=label)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def overlay_columns(
    images: np.ndarray,
    explanations: Mapping[str, Explanation],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    bare: bool = False,
    title: str = "",
) -> Figure:
    """Draw one row per slice: the slice, then map and prediction of each method or model.

    `images` are uint8 (n, h, w), `labels` (n,); the explanations, by name, are of these images.
    Maps lie over the slice. Use `bare` to draw them alone if the marked pixels are very bright.
    """
    n, k = len(images), len(explanations)
    size = (1.75 * (k + 1) + 0.9, 2.0 * n + 0.7)
    fig, axes = plt.subplots(n, k + 1, figsize=size, squeeze=False, layout="compressed")
    for i, (row, image) in enumerate(zip(axes, images, strict=True)):
        show_image(row[0], image)
        row[0].set_xlabel(f"true: {readable(class_names[labels[i]])}", fontsize=7)
        for ax, explanation in zip(row[1:], explanations.values(), strict=True):
            heatmap = explanation.maps[i]
            if bare:
                show_image(ax, heatmap, cmap="magma", vmax=1)
            else:
                show_image(ax, overlay(image, heatmap))
            if explanation.zero[i]:
                frame = {"transform": ax.transAxes, "ha": "center", "va": "center"}
                ax.text(0.5, 0.5, "no evidence", color="white", fontsize=7, **frame)
            said, asked = explanation.logits[i].argmax(), explanation.classes[i]
            text = f"{'✓' if said == labels[i] else '✗'} {readable(class_names[said])}"
            if asked != said:
                text += f"\nexplained: {readable(class_names[asked])}"
            ax.set_xlabel(text, fontsize=7)
    for ax, name in zip(axes[0], ("slice", *explanations), strict=True):
        ax.set_title(name, loc="center", fontsize=8.5)
    plain = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), "magma")
    label = "evidence, share of the map's maximum"
    fig.colorbar(plain if bare else overlay_scale(), ax=axes, aspect=30, pad=0.02, label=label)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def mean_maps(
    explanation: Explanation,
    labels: np.ndarray,
    class_names: Sequence[str],
    background: np.ndarray,
    *,
    title: str = "",
) -> Figure:
    """Draw the mean heatmap of each true class over the mean slice: correct above, wrong below.

    `explanation` and `labels` (n,) belong to the same aligned slices, and `background` is their
    mean as uint8 (h, w). A panel without slices stays empty.
    """
    order = [c for c in severity_order(class_names) if (labels == c).any()]
    right = explanation.logits.argmax(1) == labels
    means = {}
    for i, chosen in enumerate((right, ~right)):
        for j, c in enumerate(order):
            rows = chosen & (labels == c)
            means[i, j] = rows.sum(), explanation.maps[rows].mean(0) if rows.any() else None
    peak = max(float(mean.max()) for _, mean in means.values() if mean is not None) or 1.0
    fig, axes = plt.subplots(
        2, len(order), figsize=(1.9 * len(order) + 1.2, 4.7), squeeze=False, layout="compressed"
    )
    for (i, j), (n, mean) in means.items():
        ax = axes[i, j]
        bare(ax)
        if mean is not None:
            show_image(ax, overlay(background, mean / peak, alpha=1.0))
        ax.set_title(f"{readable(class_names[order[j]])}\nn = {n}", loc="center", fontsize=8)
    for row, name in zip(axes, ("correct", "wrong"), strict=True):
        row[0].set_ylabel(name)
    colours = overlay_scale(peak, alpha=1.0)
    fig.colorbar(colours, ax=axes, aspect=25, pad=0.02, label="mean share of each map's maximum")
    fig.suptitle(title)
    return fig
