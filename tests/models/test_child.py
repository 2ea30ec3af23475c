"""What a stranger's model does while it runs costs one row, whatever it is, and no other model."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import child_functions as functions
import mri
import mri.evaluation.comparison
from mri._keras import keras
from mri.data.scans import Scans
from mri.evaluation.comparison import compare
from mri.models.child import CHILD, run_here
from mri.models.child import _receive as receive
from mri.models.child import _send as send
from mri.models.files import ModelFileError
from mri.predict import predict_slice

K = keras.layers
NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
MODEL = Path("m.keras")
FUNCTIONS, ROOT = Path(functions.__file__).parent, Path(mri.__file__).parents[1]
IMAGES = {"images": np.arange(6, dtype=np.uint8).reshape(2, 3), "none": np.zeros((0, 2), "f4")}
HELD_BACK = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")


@pytest.fixture(autouse=True)
def functions_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(functions.__file__).parent))


def ask(child, name):
    return child.run(getattr(functions, name), MODEL, {"n": 1}, IMAGES)


def test_arrays_go_there_and_back(child):
    for name in ("answers", "prints"):
        told, arrays = ask(child, name)
        assert told["told"] == {"n": 1}
        assert told["pid"] != os.getpid()
        for key, given in IMAGES.items():
            assert arrays[key].dtype == given.dtype
            np.testing.assert_array_equal(arrays[key], given * 2)
    here, _ = run_here(functions.answers, MODEL, {"n": 1}, IMAGES)
    assert here == {"told": {"n": 1}, "pid": os.getpid()}


def test_one_process_serves_many_and_is_replaced_where_it_has_to_be(child):
    first = ask(child, "answers")[0]["pid"]
    with pytest.raises(ModelFileError, match=r"^m\.keras: is no good$"):
        ask(child, "refuses")
    assert ask(child, "answers")[0]["pid"] == first, "a clean refusal costs nothing"
    folder = Path(child._folder)
    with pytest.raises(ModelFileError, match=r"m\.keras: cannot be run \(KeyError") as caught:
        ask(child, "raises")
    assert len(str(caught.value)) < 3000 and "\x1b" not in str(caught.value)
    assert ask(child, "answers")[0]["pid"] != first
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sleeps", r"no answer after 2 s.*MRI_MODEL_SECONDS to more than 16"),
        pytest.param("sleeps_later", r"no answer after 16 s", marks=pytest.mark.slow),
        ("aborts", r"ended the process in which it was run \(SIGABRT\); do not use it"),
        ("leaves", r"ended the process in which it was run \(exit status 0\)"),
        pytest.param("lies", r"ended the process", marks=pytest.mark.slow),
        pytest.param("eats", r"needs more than 0\.5 GiB.*MRI_MODEL_GIB", marks=HELD_BACK),
    ],
)
def test_what_misbehaves_is_named_and_the_next_is_served(child, name, message, monkeypatch):
    monkeypatch.setenv("MRI_MODEL_GIB", "0.5")
    ask(child, "answers")
    if name.startswith("sleeps"):
        monkeypatch.setenv("MRI_MODEL_SECONDS", "16")
    with pytest.raises(ModelFileError, match=rf"^m\.keras: .*{message}"):
        ask(child, name)
    assert ask(child, "answers")[0]["told"] == {"n": 1}


@pytest.mark.parametrize("value", ["0", "-1", "much", "nan", "inf"])
def test_a_limit_is_a_number(child, value, monkeypatch):
    monkeypatch.setenv("MRI_MODEL_GIB", value)
    with pytest.raises(ValueError, match=f"MRI_MODEL_GIB must be a number above 0. .*={value!r}"):
        ask(child, "answers")


def test_it_ends_with_its_parent(tmp_path):
    script = (
        "import child_functions, os, signal, sys\nfrom pathlib import Path\n"
        "from mri.models.child import Child\n"
        "print(Child('json').run(child_functions.answers, Path(), {}, {})[0]['pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    paths = os.pathsep.join([str(Path(functions.__file__).parent), str(Path.cwd())])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    gone, until = Path(f"/proc/{int(done.stdout)}/cmdline"), time.monotonic() + 30
    while gone.exists() and gone.read_bytes() and time.monotonic() < until:
        time.sleep(0.2)
    assert not (gone.exists() and gone.read_bytes())


# --- models ---


def save(path, body, size=16):
    keras.utils.set_random_seed(1)
    x = keras.Input((size, size, 1))
    keras.Model(x, K.Dense(4)(K.GlobalAveragePooling2D()(body(K.Rescaling(1 / 255)(x))))).save(path)


def honest(x):
    return K.Conv2D(4, 3, activation="relu")(x)


def endless(x):
    """Pools over windows of 2**62 pixels, nearly all of them outside the slice."""
    return K.MaxPooling2D(2**31 - 1, padding="same")(honest(x))


def wide(x):
    """Two hundred layers of which each is small enough, and all are needed at once."""
    return K.Add()([K.Conv2D(1024, 1)(x) for _ in range(200)])


def dilated(x):
    return K.DepthwiseConv2D(3, dilation_rate=2**25, padding="same")(x)


@pytest.fixture(scope="module")
def scans():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(24), 2)
    images = rng.integers(0, 256, (48, 16, 16), dtype=np.uint8)
    rejected = pd.DataFrame(columns=["file", "row", "cause"])
    return Scans(images, subjects % 4, NAMES, rejected, synthetic=True), subjects


@pytest.mark.slow
@HELD_BACK
@pytest.mark.parametrize("order", [1, -1])
def test_models_that_take_too_much_cost_a_row_each(order, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("MRI_MODEL_SECONDS", "320")
    monkeypatch.setenv("MRI_MODEL_GIB", "1")
    bodies = {"endless": endless, "wide": wide, "dilated": dilated, "aborts": honest}
    for i, name in enumerate([*bodies][::order]):
        save(tmp_path / f"{2 * i}-{name}.keras", bodies[name])
    for i in range(5):
        save(tmp_path / f"{2 * i - 1}-honest.keras", honest)

    def run(function, path, *rest):
        return CHILD.run(functions.aborts if "aborts" in path.stem else function, path, *rest)

    child = type("Run", (), {"run": run, "start": lambda: None})
    monkeypatch.setattr(mri.evaluation.comparison, "CHILD", child)
    table = compare(*scans, tmp_path).table.set_index("model")
    ranked = table[table["protocol"] == "unknown"]
    assert sorted(ranked.index) == [f"{2 * i - 1}-honest" for i in range(5)], [*table["note"]]
    assert ranked["log_loss"].nunique() == 1
    notes = {name.partition("-")[2]: note for name, note in table["note"].items()}
    # On a busy machine the time is over before the memory is full; TensorFlow may crash instead.
    for name in ("endless", "wide", "dilated"):
        too_much = "no answer after|needs more than 1 GiB|ended the process|the limit is"
        assert re.search(too_much, notes[name])
    assert "ended the process in which it was run (SIGABRT)" in notes["aborts"]


@pytest.mark.slow
@HELD_BACK
def test_a_wide_model_that_is_honest_is_run_in_small_batches(tmp_path, monkeypatch):
    """Of 16 million numbers a slice: sixteen slices at once would take 1 GB a layer."""
    monkeypatch.setenv("MRI_MODEL_GIB", "1.5")
    save(tmp_path / "broad.keras", lambda x: K.ReLU()(K.Conv2D(1024, 1)(x)), 128)
    phantoms = mri.make_phantoms(8, 2)
    row = compare(phantoms.scans, phantoms.subjects, tmp_path).table.iloc[0]
    assert row["protocol"] == "unknown", row["note"]


@pytest.mark.slow
def test_a_prediction_survives_a_model_that_does_not_end(tmp_path, monkeypatch):
    save(tmp_path / "endless.keras", endless, 128)
    save(tmp_path / "honest.keras", honest, 128)
    image = mri.make_phantoms(4, 1).images[0]
    found = predict_slice(image, model=tmp_path / "honest.keras")
    assert found.explanation.maps.shape == (1, 128, 128)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    monkeypatch.setenv("MRI_MODEL_SECONDS", "120")
    with pytest.raises(ModelFileError, match=r"no answer after 15 s|ended the process"):
        predict_slice(image, model=tmp_path / "endless.keras")


def test_a_card_of_a_later_version_is_refused(scans, tmp_path):
    save(tmp_path / "m.keras", honest)
    (tmp_path / "m.json").write_text(json.dumps({"card_version": 99, "range": [0, 1]}))
    assert "'card_version' is 99" in compare(*scans, tmp_path).table["note"][0]


def test_it_leaves_with_status_0_when_its_parent_closes_the_pipe(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "mri.models.child", "json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (FUNCTIONS, ROOT)))},
    )
    with process:
        assert receive(process.stdout) == ({}, {}), "it says when it is ready"
        asked = {"gib": 1.0, "facts": {"n": 2}}
        for name, of in IMAGES.items():
            send(process.stdin, {"function": "child_functions:prints", **asked}, {name: of})
            receive(process.stdout)
            told, arrays = receive(process.stdout)
            assert told["facts"] == {"told": {"n": 2}, "pid": process.pid}
            np.testing.assert_array_equal(arrays[name], of * 2)
        for name, said, refused in (
            ("refuses", "m.keras: is no good", True),
            ("raises", "KeyError: ", False),
        ):
            send(process.stdin, {"function": f"child_functions:{name}", **asked}, {})
            told, _ = receive(process.stdout)
            assert told["error"].startswith(said) and told["refused"] is refused
            assert len(told["error"]) <= 100_000
        process.stdin.close()
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()
