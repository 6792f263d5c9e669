"""The notebooks are the source: what is derived from them must not drift, and each may only build
on earlier ones."""

import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import ladder
import notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
BOOKS = notebooks.books()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the repository in which the tools may write."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("nbs", "slpo"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "runs"),
        )
    return folder


def run(*command, cwd):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name):
    return Path(sys.executable).with_name(name)


def test_modules_are_what_the_notebooks_export(copy):
    run(tool("nbdev_export"), cwd=copy)
    for path in (ROOT / "slpo").glob("*.py"):
        assert (copy / "slpo" / path.name).read_text() == path.read_text(), (
            f"{path.name} has drifted: run nbdev_export"
        )


def test_notebooks_are_clean(copy):
    run(tool("nbdev_clean"), cwd=copy)
    for path in NOTEBOOKS:
        assert (copy / "nbs" / path.name).read_text() == path.read_text(), (
            f"{path.name} is not clean: run nbdev_clean"
        )


def test_readme_is_what_the_index_says():
    run(sys.executable, ROOT / "docs" / "readme.py", "--check", cwd=ROOT)


def test_notebooks_import_from_lower_numbers_only():
    "`slpo.plot` may be imported by any of them."
    number = {"plot": -1}
    for name, cells in BOOKS.items():
        if module := notebooks.module(cells):
            number.setdefault(module, notebooks.number(name))
    assert len(number) > 20
    for name, cells in BOOKS.items():
        for module in notebooks.imports(cells):
            own = notebooks.number(name)
            assert number[module] < own, f"{name} imports slpo.{module}, which comes later"


def test_no_module_imports_a_later_one():
    "Read from the modules themselves, imports inside functions included; so there is no circle."
    order = [module for module in ladder.graph()[0]]
    for module in order:
        for node in ast.walk(ast.parse((ROOT / "slpo" / f"{module}.py").read_text())):
            used = []
            if isinstance(node, ast.ImportFrom):
                path = (node.module or "").removeprefix("slpo").strip(".")
                if node.level or (node.module or "").startswith("slpo"):
                    used = [path] if path else [alias.name for alias in node.names]
            for other in used:
                if other in order:
                    assert order.index(other) < order.index(module), f"{module} imports {other}"


def test_the_picture_of_imports_is_drawn_from_the_code():
    homes, imports = ladder.graph()
    assert not ladder.runs_up(homes, imports)
    run(sys.executable, ROOT / "docs" / "ladder.py", "--check", cwd=ROOT)


def test_notebooks_carry_outputs_and_no_errors():
    for path in NOTEBOOKS:
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert any(c["outputs"] for c in cells), f"{path.name} has no outputs"
        assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"]), (
            f"{path.name} holds an error"
        )


def test_notebooks_hold_plain_text_and_no_widgets():
    """A lost backslash leaves a control character (\\frac, \\to); the output of a slider is of no
    use to a reader without a kernel."""
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not (found := re.search(r"[\x00-\x09\x0b-\x1f]", "".join(cell["source"]))), (
                f"{path.name}: {found[0]!r} in {cell['id']}"
            )
        assert "vnd.jupyter.widget" not in path.read_text(), (
            f"{path.name}: run it with nbconvert, where `knobs` shows nothing"
        )


# lines of a visible cell: a reader sees it at a glance
LONGEST_CELL = {"derivation": 25, "elsewhere": 40, "exported": 60}


def test_no_long_cells():
    "Folded cells, imports and lists of settings aside."
    found = []
    for name, cells in BOOKS.items():
        place = "derivation" if notebooks.number(name) < 8 else "elsewhere"
        for cell in cells:
            settings = "@dataclass" in cell.source and "\ndef " not in cell.source
            imports = not re.search(r"^(?!from |import |    |\)|$)", cell.source, flags=re.M)
            if cell.kind != "code" or cell.hidden or cell.folded or settings or imports:
                continue
            lines = len(cell.source.splitlines())
            if lines > LONGEST_CELL["exported" if cell.exported else place]:
                found.append(f"{name} {cell.id}: {lines} lines")
    assert not found, "\n".join(found)


def bodies():
    "(module, function, lines of its body without docstring) for every function of the package."
    for path in sorted((ROOT / "slpo").glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    yield path.stem, node.name, body[-1].end_lineno - body[0].lineno + 1


def test_functions_fit_a_screen():
    found = [f"{module}.{name}: {lines} lines" for module, name, lines in bodies() if lines > 45]
    assert not found, "\n".join(found)


def test_ruff_finds_nothing():
    "In notebooks, tests and tools; one statement a line, 100 columns."
    run(tool("ruff"), "check", ".", cwd=ROOT)
    run(tool("ruff"), "format", "--check", ".", cwd=ROOT)


def test_ci_runs_the_command_of_the_readme():
    command = "pip install -c constraints.txt -e '.[dev]' && nbdev_test && pytest -q tests"
    assert (
        command in (ROOT / "README.md").read_text()
        and command in (ROOT / ".ci" / "run").read_text()
    )


def test_version_is_the_same_everywhere():
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT / "settings.ini")
    import slpo

    assert cfg["DEFAULT"]["version"] == slpo.__version__
    assert f"## {slpo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_light_and_names_are_found():
    code = """if True:
        import sys, slpo
        heavy = {'torch', 'numpy', 'transformers', 'datasets', 'matplotlib'}
        assert not heavy & set(sys.modules)
        assert all(getattr(slpo, name) for name in slpo.__all__)"""
    run(sys.executable, "-c", code, cwd=ROOT)


def test_losses_need_torch_only():
    "Nothing that is not torch's own is loaded by importing the losses, or by calling them."
    code = """if True:
        import sys, torch
        torch.zeros(2, requires_grad=True).logsumexp(0).backward()
        def packages(): return {m.split(".")[0] for m in sys.modules} - set(sys.stdlib_module_names)
        before = packages()
        from slpo import dpo_loss, ipo_loss, log1mexp, mass_targets, sequence_logps
        from slpo import slpo_loss, slpo_sample_loss, ybar_logp, ybar_logp_tree
        logits = torch.zeros(2, 5, 7, requires_grad=True)
        labels = torch.tensor([[-100, 1, 2, 3, 0], [-100, 4, 5, 0, -100]])
        logps = sequence_logps(logits, labels)[None]
        ref = logps.detach()
        n = (labels != -100).sum(-1)[None]
        paper = slpo_loss(logps, ref, alpha=.5, lengths=n)
        joint = slpo_loss(logps, ref, alpha=.5, lengths=n, form="joint")
        sample = slpo_sample_loss(logps, ref, alpha=.5)
        (dpo_loss(logps, ref) + ipo_loss(logps, ref) + sample + paper + joint).backward()
        mass_targets(ref, alpha=.5), ybar_logp(ref), log1mexp(ref), ybar_logp_tree(logits, labels)
        assert (more := packages() - before) == {"slpo"}, more"""
    run(sys.executable, "-c", code, cwd=ROOT)


def test_the_guard_knows_all_that_the_trainer_builds_on():
    """A method that transformers no longer calls under this name would never run, and nothing else
    would say so: the check of the gradient is one of them."""
    from transformers import Trainer
    from slpo import SLPOTrainer
    from slpo.trainer import _ATTRIBUTES, _HOOKS, _missing_names

    guarded = set(_HOOKS.split()) | set(_ATTRIBUTES.split())
    chain = SLPOTrainer.__mro__[: SLPOTrainer.__mro__.index(Trainer)]
    assert len(chain) > 5
    ours = {name for kind in chain for name in vars(kind)}
    overridden = {name for name in ours if hasattr(Trainer, name) and not name.startswith("__")}
    assert overridden <= guarded and {"_get_grad_norm", "_save_rng_state"} <= overridden
    files = sorted({kind.__module__.removeprefix("slpo.") for kind in chain})
    assert files == ["reference", "stopping", "trainer"]
    sources = [(ROOT / "slpo" / f"{name}.py").read_text() for name in files]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]

    def of_trainer(node):
        if not isinstance(node, ast.Attribute):
            return False
        owner = node.value
        if isinstance(owner, ast.Call):  # super().method
            return isinstance(owner.func, ast.Name) and owner.func.id == "super"
        return isinstance(owner, ast.Name) and owner.id in ("self", "trainer", "Trainer")

    own = ours | {
        node.attr for node in nodes if of_trainer(node) and isinstance(node.ctx, ast.Store)
    }
    read = {node.attr for node in nodes if of_trainer(node) and node.attr.startswith("_")} - own
    assert read <= guarded, read - guarded
    assert not _missing_names()


@pytest.mark.parametrize(
    "names",
    [
        ("_get_num_items_in_batch", "_save_rng_state", "_get_train_sampler"),
        ("_get_grad_norm",),
        ("_load_optimizer_and_scheduler", "create_model_card"),
    ],
)
def test_a_release_that_renames_methods_is_refused(names):
    "At import, by name, with the versions that were tested."
    code = f"""if True:
        from transformers import Trainer
        for name in {names}:
            setattr(Trainer, "new" + name, getattr(Trainer, name)); delattr(Trainer, name)
        try: from slpo import SLPOTrainer
        except ImportError as e: print(e)
        else: print("imported")"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert (
        all(f"Trainer.{name}" in said for name in names)
        and "Tested with transformers 5.23.0" in said
        and "transformers>=5.6,<5.25" in said
    ), said


# imported where they are used: with peft_config; in Jupyter; extras of the judge and the benchmark
OPTIONAL = {"peft", "ipywidgets", "openai", "trl"}


def imported(path):
    "The packages that a module imports, anywhere in it."
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        yield from (name.split(".")[0] for name in names)


def test_every_import_is_a_requirement():
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT / "settings.ini")
    requirements = cfg["DEFAULT"]["requirements"].split()
    required = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
    used = set()
    for path in (ROOT / "slpo").glob("*.py"):
        for name in set(imported(path)) - set(sys.stdlib_module_names) - OPTIONAL - {"slpo"}:
            package = {"yaml": "pyyaml"}.get(name, name)
            used.add(package)
            assert package in required, f"{path.name} imports {name}, which is not required"
    assert not (idle := required - used), f"settings.ini requires {idle}, which nothing imports"


def test_what_is_optional_is_imported_where_it_is_used():
    "Every module can be loaded without it."
    for path in (ROOT / "slpo").glob("*.py"):
        top = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                top |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level:
                top.add(node.module.split(".")[0])
        assert not top & OPTIONAL, f"{path.name} imports {top & OPTIONAL} when it is loaded"


def test_public_functions_say_what_they_take():
    "Every exported function and class has a docstring."
    for path in (ROOT / "slpo").glob("[a-z]*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_nothing_is_unpickled():
    """Files that a stranger may have written are read as JSON, safetensors, or arrays without
    objects."""
    for path in (ROOT / "slpo").glob("*.py"):
        assert not (
            found := re.search(
                r"\bpickle\.|torch\.load\(|allow_pickle=True|trust_remote_code=True|(?<!\.)\beval\(",
                path.read_text(),
            )
        ), f"{path.name}: {found[0]}"
