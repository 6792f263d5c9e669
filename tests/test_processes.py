"""Two processes on a CPU (gloo), started as users start them, give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def run(out, processes, **settings):
    "small_run.py under torchrun, or alone."
    out.mkdir(parents=True, exist_ok=True)
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else []
    )
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **({"CUDA_VISIBLE_DEVICES": ""} if settings.get("use_cpu", True) else {}),
    }
    done = subprocess.run(
        [
            sys.executable,
            *start,
            str(HERE / "small_run.py"),
            str(out),
            *(f"{k}={json.dumps(v)}" for k, v in settings.items()),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["world_size"] == processes
    return torch.load(out / "weights.pt"), result, sorted(p.name for p in (out / "cache").glob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"packing": False, "loss_type": "dpo"},
        {"precompute_ref_log_probs": False, "gradient_checkpointing": True, "evaluate_first": True},
    ],
    ids=["packed", "padded", "online, evaluated first"],
)
def test_two_processes_are_one(tmp_path, settings):
    """Plain SGD, so that the weights show the gradients: batches of 8 groups, as 1 × 8, 2 × 4, and
    2 × 2 in two micro-batches."""
    common = dict(
        optim="sgd",
        learning_rate=0.02,
        weight_decay=0,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        per_device_eval_batch_size=4,
        **settings,
    )
    one, result, cache = run(tmp_path / "1", 1, per_device_train_batch_size=8, **common)
    for name, size, accumulate in (("2x4", 4, 1), ("2x2x2", 2, 2)):
        two, other, same_cache = run(
            tmp_path / name,
            2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            **common,
        )
        assert (
            (two - one).abs().max() < 1e-6
            and cache == same_cache
            and len(cache) == (2 if settings.get("precompute_ref_log_probs", True) else 0)
        )
        for key, value in result[
            "eval"
        ].items():  # 13 rows: 4, 4, 4, 1 in one process; the two share them unevenly
            if "/" in key or key == "eval_loss":
                assert other["eval"][key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
        for a, b in zip(result["history"][:3], other["history"][:3]):
            for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-4), key
    start = run(tmp_path / "0", 1, **{**common, "learning_rate": 0.0})[0]
    assert (one - start).abs().max() > 1e-3  # it did learn


def test_a_stream_is_evaluated_once_in_any_number_of_processes(tmp_path):
    """13 rows and 3 rows, in batches that they do not fill; one optimizer step of all 24 rows
    before, so that the weights agree."""
    common = dict(
        streamed_eval=True,
        max_steps=1,
        save_strategy="no",
        learning_rate=0.02,
        per_device_eval_batch_size=2,
    )
    _, one, _ = run(tmp_path / "1", 1, per_device_train_batch_size=24, **common)
    _, two, _ = run(tmp_path / "2", 2, per_device_train_batch_size=12, **common)
    for result in (one, two):
        assert result["predicted"] == 13 and [
            result["eval"][f"eval_{name}_predictions"] for name in ("one", "five", "few")
        ] == [13, 13, 3]
    for key, value in one["eval"].items():
        if "/" in key or key.endswith("_loss"):
            assert two["eval"][key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


def test_two_processes_resume(tmp_path):
    common = dict(per_device_train_batch_size=2, save_steps=4, lr_scheduler_type="constant")
    whole, result, _ = run(tmp_path / "whole", 2, max_steps=6, **common)
    run(tmp_path / "broken", 2, max_steps=4, **common)
    again, other, _ = run(tmp_path / "broken", 2, max_steps=6, **common)
    assert again.equal(whole) and other["loss"] == result["loss"]


def test_the_command_in_two_processes(tmp_path):
    "As `torchrun --nproc_per_node 2 $(which slpo_train) …`: one set of files, one table."
    script = Path(sys.executable).with_name("slpo_train")
    small = [
        "--train_size",
        "64",
        "--eval_size",
        "8",
        "--sft_epochs",
        "1",
        "--eval_steps",
        "100",
        "--max_new_tokens",
        "4",
        "--per_device_train_batch_size",
        "8",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        "--config",
        "world",
        *small,
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--output_dir", "out", "--use_cpu"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        done.stdout.count("against the model it started from") == 1
        and (tmp_path / "out" / "slpo_sample" / "model.safetensors").exists()
        and (tmp_path / "out" / "metrics.json").exists()
    )
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode and "give --output_dir" in done.stderr


def test_packed_rows_of_shared_out_weights():
    """FSDP's sharding itself, on a CPU. accelerate shards on accelerators only, so the trainer
    under FSDP is a test for GPUs."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(HERE / "fsdp_run.py"),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs: accelerate shards no weights on a CPU"
)
def test_fsdp_is_one_process(tmp_path):
    from slpo.flags import RECIPES

    common = dict(
        optim="sgd",
        learning_rate=0.02,
        weight_decay=0,
        max_steps=3,
        save_strategy="no",
        use_cpu=False,
    )
    one, result, _ = run(tmp_path / "1", 1, per_device_train_batch_size=8, **common)
    (tmp_path / "2").mkdir()
    command = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--config_file",
        str(RECIPES / "accelerate" / "fsdp.yaml"),
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
    ]
    done = subprocess.run(
        [
            *command,
            str(HERE / "small_run.py"),
            str(tmp_path / "2"),
            *(
                f"{k}={json.dumps(v)}"
                for k, v in {**common, "per_device_train_batch_size": 4}.items()
            ),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "2" / "result.json").read_text())["eval"][
        "eval_loss"
    ] == pytest.approx(result["eval"]["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed-zero2"])
def test_recipes_for_many_gpus_are_understood(name):
    from accelerate.commands.config.config_args import load_config_from_file
    from slpo.flags import RECIPES

    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
