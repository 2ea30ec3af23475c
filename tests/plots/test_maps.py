"""Heatmaps beside each other: every cell is its own slice, map and answer."""

import numpy as np
import pytest

from mri import plots
from mri.data.parquet import CLASS_NAMES
from mri.evaluation import evaluate, pairwise
from mri.gradcam.cam import Explanation

pytestmark = pytest.mark.usefixtures("closed")


def explanation(rng, answers, classes=None):
    n = len(answers)
    maps = rng.random((n, 12, 10)).astype(np.float32)
    maps[-1] = 0
    logits = np.eye(4, dtype=np.float32)[answers]
    classes = np.array(answers if classes is None else classes)
    return Explanation(maps, maps[:, ::2, ::2], classes, logits, ~maps.any((1, 2)))


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 12, 10), dtype=np.uint8)


def test_columns_are_the_slice_and_each_explanation(rng, images):
    found = {"one": explanation(rng, [0, 2, 3]), "two": explanation(rng, [2, 2, 1], [0, 2, 1])}
    fig = plots.overlay_columns(images, found, np.array([0, 2, 3]), CLASS_NAMES, title="t")
    cells = np.array(fig.axes[:9]).reshape(3, 3)
    assert [[ax.get_title() for ax in row] for row in cells] == 3 * [["slice", "one", "two"]]
    for i, row in enumerate(cells):
        np.testing.assert_array_equal(row[0].get_images()[0].get_array(), images[i])
        for ax, of in zip(row[1:], found.values(), strict=True):
            expected = plots.overlay(images[i], of.maps[i])
            np.testing.assert_array_equal(ax.get_images()[0].get_array(), expected)
    said = [[ax.get_xlabel() for ax in row] for row in cells]
    assert said[0] == [
        "true: Mild Demented",
        "✓ Mild Demented",
        "✗ Non Demented\nexplained: Mild Demented",
    ]
    assert said[2] == ["true: Very Mild Demented", "✓ Very Mild Demented", "✗ Moderate Demented"]
    written = [[[text.get_text() for text in ax.texts] for ax in row] for row in cells]
    assert written[:2] == 2 * [[["back", "front"], [], []]]
    assert written[2][1:] == 2 * [["no evidence"]]
    assert fig.axes[9].get_xlabel() == "evidence, share of the map's maximum"


def test_more_than_two_explanations_go_on_below(rng, images):
    found = {name: explanation(rng, [0, 2, 3]) for name in "abcd"}
    fig = plots.overlay_columns(images, found, np.array([0, 2, 3]), CLASS_NAMES)
    titles = [ax.get_title() for ax in fig.axes[:6]]
    assert titles == ["slice", "a", "b", "c", "d", ""]
    assert len(fig.axes) == 3 * 6 + 1 and not fig.axes[5].axison


def test_the_bar_has_the_colours_of_the_maps(rng, images):
    found = {"one": explanation(rng, [0, 2, 3])}
    gray = np.full_like(images, 128)
    drawn = plots.overlay_columns(gray, found, np.array([0, 2, 3]), CLASS_NAMES)
    cell, bar = drawn.axes[1].get_images()[0], drawn.axes[6].collections[-1]
    shown = bar.cmap(bar.norm(found["one"].maps[0]))[..., :3]
    pixels = cell.get_array() / 255
    # 256 colours a bar.
    np.testing.assert_allclose(shown, pixels, atol=0.02)


@pytest.mark.parametrize("wrong", [2.0, -0.1, np.nan])
def test_a_heat_outside_0_to_1_is_refused_and_not_wrapped(wrong):
    with pytest.raises(ValueError, match=r"heatmap must be in \[0, 1\]"):
        plots.overlay(np.zeros((2, 2), np.uint8), np.array([[0, 1], [wrong, 0.5]]))


def test_a_grid_draws_what_belongs_together_and_shares_of_one(rng, images):
    found, labels, logits = explanation(rng, [0, 2, 3]), np.array([0, 2, 3]), 3 * np.eye(4)[:3]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    plots.heatmap_grid(images, found, labels, shares, CLASS_NAMES)
    for wrong in (logits, shares[:2], shares[:, :3], np.log(shares), np.nan * shares):
        with pytest.raises(ValueError, match="probabilities must be"):
            plots.heatmap_grid(images, found, labels, wrong, CLASS_NAMES)
    with pytest.raises(ValueError, match=r"of the 2 images.*explanation=3, labels=3"):
        plots.heatmap_grid(images[:2], found, labels, shares[:2], CLASS_NAMES)
    with pytest.raises(ValueError, match="labels must be integers"):
        plots.heatmap_grid(images, found, np.array(CLASS_NAMES)[labels], shares, CLASS_NAMES)
    with pytest.raises(ValueError, match=r"of the 3 images.*b=2, labels=3"):
        two = explanation(rng, [0, 2])
        plots.overlay_columns(images, {"a": found, "b": two}, labels, CLASS_NAMES)


def test_slices_that_were_divided_by_255_are_not_black(rng, images):
    heat = rng.random((12, 10))
    np.testing.assert_array_equal(
        plots.overlay(images[0] / 255, heat), plots.overlay(images[0], heat)
    )
    fig = plots.sample_grid(images / 255, np.zeros(3, int), ["a"], per_class=3)
    drawn = [ax.get_images()[0] for ax in fig.axes]
    shown = sorted(float(of.norm(of.get_array()).mean()) for of in drawn)
    np.testing.assert_allclose(shown, sorted(images.mean((1, 2)) / 255))
    dark = np.ones((12, 10), np.uint8)
    assert plots.overlay(dark, np.zeros_like(heat)).max() == 1, "whole numbers are gray values"
    with pytest.raises(ValueError, match=r"of the 2 images.*labels=3"):
        plots.sample_grid(images[:2], np.zeros(3, int), ["a"])


def test_one_evaluation_and_no_labels_are_refused():
    one = evaluate([0, 1], np.eye(2) - 0.5, [0, 1], class_names=("a", "b"), draws=5)
    for call in (pairwise, plots.metric_intervals):
        with pytest.raises(ValueError, match=r"by name.*Received: evaluations='Evaluation'"):
            call(one)
    with pytest.raises(ValueError, match="labels must not be empty"):
        plots.class_counts(np.array([], int), ("a", "b"))
