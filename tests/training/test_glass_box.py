"""The glass box: each step against another implementation, and an explanation that adds up."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mri.data.phantom import Phantoms, make_phantoms
from mri.data.tone_map import blur_taps, tone_map
from mri.evaluation.comparison import compare
from mri.evaluation.persons import PersonModel
from mri.gradcam.cam import METHODS, GradCAM
from mri.models.files import ModelFile, ModelFileError, load_model, read_card
from mri.models.glass_box import glass_box
from mri.plots.glass_box import glass_box_pictures, plot_person, plot_weights, slab_means
from mri.subjects.recovery import recover_subjects
from mri.subjects.splits import subject_split
from mri.training.glass_box import (
    GlassBox,
    bootstrap_weights,
    fit_glass_box,
    ridge_weights,
    save_glass_box,
    train_people,
)
from mri.training.ordinal import severity_of

NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    # Black around the head, as there: a blur is the same whatever it takes the outside for.
    found = np.random.default_rng(0).uniform(0, 255, (16, 32, 64, 64)).astype(np.float32)
    found[..., :2, :] = found[..., -2:, :] = found[..., :2] = found[..., -2:] = 0
    return found


@pytest.fixture(scope="module")
def maps(images: np.ndarray) -> np.ndarray:
    return np.stack([tone_map(person) for person in images])


@pytest.fixture(scope="module")
def box(maps: np.ndarray) -> GlassBox:
    # Severities that a linear layer can know, so that the cuts rise.
    pattern = np.random.default_rng(1).normal(size=maps.shape[1:])
    order = np.argsort((maps * pattern).sum((1, 2, 3)))
    labels = np.empty(16, int)
    labels[order] = np.repeat([2, 3, 0, 1], [6, 5, 4, 1])
    return fit_glass_box(maps, labels, NAMES)


@pytest.fixture(scope="module")
def channels(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, 1, -1)


def test_tone_map_against_scipy(images, maps):
    tone = np.exp(-(((images[0].astype(float) - 110) / 30) ** 2))
    slabs = tone.reshape(8, 4, 64, 64).mean(1)
    blurred = np.stack([gaussian_filter(x, 4, mode="constant", truncate=4) for x in slabs])
    np.testing.assert_allclose(maps[0], blurred[:, ::4, ::4], atol=1e-6)
    assert blur_taps().sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "wrong", [np.zeros((31, 8, 8)), np.zeros((32, 8)), np.full((32, 8, 8), "")]
)
def test_tone_map_wants_a_person(wrong):
    with pytest.raises(ValueError, match=r"images must be numbers \(32, h, w\)"):
        tone_map(wrong)
    with pytest.raises(ValueError, match="Pixels must be finite"):
        tone_map(np.full((32, 8, 8), np.nan))


def test_ridge_against_its_closed_form(rng):
    maps, severity = rng.normal(size=(12, 2, 3, 2)), rng.normal(size=12)
    weights, centre, intercept = ridge_weights(maps, severity, penalty=0.7)
    x = maps.reshape(12, -1) - maps.reshape(12, -1).mean(0)
    penalty = 0.7 * np.square(x).sum() / 12
    primal = np.linalg.solve(x.T @ x + penalty * np.eye(12), x.T @ (severity - severity.mean()))
    np.testing.assert_allclose(weights.ravel(), primal)
    np.testing.assert_allclose(centre, maps.mean(0))
    assert intercept == pytest.approx(severity.mean())


def test_bootstrap_is_of_ridges_on_drawn_people(rng):
    severity = np.repeat([0, 1, 2], 10)
    maps = 0.3 * rng.normal(size=(30, 8, 2, 2))
    maps[:, 3, 1, 0] += severity
    weights, low, high = bootstrap_weights(maps, severity, draws=60, seed=4)
    draw = np.random.default_rng(4)
    drawn = []
    for _ in range(60):
        rows = np.concatenate([draw.choice(np.flatnonzero(severity == k), 10) for k in range(3)])
        drawn.append(ridge_weights(maps[rows], severity[rows])[0])
    np.testing.assert_allclose(low, np.quantile(drawn, 0.025, axis=0), atol=1e-6)
    np.testing.assert_allclose(high, np.quantile(drawn, 0.975, axis=0), atol=1e-6)
    assert low[3, 1, 0] > 0
    assert weights.argmax() == np.ravel_multi_index((3, 1, 0), weights.shape)


def test_cuts_come_from_scores_out_of_fold(maps, box):
    """Scores of the people fitted lie further apart than those they get from others."""
    scores = box.scores(maps)
    labels = np.empty(16, int)
    labels[np.argsort(scores)] = np.repeat([2, 3, 0, 1], [6, 5, 4, 1])
    again = fit_glass_box(maps, labels, NAMES)
    means = [again.scores(maps)[severity_of(labels, NAMES) == k].mean() for k in range(3)]
    inside = (means[0] + means[1]) / 2, (means[1] + means[2]) / 2
    assert np.diff(again.ordinal.cuts) < np.diff(inside)


def test_keras_model_is_the_same_as_numpy(box, maps, channels):
    model = box.model()
    np.testing.assert_allclose(
        model.predict(channels, verbose=0), box.logits(maps), rtol=1e-4, atol=1e-4
    )
    assert not model.trainable_weights
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}


def test_file_loads_without_custom_objects(box, channels, tmp_path):
    model = box.model()
    model.save(tmp_path / "glass.keras")
    loaded = load_model(tmp_path / "glass.keras")
    expected = model.predict(channels[:2], verbose=0)
    np.testing.assert_array_equal(loaded.predict(channels[:2], verbose=0), expected)


def test_hirescam_before_its_relu_sums_to_the_logit_less_its_bias(box, maps, channels, monkeypatch):
    slopes, offsets = box.ordinal.slopes, box.ordinal.offsets
    whole = {}

    def keep(a, g):
        whole["parts"] = a * g
        return -g

    model = box.model()
    plus = GradCAM(model, method="hirescam")
    monkeypatch.setitem(METHODS, "hirescam", keep)
    minus = GradCAM(model, method="hirescam")
    assert plus.layer.name == "last_conv"
    for label in range(4):
        up, down = plus(channels, classes=label), minus(channels, classes=label)
        found = (up.raw - down.raw).astype(float)
        expected = slopes[label] * box.contributions(maps).sum(1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        bias = slopes[label] * box.intercept + offsets[label]
        np.testing.assert_allclose(found.sum((1, 2)), up.logits[:, label] - bias, atol=1e-4)


def test_every_class_is_explained(box):
    assert (box.ordinal.slopes != 0).all()
    assert np.sign(box.ordinal.slopes).tolist() == [1, 1, -1, 1]


def test_contributions_sum_to_the_score(box, maps):
    total = box.intercept + box.contributions(maps).reshape(16, -1).sum(1)
    np.testing.assert_allclose(total, box.scores(maps), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.zeros((16, 8, 4))}, "maps must be finite"),
        ({"maps": np.full((16, 8, 4, 4), np.nan)}, "maps must be finite"),
        ({"maps": np.zeros((16, 8, 4, 4))}, "maps must differ"),
        ({"labels": np.zeros(16, int)}, "Each severity must have two people"),
        ({"labels": np.zeros(16)}, "labels must be 16 integers"),
        ({"class_names": ("ill", "well")}, "class_names must be"),
        ({"penalty": 0.0}, "penalty must be positive"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rng, change, message):
    given = {"maps": rng.random((16, 8, 4, 4)), "labels": np.arange(16) % 4, "class_names": NAMES}
    with pytest.raises(ValueError, match=message):
        fit_glass_box(**(given | change))


@pytest.mark.parametrize("shape", [(7, 4, 4), (8, 3, 4), (8, 16)])
def test_what_cannot_be_built_is_refused(shape):
    four = np.ones(4)
    with pytest.raises(ValueError, match=r"weights and centre must be \(8, r, c\)"):
        glass_box(np.zeros((8, 4, 4)), np.zeros(shape), 0.0, slopes=four, offsets=four)


@pytest.fixture(scope="module")
def phantoms() -> Phantoms:
    return make_phantoms(20, 32, size=64, seed=5)


@pytest.fixture(scope="module")
def saved(phantoms, tmp_path_factory):
    split = subject_split(phantoms.labels, phantoms.subjects, folds=2)
    fitted = train_people(phantoms.scans, phantoms.subjects, split=split)
    path = tmp_path_factory.mktemp("glass") / "glass-subject.keras"
    save_glass_box(path, fitted, scans=phantoms.scans, split=split)
    return path, fitted, split


def test_nobody_tested_is_looked_at(phantoms, saved):
    _, fitted, split = saved
    people = np.setdiff1d(phantoms.subjects, phantoms.subjects[split.test])
    assert len(fitted.maps) == len(fitted.labels) == len(people)
    spoilt = phantoms.images.copy()
    spoilt[split.test] = 0  # Would be refused as constant.
    scans = Phantoms(spoilt, phantoms.labels, phantoms.subjects, phantoms.z, phantoms.masks).scans
    again = train_people(scans, phantoms.subjects, split=split).maps
    np.testing.assert_array_equal(again, fitted.maps)


def test_phantoms_do_not_replace_real_people(phantoms, saved, tmp_path):
    (tmp_path / "box.json").write_text('{"synthetic": false}')
    with pytest.raises(ValueError, match="not overwritten by one of phantoms"):
        save_glass_box(tmp_path / "box.keras", saved[1], scans=phantoms.scans)


def test_a_person_is_asked_about(phantoms, saved):
    path, fitted, split = saved
    box, card = fitted.box, read_card(path)
    assert card["input"] == "person"
    assert card["test_rows"] == split.test.tolist()
    model = PersonModel(ModelFile(path))
    who = phantoms.subjects[split.test[0]]
    slices = phantoms.images[phantoms.subjects == who]
    answer = model.ask(slices)
    assert answer.warnings == ()
    total = answer.intercept + float(answer.contributions.astype(float).sum())
    assert answer.severity == pytest.approx(total, abs=1e-5)
    expected = box.logits(tone_map(answer.person.images)[None])[0]
    np.testing.assert_allclose(answer.logits, expected, atol=1e-3)
    one = model.ask(slices[:1])
    assert len(one.warnings) == 2
    assert abs(one.severity - box.intercept) < abs(answer.severity - box.intercept) + 0.2


@pytest.mark.slow
def test_it_is_compared_by_people_and_verified(phantoms, saved):
    path, _, split = saved
    found = compare(phantoms.scans, phantoms.subjects, path.parent)
    row = found.table.set_index("model").loc["glass-subject"]
    assert (row["protocol"], len(found.table)) == ("subject", 1), "the template is no model"
    assert "whole people" in row["note"]
    assert found.claims["glass-subject"] == "verified"
    logits = found.evaluations["glass-subject"].sample("slice").logits
    model = PersonModel(ModelFile(path))
    for who in np.unique(phantoms.subjects[split.test])[:3]:
        expected = model.ask(phantoms.images[phantoms.subjects == who]).logits
        rows = phantoms.subjects[split.test] == who
        np.testing.assert_allclose(logits[rows], np.tile(expected, (rows.sum(), 1)), atol=1e-4)
    again = compare(phantoms.scans, phantoms.subjects, path.parent)
    assert (again.evaluated, again.claims["glass-subject"]) == ((), "verified")


def test_the_explorer_shows_the_person(closed, phantoms, saved):
    from mri.plots.explorer import Explorer
    from mri.training.loop import Trained

    path = saved[0]
    run = Trained(load_model(path), read_card(path), path)
    explorer = Explorer({"box": run}, phantoms.scans, phantoms.subjects, saved[2].test)
    figure = explorer.draw(next(iter(explorer.people)), 3)
    assert "all slices" in figure.get_suptitle()


def test_a_missing_or_other_template_is_refused(saved, tmp_path):
    path = saved[0]
    for name in (path.name, "glass-subject.json"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    with pytest.raises(ModelFileError, match=r"its template glass-subject\.npz is missing or"):
        PersonModel(ModelFile(tmp_path / path.name))
    (tmp_path / "glass-subject.json").unlink()
    with pytest.raises(ModelFileError, match="does not say that it takes a person"):
        PersonModel(ModelFile(tmp_path / path.name))


def test_a_person_model_that_is_no_glass_box_is_not_explained(images, saved, tmp_path):
    from mri._keras import keras
    from mri.models.files import save_model

    path = saved[0]
    inputs = keras.Input((64, 64, 32))
    logits = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(inputs))
    card = read_card(path)
    save_model(keras.Model(inputs, logits), tmp_path / "mine.keras", card)
    (tmp_path / "mine.npz").write_bytes(path.with_suffix(".npz").read_bytes())
    with pytest.raises(ModelFileError, match="only a glass box may"):
        PersonModel(ModelFile(tmp_path / "mine.keras")).ask(images[0])


def test_weights_are_drawn_slab_by_slab(closed, rng):
    weights = rng.normal(size=(8, 16, 16))
    brain = np.full((32, 64, 64), 100, np.uint8)
    figure = plot_weights(weights, weights - 0.5, weights + 0.5, brain, people=12)
    titles = [ax.get_title() for ax in figure.axes[:8]]
    assert titles[0] == "slices 1 to 4, the lowest"
    assert titles[7] == "slices 29 to 32, the highest"
    assert "12 people" in figure.get_suptitle()
    assert "blue" in figure.axes[8].get_xlabel()


def test_a_person_is_drawn_with_what_adds_up_beside_another_model(closed, phantoms, saved, rng):
    model = PersonModel(ModelFile(saved[0]))
    answer = model.ask(phantoms.images[phantoms.subjects == 3])
    figure = plot_person(answer, title="Somebody")
    said = f"this head {answer.contributions.sum():+.2f}, severity {answer.severity:.2f}"
    assert said in figure.get_suptitle()
    other = rng.uniform(0, 1, (32, 64, 64))
    figure = plot_person(answer, title="Somebody", beside=("A network", other * 255, other))
    assert [of.get_suptitle() for of in figure.subfigs][1] == "A network"
    assert [len(of.axes) for of in figure.subfigs] == [9, 9]


@pytest.mark.slow
def test_both_pictures_are_written(closed, phantoms, saved, tmp_path):
    found = glass_box_pictures(saved[0], phantoms.scans, phantoms.subjects, tmp_path)
    assert [path.name for path in found] == ["glass_box.png", "glass_box_person.png"]
    assert all(path.stat().st_size > 10_000 for path in found)
    assert not plt.get_fignums()


def test_maps_of_another_size_are_not_drawn(closed):
    with pytest.raises(ValueError, match="a map of a quarter of its size"):
        plot_weights(*[np.zeros((8, 9, 9))] * 3, np.zeros((32, 64, 64)), people=2)
    with pytest.raises(ValueError, match=r"images must be \(32, h, w\)"):
        slab_means(np.zeros((31, 8, 8)))
    assert not plt.get_fignums()


@pytest.mark.real_data
def test_contributions_sum_to_the_severity_of_all_200_people(real_data, tmp_path):
    from mri.data.scans import read_scans

    scans = read_scans(real_data)
    groups = recover_subjects(scans.images, scans.labels).groups
    fitted = train_people(scans, groups)
    box, maps = fitted.box, fitted.maps
    assert len(maps) == 200
    float32 = box.contributions(maps).astype(np.float32)
    total = box.intercept + float32.reshape(200, -1).sum(1)
    np.testing.assert_allclose(total, box.scores(maps), atol=1e-5)
    save_glass_box(tmp_path / "all.keras", fitted, scans=scans)
    answer = PersonModel(ModelFile(tmp_path / "all.keras")).ask(scans.images[groups == 7])
    assert answer.severity == pytest.approx(box.scores(maps[7:8])[0], abs=1e-4)
    assert answer.warnings == ()
    whole = answer.contributions.astype(float).sum() + answer.intercept
    assert whole == pytest.approx(answer.severity, abs=1e-5)
