"""The pages of the site, as hooks of mkdocs.yml: notebooks become Markdown with the outputs that they carry, public names become API pages, formulas become MathML."""

import base64
import dataclasses
import html
import importlib.resources
import inspect
import io
import json
import re
from pathlib import Path

from fastcore.docments import docments
from fontTools import subset
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

import slpo

NBS = Path(__file__).parent
GROUPS = {
    "Guides": range(20, 30),
    "Derivation": range(0, 6),
    "Package": range(6, 11),
    "Experiments": range(11, 20),
}  # by a notebook's number
TEX = LatexToMathML(fancy_error=False)
FORMULA = re.compile(r"\\[(\[](.*?)\\[)\]]", re.S)  # as arithmatex hands them on


def notebooks():
    "name -> cells of every notebook, each with its source as one string."
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["cells"]
        for path in sorted(NBS.glob("*.ipynb"))
    }
    for cells in found.values():
        for cell in cells:
            cell["source"] = "".join(cell["source"])
    return found


def exported(cells):
    "The module that a notebook exports, or None."
    return next(
        (
            found[1]
            for cell in cells
            if (found := re.match(r"#\| default_exp (\w+)", cell["source"]))
        ),
        None,
    )


def origin(module, name):
    "(notebook, cell id) that define a name, from the comments that nbdev leaves in the module."
    text = inspect.getsource(module)
    before = text[
        : re.search(
            rf"^(?:(?:def|class) {name}\b|(?:\w+, )*{name}\b.* = )", text, flags=re.M
        ).start()
    ]
    return re.findall(r"^# %% \.\./nbs/(\w+)\.ipynb #([\w-]+)", before, flags=re.M)[-1]


def link(text, names, folder="api/"):
    "Markdown in which notebooks are pages, a public name in backticks leads to its entry, and, as in Jupyter, a list or table needs no blank line before it."

    def entry(found):
        return (
            f"[`{found[1]}{found[2] or ''}`]({folder}{names[found[1]]}.md#{found[1]})"
            if found[1] in names
            else found[0]
        )

    def prose(part):
        part = re.sub(r"\((\w+)\.ipynb", r"(\1.md", part).replace("](../", "](")
        part = re.sub(r"^([^\s|*-].*\n)(?=[*-] |1\. |\|)", r"\1\n", part, flags=re.M)
        return re.sub(r"(?<![\[`])`(\w+)(\([^`\n]*\))?`(?![\]`])", entry, part)

    return "".join(
        part if i % 2 else prose(part)
        for i, part in enumerate(re.split(r"(^```.*?^```)", text, flags=re.M | re.S))
    )


def output(out, name, names, figures):
    "One stored output as Markdown; its picture goes to `figures`."
    data = {
        kind: "".join(text)
        for kind, text in out.get("data", {"text/plain": out.get("text", "")}).items()
    }
    if "image/png" in data:
        figures[name] = base64.b64decode(data["image/png"])
        return f"![Figure of {name}]({name}.png)"
    if "text/markdown" in data:
        return link(data["text/markdown"], names)
    if "text/html" in data:
        return re.sub(
            r"<style.*?</style>\s*| border=\"1\"| class=\"dataframe\"| style=\"text-align: right;\"",
            "",
            data["text/html"],
            flags=re.S,
        )
    return f"~~~~{{ .text .output }}\n{data['text/plain'].rstrip()}\n~~~~"


def listing(code, title=""):
    "Code as Markdown. It is not searched: names lead to the API, words to the prose."
    return f"~~~~{{ .python{title} data-search-exclude='' }}\n{code}\n~~~~"


def page(name, cells, names, figures):
    "A notebook as Markdown. Hidden cells are left out, directives are cut, exported cells say where they go."
    parts, module = (
        ["---\nsearch:\n  boost: 2\n---"] * name.startswith("2"),
        exported(cells),
    )  # guides come first in a search; code is not searched
    for cell in cells:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            parts.append(link(source, names))
            continue
        if cell["cell_type"] != "code" or re.match(r"#\| (hide|default_exp)", source):
            continue
        title = f' title="slpo.{module}"' if source.startswith("#| export") else ""
        code = re.sub(r"^#\| .*\n?", "", source, flags=re.M).strip("\n")
        if code and not source.startswith("#| echo: false"):
            parts += [f'<div id="{cell["id"]}"></div>', listing(code, title)]
        if re.search(r"^knobs\(", code, flags=re.M):
            parts.append("*In JupyterLab, sliders appear here once all cells have run.*\n{ .note }")
        parts += [
            output(out, f"{name}-{cell['id']}-{i}", names, figures)
            for i, out in enumerate(cell["outputs"])
        ]
    return "\n\n".join([*parts, f"[This page as a notebook]({name}.ipynb)\n{{ .note }}"])


def parameters(thing):
    "(name, type, default, comment) of what a function, class or dataclass takes, and the (type, comment) of what a function returns, or None."
    if dataclasses.is_dataclass(thing):
        comments = docments(thing)
        return [
            (f.name, f.type, f.default, f.metadata.get("help") or comments.get(f.name))
            for f in dataclasses.fields(thing)
            if f.name in thing.__annotations__
        ], None
    found = docments(thing, full=True, returns=True)
    result = found.pop("return", None)
    return [
        (name, d["anno"], d["default"], d["docment"]) for name, d in found.items() if name != "self"
    ], result and result["docment"] and (result["anno"], result["docment"])


def described(anno, default=inspect._empty):
    "`type = default`, or what there is of it."
    kind = (
        ""
        if anno in (inspect._empty, type(None))
        else anno.__name__
        if isinstance(anno, type)
        else str(anno)
    )
    return " ".join(
        [kind]
        + (["=", repr(default)] if default not in (inspect._empty, dataclasses.MISSING) else [])
    ).strip()


def signature(thing):
    "Without annotations, which are in the table; on several lines where it is long. A dataclass takes what its table says."
    if dataclasses.is_dataclass(thing):
        return f"class {thing.__name__}({', '.join(base.__name__ for base in thing.__bases__)})"
    found = inspect.signature(thing)
    bare = found.replace(
        parameters=[p.replace(annotation=inspect._empty) for p in found.parameters.values()],
        return_annotation=inspect._empty,
    )
    return thing.__name__ + (
        str(bare)
        if len(str(bare)) < 70
        else "(\n    " + ",\n    ".join(re.split(r", (?=[*\w]+(?:=|,|$))", str(bare)[1:-1])) + ")"
    )


def entry(thing, name, source, names):
    "A public function or class: signature, docstring, what it takes and returns, where it is derived."
    rows, result = parameters(thing)
    comment = lambda text: link((text or "").replace("|", "\\|").replace("\n", " "), names, "")
    parts = [
        f"## `{name}` {{ #{name} }}",
        f"~~~~python\n{signature(thing)}\n~~~~",
        link(inspect.getdoc(thing) or "", names, ""),
    ]
    if rows:
        parts.append(
            "\n".join(
                [
                    "| parameter | |",
                    "|---|---|",
                    *(
                        f"| **`{n}`**<br>`{described(anno, default)}` | {comment(text)} |".replace(
                            "<br>``", ""
                        )
                        for n, anno, default, text in rows
                    ),
                ]
            )
        )
    if result:
        parts.append(f"**Returns** `{described(result[0])}`: {link(result[1], names, '')}")
    return "\n\n".join(
        [*parts, f"Derived in [{source[0]}](../{source[0]}.md#{source[1]}).\n{{ .note }}"]
    )


def api(module, names):
    "The API page of a module."
    loaded = importlib.import_module(f"slpo.{module}")
    parts, constants = (
        [
            f"---\nsearch:\n  boost: 2\n---\n\n# slpo.{module}",
            link(loaded.__doc__.strip(), names, ""),
        ],
        [],
    )
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if callable(thing):
            parts.append(entry(thing, name, origin(loaded, name), names))
        else:
            constants.append(
                "- `{0}`{{ #{0} }}: {1}, [{2}](../{2}.md#{3})".format(
                    name, type(thing).__name__, *origin(loaded, name)
                )
            )
    return "\n\n".join(parts + (["## Constants", "\n".join(constants)] if constants else []))


def math_font():
    "STIX Two Math (SIL Open Font License) for browsers on systems that have no mathematical font: Latin, Greek, operators, mathematical italics."
    options = subset.Options(layout_features=["*"], name_IDs=["*"])
    font = subset.load_font(
        str(importlib.resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"), options
    )
    subsetter = subset.Subsetter(options)
    subsetter.populate(
        unicodes=[
            c
            for first, last in (
                (0x20, 0x7F),
                (0x370, 0x400),
                (0x2000, 0x2300),
                (0x1D434, 0x1D468),
                (0x1D6A8, 0x1D71C),
            )
            for c in range(first, last)
        ]
    )
    subsetter.subset(font)
    font.flavor = "woff"
    font.save(out := io.BytesIO())
    return out.getvalue()


def on_config(config):
    "Navigation: notebooks in the order of their numbers, then the API."
    books = notebooks()
    title = lambda name: re.search(r"^# (.*)", books[name][0]["source"], flags=re.M)[1].replace(
        "`", ""
    )
    config.nav = [{"Start": "index.md"}]
    for group, numbers in GROUPS.items():
        if inside := [name for name in books if name[:2].isdigit() and int(name[:2]) in numbers]:
            config.nav.append({group: [{f"{n[:2]} {title(n)}": f"{n}.md"} for n in inside]})
    config.nav.append(
        {
            "API": [
                {f"slpo.{module}": f"api/{module}.md"}
                for module in map(exported, books.values())
                if module
            ]
        }
    )
    config.nav.append({"Contributing": "CONTRIBUTING.md"})
    return config


def on_files(files, config):
    "Adds the pages and their figures."
    books, figures = notebooks(), {}
    modules = [module for module in map(exported, books.values()) if module]
    names = {
        name: module
        for module in modules
        for name in importlib.import_module(f"slpo.{module}").__all__
        if name in slpo.__all__ or re.search("[A-Z_]", name)
    }  # `train()` may mean any train
    pages = {f"{name}.md": page(name, cells, names, figures) for name, cells in books.items()} | {
        f"api/{module}.md": api(module, names) for module in modules
    }
    pages["CONTRIBUTING.md"] = link(
        (NBS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), names
    )
    papers = {
        f"paper/{path.name}": path.read_bytes() for path in (NBS.parent / "paper").glob("*.pdf")
    }
    for uri, content in (
        pages
        | papers
        | {f"{name}.png": png for name, png in figures.items()}
        | {"math.woff": math_font()}
    ).items():
        files.append(File.generated(config, uri, content=content))
    return files


def mathml(found):
    "One formula as the browser draws it; one that cannot be read stops the build."
    opening, tex = found[0][:2], html.unescape(found[1])
    try:
        drawn = TEX.convert_with_local_state(tex, displaystyle=opening == r"\[")
    except LatexError as e:
        raise PluginError(f"formula {tex}: {e}")
    return drawn.replace("<mo minsize", '<mo lspace="0" rspace="0" minsize')  # \big( is no relation


def on_page_content(content, page, **_):
    "Formulas, in the text and in the table of contents."

    def titles(items):
        for item in items:
            item.title = FORMULA.sub(mathml, item.title)
            titles(item.children)

    titles(page.toc)
    return re.sub(
        r'(?<=class="arithmatex">).*?(?=</span>|</div>)',
        lambda found: FORMULA.sub(mathml, found[0]),
        content,
        flags=re.S,
    )
