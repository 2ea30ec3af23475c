"""The sweep: every slice judged by strangers, nothing computed twice, wherever it runs."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from mri.__main__ import main
from mri._keras import keras
from mri.data.decode import DataError
from mri.data.phantom import write_phantom
from mri.data.scans import Scans
from mri.models.builders import _BUILDERS, register
from mri.models.files import load_model, read_card
from mri.models.scores import predict_logits
from mri.subjects.probes import linear_probe, shuffle_diagnoses
from mri.subjects.splits import subject_split
from mri.training.crossval import read_crossval
from mri.training.folds import cross_validate
from mri.training.folds import sweep as add_to
from mri.training.people import cross_validate_probes
from mri.training.recipe import Recipe

# Keras' saving and loading.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # A sweep end to end, resumed, is in test_crossval.py.
    pytest.mark.slow,
]

layers = keras.layers
SIZE, SUBJECTS, SLICES, FOLDS = 12, 24, 3, 3
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-2, dtype="float32")
LOGITS = [f"logit_{name}" for name in NAMES]


def flat(x, classes):
    return layers.Dense(classes)(layers.Flatten()(x))


def wide(x, classes):
    return layers.Dense(classes)(layers.Dense(8, activation="relu")(layers.Flatten()(x)))


@pytest.fixture(scope="module", autouse=True)
def registry():
    kept = dict(_BUILDERS)
    for builder in (flat, wide):
        register(builder)
    yield
    _BUILDERS.clear()
    _BUILDERS.update(kept)


@pytest.fixture(scope="module")
def case(striped_scans):
    """Scans and the subject of each slice; numbers of subjects are not their ranks."""
    rng = np.random.default_rng(0)
    subjects = rng.permutation(np.repeat(np.arange(SUBJECTS), SLICES))
    return striped_scans(subjects, SIZE, NAMES, rng), 100 + 7 * subjects


@pytest.fixture
def fits(monkeypatch):
    """A list with one entry a training run during the test; an entry 'strike' ends the next."""
    seen, original = [], keras.Model.fit

    def fit(self, *arguments, **options):
        if len(seen) == fit.strike_at:
            raise KeyboardInterrupt
        seen.append(self.name)
        return original(self, *arguments, **options)

    fit.strike_at = None
    monkeypatch.setattr(keras.Model, "fit", fit)
    return seen, fit


def sweep(case, folder, builders=("flat", "wide"), **options):
    options = {"recipe": RECIPE, "folds": FOLDS, "seeds": (0, 1)} | options
    return cross_validate(builders, *case, folder=folder, **options)


@pytest.fixture(scope="module")
def done(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(case, folder)


def test_every_slice_is_tested_once_a_model_and_seed(done, case):
    scans, groups = case
    test = done[1].frame.query("part == 'test'")
    assert done[1].models == ["flat", "wide"]
    for _, cell in test.groupby(["model", "seed"]):
        assert sorted(cell["row"]) == list(range(len(scans)))
        np.testing.assert_array_equal(cell["label"], scans.labels[cell["row"]])
        np.testing.assert_array_equal(cell["subject"], groups[cell["row"]])
    assert len(test.groupby(["model", "seed"])) == 4


def test_another_division_has_other_folds_of_the_same_people(done, case, tmp_path):
    first = done[1].frame
    other = sweep(case, tmp_path, "flat", seeds=(0,), division=1).frame
    assert set(first["division"]) == {0}
    assert set(other["division"]) == {1}

    def folds(frame):
        tested = frame[
            (frame["part"] == "test") & (frame["model"] == "flat") & (frame["seed"] == 0)
        ]
        return {frozenset(of) for _, of in tested.groupby("fold")["subject"]}

    assert frozenset().union(*folds(other)) == frozenset().union(*folds(first))
    assert folds(other).isdisjoint(folds(first))


def test_a_recipe_that_has_a_name_is_a_network_of_its_own(case, tmp_path, monkeypatch):
    """As baseline_weighted_sampling is: the builder's network, trained by another recipe."""
    zoo = {"flat": ("flat", RECIPE), "flat_longer": ("flat", replace(RECIPE, epochs=3))}
    monkeypatch.setattr("mri.training.recipe.entries", lambda: zoo)
    found = sweep(case, tmp_path, ("flat", "flat_longer"), seeds=(0,), recipe=None)
    assert found.models == ["flat", "flat_longer"]
    epochs = {
        path.name.split("-")[0]: len(json.loads(path.read_text())["history"]["loss"])
        for path in tmp_path.glob("*-fold0-*.json")
    }
    assert epochs == {"flat": 2, "flat_longer": 3}


def test_no_network_has_seen_the_subjects_that_it_judges(done, case):
    groups = case[1]
    for _, cell in done[1].frame.groupby(["model", "seed", "fold"]):
        test, validation = (
            set(cell.query(f"part == '{p}'")["row"]) for p in ("test", "validation")
        )
        trained = np.setdiff1d(np.arange(len(groups)), [*test, *validation])
        sides = [set(groups[list(rows)]) for rows in (test, validation, trained)]
        assert sum(map(len, sides)) == SUBJECTS == len(set.union(*sides))
    # And the cards of the networks say the same of their test parts.
    tested = [tuple(read_card(path)["test_rows"]) for path in done[0].glob("*.keras")]
    assert len(tested) == 2 * 2 * FOLDS
    assert sorted(sum(set(tested), ())) == list(range(len(groups)))


def test_logits_are_those_of_the_kept_networks_over_their_temperature(done, case):
    images = case[0].images
    for path in done[0].glob("*.keras"):
        model, card = load_model(path), read_card(path)
        cell = done[1].frame.query(
            f"model == '{card['builder']}' and seed == {card['seed']}"
            f" and fold == {card['split']['fold']} and part == 'test'"
        )
        expected = predict_logits(model, images[cell["row"]]) / card["temperature"]
        np.testing.assert_allclose(cell[LOGITS], expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_is_the_mean_of_the_logits(done):
    frame = done[1].frame.query("part == 'test'")
    logits = np.zeros((SUBJECTS * SLICES, 4))
    for _, cell in frame.groupby(["model", "seed"]):
        logits[cell["row"]] += cell[LOGITS].to_numpy() / 4
    labels = frame.drop_duplicates("row").sort_values("row")["label"]
    found = done[1].evaluate()
    np.testing.assert_allclose(done[1].pooled()[LOGITS], logits, atol=1e-6)
    assert found.metrics["slice"]["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(1))
    )
    assert found.title.startswith("flat + wide, test parts of all folds, 72 synthetic phantom")
    one = done[1].evaluate("wide", part="validation")
    rows = frame["row"].nunique()
    assert len(one.sample("slice").labels) < rows
    assert one.title.startswith("wide, validation parts")


def test_what_is_not_there_is_named(done):
    with pytest.raises(ValueError, match=r"no train logits of .*'flat', 'wide'.*validation"):
        done[1].pooled(part="train")
    with pytest.raises(
        ValueError, match=r"no test logits of .'absent'. in division 0. Models: .'flat', 'wide"
    ):
        done[1].evaluate("absent")


def test_a_finished_cell_is_never_computed_twice(done, case, fits):
    again = sweep(case, done[0])
    assert fits[0] == []
    pd.testing.assert_frame_equal(again.frame, done[1].frame)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(done, case, tmp_path, fits):
    seen, fit = fits
    fit.strike_at = 4
    with pytest.raises(KeyboardInterrupt):
        sweep(case, tmp_path)
    assert len(seen) == 4
    assert len(list(tmp_path.glob("*.parquet"))) == 4
    fit.strike_at = None
    seen.clear()
    found = sweep(case, tmp_path)
    assert len(seen) == 2 * 2 * FOLDS - 4
    pd.testing.assert_frame_equal(found.frame, done[1].frame)


@pytest.mark.parametrize("damage", [None, b"", b"PAR1 nonsense PAR1"])
def test_lost_logits_are_computed_again_without_training(done, case, fits, damage):
    path = sorted(done[0].glob("*.parquet"))[2]
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    pd.testing.assert_frame_equal(sweep(case, done[0]).frame, done[1].frame)
    assert fits[0] == []
    assert len(pd.read_parquet(path)) > 0


def test_logits_of_another_network_under_that_name_are_not_taken(done, case, fits):
    """Files from two sweeps that were mixed up by hand."""
    one, other = sorted(done[0].glob("flat-*seed0.cell.parquet"))[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    pd.testing.assert_frame_equal(sweep(case, done[0]).frame, done[1].frame)
    assert fits[0] == []
    assert one.read_bytes() == kept


@pytest.mark.slow
@pytest.mark.parametrize("change", ["recipe", "labels", "folds"])
def test_another_question_is_another_cell(done, case, fits, change, tmp_path):
    scans, groups = case
    options = {"builders": "flat", "seeds": (0,)}
    sweep(case, tmp_path, **options)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.parquet")}
    fits[0].clear()
    if change == "recipe":
        options["recipe"] = Recipe(epochs=1, batch_size=16, dtype="float32")
    elif change == "folds":
        options["folds"] = 2
    else:
        scans = Scans(scans.images, (scans.labels + 1) % 4, NAMES, scans.rejected, True)
    sweep((scans, groups), tmp_path, **options)
    assert len(fits[0]) == options.get("folds", FOLDS)
    assert {p: p.read_bytes() for p in before} == before, "the first answers stay"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"builders": "absent"}, r"There are .*flat.*Received: names=\['absent'\]"),
        ({"builders": ()}, "Received: "),
        ({"seeds": ()}, r"seeds=\[\]"),
        ({"seeds": 3}, r"must be lists.*seeds=3"),
    ],
)
def test_a_sweep_of_nothing_is_refused(case, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        sweep(case, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def assert_alike(one, other):
    keys = ["model", "seed", "fold", "part", "row"]
    one, other = (frame.sort_values(keys, ignore_index=True) for frame in (one, other))
    pd.testing.assert_frame_equal(one, other, atol=1e-3)


@pytest.mark.slow
def test_two_at_a_time_give_the_same(done, case, tmp_path):
    found = sweep(case, tmp_path, jobs=2, builders="flat", seeds=(0,))
    assert_alike(found.frame, done[1].frame.query("model == 'flat' and seed == 0"))


# Dask's own: sockets that it closes late, and a note on uneven sizes.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_dask_cluster_of_two_workers_gives_the_same(done, case, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        distributed.LocalCluster(**settings, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        found = sweep(case, tmp_path, builders="flat", seeds=(0,), jobs=None)
        workers = client.run(lambda: "mri.training.loop" in __import__("sys").modules)
    assert list(workers.values()) == [True, True], "both took part"
    assert_alike(found.frame, done[1].frame.query("model == 'flat' and seed == 0"))


@pytest.mark.slow
def test_kept_logits_give_the_same_figures(tmp_path, case):
    found = cross_validate(
        "flat", *case, recipe=RECIPE, folds=FOLDS, folder=tmp_path / "cells", jobs=1
    )
    found.save(tmp_path / "kept.parquet")
    again = read_crossval(tmp_path / "kept.parquet")
    assert (again.class_names, again.origin) == (found.class_names, found.origin)
    pd.testing.assert_frame_equal(again.frame, found.frame, check_dtype=False, rtol=1e-6)
    pd.testing.assert_frame_equal(again.table(), found.table())
    estimate = found.evaluate("flat").metrics["subject"]["accuracy"]
    expected = "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)
    assert found.table().loc["flat", "Accuracy"] == expected


def test_what_holds_no_logits_is_named(tmp_path):
    path = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    for wrong in (path, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match=f"{wrong.name}: not a table of logits"):
            read_crossval(wrong)


def test_probes_judge_everybody_by_strangers_as_the_networks_do(case):
    """The nearest neighbour by loops over the slices; the probe by its parts, fold by fold."""
    scans, groups = case
    frame = cross_validate_probes(scans, groups, folds=FOLDS)
    controls = frame[frame["model"].str.endswith(", diagnoses shuffled")]
    dealt = shuffle_diagnoses(scans.labels, groups)
    assert controls["label"].tolist() == dealt[controls["row"]].tolist()
    frame = frame.drop(controls.index)
    assert frame["model"].unique().tolist() == ["nearest neighbour", "linear probe"]
    flat = scans.images.reshape(len(scans), -1).astype(float)
    for (model, fold), part in frame.groupby(["model", "fold"]):
        tested = part[part["part"] == "test"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split = subject_split(scans.labels, groups, fold=fold, folds=FOLDS)
        assert tested["row"].tolist() == split.test.tolist()
        assert tested["subject"].tolist() == groups[split.test].tolist()
        assert not set(tested["subject"]) & set(groups[split.train])
        answers = tested[LOGITS].to_numpy()
        if model == "linear probe":
            probe = linear_probe(flat[split.train].astype(np.float32), scans.labels[split.train])
            assert answers.argmax(1).tolist() == probe.predict(flat[split.test]).tolist()
            continue
        for row, logits in zip(split.test, answers, strict=True):
            distances = [np.sum((flat[row] - flat[other]) ** 2) for other in split.train]
            label = scans.labels[split.train[np.argmin(distances)]]
            assert logits.argmax() == label
            assert np.count_nonzero(logits) == 1
    per_row = frame[frame["part"] == "test"].groupby("model")["row"]
    assert all(sorted(rows) == list(range(len(scans))) for _, rows in per_row)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the")
def test_command_line_adds_the_shuffled_control(tmp_path, monkeypatch, capsys):
    folder = write_phantom(tmp_path / "data")
    monkeypatch.setenv("MRI_DATA", str(folder))
    output = tmp_path / "out.parquet"
    assert main(["folds", "tissue", "--folds", "2", "--output", str(output)]) == 0
    assert "tissue, diagnoses shuffled" in capsys.readouterr().out
    found = read_crossval(output)
    control = "tissue, diagnoses shuffled"
    assert found.models == ["tissue", control]
    true, dealt = (found.pooled(model).sort_values("row") for model in ("tissue", control))
    assert true["row"].tolist() == dealt["row"].tolist() == list(range(len(true)))
    expected = shuffle_diagnoses(true["label"].to_numpy(), true["subject"].to_numpy())
    assert dealt["label"].tolist() == expected.tolist()


def test_a_sweep_keeps_what_other_networks_answered(case, tmp_path, fits):
    scans, groups = case
    output, options = tmp_path / "all.parquet", {"folds": FOLDS}
    flat_only = add_to(["flat"], *case, output, **options).frame
    both = add_to(["wide"], *case, output, **options)
    control = ", diagnoses shuffled"
    assert both.models == ["flat", "flat" + control, "wide", "wide" + control]
    pd.testing.assert_frame_equal(both.frame[: len(flat_only)], flat_only)
    trained = len(fits[0])
    again = add_to(["flat"], *case, output, **options).frame
    assert len(fits[0]) == trained
    assert sorted(again["model"].unique()) == sorted(both.models) and len(again) == len(both.frame)
    before = output.read_bytes()
    others = (replace(scans, labels=scans.labels[::-1]), groups), (scans, groups[::-1])
    for people in (*others, (replace(scans, class_names=NAMES[::-1]), groups)):
        with pytest.raises(DataError, match=r"all.parquet: holds logits of other people; name"):
            add_to(["wide"], *people, output, **options)
    assert len(fits[0]) == trained and output.read_bytes() == before


@pytest.mark.slow
def test_a_sweep_of_several_divisions_has_a_control_for_each_network(case, tmp_path, fits):
    names, options = ["flat", "wide"], {"folds": FOLDS, "divisions": 2}
    found = add_to(names, *case, tmp_path / "all.parquet", **options)
    assert len(fits[0]) == FOLDS * 2 * 2 * len(names)
    divisions = found.frame.groupby("model")["division"].unique().map(sorted).to_dict()
    controls = {f"{name}, diagnoses shuffled": [0, 1] for name in names}
    assert divisions == controls | {name: [0, 1] for name in names}
    scans, groups = case
    for (name, division), rows in found.frame.groupby(["model", "division"]):
        dealt = name.endswith(", diagnoses shuffled")
        true = shuffle_diagnoses(scans.labels, groups, seed=division) if dealt else scans.labels
        assert rows["label"].tolist() == true[rows["row"]].tolist()
    for name in names:
        alone = cross_validate(
            name, *case, folds=FOLDS, division=1, folder=tmp_path / "all", jobs=1
        )
        rows = found.frame.query("model == @name and division == 1").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, alone.frame)
    with pytest.raises(ValueError, match="divisions must be at least 1"):
        add_to(names, *case, tmp_path / "new.parquet", divisions=0)


def test_figures_by_fold_are_those_of_its_people(done):
    found = done[1]
    table = found.per_fold("accuracy", unit="slice")
    assert list(table.index) == found.models
    for model, fold in [(m, f) for m in table.index for f in (0, 1)]:
        of = found.frame.query(f"model == '{model}' and fold == {fold} and part == 'test'")
        mean = of.groupby("row")[LOGITS].mean()
        labels = of.groupby("row")["label"].first()
        expected = (mean.to_numpy().argmax(1) == labels.to_numpy()).mean()
        assert table.loc[model, f"fold {fold}"] == pytest.approx(expected)


def test_models_of_other_labels_are_not_averaged(done):
    other = done[1].frame.assign(model="other", label=lambda of: (of["label"] + 1) % 4)
    both = replace(done[1], frame=pd.concat([done[1].frame, other]))
    with pytest.raises(ValueError, match="same labels and subjects"):
        both.evaluate()
