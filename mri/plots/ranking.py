"""Figures of a comparison: the ranking, the p-values and the costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mri._text import for_line
from mri.evaluation.metrics import metric_label
from mri.plots.style import BLUE, GREEN, GREY, PINK, STYLE, panel

if TYPE_CHECKING:
    from mri.evaluation.leaderboard import Comparison
    from mri.evaluation.metrics import Evaluation


_MARKS = {"subject": ("D", GREEN, -0.16), "image": ("o", PINK, 0.16), "unknown": ("x", GREY, 0)}
_NAMES = {"subject": "subject-wise", "image": "image-level (inflated)", "unknown": "no card"}
_LONGEST = 36  # Characters of a name that leave room for the figure.
_COSTS = {
    "parameters": "number of weights",
    "size_mb": "file size, MB",
    "ms_1": "time for one slice, ms",
    "ms_64": "time for 64 slices, ms",
    "seconds": "training time, s",
}


@mpl.rc_context(STYLE)
def leaderboard(comparison: Comparison, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw one row per network, with its figures and 95% intervals; leaders are shaded."""
    board, networks = comparison.leaderboard(), comparison.networks()
    ax = panel(ax, 7.5, 1 + 0.34 * len(board))
    for row, (name, leads) in enumerate(board["leading"].items()):
        if leads:
            ax.axhspan(row - 0.5, row + 0.5, color=BLUE, alpha=0.1, linewidth=0)
        for protocol, model in networks[name].items():
            mark, colour, shift = _MARKS[protocol]
            value, low, high = comparison.evaluations[model].metrics[comparison.unit][comparison.by]
            ax.hlines(row + shift, low, high, color=colour, linewidth=1.6)
            ax.plot(value, row + shift, mark, color=colour, markersize=5)
    shown = [protocol for protocol in _MARKS if board[protocol].notna().any()]
    handles: list[Artist] = [
        Line2D([], [], color=_MARKS[p][1], marker=_MARKS[p][0], label=_NAMES[p]) for p in shown
    ]
    if board["leading"].any():
        label = "not distinguishable from the best"
        handles.append(Rectangle((0, 0), 1, 1, color=BLUE, alpha=0.1, label=label))
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(handles))
    ax.set_yticks(range(len(board)), [for_line(name, _LONGEST) for name in board.index])
    ax.set_ylim(len(board) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel(
        f"{metric_label(comparison.by)} per {comparison.unit} of the test part, 95% interval"
    )
    ax.set_title(title, pad=24)
    return ax


@mpl.rc_context(STYLE)
def p_values(matrix: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the p-values of `mri.evaluation.pairwise`; those below 0.05 are filled."""
    n = len(matrix)
    ax = panel(ax, 2.2 + 0.42 * n, 1.6 + 0.36 * n)
    values = matrix.to_numpy()
    ax.imshow(values < 0.05, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (i, j), p in np.ndenumerate(values):
        if i != j:
            text = "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"
            colour = "white" if p < 0.05 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    names = [for_line(name, _LONGEST) for name in matrix.index]
    ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    return ax


@mpl.rc_context(STYLE)
def cost(
    comparison: Comparison,
    *,
    by: str = "parameters",
    protocol: str = "subject",
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw the figure of the ranking, with its 95% interval, against a cost.

    The line joins models that no other model beats in both figure and cost; it ignores the
    intervals. Names are at the side, in the order of the figures.
    """
    ax = panel(ax, 9, 4.4)
    of = comparison.table.set_index("model")
    of = of.loc[comparison.best(protocol, len(of))]
    of, front = of.dropna(subset=[by]), comparison.pareto(by, protocol)
    x, y = of[by].astype(float), of[comparison.by]
    ax.plot(x[front], y[front], color=GREY, linewidth=1, drawstyle="steps-post")
    bounds = [
        comparison.evaluations[name].metrics[comparison.unit][comparison.by] for name in of.index
    ]
    _, low, high = zip(*bounds, strict=True)
    ax.vlines(x, low, high, color=GREY, alpha=0.35, linewidth=1, zorder=1)
    ax.scatter(x, y, color=[BLUE if name in front else GREY for name in of.index], zorder=3)
    ax.set_xscale("log")
    # With a narrow range of costs, powers of ten would give a single tick.
    narrow = x.max() < 30 * x.min()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.12g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.15, y=0.05)
    ax.grid()
    ax.set(
        xlabel=_COSTS[by],
        ylabel=f"{metric_label(comparison.by)} per {comparison.unit}",
        title=title,
    )
    # Many models have the same cost, so names beside the points would overlap.
    line = {"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.5, "relpos": (0, 0.5), "shrinkA": 1}
    for i, name in enumerate(y.sort_values(ascending=False, kind="stable").index):
        colour, size = (BLUE, 7.5) if name in front else ("black", 6.5)
        ax.annotate(
            for_line(name.removesuffix(f"-{protocol}"), _LONGEST),
            (x[name], y[name]),
            (1.03, 1 - (i + 0.5) / len(y)),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=size,
            arrowprops={**line, "color": colour},
        )
    return ax


@mpl.rc_context(STYLE)
def side_by_side(
    draw: Callable[..., Axes],
    evaluations: Mapping[str, Evaluation],
    *,
    unit: str = "slice",
    title: str = "",
) -> Figure:
    """Draw `plots.confusion`, `plots.roc` or `plots.reliability` for several models in a row."""
    fig, axes = plt.subplots(1, len(evaluations), figsize=(4.2 * len(evaluations), 4.4))
    for ax, (name, evaluation) in zip(np.atleast_1d(axes), evaluations.items(), strict=True):
        draw(evaluation, unit=unit, ax=ax)
        ax.set_title(for_line(name, _LONGEST))
        if ax is not fig.axes[0]:
            ax.set_ylabel("")
    fig.suptitle(title)
    return fig
