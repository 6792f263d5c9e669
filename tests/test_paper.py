"""The paper says what the notebooks measured: no number of its own, no figure without a notebook, none left out, and the same file when it is built again."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "paper"
TEXT = (PAPER / "slpo.tex").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("build", PAPER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def body(text=TEXT):
    "The document between \\begin and \\end, without comments."
    text = re.sub(r"(?<!\\)%.*", "", text)
    return text[text.index(r"\begin{document}") : text.index(r"\end{document}")]


def typed_numbers(text):
    "What looks like a measured number: any digit in the text; in formulas, a decimal or more than one digit."
    for environment in ("equation", "align"):
        text = re.sub(
            rf"\\begin{{{environment}}}(.*?)\\end{{{environment}}}", r"$\1$", text, flags=re.S
        )
    text = re.sub(r"\\(?:begin|end){tabular}(?:{(?:[^{}]|{[^{}]*})*})?", "", text)
    text = re.sub(
        r"\\(?:label|ref|eqref|plot|rows|code|citep?t?|setlength{\\\w+}|includegraphics|vspace|hspace)(?:\[[^\]]*\])?{(?:[^{}]|{[^{}]*})*}",
        "",
        text,
    )
    text = re.sub(r"\\\\\[\w+\]|\\[dt]?frac\d\d", "", text)  # line spacing; fractions of digits
    formulas = [m[1] for m in re.finditer(r"\$([^$]*)\$", text)]
    outside = re.sub(r"\$[^$]*\$", "", text)
    return re.findall(r"\S*\d\S*", outside) + [
        n for f in formulas for n in re.findall(r"\d*\.\d+|\d{2,}", f)
    ]


def notebook_figures():
    "name of a figure -> notebook that draws it"
    return {
        name: path.stem
        for path in build.notebooks()
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
        for name in re.findall(r'savefig\(.*"(\w+)"\)', "".join(cell["source"]))
    }


def test_no_number_is_typed():
    assert not (found := typed_numbers(body())), (
        f"numbers typed into slpo.tex: {found}; keep them with savenumbers"
    )


@pytest.mark.parametrize(
    "bad",
    [
        "it is 93 per cent",
        "a rate of $0.5$",
        r"$\beta=12$",
        r"\begin{equation}a=3.5\end{equation}",
        "5\\%",
    ],
)
def test_a_typed_number_is_found(bad):
    assert typed_numbers(bad)


@pytest.mark.parametrize(
    "good",
    [
        r"$\frac12\sum_k$ and $1/t^2$",
        r"Section~\ref{sec:loss2}",
        r"\citep[Eq.~7]{a2023}",
        r"\code{pythia28-hh}",
        r"\markovKl{} nats",
    ],
)
def test_mathematics_and_names_are_none(good):
    assert not typed_numbers(good)


def test_every_number_has_a_notebook_and_is_used():
    defined = re.findall(r"\\newcommand{\\(\w+)}", (PAPER / "numbers.tex").read_text())
    kept = {
        name
        for path in (ROOT / "nbs" / "results" / "numbers").glob("*.json")
        for name in json.loads(path.read_text(encoding="utf-8"))["numbers"]
    }
    assert set(defined) == kept and len(defined) == len(kept)
    used = set(re.findall(r"\\([a-zA-Z]+)", body()))
    assert not (unused := sorted(kept - used)), f"kept for the paper and not printed: {unused}"


def test_every_table_is_used():
    assert {path.stem for path in (PAPER / "tables").glob("*.tex")} == set(
        re.findall(r"\\rows{(\w+)}", body())
    )


def test_every_figure_has_a_notebook_and_is_used():
    drawn, shown = notebook_figures(), re.findall(r"\\plot{(\w+)}", body())
    assert len(drawn) > 20 and len(shown) == len(set(shown))
    assert not (orphans := set(shown) - set(drawn)), f"no notebook draws {orphans}"
    waiting = (
        set() if list((ROOT / "nbs" / "results").glob("pythia28_hh_*.json")) else {"pythia28_hh"}
    )  # drawn once the experiment has run
    assert not (unused := set(drawn) - set(shown) - waiting), (
        f"not in the paper: { {name: drawn[name] for name in unused} }"
    )
    assert {path.stem for path in (PAPER / "figures").glob("*.pdf")} == set(shown)


def test_every_number_of_the_abstract_is_in_the_section_that_its_sentence_names():
    text = body()
    abstract = re.search(r"\\begin{abstract}(.*?)\\end{abstract}", text, flags=re.S)[1]
    kept = set(re.findall(r"\\newcommand{\\(\w+)}", (PAPER / "numbers.tex").read_text()))
    heads = list(re.finditer(r"\\(?:sub)?section\*?{[^}]*}(?:\\label{([\w:]+)})?", text))
    sections = {
        head[1]: text[head.end() : after.start() if after else len(text)]
        for head, after in zip(heads, [*heads[1:], None])
    }
    claims = [s for s in re.split(r"(?<=\.)\s", abstract) if set(re.findall(r"\\(\w+)", s)) & kept]
    assert len(claims) >= 4
    for sentence in claims:
        named = re.findall(r"\\ref{([\w:]+)}", sentence)
        assert named, f"no section for: {sentence}"
        for number in set(re.findall(r"\\(\w+)", sentence)) & kept:
            assert any(
                rf"\{number}{{}}" in sections[s] or rf"\{number}" in sections[s] for s in named
            ), f"\\{number} is not in {named}"


def test_numbers_and_tables_are_what_the_notebook_writes(tmp_path):
    (tmp_path / "figures").mkdir()
    done = subprocess.run(
        [Path(sys.executable).with_name("nbdev_test"), "--path", ROOT / "nbs" / "91_paper.ipynb"],
        cwd=ROOT,
        env={**os.environ, "SLPO_FIGURES": str(tmp_path / "figures")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (PAPER / "numbers.tex", *(PAPER / "tables").glob("*.tex")):
        assert (tmp_path / path.relative_to(PAPER)).read_text() == path.read_text(), (
            f"{path.name} has drifted: run python paper/build.py"
        )


def test_complaints_are_found():
    log = "LaTeX Warning: Reference `x' on page 1 undefined on input line 3.\nOverfull \\hbox (1.9pt too wide) in paragraph\nOverfull \\hbox (2.1pt too wide) in paragraph\nMissing character: There is no b in font x!\n"
    assert len(build.complaints(log, "Warning--empty year in a\n")) == 4


@pytest.mark.skipif(
    not shutil.which("latexmk"),
    reason="TeX Live is not installed (apt install latexmk texlive-latex-extra texlive-fonts-recommended lmodern)",
)
def test_the_same_pdf_without_a_complaint(tmp_path):
    paper = tmp_path / "elsewhere"
    shutil.copytree(PAPER, paper)
    assert build.typeset(paper, tmp_path) == []
    fresh, kept = (tmp_path / "slpo.pdf").read_bytes(), (PAPER / "slpo.pdf").read_bytes()
    made_by, here = (re.search(rb"/Producer \((.*?)\)", pdf)[1].decode() for pdf in (kept, fresh))
    if made_by != here:
        pytest.skip(
            f"typeset without a complaint; bytes compare with {made_by} only, this is {here}"
        )
    assert fresh == kept, "slpo.pdf is not what slpo.tex says: run python paper/build.py --tex"
