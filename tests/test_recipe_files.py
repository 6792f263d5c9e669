"""What stands in a recipe's file, and what is typed as a flag: read as the setting wants it, or named with file, line and setting."""
import dataclasses
import typing

import pytest
from transformers import HfArgumentParser

from slpo.cli import RunArguments, _settings, parse_run
from slpo.trainer import SLPOConfig

HINTS = {name: hint for c in (RunArguments, SLPOConfig) for name, hint in typing.get_type_hints(c).items()}
NAMES = {f.name for c in (RunArguments, SLPOConfig) for f in dataclasses.fields(c) if f.init}


def settings_of(folder, text, *flags):
    (folder/"mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    run, args = parse_run(["--config", str(folder/"mine.yaml"), "--output_dir", "out", "--use_cpu", *flags])
    return {**vars(args), **vars(run)}


def complaint(folder, text, *flags):
    with pytest.raises(ValueError) as e: settings_of(folder, text, *flags)
    return str(e.value)


@pytest.mark.parametrize("word, truth", [("no", "false"), ("off", "false"), ("No", "false"), ("yes", "true"), ("ON", "true")])
def test_words_that_yaml_reads_as_truth_values_name_their_setting(tmp_path, word, truth):
    file, classes = tmp_path/"mine.yaml", (RunArguments, SLPOConfig)
    parser = HfArgumentParser(classes)
    for name in sorted(n for n in NAMES if "bool" not in str(HINTS[n])):
        file.write_text(f"# a comment\n{name}: {word}\n")
        with pytest.raises(ValueError) as e: _settings(parser, classes, str(file))
        assert str(e.value).startswith(f"mine.yaml: line 2: {name} is {truth} (YAML reads {word} as {truth}): ")
        assert f'write "{word}"' in str(e.value) or "expected" in str(e.value)


def test_a_word_that_would_be_right_is_to_be_quoted(tmp_path):
    assert complaint(tmp_path, "save_strategy: no").endswith('write "no"')
    assert complaint(tmp_path, "eval_strategy: yes").endswith("expected one of no, steps, epoch")
    assert complaint(tmp_path, "save_strategy: false").endswith("save_strategy is false: expected one of no, steps, epoch, best")
    assert settings_of(tmp_path, 'save_strategy: "no"')["save_strategy"] == "no"
    assert settings_of(tmp_path, "bf16: no\ndisable_dropout: off")["disable_dropout"] is False


@pytest.mark.parametrize("text, name, value", [
    ("learning_rate: 5e-7", "learning_rate", 5e-7), ("learning_rate: '5e-7'", "learning_rate", 5e-7), ("learning_rate: 1", "learning_rate", 1.), ("max_steps: 1e3", "max_steps", 1000),
    ("max_steps: '12'", "max_steps", 12), ("loss_type: slpo\ntemperature: 0.5", "temperature", .5), ("loss_type: slpo\ntemperature: 1e-1", "temperature", .1), ("run_name: 2026-01-02", "run_name", "2026-01-02"),
    ("run_name: 12:30", "run_name", "12:30"), ("run_name: 007", "run_name", "007"), ("train_size:", "train_size", None), ("max_length: null", "max_length", None),
    ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}), ("report_to: [none]", "report_to", []), ("seed: 0x10", "seed", 16)])
def test_values_are_read_as_the_setting_wants_them(tmp_path, text, name, value):
    assert settings_of(tmp_path, text)[name] == value


@pytest.mark.parametrize("text, message", [
    ("beta: 1\nlearning_rate: fast", "line 2: learning_rate is 'fast': expected a number"), ("max_steps: 2.5", "line 1: max_steps is '2.5': expected a whole number"),
    ("fp16: maybe", "line 1: fp16 is 'maybe': expected true or false"), ("beta:", "line 1: beta is empty: expected a number"), ("beta: [1]", "line 1: beta is a list: expected a number"), ("max_steps: .inf", "line 1: max_steps is '.inf'"),
    ("beta: {a: 1}", "line 1: beta is a block of settings"), ("lr_scheduler_type: bent", "line 1: lr_scheduler_type is 'bent': expected one of linear, cosine"),
    ("beta: 1\nalpha: 0\nbeta: 2", "line 3: beta stands in line 1 already"), ("beta: 0.1\n  alpha: : 1", "line 2, column 8: not YAML"), ("beta: [1", "line 1, column 9: not YAML"),
    ("beta: 1\n\tx: 1", "line 2, column 1: not YAML"), (b"beta: \xff", "not UTF-8"), ("- beta", "expected 'name: value' lines"), ("", "expected 'name: value' lines"), ("beta: \0", "not YAML"),
    ("run_name: 2026-99-01", "not YAML")])
def test_what_cannot_be_is_named_with_file_and_place(tmp_path, text, message):
    said = complaint(tmp_path, text)
    assert said.startswith("mine.yaml: ") and message in said and "\n" not in said


@pytest.mark.parametrize("name, meant", [
    ("torch_dtype", "dtype"), ("evaluation_strategy", "eval_strategy"), ("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("batch_size", "per_device_train_batch_size"),
    ("max_seq_length", "max_length"), ("learning_rat", "learning_rate"), ("per_device_train_batchsize", "per_device_train_batch_size"), ("warmup_ratio", "warmup_steps"), ("lr-scheduler", "lr_scheduler_type")])
def test_other_peoples_names_and_slips_are_recognised(tmp_path, name, meant):
    assert meant in NAMES and f"{name} (did you mean {meant}" in complaint(tmp_path, f"{name}: 1")
    with pytest.raises(ValueError, match=f"^unknown flag --{name}: did you mean --{meant}\\b"): parse_run([f"--{name}", "1", "--output_dir", "out"])
    assert "a share of all steps" in complaint(tmp_path, "warmup_ratio: 0.1")


@pytest.mark.parametrize("name", ["ref_model", "use_peft", "lora_r", "lora_target_modules", "min_length", "alfa", "reward_model", "beta_2x", "packing_strategy", "eval_data", "x", "dpo", "gamma"])
def test_where_nothing_is_like_it_nothing_is_proposed(tmp_path, name):
    said = complaint(tmp_path, f"{name}: 1")
    assert name in said and "did you mean" not in said
    with pytest.raises(ValueError) as e: parse_run([f"--{name}", "1", "--output_dir", "out"])
    assert str(e.value) == f"unknown flag --{name}"


def test_synonyms_name_settings_that_exist():
    from slpo.cli import _OTHERS_NAMES
    assert not NAMES & set(_OTHERS_NAMES) and set(_OTHERS_NAMES.values()) <= NAMES
