"""Figures that explain a notion of the evaluation: separation, means and the bootstrap."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mri.plots.style import BLUE, GREEN, GREY, PINK, STYLE, panel


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
        ax.set(ylim=(-0.5, 1.5), xlabel="score", title=name)
        ax.tick_params(axis="y", length=0)
    fig.suptitle(title)
    return fig


@mpl.rc_context(STYLE)
def within_person(
    scores: Mapping[str, np.ndarray], *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the score of each slice of several people, from low to high, and each person's mean."""
    ax = panel(ax, 9, 3.4)
    for (name, values), colour in zip(scores.items(), (BLUE, PINK, GREEN, GREY) * 9, strict=False):
        places = np.arange(1, len(values) + 1)
        label = f"person {name.replace('_', ' ')}"
        ax.plot(places, values, "o-", color=colour, markersize=3, linewidth=1, label=label)
        ax.axhline(values.mean(), color=colour, linestyle="--", linewidth=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="slice, from the lowest", ylabel="log odds of dementia", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@mpl.rc_context(STYLE)
def bootstrap(
    draws: Mapping[str, np.ndarray], value: float, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the values of bootstrap draws, float (draws,), by what was drawn, and 95% intervals."""
    ax = panel(ax, 9, 3.2)
    bins = np.histogram_bin_edges(np.concatenate(list(draws.values())), 60).tolist()
    for (name, values), colour in zip(draws.items(), (GREEN, GREY, PINK), strict=False):
        low, high = np.percentile(values, (2.5, 97.5))
        label = f"drawing {name}: [{low:.3f}, {high:.3f}]"
        ax.hist(values, bins, color=colour, alpha=0.6, label=label)
        for end in (low, high):
            ax.axvline(end, color=colour, linestyle="--", linewidth=1.2)
    ax.axvline(value, color="black", linewidth=1, label=f"measured: {value:.3f}")
    ax.set(xlabel="value of a draw", ylabel="number of draws", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dashed: 95% interval")
    return ax
