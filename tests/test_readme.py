"""The pages tell the truth: names exist, code runs, figures are those of their commands."""

import importlib
import re
from pathlib import Path

import nbformat
import pytest

import mri
from mri.__main__ import main
from mri.data.phantom import write_phantom
from mri.evaluation.comparison import compare, reported_table
from mri.models.builders import _BUILDERS
from mri.training.crossval import read_crossval
from mri.training.people_table import people_page, ranking_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "data/README.md", "models/README.md"),
    *("models/heatmaps.md", "tests/README.md", "tests/benchmarks/results.md"),
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]


def prose(text):
    """The words of a page that are neither code, nor table, nor picture."""
    text = re.sub(
        r"```.*?```|^    .*$|^\|.*$|!\[.*?\]\(.*?\)", "", text, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"\]\([^)]*\)", "]", text)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(prose(README).split()) <= 1200
    assert "data leakage" in " ".join(README.split())[:700]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page):
    """About 20 words; lists of names, and what OASIS wants to be cited as, are no sentences."""
    text = re.sub(
        r"OASIS-1:.*?U24 RR021382|Public names:.*?train`", "", prose(TEXTS[page]), flags=re.DOTALL
    )
    blocks = re.split(r"\n\s*\n|\n- |\n#+ [^\n]*", text)
    sentences = [s for block in blocks for s in re.split(r"(?<=[.:?!])\s", " ".join(block.split()))]
    assert [s for s in sentences if len(s.split()) > 30] == []


def test_public_names_are_those_of_the_package():
    listed = re.search(r"Public names: (.*?)\.\n", README, re.DOTALL).group(1)
    assert re.findall(r"`(\w+)`", listed) == mri.__all__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds")
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    folder = write_phantom(tmp_path / "data", subjects=20, slices=16)
    monkeypatch.chdir(tmp_path)
    # The page registers a network, which other tests shall not meet.
    monkeypatch.setattr("mri.models.builders._BUILDERS", dict(_BUILDERS))
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


@pytest.mark.slow
def test_figures_of_the_tables_are_of_the_cards_or_of_the_committed_notebook():
    cells = nbformat.read(ROOT / "main.ipynb", as_version=4).cells
    known = "".join(str(output.get("data", {})) for c in cells for output in c.get("outputs", []))
    if not known:
        pytest.skip("the notebook is committed without outputs; make outputs fills them in")
    found = compare(folder=ROOT / "models/zoo").evaluations
    for name in ("compact-image", "compact-subject"):
        known += "".join(map(str, found[name].metrics["slice"].values()))
    figures = figures_of("README.md")
    assert len(figures) >= 8
    chance = "0.333"
    assert [figure for figure in figures if figure not in (known + chance)] == []


def figures_of(page):
    rows = [line for line in TEXTS[page].splitlines() if line.startswith("|")]
    return [figure for row in rows for figure in re.findall(r"\b[01]\.\d{3}\b", row)]


@pytest.mark.real_data
def test_the_table_of_the_leak_is_that_of_its_command(real_data, capsys):
    assert main(["audit", str(real_data), "--quiet"]) == 1
    printed, figures = capsys.readouterr().out, figures_of("data/README.md")
    assert len(figures) >= 14
    assert [figure for figure in figures if figure not in printed] == []


@pytest.mark.slow
def test_the_table_of_the_zoo_is_that_of_its_command():
    assert reported_table(ROOT / "models/zoo") in TEXTS["models/README.md"]


@pytest.mark.slow
def test_the_tables_of_all_people_are_those_of_their_command():
    kept = (ROOT / f"models/{name}.parquet" for name in ("crossval", "people"))
    found = read_crossval(*kept)
    assert ranking_table(found) in TEXTS["models/README.md"]
    assert people_page(found) == (ROOT / "models/people.md").read_text(encoding="utf-8")


def test_every_error_of_the_package_is_explained():
    told = TEXTS["tests/README.md"].partition("## Errors and what they mean")[2]
    faces = [path.parent.name for path in ROOT.glob("mri/*/__init__.py")]
    rooms = [mri, *(importlib.import_module(f"mri.{name}") for name in faces)]
    public = [getattr(room, name) for room in rooms for name in room.__all__]
    errors = {of for of in public if isinstance(of, type) and issubclass(of, Exception)}
    assert len(errors) >= 4
    assert [of for of in errors if f"| `{of.__name__}` |" not in told] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_targets_and_commands_it_names_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", TEXTS[page], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", TEXTS[page]):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for file in re.findall(r"`((?:mri|tests|models|data)/[\w./-]+\.\w+)`", TEXTS[page]):
        assert (ROOT / file).exists(), file
    commands = importlib.import_module("mri.__main__")
    for name in re.findall(r"python -m mri ([a-z]+)", TEXTS[page]):
        assert callable(getattr(commands, name)), name
