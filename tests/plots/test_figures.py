"""What the figures say: their labels, marks, order and colours, read back from the artists."""

import copy
import sys
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mri import plots
from mri.data.parquet import CLASS_NAMES
from mri.data.phantom import make_phantoms
from mri.data.scans import read_scans
from mri.evaluation.metrics import evaluate, reliability_bins
from mri.plots.style import BLACK, GREY, _name_pictures, class_colour, readable, title_of
from mri.subjects.recovery import order_slices, recover_subjects

MILD, MODERATE, NON, VERY_MILD = range(4)
BY_SEVERITY = ["Non Demented", "Very Mild Demented", "Mild Demented", "Moderate Demented"]
LABELS = np.repeat([MILD, MODERATE, NON, VERY_MILD], [28, 8, 100, 64])


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch):
    def show(*_, **__):
        pytest.fail("a plot called show()")

    monkeypatch.setattr(plt, "show", show)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def evaluation():
    rng = np.random.default_rng(0)
    logits = 1.5 * np.eye(4)[LABELS] + rng.normal(size=(200, 4))
    subjects = np.arange(200) // 4
    return evaluate(LABELS, logits, subjects, title="tiny_cnn, test split", draws=50)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (200, 12, 10), dtype=np.uint8)


def texts(*axes):
    return [t.get_text() for ax in axes for t in ax.texts]


def ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def pictures(ax):
    return [image.get_array() for image in ax.get_images()]


def test_colours_are_distinct_and_ordered_by_severity():
    assert [readable(name) for name in plots.COLOURS] == BY_SEVERITY
    assert set(plots.COLOURS) == set(CLASS_NAMES)
    rgb = np.array([to_rgb(colour) for colour in plots.COLOURS.values()])
    gaps = np.linalg.norm(rgb[:, None] - rgb, axis=-1)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.25


def test_other_class_names_keep_their_order_and_get_distinct_colours():
    ax = plots.class_counts(np.arange(6), tuple("fabcde"))
    assert ticks(ax.yaxis) == list("fabcde")
    assert len({to_hex(bar.get_facecolor()) for bar in ax.patches}) == 6


def test_a_class_keeps_its_colour_whatever_its_label():
    for names in (CLASS_NAMES, CLASS_NAMES[::-1], ("Mild_Demented", "healthy", "Non_Demented")):
        ax = plots.class_counts(np.arange(len(names)), names)
        colours = dict(zip(ticks(ax.yaxis), ax.patches, strict=True))
        found = to_hex(colours["Mild Demented"].get_facecolor())
        assert found == plots.COLOURS["Mild_Demented"].lower()


def test_class_counts():
    ax = plots.class_counts(LABELS, CLASS_NAMES, unit="people", title="phantoms, n = 200")
    assert ticks(ax.yaxis) == BY_SEVERITY and ax.yaxis_inverted()
    assert [bar.get_width() for bar in ax.patches] == [100, 64, 28, 8]
    assert texts(ax) == ["100  (50.0%)", "64  (32.0%)", "28  (14.0%)", "8  (4.0%)"]
    assert ax.get_title(loc="left") == "phantoms, n = 200"
    assert ax.get_xlabel() == "number of people"
    wanted = [colour.lower() for colour in plots.COLOURS.values()]
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == wanted


def test_sample_grid_shows_slices_of_each_row_s_class(images):
    labels = np.r_[LABELS[LABELS != MODERATE], np.full(3, MODERATE)]
    images = images[: len(labels)] // 4 + 64 * labels[:, None, None].astype(np.uint8)
    fig = plots.sample_grid(images, labels, CLASS_NAMES, per_class=5, title="train, n = 195")
    assert fig.get_suptitle() == "train, n = 195" and len(fig.axes) == 20
    rows = np.reshape(fig.axes, (4, 5))
    heads = [row[0].get_ylabel().split("\n") for row in rows]
    assert [" ".join(head[:-1]) for head in heads] == BY_SEVERITY
    assert [head[-1] for head in heads] == ["n = 100", "n = 64", "n = 28", "n = 3"]
    for row, c in zip(rows, (NON, VERY_MILD, MILD, MODERATE), strict=True):
        shown = [pictures(ax)[0] for ax in row if pictures(ax)]
        assert len(shown) == (3 if c == MODERATE else 5)
        assert all((picture // 64 == c).all() for picture in shown)
        assert len({picture.tobytes() for picture in shown}) == len(shown)
        assert not any(len(ax.get_xticks()) or len(ax.get_yticks()) for ax in row)


def test_sample_grid_is_seeded(images):
    def first(seed):
        return pictures(plots.sample_grid(images, LABELS, CLASS_NAMES, seed=seed).axes[0])[0]

    assert (first(1) == first(1)).all() and (first(1) != first(2)).any()


HISTORY = {
    "loss": [1.2, 0.8, 0.5],
    "val_loss": [1.3, 1.0, 1.1],
    "accuracy": [0.5, 0.7, 0.8],
    "val_accuracy": [0.45, 0.6, 0.62],
    "val_balanced_accuracy": [0.3, 0.55, 0.61],
}


def test_training_curves():
    fig = plots.training_curves(HISTORY, best_epoch=2, title="tiny_cnn, fold 1 of 5")
    loss, accuracy = fig.axes
    assert fig.get_suptitle() == "tiny_cnn, fold 1 of 5"
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch" and loss.get_ylim()[0] == 0
    keys = {"training": "", "validation": "val_"}
    keys["validation, balanced over the classes"] = "val_balanced_"
    for ax, quantity, names in (
        (loss, "loss", ["training", "validation"]),
        (accuracy, "accuracy", list(keys)),
    ):
        lines = {line.get_label(): line for line in ax.lines if line.get_label() in keys}
        assert list(lines) == names and texts(ax) == ["kept: 2"]
        for name, line in lines.items():
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_array_equal(line.get_ydata(), HISTORY[keys[name] + quantity])
        assert len({line.get_color() for line in lines.values()}) == len(names)
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [2]
    (legend,) = fig.legends
    named = {
        t.get_text(): h.get_color()
        for t, h in zip(legend.texts, legend.legend_handles, strict=True)
    }
    assert named == {name: line.get_color() for name, line in lines.items()}
    without = plots.training_curves(HISTORY).axes
    assert not any(line.get_linestyle() == ":" for ax in without for line in ax.lines)


@pytest.mark.parametrize("unit", ["slice", "subject"])
def test_confusion_matrix_in_order_of_severity(evaluation, unit):
    ax = plots.confusion(evaluation, unit=unit)
    names = [name.replace("\n", " ") for name in ticks(ax.xaxis)]
    assert names == BY_SEVERITY == [name.replace("\n", " ") for name in ticks(ax.yaxis)]
    assert "true class" in ax.get_ylabel() and ax.get_xlabel() == "predicted class"
    size = {"slice": 200, "subject": 50}[unit]
    assert ax.get_title(loc="left") == f"tiny_cnn, test split\nper {unit}, n = {size}"
    labels, logits, _ = evaluation.sample(unit)
    cells = iter(ax.texts)
    for i, truth in enumerate((NON, VERY_MILD, MILD, MODERATE)):
        for j, guess in enumerate((NON, VERY_MILD, MILD, MODERATE)):
            count = np.sum((labels == truth) & (logits.argmax(1) == guess))
            share = count / np.sum(labels == truth)
            cell = next(cells)
            assert cell.get_text() == f"{count}\n{share:.0%}" and cell.get_position() == (j, i)
            assert pictures(ax)[0][i, j] == pytest.approx(share)
            # Black on the light end and white on the dark end of the map: contrast of 4.5 at least.
            rgb = np.array(ax.get_images()[0].cmap(share)[:3])
            linear = np.where(rgb < 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            light = linear @ (0.2126, 0.7152, 0.0722)
            ratio = 1.05 / (light + 0.05) if cell.get_color() == "white" else (light + 0.05) / 0.05
            assert ratio > 4.5


def test_confusion_of_an_absent_class_says_so():
    logits = np.random.default_rng(0).normal(size=(9, 4))
    ax = plots.confusion(evaluate(np.full(9, NON), logits, draws=2))
    assert texts(ax)[4:] == ["–"] * 12 and "–" not in texts(ax)[:4]
    assert ax.get_xlabel().endswith("–: no slices of the true class")


def test_roc_curves(evaluation):
    ax = plots.roc(evaluation, unit="subject")
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.split("\n")[0] for text in legend] == BY_SEVERITY
    auc = evaluation.metrics["subject"]["auc_Mild_Demented"]
    assert legend[2] == f"Mild Demented\n{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]"
    curves = [line for line in ax.lines if line.get_label() in legend]
    assert [line.get_color() for line in curves] == list(plots.COLOURS.values())
    for line, name in zip(curves, plots.COLOURS, strict=True):
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(evaluation.metrics["subject"][f"auc_{name}"].value)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("false positive rate", "true positive rate")
    assert ax.get_title(loc="left").endswith("per subject, n = 50")


def test_roc_without_a_curve_has_no_legend():
    found = evaluate(np.full(9, NON), np.random.default_rng(0).normal(size=(9, 4)), draws=2)
    ax = plots.roc(found)
    assert ax.get_legend() is None and len(ax.lines) == 1
    assert ax.get_title(loc="left") == "per slice, n = 9"


def test_reliability(evaluation):
    ax = plots.reliability(evaluation)
    bins = reliability_bins(*evaluation.samples["slice"][:2]).dropna()
    points = ax.collections[1]
    np.testing.assert_allclose(points.get_offsets(), bins[["confidence", "accuracy"]])
    assert np.argmax(points.get_sizes()) == np.argmax(bins["count"])
    gaps = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(gaps[:, 0], bins[["confidence", "confidence"]])
    np.testing.assert_allclose(gaps[:, 1], bins[["confidence", "accuracy"]])
    ece = evaluation.metrics["slice"]["ece"]
    said = f"\ncalibration error (ECE) {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}]\n"
    assert said in ax.get_xlabel() and not texts(ax)
    assert ax.get_xlabel().endswith(f"slices in its bin, at most {bins['count'].max():.0f}")
    assert "confidence" in ax.get_xlabel() and ax.get_ylabel() == "accuracy"


def test_metric_intervals_names_values_and_units(evaluation):
    labels, logits, _ = evaluation.samples["slice"]
    slices = evaluate(labels, logits, draws=50)
    ax = plots.metric_intervals(
        {"subject-wise": evaluation, "unknown subjects": slices},
        metric="macro_f1",
        title="phantoms",
    )
    assert ticks(ax.yaxis) == ["subject-wise", "unknown subjects"] and ax.yaxis_inverted()
    assert ax.get_xlabel() == "Macro-F1, 95% interval" and ax.get_title(loc="left") == "phantoms"
    expected = {
        f"{e.metrics[u]['macro_f1'].value:.3f} [{e.metrics[u]['macro_f1'].low:.3f}, "
        f"{e.metrics[u]['macro_f1'].high:.3f}] per {u}"
        for e, u in ((evaluation, "slice"), (evaluation, "subject"), (slices, "slice"))
    }
    assert set(texts(ax)) == expected and len(ax.texts) == 3
    spans = sorted(tuple(s[:, 0]) for c in ax.collections for s in c.get_segments())
    assert spans == sorted(
        tuple(e.metrics[u]["macro_f1"][1:])
        for e, u in ((evaluation, "slice"), (evaluation, "subject"), (slices, "slice"))
    )
    rows = sorted(line.get_ydata()[0] for line in ax.lines)
    assert np.rint(rows).tolist() == [0, 0, 1]
    assert {t.get_color() for t in ax.texts if "per slice" in t.get_text()} == {GREY}
    assert {t.get_color() for t in ax.texts if "per subject" in t.get_text()} == {BLACK}


def test_metric_intervals_of_a_figure_that_does_not_exist():
    found = evaluate(np.full(9, NON), np.random.default_rng(0).normal(size=(9, 4)), draws=2)
    assert texts(plots.metric_intervals({"x": found}, metric="macro_auc")) == ["– per slice"]


def test_overlay_is_the_slice_where_the_map_is_zero_and_mixed_by_strength():
    image = np.array([[10, 200], [77, 255]], dtype=np.uint8)
    heat = np.array([[0, 1.0], [0.5, 0]])
    mixed = plots.overlay(image, heat, alpha=0.6, cmap="viridis")
    assert mixed.shape == (2, 2, 3) and mixed.dtype == np.uint8
    assert mixed[0, 0].tolist() == [10] * 3 and mixed[1, 1].tolist() == [255] * 3
    for (i, j), opacity in (((0, 1), 0.6), ((1, 0), 0.3)):
        colour = 255 * np.array(mpl.colormaps["viridis"](heat[i, j])[:3])
        expected = (1 - opacity) * image[i, j] + opacity * colour
        np.testing.assert_allclose(mixed[i, j], expected, atol=0.5)


def test_overlay_of_unlike_shapes_is_an_error():
    message = r"same shape.*image=\(4, 4\), heatmap=\(2, 2\)"
    with pytest.raises(ValueError, match=message):
        plots.overlay(np.zeros((4, 4), np.uint8), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"Received: image=\(4, 4, 1\)"):
        plots.overlay(np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1)))


def explained(rng):
    maps = rng.random((3, 12, 10))
    maps[2] = 0
    classes, zero = np.array([NON, MODERATE, MILD]), np.array([False, False, True])
    shares = np.array([[0.1, 0.1, 0.7, 0.1], [0.55, 0.25, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]])
    return SimpleNamespace(maps=maps, classes=classes, zero=zero), shares


def test_heatmap_grid(rng, images):
    explanation, shares = explained(rng)
    labels = np.array([NON, MILD, NON])
    fig = plots.heatmap_grid(
        images[:3],
        explanation,
        labels,
        shares,
        CLASS_NAMES,
        opacity=0.3,
        notes=("seen",),
        title="Grad-CAM",
    )
    assert fig.get_suptitle() == "Grad-CAM" and len(fig.axes) == 10
    rows, bar = np.reshape(fig.axes[:9], (3, 3)), fig.axes[9]
    assert [ax.get_title() for ax in rows[0]][:2] == ["slice", "heatmap over it"]
    assert bar.get_xlabel().startswith("evidence") and bar.get_xlim() == (0, 1)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(pictures(row[0])[0], images[i])
        assert row[0].get_images()[0].get_clim() == (0, 255)
        assert row[0].get_images()[0].get_interpolation() == "nearest"
        mixed = plots.overlay(images[i], explanation.maps[i], alpha=0.3)
        np.testing.assert_array_equal(pictures(row[1])[0], mixed)
        assert texts(row[0]) == ["back", "front"]
        assert texts(row[1]) == (["no evidence"] if i == 2 else []) + ["seen"]
        by_severity = shares[i][[NON, VERY_MILD, MILD, MODERATE]]
        np.testing.assert_allclose([bar.get_width() for bar in row[2].patches], by_severity)
    assert [ax.get_title(loc="left") for ax in rows[:, 2]] == [
        "true: Non Demented\n✓ correct",
        "true: Mild Demented\n✓ correct",
        "true: Non Demented\n✗ wrong",
    ]
    assert texts(rows[1, 2]) == [
        "Non Demented: 10%",
        "Very Mild Demented: 10%",
        "Mild Demented: 55%",
        "Moderate Demented: 25%  (explained)",
    ]
    bold = [t.get_text() for ax in rows[:, 2] for t in ax.texts if t.get_fontweight() == "bold"]
    assert bold == ["Non Demented: 70%", "Mild Demented: 55%", "Mild Demented: 40%"]


def test_a_panel_of_a_heatmap_is_300_pixels_wide(rng):
    explanation, shares = explained(rng)
    slices = rng.integers(0, 256, (3, 128, 128), dtype=np.uint8)
    explanation.maps = rng.random((3, 128, 128))
    fig = plots.heatmap_grid(slices, explanation, None, shares, CLASS_NAMES, title="t")
    fig.canvas.draw()
    assert min(ax.get_window_extent().width for ax in fig.axes[:2]) >= 300


def test_a_figure_is_named_by_its_titles(evaluation):
    fig = plots.side_by_side(plots.confusion, {"one": evaluation, "two": evaluation}, title="both")
    assert title_of(fig) == "both; one; two"
    assert title_of(plots.class_counts(LABELS, CLASS_NAMES, title="a\nb").figure) == "a b"


@pytest.mark.parametrize("drawn", [b"png", None])
def test_a_notebook_keeps_the_titles_as_alternative_text(drawn, monkeypatch):
    from IPython.core.formatters import PNGFormatter

    formatter = PNGFormatter()
    formatter.for_type(Figure, lambda figure: drawn)
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"image/png": formatter}))
    notebook = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    _name_pictures()
    figure = plots.class_counts(LABELS, CLASS_NAMES, title="who is there").figure
    assert formatter(figure) == (drawn and (drawn, {"alt": "who is there"}))


def test_similarity_histogram(rng):
    same, different = rng.uniform(0.95, 1, 300), rng.uniform(0.8, 0.96, 250)
    same[0] = 1 + 1e-6  # float32 correlations of equal slices
    ax = plots.similarity_histogram(same, different, 0.955, title="train and test")
    _, names = ax.get_legend_handles_labels()
    bars = ax.containers
    assert [name.split(" (")[0] for name in names] == [
        "pairs from two subjects",
        "pairs within one subject",
    ]
    assert "(n = 250)" in names[0] and "(n = 300)" in names[1]
    assert [sum(bar.get_height() for bar in group) for group in bars] == [250, 300]
    assert len({group[0].get_facecolor() for group in bars}) == 2
    assert ax.lines[0].get_xdata() == [0.955, 0.955] and texts(ax) == ["threshold 0.955"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("correlation", "number of correlations")
    assert ax.get_title(loc="left") == "train and test"


def test_separation_has_a_dot_for_each_person(rng):
    scores, ill = rng.normal(size=30), np.arange(30) % 3 == 0
    fig = plots.separation({"guess": (scores, ill), "all": (-scores, ill)}, title="t")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["guess", "all"]
    for ax, sign in zip(fig.axes, (1, -1), strict=True):
        drawn = {round(np.mean(line.get_ydata())): sorted(line.get_xdata()) for line in ax.lines}
        assert drawn == {0: sorted(sign * scores[~ill]), 1: sorted(sign * scores[ill])}
    assert ticks(fig.axes[0].yaxis) == ["non-demented", "demented"]


def test_within_a_person_the_mean_is_that_of_the_slices(rng):
    scores = {"3: Mild_Demented": rng.normal(size=12), "8: Non_Demented": rng.normal(size=9)}
    ax = plots.within_person(scores, title="t")
    for name, line, mean in zip(scores, ax.lines[::2], ax.lines[1::2], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), scores[name])
        assert mean.get_ydata()[0] == pytest.approx(np.mean(scores[name]))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["person 3: Mild Demented", "person 8: Non Demented"]


def test_the_bootstrap_shows_every_draw_and_its_interval(rng):
    draws = {"40 people": rng.normal(0.5, 0.08, 999), "1280 slices": rng.normal(0.5, 0.01, 999)}
    ax = plots.bootstrap(draws, 0.51, title="t")
    assert [sum(bar.get_height() for bar in group) for group in ax.containers] == [999, 999]
    ends = [line.get_xdata()[0] for line in ax.lines]
    expected = [np.percentile(of, q) for of in draws.values() for q in (2.5, 97.5)]
    np.testing.assert_allclose(ends, [*expected, 0.51])
    low, high = expected[:2]
    assert f"drawing 40 people: [{low:.3f}, {high:.3f}]" in [
        text.get_text() for text in ax.get_legend().get_texts()
    ]


def calls(evaluation, images, rng, ax=None):
    explanation, shares = explained(rng)
    one = {"ax": ax}
    correlations = (rng.random(50), rng.random(50), 0.9)
    return {
        plots.class_counts: ((LABELS, CLASS_NAMES), one),
        plots.sample_grid: ((images, LABELS, CLASS_NAMES), {}),
        plots.anatomy: ((images[0],), {}),
        plots.training_curves: ((HISTORY,), {"best_epoch": 1}),
        plots.confusion: ((evaluation,), one),
        plots.roc: ((evaluation,), one),
        plots.reliability: ((evaluation,), one),
        plots.metric_intervals: (({"x": evaluation},), one),
        plots.heatmap_grid: ((images[:3], explanation, LABELS[:3], shares, CLASS_NAMES), {}),
        plots.similarity_histogram: (correlations, one),
        plots.separation: (({"x": (rng.random(9), np.arange(9) > 4)},), {}),
        plots.within_person: (({"1: Mild": rng.random(9)},), one),
        plots.bootstrap: (({"9 people": rng.random(99)}, 0.5), one),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "__dict__"):
        return same(vars(a), vars(b))
    return np.array_equal(a, b, equal_nan=isinstance(a, np.ndarray) and a.dtype.kind == "f")


def is_of(thing, modules):
    return getattr(thing, "__module__", None) in modules


def test_every_plot_leaves_its_input_and_the_settings_alone(evaluation, images, rng):
    cases = calls(evaluation, images, rng)
    homes = ("mri.plots.figures", "mri.plots.maps")
    drawn = {f for f in (getattr(plots, n) for n in plots.__all__) if is_of(f, homes)}
    others = {plots.overlay, plots.overlay_scale, plots.overlay_columns}
    assert drawn == {*cases, *others}, "test_maps.py has those of maps that belong together"
    settings = dict(mpl.rcParams)
    for plot, (arguments, options) in cases.items():
        before = copy.deepcopy(arguments)
        plot(*arguments, **options).get_figure().canvas.draw()
        assert same(arguments, before), plot.__name__
    assert dict(mpl.rcParams) == settings


def test_every_plot_is_black_on_white_in_a_dark_notebook(evaluation, images, rng):
    with plt.style.context("dark_background"):
        for plot, (arguments, options) in calls(evaluation, images, rng).items():
            fig = plot(*arguments, **options).get_figure()
            assert (
                to_hex(fig.get_facecolor()) == "#ffffff" and fig.dpi == plots.STYLE["figure.dpi"]
            ), plot.__name__
            for ax in fig.axes:
                assert to_hex(ax.get_facecolor()) == "#ffffff"
                assert to_hex(ax.xaxis.label.get_color()) == "#000000"
                assert all(to_hex(t.get_color()) == "#333333" for t in ax.get_xticklabels())


def test_a_panel_is_drawn_where_it_is_asked_for(evaluation, images, rng):
    _, (left, right) = plt.subplots(1, 2)
    for plot, (arguments, options) in calls(evaluation, images, rng, ax=right).items():
        if "ax" in options:
            right.clear()
            assert plot(*arguments, **options) is right, plot.__name__
            assert not left.has_data()
    grids = calls(evaluation, images, rng)
    panels = {plot for plot, (_, options) in grids.items() if "ax" in options}
    for plot in grids.keys() - panels:
        arguments, options = grids[plot]
        assert isinstance(plot(*arguments, **options), mpl.figure.Figure), plot.__name__


def pointed_at(image):
    """Mean gray value of the 3 × 3 pixels that each name of `anatomy` points at."""
    (ax,) = (fig := plots.anatomy(image)).axes
    plt.close(fig)
    names = [text for text in ax.texts if hasattr(text, "xy")]
    at = {text.get_text(): np.round(text.xy).astype(int) for text in names}
    return {name: image[y - 1 : y + 2, x - 1 : x + 2].mean() for name, (x, y) in at.items()}


def middle_of_each_head(images, subjects):
    for subject in np.unique(subjects)[:30]:
        own = images[subjects == subject]
        yield own[order_slices(own)[len(own) // 2]]


def check_anatomy(images, subjects):
    rows = [pointed_at(image) for image in middle_of_each_head(images, subjects)]
    gray = {name.split(":")[0]: np.median([row[name] for row in rows]) for name in rows[0]}
    front, back = (of for name, of in gray.items() if name.startswith("lateral ventricle"))
    assert max(front, back) < 0.5 * gray["thalamus"] < 0.5 * gray["corpus callosum"]
    assert gray["fissure between the hemispheres"] < gray["thalamus"]


@pytest.mark.slow
def test_names_of_the_anatomy_point_at_what_they_name():
    phantoms = make_phantoms(30, slices=9)
    check_anatomy(phantoms.images, phantoms.subjects)


@pytest.mark.real_data
def test_names_of_the_anatomy_point_at_what_they_name_in_real_slices(real_data):
    scans = read_scans(real_data, split="train") + read_scans(real_data, split="test")
    check_anatomy(scans.images, recover_subjects(scans.images).groups)


@pytest.mark.real_data
def test_real_slices_fill_their_panels(real_data):
    scans = read_scans(real_data, split="test")
    fig = plots.sample_grid(scans.images, scans.labels, scans.class_names, per_class=3)
    assert all(pictures(ax)[0].shape == (128, 128) for ax in fig.axes)


def test_a_label_without_a_name_is_not_left_out():
    with pytest.raises(ValueError, match=r"labels must be from 0 to 3\. Received: outside=.*4"):
        plots.class_counts(np.array([0, 0, 0, 4]), CLASS_NAMES)


def test_labels_may_be_a_list():
    figure = plots.sample_grid(np.zeros((8, 4, 4), np.uint8), [0, 1, 2, 3] * 2, CLASS_NAMES)
    assert all("n = 2" in ax.get_ylabel() for ax in figure.axes if ax.get_ylabel())


def test_no_two_classes_have_one_colour():
    for names in (
        ("Healthy", "Non_Demented"),
        ("Mild_Demented", "Moderate_Demented", "Healthy"),
        ("a", "b", "c", "d", "e", "f", "g", "h"),
    ):
        colours = {class_colour(names, label) for label in range(len(names))}
        assert len(colours) == len(names)


def test_as_many_are_drawn_as_are_given(rng):
    draws = {f"way {i}": rng.normal(size=50) for i in range(5)}
    labels = [text.get_text() for text in plots.bootstrap(draws, 0).get_legend().get_texts()]
    assert sum(of.startswith("drawing way") for of in labels) == 5
    people = {str(i): rng.normal(size=4) for i in range(40)}
    assert len(plots.within_person(people).get_legend().get_texts()) == 40


def test_a_retina_picture_keeps_its_size_and_gets_its_title(monkeypatch):
    formatters = pytest.importorskip("IPython.core.formatters")
    formatter = formatters.PNGFormatter()
    formatter.for_type(Figure, lambda figure: (b"png", {"width": 10, "height": 20}))
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"image/png": formatter}))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    _name_pictures()
    figure = plt.figure()
    figure.suptitle("Said")
    assert formatter(figure) == (b"png", {"width": 10, "height": 20, "alt": "Said"})
