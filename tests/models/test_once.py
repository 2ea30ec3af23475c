"""Nothing about a model file is read twice, and a finished network is built once."""

from collections import Counter

import numpy as np
import pytest

import mri
import mri.models.files
import mri.training.loop
from mri.evaluation.comparison import compare
from mri.models.builders import build_model
from mri.models.files import save_model
from mri.subjects.splits import subject_split
from mri.training.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHORT = Recipe(epochs=1, batch_size=8, dtype="float32")


@pytest.fixture
def counts(monkeypatch):
    """Calls of what reads, hashes, inspects and builds, by name."""
    found = Counter()

    def count(module, name):
        function = getattr(module, name)

        def counted(*arguments, **options):
            found[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for name in ("read_card", "read_regular", "inspect_archive", "check_weights"):
        count(mri.models.files, name)
    count(mri.training.loop, "build_model")
    return found


@pytest.fixture(scope="module")
def phantoms():
    return mri.make_phantoms(12, 2, size=64)


def test_a_new_file_is_read_hashed_and_inspected_once_by_a_comparison(tmp_path, counts, phantoms):
    scans = phantoms.scans
    card = {"class_names": list(scans.class_names), "temperature": 1.0, "test_rows": [4, 5, 6, 7]}
    card |= {"data": scans.fingerprint(), "split": {"protocol": "subject"}}
    save_model(build_model("tissue", input_shape=(64, 64, 1)), tmp_path / "new.keras", card)
    counts.clear()
    found = compare(scans, phantoms.subjects, tmp_path)
    assert found.evaluated == ("new",), found.table["note"].tolist()
    once = dict.fromkeys(("read_card", "read_regular", "inspect_archive"), 1)
    # Weights of a stranger are opened in another process.
    assert counts == once
    counts.clear()
    assert compare(scans, phantoms.subjects, tmp_path).evaluated == ()
    assert counts == once, "a few rows are predicted anew, to verify the logits that were kept"


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_finished_run_is_built_once_and_its_file_read_once(tmp_path, counts, phantoms, dtype):
    scans, recipe = phantoms.scans, Recipe(epochs=1, batch_size=8, dtype=dtype)
    split = subject_split(scans.labels, phantoms.subjects, folds=2)
    options = {"recipe": recipe, "folder": tmp_path, "verbose": 0}
    first = mri.train("tissue", scans, split, **options)
    counts.clear()
    again = mri.train("tissue", scans, split, **options)
    assert counts == {
        "build_model": 1,
        "read_card": 1,
        "read_regular": 1,
        "inspect_archive": 1,
        "check_weights": 1,
    }
    for one, other in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.card == first.card


@pytest.mark.slow
def test_a_finished_run_of_a_damaged_file_starts_from_its_own_weights(tmp_path, phantoms):
    """The file is read into the network of the run, which must not begin from there."""
    scans = phantoms.scans
    split = subject_split(scans.labels, phantoms.subjects, folds=2)
    options = {"recipe": SHORT, "folder": tmp_path, "verbose": 0}
    first = mri.train("tissue", scans, split, **options)
    wrong = build_model("compact", input_shape=(64, 64, 1))
    save_model(wrong, first.path, first.card)
    again = mri.train("tissue", scans, split, **options)
    for one, other in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
