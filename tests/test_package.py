"""What `pip install slpo` gives to someone who has no copy of the repository."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*command, cwd, **env):
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**ENV, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel) of what git would commit; the wheel is built from the sdist, as `pip install
    slpo-….tar.gz` does."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: git says which files belong to the project")
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in filter(
        None, run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    ):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A function that runs Python, or a command of the package, in a folder where nothing but the
    installed wheel can be slpo."""
    target, cwd = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("elsewhere")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        target,
        built[1],
        cwd=cwd,
    )

    def start(*command, cwd=cwd):
        command = (
            [target / "bin" / command[0], *command[1:]]
            if command[0].startswith("slpo_")
            else command
        )
        return run(
            sys.executable, *command, cwd=cwd, PYTHONPATH=str(target), PYTHONDONTWRITEBYTECODE="1"
        )

    start.target = target
    assert start("-c", "import slpo; print(slpo.__file__)").strip() == str(
        target / "slpo" / "__init__.py"
    )
    return start


def test_what_is_in_the_wheel(built):
    with zipfile.ZipFile(built[1]) as z:
        names = {n for n in z.namelist() if not n.endswith("/")}
    info = f"slpo-{SETTINGS['version']}.dist-info/"
    ours = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "slpo").rglob("*")
        if p.suffix in (".py", ".yaml", ".typed") and "__pycache__" not in p.parts
    }
    assert {n for n in names if n.startswith("slpo/")} == ours and {
        "slpo/py.typed",
        "slpo/recipes/world.yaml",
        "slpo/recipes/accelerate/fsdp.yaml",
    } <= ours
    assert {
        n for n in names if not n.startswith(("slpo/", info))
    } == set() and info + "licenses/LICENSE" in names


def test_what_is_in_the_sdist(built):
    """The preferred form for making changes: notebooks, settings, tests and the paper; no weights,
    caches, runs."""
    with tarfile.open(built[0]) as t:
        names = {m.name.split("/", 1)[1] for m in t.getmembers() if m.isfile()}
    wanted = {
        str(p.relative_to(ROOT))
        for pattern in (
            "nbs/*.ipynb",
            "nbs/*.py",
            "nbs/results/**/*.json",
            "slpo/**/*.py",
            "slpo/recipes/**/*.yaml",
            "tests/*.py",
            "nbs/*.css",
            "nbs/images/*.svg",
            "paper/*.*",
            "paper/*/*.*",
        )
        for p in ROOT.glob(pattern)
        if "__pycache__" not in p.parts
    }
    assert (
        wanted
        | {
            "settings.ini",
            "setup.py",
            "pyproject.toml",
            "constraints.txt",
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "CITATION.cff",
            "LICENSE",
            "mkdocs.yml",
            "slpo/py.typed",
        }
        <= names
    )
    assert not (
        odd := [
            n
            for n in names
            if "." in Path(n).name
            and not re.search(
                r"\.(py|ipynb|json|md|yaml|ini|toml|txt|cff|cfg|in|typed|yml|css|svg|tex|bib|pdf)$",
                n,
            )
        ]
    ), odd


def test_metadata(built):
    with zipfile.ZipFile(built[1]) as z:
        meta = message_from_bytes(z.read(f"slpo-{SETTINGS['version']}.dist-info/METADATA"))
    assert (meta["Name"], meta["Version"], meta["License-Expression"], meta["Summary"]) == (
        "slpo",
        SETTINGS["version"],
        "GPL-3.0-only",
        SETTINGS["description"],
    )
    assert (
        meta["Requires-Python"] == ">=" + SETTINGS["min_python"]
        and meta["Description-Content-Type"] == "text/markdown"
    )
    pythons = [
        c.rsplit(" ", 1)[1]
        for c in meta.get_all("Classifier")
        if c.startswith("Programming Language")
    ]
    assert pythons == SETTINGS["tested_pythons"].split() and pythons[0] == SETTINGS["min_python"]
    assert {
        r.split(";")[0].strip().split("[")[0].split("<")[0].split(">")[0]
        for r in meta.get_all("Requires-Dist")
    } >= {"torch", "transformers", "accelerate", "datasets"}
    text = meta.get_payload(decode=True).decode()
    assert "# slpo" in text and "```python" in text
    assert not (links := re.findall(r"\]\((?!https?:|#)[^)]*\)", text)), (
        links
    )  # they would lead nowhere on a package index


def test_the_oldest_python_can_read_it():
    import ast

    oldest = tuple(map(int, SETTINGS["min_python"].split(".")))
    for path in [*(ROOT / "slpo").glob("*.py"), ROOT / "setup.py"]:
        ast.parse(path.read_text(), str(path), feature_version=oldest)


def test_import_takes_less_than_a_second(installed):
    timed = """if True:
        import sys, time
        before, start = set(sys.modules), time.perf_counter()
        import slpo
        print(time.perf_counter() - start)
        loaded = {m.split('.')[0] for m in set(sys.modules) - before}
        print(*loaded - set(sys.stdlib_module_names))"""
    said = [installed("-c", timed).split("\n") for _ in range(3)]
    assert min(float(s[0]) for s in said) < 1, subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import slpo"],
        env={**ENV, "PYTHONPATH": str(installed.target)},
        capture_output=True,
        text=True,
    ).stderr
    assert said[0][1] == "slpo"  # and nothing that is not Python's own


def test_commands_and_recipes(installed):
    """Each command says what it takes; each recipe is found by its name. In one process, which
    saves the imports."""
    points = {
        e.name: e.value
        for e in PathDistribution(next(installed.target.glob("*.dist-info"))).entry_points
        if e.group == "console_scripts"
    }
    assert points == dict(c.split("=") for c in SETTINGS["console_scripts"].split())
    code = f"""if True:
        import runpy, sys
        for name in {sorted(points)}:
            sys.argv = [name, "--help"]
            try: runpy.run_path({str(installed.target / "bin")!r} + "/" + name, run_name="__main__")
            except SystemExit as e: print(name, "left with", e.code)
        from slpo.flags import RECIPES, parse_run
        for path in RECIPES.iterdir():
            if path.suffix == ".yaml":
                run, _ = parse_run(["--config", path.stem])
                print("recipe", path.stem, run.dataset_name)"""
    said = installed("-c", code)
    for name, flag in (
        ("slpo_train", "--config"),
        ("slpo_eval", "--judge_model"),
        ("slpo_bench", "--methods"),
    ):
        assert f"usage: {name}" in said and f"{name} left with 0" in said and flag in said
    assert {
        tuple(line.split()[1:]) for line in said.splitlines() if line.startswith("recipe ")
    } == {
        (p.stem, "world" if p.stem == "world" else "Anthropic/hh-rlhf")
        for p in (ROOT / "slpo" / "recipes").glob("*.yaml")
    }


def test_the_main_job_runs(installed, tmp_path):
    "`slpo_train` without a repository: the built-in world comes with the package, too."
    small = [
        "--train_size",
        "32",
        "--eval_size",
        "8",
        "--sft_epochs",
        "1",
        "--max_new_tokens",
        "4",
        "--per_device_train_batch_size",
        "8",
        "--max_steps",
        "2",
    ]
    assert "against the model it started from" in installed(
        "slpo_train", *small, "--output_dir", "out", "--use_cpu", cwd=tmp_path
    )
    assert (tmp_path / "out" / "slpo_sample" / "model.safetensors").exists()


def test_the_ten_lines_of_the_readme(installed, chat_model, tmp_path):
    from test_readme import BLOCKS, stand_in

    stand_in(tmp_path, chat_model)
    installed(
        "-c",
        next(
            block.text
            for block in BLOCKS
            if block.language == "python" and "SLPOTrainer" in block.text
        ),
        cwd=tmp_path,
    )
    assert list((tmp_path / "runs").glob("*/checkpoint-*/model.safetensors"))
