"""`slpo_train` as a user meets it: errors as messages, and a run that survives kill -9."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slpo.cli import train_main

COMMAND = [str(Path(sys.executable).with_name("slpo_train"))]
GOOD = {"prompt": "Q:", "chosen": " yes", "rejected": " no"}
HH = {c: f"\n\nHuman: Hi.\n\nAssistant: {c}" for c in ("chosen", "rejected")}


def env():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def complaint(capsys, *flags):
    "What the command says of flags that cannot work: one message, exit status 2."
    assert train_main([*flags, "--use_cpu"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


BAD_DATA = {
    "missing": (
        lines([GOOD, {"prompt": "Q:", "chosen": " yes"}]),
        "row 1: column 'rejected': missing",
    ),
    "empty": (lines([GOOD, {**GOOD, "chosen": " "}]), "row 1: column 'chosen': empty completion"),
    "identical": (
        lines([GOOD, GOOD, {**GOOD, "rejected": " yes"}]),
        "row 2: column 'rejected': identical to 'chosen'",
    ),
    "no assistant": (
        lines([HH, {**HH, "rejected": "Hello."}]),
        r"row 1: column 'rejected': no '\n\nAssistant:' turn",
    ),
    "broken json": (lines([GOOD]) + b'\n{"prompt": "Q', "rows.jsonl.gz: line 2: not JSON"),
    "bytes": (lines([GOOD]) + b"\n\xff\xfe", "rows.jsonl.gz: line 2: not UTF-8"),
    "no rows": (b"", "no rows"),
}
ROWS = ["--dataset_name", "rows.jsonl.gz", "--model_name_or_path", "none", "--output_dir", "out"]


@pytest.mark.parametrize("content, message", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_stops_before_training(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl.gz").write_bytes(gzip.compress(content))
    assert message in complaint(capsys, *ROWS)
    assert not Path("out").exists()


def test_the_command_itself_stops_with_a_message_and_status_2(tmp_path):
    content, message = BAD_DATA["missing"]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    done = subprocess.run(
        [*COMMAND, *ROWS], cwd=tmp_path, env=env(), capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--alpha", "2"], "alpha=2.0"),
        (["--config", "no_such_recipe"], "world"),
        (["--dataset_name", "gone.jsonl"], "no such file"),
        (["--temperature", "warm"], "temperature='warm'"),
    ],
)
def test_bad_settings_are_named(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, *flags)


def start(folder, *flags):
    sizes = ["--train_size", "384", "--eval_size", "32", "--sft_epochs", "0.5"]
    steps = ["--num_train_epochs", "1", "--save_steps", "3", "--eval_steps", "6"]
    small = [*sizes, *steps, "--max_new_tokens", "4"]
    return subprocess.Popen(
        [*COMMAND, *small, "--output_dir", "out", *flags],
        cwd=folder,
        env=env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_and_resumed_run_equals_the_whole_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    p = start(whole)
    output, _ = p.communicate()
    assert p.returncode == 0, output
    for stage in ("sft", "slpo_sample"):  # killed twice: once in each stage
        p = start(broken) if stage == "sft" else start(broken, "--resume")
        while not list((broken / "out" / stage).glob("checkpoint-*/trainer_state.json")):
            assert p.poll() is None, p.communicate()[0]
            time.sleep(0.05)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert not (broken / "out" / "metrics.json").exists()
    p = start(broken)
    output, _ = p.communicate()
    assert p.returncode == 2 and "--resume" in output  # nothing is overwritten by accident
    p = start(broken, "--resume")
    output, _ = p.communicate()
    assert p.returncode == 0, output
    for stage in ("sft", "slpo_sample"):
        assert (whole / "out" / stage / "model.safetensors").read_bytes() == (
            broken / "out" / stage / "model.safetensors"
        ).read_bytes()
    a, b = [
        json.loads((f / "out" / "metrics.json").read_text())["results"] for f in (whole, broken)
    ]
    assert a == b


def chat(i, ask="?", **says):
    said = {"chosen": f"It is {i}.", "rejected": f"No, {i}!", **says}
    return {
        "prompt": [{"role": "user", "content": f"What is {i}{ask}"}],
        **{c: [{"role": "assistant", "content": text}] for c, text in said.items()},
    }


def test_messages_are_trained_on(tmp_path, chat_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(lines(chat(i) for i in range(24)))
    flags = [
        "--dataset_name",
        "rows.jsonl",
        "--model_name_or_path",
        chat_model,
        "--eval_size",
        "4",
        "--max_steps",
        "2",
        "--sample_prompts",
        "2",
        "--max_new_tokens",
        "4",
        "--eval_sampling",
        "--eval_examples",
        "8",
        "--per_device_train_batch_size",
        "8",
        "--output_dir",
        "out",
        "--report_to",
        "none",
        "--use_cpu",
        "--disable_tqdm",
        "true",
    ]
    assert train_main(flags) == 0, capsys.readouterr().err
    samples = [
        json.loads(line) for line in Path("out/slpo_sample/samples.jsonl").read_text().splitlines()
    ]
    assert [s["step"] for s in samples] == [0, 0, 1, 1, 2, 2] and samples[0]["prompt"].startswith(
        "user: What is"
    )
    assert "trained from" in Path("out/slpo_sample/README.md").read_text()


def test_token_findings_name_the_row_of_the_file(tmp_path, chat_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(lines(chat(i, "?" * 500 if i == 17 else "?") for i in range(24)))
    assert (
        train_main(
            [
                "--dataset_name",
                "rows.jsonl",
                "--model_name_or_path",
                chat_model,
                "--eval_size",
                "4",
                "--max_length",
                "64",
                "--report_to",
                "none",
                "--output_dir",
                "out",
            ]
        )
        == 2
    )
    assert "row 17: column 'prompt'" in capsys.readouterr().err


def test_code_that_comes_with_a_model_is_not_run(tmp_path, chat_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chat_model, "model")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(
        json.dumps(
            {
                **config,
                "model_type": "theirs",
                "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
            }
        )
    )
    Path("model/theirs.py").write_text("import pathlib; pathlib.Path('was_run').touch()")
    Path("rows.jsonl").write_bytes(lines(chat(i) for i in range(8)))
    assert (
        train_main(
            [
                "--dataset_name",
                "rows.jsonl",
                "--model_name_or_path",
                "model",
                "--eval_size",
                "4",
                "--output_dir",
                "out",
            ]
        )
        == 2
    )
    assert "trust_remote_code" in capsys.readouterr().err and not Path("was_run").exists()
