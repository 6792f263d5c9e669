"""How a run goes on: at the rate of its schedule of now, not past its end, from whole checkpoints,
never from the beginning without a word."""

import shutil

import pytest
from transformers import TrainerCallback

from small_run import make
from test_resume import begun

FIRST = dict(max_steps=6, save_steps=1, save_total_limit=None, logging_steps=1)
STEPS = 3


class Rates(TrainerCallback):
    "The rate with which each step was taken."

    def __init__(self):
        self.used = {}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        self.used[state.global_step + 1] = rates.pop()


def rates_of(trainer, **how):
    rates = Rates()
    trainer.add_callback(rates)
    trainer.train(**how)
    return rates.used


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "Runs of six steps that stopped after three, by their schedule."
    made = {}

    def run(schedule, folder):
        if schedule not in made:
            made[schedule] = tmp_path_factory.mktemp(schedule)
            begun(made[schedule], STEPS, **FIRST, lr_scheduler_type=schedule, warmup_steps=1)
        shutil.copytree(made[schedule], folder, dirs_exist_ok=True)

    return run


CHANGES = [
    ("linear", dict(lr_scheduler_type="constant")),
    ("linear", dict(max_steps=9)),
    ("linear", dict(warmup_steps=5)),
    ("constant", dict(lr_scheduler_type="cosine")),
    ("cosine", dict(lr_scheduler_type="linear", learning_rate=1e-3)),
    ("cosine", dict(max_steps=8, learning_rate=2e-2)),
    ("constant_with_warmup", dict(warmup_steps=5)),
    ("linear", dict(lr_scheduler_type="constant_with_warmup", learning_rate=5e-3)),
]


@pytest.mark.parametrize("first,change", CHANGES, ids=str)
def test_a_new_schedule_holds_from_the_first_step(stopped, tmp_path, first, change):
    "The oracle: a run with the settings of now from its first step on."
    stopped(first, tmp_path / "a")
    now = {**FIRST, "lr_scheduler_type": first, "warmup_steps": 1, **change}
    used = rates_of(make(tmp_path / "a", **now), resume_from_checkpoint=True)
    whole = rates_of(make(tmp_path / "b", **now))
    want = {step: rate for step, rate in whole.items() if step > STEPS}
    assert used == pytest.approx(want, rel=1e-12), (used, want)


def test_a_schedule_that_depends_on_measurements_is_not_mixed_with_one_of_steps(stopped, tmp_path):
    stopped("linear", tmp_path)
    now = dict(
        FIRST,
        lr_scheduler_type="reduce_lr_on_plateau",
        warmup_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    with pytest.raises(
        ValueError, match="lr_scheduler_type was 'linear' and is 'reduce_lr_on_plateau'"
    ):
        make(tmp_path, **now).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "length", [dict(max_steps=2), dict(max_steps=-1, num_train_epochs=0.3)], ids=str
)
def test_a_run_is_not_past_its_end(stopped, tmp_path, length):
    "Six batches make an epoch: 0.3 of it are two steps."
    stopped("constant", tmp_path)
    trainer = make(
        tmp_path, **{**FIRST, "lr_scheduler_type": "constant", "warmup_steps": 1, **length}
    )
    where = "(max_steps=2|num_train_epochs=0.3)"
    with pytest.raises(
        ValueError, match=f"checkpoint-3 is at step 3, already past step 2, where {where} ends"
    ):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "length,step",
    [
        (dict(max_steps=3), 3),
        (dict(max_steps=7), 7),
        (dict(max_steps=-1, num_train_epochs=0.45), 3),
    ],
    ids=str,
)
def test_another_length_is_said_and_recorded(stopped, tmp_path, caplog, length, step):
    stopped("constant", tmp_path)
    trainer = make(
        tmp_path, **{**FIRST, "lr_scheduler_type": "constant", "warmup_steps": 1, **length}
    )
    trainer.train(resume_from_checkpoint=True)
    assert (
        trainer.state.global_step == step
        and f"hold from step 3 on: max_steps 6 -> {length['max_steps']}" in caplog.text
    )
    assert trainer._changes[-1]["max_steps"] == [6, length["max_steps"]]


@pytest.mark.parametrize("there", ["nothing", "half"])
def test_from_the_beginning_only_with_a_word(tmp_path, caplog, there):
    trainer = make(tmp_path, max_steps=1)
    if there == "half":
        (tmp_path / "run/checkpoint-4").mkdir(parents=True)
    trainer.train(resume_from_checkpoint=True)
    said = [r.getMessage() for r in caplog.records if "no complete checkpoint in" in r.getMessage()]
    assert (
        len(said) == 1
        and "starts from the beginning" in said[0]
        and ("checkpoint-4" in said[0]) == (there == "half")
    )
    caplog.clear()
    make(tmp_path / "new", max_steps=1).train()
    assert "checkpoint" not in caplog.text


def test_a_checkpoint_that_is_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        make(tmp_path, max_steps=1).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-9"))


@pytest.mark.parametrize(
    "name,left",
    [
        ("model.safetensors", 10),
        ("model.safetensors", 0.5),
        ("optimizer.pt", 0.5),
        ("scheduler.pt", 10),
        ("rng_state.pth", 10),
        ("config.json", 10),
        ("slpo.json", 0.5),
        ("metrics_0.json", 10),
    ],
)
def test_a_broken_file_is_named(stopped, tmp_path, name, left):
    stopped("linear", tmp_path)
    file = tmp_path / "run/checkpoint-3" / name
    data = file.read_bytes()
    file.write_bytes(data[: left if left >= 1 else len(data) // 2])
    settings = {**FIRST, "lr_scheduler_type": "linear", "warmup_steps": 1}
    with pytest.raises(
        ValueError, match=rf"checkpoint-3: {name} is broken .*Delete this checkpoint's folder"
    ):
        make(tmp_path, **settings).train(resume_from_checkpoint=True)
    if name != "model.safetensors" or left != 10:
        return
    shutil.rmtree(file.parent)  # as the message says
    again = make(tmp_path, **settings)
    assert min(rates_of(again, resume_from_checkpoint=True)) == 3 and again.state.global_step == 6


def test_a_cut_state_of_the_trainer_is_passed_over_with_a_word(stopped, tmp_path, caplog):
    stopped("linear", tmp_path)
    file = tmp_path / "run/checkpoint-3/trainer_state.json"
    file.write_text(file.read_text()[:10])
    make(tmp_path, **{**FIRST, "lr_scheduler_type": "linear", "warmup_steps": 1}).train(
        resume_from_checkpoint=True
    )
    assert (
        "goes on from" in caplog.text
        and "checkpoint-2 (checkpoint-3 was not written to the end)" in caplog.text
    )
