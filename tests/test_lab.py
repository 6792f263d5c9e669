"""A notebook in JupyterLab, in a browser: it runs without an error, and moving a slider redraws its
figure."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"


@pytest.fixture
def lab(tmp_path, browser):
    "The address of a JupyterLab that serves a copy of the notebooks."
    shutil.copytree(
        NBS,
        tmp_path / "nbs",
        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs"),
    )
    home = {
        f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")
    }  # nobody's settings
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "nbs",
                "--no-browser",
                "--allow-root",
                "--port=0",
                "--IdentityProvider.token=",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                **home,
                "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
                "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.time() + 60
        while not (
            found := re.search(
                r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab", (tmp_path / "log").read_text()
            )
        ):
            assert server.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield found[1]
    finally:
        server.terminate()
        server.wait(30)


def code_cells(path):
    return [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code" and cell["source"]
    ]


def open_and_run(page, lab, name):
    page.goto(f"{lab}/lab/tree/{name}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_selector(r"text=/\| Idle$/", timeout=60_000)
    page.click('[role=menubar] >> text="Run"')
    page.click('.lm-Menu-itemLabel >> text="Run All Cells"')


def save_and_look(page, path, seconds=30):
    "Saves the notebook; every cell has run, without an error, once it is idle."
    deadline = time.time() + seconds
    while True:
        page.wait_for_selector(r"text=/\| Idle$/", timeout=1000 * seconds)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        if not (
            missing := [cell["id"] for cell in code_cells(path) if not cell["execution_count"]]
        ):
            break
        assert time.time() < deadline, f"not run: {missing}"
    assert (
        not [
            out
            for cell in code_cells(path)
            for out in cell["outputs"]
            if out["output_type"] == "error"
        ]
        and not page.complaints
    ), page.complaints


def test_a_slider_moves_a_figure(lab, tmp_path, open_page):
    page, path = open_page(), tmp_path / "nbs" / "02_dpo.ipynb"
    assert not any(cell["execution_count"] for cell in code_cells(path))  # as committed
    open_and_run(page, lab, path.name)
    handle = page.wait_for_selector(".jp-Notebook .widget-slider .noUi-handle", timeout=90_000)
    picture = page.wait_for_selector(".widget-output img", timeout=60_000)
    before = picture.get_attribute("src")
    assert before.startswith("data:image/png")
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        """before => {
            const image = document.querySelector('.widget-output img')
            return image?.src && image.src != before
        }""",
        arg=before,
        timeout=60_000,
    )
    save_and_look(page, path)


@pytest.mark.parametrize(
    "name",
    [path.name for path in sorted(NBS.glob("*.ipynb"))]
    if os.environ.get("SLPO_LAB")
    else ["91_paper.ipynb"],
)  # all of them: some twenty minutes
def test_a_notebook_opens_and_runs(name, lab, tmp_path, open_page):
    page = open_page()
    shutil.copytree(NBS.parent / "paper", tmp_path / "paper")
    for folder in ("tests", "docs"):  # what index and 91_paper read
        shutil.copytree(NBS.parent / folder, tmp_path / folder)
    open_and_run(page, lab, name)
    page.wait_for_timeout(2000)
    save_and_look(page, tmp_path / "nbs" / name, seconds=300)
