"""Writes README.md from nbs/index.ipynb.

With --check: says whether README.md is up to date, and writes nothing.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
HEAD = "<!-- written by docs/readme.py from nbs/index.ipynb -->\n\n"


def render() -> str:
    """The index notebook as Markdown: links from the top of the repository, no nbdev directives,
    no code where a cell says echo: false."""
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.source.startswith("#| echo: false"):
            cell.metadata["transient"] = {"remove_source": True}
    nb.metadata["language_info"] = {"name": "python"}
    exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    text, _ = exporter.from_notebook_node(nb)
    text = re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", text)
    text = text.replace("](../", "](").replace("](images/", "](nbs/images/")
    text = re.sub(r"^> (.*)$", r"*\1*", text, count=1, flags=re.M)
    return HEAD + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    path, text = ROOT / "README.md", render()
    if "--check" not in sys.argv:
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path.name} differs from nbs/index.ipynb: run python docs/readme.py")
