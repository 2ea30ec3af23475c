"""The notebooks run on phantoms from top to bottom, and keep to the rules of their form."""

import ast
import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mri.data.phantom import write_phantom

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ["main.ipynb", "models_compare.ipynb"]


def no_models(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".keras") or name.startswith(".")]


def run(name: str, folder: Path, data: Path | None, **settings: object) -> nbformat.NotebookNode:
    """Execute a notebook with its parameters cell overridden."""
    book = nbformat.read(ROOT / name, as_version=4)
    at = [i for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", [])]
    assert len(at) == 1
    settings |= {"FOLDER": data and str(data), "MODELS": str(folder / "models")}
    if "CROSSVAL =" in book.cells[at[0]].source:
        settings["CROSSVAL"] = str(ROOT / "models/crossval.parquet")
    values = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    book.cells.insert(at[0] + 1, nbformat.v4.new_code_cell(values))
    # A kernel that inherits the tests' MPLBACKEND draws no figure.
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    client = NotebookClient(book, timeout=600, kernel_name="python3")
    client.execute(cwd=str(folder), env=environment)
    return book


def outputs(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def text(book: nbformat.NotebookNode) -> str:
    return json.dumps([dict(output) for output in outputs(book)])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    folder = tmp_path_factory.mktemp("notebooks")
    data = write_phantom(folder / "phantom", subjects=20)
    return {
        "main.ipynb": run("main.ipynb", folder, data, EPOCHS=1, LESSON_EPOCHS=1, CHECKED=8),
        "models_compare.ipynb": run("models_compare.ipynb", folder, data, EPOCHS=1),
    }


def test_main_shows_every_figure_and_says_that_the_slices_are_synthetic(executed):
    book = executed["main.ipynb"]
    pictures = [o for o in outputs(book) if "image/png" in o.get("data", {})]
    cells = [c for c in book.cells if c.cell_type == "code" and "plots." in c.source]
    # The cell of imports names `plots` too; the curves are one figure a protocol; the explorer.
    assert len(pictures) == len([c for c in cells if "import" not in c.source]) + 2
    assert "synthetic phantom slices" in text(book)
    assert not [o for o in outputs(book) if o.get("name") == "stderr"], text(book)


def test_main_finds_the_leak_that_phantoms_have(executed):
    assert "Leaky: 100% of the test slices" in text(executed["main.ipynb"])


def test_comparison_ranks_the_models_of_main_and_the_readers_own(executed):
    found = text(executed["models_compare.ipynb"])
    for name in ("compact-phantom", "mine"):
        assert name in found
    assert "is first of 2" in found
    assert "answer" in found and "slices differently" in found
    assert not [o for o in outputs(executed["models_compare.ipynb"]) if o.get("name") == "stderr"]


@pytest.mark.slow
def test_comparison_ranks_the_zoo_of_a_fresh_clone_without_slices(tmp_path, monkeypatch):
    """Cards and kept logits are all that it has; what needs pixels is left out."""
    shutil.copytree(ROOT / "models/zoo", tmp_path / "models/zoo", ignore=no_models)
    monkeypatch.setenv("MRI_DATA", "")
    book = run("models_compare.ipynb", tmp_path, None)
    cards = {path.stem for path in (ROOT / "models/zoo").glob("*-*.json")}
    assert len(cards) > 10
    assert all(card.removesuffix("-image") in text(book) for card in cards)
    assert "On people never seen, " in text(book)
    assert not [o for o in outputs(book) if o.get("name") == "stderr"]
    assert not list(tmp_path.glob("models/*.keras"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_form(name):
    book = nbformat.read(ROOT / name, as_version=4)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    lines = sorted(len(source.splitlines()) for source in code)
    assert lines[len(lines) // 2] <= 5
    assert lines[-1] <= 12
    assert len(code) <= 2 / 3 * len(book.cells)
    for source in code:
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
        # The one thing that a reader has to define: a network.
        assert {ast.unparse(d) for n in found for d in n.decorator_list} <= {"mri.register"}
        assert all(getattr(node, "decorator_list", None) for node in found)
    assert "Not a diagnostic device" in str(book) or "not a diagnostic device" in str(book).lower()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_outputs_are_of_a_clean_run_on_real_slices(name):
    path = ROOT / name
    book = nbformat.read(path, as_version=4)
    counts = [c.execution_count for c in book.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for o in outputs(book) if o.output_type == "error" or o.get("name") == "stderr"]
    assert "MRI slices" in text(book)
    assert "phantom" not in text(book)
    assert path.stat().st_size < 2 * 2**20
    assert not [p for p in ("/home/", "/root/", "/tmp/") if p in text(book)]
