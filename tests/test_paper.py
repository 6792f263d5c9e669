"""The paper prints what was measured: no number of its own, every macro, table and figure there,
and the same file when it is built again. Its figures and numbers are frozen (see the head of
slpo.tex), so they are not compared with what the notebooks write today."""

import importlib.util
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
    """What looks like a measured number: any digit in the text; in formulas, a decimal or more than
    one digit. `\\literal{…}` holds digits that are no measurement."""
    for environment in ("equation", "align"):
        block = rf"\\begin{{{environment}}}(.*?)\\end{{{environment}}}"
        text = re.sub(block, r"$\1$", text, flags=re.S)
    argument = r"{(?:[^{}]|{[^{}]*})*}"
    text = re.sub(rf"\\(?:begin|end){{tabular}}(?:{argument})?", "", text)
    names = r"label|ref|eqref|plot|rows|code|literal|citep?t?|setlength{\\\w+}"
    names += r"|includegraphics|vspace|hspace"
    text = re.sub(rf"\\(?:{names})(?:\[[^\]]*\])?{argument}", "", text)
    text = re.sub(r"\\\\\[\w+\]|\\[dt]?frac\d\d", "", text)  # line spacing; fractions of digits
    formulas = re.findall(r"\$([^$]*)\$", text)
    outside = re.sub(r"\$[^$]*\$", "", text)
    in_formulas = [n for formula in formulas for n in re.findall(r"\d*\.\d+|\d{2,}", formula)]
    return re.findall(r"\S*\d\S*", outside) + in_formulas


def defined_numbers():
    "The names of the macros in numbers.tex."
    return re.findall(r"\\newcommand{\\(\w+)}", (PAPER / "numbers.tex").read_text(encoding="utf-8"))


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
        r"\literal{28} November \literal{2026}",
    ],
)
def test_mathematics_and_names_are_none(good):
    assert not typed_numbers(good)


def test_every_macro_is_defined_once():
    "latexmk finds an undefined one as well, where it is installed."
    defined = defined_numbers()
    assert len(defined) == len(set(defined)) > 100
    kinds = "dpo|loss|ybar|bench|markov|sentiment|hh|pythia|packed|sample"
    printed = set(re.findall(rf"\\((?:{kinds})[A-Z]\w*)", body()))
    assert len(printed) > 100
    assert not (missing := printed - set(defined)), f"not in numbers.tex: {sorted(missing)}"


@pytest.mark.parametrize("macro, folder", [("rows", "tables/{}.tex"), ("plot", "figures/{}.pdf")])
def test_every_table_and_figure_is_there(macro, folder):
    printed = re.findall(rf"\\{macro}{{(\w+)}}", body())
    assert len(printed) > 10 and len(printed) == len(set(printed))
    missing = [name for name in printed if not (PAPER / folder.format(name)).exists()]
    assert not missing, f"printed and not there: {missing}"


def test_every_number_of_the_abstract_stands_in_the_text():
    text = body()
    end = text.index(r"\end{abstract}")
    used = [set(re.findall(r"\\(\w+)", part)) for part in (text[:end], text[end:])]
    claimed = used[0] & set(defined_numbers())
    assert len(claimed) >= 4
    assert not (alone := claimed - used[1]), f"only in the abstract: {sorted(alone)}"


def test_frozen_is_said_on_the_first_page_and_overwritten_only_when_asked():
    assert r"as measured for version \literal{0.1.0}" in body()
    assert TEXT.startswith("% Frozen")
    script = (PAPER / "build.py").read_text(encoding="utf-8")
    assert "if parser.parse_args().fresh:\n        draw()" in script


def test_the_notebook_writes_numbers_and_tables(tmp_path):
    "Today's, into another folder; the paper's own are frozen."
    (tmp_path / "figures").mkdir()
    done = subprocess.run(
        [Path(sys.executable).with_name("nbdev_test"), "--path", ROOT / "nbs" / "91_paper.ipynb"],
        cwd=ROOT,
        env={**os.environ, "SLPO_FIGURES": str(tmp_path / "figures")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert r"\newcommand{" in (tmp_path / "numbers.tex").read_text(encoding="utf-8")
    assert len(list((tmp_path / "tables").glob("*.tex"))) > 10


def test_complaints_are_found():
    log = "\n".join(
        [
            "LaTeX Warning: Reference `x' on page 1 undefined on input line 3.",
            r"Overfull \hbox (1.9pt too wide) in paragraph",
            r"Overfull \hbox (2.1pt too wide) in paragraph",
            "Missing character: There is no b in font x!\n",
        ]
    )
    assert len(build.complaints(log, "Warning--empty year in a\n")) == 4


@pytest.mark.skipif(
    not shutil.which("latexmk"),
    reason="TeX Live is not installed (see the head of paper/build.py)",
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
    assert fresh == kept, "slpo.pdf is not what slpo.tex says: run python paper/build.py"
