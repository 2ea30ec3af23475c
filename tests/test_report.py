"""The report's pages need nothing but themselves, and fit a phone."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mri.report import write_report

ROOT = Path(__file__).resolve().parents[1]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


BEHIND = [f"{path.stem}.html" for path in sorted((ROOT / "models").glob("[!R]*.md"))]
TITLED = {"image/png": {"alt": "What it shows"}}


@pytest.fixture
def pages(tmp_path):
    """Pages of a small notebook and of the committed cards."""
    shown = {
        "image/png": PIXEL,
        "text/plain": "<a widget>",
        "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
    }
    log = [new_output("stream", name="stdout", text=f"epoch {i} <{i}>\n") for i in range(3)]
    book = new_notebook(
        cells=[
            new_markdown_cell("# A title\n\nthe map is $\\sum_k w_k A^k$, and 5 $"),
            new_markdown_cell("## A <b>part</b>"),
            new_code_cell("1 + 1", outputs=[new_output("display_data", shown, metadata=TITLED)]),
            new_code_cell("fit()", outputs=log, metadata={"tags": ["log"]}),
        ],
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )
    nbformat.write(book, tmp_path / "own.ipynb")
    found = write_report(
        tmp_path / "out",
        notebooks=[tmp_path / "own.ipynb"],
        models=[ROOT / "models", ROOT / "models/zoo"],
    )
    assert [page.name for page in found] == ["index.html", "models.html", *BEHIND]
    return {page.stem: page.read_text(encoding="utf-8") for page in found}


def test_a_notebook_is_in_the_one_page_with_its_pictures(pages):
    page = pages["index"]
    assert "<title>Report</title>" in page and "A title" in page
    assert f"data:image/png;base64,{PIXEL}" in page
    assert "widget" not in page
    assert 'alt="\\sum_k w_k A^k"' in page
    picture = re.search(r'class="formula".*?base64,([^"]+)"', page).group(1)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert page.count('class="formula"') == 1, "and a lone dollar is one"


def test_pictures_are_named_by_their_titles(pages):
    assert '<img alt="What it shows" src="data:image/png' in pages["index"]
    assert "No description has been provided" not in pages["index"]


def test_the_key_figure_and_the_contents_come_first(pages):
    page = pages["index"]
    figure = base64.b64encode((ROOT / "models/two_splits.png").read_bytes()).decode()
    places = [page.index(of) for of in (figure, "Contents<", "own-A-title", PIXEL)]
    assert places == sorted(places)
    targets = re.findall(r'<a href="#([^"]+)"', page)
    marks = {unquote(html.unescape(of)) for of in re.findall(r'<h\d id="([^"]*)"', page)}
    assert {unquote(html.unescape(of)) for of in targets} <= marks
    assert {"own-A-title", "own-A-part"} <= marks


def test_code_and_the_log_are_folded_and_the_log_is_one_block(pages):
    page = pages["index"]
    assert page.count("<summary>code</summary>") == 2
    assert page.count("<summary>log</summary>") == 1
    block = page.partition("<summary>log</summary>")[2].partition("</details>")[0]
    assert [f"epoch {i} &lt;{i}&gt;" in block for i in range(3)] == [True] * 3
    assert page.count("<details>") == page.count("</details>") == 3
    assert page.count("<div") == page.count("</div>")


def test_no_page_fetches_anything(pages):
    for page in pages.values():
        assert not re.search(r"<script[^>]*src=|<link[^>]*href=\"http|<img[^>]*src=\"http", page)
        assert "<script" not in page


def test_every_card_is_there_and_the_index_leads_to_all_pages(pages):
    cards = [json.loads(p.read_text()) for p in (ROOT / "models/zoo").glob("[!.]*.json")]
    cards = [card for card in cards if "sha256" in card]
    assert len(cards) > 10
    assert pages["models"].count("Model card:") >= len(cards)
    assert all(card["sha256"][:16] in pages["models"] for card in cards)
    assert re.findall(r'href="(\w+\.html)"', pages["index"]) == ["models.html", *BEHIND]
    assert "heatmaps.html" in BEHIND
    assert "Not a diagnostic device" in pages["index"]


def test_a_page_behind_has_the_pictures_that_its_text_speaks_of(pages):
    picture = base64.b64encode((ROOT / "models/gradcam.png").read_bytes()).decode()
    before, after = pages["heatmaps"].split(picture)
    assert 'alt="Slices, Grad-CAM heatmaps and overlays' in before
    assert "These maps look plausible" in after


def test_the_executed_notebooks_go_before_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("main", "models_compare"):
        nbformat.write(new_notebook(cells=[new_markdown_cell("# Old")]), f"{name}.ipynb")
    Path("runs").mkdir()
    nbformat.write(new_notebook(cells=[new_markdown_cell("# New")]), "runs/main.ipynb")
    write_report()
    page = Path("runs/index.html").read_text(encoding="utf-8")
    assert 'id="main-New"' in page and 'id="models_compare-Old"' in page


# A frame is as narrow as it is told to be, which a browser's window is not.
PROBE = """<!DOCTYPE html><title>probe</title><link rel="icon" href="data:,">
<iframe id="page" src="{name}.html" style="width:390px;height:844px;border:0"></iframe>
<pre id="found"></pre><script>
window.onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const pictures = [...page.images];
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    pictures: pictures.length,
    broken: pictures.filter(p => !p.naturalWidth).length,
    text: page.body.innerText.length,
  }});
}};
</script>"""


@pytest.mark.stress
def test_the_pages_in_a_browser(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium to look at the pages with")
    names = ("main", "models_compare")
    pages = write_report(
        tmp_path,
        notebooks=[ROOT / f"{name}.ipynb" for name in names],
        models=[ROOT / "models", ROOT / "models/zoo"],
    )
    found = {}
    for page in pages:
        probe = tmp_path / f"probe-{page.stem}.html"
        probe.write_text(PROBE.format(name=page.stem))
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--enable-logging=stderr", "--allow-file-access-from-files"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr
        found[page.stem] = json.loads(re.search(r'id="found">(.*?)</pre>', done.stdout).group(1))
    assert {name: of["width"] for name, of in found.items() if of["width"] > 390} == {}
    assert all(of["broken"] == 0 and of["text"] > 100 for of in found.values())
    books = [nbformat.read(ROOT / f"{name}.ipynb", as_version=4) for name in names]
    outputs = [o for book in books for cell in book.cells for o in cell.get("outputs", [])]
    drawn = sum("image/png" in o.get("data", {}) for o in outputs)
    assert found["index"]["pictures"] > drawn


def test_the_page_of_the_committed_notebooks_is_small(tmp_path):
    page = write_report(tmp_path, notebooks=[ROOT / "main.ipynb", ROOT / "models_compare.ipynb"])[0]
    assert page.stat().st_size < 2 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1250", "ascii"])
def test_the_command_in_a_czech_terminal_and_a_path_with_spaces(encoding, tmp_path):
    """What is printed needs no character that the terminal lacks; pages are UTF-8 all the same."""
    place = tmp_path / "složka s mezerou"
    place.mkdir()
    for name in ("main", "models_compare"):
        cells = [new_markdown_cell(f"# Příliš žluťoučký: {name}")]
        nbformat.write(new_notebook(cells=cells), place / f"{name}.ipynb")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "cs_CZ.UTF-8"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "mri", "report"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "index.html" in done.stdout.decode(encoding)
    assert "žluťoučký" in (place / "runs/index.html").read_text(encoding="utf-8")


def test_a_strangers_card_is_text(tmp_path):
    card = json.loads((ROOT / "models/zoo/tissue-subject.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(card | {"builder": "<script>alert(1)</script>"}))
    (tmp_path / "odd.json").write_text(json.dumps({"split": {}}))
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A")]), tmp_path / "own.ipynb")
    options = {"notebooks": [tmp_path / "own.ipynb"], "models": [tmp_path]}
    page = write_report(tmp_path / "out", **options)[-1].read_text()
    assert page.count("Model card:") == 1
    assert "<script" not in page and "&lt;script" in page


def notebook(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell(text) for text in texts]), path)
    return path


def test_no_page_takes_the_place_of_another(tmp_path):
    books = [notebook(tmp_path / home / "x.ipynb", f"# From {home}") for home in "ab"]
    models = tmp_path / "models"
    models.mkdir()
    for name in ("index", "models", "Results", "README"):
        (models / f"{name}.md").write_text(f"# Page {name}\n")
    pages = write_report(str(tmp_path / "out"), notebooks=books, models=[models])
    text = {page.name: page.read_text(encoding="utf-8") for page in pages}
    assert "From a" in text["index.html"] and "From b" in text["index.html"]
    assert len(set(text)) == len(pages) == 5
    found = sorted(
        name
        for name in ("index", "models", "Results", "README")
        for page in text.values()
        if f"<h1>Page {name}" in page or f">Page {name}<a" in page
    )
    assert found == ["Results", "index", "models"]


def test_prices_and_code_are_no_formulas(tmp_path):
    said = r"It costs $5 and $6, or \$7 and \$8; see `$PATH_` or `$HOME^`, and $^$. Here is $x^2$."
    (page,) = [
        of
        for of in write_report(
            str(tmp_path / "out"), notebooks=[notebook(tmp_path / "x.ipynb", said)], models=[]
        )
        if of.name == "index.html"
    ]
    text = page.read_text(encoding="utf-8")
    assert text.count('class="formula"') == 1 and 'alt="x^2"' in text
    assert "$5 and $6" in text and "$PATH_" in text


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON"])
def test_what_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"x\.ipynb: not a notebook"):
        write_report(str(tmp_path / "out"), notebooks=[tmp_path / "x.ipynb"])


def test_a_notebook_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^main\.ipynb: no such notebook; run this in the"):
        write_report()
