"""Figures of heatmaps against closed forms, brute force and SciPy; verdicts on known networks."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import log_softmax
from scipy.stats import spearmanr

import mri.__main__
from mri.__main__ import main
from mri.data.phantom import SHORTCUT, make_phantoms
from mri.gradcam import checks as faithfulness
from mri.gradcam.cam import METHODS, GradCAM
from mri.gradcam.checks import check_heatmaps, ground_truth
from mri.gradcam.measures import (
    brain_mask,
    cascade,
    control_maps,
    deletion_insertion,
    localisation,
    rank_correlation,
)
from mri.models.builders import build_model
from mri.models.files import save_model

K = keras.layers
SIZE, N = 32, 12
CHECKS = ["random weights", "deletion", "insertion", "outside the brain", "one-pixel shift"]


def draw_slices(n=N, seed=0):
    """Gray discs with a bright spot somewhere inside, on black; and where the spot is."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:SIZE, :SIZE]
    images, spots = np.zeros((n, SIZE, SIZE), np.uint8), np.zeros((n, SIZE, SIZE), bool)
    for image, spot in zip(images, spots, strict=True):
        disc = np.hypot(rows - 15.5, columns - 15.5) < 12
        image[disc] = rng.integers(90, 130, disc.sum())
        y, x = rng.integers(9, 20, 2)
        spot[y : y + 4, x : x + 4] = True
        image[spot] = 250
    return images, spots


IMAGES, SPOTS = draw_slices()


def spot_finder(sign=1.0):
    """Two logits of which the second counts bright pixels, `sign` times."""
    inputs = keras.Input((SIZE, SIZE, 1))
    conv = K.Conv2D(1, 1, activation="relu", name="bright")
    dense = K.Dense(2, name="scores")
    x = K.GlobalAveragePooling2D()(conv(K.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, dense(x), name="finder")
    conv.set_weights([np.ones((1, 1, 1, 1)), np.array([-0.6])])
    dense.set_weights([np.array([[0.0, 400.0 * sign]]), np.array([0.0, -sign])])
    return model


def deep(layers=5, seed=1):
    keras.utils.set_random_seed(seed)
    convolutions = [
        K.Conv2D(6, 3, padding="same", activation="relu", name=f"conv_{i}") for i in range(layers)
    ]
    head = [K.GlobalAveragePooling2D(), K.Dense(3, name="scores")]
    return keras.Sequential([keras.Input((SIZE, SIZE, 1)), *convolutions, *head], name="deep")


def nested():
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 1)), K.Conv2D(3, 3, name="inner")])
    inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Conv2D(4, 3, name="last")(K.BatchNormalization(name="norm")(inner(inputs)))
    return keras.Model(inputs, K.Dense(2, name="scores")(K.Flatten()(x)))


def test_the_import_is_light():
    script = "import sys, json, mri.gradcam.checks; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(faithfulness.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert {"keras", "tensorflow", "matplotlib"}.isdisjoint(json.loads(done.stdout))


# The brain


def test_brain_is_the_largest_part_with_its_holes():
    image = np.zeros((64, 64))
    rows, columns = np.mgrid[:64, :64]
    disc = np.hypot(rows - 31.5, columns - 31.5) < 22
    image[disc] = 0.7
    image[26:34, 26:34] = 0.0
    image[:8, :8] = 1.0
    for scaled in (image, image * 255, (image * 255).astype(np.uint8), 3 - image.min() + 2 * image):
        found = brain_mask(scaled[None])[0]
        assert found.dtype == bool
        assert (found & disc).sum() / (found | disc).sum() > 0.97
        assert found[26:34, 26:34].all() and not found[:8, :8].any()


def test_brain_of_phantoms_is_what_is_not_background():
    phantoms = make_phantoms(8, 4, seed=3)
    found = brain_mask(phantoms.images)
    for image, mask in zip(phantoms.images, found, strict=True):
        head = ndimage.binary_fill_holes(ndimage.binary_opening(image > 15, iterations=2))
        assert (mask & head).sum() / (mask | head).sum() > 0.96
    # What the disease changes lies in the brain.
    assert (phantoms.masks & found).sum() / phantoms.masks.sum() > 0.97


def test_no_brain_in_one_tone_and_no_other_shapes():
    assert not brain_mask(np.full((2, 16, 16), 7)).any()
    with pytest.raises(ValueError, match=r"images \(n, h, w\). Received: shape=\(16, 16\)"):
        brain_mask(np.zeros((16, 16)))


# Controls


def smooth_maps(n=6):
    rng = np.random.default_rng(11)
    maps = ndimage.gaussian_filter(rng.standard_normal((n, SIZE, SIZE)), (0, 3, 3)).clip(0)
    return (maps / maps.max((1, 2), keepdims=True)).astype(np.float32)


def test_controls_are_the_maps_values_dealt_out_again():
    maps, brain = smooth_maps(), brain_mask(IMAGES[:6])
    maps[2] = 0
    controls = control_maps(maps, brain)
    assert list(controls) == ["random", "random in brain", "centre"]
    for dealt in controls.values():
        assert dealt.dtype == np.float32
        np.testing.assert_array_equal(
            np.sort(dealt.reshape(6, -1), 1), np.sort(maps.reshape(6, -1), 1)
        )
    for dealt, mask in zip(controls["random in brain"], brain, strict=True):
        assert dealt[mask].min() >= dealt[~mask].max()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for dealt, mask in zip(controls["centre"], brain, strict=True):
        y, x = ndimage.center_of_mass(mask)
        distance = np.hypot(rows - y, columns - x).round(9)
        rings = [dealt[distance == d] for d in np.unique(distance)]
        assert all(a.min() >= b.max() for a, b in pairwise(rings))


def test_random_controls_are_as_smooth_as_the_map_and_seeded(rng):
    def neighbours(maps):
        return np.mean([np.corrcoef(m[1:].ravel(), m[:-1].ravel())[0, 1] for m in maps])

    maps, brain = smooth_maps(12), np.ones((12, SIZE, SIZE), bool)
    first = control_maps(maps, brain)["random"]
    assert neighbours(maps) > 0.9
    assert abs(neighbours(maps) - neighbours(first)) < 0.1
    rough = rng.permuted(maps.reshape(12, -1), axis=1).reshape(maps.shape)
    assert abs(neighbours(control_maps(rough, brain)["random"])) < 0.06
    overlap = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps, first, strict=True)]
    assert abs(np.mean(overlap)) < 0.25
    np.testing.assert_array_equal(first, control_maps(maps, brain)["random"])
    assert not np.array_equal(first, control_maps(maps, brain, seed=1)["random"])


# Localisation


def test_localisation_by_hand():
    maps = np.array([[[4, 3, 0], [2, 1, 0]]]).repeat(3, 0)
    masks = np.array([[[1, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1]]])
    found = localisation(maps, masks)
    np.testing.assert_allclose(found.pointing, [1, 0, 0])
    np.testing.assert_allclose(found.iou, [1 / 3, 0, 0])
    np.testing.assert_allclose(found.energy, [0.6, 0.3, 0])


def test_ties_count_in_proportion(rng):
    values = rng.integers(0, 3, (5, 6, 6)).astype(float)
    masks = rng.random((5, 6, 6)) < 0.4
    found = localisation(values, masks)
    common = np.zeros(5)
    peaks = np.zeros(5)
    for _ in range(4000):
        broken = (values + 0.5 * rng.random(values.shape)).reshape(5, -1)
        for i, mask in enumerate(masks.reshape(5, -1)):
            order = np.argsort(-broken[i])
            common[i] += mask[order[: mask.sum()]].sum() / 4000
            peaks[i] += mask[order[0]] / 4000
    areas = masks.sum((1, 2))
    np.testing.assert_allclose(found.iou, common / (2 * areas - common), atol=0.02)
    np.testing.assert_allclose(found.pointing, peaks, atol=0.04)
    np.testing.assert_allclose(
        found.energy, [v[m].sum() / v.sum() for v, m in zip(values, masks, strict=True)]
    )


def test_a_peak_may_miss_by_the_tolerance():
    maps, masks = np.zeros((1, 9, 9)), np.zeros((1, 9, 9), bool)
    maps[0, 6, 7], masks[0, :4, :4] = 1, True  # 3 rows and 4 columns off: 5 pixels
    found = [localisation(maps, masks, tolerance=t).pointing[0] for t in (0, 4, 5)]
    assert found == [0, 0, 1]
    assert localisation(maps, masks, tolerance=5).energy[0] == 0
    with pytest.raises(ValueError, match="tolerance=-1"):
        localisation(maps, masks, tolerance=-1)


def test_a_perfect_and_a_zero_map():
    found = localisation(np.stack([SPOTS[0], 0 * SPOTS[0]]), SPOTS[[0, 0]])
    assert [figure.tolist() for figure in found] == [[1, 0]] * 3


@pytest.mark.parametrize(
    ("maps", "masks", "match"),
    [
        (np.ones((1, 2, 2)), np.ones((1, 2, 3)), r"shapes=\(\(1, 2, 2\), \(1, 2, 3\)\)"),
        (np.ones((2, 2)), np.ones((2, 2)), r"maps and masks \(n, h, w\)"),
        (np.ones((1, 2, 2)), np.zeros((1, 2, 2)), r"empty. Received: empty=array\(\[ True\]\)"),
        (-np.ones((1, 2, 2)), np.ones((1, 2, 2)), "not be negative. Received: minimum=.*-1"),
    ],
)
def test_localisation_refuses(maps, masks, match):
    with pytest.raises(ValueError, match=match):
        localisation(maps, masks)


# Deletion and insertion


def test_curves_of_a_linear_model_pixel_by_pixel(rng):
    images = rng.uniform(0, 255, (3, 16, 16))
    maps, weights = rng.random((3, 16, 16)), rng.normal(size=(16, 16, 4))
    classes, calls = np.array([0, 2, 3]), []

    def predict(x):
        calls.append((x.shape, x.dtype))
        return np.tensordot(x, weights, 2) / 1000

    curves = deletion_insertion(predict, images, maps, classes, steps=8)
    assert calls == [((6, 16, 16), np.float32)] * 9
    np.testing.assert_allclose(curves.fractions, np.arange(9) / 8)
    blurred = ndimage.gaussian_filter(images, (0, 2, 2), mode="constant", truncate=4)
    for i in range(3):
        order = sorted(range(256), key=lambda pixel, i=i: -maps[i].flat[pixel])
        for step in range(9):
            away, back = images[i].copy(), blurred[i].copy()
            for pixel in order[: 32 * step]:
                away.flat[pixel], back.flat[pixel] = blurred[i].flat[pixel], images[i].flat[pixel]
            for image, curve in ((away, curves.deletion), (back, curves.insertion)):
                log_p = log_softmax(np.tensordot(image, weights, 2) / 1000)
                expected = log_p[classes[i]] - np.log(-np.expm1(log_p[classes[i]]))
                assert curve[i, step] == pytest.approx(expected, abs=2e-3)


def test_evidence_does_not_saturate_nor_follow_a_common_shift():
    image = np.full((1, 8, 8), 100.0)

    def predict(x):
        total = x.sum((1, 2))
        return np.stack([total, total + 3 * x[:, 0, 0]], 1)

    curves = deletion_insertion(predict, image, image, np.array([1]), steps=2)
    assert curves.deletion[0, 0] == pytest.approx(300)
    blurred = ndimage.gaussian_filter(image, (0, 1, 1), mode="constant", truncate=4)
    assert curves.deletion[0, -1] == pytest.approx(3 * blurred[0, 0, 0], rel=1e-3)


def test_equal_values_go_in_an_order_of_the_seed():
    rows, columns = np.mgrid[:SIZE, :SIZE]
    board = 1.0 - 2 * ((rows + columns) % 2)

    def predict(x):
        return np.stack([(x * board)[:, :16].sum((1, 2)), 0 * x[:, 0, 0]], 1) / 51200

    def run(seed):
        images = 100 + 100 * board[None]
        return deletion_insertion(predict, images, 0 * images, np.array([0]), seed=seed).deletion[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))
    # In the order of the rows all evidence would be gone halfway.
    np.testing.assert_allclose(run(0), np.linspace(1, 0, 17), atol=0.1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"maps": IMAGES[:2]}, r"classes \(n,\). Received: shapes=.*\(2, 32, 32\)"),
        ({"classes": np.zeros(3, int)}, r"shapes=.*\(3,\)"),
        ({"images": IMAGES[0]}, r"shapes=\(\(32, 32\)"),
        ({"steps": 0}, "at least 1. Received: steps=0"),
    ],
)
def test_deletion_refuses(changes, match):
    arguments = {"images": IMAGES, "maps": IMAGES, "classes": np.zeros(N, int)} | changes
    with pytest.raises(ValueError, match=match):
        deletion_insertion(lambda x: np.zeros((len(x), 2)), **arguments)


# Random weights


class Spy:
    """A `GradCAM` that writes down the weights at each call, and may fail at one."""

    def __init__(self, model, fails_at=None):
        self.model, self.cam, self.fails_at, self.calls = model, GradCAM(model), fails_at, []
        self.layers = self.cam.layers

    def __call__(self, images, classes=None):
        self.calls.append([w.numpy() for w in self.model.weights])
        if len(self.calls) == self.fails_at:
            raise RuntimeError("out of order")
        return self.cam(images, classes)


def changed(before, after):
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def test_cascade_goes_from_the_output_to_the_input_and_restores_the_weights():
    model = nested()
    assert [w.path.split("/")[-2] for w in model.weights].count("inner") == 2
    spy, before = Spy(model), [w.numpy() for w in model.weights]
    fallen = cascade(spy, IMAGES)
    assert fallen.layers == ("scores", "last", "norm", "inner")
    assert not any(changed(before, [w.numpy() for w in model.weights]))
    assert len(spy.calls) == 1 + 10 * 4
    assert not any(changed(before, spy.calls[0]))
    homes = [w.path.split("/")[-2] for w in model.weights]
    for stage in range(4):
        for network in range(10):
            moved = changed(before, spy.calls[1 + 4 * network + stage])
            # Permuted zeros and ones are what they were.
            expected = {
                home
                for home, value in zip(homes, before, strict=True)
                if home in fallen.layers[: stage + 1] and np.ptp(value)
            }
            assert {home for home, m in zip(homes, moved, strict=True) if m} == expected
    for value, mixed in zip(before, spy.calls[-1], strict=True):
        np.testing.assert_allclose(
            np.sort(np.abs(value), axis=None), np.sort(np.abs(mixed), axis=None)
        )
        if value.ndim > 1:
            assert (np.sign(mixed) != np.sign(value)).mean() > 0.1


def test_correlation_is_that_of_scipy_in_the_brain():
    model = deep()
    cam, brain = GradCAM(model), brain_mask(IMAGES)
    fallen = cascade(cam, IMAGES)
    before = cam(IMAGES).maps
    assert fallen.correlation.shape == (6, 10, N)
    assert fallen.maps.shape == (10, N, SIZE, SIZE)
    checked = 0
    for found, maps in zip(fallen.correlation[-1], fallen.maps, strict=True):
        for i in range(N):
            first, second = before[i][brain[i]], maps[i][brain[i]]
            if np.ptp(first) and np.ptp(second):
                assert found[i] == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)
                checked += 1
            else:
                assert np.isnan(found[i])
    assert checked > 30


def test_cascade_follows_its_seed_and_each_network_is_another():
    cam = GradCAM(deep(2))
    first, again, other = (cascade(cam, IMAGES, seed=seed).maps for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_many_layers_fall_in_eight_stages():
    fallen = cascade(GradCAM(deep(10)), IMAGES[:2])
    assert len(fallen.layers) == len(fallen.correlation) == 8
    assert fallen.layers[-1] == "conv_0"


def test_weights_come_back_after_an_error():
    model = deep(2)
    before = [w.numpy() for w in model.weights]
    with pytest.raises(RuntimeError, match="out of order"):
        cascade(Spy(model, fails_at=4), IMAGES)
    assert not any(changed(before, [w.numpy() for w in model.weights]))


# Intervals


def test_interval_is_that_of_the_mean_of_subjects(rng):
    values = rng.normal(3, 2, 400)
    estimate = faithfulness._interval(values, np.arange(400), 0)
    assert estimate.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    # Four equal slices of a subject are no more than one.
    whole = faithfulness._interval(values.repeat(4), np.arange(400).repeat(4), 0)
    np.testing.assert_allclose(whole, estimate)
    assert faithfulness._interval(values, np.arange(400), 1) != estimate
    # Two rows that disagree say less than their mean does, and missing figures are left out.
    pair = faithfulness._interval(np.stack([values - 5, values + 5]), np.arange(400), 0)
    assert pair.value == pytest.approx(values.mean())
    assert pair.high - pair.low > 9
    holes = np.concatenate([values, np.full(100, np.nan)])
    assert faithfulness._interval(holes, np.arange(500), 0).value == pytest.approx(values.mean())


def test_no_interval_of_few_subjects_or_few_figures():
    assert np.isnan(faithfulness._interval(np.arange(28.0), np.arange(28) % 7, 0).low)
    assert np.isfinite(faithfulness._interval(np.arange(28.0), np.arange(28) % 8, 0).low)
    values = np.where(np.arange(40) < 19, 1.0, np.nan)
    assert faithfulness._interval(values, np.arange(40), 0).value == 1
    assert np.isnan(faithfulness._interval(values, np.arange(40), 0).low)
    empty = np.full(9, np.nan)
    assert np.isnan(faithfulness._interval(empty, np.arange(9), 0)).all()
    assert np.isnan(faithfulness._interval(empty[:0], np.arange(0), 0)).all()


# The whole check


@pytest.fixture(scope="module")
def finder():
    model = spot_finder()
    before = [w.numpy() for w in model.weights]
    check = check_heatmaps(model, IMAGES)
    assert not any(changed(before, [w.numpy() for w in model.weights]))
    return model, check


def test_a_map_of_all_that_counts_is_faithful(finder):
    model, check = finder
    table = check.table
    assert list(table) == ["found", "random", "random in brain", "centre", "criterion", "verdict"]
    assert [name for name in table.index if name != "agreement with hirescam"] == CHECKS
    assert check.title == "finder, grad-cam at bright, 12 slices"
    for name in ("deletion", "insertion", "outside the brain", "agreement with hirescam"):
        assert table.verdict[name] == "passes", name
    # All evidence goes with the first of 16 steps: half a step of the trapezoid is left.
    assert table.found["deletion"].value == pytest.approx(1 / 32, abs=0.01)
    assert table.found["insertion"].value == pytest.approx(1 - 1 / 32, abs=0.01)
    assert table.found["outside the brain"].value == 0
    # Of a pooled mean both methods are one (their papers), and the network moves with the image.
    assert table.found["agreement with hirescam"].value == pytest.approx(1)
    assert table.found["one-pixel shift"].value == pytest.approx(1)
    for name in ("random", "random in brain", "centre"):
        assert table[name]["deletion"].value > 0.3 and table[name]["insertion"].value < 0.7
        assert abs(table[name]["agreement with hirescam"].value) < 0.3
    maps = GradCAM(model)(IMAGES).maps
    random = control_maps(maps, brain_mask(IMAGES))["random"]
    outside = 1 - localisation(random, brain_mask(IMAGES)).energy
    assert table["random"]["outside the brain"].value == pytest.approx(outside.mean())


def test_it_prints_as_a_table_with_verdict_and_reasons(finder):
    check = finder[1]
    text, page = repr(check), check._repr_html_()
    assert text.startswith(f"finder, grad-cam at bright, 12 slices: {check.verdict}\n")
    assert "below each control" in text and "Each slice counts as a subject" in text
    assert str(check.table.found["deletion"]) in text
    assert page.startswith(f"<b>finder, grad-cam at bright, 12 slices: {check.verdict}</b><table")
    assert list(check.cascade.columns) == ["value", "low", "high"]
    assert list(check.cascade.index) == ["scores"], "one number cannot be permuted"
    steps = f"output first: scores {check.cascade['value'].iloc[0]:.2f}."
    assert steps in text and steps in page
    bad = check.table.verdict[check.table.verdict.isin(["fails", "not decidable"])]
    assert len([r for r in check.reasons if " must be " in r]) == len(bad)
    expected = "fails" if "fails" in set(bad) else "not decidable" if len(bad) else "passes"
    assert check.verdict == expected


def test_subjects_widen_the_intervals_and_seeds_repeat():
    model = spot_finder()
    images, _ = draw_slices(16, seed=1)
    images = images.repeat(2, 0)
    slices = check_heatmaps(model, images)
    people = check_heatmaps(model, images, subjects=np.arange(16).repeat(2))
    for kind in ("random", "random in brain"):
        alone, together = (check.table[kind]["insertion"] for check in (slices, people))
        assert alone.value == pytest.approx(together.value)
        assert together.high - together.low > 1.1 * (alone.high - alone.low)
    assert "Each slice counts" in slices.reasons[-1]
    assert not [reason for reason in people.reasons if "Each slice counts" in reason]
    again = check_heatmaps(model, images, subjects=np.arange(16).repeat(2))
    assert repr(again) == repr(people)
    other = check_heatmaps(model, images, subjects=np.arange(16).repeat(2), seed=1)
    assert repr(other) != repr(people)


def test_a_map_that_ignores_the_weights_fails():
    """Grad-CAM at the very input before a pooled mean is the image itself, whatever the weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 1))
    x = K.Concatenate(name="copies")([K.Rescaling(1 / 255)(inputs)] * 4)
    x = K.Dense(6, name="a")(K.GlobalAveragePooling2D()(x))
    check = check_heatmaps(keras.Model(inputs, K.Dense(2, name="b")(x)), IMAGES, layer="copies")
    assert check.table.found["random weights"].value == pytest.approx(1)
    assert (check.table.verdict["random weights"], check.verdict) == ("fails", "fails")
    assert any(r.startswith("random weights: fails; 1.000 [1.000, 1.000]") for r in check.reasons)


def test_zero_maps_and_few_subjects_are_not_decidable():
    check = check_heatmaps(spot_finder(-1.0), IMAGES)
    maps = GradCAM(spot_finder(-1.0))(IMAGES)
    assert maps.zero.all() or maps.zero.mean() > 0.5
    assert set(check.table.verdict) == {"not decidable"}
    assert check.verdict == "not decidable"
    assert any("12 of 12 maps are zero" in reason for reason in check.reasons)
    few = check_heatmaps(spot_finder(), IMAGES, subjects=np.arange(N) % 7)
    assert set(few.table.verdict) == {"not decidable"}


def test_hirescam_is_the_reference_not_judged_by_the_other():
    table = check_heatmaps(deep(2), IMAGES, method="hirescam").table
    row = table.loc["agreement with grad-cam"]
    assert (row.criterion, row.verdict) == ("–", "–")


@pytest.mark.parametrize(
    ("images", "options", "match"),
    [
        (np.where(np.arange(N)[:, None, None] == 3, 0, IMAGES), {}, "must show a brain"),
        (IMAGES[0], {}, r"images \(n, h, w\)"),
        (IMAGES, {"subjects": [0, 1]}, r"subjects must be 12 integers. Received: shape=\(2,\)"),
        (IMAGES, {"method": "guided"}, "one of .*method='guided'"),
        (IMAGES, {"layer": "nowhere"}, "layer='nowhere'"),
    ],
)
def test_check_refuses(images, options, match):
    with pytest.raises(ValueError, match=match):
        check_heatmaps(spot_finder(), images, **options)


# Ground truth


def test_ground_truth_is_the_mean_of_the_localisations():
    phantoms = make_phantoms(10, 2, size=64, seed=5)
    keras.utils.set_random_seed(2)
    layers = [K.Conv2D(4, 3, activation="relu"), K.GlobalAveragePooling2D(), K.Dense(4)]
    model = keras.Sequential([keras.Input((64, 64, 1)), *layers])
    table = ground_truth(model, phantoms)
    assert table.index.tolist() == [
        (method, kind)
        for method in METHODS
        for kind in ("found", "random", "random in brain", "centre")
    ]
    assert table.columns.tolist() == [
        (measure, field)
        for measure in ("pointing", "iou", "energy")
        for field in ("value", "low", "high")
    ]
    ill = phantoms.labels != 2
    images, masks = phantoms.images[ill], phantoms.masks[ill]
    maps = GradCAM(model, method="layercam")(images, phantoms.labels[ill]).maps
    centre = control_maps(maps, brain_mask(images))["centre"]
    for kind, of in (("found", maps), ("centre", centre)):
        for measure, values in localisation(of, masks)._asdict().items():
            row = table.loc[("layercam", kind)]
            assert row[measure, "value"] == pytest.approx(values.mean())
            subjects = phantoms.subjects[ill]
            if len(np.unique(subjects)) < 8:
                assert np.isnan(row[measure, "low"])
    corner = np.zeros_like(masks)
    corner[:, :8, :8] = True
    found = ground_truth(model, phantoms, region=SHORTCUT, classes=1).loc[("layercam", "found")]
    maps = GradCAM(model, method="layercam")(images, 1).maps
    assert found["energy", "value"] == pytest.approx(localisation(maps, corner).energy.mean())
    near = ground_truth(model, phantoms, region=SHORTCUT, classes=1, tolerance=40)
    expected = localisation(maps, corner, tolerance=40).pointing.mean()
    assert near.loc[("layercam", "found")]["pointing", "value"] == pytest.approx(expected)
    assert expected > found["pointing", "value"]


def test_ground_truth_needs_a_truth():
    phantoms = make_phantoms(4, 1, size=64)
    healthy = replace(phantoms, masks=np.zeros_like(phantoms.masks))
    with pytest.raises(ValueError, match=r"No slice has a mask\. Received: labels="):
        ground_truth(deep(1), healthy)


def train_on(phantoms, epochs, convolutions):
    """Train filters of some size and stride, and where in the head they answer, on demented."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 64, 1))
    x = K.Rescaling(1 / 255)(inputs)
    for filters, size, strides in convolutions:
        x = K.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        x = K.ReLU()(K.BatchNormalization(momentum=0.9)(x))
    model = keras.Model(inputs, K.Dense(2)(K.Flatten()(K.AveragePooling2D(x.shape[1] // 4)(x))))
    steps = epochs * -(-len(phantoms.images) // 32)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(phantoms.images[..., None], phantoms.labels != 2, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["atrophy", "shortcut"])
def trained(request):
    """Return a trained network, strangers and whether the shortcut was planted in both."""
    shortcut = request.param
    learnt = make_phantoms(80, 8, size=64, seed=1, shortcut=shortcut)
    strangers = make_phantoms(40, 4, size=64, seed=2, shortcut=shortcut)
    # Fluid is a matter of tone on the finest grid; the mark is one of contrast.
    if shortcut:
        return train_on(learnt, 5, [(16, 3, 2), (16, 3, 1)]), strangers, True
    return train_on(learnt, 8, [(8, 1, 1), (8, 1, 1)]), strangers, False


@pytest.mark.slow
def test_maps_find_what_the_class_changed_or_reveal_the_shortcut(trained):
    model, strangers, shortcut = trained
    region = SHORTCUT if shortcut else None
    table = ground_truth(model, strangers, region=region, classes=1)
    values = table.xs("value", axis=1, level=1)
    controls = ["random", "random in brain", "centre"]
    if shortcut:
        for method in METHODS:
            pointing = values.loc[method].pointing
            assert pointing["found"] >= 0.8, method
            assert pointing[controls].max() < 0.1
    else:
        hirescam = values.loc["hirescam"]
        assert hirescam.energy["found"] >= 3 * hirescam.energy["random"]
        # A detector of fluid cannot know which of it the disease added: 2 is about the ceiling.
        assert hirescam.energy["found"] >= 1.4 * hirescam.energy["random in brain"]
        assert hirescam.energy["found"] > hirescam.energy["centre"]
        assert hirescam.iou["found"] > hirescam.iou[controls].max()
        assert values.loc["grad-cam"].energy["found"] >= 2 * values.energy["grad-cam", "random"]


@pytest.mark.slow
def test_trained_maps_are_sane_and_faithful(trained):
    model, strangers, shortcut = trained
    images, subjects = strangers.images[::3], strangers.subjects[::3]
    check = check_heatmaps(model, images, subjects=subjects, method="hirescam")
    found = check.table.found["random weights"]
    assert -0.2 < found.low and found.high < 0.2
    verdicts = check.table.verdict
    assert set(verdicts[["random weights", "deletion", "insertion"]]) == {"passes"}
    # The mark lies outside the brain, and so does what the maps of this network show.
    assert (verdicts["outside the brain"] == "fails") == shortcut
    assert check.verdict == ("fails" if shortcut else "passes")


# --- the command line ---


def test_the_command_line_prints_a_row_a_model_and_method(tmp_path, monkeypatch, capsys):
    phantoms = make_phantoms(8, 4, size=64, seed=2)
    monkeypatch.setattr(mri.__main__, "protocols", lambda: (phantoms.scans, {}, phantoms.subjects))
    keras.utils.set_random_seed(0)
    model = build_model("tissue", input_shape=(64, 64, 1))
    card = {"class_names": list(phantoms.scans.class_names), "temperature": 1.0}
    card |= {
        "data": phantoms.scans.fingerprint(),
        "split": {"protocol": "subject"},
        "test_rows": list(range(16)),
    }
    save_model(model, tmp_path / "m.keras", card)
    options = ["heatmaps", str(tmp_path / "m.keras"), "--slices", "10", "--methods", "hirescam"]
    assert main(options) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    few = np.random.default_rng(0).choice(16, 10, replace=False)
    found = check_heatmaps(
        model, phantoms.images[few], subjects=phantoms.subjects[few], method="hirescam"
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["`tissue`", "hirescam"]
    assert cells[-1] == f"**{found.verdict}**"
    value, _, verdict = cells[2].partition(" ")
    assert float(value) == pytest.approx(found.table["found"].iloc[0].value, abs=0.005)
    assert verdict == found.table["verdict"].iloc[0]
    assert len(head.split("|")) == len(row.split("|")) == len(found.table) + 5
    # On other slices nobody knows what was held out.
    save_model(model, tmp_path / "m.keras", card | {"data": "0" * 64})
    assert main(options) == 1
    assert "trained on other slices" in capsys.readouterr().err


def test_a_slice_without_brain_has_no_correlation(rng):
    maps, brain = rng.uniform(0, 1, (2, 3, 8, 8)), np.ones((3, 8, 8), bool)
    brain[1] = False
    found = rank_correlation(*maps, brain)
    assert np.isnan(found).tolist() == [False, True, False]
    masked = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(*maps, strict=True)]
    np.testing.assert_allclose(found[[0, 2]], np.array(masked)[[0, 2]])


def test_a_class_that_is_not_there_is_refused(rng):
    images = rng.uniform(0, 255, (2, 8, 8))
    with pytest.raises(ValueError, match=r"classes must be from 0 to 1\. Received: outside=.*5"):
        deletion_insertion(lambda x: np.zeros((len(x), 2)), images, images, np.array([0, 5]))
