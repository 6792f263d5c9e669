"""The reference: one meaning with and without adapters, kept numbers that are never another reference's, a check that training starts there."""
import json
import logging
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import slpo.trainer
from slpo import SLPOConfig, SLPOTrainer
from slpo.data import train_tokenizer

ROWS = Dataset.from_list([dict(prompt=f"Question {i}?", chosen=f" Yes, {i}.", rejected=f" No, not {i}!") for i in range(12)])
TOKENIZER = train_tokenizer([r["prompt"] + r["chosen"] + r["rejected"] for r in ROWS], vocab_size=280)
SHAPE = dict(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48, initializer_range=.2)


def tiny(seed=0, **config):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | config))


def make(folder, model=None, trainer=SLPOTrainer, rows=ROWS, eval_dataset=None, **settings):
    peft_config, ref_model, seed = (settings.pop(k, v) for k, v in (("peft_config", None), ("ref_model", None), ("adapter_seed", 0)))
    settings = dict(output_dir=str(folder/"run"), ref_cache_dir=str(folder/"cache"), per_device_train_batch_size=12, max_steps=1, learning_rate=1e-2, lr_scheduler_type="constant",
                    logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True) | settings
    model = tiny() if model is None else model
    torch.manual_seed(seed)
    made = trainer(model, ref_model=ref_model, args=SLPOConfig(**settings), train_dataset=rows, eval_dataset=eval_dataset, processing_class=TOKENIZER, peft_config=peft_config)
    made.remove_callback(transformers.PrinterCallback)
    return made


def lora(**settings):
    from peft import LoraConfig
    return LoraConfig(**dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]) | settings)


def wrapped(strength=8, **settings):
    "A model with an adapter that was trained before."
    from peft import get_peft_model
    torch.manual_seed(1)
    return get_peft_model(tiny(), lora(init_lora_weights=False, lora_alpha=strength, **settings))


def numbers(trainer) -> torch.Tensor: return torch.tensor(trainer.train_dataset["ref_logps"])


@pytest.fixture
def passes(monkeypatch):
    "What the passes over data sets were called."
    seen, group_logps = [], SLPOTrainer.group_logps

    def counted(self, dataset, model=None, desc="log-probs"):
        seen.append(desc)
        return group_logps(self, dataset, model, desc)
    monkeypatch.setattr(SLPOTrainer, "group_logps", counted)
    return seen


STARTS = {"new": lambda: dict(peft_config=lora()), "new, at random": lambda: dict(peft_config=lora(init_lora_weights=False)),
          "pissa": lambda: dict(peft_config=lora(init_lora_weights="pissa")), "olora": lambda: dict(peft_config=lora(init_lora_weights="olora")),
          "dora": lambda: dict(peft_config=lora(use_dora=True)), "dropout": lambda: dict(peft_config=lora(init_lora_weights=False, lora_dropout=.3)),
          "embeddings trained": lambda: dict(peft_config=lora(init_lora_weights=False, modules_to_save=["lm_head"])),
          "trained before": lambda: dict(model=wrapped())}


@pytest.mark.parametrize("start", STARTS)
def test_precomputed_or_not_the_reference_is_the_policy_at_the_start(tmp_path, start):
    "Both ways agree at each of three steps, which move the policy; a step leaves the reference where it was."
    history, references = {}, {}
    for precompute in (True, False):
        trainer = make(tmp_path/str(precompute), precompute_ref_log_probs=precompute, max_steps=3, **STARTS[start]())
        references[precompute] = trainer._with_reference(trainer.train_dataset) if precompute else None
        trainer.train()
        history[precompute] = [h for h in trainer.state.log_history if "logratios/chosen" in h][:3]
        with trainer._reference() as model: after = torch.tensor(trainer.group_logps(trainer.train_dataset, model))
        if precompute: first = numbers(trainer)
        torch.testing.assert_close(after, first, rtol=1e-4, atol=1e-4)
    if start != "dropout":                                                   # whose noise is another each time
        for one, other in zip(*history.values()):
            for key in ("loss", "grad_norm", "logratios/chosen", "rewards/margins"): assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-3), key
        assert abs(history[True][0]["logratios/chosen"]) < 1e-3 < abs(history[True][2]["logratios/chosen"])


def test_after_a_resume_the_reference_is_the_one_of_before(tmp_path):
    "In each step, from the weights that the adapter started with, and not from those of the checkpoint."
    def run(folder, steps):
        trainer = make(folder, peft_config=lora(init_lora_weights=False), precompute_ref_log_probs=False, max_steps=steps, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=True)
        return trainer
    whole = run(tmp_path/"whole", 4)
    run(tmp_path/"broken", 2)
    resumed = run(tmp_path/"broken", 4)
    ends = [t.state.log_history[-2] for t in (whole, resumed)]
    for key in ("loss", "logratios/chosen", "logps/chosen"): assert ends[1][key] == ends[0][key], key


def test_bf16_sees_the_adapter_of_the_start(tmp_path):
    "Autocast keeps 16-bit copies of weights, which must not be those of the policy."
    one, other = (make(tmp_path/str(p), model=wrapped(), bf16=True, precompute_ref_log_probs=p, max_steps=3) for p in (True, False))
    one.train(); other.train()
    for a, b in zip(one.state.log_history[:3], other.state.log_history[:3]): assert b["logratios/chosen"] == pytest.approx(a["logratios/chosen"], abs=.3)
    assert abs(one.state.log_history[2]["logratios/chosen"]) > 1


def stronger(model):
    from peft.tuners.lora import LoraLayer
    for module in model.modules():
        if isinstance(module, LoraLayer): module.scaling["default"] *= 3
    return model


def merged(model): model.merge_adapter(); return model


def second_adapter():
    model = wrapped()
    model.add_adapter("other", lora(init_lora_weights=False))
    model.set_adapter("other")
    return model


def other_rope(): return tiny(rope_parameters={"rope_type": "default", "rope_theta": 50.})


def nudged_buffer():
    model = tiny()
    model.model.rotary_emb.inv_freq[3] *= 2                                  # lies in no checkpoint
    return model


CHANGES = {"another strength": lambda: (dict(peft_config=lora(init_lora_weights=False)), dict(peft_config=lora(init_lora_weights=False, lora_alpha=16))),
           "another seed": lambda: (dict(peft_config=lora(init_lora_weights=False)), dict(peft_config=lora(init_lora_weights=False), adapter_seed=1)),
           "another strength, wrapped": lambda: (dict(model=wrapped()), dict(model=wrapped(16))),
           "strength set by hand": lambda: (dict(model=wrapped()), dict(model=stronger(wrapped()))),
           "rank-stabilised": lambda: (dict(model=wrapped()), dict(model=wrapped(use_rslora=True))),
           "another adapter on": lambda: (dict(model=wrapped()), dict(model=second_adapter())),
           "base rewritten": lambda: (dict(peft_config=lora()), dict(peft_config=lora(init_lora_weights="pissa"))),
           "rope": lambda: (dict(), dict(model=other_rope())), "a buffer": lambda: (dict(), dict(model=nudged_buffer())),
           "bf16": lambda: (dict(), dict(bf16=True)), "weights in bf16": lambda: (dict(), dict(model=tiny().bfloat16())), "padded": lambda: (dict(), dict(packing=False)),
           "the model's own head": lambda: (dict(bf16=True), dict(bf16=True, head_budget_mb=math.inf))}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_numbers_is_in_the_key(tmp_path, passes, change):
    "The second trainer has the numbers that it has without a cache."
    before, after = CHANGES[change]()
    make(tmp_path, **before)
    got, wanted = make(tmp_path, **after), make(tmp_path, ref_cache_dir="", **after)
    assert numbers(got).equal(numbers(wanted)) and len(passes) == 3


@pytest.mark.parametrize("again", [dict(adapter_seed=1), dict(peft_config=lora(lora_alpha=32)), dict(peft_config=lora(r=2, target_modules=["k_proj"])), dict(peft_config=None)],
                         ids=["another seed", "another strength", "another size and place", "no adapter"])
def test_an_adapter_that_adds_nothing_yet_is_not(tmp_path, passes, again):
    make(tmp_path, peft_config=lora())
    make(tmp_path, **dict(peft_config=lora()) | again)
    assert len(passes) == 1


def test_the_key_is_the_same_in_every_process():
    "Names of modules are a set in PEFT's settings, and sets of strings are in another order in each process."
    assert json.loads(slpo.trainer._canonical([{"target_modules": set("hgabfe"), "n": 1}])) == [{"target_modules": list("abefgh"), "n": 1}]
