"""The notebooks as one page for a browser, with the cards behind it: ``python -m mri report``.

Each page is one file with its pictures inside and asks nothing of the network.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mri._files import replacing
from mri._text import clean_html, for_html, for_markdown, shorten
from mri.models.cards import describe, read_card

NOTEBOOKS = ("main", "models_compare")

_STYLE = """
body { font: 16px/1.5 sans-serif; color: #222; max-width: 52rem; margin: 0 auto; padding: 1rem }
img { max-width: 100%; height: auto; background: white }
pre { overflow-x: auto; background: #f5f5f5; padding: .5rem; font-size: .8rem; line-height: 1.35 }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .5rem; text-align: left; border-bottom: 1px solid #ddd }
.dataframe td, .dataframe th { text-align: right }
summary { cursor: pointer; color: #555; font-size: .85rem }
figure { margin: 1rem 0 } figcaption { font-size: .85rem; color: #555 }
p, li, code, h1, h2, h3 { overflow-wrap: anywhere }
pre code { overflow-wrap: normal }
.prompt, .anchor-link { display: none }
@media (max-width: 40rem) {
  .output_png { overflow-x: auto }
  .output_png::before { content: "← swipe where a picture is cut off"; font-size: .75rem }
  .output_png img { max-width: none }
}
.formula { height: 1.25em; vertical-align: -.3em }
"""
# Nothing runs and nothing is fetched, whatever a notebook's outputs or a card hold.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
# Of an output with several forms, the one that a browser shows best.
_SHOWN = ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/plain")
_WIDGET = "application/vnd.jupyter.widget-view+json"


def write_report(
    folder: str = "runs",
    *,
    notebooks: Sequence[str | Path] | None = None,
    models: Sequence[str | Path] = ("models", "models/zoo"),
) -> list[Path]:
    """Render notebooks with the outputs they hold as one page, and what lies behind it.

    Returns the pages written to `folder`: ``index.html`` with a key figure, contents and all
    notebooks, ``models.html`` with the cards, and a page for each Markdown file of the first folder
    of `models`, such as the checks of heatmaps.

    Parameters
    ----------
    notebooks : by default both of the project: as executed in `folder`, else as committed
    models : folders of cards
    """
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    if notebooks is None:
        executed = [output / f"{name}.ipynb" for name in NOTEBOOKS]
        notebooks = [path if path.is_file() else Path(path.name) for path in executed]
    bodies: dict[str, str] = {}
    for path in map(Path, notebooks):
        name = _free(path.stem, bodies)
        bodies[name] = _body(_notebook(path), name)
    paths = [path for home in models for path in sorted(Path(home).glob("[!.]*.json"))]
    behind = {"models": _book("# Model cards", *filter(None, map(_card, paths)))}
    for path in sorted(Path(models[0]).glob("*.md")) if models else []:
        if path.stem != "README":
            behind[_free(path.stem, {"index", *behind})] = _book(_with_pictures(path))
    links = [f"- [{for_markdown(_title(of))}](<{quote(name)}.html>)" for name, of in behind.items()]
    head = [
        "# Report",
        *filter(None, [_key_figure(Path(models[0]) if models else Path())]),
        "**Not a diagnostic device.** The README says how the figures were made.",
        "## Contents",
        *map(_contents, bodies.values()),
        "Behind this page:\n\n" + "\n".join(links),
    ]
    bodies = {"index": "".join([_body(_book(*head), "top"), *bodies.values()])}
    bodies |= {name: _body(book, name) for name, book in behind.items()}
    titles = {"index": "Report"} | {name: _title(book) for name, book in behind.items()}
    pages = []
    for name, body in bodies.items():
        pages.append(output / f"{name}.html")
        with replacing(pages[-1]) as temporary:
            temporary.write_text(_page(titles[name], body), encoding="utf-8")
    return pages


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken yet."""
    others = (f"{name}-{number}" for number in count(2))
    return next(of for of in chain([name], others) if of not in taken)


def _notebook(path: Path) -> Any:
    import nbformat

    if not path.is_file():
        told = "run this in the folder of the project, or name the notebooks"
        raise FileNotFoundError(f"{path}: no such notebook; {told}")
    try:
        return nbformat.read(path, as_version=4)
    except OSError:
        raise
    except Exception as error:  # The reader has many, some of them of what it uses.
        raise ValueError(f"{path}: not a notebook ({shorten(error)}); execute it again") from error


def _key_figure(folder: Path) -> str:
    """Return the picture of the main result, or nothing where it was not made."""
    said = "Every network on known and on unknown people"
    if not (picture := _picture(folder / "two_splits.png", said)):
        return ""
    told = f"{said}; from the cards and logits of <code>models/zoo</code>."
    return f"<figure>{picture}<figcaption>{told}</figcaption></figure>"


def _picture(path: Path, said: str) -> str:
    """Return a PNG file as HTML, its bytes inside, or nothing where there is no such file."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{for_html(said)}" src="data:image/png;base64,{data}">'


def _with_pictures(path: Path) -> str:
    """Return a page of Markdown with the pictures that lie beside it inside."""
    return re.sub(
        r"!\[([^]]*)\]\(([\w-]+\.png)\)",
        lambda of: f'<div class="output_png">{_picture(path.with_name(of[2]), of[1])}</div>',
        path.read_text(encoding="utf-8"),
    )


def _contents(body: str) -> str:
    """Return the headings of a rendered notebook as a list of links."""
    lines = []
    for level, mark, told in _HEADING.findall(body):
        name = for_markdown(html.unescape(re.sub("<[^>]+>", "", told)))
        if level < "3":
            lines.append(f"{'    ' * (int(level) - 1)}- [{name}](<#{mark}>)")
    return "\n".join(lines)


_HEADING = re.compile(r'<h(\d) id="([^"]*)">(.*?)<a class="anchor-link"')


def _card(path: Path) -> str:
    """Return a card as Markdown; of a broken one its name and what is wrong with it."""
    try:
        card = read_card(path) or {}
        return describe(card) if _is_trained(card) else ""
    except Exception as error:  # Whatever one card holds, the others are shown.
        cause = for_markdown(error, 500)
        return f"### {for_markdown(path.stem)}\n\nIts card cannot be shown: {cause}"


def _is_trained(card: Mapping[str, Any]) -> bool:
    """Whether `train` has made the model; others' cards hold what they like."""
    return {"builder", "recipe", "validation"} <= card.keys()


def _book(*texts: str) -> Any:
    from nbformat.v4 import new_markdown_cell, new_notebook

    return new_notebook(cells=[new_markdown_cell(text) for text in texts])


def _title(book: Any) -> str:
    said = book.cells[0].source.splitlines() if book.cells else []
    return shorten(said[0].lstrip("# ")) if said else "Untitled"


def _body(book: Any, name: str) -> str:
    """Return a notebook as HTML, its code and its logs folded, its marks preceded by `name`."""
    from nbconvert import HTMLExporter

    # Widgets are dead without a kernel: what stands in their place is what they showed last.
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(_WIDGET, None)
        if cell.cell_type == "markdown":
            cell.source = _FORMULA.sub(_formula, cell.source)
        elif "log" in cell.metadata.get("tags", []):
            cell.outputs = _folded(cell.outputs)
    exporter = HTMLExporter(template_name="basic")
    exporter.display_data_priority = list(_SHOWN)
    body, _ = exporter.from_notebook_node(book)
    body = _INPUT.sub(r"<details><summary>code</summary>\1</details>", body)
    # Two notebooks have sections of one name.
    return re.sub(r'(<h\d id=|class="anchor-link" href=)"(#?)', rf'\1"\2{quote(name)}-', body)


_INPUT = re.compile(r'<div class="input">(.*?</pre></div>\n</div>\n</div>\n)</div>', re.DOTALL)


def _folded(outputs: Sequence[Any]) -> list[Any]:
    """Return what a cell has printed as one block that a reader may open."""
    from nbformat.v4 import new_output

    said = "".join(of.text for of in outputs if of.output_type == "stream")
    shown = "\n".join(for_html(line) for line in said.splitlines())
    block = f"<details><summary>log</summary><pre>{shown}</pre></details>"
    kept = [of for of in outputs if of.output_type != "stream"]
    return [new_output("display_data", {"text/html": block}), *kept]


def _page(title: str, body: str) -> str:
    from pygments.formatters import HtmlFormatter

    style = _STYLE + HtmlFormatter().get_style_defs(".highlight")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{for_html(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{clean_html(body)}\n</body>\n</html>\n"
    )


# Code and escaped dollars come first: what they hold is no formula. Nor are two prices.
_FORMULA = re.compile(r"```.*?```|`[^`\n]*`|\\\$|\$(?! )([^$\n]+)(?<! )\$(?!\d)", re.DOTALL)


def _formula(found: re.Match[str]) -> str:
    """Return a TeX formula as a picture: MathJax would be fetched from the network."""
    from matplotlib.mathtext import math_to_image

    if found[1] is None:
        return found[0]
    drawn = io.BytesIO()
    try:
        math_to_image(found[0], drawn, dpi=300)
    except ValueError:  # No formula, or one of a kind that it does not know.
        return found[0]
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<img class="formula" alt="{html.escape(found[1])}" src="data:image/png;base64,{data}">'
