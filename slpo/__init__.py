"""Supervised Learning Preference Optimization: preferences by plain cross-entropy.

Names are imported when first used, so `import slpo` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING
from warnings import warn

__version__ = "0.1.0"

# what `from slpo import *` gives
_WHERE = {
    "logps": "sequence_logps",
    "dpo": "dpo_loss preference_accuracy",
    "mass": "mass_targets transport",
    "ybar": "log1mexp ybar_logp ybar_logp_tree",
    "loss": "PRESETS slpo_loss",
    "sample_mass": "slpo_sample_loss",
    "family": "ipo_loss nca_loss sppo_loss",
    "world": "preference_world split_hh world_answer world_reward",
    "files": "BadRows",
    "data": "load_preferences",
    "packing": "PreferenceCollator",
    "settings": "SLPOConfig",
    "stopping": "Interrupted",
    "trainer": "SLPOTrainer",
    "evaluate": "SampleTable sample_kl",
    "judge": "Judge judge_win_rate",
}
# found by name as well
_BESIDES = {
    "plot": "CHOSEN LOSS_STYLES PALETTE REJECTED REST TEXT_WIDTH knobs loss_style savefig "
    "savenumbers use_style",
    "world": "ASKING FACTS GREETINGS POLITE RUDE TURN",
    "files": "Finding logger",
    "tokens": "tokenize_preferences train_tokenizer",
    "packing": "batch_logps completion_logps group_size packed_block_mask packed_mask token_logps",
    "family": "sample_mass_optimum",
    "settings": "LOSSES",
    "stopping": "last_checkpoint",
    "evaluate": "bootstrap_mean distinct_n generate interval_table prompt_text win_rate",
    "judge": "JUDGE_TEMPLATE JudgeError ask_judge judge_cost judge_key judge_question "
    "judge_questions judge_scores read_verdict",
    "flags": "RECIPES RunArguments parse_run",
    "cli": "train train_main",
    "cli_eval": "EvalArguments eval_main parse_eval",
    "markov": "World make_world start train_tables",
    "runlog": "RunLog",
    "endpoint": "endpoint_main",
    "folds": "folds_main",
    "bench": "HEADS MODELS PEERS TRL bench_figure bench_main bench_table compare growth "
    "install_trl ratios work",
}
_MODULE = {
    name: module
    for found in (_BESIDES, _WHERE)
    for module, names in found.items()
    for name in names.split()
}
__all__ = sorted(name for names in _WHERE.values() for name in names.split())

if TYPE_CHECKING:  # the same names, for tools that do not run this file
    from .data import load_preferences
    from .dpo import dpo_loss, preference_accuracy
    from .evaluate import SampleTable, sample_kl
    from .family import ipo_loss, nca_loss, sppo_loss
    from .files import BadRows
    from .judge import Judge, judge_win_rate
    from .logps import sequence_logps
    from .loss import PRESETS, slpo_loss
    from .mass import mass_targets, transport
    from .packing import PreferenceCollator
    from .sample_mass import slpo_sample_loss
    from .settings import SLPOConfig
    from .stopping import Interrupted
    from .trainer import SLPOTrainer
    from .world import preference_world, split_hh, world_answer, world_reward
    from .ybar import log1mexp, ybar_logp, ybar_logp_tree


def __getattr__(name):
    if name not in _MODULE:
        raise AttributeError(f"module 'slpo' has no attribute '{name}'")
    return getattr(import_module(f"slpo.{_MODULE[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])


def moved(
    module: str,  # the module that had the names
    **homes: str,  # module that has them now = names, apart by spaces
):  # a module's `__getattr__`
    "Old paths go on working for one version, with a `DeprecationWarning` that names the new one."
    home = {name: new for new, names in homes.items() for name in names.split()}

    def get(name):
        if name not in home:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = f"slpo.{home[name]}"
        warn(f"{module}.{name} is now {new}.{name}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)

    return get
