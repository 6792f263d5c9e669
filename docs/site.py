"""The site, as hooks of mkdocs.yml.

Notebooks become Markdown with the outputs that they carry, public names become API pages,
formulas become MathML.
"""

import base64
import dataclasses
import html
import importlib
import importlib.resources
import inspect
import io
import re
import sys
from pathlib import Path

from fastcore.docments import docments
from fontTools import subset
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

import slpo

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
import notebooks  # noqa: E402

# title in the navigation -> numbers of its notebooks
GROUPS = {
    "Guides": range(40, 50),
    "Derivation": range(0, 8),
    "Engine": range(8, 30),
    "Evidence": range(30, 40),
    "Tools": range(90, 100),
}
FIRST_IN_A_SEARCH = "---\nsearch:\n  boost: 2\n---"
TEX = LatexToMathML(fancy_error=False)
FORMULA = re.compile(r"\\[(\[](.*?)\\[)\]]", re.S)  # as arithmatex hands them on


# -- text


def link(
    text: str,  # Markdown of a notebook, a docstring or CONTRIBUTING
    names: dict,  # public name -> its module
    folder: str = "api/",  # where API pages lie, seen from the page
) -> str:
    """Markdown in which notebooks are pages and a public name in backticks leads to its entry.

    As in Jupyter, a list or table needs no blank line before it. Code blocks stay as they are.
    """
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        parts[i] = link_prose(parts[i], names, folder)
    return "".join(parts)


def link_prose(text: str, names: dict, folder: str) -> str:
    def entry(found):
        name, call = found[1], found[2] or ""
        if name not in names:
            return found[0]
        return f"[`{name}{call}`]({folder}{names[name]}.md#{name})"

    text = re.sub(r"\((\w+)\.ipynb", r"(\1.md", text).replace("](../", "](")
    text = re.sub(r"^([^\s|*-].*\n)(?=[*-] |1\. |\|)", r"\1\n", text, flags=re.M)
    return re.sub(r"(?<![\[`])`(\w+)(\([^`\n]*\))?`(?![\]`])", entry, text)


def mathml(found) -> str:
    "One formula as the browser draws it; one that cannot be read stops the build."
    opening, tex = found[0][:2], html.unescape(found[1])
    try:
        drawn = TEX.convert_with_local_state(tex, displaystyle=opening == r"\[")
    except LatexError as e:
        raise PluginError(f"formula {tex}: {e}") from e
    # \big( is no relation
    return drawn.replace("<mo minsize", '<mo lspace="0" rspace="0" minsize')


# -- pages of notebooks


def listing(code: str, title: str = "") -> str:
    "Code as Markdown. It is not searched: names lead to the API, words to the prose."
    shown = f' title="{title}"' if title else ""
    return f"~~~~{{ .python{shown} data-search-exclude='' }}\n{code}\n~~~~"


def fold(cell: notebooks.Cell, title: str) -> str:
    "A listing that opens when its line is clicked."
    names = re.findall(r"^(?:class|def) (\w+)|^([A-Z_]+) = ", cell.source, flags=re.M)
    what = ", ".join(f"<code>{a or b}</code>" for a, b in names[:4]) or "Code"
    if len(names) > 4:
        what += ", …"
    summary = f"{title}: {what}" if title else what
    return (
        f'<details class="code" markdown="1"><summary>{summary}</summary>\n\n'
        f"{listing(cell.source)}\n\n</details>"
    )


def output(
    out: dict,  # nbformat's
    name: str,  # a name for its picture
    names: dict,  # public name -> its module
    figures: dict,  # takes its picture: name -> bytes
) -> str:
    "One stored output as Markdown."
    data = out.get("data", {"text/plain": out.get("text", "")})
    data = {kind: "".join(text) for kind, text in data.items()}
    if "image/png" in data:
        figures[name] = base64.b64decode(data["image/png"])
        return f"![Figure of {name}]({name}.png)"
    if "text/markdown" in data:
        return link(data["text/markdown"], names)
    if "text/html" in data:
        looks = (
            r"<style.*?</style>\s*| border=\"1\"| class=\"dataframe\"| style=\"text-align: right;\""
        )
        return re.sub(looks, "", data["text/html"], flags=re.S)
    return f"~~~~{{ .text .output }}\n{data['text/plain'].rstrip()}\n~~~~"


def code_cell(cell: notebooks.Cell, module: str | None) -> list[str]:
    "The code of a cell, after an anchor that API pages lead to."
    if not cell.source or cell.silent:
        return []
    title = f"slpo.{module}" if cell.exported else ""
    code = fold(cell, title) if cell.folded else listing(cell.source, title)
    parts = [f'<div id="{cell.id}"></div>', code]
    if re.search(r"^knobs\(", cell.source, flags=re.M):
        parts.append("*In JupyterLab, sliders appear here once all cells have run.*\n{ .note }")
    return parts


def page(name: str, cells: list, names: dict, figures: dict) -> str:
    "A notebook as Markdown: hidden cells are left out, directives are cut. Guides lead a search."
    parts = [FIRST_IN_A_SEARCH] if name.startswith("4") else []
    module = notebooks.module(cells)
    for cell in cells:
        if cell.kind == "markdown":
            parts += [f'<div id="{cell.id}"></div>', link(cell.text, names)]
        if cell.kind != "code" or cell.hidden:
            continue
        parts += code_cell(cell, module)
        for i, out in enumerate(cell.outputs):
            parts.append(output(out, f"{name}-{cell.id}-{i}", names, figures))
    parts.append(f"[This page as a notebook]({name}.ipynb)\n{{ .note }}")
    return "\n\n".join(parts)


# -- API pages


def origin(module, name: str) -> tuple[str, str]:
    "(notebook, cell id) that define a name, from the comments that nbdev leaves in the module."
    text = inspect.getsource(module)
    defined = rf"^(?:(?:def|class) {name}\b|(?:\w+, )*{name}\b.* = )"
    before = text[: re.search(defined, text, flags=re.M).start()]
    return re.findall(r"^# %% \.\./nbs/(\w+)\.ipynb #([\w-]+)", before, flags=re.M)[-1]


def parameters(thing) -> tuple[list, tuple | None]:
    """What a function, class or dataclass takes: [(name, type, default, comment)]; and what a
    function returns: (type, comment), or None where nothing is said of it."""
    if dataclasses.is_dataclass(thing):
        comments, rows = docments(thing), []
        for f in dataclasses.fields(thing):
            if f.name in thing.__annotations__:
                comment = f.metadata.get("help") or comments.get(f.name)
                rows.append((f.name, f.type, f.default, comment))
        return rows, None
    found = docments(thing, full=True, returns=True)
    result = found.pop("return", None)
    rows = [(n, d["anno"], d["default"], d["docment"]) for n, d in found.items() if n != "self"]
    if not result or not result["docment"]:
        return rows, None
    return rows, (result["anno"], result["docment"])


def described(anno, default=inspect._empty) -> str:
    "`type = default`, or what there is of it."
    parts = []
    if isinstance(anno, type):
        if anno not in (inspect._empty, type(None)):
            parts.append(anno.__name__)
    else:
        parts.append(str(anno))
    if default not in (inspect._empty, dataclasses.MISSING):
        parts += ["=", repr(default)]
    return " ".join(parts)


def signature(thing) -> str:
    """Without annotations, which are in the table; on several lines where it is long.
    A dataclass takes what its table says."""
    if dataclasses.is_dataclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__)
        return f"class {thing.__name__}({bases})"
    found = inspect.signature(thing)
    bare = [p.replace(annotation=inspect._empty) for p in found.parameters.values()]
    text = str(found.replace(parameters=bare, return_annotation=inspect._empty))
    if len(text) >= 70:
        arguments = re.split(r", (?=[*\w]+(?:=|,|$))", text[1:-1])
        text = "(\n    " + ",\n    ".join(arguments) + ")"
    return thing.__name__ + text


def entry(thing, name: str, source: tuple, names: dict) -> str:
    "A public function or class: signature, docstring, what it takes and returns, its derivation."

    def comment(text):
        return link((text or "").replace("|", "\\|").replace("\n", " "), names, "")

    rows, result = parameters(thing)
    doc = link(inspect.getdoc(thing) or "", names, "")
    parts = [f"## `{name}` {{ #{name} }}", f"~~~~python\n{signature(thing)}\n~~~~", doc]
    if rows:
        table = ["| parameter | |", "|---|---|"]
        for parameter, anno, default, text in rows:
            kind = described(anno, default)
            shown = f"**`{parameter}`**<br>`{kind}`" if kind else f"**`{parameter}`**"
            table.append(f"| {shown} | {comment(text)} |")
        parts.append("\n".join(table))
    if result:
        parts.append(f"**Returns** `{described(result[0])}`: {link(result[1], names, '')}")
    book, cell = source
    parts.append(f"Derived in [{book}](../{book}.md#{cell}).\n{{ .note }}")
    return "\n\n".join(parts)


def api(module: str, names: dict) -> str:
    "The API page of a module."
    loaded = importlib.import_module(f"slpo.{module}")
    about = link(loaded.__doc__.strip(), names, "")
    parts, constants = [f"{FIRST_IN_A_SEARCH}\n\n# slpo.{module}", about], []
    for name in loaded.__all__:
        thing, source = getattr(loaded, name), origin(loaded, name)
        if callable(thing):
            parts.append(entry(thing, name, source, names))
            continue
        place = "[{0}](../{0}.md#{1})".format(*source)
        constants.append(f"- `{name}`{{ #{name} }}: {type(thing).__name__}, {place}")
    if constants:
        parts += ["## Constants", "\n".join(constants)]
    return "\n\n".join(parts)


# -- what mkdocs calls


def math_font() -> bytes:
    """STIX Two Math (SIL Open Font License) for browsers on systems that have no mathematical
    font: Latin, Greek, operators, mathematical italics."""
    ranges = (0x20, 0x7F), (0x370, 0x400), (0x2000, 0x2300), (0x1D434, 0x1D468), (0x1D6A8, 0x1D71C)
    options = subset.Options(layout_features=["*"], name_IDs=["*"])
    file = importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
    font = subset.load_font(str(file), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[c for first, last in ranges for c in range(first, last)])
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(out := io.BytesIO())
    return out.getvalue()


def on_config(config):
    "Navigation: notebooks in the order of their numbers, then the API."
    books = notebooks.books()
    config.nav = [{"Start": "index.md"}]
    for group, numbers in GROUPS.items():
        inside = [name for name in books if notebooks.number(name) in numbers]
        entries = [{f"{n[:2]} {notebooks.title(books[n])}": f"{n}.md"} for n in inside]
        if entries:
            config.nav.append({group: entries})
    modules = [module for module in map(notebooks.module, books.values()) if module]
    config.nav.append({"API": [{f"slpo.{module}": f"api/{module}.md"} for module in modules]})
    config.nav.append({"Contributing": "CONTRIBUTING.md"})
    return config


def public_names(modules: list[str]) -> dict:
    "Name -> module. A name of small letters that slpo itself has not is a word: `train`."
    names = {}
    for module in modules:
        for name in importlib.import_module(f"slpo.{module}").__all__:
            if name in slpo.__all__ or re.search("[A-Z_]", name):
                names[name] = module
    return names


def on_files(files, config):
    "Adds the pages, their figures, the paper, font and style."
    books, figures = notebooks.books(), {}
    modules = [module for module in map(notebooks.module, books.values()) if module]
    names = public_names(modules)
    made = {f"{name}.md": page(name, cells, names, figures) for name, cells in books.items()}
    made |= {f"api/{module}.md": api(module, names) for module in modules}
    for path in (ROOT / "CONTRIBUTING.md", DOCS / "old_cells.md"):
        text = path.read_text(encoding="utf-8").replace("](nbs/", "](").replace("](docs/", "](")
        made[path.name] = link(text, names)
    made |= {f"{name}.png": png for name, png in figures.items()}
    made |= {f"paper/{path.name}": path.read_bytes() for path in (ROOT / "paper").glob("*.pdf")}
    made |= {"math.woff": math_font(), "styles.css": (DOCS / "styles.css").read_bytes()}
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_content(content, page, **_):
    "Formulas, in the text and in the table of contents."

    def titles(items):
        for item in items:
            item.title = FORMULA.sub(mathml, item.title)
            titles(item.children)

    titles(page.toc)
    inside = r'(?<=class="arithmatex">).*?(?=</span>|</div>)'
    return re.sub(inside, lambda found: FORMULA.sub(mathml, found[0]), content, flags=re.S)
