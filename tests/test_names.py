"""Every public name of 0f90547, the version before the notebooks were cut anew, is still found."""

import ast
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import slpo

ROOT = Path(__file__).parents[1]
BEFORE = {
    "plot": "CHOSEN REJECTED REST TEXT_WIDTH PALETTE use_style savefig savenumbers knobs",
    "logps": "sequence_logps token_logps log1mexp",
    "dpo": "dpo_loss ipo_loss",
    "mass": "transport mass_targets",
    "ybar": "ybar_logp_tree ybar_logp",
    "loss": "slpo_loss slpo_sample_loss",
    "data": "logger TURN FACTS GREETINGS ASKING POLITE RUDE split_hh Finding BadRows "
    "load_preferences train_tokenizer tokenize_preferences group_size PreferenceCollator "
    "packed_mask packed_block_mask world_reward preference_world",
    "trainer": "logger LOSSES SLPOConfig last_checkpoint SLPOTrainer Interrupted",
    "evaluate": "JUDGE_TEMPLATE generate prompt_text SampleTable bootstrap_mean win_rate "
    "interval_table completion_logps sample_kl distinct_n judge_question read_verdict JudgeError "
    "Judge ask_judge judge_key judge_scores judge_win_rate judge_questions judge_cost",
    "cli": "RECIPES RunArguments parse_run train train_main EvalArguments parse_eval evaluate "
    "eval_main",
    "bench": "MODELS PEERS HEADS TRL work compare growth install_trl ratios bench_table "
    "bench_figure bench_main",
}
NAMES = [(module, name) for module, names in BEFORE.items() for name in names.split()]
TOP = "BadRows Interrupted Judge PreferenceCollator SLPOConfig SLPOTrainer SampleTable dpo_loss \
ipo_loss judge_win_rate load_preferences log1mexp mass_targets preference_world sample_kl \
sequence_logps slpo_loss slpo_sample_loss split_hh transport world_reward ybar_logp ybar_logp_tree"


@pytest.mark.parametrize("module, name", NAMES)
def test_a_name_is_found_by_its_old_path_and_in_slpo(module, name):
    "A path that has changed says where the name is now."
    old = importlib.import_module(f"slpo.{module}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thing = getattr(old, name)
    if name not in vars(old):
        assert [w.category for w in caught] == [DeprecationWarning]
        new = str(caught[0].message).rsplit(" ", 1)[1]
        assert str(caught[0].message) == f"slpo.{module}.{name} is now {new}"
        home, new_name = new.rsplit(".", 1)
        assert getattr(importlib.import_module(home), new_name) is thing and name == new_name
    if name != "evaluate":  # slpo.evaluate is a module
        assert getattr(slpo, name) == thing or name == "logger"


def test_the_top_level_has_all_its_names():
    assert set(TOP.split()) <= set(slpo.__all__)


def test_a_name_that_never_was_is_an_attribute_error():
    for module in BEFORE:
        with pytest.raises(AttributeError, match="nothing_like_it"):
            importlib.import_module(f"slpo.{module}").nothing_like_it


def test_an_old_path_points_at_the_line_that_uses_it(tmp_path):
    (tmp_path / "mine.py").write_text("import slpo.data\n\nslpo.data.PreferenceCollator\n")
    command = [sys.executable, "-W", "always", str(tmp_path / "mine.py")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    assert "mine.py:3: DeprecationWarning: slpo.data.PreferenceCollator is now slpo.packing" in said


def test_type_checkers_see_the_same_names():
    """What `from slpo import *` gives is imported under TYPE_CHECKING, from the modules that have
    it."""
    tree = ast.parse((ROOT / "slpo" / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: slpo._MODULE[name] for name in slpo.__all__}
