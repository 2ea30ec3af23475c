"""What the figures of a comparison say, read back from the artists."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.text import Text

from mri import plots

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


def test_p_values_are_written_and_the_small_ones_filled():
    names = ["one", "two", "three"]
    matrix = pd.DataFrame(
        [[np.nan, 0.2, 0.0004], [0.2, np.nan, 0.9997], [0.0004, 0.9997, np.nan]], names, names
    )
    ax = plots.p_values(matrix, title="pairs")
    assert ticks(ax.xaxis) == ticks(ax.yaxis) == names
    written = {(t.get_position()[1], t.get_position()[0]): t for t in ax.texts}
    found = {place: text.get_text() for place, text in written.items()}
    assert found == {
        (0, 1): ".200",
        (1, 0): ".200",
        (0, 2): "<.001",
        (2, 0): "<.001",
        (1, 2): "1.000",
        (2, 1): "1.000",
    }
    (image,) = ax.get_images()
    shade = np.asarray(image.get_array())
    assert (shade == shade[0, 2]).sum() == 2
    assert to_rgba(written[0, 2].get_color()) == to_rgba("white")
    assert to_rgba(written[0, 1].get_color()) == to_rgba("black")


def test_cost_draws_the_front_and_names_every_model_once(made_up):
    comparison = made_up()
    ax = plots.cost(comparison)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "number of weights"
    (front,) = ax.lines
    np.testing.assert_array_equal(front.get_xdata(), [50, 100, 300])
    intervals, scatter = ax.collections
    points = {tuple(point) for point in scatter.get_offsets()}
    assert points == {(300, 0.9), (100, 0.88), (200, 0.2), (50, 0.1)}
    drawn = {segment[0, 0]: tuple(segment[:, 1]) for segment in intervals.get_segments()}
    named = {300: "a-subject", 100: "b-subject", 200: "c-subject", 50: "d-subject"}
    for weights, name in named.items():
        of = comparison.evaluations[name].metrics["slice"]["balanced_accuracy"]
        assert drawn[weights] == (of.low, of.high)
    assert sorted(text.get_text() for text in ax.texts) == ["a", "b", "c", "d"]


def test_labels_of_points_that_lie_together_do_not_cover_each_other(made_up):
    rows = [(f"network{i}-subject", "subject", 0.5 + i / 1000, 100 + i) for i in range(6)]
    ax = plots.cost(made_up(rows))
    ax.figure.canvas.draw()
    # Without the lines that lead to the points.
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 6
    assert [text.get_text() for text in ax.texts] == [f"network{i}" for i in range(5, -1, -1)]
    assert [text.xy for text in ax.texts] == [(100 + i, 0.5 + i / 1000) for i in range(5, -1, -1)]
    crossing = [(i, j) for i in range(6) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert crossing == []


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
