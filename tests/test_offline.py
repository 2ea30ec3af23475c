"""The package keeps to itself: no network but for downloads, no file outside its folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mri

WORK = """
import json, socket, sys

tried = []

def refuse(*arguments, **options):
    tried.append(sys._getframe(1).f_code.co_filename)
    raise OSError("no network here")

class Closed(socket.socket):
    connect = connect_ex = sendto = refuse

socket.socket, socket.create_connection, socket.getaddrinfo = Closed, refuse, refuse

import mri
from mri.models import builders as models
from mri.data.decode import DataError
from mri.data import download_slices

folder = mri.data.write_phantom("data", subjects=8, slices=4)
mri.read_scans(folder, split="train")
made = mri.make_phantoms(8, 4, size=64)
split = mri.subject_split(made.labels, made.subjects, folds=2)
run = mri.train("compact", made.scans, split, recipe=mri.Recipe(epochs=1), verbose=0)
model = mri.load_model(run.path)
logits = mri.predict_logits(model, made.images[split.test])
mri.evaluate(made.labels[split.test], logits, made.subjects[split.test], draws=10)
mri.GradCAM(model, method="hirescam")(made.images[split.test])
mri.compare(made.scans, made.subjects).leaderboard()
mri.plots.class_counts(made.labels, mri.CLASS_NAMES).figure.savefig("runs.png")
models.DOWNLOAD = False
mri.build_model("resnet50", input_shape=(64, 64, 1))
quiet = not tried
try:
    download_slices("data")
except DataError as error:
    print(json.dumps({"quiet": quiet, "tried": len(tried), "download": str(error)}))
"""


def entries(package):
    """What lies in the package's folder, without what a measurement of coverage writes there."""
    return sorted(of for of in package.glob("*") if not of.name.startswith(".coverage"))


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """Return what the work printed, and the files it left, by the folder they are in."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("home", "temporary", "cwd")}
    package = Path(mri.__file__).parents[1]
    surroundings = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("XDG", "HF_", "KERAS"))},
        "PYTHONPATH": str(package),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(places["home"]),
        "TMPDIR": str(places["temporary"]),
        "MPLBACKEND": "agg",
    }
    kept = entries(package)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORK],
        cwd=places["cwd"],
        env=surroundings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert entries(package) == kept
    files = {
        name: {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
        for name, place in places.items()
    }
    return json.loads(done.stdout.splitlines()[-1]), files


@pytest.mark.slow
def test_nothing_but_the_download_asks_for_the_network(worked):
    said, _ = worked
    assert said["quiet"]
    assert said["tried"] > 0
    assert said["download"].startswith("download failed")
    assert "Put train-00000-of-00001" in said["download"]


@pytest.mark.slow
def test_files_are_written_to_data_and_models_only(worked):
    _, files = worked
    assert files["cwd"] == {
        *(f"data/{part}.parquet" for part in ("train", "test")),
        *(f"models/compact-subject.{end}" for end in ("keras", "json", "parquet")),
        "runs.png",
    }
    assert files["temporary"] == set()
    # Of the libraries: Keras notes its settings, matplotlib the fonts that it found.
    own = {path for path in files["home"] if not path.startswith((".keras/", ".cache/matplotlib/"))}
    assert {path for path in own if not path.startswith(".config/matplotlib/")} == set()
