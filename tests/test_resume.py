"""A run that goes on is the run that was begun: other data, losses or seeds are refused; another
rate is done, and recorded."""

import json
from pathlib import Path

import pytest
import torch

from small_run import make, weights
from slpo.stopping import _data_fingerprint, last_checkpoint

RATE = dict(max_steps=6, logging_steps=1, lr_scheduler_type="constant", save_steps=2)


def begun(tmp_path, steps=4, **settings):
    "A run that stopped after four steps of six."
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == steps

    trainer = make(tmp_path, **{**RATE, **settings})
    trainer.add_callback(Stop())
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return Path(begun(tmp_path_factory.mktemp("run"), save_steps=4).args.output_dir)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(beta=2.0), "beta was 0.1 and is 2.0"),
        (dict(alpha=0.9), "alpha was 0.5 and is 0.9"),
        (dict(anchor=0.0), "anchor was 1.0 and is 0.0"),
        (dict(loss_type="dpo"), "loss_type was 'slpo_sample' and is 'dpo'"),
        (dict(seed=7), "seed was 42 and is 7"),
        (dict(per_device_train_batch_size=2), "groups in a step was 4 and is 2"),
        (dict(optim="sgd"), "optim was 'adamw_torch"),
        (dict(weight_decay=0.1), "weight_decay was 0.0 and is 0.1"),
        (dict(rows=20), "training data was"),
        (dict(max_length=40, max_prompt_length=20), "training data was"),
        (dict(dataloader_drop_last=True), "dataloader_drop_last was False"),
    ],
    ids=str,
)
def test_another_run_does_not_go_on(stopped, change, words):
    before = sorted(p.name for p in stopped.iterdir())
    trainer = make(stopped.parent, **{**RATE, "save_steps": 4, **change})
    start = weights(trainer)
    with pytest.raises(ValueError) as e:
        trainer.train(resume_from_checkpoint=True)
    assert (
        words in str(e.value) and "checkpoint-4" in str(e.value) and "start anew" in str(e.value)
    ), e.value
    assert weights(trainer).equal(start) and sorted(p.name for p in stopped.iterdir()) == before


def test_another_model_to_start_from_does_not_go_on(tmp_path):
    begun(tmp_path)
    trainer = make(tmp_path, model_seed=5, **RATE)
    with pytest.raises(
        ValueError, match="mean reference log-probability .another model to start from"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_what_does_not_matter_may_change(tmp_path, caplog):
    "Logs, saves, and how a step's groups are laid out: the run ends where an undisturbed one ends."
    whole = make(tmp_path / "whole", **RATE, optim="sgd")
    whole.train()
    begun(tmp_path, optim="sgd")
    again = make(
        tmp_path,
        **{
            **RATE,
            "optim": "sgd",
            "logging_steps": 2,
            "save_steps": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "save_total_limit": 1,
        },
    )
    caplog.clear()
    again.train(resume_from_checkpoint=True)
    torch.testing.assert_close(weights(again), weights(whole), rtol=1e-4, atol=1e-5)
    assert not [r for r in caplog.records if r.name == "slpo"]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_another_rate_is_done_and_recorded(tmp_path, caplog, schedule):
    begun(tmp_path, lr_scheduler_type=schedule)
    again = make(tmp_path, **{**RATE, "lr_scheduler_type": schedule, "learning_rate": 1e-4})
    again.train(resume_from_checkpoint=True)
    used = [h["learning_rate"] for h in again.state.log_history if "learning_rate" in h]
    whole = make(
        tmp_path / "whole", **{**RATE, "lr_scheduler_type": schedule, "learning_rate": 1e-4}
    )
    whole.train()
    assert (
        used[4:]
        == pytest.approx(
            [h["learning_rate"] for h in whole.state.log_history if "learning_rate" in h][4:]
        )
        and used[3] > 1e-3
    )
    assert "hold from step 4 on: learning_rate 0.01 -> 0.0001" in caplog.text
    again.save_model()
    assert (
        "| learning_rate | 0.0001 (0.01 until step 4) |"
        in (Path(again.args.output_dir) / "README.md").read_text()
    )
    assert json.loads((Path(last_checkpoint(again.args.output_dir)) / "slpo.json").read_text())[
        "changes"
    ] == [{"step": 4, "learning_rate": [0.01, 1e-4]}]
    caplog.clear()
    with pytest.raises(ValueError, match="learning_rate was 0.0001 and is 0.01; it is finished"):
        make(tmp_path, **{**RATE, "lr_scheduler_type": schedule}).train(resume_from_checkpoint=True)


def test_a_longer_run_goes_on_and_says_that_its_schedule_is_another(tmp_path, caplog):
    begun(tmp_path, lr_scheduler_type="linear")
    longer = make(tmp_path, **{**RATE, "lr_scheduler_type": "linear", "max_steps": 8})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8 and "max_steps 6 -> 8" in caplog.text


def test_a_checkpoint_without_a_record_goes_on(tmp_path, caplog):
    begun(tmp_path)
    for file in Path(tmp_path).glob("run/checkpoint-*/slpo.json"):
        file.unlink()
    again = make(tmp_path, **{**RATE, "beta": 0.3})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and caplog.text.count("no record of the settings") == 1


def test_the_name_of_data_is_that_of_tokens_ranks_and_order():
    from datasets import Dataset

    rows = [
        dict(prompt_ids=[1, 2], completion_ids=[[3], [4, 5]], ranks=[0, 1], row=i) for i in range(3)
    ] + [dict(prompt_ids=[7], completion_ids=[[3, 4], [5]], ranks=[0, 1], row=3)]
    data = Dataset.from_list(rows)
    name = _data_fingerprint(data)
    assert (
        name
        == _data_fingerprint(data.remove_columns("row"))
        == _data_fingerprint(data.select([0, 1, 2, 3]))
        == _data_fingerprint(Dataset.from_list([*rows, rows[0]]).select(range(4)))
    )
    others = [
        rows[::-1],
        rows[:3],
        [{**r, "ranks": [0, 0]} for r in rows],
        [{**rows[0], "prompt_ids": [1], "completion_ids": [[2, 3], [4, 5]]}, *rows[1:]],
        [{**rows[0], "completion_ids": [[3, 4], [5]]}, *rows[1:]],
    ]
    assert len({_data_fingerprint(Dataset.from_list(other)) for other in others} | {name}) == 6


def test_the_command_does_not_go_on_with_other_data_or_settings(tmp_path, monkeypatch, capsys):
    from slpo.cli import train_main
    import slpo.stopping

    on_step_end = slpo.stopping._Interrupt.on_step_end

    def stop(self, args, state, control, **kwargs):  # as SIGTERM after the second step
        if state.global_step == 2:
            self.trainer._signal = 15
        return on_step_end(self, args, state, control, **kwargs)

    def rows(word):
        return "".join(
            json.dumps(dict(prompt=f"Question {i}", chosen=f" {word} {i}", rejected=f" no {i}"))
            + "\n"
            for i in range(24)
        )

    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        Path(f"{name}.jsonl").write_text(rows(name))
    base = make(tmp_path / "base")
    base.model.save_pretrained("model")
    base.processing_class.save_pretrained("model")

    def run(data, *flags):
        status = train_main(
            [
                "--model_name_or_path",
                "model",
                "--dataset_name",
                data,
                "--output_dir",
                "out",
                "--max_steps",
                "4",
                "--eval_size",
                "4",
                "--sample_prompts",
                "0",
                "--report_to",
                "none",
                "--disable_tqdm",
                "true",
                "--use_cpu",
                "--per_device_train_batch_size",
                "4",
                "--logging_steps",
                "1",
                "--lr_scheduler_type",
                "constant",
                "--learning_rate",
                "1e-3",
                *flags,
            ]
        )
        return status, capsys.readouterr().err

    with monkeypatch.context() as m:
        m.setattr(slpo.stopping._Interrupt, "on_step_end", stop)
        assert run("one.jsonl")[0] == 128 + 15

    def refused(data, word, *flags):
        status, said = run(data, "--resume", *flags)
        assert status == 2 and word in said and not Path("out/metrics.json").exists(), said

    refused("other.jsonl", "dataset_name=other.jsonl (was one.jsonl)")
    refused("one.jsonl", "train_size=8", "--train_size", "8")
    refused("one.jsonl", "beta=2.0 (was 0.1)", "--beta", "2")
    Path("one.jsonl").write_text(rows("changed"))  # the same name, other rows
    refused("one.jsonl", "training data was")
    Path("one.jsonl").write_text(rows("one"))
    assert run("one.jsonl", "--resume", "--learning_rate", "1e-5")[0] == 0
    history = json.loads(Path("out/metrics.json").read_text())["history"]
    assert [h["learning_rate"] for h in history if "learning_rate" in h] == pytest.approx(
        [1e-3, 1e-3, 1e-5, 1e-5]
    )
    assert (
        "| learning_rate | 1e-05 (0.001 until step 2) |"
        in Path("out/slpo_sample/README.md").read_text()
    )
