"""Runs that are killed, asked to stop, or out of disk: the next start goes on, and ends where an
undisturbed run ends."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from small_run import make, weights
from slpo.stopping import Interrupted, last_checkpoint

KILLS = int(os.environ.get("SLPO_KILLS", 6))


def child(out, **settings) -> int:
    """A run in a fork, which needs no imports of its own: its process id. Nothing here may have
    used torch's threads before."""
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        trainer = make(out, **settings)
        trainer.train(resume_from_checkpoint=True)
        torch.save(weights(trainer), Path(out) / "weights.pt")
        (Path(out) / "history.json").write_text(json.dumps(logs(trainer.state.log_history)))
        os._exit(0)
    except BaseException:
        os._exit(1)


def logs(history) -> list:
    return [
        {k: v for k, v in h.items() if "runtime" not in k and "per_second" not in k}
        for h in history
    ]


def finish(out, **settings):
    pid = child(out, **settings)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return torch.load(Path(out) / "weights.pt"), json.loads(
        (Path(out) / "history.json").read_text()
    )


def test_killed_at_any_moment_a_run_ends_where_it_would_have(tmp_path):
    """kill -9 at random moments, caching and checkpointing included (a checkpoint after every
    step); SLPO_KILLS=200 for more of them."""
    import slpo.trainer  # noqa: F401  (imported once, before the forks)

    start = time.time()
    settings = dict(max_steps=20, logging_steps=6)
    wanted, history = finish(tmp_path / "whole", **settings)
    duration, rng, seen = time.time() - start, random.Random(0), {}
    for i in range(KILLS):
        out = tmp_path / f"{i}"
        pid = child(out, **settings)
        time.sleep(rng.uniform(0, duration))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        folders, whole = list((out / "run").glob("checkpoint-*")), last_checkpoint(out / "run")
        cached = any(p.suffixes == [".npy"] for p in (out / "cache").glob("*"))
        half = [f for f in folders if not (f / "trainer_state.json").exists()]
        state = (
            "half a checkpoint"
            if half
            else "checkpoints"
            if whole
            else "reference kept"
            if cached
            else "before that"
        )
        seen[state] = seen.get(state, 0) + 1
        got, again = finish(out, **settings)
        assert got.equal(wanted) and again == history, f"kill {i} ({state})"
    print(f"\n{KILLS} kills in runs of {duration:.1f} s found: {seen}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_with_a_checkpoint(tmp_path, number):
    from transformers import TrainerCallback

    class Send(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 3 and not sent:
                sent.append(os.kill(os.getpid(), number))

    sent, before = [], signal.getsignal(number)
    trainer = make(
        tmp_path, save_steps=100, gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    trainer.add_callback(Send())
    with pytest.raises(
        Interrupted, match="stopped after step 4 of 8.*checkpoint-4: resume"
    ) as stopped:
        trainer.train()
    assert stopped.value.signal == number and signal.getsignal(number) == before
    again = make(
        tmp_path, save_steps=100, gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    again.train(resume_from_checkpoint=True)
    whole = make(tmp_path / "whole", gradient_accumulation_steps=2, per_device_train_batch_size=2)
    whole.train()
    assert weights(again).equal(weights(whole)) and logs(again.state.log_history) == logs(
        whole.state.log_history
    )


def test_no_checkpoint_is_said_where_none_is_wanted(tmp_path):
    trainer = make(tmp_path, save_strategy="no")
    trainer._signal = None
    from transformers import TrainerCallback

    class Send(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_callback(Send())
    with pytest.raises(Interrupted, match="step 3 of 8. No checkpoint has been written"):
        trainer.train()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of files, which fails as a full disk does; reached while checkpoint-5 is
    written."""
    from transformers import TrainerCallback

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    trainer = make(tmp_path)
    trainer.add_callback(Fill())
    try:
        whole = "The last complete checkpoint is .*checkpoint-4: resume"
        with pytest.raises(OSError, match=f"checkpoint-5 could not be written .*{whole}"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again, whole = make(tmp_path), make(tmp_path / "whole")
    again.train(resume_from_checkpoint=True)
    whole.train()
    assert weights(again).equal(weights(whole))


def test_the_loss_that_is_returned_is_that_of_the_whole_run(tmp_path):
    """The mean over all groups, each step with its own; after the last log, before it, and in a run
    that was stopped and goes on."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    settings = dict(
        max_steps=7, logging_steps=1, learning_rate=3e-2, per_device_train_batch_size=5
    )  # 24 groups: the fifth step of an epoch has four
    whole = make(tmp_path / "whole", **settings)
    trained = whole.train()
    steps = [h["loss"] for h in whole.state.log_history if "loss" in h]
    sizes = [5, 5, 5, 5, 4, 5, 5]
    want = sum(n * loss for n, loss in zip(sizes, steps)) / sum(sizes)
    assert len(steps) == 7 and abs(want - steps[-1]) > 1e-3
    rarely = make(tmp_path / "rarely", **{**settings, "logging_steps": 4})
    rare = rarely.train()
    stopped = make(tmp_path / "stopped", **settings)
    stopped.add_callback(Stop())
    stopped.train()
    again = make(tmp_path / "stopped", **settings)
    resumed = again.train(resume_from_checkpoint=True)
    finished = make(tmp_path / "stopped", **settings).train(resume_from_checkpoint=True)
    for out, log in (
        (trained, whole.state.log_history[-1]),
        (rare, rarely.state.log_history[-1]),
        (resumed, again.state.log_history[-1]),
        (finished, {"train_loss": finished.metrics["train_loss"]}),
    ):
        assert out.training_loss == pytest.approx(want, rel=1e-6) and log[
            "train_loss"
        ] == pytest.approx(want, rel=1e-6)


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(tmp_path, monkeypatch):
    """A run started anew in its folder comes to checkpoint-2 once more, and is killed while it is
    written."""
    make(tmp_path, max_steps=3).train()
    assert last_checkpoint(tmp_path / "run").endswith("checkpoint-3")
    trainer, seen = make(tmp_path, max_steps=3), []

    def save(folder, *args, **kwargs):
        if folder.endswith("checkpoint-2"):
            raise SystemExit(
                seen.append(
                    (
                        os.path.exists(f"{folder}/trainer_state.json"),
                        last_checkpoint(tmp_path / "run"),
                    )
                )
            )
        return type(trainer).save_model(trainer, folder, *args, **kwargs)

    monkeypatch.setattr(trainer, "save_model", save)
    with pytest.raises(SystemExit):
        trainer.train()
    ((marked, newest),) = seen
    assert (
        not marked
        and newest.endswith("checkpoint-3")
        and not (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists()
    )


def test_half_a_cache_is_computed_anew(tmp_path):
    wanted = make(tmp_path).train_dataset["ref_logps"]
    (file, *_) = (tmp_path / "cache").glob("*.npy")
    for content in (file.read_bytes()[:-9], b"", b"\x93NUMPY", np.full(48, np.nan).tobytes()):
        file.write_bytes(content)
        assert make(tmp_path).train_dataset["ref_logps"] == wanted


@pytest.mark.parametrize(
    "number, after, last",
    [(signal.SIGTERM, "step", "checkpoint-"), (signal.SIGINT, "384 pairs to train on", "stopped")],
    ids=["training", "before"],
)
def test_the_command_says_how_to_go_on(tmp_path, number, after, last):
    "A run far longer than the test; the signal comes after a line that says how far it is."
    command = [
        str(Path(sys.executable).with_name("slpo_train")),
        "--train_size",
        "384",
        "--eval_size",
        "8",
        "--sft_epochs",
        "0",
        "--num_train_epochs",
        "500",
        "--save_steps",
        "100000",
        "--output_dir",
        "out",
    ]
    p = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # ignored where tests run in the background
    for line in p.stdout:
        if line.startswith(after):
            break
    p.send_signal(number)
    _, said = p.communicate(timeout=100)
    assert (
        p.returncode == 128 + number
        and "Go on with the same command and --resume" in said
        and "Traceback" not in said
        and last in said
    ), said
    assert number == signal.SIGINT or last_checkpoint(tmp_path / "out" / "slpo_sample")
