"""Supervised Learning Preference Optimization: preferences by plain cross-entropy.

Names are imported when first used, so `import slpo` loads neither torch nor transformers.
"""

__version__ = "0.1.0"

_WHERE = {
    "logps": "log1mexp sequence_logps",
    "dpo": "dpo_loss ipo_loss preference_accuracy",
    "mass": "mass_targets transport",
    "ybar": "ybar_logp ybar_logp_tree",
    "loss": "PRESETS slpo_loss slpo_sample_loss",
    "data": "split_hh load_preferences preference_world world_reward BadRows PreferenceCollator",
    "trainer": "Interrupted SLPOConfig SLPOTrainer",
    "evaluate": "Judge SampleTable judge_win_rate sample_kl",
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names.split()}
__all__ = sorted(_MODULE)


def __getattr__(name):
    if name not in _MODULE:
        raise AttributeError(f"module 'slpo' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"slpo.{_MODULE[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
