"""The recipes of the Pythia-2.8B experiment say what the experiment is, and the options that
follow the original DPO code do what it does."""

import json
import random

import pytest
import torch

from slpo.flags import RECIPES, parse_run
from slpo.cli import _load_data
from slpo.world import TURN
from slpo.tokens import tokenize_preferences, train_tokenizer
from slpo.loss import PRESETS
from small_run import make

STAGES = ("sft", "dpo", "slpo")
EIGHT = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]


def recipe(stage, *flags):
    return parse_run(["--config", f"pythia28-hh-{stage}", *flags])


@pytest.mark.parametrize("stage", STAGES)
def test_recipes_say_what_the_experiment_is(stage):
    run, args = recipe(stage)
    assert (
        run.model_name_or_path
        == ("EleutherAI/pythia-2.8b" if stage == "sft" else "runs/pythia28-hh-sft/sft")
        and run.dataset_name == "Anthropic/hh-rlhf"
    )
    assert (run.dataset_split, run.eval_split, run.eval_size, run.train_size, run.dtype) == (
        "train",
        "test",
        256,
        None,
        "float32",
    )
    assert (
        args.loss_type == stage and args.num_train_epochs == 10 and args.max_steps == -1
    )  # alignment, too: the preprint's Section 7.2
    assert (
        args.learning_rate == 5e-7
        and args.optim == "rmsprop"
        and args.max_grad_norm == 10
        and args.weight_decay == 0
    )
    assert (
        args.max_length,
        args.max_prompt_length,
        args.max_completion_length,
        args.truncation_mode,
    ) == (512, 256, 256, "keep_end")
    assert (
        args.dataloader_drop_last
        and args.disable_dropout
        and args.seed == 0
        and args.on_bad_rows == "drop"
        and not args.gradient_checkpointing
    )
    assert (
        args.eval_strategy == "steps" == args.save_strategy
        and args.eval_on_start
        and args.eval_steps == args.save_steps == 20_000 // 64
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gpus, flags", [(1, []), (8, EIGHT)])
def test_a_step_has_64_groups(stage, gpus, flags):
    _, args = recipe(stage, *flags)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * gpus == 64


def test_what_is_particular_to_a_stage():
    (run, sft), (_, dpo), (_, slpo) = map(recipe, STAGES)
    assert (
        run.sft_targets == "unique_prompts"
        and sft.load_best_model_at_end
        and sft.metric_for_best_model == "loss"
        and not sft.greater_is_better
    )
    assert (
        dpo.beta == 0.1
        and dpo.label_smoothing == 0
        and recipe("dpo", "--beta", "0.5")[1].beta == 0.5
    )
    assert {name: getattr(slpo, name) for name in PRESETS["listing"]} == PRESETS["listing"]
    _, branch = recipe(
        "slpo", "--preset", "branch", "--alpha", "0.5", "--learning_rate", "1e-2"
    )  # what the recipe's comment proposes
    assert {name: getattr(branch, name) for name in PRESETS["branch"]} == PRESETS[
        "branch"
    ] and branch.learning_rate == 1e-2
    _, ratio = recipe("slpo", "--target", "ratio", "--scale_t2", "true", "--alpha", "0.9")
    assert (ratio.form, ratio.target, ratio.temperature, ratio.scale_t2, ratio.alpha) == (
        "halves",
        "ratio",
        "length",
        True,
        0.9,
    )
    _, sample = recipe("slpo", "--loss_type", "slpo_sample", "--alpha", "0.5")
    assert (sample.loss_type, sample.alpha) == ("slpo_sample", 0.5)
    assert (
        not dpo.load_best_model_at_end
        and not slpo.load_best_model_at_end
        and len({a.output_dir for a in (sft, dpo, slpo)}) == 3
    )


def test_the_three_recipes_differ_where_they_must():
    "What is not a stage's own is the same in all."
    import yaml

    own = {
        "model_name_or_path",
        "output_dir",
        "loss_type",
        "num_train_epochs",
        "save_total_limit",
        "sft_targets",
        "load_best_model_at_end",
        "metric_for_best_model",
        "beta",
        "alpha",
        "form",
        "target",
        "temperature",
        "scale_t2",
    }
    shared = [
        {
            k: v
            for k, v in yaml.safe_load((RECIPES / f"pythia28-hh-{s}.yaml").read_text()).items()
            if k not in own
        }
        for s in STAGES
    ]
    assert shared[0] == shared[1] == shared[2] and len(shared[0]) > 20


def test_rate_and_optimizer(tmp_path):
    "Constant after a linear warm-up of 150 steps; RMSprop as PyTorch has it."
    _, args = recipe("dpo")
    trainer = make(
        tmp_path,
        **{
            k: getattr(args, k)
            for k in ("optim", "learning_rate", "lr_scheduler_type", "warmup_steps")
        },
    )
    trainer.create_optimizer_and_scheduler(2500)
    plain = torch.optim.RMSprop([torch.zeros(1)]).defaults
    assert type(trainer.optimizer) is torch.optim.RMSprop and {
        k: v for k, v in trainer.optimizer.defaults.items() if k != "lr"
    } == {k: v for k, v in plain.items() if k != "lr"}
    share = trainer.lr_scheduler.lr_lambdas[0]
    assert [share(k) for k in (0, 75, 150, 2499)] == [0, 0.5, 1, 1] and trainer.optimizer.defaults[
        "lr"
    ] == 5e-7


def test_the_last_partial_step_is_left_out(tmp_path):
    "23 groups in steps of 2 × 4: three steps an epoch, or two, and one of 7 groups is never made."
    for drop, steps in ((False, 6), (True, 4)):
        trainer = make(
            tmp_path / str(drop),
            rows=23,
            dataloader_drop_last=drop,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            num_train_epochs=2,
            max_steps=-1,
            save_strategy="no",
        )
        seen, count = [], trainer._get_num_items_in_batch
        trainer._get_num_items_in_batch = lambda batches, device: (
            seen.append(sum(len(b["sizes"]) for b in batches)) or count(batches, device)
        )
        trainer.train()
        assert trainer.state.global_step == steps and seen == (
            [8, 8] * 2 if drop else [8, 8, 7] * 2
        )


def hh(prompt, chosen, rejected):
    return {
        c: f"\n\nHuman: {prompt}{TURN} {said}"
        for c, said in (("chosen", chosen), ("rejected", rejected))
    }


def load(folder, *flags):
    run, args = parse_run(
        [
            "--dataset_name",
            str(folder),
            "--model_name_or_path",
            "none",
            "--output_dir",
            str(folder / "out"),
            "--eval_split",
            "test",
            *flags,
        ]
    )
    return _load_data(run, args)


def test_no_row_is_left_out_without_a_word(tmp_path, capsys):
    """Eight prompts of three rows each, four rows to hold out: two prompts or more, whose other
    rows are neither trained nor evaluated on."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps(hh(f"Question {i // 3}?", f"answer {i}", "no")) + "\n" for i in range(24)
        )
    )
    run, args = parse_run(
        [
            "--dataset_name",
            str(tmp_path / "rows.jsonl"),
            "--model_name_or_path",
            "none",
            "--output_dir",
            str(tmp_path / "out"),
            "--eval_size",
            "4",
        ]
    )
    train, test = _load_data(run, args)
    assert (
        len(test) == 4
        and not set(train["prompt"]) & set(test["prompt"])
        and (more := 24 - len(train) - 4) > 0
    )
    assert (
        f"{more} more rows have held-out prompts: neither trained nor evaluated on"
        in capsys.readouterr().out
    )


def test_one_sft_target_a_prompt(tmp_path):
    said = [("A", "a1"), ("B", "b1"), ("A", "a2"), ("C", "c1"), ("A", "a0"), ("B", "b0")]
    for split in ("train", "test"):  # no prompt is in both
        rows = [hh(f"{prompt}, {split}?", answer, "x") for prompt, answer in said]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for seed in ("0", "1", "2", "3"):
        chosen = [
            sorted(part["chosen"])
            for part in load(
                tmp_path, "--loss_type", "sft", "--sft_targets", "unique_prompts", "--seed", seed
            )
        ]
        assert chosen == [[" a0", " b0", " c1"]] * 2, seed  # whatever the order they are trained in
    train, _ = load(tmp_path, "--loss_type", "sft")
    assert len(train) == 6
    train, _ = load(tmp_path, "--loss_type", "dpo", "--sft_targets", "unique_prompts")
    assert len(train) == 6  # preferences are all kept
    with pytest.raises(ValueError, match="sft_targets='some'"):
        load(tmp_path, "--loss_type", "sft", "--sft_targets", "some")


def test_the_command_takes_one_target_a_prompt_before_its_preference_stage(tmp_path, capsys):
    from slpo.cli import train_main

    for split in ("train", "test"):
        rows = [hh(f"Question {i // 2} of {split}?", f"answer {i}", "no") for i in range(16)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model = make(tmp_path).model
    model.save_pretrained(tmp_path / "model")
    make(tmp_path).processing_class.save_pretrained(tmp_path / "model")
    flags = [
        "--dataset_name",
        str(tmp_path),
        "--eval_split",
        "test",
        "--model_name_or_path",
        str(tmp_path / "model"),
        "--output_dir",
        str(tmp_path / "out"),
        "--sft_epochs",
        "1",
        "--sft_targets",
        "unique_prompts",
        "--per_device_train_batch_size",
        "2",
        "--sample_prompts",
        "0",
        "--use_cpu",
        "--disable_tqdm",
        "true",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--ref_cache_dir",
        "",
    ]
    assert train_main(flags) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [h["step"] for h in metrics["sft"]["history"]][-1] == 4 and metrics["history"][-1][
        "step"
    ] == 3 * 8


def kept_lengths(prompt, chosen, rejected, longest=512, prompt_room=256):
    """What the original code leaves of three lengths (completions with EOS): prompt first; where
    that is not enough, completions down to 256."""
    if prompt + max(chosen, rejected) > longest:
        prompt = min(prompt, prompt_room)
    if prompt + max(chosen, rejected) > longest:
        chosen, rejected = (min(n, longest - prompt_room) for n in (chosen, rejected))
    return prompt, chosen, rejected


def test_lengths_are_those_of_the_original_code():
    import datasets

    tokenizer = train_tokenizer([], vocab_size=257)  # a token is a byte
    rng = random.Random(0)
    cases = [
        (100, 500, 10),
        (300, 200, 250),
        (300, 300, 20),
        (20, 20, 20),
        (256, 255, 256),
        (255, 256, 257),
        (600, 600, 600),
        (1, 510, 511),
        (1, 511, 512),
    ]
    cases += [tuple(rng.randint(1, 600) for _ in range(3)) for _ in range(60)]
    rows = datasets.Dataset.from_list(
        [{"prompt": "p" * p, "chosen": "c" * c, "rejected": "r" * r} for p, c, r in cases]
    )
    groups = list(
        tokenize_preferences(
            rows, tokenizer, max_length=512, max_prompt_length=256, max_completion_length=256
        )
    )
    assert len(groups) == len(cases)
    for (p, c, r), g in zip(cases, groups):
        want = kept_lengths(p, c + 1, r + 1)
        assert (len(g["prompt_ids"]), *map(len, g["completion_ids"])) == want, (p, c, r)
        for n, ids in zip((c, r), g["completion_ids"]):
            assert (ids[-1] == tokenizer.eos_token_id) == (
                len(ids) == n + 1
            ) and tokenizer.eos_token_id not in ids[:-1]
    ours = list(tokenize_preferences(rows, tokenizer, max_length=512, max_prompt_length=256))
    assert (
        len(ours[0]["completion_ids"][0]) == 412 and len(groups[0]["completion_ids"][0]) == 256
    )  # the default leaves a completion all the room


def test_an_end_that_is_kept_is_the_prompts_end():
    import datasets

    tokenizer = train_tokenizer([], vocab_size=257)
    rows = datasets.Dataset.from_list(
        [{"prompt": "a" * 300 + "b" * 256, "chosen": "c" * 300, "rejected": "r"}]
    )
    (group,) = tokenize_preferences(
        rows,
        tokenizer,
        max_length=512,
        max_prompt_length=256,
        max_completion_length=256,
        truncation_mode="keep_end",
    )
    assert tokenizer.decode(group["prompt_ids"]) == "b" * 256
