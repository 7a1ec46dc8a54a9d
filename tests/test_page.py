"""The page of a report: whole in one file, true to its records, safe from its texts, legible."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser

import cost_records
import pytest
import torch

import experiments
from experiments import records
from experiments.report import comparison, readme
from experiments.report.page import Cell, Page, Picture, Table, html_of, write_page
from experiments.study import FIGURE, page, read

CARD = readme.RESULTS / "card-cpu"
FIGURES = sorted((CARD / "figures").glob("*.png"))
FEW = {"num_draws": 4, "restarts": 0, "simulations": 20, "pareto_draws": 100}
PLAIN = "plain words"
HOSTILE = (
    """"><script>alert('1')</script></title></style><img src=x onerror="alert(2)"> & &amp; $title"""
)
VOID = {"meta", "link", "img", "wbr"}
NOTHING = {"tables": [], "pictures": [], "command": "", "settings": {}, "reading": {}}


class Parsed(HTMLParser):
    """A page as a browser reads it: its elements, its texts by element, and its tables."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.tables = [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        texts = self.texts.setdefault(tag, [])
        texts.append("")
        if tag not in VOID:
            self.open.append((tag, len(texts) - 1))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, place in self.open:
            self.texts[tag][place] += data
        if {"td", "th"} & {tag for tag, _ in self.open}:
            self.tables[-1][-1][-1] += data

    def named(self, tag):
        """The attributes of every element of that name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def shape(self):
        """The elements and the names of their attributes."""
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


def saying(text):
    """A page that says a text wherever it can."""
    return Page(
        title=text,
        lead=text,
        tables=[Table(text, [text, text], [[text, Cell(text, 1.0)]], text)],
        pictures=[Picture(FIGURES[0], text)],
        command=text,
        settings={text: {text: [text]}},
        reading={text: text},
        findings=[text],
        facts={text: text},
    )


def of_results(folder):
    """The page of a committed comparison, its figures included."""
    found = records.read(folder / "records.jsonl")
    pictures = [Picture(path, path.stem) for path in sorted((folder / "figures").glob("*.png"))]
    return comparison.page(readme.title_of(folder), found, pictures)


def of_guides(command=None):
    """The page of a comparison of two guides by a command, whose first run failed."""
    found = cost_records.seeds("vae", "mean_field", -20.0, -19.0, 0.01)
    found += cost_records.seeds("vae", "amortized", -21.0, -19.5, 0.01)
    found[0] |= {"status": "failed", "error": "the loss is nan"}
    found[0]["environment"]["command"] = command
    return comparison.page("Two guides", found, [])


def test_no_text_becomes_an_element_or_an_attribute():
    hostile, plain = Parsed(html_of(saying(HOSTILE))), Parsed(html_of(saying(PLAIN)))
    assert hostile.shape == plain.shape
    every = [text for texts in plain.texts.values() for text in texts]
    assert sum(text == PLAIN for text in every) > 15
    for tag, texts in plain.texts.items():
        swapped = [text.replace(PLAIN, HOSTILE) for text in texts]
        if tag not in ("code", "li", "ul", "details", "body", "html", "main"):
            assert hostile.texts[tag] == swapped, tag
    assert json.loads(hostile.texts["code"][-1]) == [HOSTILE]
    for (_, own), (tag, of_plain) in zip(hostile.elements, plain.elements, strict=True):
        if tag != "meta":
            assert own == {k: v.replace(PLAIN, HOSTILE) for k, v in of_plain.items()}
    assert hostile.named("img")[0]["alt"] == hostile.named("div")[0]["aria-label"] == HOSTILE
    assert hostile.texts["script"] == plain.texts["script"]


def test_names_errors_and_titles_of_a_comparison_are_escaped():
    found = cost_records.seeds(HOSTILE, "mean_field", -20.0, -19.0)
    found[0] |= {"status": "failed", "error": HOSTILE}
    parsed = Parsed(html_of(comparison.page(HOSTILE, found, [])))
    assert not {"b", "img"} & {tag for tag, _ in parsed.elements}
    assert len(parsed.named("script")) == len(parsed.named("title")) == 1
    assert parsed.texts["title"] == parsed.texts["h1"] == [HOSTILE]
    assert parsed.tables[0][1][0] == HOSTILE
    assert parsed.texts["li"][0] == f"{HOSTILE}-mean_field-0 failed: {HOSTILE}"


def test_prose_sets_names_as_code_and_nothing_else():
    page = Page("t", "Of `mean_field` & `<b>`; one ` is left.", **NOTHING)
    parsed = Parsed(html_of(page))
    assert parsed.texts["code"] == ["mean_field", "<b>"]
    assert parsed.texts["p"] == ["Of mean_field & <b>; one ` is left."]


def test_a_page_of_nothing_has_no_empty_parts():
    parsed = Parsed(html_of(Page("Title", "Lead.", **NOTHING)))
    shown = {tag for tag, _ in parsed.elements}
    assert not {"section", "table", "figure", "details", "ul", "dl", "pre", "h2"} & shown


def test_nothing_is_loaded_and_only_its_own_script_may_run():
    text = html_of(of_results(CARD))
    parsed = Parsed(text)
    for _, attributes in parsed.elements:
        for name, value in attributes.items():
            assert name not in ("style", "srcset", "action")
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith("data:")
    (style,), (script,) = parsed.texts["style"], parsed.texts["script"]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert not re.search(r"import|fetch|XMLHttpRequest|innerHTML|eval|http", script)
    policy = next(m["content"] for m in parsed.named("meta") if "http-equiv" in m)
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert (allowed["default-src"], allowed["img-src"]) == ("'none'", "data:")
    for name, content in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[name] == f"'sha256-{digest}'"


def test_every_figure_is_in_the_page_with_its_words():
    images = Parsed(html_of(of_results(CARD))).named("img")
    assert len(FIGURES) == 7
    kind = "data:image/png;base64,"
    content = [base64.b64decode(image["src"].removeprefix(kind)) for image in images]
    assert content == [path.read_bytes() for path in FIGURES]
    assert [image["alt"] for image in images] == [path.stem for path in FIGURES]


@pytest.mark.parametrize("folder", readme.folders(bench=False), ids=lambda path: path.name)
def test_the_tables_are_those_of_the_committed_table(folder):
    *tables, _ = Parsed(html_of(of_results(folder))).tables
    lines = [li for li in (folder / "table.md").read_text().splitlines() if li.startswith("| ")]
    committed = [line.strip("| ").split(" | ") for line in lines if not line.startswith("| ---")]
    assert [row for table in tables for row in table] == committed


@pytest.mark.parametrize("folder", readme.folders(bench=False), ids=lambda path: path.name)
def test_the_settings_are_those_of_every_run(folder):
    def merged(one, other):
        nested = one.keys() & other.keys()
        return one | other | {name: merged(one[name], other[name]) for name in nested}

    settings = of_results(folder).settings
    shared = {k: v for k, v in settings["every run"].items() if k != "seeds"}
    for record in records.read(folder / "records.jsonl"):
        found = merged(shared, settings.get(record["label"], {})) | {"seed": record["seed"]}
        assert found == record["config"]
        assert record["seed"] in settings["every run"]["seeds"]


def test_the_numbers_are_sorted_by_what_they_mean():
    found = cost_records.seeds("vae", "mean_field", -20.0, -19.0, count=1, width=0.5)
    costs, *_ = comparison.page("t", found, []).tables
    cells = dict(zip(costs.head, costs.rows[0], strict=True))
    assert cells["guide"] == "mean_field"
    assert cells["log evidence"] == Cell("[-19.000, -18.500]", -18.75)
    assert cells["k > 0.7"] == Cell("5.0 %", 0.05)
    assert cells["µs per new datum"] == Cell("1.0", 1.0)
    assert cells["seeds"] == Cell("1/1", 1)
    text = html_of(Page("t", "", **NOTHING | {"tables": [costs]}))
    assert '<td class="number" data-number="-18.75">[-19.000, -18.500]</td>' in text


def test_numbers_that_are_none_have_their_places():
    rows = [[Cell(str(x), x)] for x in (math.inf, -math.inf, math.nan)]
    text = html_of(Page("t", "", **NOTHING | {"tables": [Table("t", ["value"], rows)]}))
    for attribute in (' data-number="Infinity">inf', ' data-number="-Infinity">-inf', ">nan"):
        assert f'<td class="number"{attribute}</td>' in text


def test_a_comparison_says_its_command_settings_measures_and_failures():
    parsed = Parsed(html_of(of_guides("zoo compare 'a b.py' --out c")))
    assert parsed.texts["pre"] == ["zoo compare 'a b.py' --out c"]
    assert "vae-mean_field-0 failed: the loss is nan" in parsed.texts["li"]
    assert "pareto_draws 500" in parsed.texts["li"]
    assert any(text.startswith("Which guide should I use") for text in parsed.texts["li"])
    assert not parsed.named("figure")
    *tables, _ = parsed.tables
    heads = {name for table in tables for name in table[0]} - {"model", "guide", "seeds"}
    assert set(parsed.texts["dt"]) == heads
    assert all(re.fullmatch(r"[A-Z].*\.", words) for words in parsed.texts["dd"])


def test_a_comparison_from_python_says_so():
    assert of_guides().command == "experiments.compare(...)"


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, Page("first", "", **NOTHING))
    broken = NOTHING | {"pictures": [Picture(tmp_path / "gone.png", "gone")]}
    with pytest.raises(FileNotFoundError):
        write_page(path, Page("second", "", **broken))
    assert "<h1>first</h1>" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    write_page(tmp_path / "report.html", Page("caf\udce9", "", **NOTHING))
    assert "<h1>caf?</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_compare_writes_the_page_with_its_figures_and_its_failures(diverging_problem, tmp_path):
    found = experiments.compare(
        [diverging_problem, "gaussian_lvm"],
        ["amortized"],
        seeds=1,
        out=tmp_path / "out",
        fit={"steps": 12, "batch_size": 700, "learning_rate": 0.1},
        measure=FEW,
    )
    parsed = Parsed((found.folder / "report.html").read_text())
    assert [record["status"] for record in found.records] == ["failed", "ok"]
    (error,) = [record["error"] for record in found.failed]
    assert f"diverging-amortized-0 failed: {error}" in parsed.texts["li"]
    assert len(parsed.named("img")) == len(list((found.folder / "figures").glob("*.png"))) >= 3
    assert "Comparison of diverging, gaussian_lvm" in parsed.texts["title"]
    assert f"{torch.__version__}" in parsed.texts["td"]
    assert "steps 12" in parsed.texts["li"]


@pytest.fixture(scope="module")
def browser():
    """Chromium as the system has it, headless; tests are left out where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium, on Debian: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a Page from the file system; whatever goes wrong there is an error."""
    wrong, contexts = [], []

    def opened(page, width=1280, **options):
        path = tmp_path / "a report.html"
        write_page(path, page)
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append(dialog.message))
        tab.on("request", lambda request: loads(request.url))
        tab.goto(path.as_uri())
        return tab

    def loads(url):
        if not url.startswith("data:") and not url.endswith("/a%20report.html"):
            wrong.append(url)

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


FITS = "document.documentElement.scrollWidth <= innerWidth"


def column(tab, place):
    return tab.locator(
        f"tbody td:nth-child({place}), tbody th:nth-child({place})"
    ).all_inner_texts()


NUMBERS = {"1,000.0 ± 3": 1000.0, "–": None, "9.5": 9.5, "-3.0": -3.0, "inf": math.inf}
NUMBERS |= {"[-20, -10]": -15.0, "≤ 2": 2.0, "unknown": None}
ASCENDING = ["[-20, -10]", "-3.0", "≤ 2", "9.5", "1,000.0 ± 3", "inf", "–", "unknown"]
DESCENDING = [*reversed(ASCENDING[:6]), "–", "unknown"]


def sortable():
    names = ["b", "a", "item 10", "", "item 2", "B", "d", "e"]
    rows = [[n, Cell(*of)] for n, of in zip(names, NUMBERS.items(), strict=True)]
    return Page("t", "", **NOTHING | {"tables": [Table("t", ["name", "value"], rows)]})


def test_a_head_sorts_its_column_numerically(opened):
    tab = opened(sortable())
    head, button = tab.locator("thead th").nth(1), tab.get_by_role("button", name="value")
    assert head.get_attribute("aria-sort") is None
    button.click()
    assert column(tab, 2) == ASCENDING
    assert head.get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(tab, 2) == DESCENDING
    assert head.get_attribute("aria-sort") == "descending"
    tab.get_by_role("button", name="name").click()
    assert column(tab, 1) == ["a", "b", "B", "d", "e", "item 2", "item 10", ""]
    assert tab.locator("[aria-sort]").all_inner_texts() == ["name"]


def test_the_keyboard_sorts_as_well(opened):
    tab = opened(sortable())
    tab.keyboard.press("Tab")  # the box, which scrolls
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert column(tab, 2) == ASCENDING
    tab.keyboard.press("Space")
    assert column(tab, 2) == DESCENDING


def test_every_figure_shows_and_the_settings_are_closed(opened):
    tab = opened(of_results(CARD))
    widths = tab.locator("img").evaluate_all("all => all.map(img => img.naturalWidth)")
    assert len(widths) == len(FIGURES)
    assert min(widths) > 100
    assert not tab.get_by_text("checkpoint_seconds").is_visible()
    tab.locator("summary").click()
    assert tab.get_by_text("checkpoint_seconds").is_visible()


def test_on_a_phone_the_tables_scroll_and_the_page_does_not(opened):
    tab = opened(of_results(CARD), width=390)
    assert tab.evaluate(FITS)
    assert tab.locator(".box").first.evaluate("box => box.scrollWidth > box.clientWidth + 100")


@pytest.mark.parametrize("folder", sorted(readme.STUDIES.glob("*")), ids=lambda folder: folder.name)
def test_the_page_of_every_study_opens_sorts_and_fits_a_phone(opened, folder):
    found, record, claims = read(folder)
    tab = opened(page(found, record, claims, folder / FIGURE), width=390)
    assert tab.evaluate(FITS)
    assert tab.locator("img").evaluate("image => image.naturalWidth") > 100
    assert tab.locator("img").bounding_box()["width"] > 600  # it scrolls, and can be read
    assert tab.locator(".findings li").all_inner_texts() == [
        f"{claim.verdict} {claim.words}" for claim in found.ordered(claims)
    ]
    heads = tab.locator(".sortable").first.locator("thead button")
    heads.last.click()
    assert tab.locator("[aria-sort]").count() == 1


@pytest.mark.parametrize("folder", sorted(readme.STUDIES.glob("*")), ids=lambda folder: folder.name)
def test_numbers_in_tables_of_studies_are_sorted_as_numbers(folder):
    found, record, _ = read(folder)
    for table in found.tables(record["results"]):
        for name, cells in zip(table.head, zip(*table.rows, strict=True), strict=True):
            for cell in cells:
                if isinstance(cell, str):  # whole numbers as names are in order as texts
                    assert not re.fullmatch(r"-?\d+[.,][\d,.]+", cell), name


@pytest.mark.parametrize("width", [390, 1280])
def test_words_without_an_end_do_not_widen_the_page(opened, width):
    tab = opened(saying("x" * 500), width=width)
    tab.locator("summary").click()
    assert tab.evaluate(FITS)


def test_names_stay_beside_the_numbers_that_are_scrolled_to(opened):
    tab = opened(of_results(CARD), width=390)
    cells = tab.locator(".box").first.locator("tbody tr:first-child > *")
    before = [cells.nth(place).bounding_box()["x"] for place in range(3)]
    tab.locator(".box").first.evaluate("box => { box.scrollLeft = 200 }")
    after = [cells.nth(place).bounding_box()["x"] for place in range(3)]
    assert after == pytest.approx([*before[:2], before[2] - 200], abs=1)


def test_dark_is_dark_and_figures_keep_their_white_ground(opened):
    background = "element => getComputedStyle(element).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        tab = opened(of_results(CARD), color_scheme=scheme)
        found[scheme] = tab.locator("body").evaluate(background)
        assert tab.locator("img").first.evaluate(background) == "rgb(255, 255, 255)"
    brightness = {k: sum(map(int, re.findall(r"\d+", v))) for k, v in found.items()}
    assert brightness["dark"] < 150 < 700 < brightness["light"]


def test_hostile_texts_do_nothing_in_a_browser(opened):
    tab = opened(saying(HOSTILE))
    assert tab.title().startswith('"><script>')
    assert tab.locator("h1").inner_text() == HOSTILE
    assert tab.evaluate("document.scripts.length") == 1
