"""The sweep over all networks and both protocols: named, resumable, and enough for a ranking."""

import json
from pathlib import Path

import numpy as np
import pytest

import mri.training.folds
import mri.training.loop
from mri.__main__ import main
from mri._keras import keras
from mri.data.phantom import write_phantom
from mri.evaluation.comparison import compare
from mri.evaluation.logits import find_logits
from mri.models.builders import _BUILDERS, list_models, register
from mri.models.files import ModelFile, read_card
from mri.training.recipe import RECIPES, Recipe, entries

ROOT = Path(__file__).resolve().parents[2]

# Keras' saving and loading.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds"),
]


def flat(x, classes):
    return keras.layers.Dense(classes)(keras.layers.Flatten()(x))


@pytest.fixture
def registry(monkeypatch):
    kept = dict(_BUILDERS)
    register(flat)
    monkeypatch.setitem(RECIPES, "flat", Recipe(epochs=1, dtype="float32"))
    yield
    _BUILDERS.clear()
    _BUILDERS.update(kept)


def test_every_network_is_an_entry_and_the_baseline_one_by_each_other_recipe():
    found = entries()
    assert {name for name, (builder, _) in found.items() if name == builder} == set(list_models())
    others = {name: of for name, of in found.items() if name != of[0]}
    assert set(others) == {
        f"baseline_{name}"
        for name in ("weighted_sampling", "hard_mining_16", "hard_mining_32", "hard_mining_64")
    }
    assert {builder for builder, _ in others.values()} == {"baseline"}
    for size in (16, 32, 64):
        recipe = others[f"baseline_hard_mining_{size}"][1]
        assert (recipe.batch_size, recipe.hardest, recipe.epochs) == (size, 0.2, 20)
    assert others["baseline_weighted_sampling"][1].balance == "sampling"
    assert found["baseline"][1] == Recipe(epochs=10, batch_size=32, learning_rate=1e-3)


@pytest.mark.slow
def test_a_sweep_leaves_what_a_ranking_needs_and_is_not_done_twice(
    registry, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(write_phantom("data", subjects=12, slices=10)))
    assert main(["zoo", "flat", "--seeds", "2"]) == 0
    names = [f"flat{seed}-{part}" for seed in ("", "-seed1") for part in ("image", "subject")]
    files = {path.name for path in (tmp_path / "models/zoo").iterdir()}
    assert files == {f"{n}.{end}" for n in names for end in ("keras", "json", "parquet")}
    for name in names:
        path = tmp_path / f"models/zoo/{name}.keras"
        card, kept = read_card(path), find_logits(ModelFile(path))
        np.testing.assert_array_equal(kept.rows, card["test_rows"])
        assert card["seed"] == int("seed1" in name)
    assert len(capsys.readouterr().out.splitlines()) == 4

    def fit(*arguments, **options):
        pytest.fail("trained again")

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(mri.training.folds, "keep_logits", fit)
    assert main(["zoo", "flat", "--seeds", "2"]) == 0
    found = compare(folder="models")
    assert list(found.leaderboard().index) == ["flat"], "a repeat is no network of its own"
    assert list(found.p_values["subject"]) == found.best("subject", 9) == ["flat-subject"]
    assert found.leaderboard()[["subject", "image"]].notna().all(axis=None)
    assert found.seeds()["seeds"].tolist() == [2, 2]
    assert found.evaluated == ()

    (tmp_path / "models/zoo/reported.json").write_text('{"reported": {"flat": "12.34"}}')
    assert main(["zoo", "--table", "--output", "models/zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()[-1:]
    board = found.leaderboard()
    for line, name in zip(lines, board.index, strict=True):
        first, *cells, weights = line.strip("| ").split(" | ")
        assert first.split("`")[1] == name
        assert first.endswith(" *") == bool(board.loc[name, "leading"])
        assert cells[0] == "12.34"
        for cell, part in zip(cells[1:], ("image", "subject"), strict=False):
            value = found.evaluations[f"{name}-{part}"].metrics["slice"]["accuracy"].value
            assert float(cell.split(" [")[0]) == pytest.approx(100 * value, abs=0.005)
        assert int(weights.replace(",", "")) == board.loc[name, "parameters"]


def test_what_was_reported_belongs_to_entries():
    reported = json.loads((ROOT / "models/zoo/reported.json").read_text())["reported"]
    assert set(reported) <= set(entries())


def test_an_unknown_name_lists_what_there_is(capsys):
    assert main(["zoo", "compakt"]) == 1
    assert "There are baseline, " in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_model_file_is_not_in_the_repository_is_not_done_again(
    registry, tmp_path, monkeypatch, capsys
):
    """Card and logits are enough, also those of a machine with another arithmetic."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(write_phantom("data", subjects=12, slices=10)))
    monkeypatch.setitem(RECIPES, "flat", Recipe(epochs=1))
    monkeypatch.setattr(mri.training.loop, "native_dtype", lambda: "mixed_bfloat16")
    assert main(["zoo", "flat"]) == 0
    monkeypatch.setattr(mri.training.loop, "native_dtype", lambda: "float32")
    home = tmp_path / "models/zoo"
    for file in home.glob("*.keras"):
        file.unlink()
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    assert main(["zoo", "flat"]) == 0
    assert capsys.readouterr().out.count("trained before") == 2
    assert before == {path.name: path.read_bytes() for path in home.iterdir()}
    monkeypatch.setitem(RECIPES, "flat", Recipe(epochs=2))
    assert main(["zoo", "flat"]) == 0, "another recipe is another run"
    assert read_card(home / "flat-image.keras")["recipe"]["epochs"] == 2
