"""`slpo_train` as a user meets it: errors as messages, and a run that survives kill -9."""
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [str(Path(sys.executable).with_name("slpo_train"))]
GOOD = {"prompt": "Q:", "chosen": " yes", "rejected": " no"}
HH = {c: f"\n\nHuman: Hi.\n\nAssistant: {c}" for c in ("chosen", "rejected")}


def env():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


@pytest.mark.parametrize("content, message", [
    (lines([GOOD, {"prompt": "Q:", "chosen": " yes"}]), "row 1: column 'rejected': missing"),
    (lines([GOOD, {**GOOD, "chosen": " "}]), "row 1: column 'chosen': empty completion"),
    (lines([GOOD, GOOD, {**GOOD, "rejected": " yes"}]), "row 2: column 'rejected': identical to 'chosen'"),
    (lines([HH, {**HH, "rejected": "Hello."}]), r"row 1: column 'rejected': no '\n\nAssistant:' turn"),
    (lines([GOOD]) + b'\n{"prompt": "Q', "rows.jsonl.gz: line 2: not JSON"),
    (lines([GOOD]) + b"\n\xff\xfe", "rows.jsonl.gz: line 2: not UTF-8"),
    (b"", "no rows"),
], ids=["missing", "empty", "identical", "no assistant", "broken json", "bytes", "no rows"])
def test_bad_data_stops_before_training(tmp_path, content, message):
    with gzip.open(tmp_path/"rows.jsonl.gz", "wb") as f: f.write(content)
    done = subprocess.run([*COMMAND, "--dataset_name", "rows.jsonl.gz", "--model_name_or_path", "none", "--output_dir", "out"],
                          cwd=tmp_path, env=env(), capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("flags, message", [
    (["--alpha", "2"], "alpha=2.0"), (["--config", "no_such_recipe"], "world"), (["--dataset_name", "gone.jsonl"], "no such file"),
    (["--temperature", "warm"], "temperature='warm'")])
def test_bad_settings_are_named(tmp_path, flags, message):
    done = subprocess.run([*COMMAND, *flags], cwd=tmp_path, env=env(), capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def start(folder, *flags):
    small = ["--train_size", "384", "--eval_size", "32", "--sft_epochs", "0.5", "--num_train_epochs", "1", "--save_steps", "3", "--eval_steps", "6", "--max_new_tokens", "4"]
    return subprocess.Popen([*COMMAND, *small, "--output_dir", "out", *flags], cwd=folder, env=env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_and_resumed_run_equals_the_whole_one(tmp_path):
    whole, broken = tmp_path/"whole", tmp_path/"broken"
    whole.mkdir(), broken.mkdir()
    p = start(whole)
    output, _ = p.communicate()
    assert p.returncode == 0, output
    for stage in ("sft", "slpo"):                           # killed twice: once in each stage
        p = start(broken, *["--resume"]*(stage == "slpo"))
        while not list((broken/"out"/stage).glob("checkpoint-*/trainer_state.json")):
            assert p.poll() is None, p.communicate()[0]
            time.sleep(.05)
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert not (broken/"out"/"metrics.json").exists()
    p = start(broken)
    output, _ = p.communicate()
    assert p.returncode == 2 and "--resume" in output       # nothing is overwritten by accident
    p = start(broken, "--resume")
    output, _ = p.communicate()
    assert p.returncode == 0, output
    for stage in ("sft", "slpo"):
        assert (whole/"out"/stage/"model.safetensors").read_bytes() == (broken/"out"/stage/"model.safetensors").read_bytes()
    a, b = [json.loads((f/"out"/"metrics.json").read_text())["results"] for f in (whole, broken)]
    assert a == b
