"""Writes README.md from nbs/index.ipynb. With --check: says whether README.md is up to date, and writes nothing."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

NBS = Path(__file__).parent


def render() -> str:
    "The index notebook as Markdown: links from the top of the repository, no nbdev directives, no code where a cell says echo: false."
    nb = nbformat.read(NBS / "index.ipynb", as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.source.startswith("#| echo: false"):
            cell.metadata["transient"] = {"remove_source": True}
    nb.metadata["language_info"] = {"name": "python"}
    text, _ = MarkdownExporter(
        exclude_input_prompt=True, exclude_output_prompt=True
    ).from_notebook_node(nb)
    text = (
        re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", text)
        .replace("](../", "](")
        .replace("](images/", "](nbs/images/")
    )
    text = re.sub(r"^> (.*)$", r"*\1*", text, count=1, flags=re.M)
    return (
        "<!-- written by nbs/readme.py from nbs/index.ipynb -->\n\n"
        + re.sub(r"\n{3,}", "\n\n", text).strip()
        + "\n"
    )


if __name__ == "__main__":
    path, text = NBS.parent / "README.md", render()
    if "--check" in sys.argv:
        sys.exit(
            0
            if path.read_text(encoding="utf-8") == text
            else f"{path.name} differs from nbs/index.ipynb: run python nbs/readme.py"
        )
    path.write_text(text, encoding="utf-8")
