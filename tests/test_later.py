"""Rows that come after the trainer was built: looked at, made into groups and compared with the
reference as those of before; arguments of other kinds; gradients of nothing."""

import copy

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import TrainingArguments

from small_run import make
from slpo import SLPOConfig, SLPOTrainer
from slpo.files import BadRows
from slpo.tokens import tokenize_preferences

ROWS = [
    dict(
        prompt=f"\n\nHuman: What is {i}?\n\nAssistant:",
        chosen=f" It is {i}.",
        rejected=[f" No, {i}!", " Never."][: 1 + i % 2],
    )
    for i in range(7)
]
SMALL = dict(max_steps=2, logging_steps=1, save_strategy="no")


def other(base, **how):
    "A trainer around the model of another."
    settings = dict(
        output_dir=base.args.output_dir + "-other",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        ref_cache_dir="",
        learning_rate=1e-2,
        **SMALL,
    )
    settings |= how.pop("settings", {})
    return SLPOTrainer(
        base.model,
        **{
            "args": SLPOConfig(**settings),
            "train_dataset": base.train_dataset.remove_columns("ref_logps"),
            "processing_class": base.processing_class,
            **how,
        },
    )


def ratios_by_hand(trainer, start, data):
    "Mean log-ratios of the chosen, from two models and one group at a time."
    groups = tokenize_preferences(data, trainer.processing_class, max_length=1024)
    new, old = trainer.group_logps(groups), trainer.group_logps(groups, start)
    return sum(n[0] - o[0] for n, o in zip(new, old)) / len(groups)


@pytest.mark.parametrize("kind", ["before training", "online", "reference model", "adapter"])
def test_rows_that_come_later_are_as_those_of_before(tmp_path, kind):
    base = make(tmp_path, **SMALL)
    start, rows = copy.deepcopy(base.model), Dataset.from_list(ROWS)
    if kind == "before training":
        trainer = base
    elif kind == "online":
        trainer = other(base, settings=dict(precompute_ref_log_probs=False))
    elif kind == "reference model":
        trainer = other(
            base, ref_model=copy.deepcopy(start), settings=dict(precompute_ref_log_probs=False)
        )
    else:
        trainer = other(base, peft_config=LoraConfig(r=2, target_modules=["query_key_value"]))
    if kind != "before training":
        trainer.train()
    text, groups = (
        trainer.evaluate(rows),
        trainer.evaluate(tokenize_preferences(rows, trainer.processing_class, max_length=1024)),
    )
    assert text["eval_logratios/chosen"] == pytest.approx(
        ratios_by_hand(trainer, start, rows), abs=1e-4
    ) and (kind == "before training") == (abs(text["eval_logratios/chosen"]) < 1e-4)
    for key in text:
        if "/" in key or key == "eval_loss":
            assert groups[key] == pytest.approx(text[key], abs=1e-5), key
    two = trainer.evaluate(DatasetDict(a=rows, b=rows.select(range(2))))
    assert (
        two["eval_a_loss"] == pytest.approx(text["eval_loss"], abs=1e-5)
        and "eval_b_rewards/margins" in two
    )
    said = trainer.predict(rows)
    assert said.predictions.shape == (7, 2) and said.metrics["test_loss"] == pytest.approx(
        text["eval_loss"], abs=1e-5
    )
    with pytest.raises(BadRows, match="row 1: column 'chosen': empty completion"):
        trainer.evaluate(Dataset.from_list([ROWS[0], {**ROWS[1], "chosen": ""}]))
    with pytest.raises(
        ValueError, match="argument 'eval_dataset': expected a datasets.Dataset.*got list"
    ):
        trainer.evaluate(ROWS)
    with pytest.raises(
        ValueError, match="argument 'test_dataset': expected a datasets.Dataset.*got str"
    ):
        trainer.predict("rows.jsonl")


def test_where_the_reference_is_gone_it_is_said(tmp_path):
    trainer, rows = make(tmp_path, **SMALL), Dataset.from_list(ROWS)
    trainer.train()
    for ask in (trainer.evaluate, trainer.predict, lambda rows: trainer.evaluate({"new": rows})):
        with pytest.raises(
            ValueError,
            match="no reference is kept.*eval_dataset.*ref_logps.*precompute_ref_log_probs=False",
        ):
            ask(rows)
    known = trainer.evaluate()
    assert trainer.evaluate(trainer.eval_dataset.select(range(13)))["eval_loss"] == pytest.approx(
        known["eval_loss"], abs=1e-6
    )  # these bring it along
    given = [
        dict(
            prompt_ids=g["prompt_ids"],
            chosen_ids=g["completion_ids"][0],
            rejected_ids=g["completion_ids"][1],
            ref_chosen_logps=g["ref_logps"][0],
            ref_rejected_logps=g["ref_logps"][1],
        )
        for g in trainer.eval_dataset
    ]
    assert trainer.evaluate(Dataset.from_list(given))["eval_loss"] == pytest.approx(
        known["eval_loss"], abs=1e-5
    )
    sft = other(make(tmp_path / "sft", **SMALL), settings=dict(loss_type="sft"))
    sft.train()
    assert sft.evaluate(rows)["eval_loss"] > 0  # needs none
    again = make(tmp_path / "resumed", max_steps=2, save_steps=1)
    again.train()
    again = make(tmp_path / "resumed", max_steps=2, save_steps=1)
    again.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no reference is kept"):
        again.evaluate(rows)


def kinds():
    from types import SimpleNamespace

    yield (
        dict(
            args=TrainingArguments(
                output_dir="o", use_cpu=True, report_to="none", learning_rate=3e-5, max_steps=7
            )
        ),
        (
            "args",
            "expected an SLPOConfig, got TrainingArguments of transformers",
            "learning_rate=3e-05",
            "max_steps=7",
        ),
    )
    yield dict(args=dict(beta=0.1)), ("args", "got dict")
    yield dict(args=SimpleNamespace(beta=0.1)), ("args", "got SimpleNamespace")
    yield dict(args=SLPOConfig), ("args", "got type")
    for data in (
        ROWS,
        tuple(ROWS),
        Dataset.from_list(ROWS).to_pandas(),
        "rows.jsonl",
        DatasetDict(train=Dataset.from_list(ROWS)),
        torch.utils.data.TensorDataset(torch.zeros(3)),
    ):
        yield (
            dict(train_dataset=data),
            ("train_dataset", "expected a datasets.Dataset", f"got {type(data).__name__}"),
        )
    yield dict(eval_dataset=ROWS), ("eval_dataset", "got list")
    yield (
        dict(eval_dataset={"a": Dataset.from_list(ROWS), "b": ROWS}),
        ("eval_dataset['b']", "got list"),
    )


@pytest.mark.parametrize("arguments, words", list(kinds()))
def test_arguments_of_other_kinds_are_named_before_a_model_is_loaded(arguments, words):
    settings = SLPOConfig(output_dir="o", use_cpu=True, report_to="none")
    with pytest.raises(ValueError) as e:
        SLPOTrainer("no/such/model", **{"args": settings, **arguments})
    assert all(w in str(e.value) for w in words), e.value


def test_the_arguments_of_trl_carry_over():
    trl = pytest.importorskip("trl")
    given = trl.DPOConfig(
        output_dir="o",
        use_cpu=True,
        bf16=False,
        report_to="none",
        beta=0.3,
        learning_rate=2e-5,
        padding_free=True,
    )
    with pytest.raises(
        ValueError, match="got DPOConfig of trl.*SLPOConfig.*not known there: .*padding_free"
    ) as e:
        SLPOTrainer("no/such/model", args=given)
    assert "beta=0.3" in str(e.value) and "learning_rate=2e-05" in str(e.value)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(loss_type="dpo"),
        dict(loss_type="ipo"),
        dict(loss_type="slpo"),
        dict(loss_type="sft"),
        dict(max_grad_norm=0.0),
    ],
    ids=str,
)
def test_a_gradient_of_exactly_nothing_stops_the_run(tmp_path, settings):
    trainer = make(tmp_path, **{**SMALL, **settings})
    for p in trainer.model.parameters():
        p.register_hook(torch.zeros_like)
    with pytest.raises(
        FloatingPointError,
        match="step 0: the gradient is exactly 0, in rows .* nothing would be learned",
    ):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "settings",
    [
        dict(alpha=0.0),
        dict(loss_type="slpo", alpha=0.0),
        dict(loss_type="dpo", label_smoothing=0.5),
    ],
    ids=str,
)
def test_a_loss_that_begins_at_its_minimum_may_stay_there(tmp_path, settings):
    trainer = make(tmp_path, **{**SMALL, **settings})
    for p in trainer.model.parameters():
        p.register_hook(torch.zeros_like)
    trainer.train()
    assert trainer.state.global_step == 2
