"""The README tells the truth: its names exist, its code runs, its figures are in the notebooks."""

import importlib
import re
from pathlib import Path

import nbformat
import pytest

import mri
from mri.data.phantom import write_phantom
from mri.evaluation.comparison import reported_table as table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_public_names_are_those_of_the_package():
    listed = re.search(r"Public names: (.*?)\.\n", README, re.DOTALL).group(1)
    assert re.findall(r"`(\w+)`", listed) == mri.__all__


@pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds")
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    folder = write_phantom(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        short = block.replace('"data"', repr(str(folder)))
        short = re.sub(
            r"(mri\.train\(.*?)\)", r"\1, recipe=mri.Recipe(epochs=1), verbose=0)", short
        )
        assert short != block
        exec(short, names)
    heatmaps = names["heatmaps"]
    assert heatmaps.shape == (len(names["split"].test), 128, 128)
    assert 0 <= heatmaps.min() < heatmaps.max() <= 1
    assert "Balanced accuracy" in capsys.readouterr().out
    saved = {path.name for path in (tmp_path / "models").iterdir()}
    assert saved == {f"{m}-subject.{end}" for m in ("compact", "mine") for end in ("keras", "json")}


def test_figures_of_the_tables_stand_in_the_committed_notebooks():
    outputs = ""
    for name in ("main.ipynb", "models_compare.ipynb"):
        for cell in nbformat.read(ROOT / name, as_version=4).cells:
            for output in cell.get("outputs", []):
                outputs += str(output.get("text", "")) + str(output.get("data", {}))
    # Those of speed have a file of their own.
    told = re.sub(r"<!-- speed:.*?<!-- end", "", README, flags=re.DOTALL)
    rows = [line for line in told.splitlines() if line.startswith("|")]
    figures = [figure for row in rows for figure in re.findall(r"\b[01]\.\d{3}\b", row)]
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in outputs] == []


def test_the_table_of_the_zoo_is_that_of_its_command():
    assert table(ROOT / "models/zoo") in README


def test_the_table_of_heatmaps_is_what_its_command_printed():
    assert (ROOT / "models/zoo/heatmaps.md").read_text(encoding="utf-8") in README


def test_every_error_of_the_package_is_explained():
    told = README.partition("## Errors and what they mean")[2].partition("\n## ")[0]
    for name in (path.stem for path in (ROOT / "mri").glob("[!_]*.py")):
        for found in vars(importlib.import_module(f"mri.{name}")).values():
            if isinstance(found, type) and issubclass(found, Exception):
                own = found.__module__.startswith("mri.")
                assert not own or f"| `{found.__name__}` |" in told, found


def test_the_table_of_speed_is_that_of_its_command():
    table = (ROOT / "tests/benchmarks/results.md").read_text(encoding="utf-8")
    assert f"<!-- speed: written by make bench -->\n\n{table}" in README


def test_files_and_targets_it_names_exist():
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_its_picture_is_the_grid_of_the_notebook():
    cell = re.search(r"main_files/main_(\d+)_0\.png", (ROOT / "Makefile").read_text()).group(1)
    cells = nbformat.read(ROOT / "main.ipynb", as_version=4).cells
    assert "pick_examples" in cells[int(cell)].source
