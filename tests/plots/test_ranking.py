"""What the figures of a comparison say, read back from the artists."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from mri import plots
from mri.plots.ranking import _short

pytestmark = pytest.mark.usefixtures("closed")


def ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def test_the_ranking_shows_both_figures_and_shades_the_leaders(made_up):
    comparison = made_up()
    ax = plots.leaderboard(comparison, title="all")
    assert ticks(ax.yaxis) == ["a", "b", "c", "d"]
    assert ax.yaxis_inverted()
    assert "Balanced accuracy" in ax.get_xlabel()
    drawn = {}
    for line in ax.lines:
        row = round(line.get_ydata()[0])
        drawn[line.get_marker(), row] = line.get_xdata()[0]
    value = {n: e.metrics["slice"]["balanced_accuracy"] for n, e in comparison.evaluations.items()}
    expected = {("D", i): value[f"{n}-subject"].value for i, n in enumerate("abcd")}
    expected |= {("o", i): value[f"{n}-image"].value for i, n in enumerate("abc")}
    assert drawn == pytest.approx(expected)
    intervals = sorted(tuple(c.get_segments()[0][:, 0]) for c in ax.collections)
    bounds = [value[f"{n}-subject"][1:] for n in "abcd"] + [value[f"{n}-image"][1:] for n in "abc"]
    np.testing.assert_allclose(intervals, sorted(bounds))
    shaded = [patch.get_y() + 0.5 for patch in ax.patches]
    assert shaded == pytest.approx([0, 1])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["subject-wise", "image-level (inflated)", "not distinguishable from the best"]


def test_shading_that_leaves_out_a_row_says_why(made_up):
    comparison = made_up()
    names = [f"{n}-subject" for n in "abcd"]
    told = {}
    for gap in (False, True):
        p = pd.DataFrame(1.0, names, names)
        p.iloc[0, 1 if gap else 3] = p.iloc[1 if gap else 3, 0] = 0.01
        ax = plots.leaderboard(replace(comparison, p_values={"subject": p}), title="t")
        told[gap] = "tests of pairs" in ax.get_xlabel()
    assert told == {False: False, True: True}


def test_pairs_that_differ_are_drawn_once_and_the_others_not():
    names = ["one", "two", "three"]
    matrix = pd.DataFrame(
        [[np.nan, 0.2, 0.0004], [0.2, np.nan, 0.03], [0.0004, 0.03, np.nan]], names, names
    )
    ax = plots.p_values(matrix, title="pairs")
    assert ax.get_title(loc="left").startswith("pairs\n2 of 3 pairs differ")
    assert ticks(ax.yaxis) == ["three"]
    assert ticks(ax.xaxis) == ["one", "two"]
    assert [text.get_text() for text in ax.texts] == ["<.001", ".030"]
    assert np.asarray(ax.get_images()[0].get_array()).tolist() == [[True, True]]
    assert all(to_rgba(text.get_color()) == to_rgba("white") for text in ax.texts)


def test_without_a_difference_a_sentence_says_so():
    names = ["one", "two"]
    ax = plots.p_values(pd.DataFrame([[np.nan, 0.2], [0.2, np.nan]], names, names))
    assert ax.get_title(loc="left").startswith("0 of 1 pairs differ")
    assert not ax.texts and not ax.get_images() and not len(ax.get_xticks())


def test_cost_has_a_row_for_every_model_and_marks_the_front(made_up):
    comparison = made_up()
    ax = plots.cost(comparison)
    assert ax.get_xscale() == "log" and ax.yaxis_inverted()
    assert ax.get_xlabel().startswith("number of weights\n")
    assert ticks(ax.yaxis) == ["a", "b", "c", "d"]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines]
    assert points == [(300, 0), (100, 1), (200, 2), (50, 3)]
    assert [line.get_marker() for line in ax.lines] == ["D", "D", "o", "D"]
    figures = [
        str(comparison.evaluations[f"{n}-subject"].metrics["slice"]["balanced_accuracy"])
        for n in "abcd"
    ]
    assert [text.get_text() for text in ax.texts] == figures


def test_long_numbers_of_ticks_are_short():
    assert [_short(x) for x in (0.5, 70, 2500, 3e7)] == ["0.5", "70", "2.5k", "30M"]


def test_side_by_side_draws_every_model_on_its_own_axes(made_up):
    comparison = made_up()
    chosen = {name: comparison.evaluations[name] for name in comparison.best("subject", 3)}
    fig = plots.side_by_side(plots.confusion, chosen, title="three")
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == list(chosen)
    assert [bool(ax.get_ylabel()) for ax in fig.axes] == [True, False, False]
    for ax, evaluation in zip(fig.axes, chosen.values(), strict=True):
        order = [2, 3, 0, 1]
        shares = evaluation.confusion(normalize=True)[np.ix_(order, order)]
        np.testing.assert_allclose(ax.get_images()[0].get_array(), shares)
