"""The site: it builds without a warning, its links lead somewhere, it asks no other host for
anything, and a browser shows it without complaint."""

import base64
import copy
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from bs4 import BeautifulSoup
from nbconvert.filters import markdown2html

import notebooks
import slpo

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "nbs").glob("*.ipynb"))
LOADED = [
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
]  # what a browser fetches


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    "path from the top of the site -> parsed page"
    return {
        str(path.relative_to(site)): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in site.rglob("*.html")
        if path.name != "404.html"
    }


def test_every_notebook_and_public_name_has_its_place(pages):
    for name in NOTEBOOKS:
        assert f"{name}.html" in pages
    entries = {
        tag["id"]: page
        for name, page in pages.items()
        if name.startswith("api/")
        for tag in page.find_all("h2", id=True)
    }
    for name in slpo.__all__:
        if not callable(getattr(slpo, name)):  # a constant is in the list at the page's end
            listed = next(
                (found for page in pages.values() if (found := page.find("code", id=name))), None
            )
            assert listed and re.search(r"\d\d_\w+\.html#[\w-]+", str(listed.find_next("a"))), (
                f"{name} has no API entry"
            )
            continue
        assert name in entries, f"{name} has no API entry"
        entry = entries[name].find(id=name)
        assert (
            name in entry.find_next("code", class_=False).text
            and len(entry.find_next("p").text) > 20
        ), f"{name}: no signature or docstring"
        assert re.search(
            r"\d\d_\w+\.html#[\w-]+", str(entry.find_next("a", href=re.compile(r"\d\d_\w+\.html#")))
        )


def cells_of(name):
    "(id, kind, directives, source, outputs) of each cell of a notebook that its page shows."
    cells = notebooks.read(ROOT / "nbs" / f"{name}.ipynb")
    shown = [c for c in cells if not c.hidden]
    return [(c.id, c.kind, " ".join(c.directives), c.source, c.outputs) for c in shown]


def seen(text):
    """Lines of code or output as a reader sees them: blanks at their ends, and empty lines around
    them, show nowhere."""
    return re.sub(r"[ \t]+$", "", text, flags=re.M).strip("\n")


def blocks(page):
    "The texts of a page that are set as code or output, in their order."
    return [seen(tag.text) for tag in page.find("article").find_all("pre")]


def words(text):
    "Letters and digits alone, between single spaces."
    return " ".join(["", *re.findall(r"[^\W_]+", text), ""])


def table_rows(soup):
    "The rows of all tables, each as the words of its cells."
    return [
        [words(cell.text) for cell in row.find_all(["td", "th"])] for row in soup.find_all("tr")
    ]


def follow(wanted, there, where):
    "Asserts that what is wanted is there, in its order."
    rest = iter(there)
    for cell, text in wanted:
        assert text in rest, f"{where} #{cell}: not on its page (or not in its place):\n{text}"


def test_every_code_cell_and_every_text_output_is_on_its_page(pages):
    "Whole and in order. What a cell hides or does not echo is not asked for."
    codes = texts = 0
    for name in NOTEBOOKS:
        wanted = []
        for cell, kind, directives, source, outputs in cells_of(name):
            if kind != "code":
                continue
            if source and "echo: false" not in directives:
                wanted.append((cell, seen(source)))
                codes += 1
                assert pages[f"{name}.html"].find(id=cell), f"{name}: no anchor for {cell}"
            for out in outputs:
                data = out.get("data", {"text/plain": out.get("text", "")})
                if {"image/png", "text/html", "text/markdown"} & set(data):
                    continue
                wanted.append((cell, seen("".join(data["text/plain"]))))
                texts += 1
        follow(wanted, blocks(pages[f"{name}.html"]), name)
    assert codes > 400 and texts > 100, f"only {codes} cells and {texts} outputs were looked for"


def test_every_picture_and_every_table_is_on_its_page(site, pages):
    pictures = rows = 0
    for name in NOTEBOOKS:
        page = pages[f"{name}.html"]
        shown = [
            (site / unquote(tag["src"])).read_bytes()
            for tag in page.find("article").find_all("img")
        ]
        wanted, tables = [], []
        for cell, _, _, _, outputs in cells_of(name):
            for out in outputs:
                data = {kind: "".join(text) for kind, text in out.get("data", {}).items()}
                if "image/png" in data:
                    wanted.append((cell, base64.b64decode(data["image/png"])))
                elif "text/markdown" in data:
                    tables += [
                        (cell, row)
                        for row in table_rows(
                            BeautifulSoup(markdown2html(data["text/markdown"]), "html.parser")
                        )
                    ]
                elif "text/html" in data:
                    tables += [
                        (cell, row)
                        for row in table_rows(BeautifulSoup(data["text/html"], "html.parser"))
                    ]
        follow(wanted, shown, name)
        follow(tables, table_rows(page.find("article")), name)
        pictures, rows = pictures + len(wanted), rows + len(tables)
    assert pictures > 30 and rows > 150, (
        f"only {pictures} pictures and {rows} rows of tables were looked for"
    )


def test_every_sentence_of_a_notebook_is_on_its_page(pages):
    "By its words: markup, formulas and code blocks aside."
    sentences = 0
    for name in NOTEBOOKS:
        article = copy.copy(pages[f"{name}.html"].find("article"))
        for tag in article.find_all(["pre", "math"]) + article.find_all("a", class_="headerlink"):
            tag.replace_with(" ")
        there = words(article.text)
        for cell, kind, _, source, _ in cells_of(name):
            if kind != "markdown":
                continue
            plain = re.sub(r"^```.*?^```|\$\$.*?\$\$|\$[^$\n]+\$", " ", source, flags=re.M | re.S)
            soup = BeautifulSoup(markdown2html(plain), "html.parser")
            for tag in soup.find_all(["a"], class_="anchor-link"):
                tag.replace_with(" ")
            for tag in soup.find_all(["p", "h1", "h2", "h3", "h4", "td", "th"]):
                assert words(tag.text) in there, f"{name} #{cell}: not on its page: {tag.text}"
                sentences += 1
    assert sentences > 500, f"only {sentences} paragraphs were looked for"


def test_no_page_shows_a_template_that_was_not_filled(pages):
    "A block or a paragraph that is nothing but a name in braces is a value that was lost."
    for name, page in pages.items():
        for text in blocks(page) + [
            tag.text
            for tag in page.find("article").find_all(["p", "td", "th", "li", "h1", "h2", "h3"])
        ]:
            assert not (found := re.fullmatch(r"\s*\{+\w+\}+\s*", text)), f"{name}: {found[0]}"


def test_a_folded_cell_is_closed_until_it_is_opened(pages):
    "Its listing stands in a `details` element, behind a line that names what it defines."
    folded = 0
    for name in NOTEBOOKS:
        for cell, kind, directives, source, _ in cells_of(name):
            if kind == "code" and "fold" in directives.split():
                place = pages[f"{name}.html"].find(id=cell).find_next("details")
                assert "open" not in place.attrs and place.find("summary").text.strip()
                assert seen(place.find("pre").text) == seen(source)
                folded += 1
    assert folded > 50


def test_comments_on_parameters_are_shown(pages):
    rows = {
        row.find("code").text: row
        for row in pages["api/sample_mass.html"]
        .find(id="slpo_sample_loss")
        .find_next("table")
        .find_all("tr")
        if row.find("code")
    }
    assert "weight of the term" in rows["anchor"].text and "float = 1.0" in rows["anchor"].text
    assert (
        "learning rate" in pages["api/settings.html"].find(id="SLPOConfig").find_next("table").text
    )


def test_links_and_anchors_resolve(site, pages):
    count, places = (
        0,
        {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()},
    )
    for name, page in pages.items():
        for tag, attribute in [("a", "href"), *LOADED]:
            for element in page.find_all(tag, {attribute: True}):
                target, anchor = urldefrag(urljoin(name, element[attribute]))
                if re.match(r"\w+:", target):
                    continue
                target = target or name
                assert (site / unquote(target)).exists(), (
                    f"{name}: {element[attribute]} is not there"
                )
                if anchor and anchor != "__skip":
                    assert unquote(anchor) in places[target], (
                        f"{name}: {element[attribute]}: no such place on that page"
                    )
                count += 1
    assert count > 500


def test_names_in_prose_lead_to_their_entries(pages):
    assert pages["index.html"].find("a", href="api/trainer.html#SLPOTrainer")
    assert pages["api/loss.html"].find("a", href="mass.html#mass_targets")


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for tag, attribute in LOADED:
            for element in page.find_all(tag, {attribute: True}):
                if "canonical" not in element.get("rel", ()):
                    assert not re.match(r"(https?:)?//", element[attribute]), (
                        f"{name} loads {element[attribute]}"
                    )
    for path in site.rglob("*.css"):
        assert not (
            found := re.search(r"(url\(|@import)\s*[\"']?(https?:)?//[^)]*", path.read_text())
        ), f"{path.name} loads {found[0]}"


def test_no_formula_is_left_as_text(pages):
    """Outside code: neither a dollar sign nor TeX (\\n is in docstrings), and what was TeX is
    MathML."""
    formulas = 0
    for name, page in pages.items():
        formulas += len(page.find_all("math"))
        main = copy.copy(page.find("main"))
        for tag in main.find_all(["code", "pre", "script", "style"]):
            tag.extract()
        assert not (
            found := re.search(r".{0,30}(\$|\\[a-zA-Z(\[]).{0,30}", main.text.replace(r"\n", ""))
        ), f"{name}: {found[0]}"
    assert formulas > 200


def test_lists_and_tables_are_drawn(pages):
    for name, page in pages.items():
        for tag in page.find("main").find_all("p"):
            assert not (found := re.search(r"^([-*|]|1\.) .*", tag.text, flags=re.M)), (
                f"{name}: {found[0]}"
            )


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_browser_shows_every_page(address, pages, open_page):
    page, formulas = open_page(), 0
    page.on(
        "request",
        lambda r: (
            r.url.startswith((address, "data:", "blob:"))
            or page.complaints.append(f"asks for {r.url}")
        ),
    )
    for name in pages:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address + name)
        shown = page.evaluate("""async () => {
            await document.fonts.ready
            const drawn = [...document.querySelectorAll('article math')]
            const small = m => {
                const box = m.getBoundingClientRect()
                return box.width < 3 || box.height < 3
            }
            const lost = i => i.complete && !i.naturalWidth
            return {
                formulas: drawn.length,
                flat: drawn.filter(small).map(m => m.outerHTML),
                errors: document.querySelectorAll('merror').length,
                font: [...document.fonts].some(f => f.family == 'Math' && f.status == 'loaded'),
                broken: [...document.images].filter(lost).length,
            }}""")
        assert not shown["flat"] and not shown["errors"] and not shown["broken"], f"{name}: {shown}"
        assert shown["font"] or not shown["formulas"], (
            f"{name}: the font of the formulas was not loaded"
        )
        formulas += shown["formulas"]
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert (wide := page.evaluate("document.documentElement.scrollWidth")) <= width, (
                f"{name} is {wide} px wide on a screen of {width}"
            )
            cut = page.evaluate("""() => {
                const scrolls = e => {
                    if (!e) return false
                    const boxed = ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
                    return boxed || scrolls(e.parentElement)
                }
                const out = e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e)
                const found = [...document.querySelectorAll('article *')].filter(out)
                return found.map(e => e.outerHTML.slice(0, 200))
            }""")
            assert not cut, (
                f"{name}: out of a screen of {width}, and in no box that scrolls: {cut[0]}"
            )
    assert formulas > 200 and not page.complaints, page.complaints


def test_search_and_palette(address, open_page):
    page = open_page()
    page.goto(address)
    page.click("input[name=query]")
    page.wait_for_function(
        "document.querySelector('.md-search-result__meta').textContent.trim()"
        " == 'Type to start searching'",
        timeout=90_000,
    )  # words typed before the index is there are lost
    page.keyboard.type("slpo_loss")  # it listens to keys, not to what `fill` sends
    page.wait_for_function(
        "document.querySelector('.md-search-result__item a')?.href.includes('api/loss.html')",
        timeout=60_000,
    )
    assert "slpo_loss" in page.inner_text(".md-search-result__item >> nth=0")
    page.keyboard.press("Escape")
    page.click("label[title=Dark]")
    assert (
        page.evaluate("document.body.dataset.mdColorScheme") == "slate" and not page.complaints
    ), page.complaints
