"""Every code block of README.md runs as printed: stand-ins lie where its names point, and flags
that shorten a run are added, those of `SHORTER` and no others."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from slpo.world import preference_world

ROOT = Path(__file__).parents[1]
README, CI = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text()
# What README names is stood in for: models, a file that an earlier command leaves, a judge; the
# world is a sixteenth of itself.
MODELS = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "EleutherAI/pythia-2.8b",
    "runs/mine/slpo_sample",
    "runs/mine/sft",
    "runs/pythia28-hh-sft/sft",
    "…",
)
DATA = ("rows.jsonl", "runs/mine/held_out.jsonl")
WORLD = 512

# All that is added to its commands: fewer steps, shorter samples, a CPU. Nothing that changes which
# rows are read, or what is refused.
SHORTER = {
    "slpo_train": ["--max_steps", "2", "--max_new_tokens", "4", "--use_cpu"],
    "slpo_eval": ["--max_new_tokens", "4"],
}
SHORTER_SFT = ["--sft_epochs", "0.1"]  # where a command has such a stage
MAY_BE_ADDED = {"--max_steps", "--max_new_tokens", "--use_cpu", "--sft_epochs"}


class Block(NamedTuple):
    language: str
    text: str
    shown: str  # what README shows below it, indented: the output


BLOCKS = [
    Block(language, text, re.sub(r"^    ", "", shown or "", flags=re.M))
    for language, text, shown in re.findall(
        r"^```(\S*)\n(.*?)^```$(?:\n\n((?:    [^\n]+\n)+))?", README, re.S | re.M
    )
]


def stand_in(folder, model):
    "Puts a tiny model and a few rows where README's names point, as seen from `folder`."
    for name in MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(
            model, folder / name
        )  # a copy: some commands write into the folder they read
    rows = "".join(
        json.dumps({"prompt": f"{n} plus 1 is", "chosen": f" {n + 1}.", "rejected": f" {n}."})
        + "\n"
        for n in range(2, 34)
    )  # README's own
    hh = "".join(
        json.dumps(
            {c: f"\n\nHuman: What is {i}?\n\nAssistant: {c} {i}" for c in ("chosen", "rejected")}
        )
        + "\n"
        for i in range(64)
    )
    for name in DATA:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(rows)
    (folder / "Anthropic" / "hh-rlhf").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "Anthropic" / "hh-rlhf" / f"{split}.jsonl").write_text(hh)


# -- a command's first word -> what is done with its words; each returns an exit status


def main(run, flags):
    try:
        return run(flags)
    except SystemExit as e:
        return e.code


def slpo_train(words, folder, serve):
    from slpo.cli import train_main

    return main(train_main, [*words, *SHORTER["slpo_train"], *SHORTER_SFT * (not words)])


def slpo_eval(words, folder, serve):
    from slpo.cli_eval import eval_main
    from test_judge import longer

    if "--judge_model" in words:
        named = {
            "NAME": "fake",
            "http://localhost:8000/v1": serve(lambda question, before: longer(question)).url,
        }
        words = [named.get(word, word) for word in words]
    return main(eval_main, [*words, *SHORTER["slpo_eval"]])


def slpo_bench(words, folder, serve):
    "Its flags are understood; a run takes minutes. Then it stops, for want of pairs."
    from slpo.bench import bench_main

    return (
        0
        if main(bench_main, [*words, "--dataset_name", "gone.jsonl"]) == 2
        and not Path("bench.json").exists()
        else 1
    )


def accelerate(words, folder, serve):
    """The recipe is read by accelerate. Its sharding needs GPUs, so that two processes on a CPU run
    the rest of the command with ddp.yaml."""
    from accelerate.commands.config.config_args import load_config_from_file

    assert words[:2] == ["launch", "--config_file"] and words[3] == "$(which slpo_train)", words
    recipe = ROOT / words[2]
    assert (
        recipe.is_relative_to(ROOT / "slpo" / "recipes")
        and load_config_from_file(str(recipe)).num_processes > 1
    )
    tool = {
        name: str(Path(sys.executable).with_name(name)) for name in ("accelerate", "slpo_train")
    }
    start = [
        tool["accelerate"],
        "launch",
        "--config_file",
        str(recipe.with_name("ddp.yaml")),
        "--cpu",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "--main_process_port",
        "0",
        tool["slpo_train"],
    ]
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if any(word.endswith('slpo_train') for word in sys.orig_argv[:3]):\n"
        "    from slpo.world import preference_world as world\n"
        f"    world.__defaults__ = ({WORLD}, *world.__defaults__[1:])\n"
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": path,
    }
    done = subprocess.run(
        [*start, *words[4:], *SHORTER["slpo_train"]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.count("against the model it started from") - 1


def pip(words, folder, serve):
    """What is installed, and under which constraints, exists; tests/test_package.py and .ci/run
    install it."""
    assert words[0] == "install"
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    return (
        0
        if words[-1] in ("slpo", ".")
        or words[-1] in (".[dev]",)
        and "dev_requirements" in (ROOT / "settings.ini").read_text()
        else 1
    )


def pytest_(words, folder, serve):
    "Run here, it would run itself; .ci/run has it word for word."
    return 0


def nbdev_test(words, folder, serve):
    "All notebooks are .ci/run's; one of them is run, and draws its figures."
    if not words:
        return 0
    done = subprocess.run(
        [Path(sys.executable).with_name("nbdev_test"), *words],
        cwd=ROOT,
        env={**os.environ, "SLPO_FIGURES": str(folder / "paper" / "figures")},
        capture_output=True,
        text=True,
    )
    return done.returncode or not list((folder / "paper" / "figures").glob("*.pdf"))


def python(words, folder, serve):
    "The paper's script takes minutes; tests/test_paper.py runs its parts."
    assert words == ["paper/build.py"]
    return subprocess.run(
        [sys.executable, ROOT / words[0], "--help"], stdout=subprocess.DEVNULL
    ).returncode


def mkdocs(words, folder, serve):
    "tests/test_site.py builds the site with the same words."
    return (
        0
        if words == ["build", "--strict"]
        and '"build", "--strict"' in (ROOT / "tests" / "test_site.py").read_text()
        else 1
    )


HANDLERS = {
    f.__name__.rstrip("_"): f
    for f in (
        slpo_train,
        slpo_eval,
        slpo_bench,
        accelerate,
        pip,
        pytest_,
        nbdev_test,
        python,
        mkdocs,
    )
}


def commands(block):
    "The words of each command in a block of shell lines."
    for line in block.text.replace("\\\n", " ").splitlines():
        for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
            words = shlex.split(command.replace("$(which slpo_train)", "'$(which slpo_train)'"))
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)  # settings of the environment
            if words:
                yield words


def test_every_block_has_its_way_to_be_run():
    assert len(BLOCKS) >= 5 and len(BLOCKS) == README.count("\n```") / 2
    for block in BLOCKS:
        assert block.language in ("python", "bash"), (
            f"nothing runs a block of {block.language or 'no language'}:\n{block.text}"
        )
        if block.language == "bash":
            assert (words := list(commands(block))), block.text
            for first, *_ in words:
                assert first in HANDLERS, f"nothing runs {first}:\n{block.text}"


def test_what_is_added_only_shortens():
    "Flags that pick rows, or settings that decide what is refused, would hide what a reader meets."
    added = {
        flag
        for flags in (*SHORTER.values(), SHORTER_SFT)
        for flag in flags
        if flag.startswith("--")
    }
    assert added <= MAY_BE_ADDED


def test_test_commands_are_those_of_ci():
    for block in BLOCKS:
        if block.language == "bash" and any(
            words in (["nbdev_test"], ["pytest", "-q", "tests"]) for words in commands(block)
        ):
            for line in block.text.splitlines():
                assert line in CI.splitlines(), f".ci/run does not run {line}"


@pytest.fixture
def folder(tmp_path, monkeypatch, chat_model):
    stand_in(tmp_path, chat_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        preference_world, "__defaults__", (WORLD, *preference_world.__defaults__[1:])
    )
    return tmp_path


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "bash"],
    ids=lambda b: " ".join(b.text.split())[:40],
)
def test_shell(block, folder, serve, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for first, *words in commands(block):
        assert HANDLERS[first](words, folder, serve) == 0, "".join(capfd.readouterr())[-3000:]


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "python"],
    ids=lambda b: b.text.splitlines()[-1][:40],
)
def test_python(block, folder, capsys):
    exec(compile(block.text, "README.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    if block.shown:
        assert said.strip() == block.shown.strip()
