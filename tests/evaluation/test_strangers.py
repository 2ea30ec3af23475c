"""Models of other people in a comparison: ranked as they are meant, or doubted aloud."""

import json

import numpy as np
import pytest

from mri._keras import keras
from mri.data.parquet import CLASS_NAMES
from mri.data.phantom import make_phantoms
from mri.evaluation.comparison import compare
from mri.evaluation.doubts import doubts
from mri.evaluation.logits import VERSION, LogitsTable
from mri.evaluation.metrics import evaluate, fit_temperature
from mri.gradcam.cam import GradCAM
from mri.models.files import load_model
from mri.predict import predict_slice

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("closed"),
]
K = keras.layers
TURNED = list(CLASS_NAMES[::-1])
FIGURES = ["accuracy", "balanced_accuracy", "balanced_accuracy_3", "macro_f1", "macro_auc",
           "log_loss", "ece", "low", "high"]  # fmt: skip


@pytest.fixture(scope="module")
def phantoms():
    return make_phantoms(16, 2, seed=5)


def network():
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((128, 128, 1))
    x = K.Conv2D(4, 5, strides=4, activation="relu")(K.Rescaling(1 / 64)(x))
    return inputs, K.Dense(4)(K.GlobalAveragePooling2D()(K.Conv2D(6, 3, activation="relu")(x)))


ENDS = {
    "logits": lambda z: z,
    "softmax": K.Softmax(),
    "logsoftmax": K.Activation("log_softmax"),
    "averaged": lambda z: K.Average()([K.Softmax()(z), K.Softmax()(z)]),
    "hidden": lambda z: K.ReLU()(K.Rescaling(1.0)(K.Softmax()(z))),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """One network, and what may be put behind it."""
    folder = tmp_path_factory.mktemp("twins")
    inputs, z = network()
    for name, end in ENDS.items():
        keras.Model(inputs, end(z)).save(folder / f"{name}.keras")
    return folder


def test_twins_have_the_same_figures(twins, phantoms):
    table = compare(phantoms.scans, phantoms.subjects, twins).table.set_index("model")
    for name in ENDS:
        tolerance = 1e-3 if name == "hidden" else 1e-6
        np.testing.assert_allclose(
            table.loc[name, FIGURES].astype(float), table.loc["logits", FIGURES].astype(float),
            atol=tolerance, err_msg=name,
        )  # fmt: skip
    assert "ends in softmax: read by the logits" in table.loc["softmax", "note"]
    assert "out of reach: read by their logarithms" in table.loc["hidden", "note"]
    assert "ends in" not in table.loc["logits", "note"]


def test_twins_give_the_same_answers_and_maps(twins, phantoms):
    found = {
        name: predict_slice(phantoms.images[3], model=twins / f"{name}.keras") for name in ENDS
    }
    expected = found["logits"]
    for name, of in found.items():
        np.testing.assert_allclose(
            list(of.probabilities.values()), list(expected.probabilities.values()), atol=1e-5
        )
        if name != "hidden":
            np.testing.assert_allclose(of.explanation.maps, expected.explanation.maps, atol=1e-4)
    assert "The network ends in softmax" in str(found["softmax"])


@pytest.mark.slow
def test_logits_kept_by_an_older_reading_are_made_anew(twins, phantoms, tmp_path):
    for file in ("softmax.keras", "logits.keras"):
        (tmp_path / file).write_bytes((twins / file).read_bytes())
    first = compare(phantoms.scans, phantoms.subjects, tmp_path)
    assert compare(phantoms.scans, phantoms.subjects, tmp_path).evaluated == ()
    kept = LogitsTable.read(tmp_path / "softmax.parquet")
    assert kept.about["version"] == VERSION
    for change in ({"version": VERSION + 1}, {"version": 1}):
        about = kept.about | change
        wrong = kept.frame.assign(**{f"logit_{CLASS_NAMES[0]}": 9.0})
        LogitsTable(wrong, about).save(tmp_path / "softmax.parquet")
        again = compare(phantoms.scans, phantoms.subjects, tmp_path)
        assert again.evaluated == ("softmax",)
        assert again.table[FIGURES].equals(first.table[FIGURES])


@pytest.mark.slow
def test_the_committed_logits_stay_valid():
    found = compare(folder="models/zoo")
    assert found.evaluated == ()
    assert (found.table["protocol"] != "–").all()


@pytest.fixture(scope="module")
def taught(phantoms, tmp_path_factory):
    """A network trained the usual way: other size, RGB, 0 to 1, softmax, its own order."""
    keras.utils.set_random_seed(0)
    x = np.repeat(phantoms.images[..., None] / np.float32(255), 3, -1)[:, ::2, ::2]
    y = 3 - phantoms.labels
    inputs = keras.Input((64, 64, 3))
    z = K.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    z = K.Conv2D(16, 3, strides=2, activation="relu")(z)
    z = K.Dense(4, activation="softmax")(K.Flatten()(z))
    model = keras.Model(inputs, z)
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=40, batch_size=16, verbose=0)
    assert (model.predict(x, verbose=0).argmax(1) == y).mean() > 0.9
    path = tmp_path_factory.mktemp("taught") / "mine.keras"
    model.save(path)
    return path


def one_row(folder, phantoms):
    return compare(phantoms.scans, phantoms.subjects, folder).table.iloc[0]


def test_the_way_of_a_transfer_learning_model(taught, phantoms):
    card = taught.with_suffix(".json")
    card.unlink(missing_ok=True)
    row = one_row(taught.parent, phantoms)
    assert row["protocol"] == "–"
    assert "takes (None, 64, 64, 3)" in row["note"]
    assert "python -m mri card" in row["note"] and "--size 64 64 --channels 3" in row["note"]

    card.write_text(json.dumps({"size": 64, "channels": 3}))
    fed_wrongly = one_row(taught.parent, phantoms)
    assert "does it expect other values, such as 0 to 1?" in fed_wrongly["note"]

    card.write_text(json.dumps({"size": 64, "channels": 3, "range": [0, 1]}))
    in_wrong_order = one_row(taught.parent, phantoms)
    assert in_wrong_order["accuracy"] < 0.3
    assert f"in the order {', '.join(TURNED)} it would be right on 9" in in_wrong_order["note"] or (
        f"in the order {', '.join(TURNED)} it would be right on 100%" in in_wrong_order["note"]
    )

    told = {"size": 64, "channels": 3, "range": [0, 1], "class_names": TURNED}
    card.write_text(json.dumps(told))
    right = one_row(taught.parent, phantoms)
    assert right["protocol"] == "unknown" and right["accuracy"] > 0.9
    assert "its card says what it expects, no more" in right["note"]
    assert "does it expect" not in right["note"] and "in the order" not in right["note"]

    said = predict_slice(phantoms.images[0], model=taught)
    assert said.answer == CLASS_NAMES[phantoms.labels[0]]
    assert said.explanation.maps.shape == (1, 128, 128)
    assert GradCAM(load_model(taught)).layer.name.startswith("conv2d")


@pytest.mark.slow
def test_efficientnet_b0_dropped_in(phantoms, tmp_path):
    """224 × 224 × 3, softmax, 0 to 1, its own order of classes."""
    keras.utils.set_random_seed(0)
    x = np.repeat(phantoms.images[..., None] / np.float32(255), 3, -1)
    backbone = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(224, 224, 3)
    )
    inputs = keras.Input((224, 224, 3))
    features = K.GlobalAveragePooling2D()(backbone(K.Rescaling(255.0)(inputs)))
    model = keras.Model(inputs, K.Dense(4, activation="softmax")(features))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    resized = keras.ops.image.resize(x, (224, 224))
    model.fit(resized, 3 - phantoms.labels, epochs=1, batch_size=8, verbose=0)
    model.save(tmp_path / "b0.keras")
    told = {"size": 224, "channels": 3, "range": [0, 1], "class_names": TURNED}
    (tmp_path / "b0.json").write_text(json.dumps(told))
    found = compare(phantoms.scans, phantoms.subjects, tmp_path)
    assert found.table["protocol"].tolist() == ["unknown"]
    direct = np.log(model.predict(resized, verbose=0)[:, ::-1])
    logits = found.evaluations["b0"].sample().logits
    centred = logits - np.logaddexp.reduce(logits, 1)[:, None]
    np.testing.assert_allclose(centred, direct, atol=1e-2)
    said = predict_slice(phantoms.images[0], model=tmp_path / "b0.keras")
    assert said.explanation.maps.shape == (1, 128, 128)
    assert said.answer == CLASS_NAMES[int(direct[0].argmax())]
    assert GradCAM(load_model(tmp_path / "b0.keras")).layer.name == "top_activation"


def test_predict_answers_without_a_map(phantoms, tmp_path):
    inputs = keras.Input((128, 128, 1))
    model = keras.Model(inputs, K.Dense(4)(K.Flatten()(K.Rescaling(1 / 255)(inputs))))
    model.save(tmp_path / "flat.keras")
    said = predict_slice(phantoms.images[0], model=tmp_path / "flat.keras")
    assert said.explanation is None
    assert sum(said.probabilities.values()) == pytest.approx(1)
    assert "No heatmap: No layer can be explained" in str(said)
    assert said.draw().axes[0].get_title().count("no heatmap") == 1


# --- doubts ---


def test_doubts_are_of_what_is_wrong_alone():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    right = rng.normal(0, 1, (400, 4)) + 4 * np.eye(4)[labels]
    assert doubts(labels, right, CLASS_NAMES) == []
    assert doubts(labels, rng.normal(0, 1, (400, 4)), CLASS_NAMES) == [], "chance is no error"
    order = [2, 0, 3, 1]
    named = ", ".join(CLASS_NAMES[order.index(i)] for i in range(4))
    told = doubts(labels, right[:, np.argsort(order)][:, :], CLASS_NAMES)
    assert len(told) == 1 and "it would be right on 9" in told[0], named
    assert doubts(labels, right[:, order], CLASS_NAMES, order_known=True) == []
    # As good as networks are on people never seen, where half of all have one class.
    most = rng.choice(4, 400, p=[0.14, 0.02, 0.5, 0.34])
    weak = rng.normal(0, 1, (400, 4)) + 0.8 * np.eye(4)[most] + [0, -2, 1, 0]
    assert (weak.argmax(1) == most).mean() < 0.65
    assert doubts(most, weak, CLASS_NAMES) == []
    assert "it would be right on" in doubts(most, weak[:, [2, 3, 0, 1]], CLASS_NAMES)[-1]
    sure = doubts(labels, 1000 * rng.normal(0, 1, (400, 4)), CLASS_NAMES)
    assert len(sure) == 1 and sure[0].startswith("is saturated (sure of ")
    assert doubts(labels, 1000 * right, CLASS_NAMES) == [], "sure and right"
    rare = np.where(labels == 1, 0, labels)
    rare[:5] = 1
    never = right.copy()
    never[:, 1] = -9
    assert doubts(rare, never + 4 * np.eye(4)[rare], CLASS_NAMES) == [], (
        "a rare class may be missed"
    )
    assert doubts(labels, never, CLASS_NAMES)[0].startswith("answers only 3 of 4 classes")


def test_probabilities_in_place_of_logits_are_noticed():
    labels, p = np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    with pytest.warns(UserWarning, match="these logits are shares of 1"):
        evaluate(labels, p, class_names=("a", "b"), draws=10)
    evaluate(labels, np.log(p), class_names=("a", "b"), draws=10)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda p: 100 * p, "shares of 1 or 100"),
        (lambda p: p.round(2), "shares of 1 or 100"),
        (lambda p: np.sqrt(p), "all from 0 to 1"),  # As sigmoids are, one a class.
    ],
)
def test_probabilities_of_any_form_are_noticed(made, told):
    p = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    labels = np.arange(50) % 4
    with pytest.warns(UserWarning, match=told):
        evaluate(labels, made(p), draws=10)
    with pytest.warns(UserWarning, match=told):
        fit_temperature(labels, made(p))
    evaluate(labels, np.log(p), draws=10)


def test_copies_of_a_model_cost_the_others_nothing(tmp_path, phantoms):
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        net = keras.Sequential([keras.Input((128, 128, 1)), K.AveragePooling2D(16), K.Flatten()])
        net.add(K.Dense(4))
        net.save(tmp_path / f"net{seed}.keras")
    before = compare(phantoms.scans, phantoms.subjects, tmp_path, by="log_loss")
    copied = keras.saving.load_model(tmp_path / "net0.keras")
    copied.save(tmp_path / "again.keras")  # Other bytes, the same network.
    (tmp_path / "net3.keras").write_bytes((tmp_path / "net1.keras").read_bytes())
    after = compare(phantoms.scans, phantoms.subjects, tmp_path, by="log_loss")
    names, (p,) = ["net0", "net1", "net2"], after.p_values.values()
    (expected,) = before.p_values.values()
    for one, other in (("net0", "net1"), ("net0", "net2"), ("net1", "net2")):
        assert p.loc[one, other] == expected.loc[one, other] < 1
    assert p.loc["again", "net1"] == p.loc["net0", "net3"] == expected.loc["net0", "net1"]
    assert p.loc["again", "net0"] == p.loc["net3", "net1"] == 1
    assert np.isnan(np.diag(p)).all() and set(p) == {*names, "again", "net3"}
    told = after.table.set_index("model")["note"].str.contains("answers all as")
    assert told.sum() == 2 and told[["net0", "again"]].sum() == told[["net1", "net3"]].sum() == 1
