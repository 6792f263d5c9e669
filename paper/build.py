"""The paper: slpo.pdf from slpo.tex, and from the figures, numbers and tables beside it.

    python paper/build.py            typeset: figures, numbers and tables stay as they are
    python paper/build.py --fresh    run the notebooks first, about three minutes on two cores;
                                     overwrites the figures, numbers and tables, which are frozen
                                     as measured for version 0.1.0, 28 November 2026

Needs what `pip install -e '.[dev]'` installs, and TeX Live:
apt install latexmk texlive-latex-extra texlive-fonts-recommended lmodern
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAPER = Path(__file__).parent
NBS = PAPER.parent / "nbs"


def run(*command, cwd=PAPER, **variables):
    """Run a command to its end.
    Raises `SystemExit` with what it printed where it fails or is not installed."""
    if not shutil.which(command[0]):
        sys.exit(f"{command[0]} is not installed: see the head of {Path(__file__).name}")
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        out = done.stdout + done.stderr
        errors = re.findall(r"^\S+\.tex:\d+: .*(?:\n.+)*", out, flags=re.M)
        words = " ".join(map(str, command))
        sys.exit(f"{words} failed:\n" + ("\n".join(errors) or out[-4000:]))


def notebooks():
    "Those that draw a figure or keep a number, in order; 91_paper, which collects them, is last."
    saves = re.compile(r"(?<!\.)\bsave(fig|numbers)\(")
    return [
        path
        for path in sorted(NBS.glob("[0-9]*.ipynb"))
        if path.stem != "90_plot" and saves.search(path.read_text(encoding="utf-8"))
    ]


def draw():
    "Run the notebooks, with their figures and numbers going into the paper's folder."
    paths = notebooks()
    for i, path in enumerate(paths, 1):
        print(f"[{i}/{len(paths)}] {path.name}", flush=True)
        run(
            "nbdev_test",
            "--path",
            path,
            cwd=PAPER.parent,
            SLPO_FIGURES=str(PAPER.resolve() / "figures"),
            OMP_NUM_THREADS="1",
        )


def typeset(paper=PAPER, to=None):
    """slpo.pdf in `to`, and what LaTeX's log complains of.
    The clock is set to 0, so that the same text is the same file."""
    to = Path(to or paper)
    with tempfile.TemporaryDirectory() as aux:

        def latexmk(*more):
            run(
                "latexmk",
                "-pdf",
                "-interaction=nonstopmode",
                "-halt-on-error",
                "-file-line-error",
                f"-outdir={aux}",
                *more,
                "slpo.tex",
                cwd=paper,
                SOURCE_DATE_EPOCH="0",
                FORCE_SOURCE_DATE="1",
            )

        def log():
            return (Path(aux) / "slpo.log").read_text(errors="replace")

        latexmk()
        for _ in range(4):  # it takes an auxiliary file of the same second and size for unchanged
            if "Rerun to get" in log():
                latexmk("-g")
        bibliography = (Path(aux) / "slpo.blg").read_text(errors="replace")
        found = complaints(log(), bibliography)
        shutil.copy(Path(aux) / "slpo.pdf", to / "slpo.pdf")
    return found


def complaints(log: str, bibliography: str = "") -> list[str]:
    "Undefined references, boxes that stick out by more than 2 pt, missing glyphs, other warnings."
    log = re.sub(r"(?<=.{79})\n", "", log)  # TeX breaks its lines at 79 characters
    bad = r"^(?:LaTeX|Package|Class)\b.*Warning.*|^Missing character.*|^Overfull .*"
    found = re.findall(bad, log, flags=re.M)
    found += re.findall(r"^Warning--.*", bibliography, flags=re.M)

    def small(line):
        over = re.match(r"Overfull \\[hv]box \((\d+\.?\d*)pt", line)
        return over is not None and float(over[1]) <= 2

    return [line for line in found if not small(line)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="run the notebooks first; overwrites the frozen figures, numbers and tables",
    )
    if parser.parse_args().fresh:
        draw()
    found = typeset()
    if found:
        sys.exit("slpo.pdf was written, but:\n" + "\n".join(found))
    print(f"wrote {PAPER / 'slpo.pdf'}")
