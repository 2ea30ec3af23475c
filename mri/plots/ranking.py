"""Figures of a comparison: the ranking, the p-values and the costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mri._text import for_line
from mri.evaluation.metrics import metric_label
from mri.plots.style import BLACK, BLUE, GREEN, GREY, PINK, STYLE, panel

if TYPE_CHECKING:
    from mri.evaluation.leaderboard import Comparison
    from mri.evaluation.metrics import Evaluation


_MARKS = {"subject": ("D", GREEN, -0.16), "image": ("o", PINK, 0.16), "unknown": ("x", GREY, 0)}
_NAMES = {"subject": "subject-wise", "image": "image-level (inflated)", "unknown": "all slices"}
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
    # As wide as a phone, the entries stand one below the other.
    columns = len(handles) if ax.figure.bbox.width > 6 * ax.figure.dpi else 1
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns)
    ax.set_yticks(range(len(board)), [for_line(name, _LONGEST) for name in board.index])
    ax.set_ylim(len(board) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    said = f"{metric_label(comparison.by)}\nper {comparison.unit} of the test part, 95% interval"
    leads = board["leading"].to_numpy()
    if leads.any() and not leads[: leads.sum()].all():
        # A reader would take the gap in the shading for a mistake.
        said += (
            "\nshading follows tests of pairs, person by person,\nnot the order or the intervals"
        )
    ax.set_xlabel(said)
    ax.set_title(title, pad=10 + 14 * (len(handles) if columns == 1 else 1))
    return ax


@mpl.rc_context(STYLE)
def p_values(matrix: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the pairs of `mri.evaluation.pairwise` that differ, p < 0.05, each once.

    Only the models of such pairs have a row or a column; without any pair, a sentence says so.
    """
    lower = np.tri(len(matrix), k=-1, dtype=bool)
    differs = (matrix < 0.05).to_numpy() & lower
    rows, columns = (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
    pairs = len(matrix) * (len(matrix) - 1) // 2
    said = f"{differs.sum()} of {pairs} pairs differ (p < 0.05 after Holm's correction)"
    names = [for_line(name, _LONGEST) for name in matrix.index]
    longest = max((len(names[i]) for i in {*rows, *columns}), default=0)
    ax = panel(ax, 3.2 + 0.34 * len(columns) + 0.06 * longest, 1 + 0.3 * len(rows) + 0.06 * longest)
    ax.set_title("\n".join(filter(None, (title, said))))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if not len(rows):
        ax.set(xticks=[], yticks=[])
        return ax
    drawn = differs[np.ix_(rows, columns)]
    ax.imshow(drawn, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for i, j in np.argwhere(drawn):
        p = matrix.iloc[rows[i], columns[j]]
        text = "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white")
    ticks = [names[j] for j in columns]
    ax.set_xticks(range(len(columns)), ticks, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), [names[i] for i in rows])
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
    """Draw the cost of each network, one row each, best on top, with the figure of the ranking.

    Blue marks those that no other model beats in both figure and cost, intervals ignored.
    """
    of = comparison.table.set_index("model")
    of = of.loc[comparison.best(protocol, len(of))].dropna(subset=[by])
    front = comparison.pareto(by, protocol)
    ax = panel(ax, 9, 1.2 + 0.27 * len(of))
    cheapest, dearest = of[by].astype(float).min(), of[by].astype(float).max()
    for row, (name, value) in enumerate(of[by].astype(float).items()):
        ahead = name in front
        colour = BLUE if ahead else GREY
        ax.plot(value, row, "D" if ahead else "o", color=colour, markersize=6)
        estimate = str(comparison.evaluations[name].metrics[comparison.unit][comparison.by])
        weight, place = "bold" if ahead else "normal", ax.get_yaxis_transform()
        options: dict[str, Any] = {"fontsize": 8, "fontweight": weight, "transform": place}
        ax.text(1.02, row, estimate, va="center", color=colour if ahead else BLACK, **options)
    names = [for_line(name.removesuffix(f"-{protocol}"), _LONGEST) for name in of.index]
    ax.set_yticks(range(len(of)), names)
    ax.set_ylim(len(of) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xscale("log")
    # With a narrow range of costs, powers of ten would give a single tick.
    narrow = dearest < 30 * cheapest
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(_short))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.1)
    ax.grid()
    figure = f"{metric_label(comparison.by).lower()} per {comparison.unit}"
    said = f"right: {figure}; blue: none is better in both"
    ax.set(xlabel=f"{_COSTS[by]}\n{said}", title=title)
    return ax


def _short(value: float, _: int | None = None) -> str:
    """Return 2500 as 2.5k and 3e7 as 30M: long numbers of neighbouring ticks would overlap."""
    unit, size = next(((u, s) for u, s in (("M", 1e6), ("k", 1e3)) if value >= s), ("", 1))
    return f"{value / size:g}{unit}"


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
