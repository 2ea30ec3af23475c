"""`make report`: pages that need no network and lose no picture."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("main", "models_compare")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name in NOTEBOOKS:
        shutil.copy(ROOT / f"{name}.ipynb", folder)
    (folder / "models/zoo").mkdir(parents=True)
    for card in (ROOT / "models/zoo").glob("*.json"):
        shutil.copy(card, folder / "models/zoo")
    script = [sys.executable, "-W", "error", str(ROOT / ".ci/report.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("runs/*.html")}


def test_pages_load_nothing_from_elsewhere(pages):
    assert set(pages) == {*NOTEBOOKS, "report"}
    for page in pages.values():
        assert not re.search(r"<script|<link|src=\"http|url\(['\"]?http|@import", page)
        assert '<meta name="viewport"' in page


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_picture_is_inside(pages, name):
    book = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pages[name].count("data:image/png;base64,") == len(pictures) > 5


def test_every_card_is_told_with_its_warning(pages):
    for card in (ROOT / "models/zoo").glob("*.json"):
        assert f"<summary>{card.stem}</summary>" in pages["report"]
    count = pages["report"].count("<summary>")
    assert pages["report"].count("Not a diagnostic device") == count
    assert all(f'href="{name}.html"' in pages["report"] for name in NOTEBOOKS)
