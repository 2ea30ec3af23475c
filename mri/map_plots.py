"""Figures of heatmaps that belong together: by method or model, and their mean by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mri.plots import STYLE, _bare, _order, _readable, _show, overlay, overlay_scale

if TYPE_CHECKING:
    from mri.gradcam import Explanation


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
    """Draw a row a slice: itself, then what each method or model looked at and what it said.

    `images` are uint8 (n, h, w), `labels` (n,); the explanations, by name, are of these images.
    Maps lie over the slice, or are shown `bare`, where what they mark is as bright as they are.
    """
    n, k = len(images), len(explanations)
    size = (1.75 * (k + 1) + 0.9, 2.0 * n + 0.7)
    fig, axes = plt.subplots(n, k + 1, figsize=size, squeeze=False, layout="compressed")
    for i, (row, image) in enumerate(zip(axes, images, strict=True)):
        _show(row[0], image)
        row[0].set_xlabel(f"true: {_readable(class_names[labels[i]])}", fontsize=7)
        for ax, explanation in zip(row[1:], explanations.values(), strict=True):
            heatmap = explanation.maps[i]
            if bare:
                _show(ax, heatmap, cmap="magma", vmax=1)
            else:
                _show(ax, overlay(image, heatmap))
            if explanation.zero[i]:
                frame = {"transform": ax.transAxes, "ha": "center", "va": "center"}
                ax.text(0.5, 0.5, "no evidence", color="white", fontsize=7, **frame)
            said, asked = explanation.logits[i].argmax(), explanation.classes[i]
            text = f"{'✓' if said == labels[i] else '✗'} {_readable(class_names[said])}"
            if asked != said:
                text += f"\nexplained: {_readable(class_names[asked])}"
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
    """Draw the mean heatmap of each true class over the mean slice, correct above wrong.

    `explanation` and `labels` (n,) are of the same aligned slices, `background` is their mean as
    uint8 (h, w). Where no slice is, nothing is drawn.
    """
    order = [c for c in _order(class_names) if (labels == c).any()]
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
        _bare(ax)
        if mean is not None:
            _show(ax, overlay(background, mean / peak, alpha=1.0))
        ax.set_title(f"{_readable(class_names[order[j]])}\nn = {n}", loc="center", fontsize=8)
    for row, name in zip(axes, ("correct", "wrong"), strict=True):
        row[0].set_ylabel(name)
    colours = overlay_scale(peak, alpha=1.0)
    fig.colorbar(colours, ax=axes, aspect=25, pad=0.02, label="mean share of each map's maximum")
    fig.suptitle(title)
    return fig
