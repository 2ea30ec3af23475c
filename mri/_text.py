"""Texts of strangers, made plain for where they go: a file's name, a class's, a card's, an error's.

One function for each medium; each also shortens what is long. Figures need none: they are drawn
with mathematics switched off (`mri.plots.style`).
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import TypeVar

LONG = 2000
"""Characters that a message may have where nothing else is said."""

# Whatever could begin a link, a picture, a tag, a heading, a table or a formula. A character that
# is written as a number is none of Markdown's, in any dialect.
_MARKED = re.compile(
    r"[\\`*{}\[\]()#+!|<>&$~^:/@\"'=]|(?<=www)\.|(?<![a-z0-9])_|_(?![a-z0-9])", re.I
)
_DROPPED = frozenset(
    "script iframe frame frameset object embed applet link meta base form input button textarea "
    "select portal template noscript audio video source track picture dialog slot title "
    "animate set".split()
)
_BARE = frozenset("meta link base input frame embed source track".split())  # They have no end.
_SCHEMES = re.compile(r"(https?://|mailto:|#|[\w./-]+(?:#[\w.-]*)?$)", re.I)
_FETCHES = re.compile(r"url\s*\(|@import|expression\s*\(|\\", re.I)


def shorten(text: object, limit: int = 80) -> str:
    """Return a text of at most `limit` characters, cut in its middle where it is longer.

    >>> shorten("a" * 100, 11)
    'aaaaa…aaaaa'
    """
    said = str(text)
    if len(said) <= limit:
        return said
    end = (limit - 1) // 2
    return f"{said[: limit - 1 - end]}…{said[len(said) - end :]}"


def for_terminal(text: object, limit: int | None = None) -> str:
    r"""Return a text without what would move the cursor, colour, hide or turn what is written.

    Line breaks and tabs stay; other control characters are spelt out.

    >>> print(for_terminal("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    said = str(text) if limit is None else shorten(text, limit)
    if said.isascii() and said.isprintable():
        return said
    return "".join(
        of
        if of in "\n\t" or unicodedata.category(of) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        else of.encode("unicode_escape").decode("ascii")
        for of in said
    )


def for_line(text: object, limit: int = LONG) -> str:
    r"""Return a text for one line of a terminal or a table: as `for_terminal`, without breaks.

    >>> for_line("two\n  lines")
    'two lines'
    """
    return for_terminal(" ".join(str(text).split()), limit)


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the names that commas divide, in one text or in several.

    >>> names_in(["a, b", "c"])
    ['a', 'b', 'c']
    """
    return [name.strip() for text in texts for name in text.split(",")]


# Arguments of `read_scans`, as its messages name them, and the options of `mri audit` for them.
_OPTIONS = {
    "pass size=(h, w)": "pass --size H W",
    "on_error='skip'": "--on-error skip",
    "image= and label=": "--image and --label",
    "class_names=: the names in label order, or a dict from label to name": (
        "--classes NAME,NAME in label order, or --classes LABEL=NAME,LABEL=NAME"
    ),
    "class_names=: a dict from label to name": "--classes LABEL=NAME,LABEL=NAME",
    "class_names=": "--classes",
    "another cache=": "another --cache",
}


def as_options(text: str) -> str:
    """Return a message with options of the command line in place of Python's arguments.

    >>> as_options("sizes differ; pass size=(h, w)")
    'sizes differ; pass --size H W'
    """
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def for_html(text: object, limit: int = LONG) -> str:
    """Return a text that is nothing but text, in an element or an attribute.

    >>> for_html("<b title='x'>")
    '&lt;b title=&#x27;x&#x27;&gt;'
    """
    return html.escape(for_line(text, limit))


def for_markdown(text: object, limit: int = LONG) -> str:
    """Return a text that Markdown shows as it is: no link, picture, tag, formula or table.

    >>> for_markdown("[x](javascript:1)")
    '&#91;x&#93;&#40;javascript&#58;1&#41;'
    """
    return _MARKED.sub(lambda found: f"&#{ord(found[0])};", for_line(text, limit))


def for_code(text: object, limit: int = LONG) -> str:
    """Return a text in a code span of Markdown, in a table too.

    >>> for_code("a`b|c")
    '`a\u02cbb¦c`'
    """
    return f"`{for_line(text, limit).replace('`', 'ˋ').replace('|', '¦')}`"


_T = TypeVar("_T")


def progress(steps: Iterable[_T], what: str, total: int | None = None) -> Iterable[_T]:
    """Yield `steps` while a bar shows them, on a terminal or in a notebook; it leaves no trace.

    >>> list(progress("ab", "letters"))
    ['a', 'b']
    """
    from tqdm import tqdm

    # A bar of widgets would stay in a saved notebook as it began, at zero.
    shown = sys.stdout.isatty() or "ipykernel" in type(sys.stdout).__module__
    options = {"total": total, "leave": False, "disable": not shown, "file": sys.stdout}
    return tqdm(steps, desc=what, **options)


def clean_html(page: str) -> str:
    """Return HTML without what runs, asks the network or looks like a form; pictures are `data:`.

    >>> clean_html('<p onclick="x()">a<img src="http://b/c.png"><script>d</script></p>')
    '<p>a</p>'
    """
    cleaner = _Cleaner()
    cleaner.feed(page)
    cleaner.close()
    return "".join(cleaner.kept)


class _Cleaner(HTMLParser):
    """Writes anew what it has understood, and nothing else."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self.inside: list[str] = []  # Elements that are dropped with all they hold.
        self.in_style = False

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs, " /")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]], end: str = "") -> None:
        if tag in _DROPPED:
            if not end and tag not in _BARE:
                self.inside.append(tag)
            return
        kept = {name: value or "" for name, value in attrs if self._is_kept(tag, name, value or "")}
        picture = tag in ("img", "image")
        if self.inside or (picture and not {"src", "href", "xlink:href"} & kept.keys()):
            return
        self.in_style = tag == "style" and not end
        said = "".join(f' {name}="{html.escape(value)}"' for name, value in kept.items())
        self.kept.append(f"<{tag}{said}{end}>")

    @staticmethod
    def _is_kept(tag: str, name: str, value: str) -> bool:
        if not re.fullmatch(r"[a-z][a-z0-9:_-]*", name) or name.startswith("on"):
            return False
        if name in ("srcset", "srcdoc", "action", "formaction", "ping", "background", "poster"):
            return False
        if name in ("href", "src", "xlink:href", "data", "cite"):
            if tag == "a":
                return _SCHEMES.match(value) is not None
            return value.startswith(("data:image/", "#"))
        return not (_FETCHES.search(value) and name not in ("alt", "title", "class", "id"))

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROPPED:
            if tag in self.inside:
                del self.inside[self.inside.index(tag) :]
            return
        self.in_style = False
        if not self.inside:
            self.kept.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self.inside:
            return
        if self.in_style:
            # No end of the element can stand in it: the parser would have seen it.
            self.kept.append("" if _FETCHES.search(data) or "<" in data else data)
        else:
            self.kept.append(html.escape(data, quote=False))

    def handle_entityref(self, name: str) -> None:
        self.kept += [] if self.inside else [f"&{name};"]

    def handle_charref(self, name: str) -> None:
        self.handle_entityref(f"#{name}")
