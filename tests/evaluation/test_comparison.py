"""The comparison measures every model on what it has not seen, and loses no file."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

import mri.evaluation.logits
from mri._keras import keras
from mri.data.scans import Scans
from mri.evaluation.comparison import compare
from mri.evaluation.leaderboard import Comparison
from mri.models.builders import _BUILDERS, register
from mri.models.files import load_model, read_card, save_model
from mri.models.scores import predict_logits
from mri.subjects.splits import image_split, subject_split
from mri.training.loop import train
from mri.training.recipe import Recipe

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


def copy(folder, target, *names):
    target.mkdir(exist_ok=True)
    for name in names:
        for file in folder.glob(f"{name}.*"):
            (target / file.name).write_bytes(file.read_bytes())


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
    pooled, three = np.where(labels == 1, 0, labels), scores.copy()
    three[:, 0] += three[:, 1]
    three[:, 1] = 0
    expected = balanced_accuracy_score(pooled, three.argmax(1))
    assert found.by == "balanced_accuracy_3"
    assert row["balanced_accuracy_3"] == pytest.approx(expected)
    assert row["low"] <= row["balanced_accuracy_3"] <= row["high"]
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
        # The slices whose labels count in that order are others.
        ("otherclasses", ["trained on other slices"]),
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


def test_an_honest_model_is_verified(found):
    assert found.table.set_index("model").loc["honest", "note"] == "verified"


def test_the_same_slices_in_another_order_are_other_slices(case, tmp_path):
    """The rows of the card would name other slices than those that were held out."""
    folder, scans, subjects, _ = case
    copy(folder, tmp_path, "honest", "stranger")
    (tmp_path / "honest.parquet").unlink()
    order = np.random.default_rng(0).permutation(len(scans))
    turned = Scans(
        scans.images[order], scans.labels[order], scans.class_names, scans.rejected, True
    )
    table = compare(turned, subjects[order], tmp_path).table.set_index("model")
    assert "trained on other slices" in table.loc["honest", "note"]
    assert table.loc["stranger", "protocol"] == "unknown"


def test_logits_kept_from_other_slices_are_ranked_after_those_of_these(found, case, tmp_path):
    folder, scans, subjects, splits = case
    copy(folder, tmp_path, "honest")
    darker = replace(scans, images=scans.images // 2)
    options = {"recipe": replace(RECIPE, epochs=1), "folder": tmp_path, "verbose": 0}
    train("flat", darker, splits["honest"], name="dark", **options)
    table = compare(darker, subjects, tmp_path).table.set_index("model")
    assert list(table.index) == ["dark", "honest"]
    assert table["note"].tolist() == [
        "verified",
        "claimed: logits kept from other slices than these",
    ]
    honest = found.table.set_index("model").loc["honest"]
    assert table.loc["honest", "balanced_accuracy"] == honest["balanced_accuracy"]
    assert table.loc["honest", "balanced_accuracy"] > table.loc["dark", "balanced_accuracy"]


def test_a_model_added_is_run_alone_and_the_others_stay(found, case, tmp_path):
    folder, scans, subjects, splits = case
    copy(folder, tmp_path, "honest", "stranger")
    before = compare(scans, subjects, tmp_path)
    assert before.evaluated == ()
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=1e-9, dtype="float32")
    train("flat", scans, splits["honest"], name="a", recipe=recipe, folder=tmp_path, verbose=0)
    after = compare(scans, subjects, tmp_path)
    assert after.evaluated == ("a",)
    assert after.table["model"].tolist() == ["honest", "a", "stranger"], "by figure, not by name"
    rest = after.table.drop(index=1).reset_index(drop=True)
    pd.testing.assert_frame_equal(before.table, rest)
    pd.testing.assert_frame_equal(before.table, found.table.iloc[[0, 2]].reset_index(drop=True))


@pytest.mark.parametrize("damage", ["truncated", "absent", "of another file", "of other rows"])
def test_kept_logits_that_do_not_fit_are_made_anew(case, tmp_path, damage):
    folder, scans, subjects, splits = case
    copy(folder, tmp_path, "honest")
    kept = tmp_path / "honest.parquet"
    if damage == "truncated":
        kept.write_bytes(kept.read_bytes()[:-100])
    elif damage == "absent":
        kept.unlink()
    elif damage == "of another file":
        card = read_card(tmp_path / "honest.keras")
        model = load_model(tmp_path / "honest.keras")
        model.set_weights([-weight for weight in model.get_weights()])
        save_model(model, tmp_path / "honest.keras", card)
    else:
        rows = splits["honest"].test
        rest = rows[subjects[rows] != subjects[rows[0]]]  # Whole people, as the card says.
        card = read_card(tmp_path / "honest.keras") | {"test_rows": rest.tolist()}
        save_model(load_model(tmp_path / "honest.keras"), tmp_path / "honest.keras", card)
    found = compare(scans, subjects, tmp_path)
    assert found.evaluated == ("honest",)
    expected = predict_logits(
        load_model(tmp_path / "honest.keras"),
        scans.images[read_card(tmp_path / "honest.keras")["test_rows"]],
    )
    sample = found.evaluations["honest"].sample()
    temperature = read_card(tmp_path / "honest.keras")["temperature"]
    np.testing.assert_allclose(sample.logits, expected / temperature, rtol=1e-5)
    assert compare(scans, subjects, tmp_path).evaluated == ()


def test_a_card_and_its_logits_are_enough_without_model_or_slices(found, case, tmp_path):
    folder = case[0]
    copy(folder, tmp_path, "leaky")
    copy(folder, tmp_path / "zoo", "honest")
    (tmp_path / "zoo/honest.keras").unlink()
    network().save(tmp_path / "new.keras")
    alone = compare(folder=tmp_path)
    assert alone.table["model"].tolist() == ["honest", "leaky", "new"]
    figures = ["model", "protocol", *COLUMNS]
    pd.testing.assert_frame_equal(alone.table[figures][:2], found.table[figures][:2])
    assert "no logits kept, and no slices to run it on" in alone.table["note"][2]


def test_a_file_of_the_folder_goes_before_one_of_the_zoo(case, tmp_path):
    folder = case[0]
    copy(folder, tmp_path, "honest")
    for file in folder.glob("leaky.*"):
        (tmp_path / "zoo").mkdir(exist_ok=True)
        (tmp_path / "zoo" / f"honest{file.suffix}").write_bytes(file.read_bytes())
    assert compare(folder=tmp_path).table["protocol"].tolist() == ["subject"]


def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(
    found, case, tmp_path, monkeypatch
):
    copy(case[0], tmp_path, "honest")
    (tmp_path / "honest.parquet").unlink()

    def read_only(table, path):
        raise PermissionError(f"{path}: read-only")

    monkeypatch.setattr(mri.evaluation.logits.LogitsTable, "save", read_only)
    with pytest.warns(UserWarning, match=r"honest\.keras: logits not kept, .*read-only"):
        again = compare(*case[1:3], tmp_path)
    pd.testing.assert_frame_equal(again.table[COLUMNS], found.table[COLUMNS][:1])


def test_only_the_bootstrap_depends_on_the_seed(found, case, tmp_path):
    folder, scans, subjects, _ = case
    copy(folder, tmp_path, "honest", "leaky", "stranger")
    other = compare(scans, subjects, tmp_path, seed=1).table
    fixed = [column for column in other.columns if column not in ("low", "high")]
    pd.testing.assert_frame_equal(other[fixed], found.table[fixed][:3])
    assert not other[["low", "high"]].equals(found.table[["low", "high"]][:3])


@pytest.mark.parametrize("by", ["val_balanced_accuracy", "validation"])
def test_what_models_were_selected_by_ranks_nothing(case, by):
    with pytest.raises(ValueError, match="selected by, so it ranks luck; take a metric"):
        compare(*case[1:3], case[0], by=by)


def test_a_metric_without_a_test_ranks_nothing(case):
    with pytest.raises(ValueError, match=r"by must be one of .* Received: 'macro_auc'"):
        compare(*case[1:3], case[0], by="macro_auc")


def test_slices_and_subjects_belong_together(case):
    with pytest.raises(ValueError, match="belong together"):
        compare(case[1], None, case[0])


def test_log_loss_ranks_the_smaller_first(case, tmp_path):
    folder, scans, subjects, splits = case
    copy(folder, tmp_path, "honest")
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=1e-9, dtype="float32")
    train("flat", scans, splits["honest"], name="a", recipe=recipe, folder=tmp_path, verbose=0)
    found = compare(scans, subjects, tmp_path, by="log_loss")
    assert found.table["log_loss"].is_monotonic_increasing
    assert found.pareto("parameters") == ["honest"]


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
        assert f"{found.table['balanced_accuracy_3'][0]:.3f}" in shown


# --- what is read off a comparison ---


def test_the_leaderboard_has_a_network_a_row_with_both_protocols(made_up):
    made = made_up()
    board = made.leaderboard()
    assert list(board.index) == ["a", "b", "c", "d"], "in the order of the honest figure"
    value = {name: e.metrics["slice"]["balanced_accuracy"] for name, e in made.evaluations.items()}
    for name in "abc":
        assert board.loc[name, "subject"] == value[f"{name}-subject"].value
        assert board.loc[name, "image"] == value[f"{name}-image"].value
        low, high = value[f"{name}-image"][1:]
        assert board.loc[name, "image_interval"] == f"[{low:.3f}, {high:.3f}]"
    assert np.isnan(board.loc["d", "image"])
    assert made.leading() == ["a-subject", "b-subject"]
    assert board["leading"].tolist() == [True, True, False, False]
    shown = made._repr_html_()
    rows = [row for row in shown.split("<tr") if "row_heading" in row]
    shaded = shown.partition("{")[0]
    assert len(rows) == 4
    assert [f"_row{i}_col0" in shaded for i in range(4)] == [True, True, False, False]


def test_the_pareto_front_is_what_brute_force_finds(made_up):
    made = made_up()
    of = made.table[made.table["protocol"] == "subject"]
    pairs = list(zip(of["model"], of["balanced_accuracy"], of["parameters"], strict=True))
    front = [
        name
        for name, score, cost in pairs
        if not any(s >= score and c <= cost and (s, c) != (score, cost) for _, s, c in pairs)
    ]
    assert made.pareto() == front[::-1] == ["d-subject", "b-subject", "a-subject"]


def test_disagreements_are_the_slices_named_differently_surest_first(made_up):
    made = made_up()
    one, two = (made.evaluations[n].sample() for n in ("a-subject", "c-subject"))
    found = made.disagreements("a-subject", "c-subject")
    a, b = one.logits.argmax(1), two.logits.argmax(1)
    assert sorted(found["position"]) == np.flatnonzero(a != b).tolist()
    np.testing.assert_array_equal(found["label"], one.labels[found["position"]])
    np.testing.assert_array_equal(found["subject"], found["position"] // 3)
    np.testing.assert_array_equal(found["a-subject"], a[found["position"]])
    np.testing.assert_array_equal(found["c-subject"], b[found["position"]])
    # A third that is surer of one slice puts it first.
    sure = found["position"].iloc[-1]
    one.logits.flags.writeable = True
    one.logits[sure] *= 2
    assert made.disagreements("a-subject", "c-subject")["position"].iloc[0] == sure


def test_a_folder_called_as_a_model_does_not_take_its_place(case, tmp_path):
    copy(case[0], tmp_path, "honest")
    (tmp_path / "honest").mkdir()
    table = compare(*case[1:3], tmp_path).table.set_index("model")
    assert table["protocol"].to_dict() == {"honest": "subject", "./honest": "–"}
    assert "it is a folder" in table.loc["./honest", "note"]


def test_a_seed_in_a_name_is_a_repeat_only_beside_its_network(made_up):
    rows = [
        ("cnn-seed42", "unknown", 0.8, 1),
        ("n", "unknown", 0.7, 1),
        ("n-seed1", "unknown", 1, 1),
    ]
    made = made_up(rows)
    assert made.best("unknown", 9) == list(made.leaderboard().index) == ["cnn-seed42", "n"]


def test_seeds_are_brought_together(made_up):
    rows = [
        *[("n-subject", "subject", 0.8, 1), ("n-seed1-subject", "subject", 0.7, 1)],
        *[("n-seed2-subject", "subject", 0.3, 1), ("m-subject", "subject", 0.2, 1)],
        *[("n-image", "image", 0.9, 1), ("n-seed1-image", "image", 0.8, 1)],
    ]
    found = made_up(rows).seeds()
    assert found["network"].tolist() == ["n-subject", "n-image"]
    assert found["seeds"].tolist() == [3, 2]
    np.testing.assert_allclose(found["mean"], [0.6, 0.85])
    np.testing.assert_allclose(found["sd"], [np.std([0.8, 0.7, 0.3], ddof=1), 0.1 / 2**0.5])


def test_the_conclusion_is_made_of_the_figures(made_up):
    text = made_up().conclusion()
    assert "On people never seen, a-subject is first of 4 with a balanced accuracy of 0." in text
    assert "1 of the others is not statistically distinguishable from it; 2 are worse" in text
    assert "Image-level, c-image is first of 3" in text
    assert "All others are worse" in text
    assert "Over 3 networks" in text
    assert "1 file could not be measured." in text
    alike = made_up([("a-subject", "subject", 0.5, 1), ("b-subject", "subject", 0.5, 1)])
    assert "None of the others is statistically distinguishable from it." in alike.conclusion()
    assert "Over" not in alike.conclusion()


def test_what_is_only_claimed_is_not_called_worse(made_up):
    """Its figure may be as good as the best, or better; it does not compete."""
    found = made_up()
    names = list(found.p_values["subject"])
    claims = dict.fromkeys(names, "verified") | {names[1]: "claimed: its model file is absent"}
    text = replace(found, claims=claims).conclusion()
    assert f"{names[0]} is first of 3 " in text
    assert "All others are worse" in text.partition("Image-level")[0]
    assert "Not counted: 1 whose figures are claimed, not verified." in text


def test_kept_logits_are_judged_by_the_people_that_one_passes(case, tmp_path):
    """Two slices a person instead of four: more people, other intervals, and a new model beside."""
    folder, scans, subjects, _ = case
    copy(folder, tmp_path, "honest")
    before = compare(scans, subjects, tmp_path, by="accuracy").evaluations["honest"]
    halves = 2 * subjects + np.arange(len(subjects)) % SLICES // 2
    copy(folder, tmp_path, "leaky")
    for file in tmp_path.glob("leaky.parquet"):
        file.unlink()
    after = compare(scans, halves.tolist(), tmp_path, by="accuracy").evaluations
    n = len(np.unique(before.sample("subject").units))
    assert len(np.unique(after["honest"].sample("subject").units)) == 2 * n
    assert after["honest"].metrics["slice"]["accuracy"][0] == before.metrics["slice"]["accuracy"][0]


def test_two_files_that_would_be_called_the_same_keep_their_names(made_up):
    rows = [("a-subject", "subject", 0.9, 300), ("a", "subject", 0.2, 100)]
    found = made_up([*rows, ("a-image", "image", 0.7, 300)])
    assert found.networks() == {
        "a-subject": {"subject": "a-subject"},
        "a": {"subject": "a", "image": "a-image"},
    }
    board = found.leaderboard()
    assert board["leading"].tolist() == [True, False]
    assert (board["subject"].diff().dropna() < 0).all()


def test_what_a_network_costs_is_that_of_its_subject_wise_file(made_up):
    found = made_up([("a-subject", "subject", 0.9, 300), ("a-image", "image", 0.7, 301)])
    assert found.leaderboard()["parameters"].tolist() == [300]


def test_the_first_seed_is_no_repeat(made_up):
    found = made_up([("x-fold0-seed0", "subject", 0.9, 1), ("x-fold0-seed10", "subject", 0.8, 1)])
    assert list(found.networks()) == ["x-fold0-seed0"]


def test_a_first_seed_with_a_number_is_a_seed_too():
    models = [f"net-seed{i}-subject" for i in range(3)]
    table = pd.DataFrame({"model": models, "protocol": "subject", "accuracy": [0.5, 0.6, 0.7]})
    (row,) = Comparison(table, {}, {}, "accuracy", {}, {}, ()).seeds().itertuples()
    assert (row.network, row.seeds) == ("net-subject", 3)
    assert row.mean == pytest.approx(0.6)
