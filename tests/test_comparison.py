"""The comparison measures every model on what it has not seen, and loses no file."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from mri.backend import keras
from mri.cards import load_model, read_card, save_model
from mri.comparison import compare
from mri.data import Scans
from mri.models import _BUILDERS, predict_logits, register
from mri.subjects import image_split, subject_split
from mri.training import Recipe, train

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

layers = keras.layers
SIZE, SUBJECTS, SLICES = 16, 40, 4
NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
RECIPE = Recipe(epochs=12, batch_size=16, learning_rate=1e-2, dtype="float32")
COLUMNS = ["balanced_accuracy", "low", "high", "accuracy", "macro_f1", "macro_auc"]


def flat(x, classes):
    return layers.Dense(classes)(layers.Flatten()(x))


def network(size=SIZE, classes=4):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )


@pytest.fixture(scope="module", autouse=True)
def registry():
    kept = dict(_BUILDERS)
    register(flat)
    yield
    _BUILDERS.clear()
    _BUILDERS.update(kept)


@pytest.fixture(scope="module")
def case(tmp_path_factory, registry, striped_scans):
    """A folder with every kind of model file, and what belongs to it."""
    folder = tmp_path_factory.mktemp("models")
    subjects = np.repeat(np.arange(SUBJECTS), SLICES)
    scans = striped_scans(subjects, SIZE, NAMES, np.random.default_rng(0))
    by_subject = subject_split(scans.labels, subjects, folds=4)
    by_image = image_split(scans.labels, np.arange(0, len(scans), 5))
    options = {"recipe": RECIPE, "folder": folder, "verbose": 0}
    trained = train("flat", scans, by_subject, name="honest", **options)
    train("flat", scans, by_image, name="leaky", **options)
    # The same file under a card that tells something else.
    for name, change in {
        "otherdata": {"data": "0" * 64},
        "otherclasses": {"class_names": NAMES[::-1]},
        "notest": {"test_rows": []},
    }.items():
        save_model(trained.model, folder / f"{name}.keras", {**trained.card, **change})
    short = {key: value for key, value in trained.card.items() if key != "temperature"}
    save_model(trained.model, folder / "oldcard.keras", short)
    network().save(folder / "stranger.keras")
    network(size=8).save(folder / "small.keras")
    network(classes=3).save(folder / "three.keras")
    infinite = network()
    infinite.set_weights([np.full((SIZE * SIZE, 4), np.inf), np.zeros(4)])
    infinite.save(folder / "infinite.keras")
    (folder / "broken.keras").write_bytes((folder / "honest.keras").read_bytes()[:1000])
    (folder / ".half.keras").write_bytes(b"not yet written")
    return folder, scans, subjects, {"honest": by_subject, "leaky": by_image}


@pytest.fixture(scope="module")
def found(case):
    folder, scans, subjects, _ = case
    return compare(scans, subjects, folder)


def test_honest_before_inflated_before_unknown_before_unmeasurable(found):
    assert found.table["model"].tolist()[:3] == ["honest", "leaky", "stranger"]
    assert found.table["protocol"].tolist()[:3] == ["subject", "image", "unknown"]
    assert set(found.table["protocol"][3:]) == {"–"}
    assert list(found.evaluations) == ["honest", "leaky", "stranger"]


def test_every_file_has_its_row_and_temporary_ones_have_none(found, case):
    files = {p.stem for p in case[0].glob("*.keras") if not p.name.startswith(".")}
    assert set(found.table["model"]) == files
    assert found.table["model"].is_unique


@pytest.mark.parametrize("name", ["honest", "leaky", "stranger"])
def test_figures_are_those_of_the_models_own_test_part(found, case, name):
    folder, scans, _, splits = case
    rows = splits[name].test if name in splits else np.arange(len(scans))
    labels = scans.labels[rows]
    logits = predict_logits(load_model(folder / f"{name}.keras"), scans.images[rows])
    card = read_card(folder / f"{name}.keras") or {"temperature": 1.0}
    scaled = logits.astype(float) / card["temperature"]
    scores = np.exp(scaled - np.logaddexp.reduce(scaled, 1, keepdims=True))
    guesses = logits.argmax(1)
    row = found.table.set_index("model").loc[name]
    assert row["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert row["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert row["macro_auc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))
    assert row["low"] <= row["balanced_accuracy"] <= row["high"]
    assert row["parameters"] == load_model(folder / f"{name}.keras").count_params()
    assert row["size_mb"] == pytest.approx((folder / f"{name}.keras").stat().st_size / 1e6)
    assert found.evaluations[name].metrics["slice"]["accuracy"].value == row["accuracy"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("leaky", ["subjects in training too", "inflated"]),
        ("stranger", ["no card", "may be training slices"]),
        ("broken", ["broken.keras"]),
        ("small", ["takes (None, 8, 8, 1)", "(None, 16, 16, 1)"]),
        ("three", ["gives (None, 3)", "Very_Mild_Demented"]),
        ("infinite", ["not finite"]),
        ("otherdata", ["trained on other slices", "0" * 12]),
        ("otherclasses", ["classes", "Very_Mild_Demented"]),
        ("notest", ["no test rows"]),
        ("oldcard", ["lacks ['temperature']", "train the model again"]),
    ],
)
def test_the_note_says_what_is_the_matter(found, name, words):
    note = found.table.set_index("model").loc[name, "note"]
    assert not [word for word in words if word not in note], note


def test_what_could_not_be_measured_has_no_figure(found):
    unmeasured = found.table[found.table["protocol"] == "–"]
    assert len(unmeasured) == 8
    assert unmeasured[COLUMNS].isna().all(axis=None)
    assert not found.table[found.table["protocol"] != "–"][COLUMNS].isna().any(axis=None)


def test_an_honest_model_has_nothing_to_note(found):
    assert found.table.set_index("model").loc["honest", "note"] == ""


def test_the_same_slices_in_another_order_are_other_slices(case):
    """The rows of the card would name other slices than those that were held out."""
    folder, scans, subjects, _ = case
    order = np.random.default_rng(0).permutation(len(scans))
    turned = Scans(
        scans.images[order], scans.labels[order], scans.class_names, scans.rejected, True
    )
    table = compare(turned, subjects[order], folder).table.set_index("model")
    assert "trained on other slices" in table.loc["honest", "note"]
    assert table.loc["stranger", "protocol"] == "unknown"


def test_a_model_added_is_a_row_added_and_the_others_stay(found, case, tmp_path):
    folder, scans, subjects, splits = case
    for file in (*folder.glob("honest.*"), *folder.glob("stranger.*")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = compare(scans, subjects, tmp_path).table
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=1e-9, dtype="float32")
    train("flat", scans, splits["honest"], name="a", recipe=recipe, folder=tmp_path, verbose=0)
    after = compare(scans, subjects, tmp_path).table
    assert after["model"].tolist() == ["honest", "a", "stranger"], "by figure, not by name"
    pd.testing.assert_frame_equal(before, after.drop(index=1).reset_index(drop=True))
    pd.testing.assert_frame_equal(before, found.table.iloc[[0, 2]].reset_index(drop=True))


def test_only_the_bootstrap_depends_on_the_seed(found, case):
    folder, scans, subjects, _ = case
    other = compare(scans, subjects, folder, seed=1).table
    fixed = [column for column in other.columns if column not in ("low", "high")]
    pd.testing.assert_frame_equal(other[fixed], found.table[fixed])
    assert not other[["low", "high"]].equals(found.table[["low", "high"]])


@pytest.mark.parametrize("content", [(), (".half.keras", "card.json")])
def test_a_folder_without_models_says_where_they_come_from(case, tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"no \.keras file; run main\.ipynb"):
        compare(*case[1:3], tmp_path)


def test_a_folder_of_broken_files_alone_is_still_a_table(case, tmp_path):
    (tmp_path / "x.keras").write_bytes(b"")
    found = compare(*case[1:3], tmp_path)
    assert found.table["model"].tolist() == ["x"]
    assert found.evaluations == {}
    assert "x.keras" in repr(found)


def test_it_shows_as_a_table(found):
    for shown in (found._repr_html_(), repr(found)):
        assert "nan" not in shown.lower()
        assert f"{found.table['balanced_accuracy'][0]:.3f}" in shown
