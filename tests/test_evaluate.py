"""What is sampled is the model's own distribution and ends where the model ends it; intervals of
any size in little memory."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from slpo.cli_eval import eval_main
from slpo.tokens import train_tokenizer
from slpo.evaluate import bootstrap_mean, bootstrap_means, generate, stop_ids
from slpo.packing import completion_logps

CHAT = (
    "{% for m in messages %}<start>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>{% endif %}"
)
QUIET = dict(max_new_tokens=12, desc=None)


def spoken(*special, template=None):
    "A byte tokenizer with EOS 0 and these further special tokens."
    tokenizer = train_tokenizer([], vocab_size=257)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def markov_model(tokenizer, chain, sure=40.0):
    """A transformer that says after each token of `chain` (texts of one token each) the next, and
    then begins anew."""
    V = len(tokenizer)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=V + V % 2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = tokenizer.convert_tokens_to_ids(chain)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                p.zero_()  # each token is on its own
        model.model.embed_tokens.weight.copy_(torch.eye(V, config.hidden_size))
        model.lm_head.weight.normal_(std=0.05)
        for now, following in zip(ids, [*ids[1:], ids[0]]):
            model.lm_head.weight[following, now] = sure / config.hidden_size**0.5
    return model


ENDS = {
    "settings": lambda model, token: setattr(model.generation_config, "eos_token_id", [0, token]),
    "settings alone": lambda model, token: setattr(model.generation_config, "eos_token_id", token),
    "configuration": lambda model, token: setattr(model.config, "eos_token_id", [0, token]),
    "nobody but the template": lambda model, token: None,
}


@pytest.mark.parametrize("named_by", ENDS)
def test_an_answer_ends_at_the_first_token_that_ends_one(named_by):
    tokenizer = spoken("<start>", "<end>", template=CHAT)
    end = tokenizer.convert_tokens_to_ids("<end>")
    model = markov_model(tokenizer, ["<start>", "H", "i", "<end>", "Ċ"])
    ENDS[named_by](model, end)
    if named_by != "nobody but the template":
        tokenizer.chat_template = None
    prompts = ["<start>", "Q<start>"]
    texts, _, ids = generate(model, tokenizer, prompts, with_ids=True, **QUIET)
    assert (
        texts == ["Hi", "Hi"] and ids == [tokenizer.convert_tokens_to_ids(["H", "i", "<end>"])] * 2
    )
    assert stop_ids(model, tokenizer) == [0, end]


def test_an_ordinary_token_ends_an_answer_only_where_somebody_says_so():
    tokenizer = spoken()
    model = markov_model(tokenizer, ["a", "b", "c", "<|endoftext|>"])
    default = type(model.config).eos_token_id  # 2, a byte of this tokenizer
    model.config.eos_token_id = model.generation_config.eos_token_id = default
    assert stop_ids(model, tokenizer) == [0]
    letter = tokenizer.convert_tokens_to_ids("c")
    model.generation_config.eos_token_id = letter
    assert generate(model, tokenizer, ["a"], **QUIET) == [
        "b"
    ]  # what ends an answer is no part of it


def test_the_stop_token_is_scored_and_the_run_on_is_not():
    tokenizer = spoken("<end>")
    model = markov_model(tokenizer, ["a", "b", "<end>"], sure=6.0)
    model.generation_config.eos_token_id = [0, tokenizer.convert_tokens_to_ids("<end>")]
    _, prompts, said = generate(model, tokenizer, ["a"] * 40, with_ids=True, **QUIET)
    ended = [ids for ids in said if ids[-1] in stop_ids(model, tokenizer)]
    assert ended and all(
        len([t for t in ids if t in stop_ids(model, tokenizer)]) <= 1 for ids in said
    )
    got = completion_logps(model, prompts, said)
    for prompt, ids, logp in zip(prompts, said, got):
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert logp == pytest.approx(
            logits.gather(-1, torch.tensor(ids)[:, None]).sum().item(), abs=1e-3
        )


SETTINGS = dict(
    repetition_penalty=1.8,
    min_p=0.4,
    no_repeat_ngram_size=1,
    top_k=2,
    top_p=0.3,
    typical_p=0.2,
    epsilon_cutoff=0.02,
    eta_cutoff=0.02,
    min_new_tokens=9,
    bad_words_ids=[[5], [7]],
    suppress_tokens=[9, 10],
    begin_suppress_tokens=[11],
    forced_bos_token_id=12,
    forced_eos_token_id=13,
    exponential_decay_length_penalty=(1, 2.0),
    sequence_bias=[[[20], 9.0]],
    renormalize_logits=True,
    num_beams=3,
    num_return_sequences=2,
    max_length=4,
    stop_strings="a",
    guidance_scale=2.0,
    temperature=7.0,
    do_sample=False,
    penalty_alpha=0.5,
    prompt_lookup_num_tokens=2,
    encoder_repetition_penalty=2.0,
    remove_invalid_values=True,
    length_penalty=3.0,
    early_stopping=True,
    num_beam_groups=1,
    diversity_penalty=0.0,
)


@pytest.mark.parametrize("temperature", [0, 1.0, 0.7])
def test_a_models_own_generation_settings_do_not_touch_samples(temperature):
    tokenizer = spoken()
    model = markov_model(tokenizer, ["a", "b", "c"], sure=2.0)
    how = dict(temperature=temperature, with_ids=True, **QUIET)
    prompts = ["a", "bca", "aaab"]
    bare = generate(model, tokenizer, prompts, **how)
    for name, value in SETTINGS.items():
        model.generation_config = theirs = GenerationConfig()
        setattr(theirs, name, value)  # unchecked, as a hand-written file may have it
        before = theirs.to_dict()
        assert generate(model, tokenizer, prompts, **how) == bare, name
        assert model.generation_config is theirs and theirs.to_dict() == before
    model.generation_config = GenerationConfig(
        **{k: SETTINGS[k] for k in ("repetition_penalty", "min_p", "no_repeat_ngram_size", "top_k")}
    )
    assert generate(model, tokenizer, prompts, **how) == bare


def test_samples_of_an_adapter_are_the_models_own_too():
    from peft import LoraConfig, get_peft_model

    tokenizer = spoken()
    model = markov_model(tokenizer, ["a", "b", "c"], sure=2.0)
    how = dict(with_ids=True, max_new_tokens=30, desc=None)
    bare = generate(model, tokenizer, ["a", "b"], **how)
    model.generation_config = theirs = GenerationConfig(
        repetition_penalty=1.8, no_repeat_ngram_size=1
    )
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert (
        generate(adapted, tokenizer, ["a", "b"], **how) == bare
        and model.generation_config is theirs
    )


def test_prompts_have_the_tokens_that_training_has(monkeypatch):
    """Empty ones, those of tokenizers that add EOS or BOS, and messages with tools and settings for
    the template."""
    from datasets import Dataset
    from tokenizers.processors import TemplateProcessing
    from slpo.tokens import tokenize_preferences

    for after in ("$A <|endoftext|>", "<b> $A", "<b> $A <|endoftext|>", "$A"):
        tokenizer = spoken(
            "<b>",
            template="{{ tools | tojson if tools }}{{ mood }}"
            "{% for m in messages %}{{ m.content }}{% endfor %}",
        )
        tokenizer.bos_token = "<b>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=after, special_tokens=[("<|endoftext|>", 0), ("<b>", 257)]
        )
        chat = [{"role": "user", "content": "Q"}]
        extra = {
            "tools": [{"type": "function", "function": {"name": "now"}}],
            "chat_template_kwargs": {"mood": "brief"},
        }
        model = markov_model(tokenizer, ["a", "b", "<|endoftext|>"])
        for prompts, extras in ((["", "ab", "<b>x"], None), ([chat], [extra]), ([chat], [{}])):
            rows = [
                {
                    "prompt": p,
                    **{
                        c: [{"role": "assistant", "content": c}] if isinstance(p, list) else c
                        for c in ("chosen", "rejected")
                    },
                    **(extras or [{}] * 9)[i],
                }
                for i, p in enumerate(prompts)
            ]
            trained = tokenize_preferences(Dataset.from_list(rows), tokenizer)["prompt_ids"]
            texts, sampled, _ = generate(
                model, tokenizer, prompts, extras=extras, with_ids=True, **QUIET
            )
            assert sampled == list(trained) and len(texts) == len(prompts)


def test_a_template_that_refuses_a_prompt_says_which():
    tokenizer = spoken(
        template="{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('no system here') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    model = markov_model(tokenizer, ["a", "b"])
    talks = [[{"role": role, "content": "a"}] for role in ("user", "system")]
    with pytest.raises(ValueError, match="prompt 1: the chat template refuses it: no system here"):
        generate(model, tokenizer, talks, **QUIET)


def test_more_new_tokens_than_the_model_has_positions_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = spoken()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=8,
            n_layer=1,
            n_head=1,
            n_positions=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    assert len(generate(model, tokenizer, ["a" * 10], max_new_tokens=6, desc=None)) == 1
    with pytest.raises(
        ValueError,
        match="max_new_tokens=7: the model has 16 positions, and the longest prompt takes 10 of "
        "them: lower max_new_tokens to at most 6",
    ):
        generate(model, tokenizer, ["a", "a" * 10], max_new_tokens=7, desc=None)
    with pytest.raises(ValueError, match="leave such prompts out"):
        generate(model, tokenizer, ["a" * 30], max_new_tokens=1, desc=None)


def test_settings_are_given_back_when_generation_fails(monkeypatch):
    tokenizer = spoken()
    model = markov_model(tokenizer, ["a", "b"]).train()
    theirs = model.generation_config

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError):
        generate(model, tokenizer, ["a"], **QUIET)
    assert model.generation_config is theirs and model.training


def test_slpo_eval_ends_turns_too(tmp_path, monkeypatch):
    tokenizer = spoken("<start>", "<end>", template=CHAT)
    monkeypatch.chdir(tmp_path)
    model = markov_model(tokenizer, ["<start>", "H", "i", "<end>", "Ċ"])
    model.generation_config = GenerationConfig(
        eos_token_id=[0, tokenizer.convert_tokens_to_ids("<end>")], repetition_penalty=1.3
    )
    model.save_pretrained("chat"), tokenizer.save_pretrained("chat")
    row = {
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": [{"role": "assistant", "content": "Hi"}],
        "rejected": [{"role": "assistant", "content": "No"}],
    }
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    assert (
        eval_main(
            [
                "--model_name_or_path",
                "chat",
                "--dataset_name",
                "rows.jsonl",
                "--max_new_tokens",
                "20",
                "--output_dir",
                "out",
            ]
        )
        == 0
    )
    assert json.loads(Path("out/answers.jsonl").read_text())["policy"] == "Hi"


# -- intervals


def all_at_once(values, clusters=None, confidence=0.95, resamples=10_000, seed=0):
    "The interval as it was computed when all resamples were held in memory."
    values = np.asarray(values, dtype=float)
    _, label = np.unique(
        np.arange(len(values)) if clusters is None else np.asarray(clusters), return_inverse=True
    )
    total, count = np.bincount(label, values), np.bincount(label)
    weights = np.random.default_rng(seed).multinomial(
        len(count), np.full(len(count), 1 / len(count)), size=resamples
    )
    low, high = np.quantile(
        weights @ total / (weights @ count), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return values.mean().item(), low.item(), high.item()


@pytest.mark.parametrize("n", [1, 2, 7, 700])
def test_intervals_are_the_same_to_the_last_bit_however_they_are_computed(n):
    rng = np.random.default_rng(n)
    values, clusters = rng.normal(size=n), [f"prompt {i}" for i in rng.integers(0, n // 3 + 1, n)]
    columns = {"a": values, "b": values > 0}
    for labels in (None, clusters, np.array([len(c) for c in clusters])):
        together = bootstrap_means(columns, labels)
        for name, column in columns.items():
            assert together[name] == bootstrap_mean(column, labels) == all_at_once(column, labels)
    assert bootstrap_mean(values, clusters, 0.5, 130, seed=3) == all_at_once(
        values, clusters, 0.5, 130, seed=3
    )


def test_an_interval_of_many_rows_takes_little_memory():
    values = np.arange(20_000)
    clusters = [f"{'a long prompt ' * 100} {i}" for i in range(len(values))]
    tracemalloc.start()
    try:
        bootstrap_mean(
            values, clusters, resamples=200
        )  # at once: 32 MB of weights, and 112 MB of texts
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
