"""Names, cards and errors of strangers are text: in HTML, Markdown, figures and the terminal."""

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mri import plots
from mri.__main__ import main
from mri._text import clean_html, for_code, for_html, for_line, for_markdown, for_terminal, shorten
from mri.evaluation.metrics import evaluate
from mri.models.cards import describe
from mri.report import write_report

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = {
    "a_picture_with_a_script": '<img src=x onerror="document.title=1">',
    "a_script": "<script>document.title=1</script>",
    "a_script_in_a_picture": "<svg onload=alert(1)><animate onbegin=alert(1)>",
    "a_closing_title": "</title><script>alert(1)</script>",
    "a_link_that_runs": "[x](javascript:alert(1))",
    "a_link_by_reference": "[x][y]\n\n[y]: javascript:alert(1)",
    "a_picture_from_afar": "![](https://example.org/a.png)",
    "a_bare_address": "https://example.org/a and www.example.org and a@example.org",
    "an_address_in_brackets": "<https://example.org>",
    "a_table": "a|b\n|-|-|\n|c|d|",
    "a_heading": "# a\n\nb\n=\n",
    "a_code_fence": "```\n<script>alert(1)</script>\n```",
    "a_span_of_code": "`<img src=x onerror=alert(1)>`",
    "an_entity": "&lt;script&gt; &#60;script&#62;",
    "mathematics": r"$\frac$ $x_$ \(a\) $$\undefined$$",
    "a_lone_dollar": "a$b",
    "escape_codes": "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "eight_bit_escapes": "\x9b31m\x9d0;title\x9c",
    "a_turned_line": "abc\u202egnp.exe\u2066",
    "a_return": "right\rwrong\b\b\x7f",
    "an_empty_name": "",
    "blanks": " \t\u200b\ufeff\u2028",
    "a_kilobyte": "x" * 3000,
    "half_a_character": "a\ud800b",
    "a_null": "a\0b",
    "an_emphasis": "**_~~a~~_**",
    "a_comment": "<!-- --><!--> <?php ?> <![CDATA[a]]>",
    "a_style": "<style>body{background:url(//example.org)}</style>",
    "a_quote": "\"' onmouseover='alert(1)",
}
NAMES = list(HOSTILE)


class Tags(HTMLParser):
    """What a browser would make of a page: elements, and the attributes that fetch or run."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.fetched, self.run, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().startswith("javascript:"):
                self.run.append((tag, name, value))
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.fetched += [] if (value or "").startswith(("data:", "#")) else [(tag, value)]

    def handle_data(self, data):
        self.text += data


def check_page(page):
    tags = Tags(page)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(tags.tags)
    assert tags.run == [] and tags.fetched == []
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    assert page.index("Content-Security-Policy") < page.index("<title>")
    return tags


@pytest.fixture(scope="module")
def card():
    return json.loads((ROOT / "models/zoo/tissue-subject.json").read_text())


@pytest.fixture(scope="module")
def pages(tmp_path_factory, card):
    """A report of cards that hold every hostile text, of broken ones, and of a notebook."""
    folder = tmp_path_factory.mktemp("report")
    for name, text in HOSTILE.items():
        said = text[:200]
        held = {"builder": said, "versions": {said: said}, "recipe": {**card["recipe"], said: said}}
        (folder / f"{name}.json").write_text(json.dumps({**card, **held}))
    (folder / "broken.json").write_text("{")
    (folder / "wrong.json").write_text(json.dumps({**card, "temperature": [HOSTILE["a_script"]]}))
    (folder / f"{HOSTILE['a_picture_with_a_script'][:20]}.json").write_text("[")
    # A file in UTF-8 holds whole characters only.
    texts = [text for name, text in HOSTILE.items() if name != "half_a_character"]
    outputs = [new_output("display_data", {"text/html": text}) for text in texts]
    svg = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='http://a/b.png'/>"
    outputs.append(new_output("display_data", {"image/svg+xml": svg + "<script>1</script></svg>"}))
    outputs.append(new_output("stream", name="stdout", text="".join(texts)))
    cells = [
        new_markdown_cell(f"# {HOSTILE['a_closing_title']}"),
        new_code_cell("1", outputs=outputs),
    ]
    cells += [new_markdown_cell(HOSTILE[name]) for name in ("a_script", "a_picture_from_afar")]
    nbformat.write(new_notebook(cells=cells), folder / "own.ipynb")
    found = write_report(folder / "out", notebooks=[folder / "own.ipynb"], models=[folder])
    return {page.stem: page for page in found}


def test_no_page_runs_or_fetches_anything(pages):
    for page in pages.values():
        check_page(page.read_text(encoding="utf-8"))


def test_every_card_is_shown_and_a_broken_one_costs_itself(pages, card):
    text = Tags(pages["models"].read_text(encoding="utf-8")).text
    assert text.count("Model card: ") == len(HOSTILE)
    assert text.count("Its card cannot be shown") == 3
    assert "[x](javascript:alert(1))" in text, "as text"
    assert "<script>document.title=1</script>" in text
    assert r"$\frac$" in text
    assert "x" * 3000 not in text


@pytest.mark.stress
def test_a_browser_runs_no_script_of_the_report(pages, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium to look at the pages with")
    for page in pages.values():
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "<title>1</title>" not in done.stdout and "CONSOLE" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_it_as_it_is(name, card):
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    text = HOSTILE[name]
    page = markdown2html_mistune(f"| a |\n|---|\n| {for_markdown(text)} |\n\n{for_markdown(text)}")
    assert set(Tags(page).tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "\n" not in for_markdown(text) and "|" not in for_markdown(text)
    code = markdown2html_mistune(f"| {for_code(text)} |\n|---|\n| b |\n\n{for_code(text)}")
    assert set(Tags(code).tags) <= {"table", "thead", "tbody", "tr", "th", "td", "p", "code"}
    assert describe({**card, "builder": text[:200]}).count("\n\n") == 5


@pytest.mark.parametrize("name", NAMES)
def test_html_holds_it_as_text(name):
    page = f'<p title="{for_html(HOSTILE[name])}">{for_html(HOSTILE[name])}</p>'
    assert Tags(page).tags == ["p"] and Tags(page).run == []
    assert "\n" not in page


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_it_and_obeys_nothing(name):
    for said in (for_terminal(HOSTILE[name]), for_line(HOSTILE[name])):
        assert not re.search(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", said
        )
        said.encode("utf-8")
    assert len(for_line(HOSTILE[name])) <= 6000


def test_long_texts_keep_both_ends():
    assert shorten("a" * 50 + "b" * 50, 21) == "a" * 10 + "…" + "b" * 10
    assert shorten("short", 5) == "short"


CLEANED = {
    "an_attribute_that_runs": ("<b onclick=x()>a</b>", "<b>a</b>"),
    "an_element_with_its_content": ("a<script>b</script>c<iframe src=x>d</iframe>e", "ace"),
    "an_open_script": ("a<script>b", "a"),
    "an_element_left_open": ("a<object>b<p>c</p>", "a"),
    "an_end_without_a_beginning": ("a</object>b", "ab"),
    "entities_of_a_dropped_element": ("a<object>&lt;&#60;b</object>c", "ac"),
    "a_picture_from_afar": ("<img src=http://a/b.png>c", "c"),
    "a_picture_of_ones_own": ('<img src="data:image/png;base64,AA">', None),
    "a_document_as_a_picture": ('<img src="data:text/html,x">', ""),
    "a_link_that_runs": ('<a href="java\nscript:x()">a</a>', "<a>a</a>"),
    "a_link_with_data": ('<a href="data:text/html,x">a</a>', "<a>a</a>"),
    "a_link": ('<a href="https://a/b">a</a>', None),
    "a_link_to_a_page": ('<a href="own.html">a</a>', None),
    "a_style_that_fetches": ('<p style="background:url(//a)">b</p>', "<p>b</p>"),
    "a_style_that_escapes": ('<p style="background:u\\72l(//a)">b</p>', "<p>b</p>"),
    "a_style": ("<style>td { color: red }</style>", None),
    "a_sheet_that_imports": ("<style>@import 'a';</style>", "<style></style>"),
    "a_comment": ("a<!-- <script> -->b<!doctype html><?x?>", "ab"),
    "an_entity": ("&lt;b&gt;&#60;", None),
    "a_form": ("<form action=x><input name=y><button>z</button></form>", ""),
    "a_meta": ('<meta http-equiv=refresh content="0;url=http://a">b', "b"),
    "many_pictures": ('<img srcset="http://a/b 2x" src="data:image/png;base64,A">',
                      '<img src="data:image/png;base64,A">'),
    "a_vector_that_uses": ('<svg><use href="http://a#b"></use></svg>', "<svg><use></use></svg>"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEANED)
def test_html_is_cleaned_of_what_runs_or_fetches(name):
    page, expected = CLEANED[name]
    assert clean_html(page) == (page if expected is None else expected)
    assert clean_html(clean_html(page)) == clean_html(page)


# --- figures ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.usefixtures("closed")
def test_a_figure_draws_any_name(name, rng):
    from matplotlib import pyplot as plt

    text = HOSTILE[name].encode("utf-8", "replace").decode()
    names = tuple(f"{text[:150]}{i}" for i in range(3))
    labels = np.arange(30) % 3
    found = evaluate(
        labels, rng.normal(size=(30, 3)), labels + 3 * (np.arange(30) // 15), class_names=names,
        title=for_line(text, 40), draws=20,
    )  # fmt: skip
    for draw in (plots.confusion, plots.roc, plots.reliability):
        draw(found).figure.savefig(io.BytesIO(), dpi=40)
    with plt.rc_context():
        plt.close("all")


@pytest.mark.parametrize("name", ["mathematics", "a_lone_dollar", "a_kilobyte", "escape_codes"])
@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.usefixtures("closed")
def test_a_ranking_draws_any_name(name, made_up):
    text = HOSTILE[name][:200]
    made = made_up([(f"{text}-subject", "subject", 0.9, 300), (f"{text}-image", "image", 0.7, 300),
                    (f"b{text}-subject", "subject", 0.2, 100)])  # fmt: skip
    from mri.plots import ranking

    for ax in (
        ranking.leaderboard(made),
        ranking.p_values(made.p_values["subject"]),
        ranking.cost(made),
    ):
        ax.figure.savefig(io.BytesIO(), dpi=40)
    shown = made._repr_html_() + made.table.to_html()
    assert Tags(shown).run == []
    assert "\x1b" not in repr(made) and "\x1b" not in made.conclusion()


def test_a_comparison_in_a_notebook_is_text(made_up):
    name = HOSTILE["a_picture_with_a_script"]
    made = made_up([(name, "subject", 0.9, 300), ("b", "subject", 0.2, 100), ("c", "–", 0.1, 1)])
    made.table["note"] = HOSTILE["a_script"]
    assert not {"img", "script"} & set(Tags(made._repr_html_()).tags)


# --- the command line ---


def run(*arguments, **environment):
    given = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.run(
        [sys.executable, "-m", "mri", *arguments],
        cwd=ROOT,
        capture_output=True,
        env=given | environment,
    )


@pytest.mark.parametrize("name", ["", "no\x1b[31m.png", "a" * 300 + ".png", "\u202egnp"])
def test_a_name_that_is_none_is_refused_in_one_plain_line(name, capsys):
    assert main(["predict", name]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "\x1b" not in err and "\u202e" not in err


def test_no_model_name_is_an_error(capsys, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((128, 128)))
    assert main(["predict", str(tmp_path / "a.png"), "--model", "", "--unchecked"]) == 1
    assert "name of the model is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_terminal_of_few_letters_shows_the_answer(tmp_path):
    picture = tmp_path / "é\u202eß.png"
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (128, 128)))
    (tmp_path / "a.png").rename(picture)
    options = ["--model", "tissue-subject", "--unchecked", "--output", str(tmp_path / "out")]
    done = run("predict", str(picture), *options, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"Not a diagnostic device" in done.stdout and b"Picture: " in done.stdout


@pytest.mark.slow
def test_pictures_of_slices_of_the_same_name_stand_side_by_side(tmp_path, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        image = np.random.default_rng(len(folder)).integers(0, 256, (128, 128))
        cv2.imwrite(str(tmp_path / folder / "a.png"), image)
    name = "b" * 200
    cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    options = ["--model", "tissue-subject", "--unchecked", "--output", str(tmp_path / "out")]
    for file in ("one/a.png", "two/a.png", "one/a.png", f"{name}.png"):
        assert main(["predict", str(tmp_path / file), *options]) == 0
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(pictures) == 3
    assert sum(picture.startswith("a-png-tissue-subject") for picture in pictures) == 2
    assert "Picture" in capsys.readouterr().out
