"""Render both notebooks and the model cards as pages that need no network, into runs/."""

import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from mri import describe
from mri.cards import read_card

NOTEBOOKS = "main", "models_compare"
# Pages are read on phones too: wide tables scroll by themselves, prompts give their place away.
STYLE = """<style>
img, svg { max-width: 100%; height: auto; }
.jp-OutputArea-output, .jp-InputArea-editor, pre, table { overflow-x: auto; max-width: 100%; }
table { display: block; }
@media (max-width: 700px) {
  .jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important; }
  body, .jp-Notebook { padding: 0.5em !important; }
}
</style></head>"""
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body {{ font-family: sans-serif; max-width: 50em; margin: auto; padding: 1em;
overflow-wrap: anywhere; }}</style>
</head><body><h1>{title}</h1>{body}</body></html>"""


def page_of(name: str) -> str:
    """Return a notebook as HTML: the last run's if there is one, else the committed one."""
    executed = Path("runs", f"{name}.ipynb")
    book = nbformat.read(executed if executed.exists() else f"{name}.ipynb", as_version=4)
    html, _ = HTMLExporter(embed_images=True).from_notebook_node(book)
    # Nothing here is interactive, and what these would load lies elsewhere.
    html = re.sub(r"<script\b.*?</script>|<link\b[^>]*>", "", html, flags=re.DOTALL)
    return html.replace("</head>", STYLE, 1)


def cards() -> str:
    """Return every model card, one below the other."""
    found = [path for folder in ("models", "models/zoo") for path in Path(folder).glob("*.json")]
    told = []
    for path in sorted(found):
        text = markdown2html(describe(read_card(path)))
        told.append(f"<details><summary>{path.stem}</summary>{text}</details>")
    return "\n".join(told)


output = Path("runs")
output.mkdir(exist_ok=True)
for name in NOTEBOOKS:
    (output / f"{name}.html").write_text(page_of(name), encoding="utf-8")
links = "".join(f'<li><a href="{name}.html">{name}.ipynb</a></li>' for name in NOTEBOOKS)
body = f"<ul>{links}</ul><h2>Model cards</h2>{cards()}"
title = "Explainable Alzheimer's MRI classification: notebooks and model cards"
(output / "report.html").write_text(PAGE.format(title=title, body=body), encoding="utf-8")
print("Open runs/report.html")
