"""Settings that cannot work, or would have no effect, are refused by name, before anything is
loaded or computed."""

from dataclasses import dataclass, replace

import pytest

from slpo import SLPOConfig
from slpo.cli import train_main
from slpo.settings import LOSSES


def config(**settings):
    return SLPOConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", **settings})


IMPOSSIBLE = [
    *(
        dict([(name, value)])
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "row_length",
        )
        for value in (0, -3, 1.5)
    ),
    *(
        dict([(name, 0)])
        for name in (
            "max_prompt_length",
            "max_completion_length",
            "dataset_num_proc",
            "pad_to_multiple_of",
            "precompute_ref_batch_size",
        )
    ),
    dict(max_length=-1),
    dict(max_length=2.5),
    dict(seed=-1),
    dict(data_seed=-2),
    dict(dataloader_num_workers=-1),
    *(dict(learning_rate=value) for value in (-1e-6, float("nan"), float("inf"), "fast")),
    dict(weight_decay=-1.0),
    dict(max_grad_norm=-0.5),
    dict(adam_beta1=1.5),
    dict(adam_beta2=float("nan")),
    dict(num_train_epochs=0),
    dict(num_train_epochs=-2.0, max_steps=0),
    dict(save_strategy="steps", save_steps=0),
    dict(eval_examples=-1),
    dict(optim="adamw_8bit"),
    dict(optim="galore_adamw"),
    dict(optim="adam"),
    dict(accelerator_config={"dispatch_batches": True}),
    dict(accelerator_config={"split_batches": True}),
    dict(train_sampling_strategy="group_by_length"),
    dict(train_sampling_strategy="batch_rebalance"),
    *(dict([(name, False)]) for name in ("save_strategy", "eval_strategy", "logging_strategy")),
    dict(lr_scheduler_type="linearly"),
    dict(save_strategy="never"),
    dict(bf16="yes"),
    dict(disable_dropout="no"),
    dict(packing="off"),
    dict(gradient_checkpointing="false"),
    dict(remove_unused_columns=True),
    dict(alpha=None),
    dict(alpha=1.1),
    dict(beta="sharp"),
    dict(beta=True),
    dict(anchor=float("inf")),
    dict(temperature=None, loss_type="slpo"),
    dict(loss_type=None),
    dict(seed=None),
    dict(seed="lucky"),
    dict(seed=True),
    dict(max_steps="many"),
    dict(max_steps=2.5),
    dict(max_steps=float("inf")),
    dict(learning_rate=None),
    dict(learning_rate=[1e-6]),
    dict(logging_steps="often"),
    dict(warmup_steps="0.1 or so"),
    dict(save_total_limit="two"),
    dict(eval_steps="never", eval_strategy="steps"),
    dict(neftune_noise_alpha={}),
]


@pytest.mark.parametrize("settings", IMPOSSIBLE, ids=str)
def test_what_cannot_work_is_refused_by_name(settings):
    with pytest.raises(ValueError) as e:
        config(**settings)
    name, value = list(settings.items())[0]
    names = value if isinstance(value, dict) else [name]
    assert all(n in str(e.value) for n in names), e.value


IDLE = [
    *(
        dict(loss_type=loss, **{name: value})
        for name, value, losses in (
            ("alpha", 0.9, ("dpo", "ipo", "sft")),
            ("beta", 0.3, ("slpo", "sft")),
            ("anchor", 0.0, ("slpo", "dpo", "ipo", "nca", "sppo", "sft")),
            ("temperature", 3.0, ("slpo_sample", "dpo", "ipo", "nca", "sppo", "sft")),
            ("form", "joint", ("slpo_sample", "dpo", "ipo", "nca", "sppo", "sft")),
            ("target", "ratio", ("slpo_sample", "dpo", "ipo", "nca", "sppo", "sft")),
            ("scale_t2", True, ("slpo_sample", "dpo", "ipo", "nca", "sppo", "sft")),
            ("label_smoothing", 0.1, ("slpo", "slpo_sample", "ipo", "nca", "sppo", "sft")),
        )
        for loss in losses
    )
]


@pytest.mark.parametrize("settings", IDLE, ids=str)
def test_what_has_no_effect_is_refused(settings):
    (_, loss), (name, value) = settings.items()
    with pytest.raises(
        ValueError, match=f"{name}=.* has no effect with loss_type='{loss}': it belongs to "
    ):
        config(**settings)

    class Own(SLPOConfig):
        pass  # the settings of a loss of one's own

    assert getattr(Own(output_dir="unused", use_cpu=True, **settings), name) == value


@pytest.mark.parametrize("name", ["max_prompt_length", "max_completion_length"])
@pytest.mark.parametrize("none", [None, 0])
def test_a_cut_needs_a_length_to_cut_to(name, none):
    with pytest.raises(ValueError, match=f"{name}=10 has no effect without max_length"):
        config(max_length=none, **{name: 10})


def test_label_smoothing_of_transformers_has_no_effect():
    with pytest.raises(ValueError, match="label_smoothing_factor.* label_smoothing is"):
        config(label_smoothing_factor=0.1)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_settings_of_another_loss_are_not_carried_over(loss_type):
    for other in LOSSES:
        assert (
            replace(config(loss_type=loss_type), loss_type=other).to_dict()
            == config(loss_type=other).to_dict()
        )


def test_words_for_numbers_are_numbers():
    "As YAML gives `1e-6`, which lacks a dot."
    a = config(learning_rate="1e-6", beta="0.3", alpha="1")
    assert (a.learning_rate, a.beta, a.alpha) == (1e-6, 0.3, 1.0) and config(
        temperature="2", loss_type="slpo"
    ).temperature == 2


def test_whole_numbers_in_words_are_whole_numbers():
    "Those of transformers as well, before it computes with them."
    a = config(
        max_steps="5",
        seed="3",
        per_device_train_batch_size="1e1",
        gradient_accumulation_steps=2.0,
        save_total_limit="2",
        save_steps="50",
        warmup_steps="0.1",
    )
    assert (a.max_steps, a.seed, a.save_total_limit, a.save_steps) == (5, 3, 2, 50)
    assert (a.train_batch_size, a.gradient_accumulation_steps, a.warmup_steps) == (10, 2, 0.1)
    assert isinstance(a.gradient_accumulation_steps, int) and isinstance(a.max_steps, int)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", None, "a whole number, 0 or above"),
        ("max_steps", None, "a whole number"),
        ("max_steps", "5.5", "a whole number"),
        ("learning_rate", "fast", "a number, 0 or above"),
        ("adam_beta1", "0.9.", "a number from 0 to 1"),
        ("logging_steps", "often", "a number"),
    ],
)
def test_a_message_says_what_was_expected_and_what_was_given(name, value, expected):
    with pytest.raises(ValueError) as e:
        config(**{name: value})
    assert str(e.value) == f"{name}={value!r}: expected {expected}"


@pytest.mark.parametrize(
    "name", ["max_length", "max_grad_norm", "data_seed", "save_total_limit", "neftune_noise_alpha"]
)
def test_none_stays_where_it_means_something(name):
    assert getattr(config(**{name: None}), name) is None


def test_a_subclass_has_its_numbers_read_as_well():
    @dataclass
    class Own(SLPOConfig):
        margin: float = 0.0
        word: str = "any"

    assert Own(output_dir="unused", use_cpu=True, margin="0.5", word="5").margin == 0.5
    with pytest.raises(ValueError, match="margin='wide': expected a number"):
        Own(output_dir="unused", use_cpu=True, margin="wide")


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--train_sampling_strategy", "group_by_length"],
            "train_sampling_strategy='group_by_length'",
        ),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0"),
        (["--optim", "adamw_8bit"], "bitsandbytes"),
        (["--loss_type", "dpo", "--alpha", "0.9"], "alpha=0.9 has no effect"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor"),
    ],
)
def test_the_command_says_so_first(tmp_path, monkeypatch, capsys, flags, words):
    import slpo.cli

    monkeypatch.setattr(slpo.cli, "train", lambda *args: pytest.fail("it went on"))
    assert (
        train_main(["--output_dir", str(tmp_path / "out"), "--use_cpu", *flags]) == 2
        and words in capsys.readouterr().err
    )
