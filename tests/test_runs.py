"""What a command prints and keeps is of the rows that were used; what cannot work is said before
anything is computed; nothing that was computed is lost."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

import slpo.cli as cli
import slpo.cli_eval as cli_eval
from slpo.cli import _check_stages, _load_data, train_main
from slpo.cli_eval import EvalArguments, eval_main, parse_eval
from slpo.evaluate import SampleTable
from slpo.flags import RunArguments, parse_run
from slpo.settings import SLPOConfig
from slpo.trainer import SLPOTrainer

SHORT = [
    "--max_steps",
    "2",
    "--sample_prompts",
    "1",
    "--max_new_tokens",
    "4",
    "--use_cpu",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--ref_cache_dir",
    "",
]


def pair(i, prompt=None):
    return {
        "prompt": f"What is {i}?" if prompt is None else prompt,
        "chosen": f" It is {i}.",
        "rejected": f" No, {i}!",
    }


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path, monkeypatch, chat_model):
    "A folder with a model and some rows, and the flags that name them."
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(chat_model)
    write("rows.jsonl", [pair(i) for i in range(24)])
    return ["--model_name_or_path", "model", "--dataset_name", "rows.jsonl", "--output_dir", "out"]


@pytest.fixture
def unread(monkeypatch):
    "Rows that fail the test where one of the commands reads them."
    for module in (cli, cli_eval):
        monkeypatch.setattr(module, "load_preferences", lambda *_, **__: pytest.fail("read"))


def load(*flags):
    run, args = parse_run(
        [
            "--dataset_name",
            "rows.jsonl",
            "--model_name_or_path",
            "none",
            "--output_dir",
            "out",
            "--use_cpu",
            *flags,
        ]
    )
    return _load_data(run, args)


# -- which rows


@pytest.mark.parametrize("n, size", [(2, 1), (12, 1), (32, 3), (256, 25), (2900, 256)])
def test_a_share_of_a_small_file_is_held_out(here, n, size):
    write("rows.jsonl", [pair(i) for i in range(n)])
    train, test = load()
    assert (
        len(test) == size
        and len(train) == n - size
        and not set(train["prompt"]) & set(test["prompt"])
    )


def test_a_size_that_is_asked_for_is_taken_or_another_one_is_named_that_works(here, capsys):
    rng = random.Random(0)
    for _ in range(4):
        n, prompts = rng.randint(2, 60), rng.randint(2, 9)
        rows = [pair(i, f"Prompt {rng.randrange(prompts)}") for i in range(n)]
        write("rows.jsonl", rows)
        different = len({r["prompt"] for r in rows})
        for size in (rng.randint(1, 70), n):
            try:
                train, test = load("--eval_size", str(size))
            except ValueError as e:
                if different == 1:
                    assert "--eval_split" in str(e) and "--eval_size 0" in str(e)
                    continue
                most = int(re.search(r"--eval_size (\d+) or less", str(e))[1])
                with pytest.raises(ValueError):
                    load("--eval_size", str(most + 1))
                train, test = load("--eval_size", str(most))
                assert f"eval_size={size} " in str(e) and str(different) in str(e) and most < size
                size = most
            assert (
                len(test) == size and len(train) and not set(train["prompt"]) & set(test["prompt"])
            )


def test_no_prompt_is_trained_and_evaluated_on_when_splits_are_named(here, capsys):
    Path("data").mkdir()
    (
        write("data/train.jsonl", [pair(i) for i in range(20)]),
        write("data/test.jsonl", [pair(i) for i in range(15, 40)]),
    )
    train, test = load(
        "--dataset_name", "data", "--eval_split", "test", "--eval_size", "20", "--seed", "1"
    )
    shared = {pair(i)["prompt"] for i in range(15, 20)} & set(test["prompt"])
    assert (
        shared and len(train) == 20 - len(shared) and not set(train["prompt"]) & set(test["prompt"])
    )
    assert (
        f"{len(shared)} rows of the split 'train' have prompts of the split 'test': not trained on"
        in capsys.readouterr().out
    )
    write("data/test.jsonl", [pair(i) for i in range(20)])
    with pytest.raises(
        ValueError, match="every row of the split 'train' has a prompt of the split 'test'"
    ):
        load("--dataset_name", "data", "--eval_split", "test")


def test_without_rows_to_hold_out_one_can_train_without_an_evaluation(here, capsys):
    write("rows.jsonl", [pair(1)])
    assert train_main([*here, *SHORT]) == 2
    said = capsys.readouterr().err
    assert "one prompt" in said and "--eval_size 0" in said and "lower" not in said
    assert train_main([*here, *SHORT, "--eval_size", "0", "--sft_epochs", "1"]) == 0, (
        capsys.readouterr().err
    )
    assert (
        "1 pair to train on, 0 held out" in capsys.readouterr().out
        and not Path("out/held_out.jsonl").exists()
    )
    numbers = json.loads(Path("out/metrics.json").read_text())
    assert numbers["rows"] == {"trained on": 1, "held out": 0} and numbers["results"] == {}


@pytest.mark.parametrize(
    "asks",
    [
        ["--eval_strategy", "steps"],
        ["--eval_examples", "8"],
        ["--eval_on_start", "true"],
        ["--eval_sampling"],
    ],
)
def test_no_evaluation_and_a_setting_that_asks_for_one(here, capsys, asks):
    assert train_main([*here, *SHORT, "--eval_size", "0", *asks]) == 2
    assert "eval_size=0 leaves nothing to evaluate on" in (said := capsys.readouterr().err) and (
        asks[0][2:] in said or "eval_strategy" in said
    )


def test_every_count_is_of_the_rows_that_were_used(here, capsys):
    "Rows that only the tokenizer can find bad are in no number, no table and no file."
    long = [pair(i, "?" * 90 + str(i)) for i in range(100, 108)]
    write(
        "rows.jsonl",
        [row for i in range(40) for row in ([pair(i), long[i // 5]] if i % 5 == 0 else [pair(i)])],
    )
    assert (
        train_main(
            [
                *here,
                *SHORT,
                "--eval_size",
                "12",
                "--max_length",
                "64",
                "--on_bad_rows",
                "drop",
                "--sft_epochs",
                "1",
            ]
        )
        == 0
    ), capsys.readouterr().err
    said, numbers = capsys.readouterr().out, json.loads(Path("out/metrics.json").read_text())
    rows = [json.loads(line) for line in Path("out/held_out.jsonl").read_text().splitlines()]
    assert not any("???" in r["prompt"] for r in rows) and len(rows) < 12
    n = numbers["rows"]["trained on"]
    assert numbers["rows"]["held out"] == len(rows) and n + len(rows) == 40
    assert (
        f"{n} pairs to train on, {len(rows)} held out" in said
        and f"{len(rows)} held-out pairs, mean" in said
        and f"== slpo_sample: {n} pairs" in said
    )
    assert (
        f"fine-tuning on the chosen completions: {n} pairs" in said
        and f"| groups in the training data | {n} |"
        in Path("out/slpo_sample/README.md").read_text()
    )
    assert (
        eval_main(
            [
                "--model_name_or_path",
                "model",
                "--reference_name_or_path",
                "model",
                "--dataset_name",
                "rows.jsonl",
                "--max_length",
                "64",
                "--on_bad_rows",
                "drop",
                "--max_new_tokens",
                "2",
                "--output_dir",
                "eval",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "40 rows of rows.jsonl to evaluate on" in said
        and "| 40 answers |" in said
        and json.loads(Path("eval/metrics.json").read_text())["rows"] == 40
    )


# -- before anything is computed


@pytest.mark.parametrize(
    "name, value",
    [
        ("train_size", "0"),
        ("train_size", "-1"),
        ("eval_size", "-1"),
        ("sft_epochs", "-1"),
        ("sft_epochs", "nan"),
        ("sft_batch_size", "0"),
        ("sft_learning_rate", "0"),
        ("sample_prompts", "-2"),
        ("max_new_tokens", "0"),
        ("sft_targets", "some"),
        ("dtype", "int8"),
        ("resume_from_checkpoint", "out"),
    ],
)
def test_settings_that_cannot_work_are_named_before_the_data_are_read(
    here, capsys, unread, name, value
):
    assert train_main([*here, *SHORT, f"--{name}", value]) == 2 and name in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_first(here, capsys, monkeypatch, unread):
    for folder in ("rows.jsonl", "rows.jsonl/out"):
        assert train_main([*here, *SHORT, "--output_dir", folder]) == 2
        assert folder in (said := capsys.readouterr().err) and "is a file" in said
        assert (
            eval_main(
                [
                    "--model_name_or_path",
                    "model",
                    "--dataset_name",
                    "rows.jsonl",
                    "--output_dir",
                    folder,
                ]
            )
            == 2
            and "is a file" in capsys.readouterr().err
        )

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", full)
    assert (
        train_main([*here, *SHORT]) == 2
        and "out: nothing can be written there (No space left on device)" in capsys.readouterr().err
        and not Path("out").exists()
    )


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--reference_name_or_path", "runs/stf"], "--reference_name_or_path"),
        (["--baseline", "rejected"], "--baseline"),
        (["--baseline", "./gone"], "--baseline"),
        (["--model_name_or_path", "data"], "no config.json"),
        (["--reference_name_or_path", "other"], "another vocabulary"),
        (["--reference_name_or_path", "model", "--max_length", "24"], "row 3: column 'prompt'"),
        (["--judge_model", "m", "--judge_template", "gone"], "gone"),
        (["--judge_model", "m", "--judge_options", "{"], "judge_options"),
        (["--dtype", "int8"], "dtype"),
        (["--seed", "-1"], "seed"),
        (["--on_bad_rows", "keep"], "on_bad_rows"),
        (["--max_new_tokens", "600"], ""),
    ],
)
def test_slpo_eval_looks_at_everything_before_it_generates(here, capsys, monkeypatch, flags, word):
    import shutil
    from slpo.tokens import train_tokenizer

    shutil.copytree("model/", "other"), Path("data").mkdir()
    train_tokenizer(["something else altogether, else"], vocab_size=280).save_pretrained("other")
    write("rows.jsonl", [pair(i, "?" * 40 if i == 3 else None) for i in range(6)])

    def generate(*_, **__):
        raise AssertionError("generated")

    monkeypatch.setattr(cli_eval, "generate", generate)
    status, said = (
        eval_main(
            [
                "--model_name_or_path",
                "model",
                "--dataset_name",
                "rows.jsonl",
                "--output_dir",
                "eval",
                *flags,
            ]
        ),
        capsys.readouterr().err,
    )
    assert status == 2 and word in said
    if word:
        assert "generated" not in said and not Path("eval").exists()


# -- nothing is lost


def test_numbers_are_said_though_the_model_cannot_be_written(here, capsys, monkeypatch):
    def full(self, *_, **__):
        raise RuntimeError("No space left on device (os error 28)")

    monkeypatch.setattr(SLPOTrainer, "save_model", full)
    assert train_main([*here, *SHORT, "--eval_size", "4", "--save_strategy", "no"]) == 2
    said = capsys.readouterr()
    assert (
        "held-out preference accuracy" in said.out
        and "out/slpo_sample: could not be written (No space left on device" in said.err
    )


def test_answers_are_kept_whatever_comes_after(here, tmp_path, capsys, monkeypatch):
    flags = [
        "--model_name_or_path",
        "model",
        "--reference_name_or_path",
        "model",
        "--baseline",
        "reference",
        "--dataset_name",
        "rows.jsonl",
        "--max_new_tokens",
        "6",
        "--batch_size",
        "4",
    ]
    assert eval_main([*flags, "--output_dir", "whole"]) == 0
    whole = Path("whole/answers.jsonl").read_text()
    from transformers import GPTNeoXForCausalLM

    real, calls = GPTNeoXForCausalLM.generate, []

    def until(n):
        def generate(self, **how):
            if len(calls) == n:
                raise KeyboardInterrupt
            calls.append(1)
            return real(self, **how)

        monkeypatch.setattr(GPTNeoXForCausalLM, "generate", generate)

    for n in (2, 2, 9):  # stopped among the policy's answers, at once, among the baseline's
        until(n)
        assert (
            eval_main([*flags, "--output_dir", "broken"]) == 130
            and not Path("broken/answers.jsonl").exists()
        )
    with open("broken/baseline.jsonl", "a") as f:
        f.write('{"ids": [[1, 2')  # killed in the middle of a line
    until(12)
    monkeypatch.setattr(cli_eval, "sample_kl", lambda *_: 1 / 0)
    assert (
        eval_main([*flags, "--output_dir", "broken"]) == 2
        and Path("broken/answers.jsonl").read_text() == whole
        and len(calls) == 12
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert eval_main([*flags, "--output_dir", "broken"]) == 0
    assert (
        Path("broken/answers.jsonl").read_text() == whole
        and json.loads(Path("broken/metrics.json").read_text())["results"]
        == json.loads(Path("whole/metrics.json").read_text())["results"]
    )
    write("rows.jsonl", [pair(i) for i in range(30)])
    capsys.readouterr()
    assert (
        eval_main([*flags, "--output_dir", "whole"]) == 2
        and "data (their date)" in capsys.readouterr().err
    )


def test_answers_to_others_are_not_taken(here, tmp_path):
    from slpo.evaluate import generate
    from slpo.models import load_model, load_tokenizer

    model, tokenizer = load_model("model"), load_tokenizer("model")
    how = dict(max_new_tokens=4, desc=None, file=tmp_path / "said.jsonl")
    said = generate(model, tokenizer, ["a", "b"], **how)
    assert generate(model, tokenizer, ["a", "b"], **how) == said
    for other in (dict(seed=1), dict(temperature=0.5), dict(max_new_tokens=5)):
        with pytest.raises(
            ValueError,
            match="said.jsonl holds answers to other prompts, or made with other settings",
        ):
            generate(model, tokenizer, ["a", "b"], **{**how, **other})
    with pytest.raises(ValueError, match="holds answers to other"):
        generate(model, tokenizer, ["a", "c"], **how)


def test_a_run_goes_on_with_the_settings_it_was_begun_with(here, capsys, monkeypatch):
    begun = [*here, *SHORT, "--eval_size", "4", "--save_steps", "1"]
    assert train_main(begun) == 0
    write("more.jsonl", [pair(i) for i in range(9)])
    capsys.readouterr()
    with monkeypatch.context() as m:
        m.setattr(cli, "load_preferences", lambda *_, **__: pytest.fail("read"))
        for name, value in (
            ("dataset_name", "more.jsonl"),
            ("train_size", "8"),
            ("eval_size", "5"),
            ("sft_epochs", "1.0"),
            ("seed", "3"),
            ("loss_type", "dpo"),
            ("model_name_or_path", "model/."),
            ("beta", "2.0"),
            ("max_length", "512"),
            ("optim", "sgd"),
        ):
            assert train_main([*begun, "--resume", f"--{name}", value]) == 2
            assert f"{name}={value}" in (said := capsys.readouterr().err) and "--output_dir" in said
    assert train_main([*begun, "--resume", "--max_new_tokens", "5"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "loss",
    [
        ["dpo", "--beta", "0.3", "--label_smoothing", "0.1"],
        ["slpo", "--alpha", "0.9", "--temperature", "2"],
        ["slpo", "--preset", "listing"],
    ],
)
def test_settings_of_a_loss_may_stand_beside_a_stage_that_has_another(here, capsys, loss):
    assert (
        train_main(
            [
                *here,
                *SHORT,
                "--eval_size",
                "4",
                "--sample_prompts",
                "0",
                "--sft_epochs",
                "0.2",
                "--loss_type",
                *loss,
            ]
        )
        == 0
    ), capsys.readouterr().err


def _file(name, text):
    return lambda folder: (folder / name).write_text(text)


def _stages(folder):
    for stage in ("sft", "dpo"):
        (folder / stage).mkdir()
        (folder / "config.json").rename(folder / stage / "config.json") if stage == "sft" else (
            folder / stage / "config.json"
        ).write_text("{}")
    for f in folder.glob("*.*"):
        f.unlink()


def _only(*names):
    def change(folder):
        for f in folder.iterdir():
            if f.name not in names:
                f.unlink()

    return change


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NOT_A_MODEL = {
    "stages": (_stages, "mine", "models are in mine/dpo, mine/sft: give one of these"),
    "empty": (_only(), "mine", "no config.json in it (it is empty)"),
    "config only": (_only("config.json"), "mine", "no weights"),
    "tokenizer only": (
        _only("tokenizer.json"),
        "mine",
        "no config.json in it (it holds tokenizer.json)",
    ),
    "a file": (
        _only("config.json"),
        "mine/config.json",
        "mine/config.json is a file: expected the folder that holds it",
    ),
    "weights": (lambda f: None, "mine/model.safetensors", "is a file: expected the folder"),
    "rows": (lambda f: None, "rows.jsonl", "rows.jsonl is a file: expected the folder"),
    "pointer": (_file("config.json", LFS), "mine", "config.json is a Git LFS pointer"),
    "broken": (_file("config.json", "{"), "mine", "config.json is not JSON"),
    "no words": (_only("config.json", "model.safetensors"), "mine", "has no tokenizer files"),
}


@pytest.mark.parametrize("case", NOT_A_MODEL)
def test_a_name_that_is_no_model_is_told_by_its_model_files_first(
    here, chat_model, capsys, unread, case
):
    "Whatever flag names it, before any rows are read."
    change, name, words = NOT_A_MODEL[case]
    shutil.copytree(chat_model, "mine")
    change(Path("mine"))
    rows = ["--dataset_name", "rows.jsonl", "--output_dir", "out"]
    calls = [
        (train_main, ["--model_name_or_path", name]),
        (eval_main, ["--model_name_or_path", name]),
        (eval_main, ["--model_name_or_path", "model", "--reference_name_or_path", name]),
        (eval_main, ["--model_name_or_path", "model", "--baseline", name]),
    ]
    for main, flags in calls:
        assert main([*flags, *rows]) == 2
        said = capsys.readouterr().err
        assert (
            words in said
            and f"{flags[-2]} {name}"[:20] in said
            and (case == "no words" or "no tokenizer" not in said)
        ), said
    assert not Path("out").exists()


def test_a_tokenizer_that_does_not_fit_is_said_with_its_folder(here, chat_model, capsys):
    from transformers import AutoTokenizer

    for name in ("endless", "large"):
        shutil.copytree(chat_model, name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if name == "large":
            tokenizer.add_tokens([f"word{i}" for i in range(40)])
        tokenizer.save_pretrained(name)
    file = Path("endless/tokenizer_config.json")
    file.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(file.read_text()).items()
                if "eos" not in k and "pad" not in k
            }
        )
    )
    for main in (train_main, eval_main):
        for name, words in (
            ("endless", ["no EOS token", "endless/tokenizer_config.json"]),
            ("large", [" tokens, the model only 300", "resize_token_embeddings"]),
        ):
            assert main(["--model_name_or_path", name, *here[2:]]) == 2
            said = capsys.readouterr()
            assert (
                f"--model_name_or_path {name}: its tokenizer has" in said.err
                and all(w in said.err for w in words)
                and "to train on" not in said.out
                and not Path("out").exists()
            )


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--metric_for_best_model", "rewards/acc"],
            ["metric_for_best_model=rewards/acc", "rewards/accuracies"],
        ),
        (["--metric_for_best_model", "eval_losss"], ["did you mean loss?"]),
        (
            ["--metric_for_best_model", "rewards/margins", "--loss_type", "sft"],
            ["no evaluation has it", "There are loss"],
        ),
        (["--metric_for_best_model", "target_gap/chosen"], ["no evaluation has it"]),
        (["--report_to", "wandbb"], ["--report_to wandbb: no such tracker; did you mean wandb?"]),
    ],
)
def test_what_no_evaluation_or_tracker_has_is_said_first(here, capsys, unread, flags, words):
    short = (
        [x for x in SHORT if x not in ("--report_to", "none")] if "--report_to" in flags else SHORT
    )
    assert train_main([*here, *short, "--eval_strategy", "steps", "--eval_steps", "1", *flags]) == 2
    said = capsys.readouterr().err
    assert all(w in said for w in words), said


def test_a_tracker_that_is_not_installed(here, capsys, monkeypatch):
    monkeypatch.setattr(cli, "get_available_reporting_integrations", lambda: [])
    assert (
        train_main(
            [
                *here,
                *[x for x in SHORT if x not in ("--report_to", "none")],
                "--report_to",
                "comet_ml",
            ]
        )
        == 2
    )
    assert (
        "--report_to comet_ml: it is not installed: pip install comet-ml" in capsys.readouterr().err
    )


@pytest.mark.parametrize("loss", ["slpo", "slpo_sample", "dpo", "ipo", "nca", "sppo", "sft"])
def test_the_best_model_is_chosen_by_what_its_evaluation_has(here, capsys, loss):
    "Every metric that the message offers is one that an evaluation has."
    common = [
        *here,
        *SHORT,
        "--eval_size",
        "4",
        "--sample_prompts",
        "0",
        "--loss_type",
        loss,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
    ]
    assert train_main([*common, "--metric_for_best_model", "nope"]) == 2
    offered = capsys.readouterr().err.split("There are ")[1].split("\n")[0].split(", ")
    assert (
        train_main(
            [
                *common,
                "--save_strategy",
                "steps",
                "--save_steps",
                "1",
                "--load_best_model_at_end",
                "true",
                "--metric_for_best_model",
                offered[-1],
            ]
        )
        == 0
    ), capsys.readouterr().err
    history = json.loads(Path("out/metrics.json").read_text())
    log = history.get("history") or history["sft"]["history"]
    assert any({f"eval_{name}" for name in offered} <= set(entry) for entry in log)


def test_a_stage_before_has_its_loss_alone_to_choose_by(here, capsys):
    flags = [
        *here,
        *SHORT,
        "--eval_size",
        "4",
        "--sample_prompts",
        "0",
        "--sft_epochs",
        "0.2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--save_steps",
        "1",
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "rewards/margins",
    ]
    assert train_main(flags) == 0, capsys.readouterr().err


# -- weights that are shared out


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_two_stages_and_samples_under_sharding_are_refused(here, monkeypatch, kind):
    run, args = parse_run([*here, *SHORT, "--sft_epochs", "1"])
    _check_stages(run, args)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ValueError, match="sft_epochs with FSDP or DeepSpeed .* two commands"):
        _check_stages(run, args)

    class Sharded:
        is_fsdp_enabled = True

    with pytest.raises(ValueError, match="eval_sampling"):
        SampleTable(Sharded(), ["a"])


# -- --help


@pytest.mark.parametrize(
    "parse, flags",
    [
        (
            parse_run,
            [
                "--dataset_name",
                "rows.jsonl",
                "--model_name_or_path",
                "m",
                "--output_dir",
                "o",
                "--use_cpu",
            ],
        ),
        (parse_eval, ["--model_name_or_path", "m", "--dataset_name", "rows.jsonl"]),
    ],
)
def test_the_defaults_that_help_shows_are_those_that_apply(here, capsys, parse, flags):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text, parsed = capsys.readouterr().out, parse(flags)
    used = {
        k: v
        for part in (parsed if isinstance(parsed, tuple) else (parsed,))
        for k, v in vars(part).items()
    }
    names = [
        n
        for n in (
            *RunArguments.__annotations__,
            *SLPOConfig.__annotations__,
            "num_train_epochs",
            "weight_decay",
            "warmup_steps",
            "eval_strategy",
            "save_steps",
            "lr_scheduler_type",
        )
        if parse is parse_run
    ] or list(EvalArguments.__annotations__)
    for name in names:
        if name.startswith("_") or f"--{name}" in flags:
            continue
        shown = re.search(rf"  --{name}\b.*?\(default:\s+([^)\s]*)\)", text, re.S)[1]
        value = getattr(used[name], "value", used[name])
        assert name == "bf16" or shown == str(value) or float(shown) == value, name
    if parse is parse_run:
        assert "eval_size 1024" in " ".join(
            text.split()
        ) and "for your model and your data" in " ".join(text.split())
