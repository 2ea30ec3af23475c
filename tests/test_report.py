"""The report's pages need nothing but themselves, and fit a phone."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mri.report import write_report

ROOT = Path(__file__).resolve().parents[1]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.fixture
def pages(tmp_path):
    """Pages of a small notebook and of the committed cards."""
    shown = {
        "image/png": PIXEL,
        "text/plain": "<a widget>",
        "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
    }
    book = new_notebook(
        cells=[
            new_markdown_cell("# A title\n\nthe map is $\\sum_k w_k A^k$, and 5 $"),
            new_code_cell("1 + 1", outputs=[new_output("display_data", shown)]),
        ],
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )
    nbformat.write(book, tmp_path / "own.ipynb")
    found = write_report(
        tmp_path / "out", notebooks=[tmp_path / "own.ipynb"], models=[ROOT / "models/zoo"]
    )
    assert [page.name for page in found] == ["index.html", "own.html", "models.html"]
    return {page.stem: page.read_text(encoding="utf-8") for page in found}


def test_a_notebook_is_one_file_with_its_pictures(pages):
    assert "<title>A title</title>" in pages["own"]
    assert f"data:image/png;base64,{PIXEL}" in pages["own"]
    assert "widget" not in pages["own"]
    assert 'alt="\\sum_k w_k A^k"' in pages["own"]
    picture = re.search(r'class="formula".*?base64,([^"]+)"', pages["own"]).group(1)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert pages["own"].count('class="formula"') == 1, "and a lone dollar is one"


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
    assert re.findall(r'href="(\w+\.html)"', pages["index"]) == ["own.html", "models.html"]
    assert "Not a diagnostic device" in pages["index"]


def test_the_executed_notebooks_go_before_the_committed_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("main", "models_compare"):
        nbformat.write(new_notebook(cells=[new_markdown_cell("# Old")]), f"{name}.ipynb")
    Path("runs").mkdir()
    nbformat.write(new_notebook(cells=[new_markdown_cell("# New")]), "runs/main.ipynb")
    write_report()
    assert "<title>New</title>" in Path("runs/main.html").read_text()
    assert "<title>Old</title>" in Path("runs/models_compare.html").read_text()


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
        models=[ROOT / "models/zoo"],
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
    for name in names:
        book = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
        outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
        drawn = sum("image/png" in o.get("data", {}) for o in outputs)
        assert found[name]["pictures"] >= drawn > 5


def test_a_strangers_card_is_text(tmp_path):
    card = json.loads((ROOT / "models/zoo/tissue-subject.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(card | {"builder": "<script>alert(1)</script>"}))
    (tmp_path / "odd.json").write_text(json.dumps({"split": {}}))
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A")]), tmp_path / "own.ipynb")
    options = {"notebooks": [tmp_path / "own.ipynb"], "models": [tmp_path]}
    page = write_report(tmp_path / "out", **options)[-1].read_text()
    assert page.count("Model card:") == 1
    assert "<script" not in page and "&lt;script" in page
