"""One slice: its probabilities are the network's, its warnings fit the network."""

import json
import shutil
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.__main__ import main
from mri._files import file_sha256
from mri._keras import keras
from mri.data.decode import DataError
from mri.data.one_slice import PHANTOM
from mri.data.phantom import make_phantoms, write_phantom
from mri.models.builders import build_model
from mri.models.files import ModelFileError, load_model, save_model
from mri.models.scores import predict_logits
from mri.predict import DEFAULT_MODEL, find_model, predict_slice

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "models/zoo"


pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture(scope="module")
def image():
    return make_phantoms(4, 8, seed=11).images[5]


@pytest.mark.parametrize("name", ["compact-subject", "tissue-subject", "compact-image"])
def test_probabilities_are_those_of_the_calibrated_logits(image, name):
    found = predict_slice(image, model=name)
    card = json.loads((ZOO / f"{name}.json").read_text())
    logits = predict_logits(load_model(ZOO / f"{name}.keras"), image[None])[0].astype(float)
    assert card["temperature"] != 1
    expected = np.exp(logits / card["temperature"])
    expected /= expected.sum()
    assert list(found.probabilities) == card["class_names"]
    np.testing.assert_allclose(list(found.probabilities.values()), expected, rtol=1e-4)
    assert found.answer == card["class_names"][int(expected.argmax())]
    assert found.explanation.classes[0] == expected.argmax()
    knows = "recognition of people" in " ".join(found.warnings)
    assert knows == name.endswith("image")
    assert ("balanced over the classes there" in str(found)) != knows


def test_the_default_comes_with_the_repository_and_is_subject_wise():
    found = find_model(DEFAULT_MODEL, ("models/zoo",))
    assert json.loads(found.with_suffix(".json").read_text())["split"]["protocol"] == "subject"


def test_models_are_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("tissue-subject").resolve() == ZOO / "tissue-subject.keras"
    for folder in ("models/zoo", "models"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(ZOO / "tissue-subject.keras", tmp_path / folder)
        assert find_model("tissue-subject") == Path(folder) / "tissue-subject.keras"
    assert find_model("elsewhere/a.keras") == Path("elsewhere/a.keras")
    with pytest.raises(ModelFileError, match=r"no model 'gone' in models or models/zoo; there are"):
        find_model("gone")


@pytest.mark.slow
def test_warnings_fit_the_card(tmp_path, image):
    network = build_model("tissue")
    card = json.loads((ZOO / "tissue-subject.json").read_text())
    save_model(network, tmp_path / "made.keras", card | {"synthetic": True})
    assert "phantoms" in predict_slice(image, model=tmp_path / "made.keras").warnings[1]
    (tmp_path / "made.json").unlink()
    found = predict_slice(image, model=tmp_path / "made.keras", check=False)
    assert "no card" in found.warnings[1]
    assert "was not checked" in found.warnings[2]
    assert found.warnings[0].startswith("Not a diagnostic device")
    assert found.warnings[-1].startswith("The heatmap says where")
    logits = predict_logits(network, image[None])[0].astype(float)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(found.probabilities.values()), expected, rtol=1e-4)


def test_a_card_without_figures_or_with_fields_beside_a_training(tmp_path, image):
    network, path = build_model("tissue"), tmp_path / "made.keras"
    card = {"split": {"protocol": "subject"}, "validation": {}}
    save_model(network, path, card)
    assert "does not say what it was trained on, nor how well" in str(
        predict_slice(image, model=path)
    )
    save_model(network, path, card | {"range": [0, 1]})
    with pytest.raises(ModelFileError, match=r"must stand under 'expects'.*beside=\['range'\]"):
        predict_slice(image, model=path)
    path.with_suffix(".json").write_text(json.dumps({"range": [0, 1], "author": "me"}))
    with pytest.raises(ModelFileError, match=r"may hold .*unknown=\['author'\]"):
        predict_slice(image, model=path)


def test_a_model_of_another_size_is_named(tmp_path, image):
    save_model(build_model("tissue", input_shape=(64, 64, 1)), tmp_path / "small.keras", {})
    (tmp_path / "small.json").unlink()
    with pytest.raises(ModelFileError, match=r"small.keras: takes \(None, 64, 64, 1\)"):
        predict_slice(image, model=tmp_path / "small.keras")


def test_pixels_that_are_no_slice_are_refused(image):
    with pytest.raises(DataError, match="the slice: it"):
        predict_slice(image[::-1], model="tissue-subject")
    with pytest.raises(DataError, match=r"Received: \(128, 128\), float64"):
        predict_slice(image / 255, model="tissue-subject")


def test_the_command_line(tmp_path, capsys):
    folder = write_phantom(tmp_path / "data", subjects=8, slices=4)
    arguments = ["--model", "tissue-subject", "--output", str(tmp_path / "new/out")]
    assert main(["predict", str(folder / "test.parquet"), "--row", "2", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("test.parquet, row 2, by tissue-subject:")
    printed = [float(line.split()[-1]) for line in lines[1:5]]
    assert printed == sorted(printed, reverse=True)
    assert abs(sum(printed) - 1) < 0.003
    assert lines[5].startswith("The file itself says: ")
    assert lines[6].startswith("Not a diagnostic device")
    assert any(line.startswith("The slice is a synthetic phantom") for line in lines)
    picture = Path(lines[-1].removeprefix("Picture: "))
    assert picture.parent == tmp_path / "new/out"
    drawn = cv2.imread(str(picture))
    assert min(drawn.shape[:2]) > 300
    assert (np.ptp(drawn.astype(int), axis=2) > 40).mean() > 0.003, "and in colour"


@pytest.mark.slow
def test_the_truth_of_a_row_is_told_by_its_name(tmp_path, image):
    """In the file the classes stand in another order than the network's."""
    names = ["Very_Mild_Demented", "NonDemented", "moderate demented", "Mild_Demented"]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    blob = cv2.imencode(".png", image)[1].tobytes()
    table = pa.table({"image": [blob] * 4, "label": [0, 1, 2, 3]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    for row, name in enumerate(("Very Mild", "Non", "Moderate", "Mild")):
        found = predict_slice(tmp_path / "a.parquet", model="tissue-subject", row=row)
        assert f"The file itself says: {name} Demented." in str(found)
        drawn = " ".join(t.get_text() for t in found.draw().findobj(plt.Text))
        assert f"true: {name} Demented" in drawn


@pytest.mark.slow
@pytest.mark.filterwarnings("always")
def test_columns_and_classes_of_other_names_are_given(tmp_path, image, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "a.csv").write_text("scan,grade\na.png,0\na.png,1\na.png,2\na.png,3\n")
    asked = ["predict", str(tmp_path / "a.csv"), "--row", "1", "--output", str(tmp_path / "out")]
    assert main(asked) == 1
    assert "name them by --image and --label" in capsys.readouterr().err
    asked += ["--image", "scan", "--label", "grade"]
    assert main(asked) == 0
    said, warned = capsys.readouterr()
    assert "The file itself says: Moderate Demented." in said  # As sorted by name, so it warns.
    assert "1 = Moderate_Demented" in warned and "pass --classes NAME,NAME" in warned
    names = "Non_Demented,Very_Mild_Demented,Mild_Demented,Moderate_Demented"
    assert main([*asked, "--classes", names]) == 0
    said, warned = capsys.readouterr()
    assert "The file itself says: Very Mild Demented." in said and "assumed" not in warned


def test_without_a_file_it_takes_what_is_there(tmp_path, monkeypatch, capsys):
    """So that a first heatmap needs no more than a clone."""
    (tmp_path / "models").symlink_to(ZOO.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_DATA", raising=False)
    assert main(["predict", "--model", "tissue-subject"]) == 0
    assert capsys.readouterr().out.startswith("data/phantom/test.parquet, row 0, by tissue-subject")
    write_phantom(tmp_path / "mine", subjects=8, slices=4, seed=3)
    monkeypatch.setenv("MRI_DATA", "mine")
    assert main(["predict", "--model", "tissue-subject"]) == 0
    assert capsys.readouterr().out.startswith("mine/test.parquet, row 0, by tissue-subject")
    assert len(list((tmp_path / "runs").glob("*.png"))) >= 1


def test_the_command_line_refuses_in_one_line(tmp_path, image, capsys):
    cv2.imwrite(str(tmp_path / "turned.png"), image[::-1])
    arguments = ["predict", str(tmp_path / "turned.png"), "--output", str(tmp_path)]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "turned.png: it" in err
    assert main([*arguments, "--model", "tissue-subject", "--unchecked"]) == 0
    assert "was not checked" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "gone.png")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_the_drawing_says_what_is_known(image):
    found = predict_slice(image, model="tissue-subject")

    def text(of):
        return " ".join(t.get_text() for t in of.draw().findobj(plt.Text))

    assert "not a diagnostic device" in text(found)
    assert f"predicted: {found.answer.replace('_', ' ')}" in text(found)
    assert "true:" not in text(found)
    known = found._replace(slice=found.slice._replace(label=2, truth="Non_Demented"))
    assert "true: Non Demented" in text(known)
    assert "phantom" not in text(known)
    drawn = found._replace(slice=found.slice._replace(notes=(PHANTOM,)))
    assert "synthetic phantom" in text(drawn)


@pytest.fixture(scope="module")
def head():
    phantoms = make_phantoms(4, 32, seed=11)
    return phantoms.images[phantoms.subjects == 1]


def test_a_person_is_asked_about_with_all_slices_and_with_one(head):
    whole = predict_slice(head, model="glass_box")
    assert whole.model == "glass_box-subject"
    added = whole.person.contributions.astype(float)
    assert whole.person.severity == pytest.approx(whole.person.intercept + added.sum(), abs=1e-5)
    expected = np.exp(whole.person.logits) / np.exp(whole.person.logits).sum()
    np.testing.assert_allclose(list(whole.probabilities.values()), expected, rtol=1e-4)
    assert f"Severity {whole.person.severity:.2f}" in str(whole)
    assert not [of for of in whole.warnings if "heights have no slice" in of]
    one = predict_slice(head[12], model="glass_box")
    said = [of for of in one.warnings if of.startswith("Lacking: ")]
    assert any("of 32 heights have no slice" in of for of in said)
    assert any("judged by 1 of 32 slices" in of for of in said)
    text = " ".join(t.get_text() for t in one.draw().findobj(plt.Text))
    assert "not a diagnostic device" in text


@pytest.mark.slow
def test_the_command_line_takes_the_slices_of_a_person(tmp_path, head, capsys):
    files = [str(tmp_path / f"{number}.png") for number in range(len(head))]
    for file, image in zip(files, head, strict=True):
        cv2.imwrite(file, image)
    given = ["predict", *files, "--model", "glass_box", "--output", str(tmp_path / "out")]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "0.png and 31 more, by glass_box-subject:" in out
    assert "The map is exact" in out
    assert Path(out.splitlines()[-1].removeprefix("Picture: ")).is_file()
    assert main(["predict", *files[:2], "--model", "tissue"]) == 1
    assert "takes one slice. Received: 2" in capsys.readouterr().err


def test_nothing_given_and_nobody_to_be_made_of_it_are_refused(head):
    with pytest.raises(DataError, match="Received: no slice"):
        predict_slice([], model="tissue-subject")
    with pytest.raises(DataError, match=r"^slice 0: no person can be made of it \(Slices must not"):
        predict_slice(np.zeros_like(head[:2]), model="glass_box", check=False)


K = keras.layers


def flat(bias, activation="linear"):
    """A network without a grid, of given scores for whatever slice."""
    network = keras.Sequential([keras.Input((128, 128, 1)), K.Flatten(), K.Dense(4, activation)])
    network.layers[-1].set_weights([np.zeros((128**2, 4)), np.array(bias, float)])
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "card", "said"),
    [
        (lambda: flat([0, 2, 0, 0]), None, ["classes are guessed", "No heatmap: No layer can be"]),
        (lambda: flat([0, 99, 0, 0]), None, ["all too sure: does it expect other values"]),
        (lambda: flat([0, 2, 0, 0], "softmax"), None, ["The network ends in softmax: read by"]),
        (lambda: flat([0, 2, 0, 0]), {"temperature": 2.0, "seed": 0}, ["what it was trained on"]),
        (lambda: flat([0, 2, 0, 0]), {"channels": 1}, ["what it expects, no more: not calib"]),
        (lambda: flat([0, np.nan, 0, 0]), None, "gives logits that are not finite"),
    ],
)
def test_what_a_network_is_is_said_or_refused(network, card, said, tmp_path, image, monkeypatch):
    """As in the process for models of strangers, but in this one."""
    monkeypatch.setattr("mri.predict.is_own", lambda file: True)
    path, made = tmp_path / "m.keras", network()
    keras.saving.save_model(made, path)
    if card is not None:
        path.with_suffix(".json").write_text(json.dumps({"sha256": file_sha256(path)} | card))
    if isinstance(said, str):
        with pytest.raises(ModelFileError, match=rf"^{path}: .*({said})"):
            predict_slice(image, model=path)
        return
    found = predict_slice(image, model=path)
    for text in said:
        assert text in str(found)
    shares = np.exp(np.array([0, 2, 0, 0]) / (card or {}).get("temperature", 1))
    if "sure" not in said[0]:
        np.testing.assert_allclose([*found.probabilities.values()], shares / shares.sum(), 1e-5)
    assert found.answer == "Moderate_Demented" and found.explanation is None
    drawn = " ".join(t.get_text() for t in found.draw().findobj(plt.Text))
    assert "predicted: Moderate Demented, no heatmap" in drawn and "not a diagnostic" in drawn


@pytest.mark.parametrize("model", ["tissue-subject", "glass_box-subject"])
def test_no_slices_are_refused(model):
    with pytest.raises(DataError, match=r"Received: \(0, 128, 128\), uint8"):
        predict_slice(np.zeros((0, 128, 128), np.uint8), model=model)


def test_numbers_that_would_be_ignored_are_refused(image, tmp_path, capsys):
    with pytest.raises(DataError, match=r"pixels have no rows or planes\. Received: row=1"):
        predict_slice(np.stack([image, image]), model="glass_box", row=1)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image)
    assert main(["predict", str(file), "--plane", "3"]) == 1
    assert main(["predict", str(file), "--output", str(file)]) == 1
    said, refused = capsys.readouterr()
    assert not said
    assert "planes of a volume or a series. Received: row=0, plane=3" in refused
    assert "--output takes a folder. Received: file=" in refused


@pytest.mark.parametrize("row", [1.5, "a", None])
def test_a_row_is_a_whole_number(row):
    with pytest.raises(ValueError, match="row must be an integer"):
        predict_slice("any.parquet", row=row)


def test_dollars_in_names_are_no_formula(image, tmp_path):
    (tmp_path / "a$^$.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    for model in ("glass_box-subject", "tissue-subject"):
        found = predict_slice(tmp_path / "a$^$.png", model=model)
        found._replace(model="net$^$").draw().savefig(tmp_path / "out.png")
    found._replace(model="net$^$", explanation=None).draw().savefig(tmp_path / "out.png")


def test_the_command_says_what_an_error_adds(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        error = RuntimeError("NaN or Inf loss")
        error.add_note("epoch 3 is kept; run it again")
        raise error

    monkeypatch.setattr("mri.predict.predict_slice", fail)
    assert main(["predict", "a.png"]) == 1
    assert capsys.readouterr().err == "NaN or Inf loss; epoch 3 is kept; run it again\n"


def test_the_command_card_names_the_file_that_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("net-1.5", "foo-subject"):
        shutil.copy(ZOO / "tissue-subject.keras", f"models/{name}.keras")
    for asked, written in (("foo", "foo-subject"), ("net-1.5", "net-1.5")):
        assert main(["card", asked, "--range", "0", "255"]) == 0
        assert f"Written: models/{written}.json" in capsys.readouterr().out
        assert Path(f"models/{written}.json").is_file()


def test_commands_refuse_numbers_and_names_that_say_nothing(tmp_path, capsys):
    write_phantom(tmp_path / "data", subjects=4, slices=3)
    data = str(tmp_path / "data")
    assert main(["audit", data, "--classes", "0=A,0=B,1=C,2=D,3=E"]) == 1
    assert "name each label once" in capsys.readouterr().err
    assert main(["audit", data, "--html", str(tmp_path)]) == 1
    assert "take the name of a file" in capsys.readouterr().err
