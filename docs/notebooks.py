"""The notebooks as data: the one reader behind README, site, paper and tests."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

NBS = Path(__file__).parents[1] / "nbs"
WORDS_PER_MINUTE, LINES_PER_MINUTE = 200, 25


@dataclass
class Cell:
    "One cell; its leading `#| …` lines are directives."

    id: str
    kind: str  # "markdown" | "code"
    text: str  # as it stands in the notebook
    outputs: list = field(default_factory=list)  # nbformat's dicts

    @property
    def directives(self) -> list[str]:
        "The words behind `#|`, line by line, from the top of the cell."
        found = []
        for line in self.text.split("\n"):
            if not line.startswith("#|"):
                break
            found.append(line[2:].strip())
        return found

    @property
    def source(self) -> str:
        "The text without directives."
        lines = self.text.split("\n")
        return "\n".join(lines[len(self.directives) :]).strip("\n")

    @property
    def python(self) -> str:
        "The source without shell lines and magics."
        return re.sub(r"^\s*[!%].*$", "", self.source, flags=re.M)

    def has(self, word: str) -> bool:
        "Does a directive begin with this word?"
        return any(d == word or d.startswith(word + " ") for d in self.directives)

    @property
    def exported(self) -> bool:
        return self.has("export") or self.has("exporti")

    @property
    def hidden(self) -> bool:
        "Shown nowhere but in the notebook itself."
        return self.has("hide") or self.has("default_exp")

    @property
    def folded(self) -> bool:
        "Shown when a reader asks for it."
        return self.has("fold")

    @property
    def silent(self) -> bool:
        "Shown by its outputs alone."
        return "echo: false" in self.directives


def read(path: Path) -> list[Cell]:
    "The cells of one notebook."
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return [
        Cell(c["id"], c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in cells
    ]


def books(folder: Path = NBS) -> dict[str, list[Cell]]:
    "name -> cells of every notebook, in the order of their numbers; `index` comes last."
    return {path.stem: read(path) for path in sorted(Path(folder).glob("*.ipynb"))}


def number(name: str) -> int:
    "A notebook's place in the ladder; `index`, which may use them all, has the last."
    return int(name[:2]) if name[:2].isdigit() else 100


def title(cells: list[Cell]) -> str:
    found = re.search(r"^# (.*)", cells[0].text, flags=re.M)
    return found[1].replace("`", "")


def module(cells: list[Cell]) -> str | None:
    "The module that a notebook exports."
    for cell in cells:
        for directive in cell.directives:
            if directive.startswith("default_exp "):
                return directive.split()[1]
    return None


def imports(cells: list[Cell], exported: bool = False) -> set[str]:
    "The modules of slpo that a notebook imports; with `exported`, those that its module does."
    chosen = [c for c in cells if c.kind == "code" and (c.exported or not exported)]
    code = "\n".join(cell.python for cell in chosen)
    return set(re.findall(r"^\s*from slpo\.(\w+) import", code, flags=re.M))


def figures(cells: list[Cell]) -> list[str]:
    "The names under which a notebook's usage cells save figures."
    usage = [c.source for c in cells if c.kind == "code" and not c.exported]
    return re.findall(r'(?<!\.)\bsavefig\([^"]*"(\w+)"', "\n".join(usage))


def prose_and_code(cells: list[Cell]) -> tuple[int, int]:
    "(words, lines of unfolded code) that a reader meets; exercises do not count."
    words = lines = 0
    for cell in cells:
        if re.match(r"#+ Exercises", cell.text):
            break
        if cell.kind == "markdown":
            words += len(cell.text.split())
        elif not (cell.hidden or cell.folded or cell.silent):
            lines += len(cell.source.splitlines())
    return words, lines


def minutes(cells: list[Cell]) -> int:
    "Reading time, at 200 words and 25 lines of unfolded code a minute."
    words, lines = prose_and_code(cells)
    return max(1, round(words / WORDS_PER_MINUTE + lines / LINES_PER_MINUTE))
