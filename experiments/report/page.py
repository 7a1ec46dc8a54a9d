"""A page: tables, pictures, settings and how to read them, in one HTML file that loads nothing."""

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from string import Template

from experiments.svi import checkpoint

TEMPLATE = Path(__file__).with_name("page.html")
UNKNOWN = ("", "–", "unknown")
"""What stands in a column of numbers for one that is not there."""


@dataclass(frozen=True)
class Cell:
    """What a cell of a table shows, and the number it is sorted by; None sorts last either way."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: the texts of its head, rows of as many Cells or texts, and what the numbers are."""

    title: str
    head: list[str]
    rows: list[list]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file, and in words what there is to see."""

    path: Path
    words: str


@dataclass(frozen=True)
class Page:
    """What a page says.  In its sentences, `so` is set as code.

    settings: nested dicts of what JSON has; reading: a sentence a measure; findings: sentences
    above the tables, and claims: pairs of a verdict and a sentence there; facts: where, when and
    with what it was made.
    """

    title: str
    lead: str
    tables: list[Table]
    pictures: list[Picture]
    command: str
    settings: dict
    reading: dict[str, str]
    findings: list[str] = ()
    claims: list[tuple[str, str]] = ()
    facts: dict[str, str] = field(default_factory=dict)


def write_page(path, page):
    """Write the page to `path`: whole or not at all."""
    # A path that is no UTF-8 came as lone surrogates, which cannot be written.
    checkpoint.write_bytes(path, html_of(page).encode(errors="replace"))


def html_of(page):
    """The page as HTML.  All its texts are escaped, and its pictures are in it."""
    template = TEMPLATE.read_text(encoding="utf-8")
    command = _element("code", _escaped(page.command)) if page.command else ""
    return Template(template).substitute(
        style_hash=_hash(template, "style"),
        script_hash=_hash(template, "script"),
        title=_escaped(page.title),
        lead=_prose(page.lead),
        findings=_findings(page),
        tables="\n".join(map(_table, page.tables)),
        pictures=_section("Figures", "\n".join(map(_picture, page.pictures))),
        reading=_section("How to read the measures", _reading(page.reading)),
        command=_section("The command that made it", command and _element("pre", command)),
        settings=_settings(page.settings) if page.settings else "",
        facts=_section("Made with", _facts(page.facts)),
    )


def _hash(template, name):
    """The hash by which the page allows its own style or script, and no other."""
    content = template.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _table(table):
    """A table in a box of its own, which scrolls where the table is wider than the page."""
    rows = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in table.rows]
    kinds = _kinds(table.head, rows)
    head = _element("tr", "".join(map(_head, table.head, kinds)))
    body = "\n".join(_element("tr", "".join(map(_cell, row, kinds))) for row in rows)
    whole = f"{_element('thead', head)}\n{_element('tbody', body)}"
    label = {"role": "region", "aria_label": table.title, "tabindex": 0}
    box = _element("div", _element("table", whole, class_="sortable"), class_="box", **label)
    caption = _element("p", _prose(table.caption), class_="caption") if table.caption else ""
    return _section(table.title, f"{box}\n{caption}")


def _kinds(head, rows):
    """Of each column: "number", "text", or "name" for the one or two texts on the left."""
    columns = zip(*rows, strict=True) if rows else [()] * len(head)
    kinds = ["number" if _numeric(column) else "text" for column in columns]
    names = len(list(takewhile(lambda kind: kind == "text", kinds[:2])))
    return ["name"] * names + kinds[names:]


def _numeric(column):
    known = any(cell.number is not None for cell in column)
    return known or (bool(column) and all(cell.text in UNKNOWN for cell in column))


def _head(text, kind):
    button = _element("button", _escaped(text), type="button")
    return _element("th", button, scope="col", class_=kind)


def _cell(cell, kind):
    """A cell; names head their row, and may be broken behind an underscore."""
    if kind == "name":
        name = _element("span", _escaped(cell.text).replace("_", "_<wbr>"))
        return _element("th", name, scope="row", class_=kind)
    mean, sign, error = _escaped(cell.text).partition(" ± ")
    text = mean + (_element("span", f" ± {error}") if sign else "")
    return _element("td", text, class_=kind, data_number=_as_javascript(cell.number))


def _as_javascript(number):
    known = number is not None and not math.isnan(number)
    return str(float(number)).replace("inf", "Infinity") if known else None


def _picture(picture):
    data = base64.b64encode(Path(picture.path).read_bytes()).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{_escaped(picture.words)}">'
    # Pictures are legible on a phone at a width that scrolls; the keyboard scrolls them too.
    box = _element("div", image, class_="picture", tabindex=0)
    # The words are read out once, as those of the image.
    caption = _element("figcaption", _prose(picture.words), aria_hidden="true")
    return _element("figure", box + caption)


def _reading(reading):
    terms = [
        f"{_element('dt', _escaped(name))}\n{_element('dd', _prose(words))}"
        for name, words in reading.items()
    ]
    return _element("dl", "\n".join(terms)) if terms else ""


def _settings(settings):
    summary = _element("summary", _element("h2", "Settings"))
    return _element("details", f"{summary}\n{_nested(settings)}")


def _nested(value):
    """Settings as a list within a list; what is no dict stands as JSON."""
    if not isinstance(value, dict) or not value:
        return _element("code", _escaped(json.dumps(value, ensure_ascii=False, default=str)))
    items = [
        _element("li", f"{_element('span', _escaped(str(name)))} {_nested(own)}")
        for name, own in value.items()
    ]
    return _element("ul", "\n".join(items), class_="settings")


def _facts(facts):
    rows = [
        _element("tr", _element("th", _escaped(name), scope="row") + _element("td", _prose(words)))
        for name, words in facts.items()
    ]
    return _element("table", "\n".join(rows), class_="facts") if rows else ""


def _section(heading, content):
    """A section with its heading; nothing where it has no content."""
    if not content:
        return ""
    return _element("section", f"{_element('h2', _escaped(heading))}\n{content}")


def _findings(page):
    """The sentences and claims above the tables."""
    items = [_element("li", _prose(sentence)) for sentence in page.findings]
    for verdict, words in page.claims:
        said = _element("b", _escaped(verdict), class_=verdict.replace(" ", "-"))
        items.append(_element("li", f"{said} {_prose(words)}"))
    return _element("ul", "\n".join(items), class_="findings") if items else ""


def _element(name, content, **attributes):
    """An element around content that is HTML.

    attributes: texts, without those that are None; aria_label is aria-label, and class_ is class.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    pairs = [f' {key}="{_escaped(str(v))}"' for key, v in given.items() if v is not None]
    return f"<{name}{''.join(pairs)}>{content}</{name}>"


def _prose(text):
    """Escaped text in which `so` is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escaped(text))


def _escaped(text):
    return html.escape(text, quote=True)
