"""A stranger's file is tried out in a process of limited means before it is opened in this one."""

import re
import sys
from pathlib import Path

import pytest

import child_functions as functions
import mri.__main__
import mri.models.files
from mri._keras import keras
from mri.data.phantom import make_phantoms
from mri.gradcam.tables import heatmap_table
from mri.models.builders import build_model
from mri.models.files import ModelFileError, declare, load_model, read_card, save_model

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

K = keras.layers


@pytest.fixture
def stranger(tmp_path):
    path = tmp_path / "stranger.keras"
    build_model("tissue").save(path)
    return path


@pytest.fixture(scope="module")
def phantoms():
    return make_phantoms(8, 2)


class Counted:
    """A stand-in for the child that notes what it is asked to run."""

    def __init__(self):
        self.paths = []

    def run(self, function, path, facts, arrays):
        assert function is mri.models.files.try_out
        self.paths.append(path.name)
        return {}, {}


@pytest.fixture
def counted(monkeypatch):
    stand_in = Counted()
    monkeypatch.setattr(mri.models.files, "CHILD", stand_in)
    return stand_in


OPENED = {
    "load_model": lambda path, of: load_model(path),
    "declare": lambda path, of: declare(path, range=(0, 255), write=False),
    "card": lambda path, of: mri.__main__.main(["card", str(path), "--range", "0", "1"]),
    "heatmap_table": lambda path, of: list(heatmap_table([path], of.scans, of.subjects)),
    "heatmaps": lambda path, of: mri.__main__.main(["heatmaps", str(path)]),
}


@pytest.mark.parametrize("way", OPENED)
@pytest.mark.parametrize(
    ("takes", "message"),
    [
        ("sleeps", "no answer after 1 s"),
        pytest.param(
            "eats",
            r"needs more than 0\.5 GiB of memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux"),
        ),
    ],
)
def test_what_takes_too_much_is_refused_unopened(
    way, takes, message, stranger, child, phantoms, monkeypatch, capsys
):
    monkeypatch.setenv("PYTHONPATH", str(Path(functions.__file__).parent))
    monkeypatch.setenv("MRI_MODEL_GIB", "0.5")
    if takes == "sleeps":
        monkeypatch.setenv("MRI_MODEL_SECONDS", "8")

    class Misbehaving:
        def run(self, function, *rest):
            return child.run(getattr(functions, takes), *rest)

    def opened(*arguments, **options):
        pytest.fail("the file was opened in this process")

    monkeypatch.setattr(mri.models.files, "CHILD", Misbehaving())
    monkeypatch.setattr(keras.saving, "load_model", opened)
    protocols = phantoms.scans, {}, phantoms.subjects
    monkeypatch.setattr(mri.__main__, "protocols", lambda: protocols)
    message = rf"stranger\.keras: .*{message}"
    if way in ("card", "heatmaps"):
        assert OPENED[way](stranger, phantoms) == 1
        assert re.search(message, capsys.readouterr().err)
        assert not stranger.with_suffix(".json").exists()
    else:
        with pytest.raises(ModelFileError, match=message):
            OPENED[way](stranger, phantoms)


def test_a_network_of_ones_own_costs_no_child(counted, tmp_path):
    load_model("tissue-subject")
    save_model(build_model("tissue"), tmp_path / "mine.keras", {})
    load_model(tmp_path / "mine.keras")
    assert counted.paths == []


def test_a_strangers_file_is_tried_once_in_each_form(counted, stranger):
    for _ in range(2):
        load_model(stranger)
    assert counted.paths == ["stranger.keras"]
    stranger.with_suffix(".json").write_text('{"range": [0, 1]}')
    load_model(stranger)
    assert len(counted.paths) == 2, "what its card declares is run too"


def test_no_card_makes_a_file_trusted(counted, tmp_path, monkeypatch):
    path = tmp_path / "forged.keras"
    card = read_card("models/zoo/tissue-subject.keras")
    save_model(build_model("tissue"), path, card)
    monkeypatch.setattr(mri.models.files, "_TRUSTED", set())  # As in another process.
    load_model(path)
    assert counted.paths == ["forged.keras"]


def test_what_is_refused_is_refused_again(counted, stranger, monkeypatch):
    def refuse(function, path, *rest):
        counted.paths.append(path.name)
        raise ModelFileError(f"{path}: too much")

    monkeypatch.setattr(counted, "run", refuse)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="too much"):
            load_model(stranger)
    assert len(counted.paths) == 2


def several_inputs():
    inputs = [keras.Input((8, 8, 1)), keras.Input((3,), name="age")]
    return inputs, K.Dense(4)(K.Concatenate()([K.Flatten()(inputs[0]), inputs[1]]))


def whole_numbers():
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    return inputs, K.Dense(4)(K.Flatten()(inputs))


def open_sizes_that_do_not_take_a_slice():
    inputs = keras.Input((None, None, 1))
    return inputs, K.Dense(4)(K.Reshape((64,))(inputs))


@pytest.mark.parametrize(
    "make", [several_inputs, whole_numbers, open_sizes_that_do_not_take_a_slice]
)
def test_the_trial_takes_any_network(make, tmp_path):
    path = tmp_path / "other.keras"
    keras.Model(*make()).save(path)
    with mri.models.files.ModelFile(path).handed() as told:
        assert list(mri.models.files.try_out(told, {})) == [({}, {})] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_real_network_that_eats_memory_is_refused(tmp_path, monkeypatch):
    """Two hundred layers of which each is small enough, and all are needed at once."""
    monkeypatch.setenv("MRI_MODEL_GIB", "1")
    inputs = keras.Input((128, 128, 1))
    x = K.Add()([K.Conv2D(256, 1)(inputs) for _ in range(200)])
    keras.Model(inputs, K.Dense(4)(K.GlobalAveragePooling2D()(x))).save(tmp_path / "wide.keras")
    with pytest.raises(ModelFileError, match=r"needs more than 1 GiB|ended the process"):
        load_model(tmp_path / "wide.keras")
