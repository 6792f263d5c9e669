"""Draws nbs/images/ladder.svg: who imports whom, from the code.

A dot in row A, column B says that module A imports module B. All dots lie left of the diagonal:
no import runs up, so there is no circle. With --check: says whether the picture is up to date.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
import notebooks  # noqa: E402

PICTURE = DOCS.parent / "nbs" / "images" / "ladder.svg"
PARTS = {"derivation": range(0, 8), "engine": range(8, 30), "evidence": range(30, 40)}
STEP, LEFT, TOP = 22, 150, 108  # pixels


def graph() -> tuple[dict[str, str], dict[str, set[str]]]:
    """(notebook of each module, modules that each module imports), modules in the ladder's order.
    `plot`, which every notebook may import, comes first."""
    books = notebooks.books()
    homes = {}
    for name in sorted(books, key=lambda name: (name != "90_plot", notebooks.number(name))):
        module = notebooks.module(books[name])
        if module:
            homes[module] = name
    imports = {}
    for module, name in homes.items():
        imports[module] = notebooks.imports(books[name], exported=True) & set(homes)
    return homes, imports


def runs_up(homes: dict, imports: dict) -> list[tuple[str, str]]:
    "The imports that do not lead to an earlier module."
    place = {module: i for i, module in enumerate(homes)}
    found = []
    for module, used in imports.items():
        found += [(module, other) for other in used if place[other] >= place[module]]
    return found


def svg() -> str:
    homes, imports = graph()
    names = list(homes)
    size = STEP * len(names)
    parts = []

    def at(i):
        return STEP * i + STEP / 2

    for i, module in enumerate(names):
        y, number = TOP + at(i), homes[module][:2]
        shade = "#f4f4f4" if i % 2 else "#ffffff"
        parts.append(
            f'<rect x="0" y="{TOP + STEP * i}" width="{LEFT + size}" height="{STEP}" '
            f'fill="{shade}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{number} {module}</text>'
        )
        x = LEFT + at(i)
        parts.append(
            f'<text transform="translate({x + 4} {TOP - 8}) rotate(-60)">{number} {module}</text>'
        )
        parts.append(
            f'<rect x="{x - 4}" y="{y - 4}" width="8" height="8" fill="none" stroke="#999"/>'
        )
    for i, module in enumerate(names):
        for other in sorted(imports[module]):
            x, y = LEFT + at(names.index(other)), TOP + at(i)
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="5" fill="#0072B2">'
                f"<title>{module} imports {other}</title></circle>"
            )
    for part, numbers in PARTS.items():
        inside = [i for i, m in enumerate(names) if int(homes[m][:2]) in numbers]
        y = TOP + STEP * inside[0]
        parts.append(f'<line x1="0" y1="{y}" x2="{LEFT + size}" y2="{y}" stroke="#333"/>')
        parts.append(f'<text x="4" y="{y + 15}" font-style="italic" fill="#666">{part}</text>')
    width, height = LEFT + size + 60, TOP + size + 4
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    text = svg()
    if "--check" not in sys.argv:
        PICTURE.write_text(text, encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PICTURE.name} differs from the code: run python docs/ladder.py")
