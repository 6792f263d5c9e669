"""What stands in a recipe's file, and what is typed as a flag: read as the setting wants it, or
named with file, line and setting."""

import dataclasses
import typing

import pytest
from transformers import HfArgumentParser

from slpo.flags import RunArguments, _settings, parse_run
from slpo.settings import SLPOConfig

HINTS = {
    name: hint
    for c in (RunArguments, SLPOConfig)
    for name, hint in typing.get_type_hints(c).items()
}
NAMES = {f.name for c in (RunArguments, SLPOConfig) for f in dataclasses.fields(c) if f.init}


def settings_of(folder, text, *flags):
    (folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    run, args = parse_run(
        ["--config", str(folder / "mine.yaml"), "--output_dir", "out", "--use_cpu", *flags]
    )
    return {**vars(args), **vars(run)}


def complaint(folder, text, *flags):
    with pytest.raises(ValueError) as e:
        settings_of(folder, text, *flags)
    return str(e.value)


@pytest.mark.parametrize(
    "word, truth",
    [("no", "false"), ("off", "false"), ("No", "false"), ("yes", "true"), ("ON", "true")],
)
def test_words_that_yaml_reads_as_truth_values_name_their_setting(tmp_path, word, truth):
    file, classes = tmp_path / "mine.yaml", (RunArguments, SLPOConfig)
    parser = HfArgumentParser(classes)
    for name in sorted(n for n in NAMES if "bool" not in str(HINTS[n])):
        file.write_text(f"# a comment\n{name}: {word}\n")
        with pytest.raises(ValueError) as e:
            _settings(parser, classes, str(file))
        assert str(e.value).startswith(
            f"mine.yaml: line 2: {name} is {truth} (YAML reads {word} as {truth}): "
        )
        assert f'write "{word}"' in str(e.value) or "expected" in str(e.value)


def test_a_word_that_would_be_right_is_to_be_quoted(tmp_path):
    assert complaint(tmp_path, "save_strategy: no").endswith('write "no"')
    assert complaint(tmp_path, "eval_strategy: yes").endswith("expected one of no, steps, epoch")
    assert complaint(tmp_path, "save_strategy: false").endswith(
        "save_strategy is false: expected one of no, steps, epoch, best"
    )
    assert settings_of(tmp_path, 'save_strategy: "no"')["save_strategy"] == "no"
    assert settings_of(tmp_path, "bf16: no\ndisable_dropout: off")["disable_dropout"] is False


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("learning_rate: 5e-7", "learning_rate", 5e-7),
        ("learning_rate: '5e-7'", "learning_rate", 5e-7),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: '12'", "max_steps", 12),
        ("loss_type: slpo\ntemperature: 0.5", "temperature", 0.5),
        ("loss_type: slpo\ntemperature: 1e-1", "temperature", 0.1),
        ("run_name: 2026-01-02", "run_name", "2026-01-02"),
        ("run_name: 12:30", "run_name", "12:30"),
        ("run_name: 007", "run_name", "007"),
        ("train_size:", "train_size", None),
        ("max_length: null", "max_length", None),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("report_to: [none]", "report_to", []),
        ("seed: 0x10", "seed", 16),
    ],
)
def test_values_are_read_as_the_setting_wants_them(tmp_path, text, name, value):
    assert settings_of(tmp_path, text)[name] == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("beta: 1\nlearning_rate: fast", "line 2: learning_rate is 'fast': expected a number"),
        ("max_steps: 2.5", "line 1: max_steps is '2.5': expected a whole number"),
        ("fp16: maybe", "line 1: fp16 is 'maybe': expected true or false"),
        ("beta:", "line 1: beta is empty: expected a number"),
        ("beta: [1]", "line 1: beta is a list: expected a number"),
        ("max_steps: .inf", "line 1: max_steps is '.inf'"),
        ("beta: {a: 1}", "line 1: beta is a block of settings"),
        (
            "lr_scheduler_type: bent",
            "line 1: lr_scheduler_type is 'bent': expected one of linear, cosine",
        ),
        ("beta: 1\nalpha: 0\nbeta: 2", "line 3: beta stands in line 1 already"),
        ("beta: 0.1\n  alpha: : 1", "line 2, column 8: not YAML"),
        ("beta: [1", "line 1, column 9: not YAML"),
        ("beta: 1\n\tx: 1", "line 2, column 1: not YAML"),
        (b"beta: \xff", "not UTF-8"),
        ("- beta", "expected 'name: value' lines"),
        ("", "expected 'name: value' lines"),
        ("beta: \0", "not YAML"),
        ("run_name: 2026-99-01", "not YAML"),
    ],
)
def test_what_cannot_be_is_named_with_file_and_place(tmp_path, text, message):
    said = complaint(tmp_path, text)
    assert said.startswith("mine.yaml: ") and message in said and "\n" not in said


@pytest.mark.parametrize(
    "name, meant",
    [
        ("torch_dtype", "dtype"),
        ("evaluation_strategy", "eval_strategy"),
        ("lr", "learning_rate"),
        ("epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
        ("max_seq_length", "max_length"),
        ("learning_rat", "learning_rate"),
        ("per_device_train_batchsize", "per_device_train_batch_size"),
        ("warmup_ratio", "warmup_steps"),
        ("lr-scheduler", "lr_scheduler_type"),
        ("push_to_hub_id", "hub_model_id"),
        ("max_step", "max_steps"),
        ("temprature", "temperature"),
        ("pref_beta", "beta"),
    ],
)
def test_other_peoples_names_and_slips_are_recognised(tmp_path, name, meant):
    assert meant in NAMES and f"{name} (did you mean {meant}" in complaint(tmp_path, f"{name}: 1")
    with pytest.raises(ValueError, match=f"^unknown flag --{name}: did you mean --{meant}\\b"):
        parse_run([f"--{name}", "1", "--output_dir", "out"])
    assert "a share of all steps" in complaint(tmp_path, "warmup_ratio: 0.1")


@pytest.mark.parametrize(
    "name, words",
    [
        ("ref_model", "ref_model=..."),
        ("ref_model_name_or_path", "as it is when training starts"),
        ("reference_model", "ref_model=..."),
        ("use_peft", "peft_config=..."),
        ("lora_r", "peft_config=..."),
        ("no_cuda", "--use_cpu"),
    ],
)
def test_what_is_done_elsewhere_is_said(tmp_path, name, words):
    said = complaint(tmp_path, f"{name}: 1")
    assert words in said and "did you mean" not in said
    with pytest.raises(ValueError) as e:
        parse_run([f"--{name}", "1", "--output_dir", "out"])
    assert words in str(e.value) and "did you mean" not in str(e.value)


@pytest.mark.parametrize(
    "name",
    [
        "adam_beta3",
        "per_device_batches",
        "eval_train_size",
        "sync_ref_model",
        "reward_model_name_or_path",
        "tokenizer_name_or_path",
        "min_new_tokens",
        "bf32",
        "max_prompts_length_2",
        "save_total",
        "group_by_length",
        "label_pad_token_id",
        "min_length",
        "alfa",
        "reward_model",
        "beta_2x",
        "packing_strategy",
        "eval_data",
        "x",
        "dpo",
        "gamma",
    ],
)
def test_where_nothing_is_like_it_nothing_is_proposed(tmp_path, name):
    said = complaint(tmp_path, f"{name}: 1")
    assert name in said and "did you mean" not in said
    with pytest.raises(ValueError) as e:
        parse_run([f"--{name}", "1", "--output_dir", "out"])
    assert str(e.value) == f"unknown flag --{name}"


def test_synonyms_name_settings_that_exist():
    from slpo.flags import _OTHERS_NAMES

    assert not NAMES & set(_OTHERS_NAMES) and set(_OTHERS_NAMES.values()) <= NAMES


# -- numbers and words that YAML reads in ways of its own


@pytest.mark.parametrize(
    "line, found",
    [
        ("max_steps: 010", 8),
        ("max_steps: -010", -8),
        ("seed: 1:30", 90),
        ("learning_rate: 1:30.5", 90.5),
        ("train_size: 0_17", 15),
        ("save_steps: 00012", 10),
    ],
)
def test_a_number_that_is_not_what_is_written_is_refused(tmp_path, line, found):
    name, written = line.split(": ")
    assert complaint(tmp_path, f"# mine\n{line}").startswith(
        f"mine.yaml: line 2: {name} is {written}, which YAML reads as {found}: write "
    )


@pytest.mark.parametrize(
    "line, value",
    [
        ("max_steps: 1_000", 1000),
        ("max_steps: 0x10", 16),
        ("max_steps: 08", 8),
        ("max_steps: '010'", 10),
        ("max_steps: +7", 7),
        ("head_budget_mb: .inf", float("inf")),
        ("learning_rate: 1.5e-3", 1.5e-3),
        ("max_steps: 007", 7),
    ],
)
def test_a_number_that_is_what_is_written_is_taken(tmp_path, line, value):
    assert settings_of(tmp_path, line)[line.split(":")[0]] == value


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "lr_scheduler_kwargs: {num_cycles: 010}",
            "line 1: lr_scheduler_kwargs is 010, which YAML reads as 8",
        ),
        ("beta: 1\nlr_scheduler_kwargs:\n  a: 1\n  b: 1:30", "(line 4)"),
        ("model_init_kwargs: {revision: 2024-01-01}", 'write "2024-01-01"'),
        ("model_init_kwargs: {revision: no}", 'write "no", or false'),
        ("report_to: [off]", "holds off, which YAML reads as false"),
    ],
)
def test_inside_lists_and_blocks_too(tmp_path, text, words):
    assert words in complaint(tmp_path, text)
    assert (
        settings_of(tmp_path, 'model_init_kwargs: {revision: "2024-01-01", use_safetensors: true}')[
            "model_init_kwargs"
        ]["revision"]
        == "2024-01-01"
    )


def test_no_folder_is_chosen_where_one_seems_to_be_named(tmp_path, monkeypatch):
    assert "line 1: output_dir is ~, which YAML reads as empty" in complaint(
        tmp_path, "output_dir: ~"
    )
    assert "eval_split is ~" in complaint(tmp_path, "eval_split: ~")
    monkeypatch.chdir(tmp_path)
    for empty in ("output_dir:", "output_dir: null"):
        (tmp_path / "empty.yaml").write_text(empty)
        _, args = parse_run(["--config", "empty.yaml", "--use_cpu"])
        assert args.output_dir.startswith("runs/empty.yaml-")  # as without the line


@pytest.mark.parametrize(
    "name",
    [
        "on_bad_rows",
        "loss_type",
        "form",
        "target",
        "preset",
        "truncation_mode",
        "completion_tokens",
        "sft_targets",
        "dtype",
        "temperature",
        "report_to",
    ],
)
def test_a_word_for_true_or_false_is_not_told_to_be_quoted_where_it_would_be_refused(
    tmp_path, name
):
    for word in ("yes", "no", "off", "true"):
        said = complaint(tmp_path, f"{name}: {word}")
        assert f"line 1: {name} is " in said and "expected " in said and 'write "' not in said
    if name not in ("dtype", "temperature", "report_to"):
        for allowed in said.split("expected one of ")[1].split(", "):
            text = f"{name}: {allowed}\n"
            if name in ("form", "target", "preset"):
                text += "loss_type: slpo\n"
            if allowed == "main":
                text += "temperature: 2\n"
            settings_of(tmp_path, text)
        assert f"line 1: {name} is 'nope': expected one of" in complaint(tmp_path, f"{name}: nope")


@pytest.mark.parametrize(
    "name, word",
    [
        ("max_steps", "1e3"),
        ("bf16", "off"),
        ("packing", "off"),
        ("packing", "on"),
        ("disable_tqdm", "yes"),
        ("use_cpu", "ON"),
        ("train_size", "2.0"),
        ("max_steps", "1_000"),
        ("learning_rate", "1e-3"),
    ],
)
def test_a_word_means_the_same_in_a_recipe_and_on_the_command_line(tmp_path, name, word):
    typed = settings_of(tmp_path, "beta: 0.2", f"--{name}", word)[name]
    assert (
        settings_of(tmp_path, f"{name}: {word}")[name]
        == settings_of(tmp_path, f"{name}: '{word}'")[name]
        == typed
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_steps", "2.5"], "--max_steps: is '2.5': expected a whole number"),
        (["--packing", "maybe"], "--packing: is 'maybe': expected true or false"),
        (["--learning_rate", "fast"], "--learning_rate: is 'fast': expected a number"),
        (["--config"], "--config: expected one argument"),
        (["--config", "world.yaml"], "did you mean --config world?"),
        (["--config", "wrold"], "did you mean --config world?"),
        (["--fsdp_config", "ds.json"], "--fsdp_config ds.json: no such file"),
        (["--fsdp_config", "."], "--fsdp_config .: is a folder"),
        (["--accelerator_config", "bad.json"], "--accelerator_config bad.json: not JSON"),
    ],
)
def test_flags_that_cannot_be_are_named_without_a_page_of_usage(
    tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises((ValueError, OSError)) as e:
        parse_run([*flags, "--output_dir", "out"])
    assert message in str(e.value) and "\n" not in str(e.value)
    assert "usage" not in "".join(capsys.readouterr())


def test_deepspeed_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for installed, message in (
        (None, "--deepspeed: it is not installed"),
        (True, "--deepspeed ds.json: no such file"),
    ):
        monkeypatch.setattr("slpo.flags.find_spec", lambda name: installed)
        with pytest.raises(ValueError, match=message):
            parse_run(["--deepspeed", "ds.json", "--output_dir", "out"])
