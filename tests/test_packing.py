"""Packed, prefix-shared rows must give what separate rows give: log-probabilities and gradients,
for every architecture that takes them."""

import copy
import math
import random

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from slpo.packing import PreferenceCollator
from slpo.tokens import _cut
from slpo.packing import batch_logps, _why_not_in_chunks, _why_not_packed

COMMON = dict(
    vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
)
GROUPED = dict(num_key_value_heads=2)
PACKED = {
    "GPTNeoX": {},
    "Llama": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": dict(GROUPED, head_dim=8),
    "Gemma": dict(GROUPED, head_dim=8),
    "Gemma3Text": dict(GROUPED, head_dim=8, query_pre_attn_scalar=8),
    "GPT2": dict(n_embd=32, n_layer=3, n_head=4),
    "Falcon": {},
    "Mistral": GROUPED,
    "Phi3": dict(GROUPED, pad_token_id=0),
    "Cohere": dict(GROUPED, logit_scale=0.5),
    "Olmo2": GROUPED,
    "Granite": dict(GROUPED, logits_scaling=8.0),
    "OPT": dict(ffn_dim=64, word_embed_proj_dim=32),
}
PADDED = {
    "Gemma2": dict(GROUPED, head_dim=8),
    "Bloom": {},
    "GPTJ": dict(n_embd=32, n_layer=3, n_head=4, rotary_dim=4),
    "Mamba": {},
}


def tiny(name, settings, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **settings})
    config.initializer_range = 0.2  # large enough that a wrong context shows
    return AutoModelForCausalLM.from_config(config, **kwargs).to(dtype).eval()


def groups(n, K, seed=0):
    rng = random.Random(seed)

    def tokens(low, high):
        return [rng.randrange(101) for _ in range(rng.randint(low, high))]

    return [
        dict(
            prompt_ids=tokens(1, 9),
            completion_ids=[tokens(1, 7) for _ in range(K)],
            ranks=[0] + [1] * (K - 1),
            row=i,
        )
        for i in range(n)
    ]


@pytest.fixture
def double_throughout(monkeypatch):
    """Some layers compute in float32 whatever the model's precision; here that would hide a
    difference, or look like one."""
    to, in_float = torch.Tensor.to, torch.Tensor.float

    def wide(x):
        return x.dtype == torch.float64

    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda x, *a, **k: x if wide(x) and torch.float32 in a else to(x, *a, **k),
    )
    monkeypatch.setattr(
        torch.Tensor,
        "float",
        lambda x: x if wide(x) else in_float(x) if x.is_floating_point() else x.double(),
    )


def one_by_one(model, groups):
    """(N,) log-probabilities, each completion behind its prompt in a row of its own, with nothing
    but the model."""

    def logp(prompt, completion):
        ids = torch.tensor([prompt + completion], device=model.device)
        logits = model(ids, use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[-len(completion) :].sum()

    return torch.stack([logp(g["prompt_ids"], c) for g in groups for c in g["completion_ids"]])


def compare(model, groups, row_length, budget_mb=math.inf):
    "Largest difference of log-probabilities, and of gradients relative to the parameter's largest."
    parameters = [p for p in model.parameters() if p.requires_grad]

    def both(logps):
        weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
        return logps.detach(), torch.autograd.grad(
            (weights * logps).sum(), parameters, allow_unused=True
        )

    want, want_grads = both(one_by_one(model, groups))
    batch = PreferenceCollator(0, row_length=row_length)(groups)
    got, grads = both(batch_logps(model, batch, budget_mb))
    largest = max(g.abs().max() for g in want_grads if g is not None)
    return (got - want).abs().max().item(), max(
        ((a - b).abs().max() / largest).item() for a, b in zip(grads, want_grads) if b is not None
    )


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_separate_rows(name, K, double_throughout):
    model = tiny(name, PACKED[name])
    assert _why_not_packed(model) is None
    for row_length in (1, 60, 1024):  # a row for each group, a few groups in each, all in one
        difference, of_gradients = compare(model, groups(6, K), row_length)
        assert difference < 1e-10 and of_gradients < 1e-10, (row_length, difference, of_gradients)
    assert _why_not_in_chunks(model) is None
    assert (
        max(compare(model, groups(6, K), 60, budget_mb=0.002)) < 1e-10
    )  # the head, five rows of logits at a time


def test_with_truncation(double_throughout):
    cut = [
        {
            **g,
            **dict(
                zip(
                    ("prompt_ids", "completion_ids"),
                    _cut(g["prompt_ids"], g["completion_ids"], 8, 4),
                )
            ),
        }
        for g in groups(8, 2)
    ]
    assert any(len(c["prompt_ids"]) < len(g["prompt_ids"]) for c, g in zip(cut, groups(8, 2)))
    cut = [c for c in cut if all(c["completion_ids"])]
    assert len(cut) > 4 and max(compare(tiny("GPTNeoX", {}), cut, 40)) < 1e-10


@pytest.mark.parametrize("name", ["GPTNeoX", "Llama"])
def test_with_gradient_checkpointing(name, double_throughout):
    model, batch = tiny(name, PACKED[name]), PreferenceCollator(0, row_length=40)(groups(5, 2))

    def grads(model):
        return torch.autograd.grad(
            batch_logps(model.train(), batch).sum(), list(model.parameters())
        )

    plain = grads(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for a, b in zip(grads(model), plain):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_with_adapters(double_throughout):
    from peft import LoraConfig, get_peft_model

    model = (
        get_peft_model(
            tiny("Llama", GROUPED),
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        )
        .double()
        .eval()
    )
    assert _why_not_packed(model) is None and max(compare(model, groups(5, 2), 40)) < 1e-10
    assert (
        _why_not_in_chunks(model) is None
        and max(compare(model, groups(5, 2), 40, budget_mb=0.002)) < 1e-10
    )


@pytest.mark.parametrize("name", ["GPTNeoX", "Llama", "GPT2"])
def test_bfloat16_stays_within_its_own_noise(name):
    """Packed rows are no further from the float64 result than separate rows are, up to a factor
    that luck explains."""
    wide = tiny(name, PACKED[name])
    narrow = copy.deepcopy(wide).bfloat16()
    wide = copy.deepcopy(narrow).double()
    many = groups(40, 2)
    with torch.no_grad():
        exact, separate = one_by_one(wide, many), one_by_one(narrow, many)
        packed = batch_logps(narrow, PreferenceCollator(0, row_length=200)(many))
    assert (packed - exact).square().mean() < 2 * (separate - exact).square().mean()


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_packed_says_why(name, double_throughout):
    "Or it can be, in another version of transformers (GPT-J from 5.24 on), and is then exact."
    why = _why_not_packed(tiny(name, PADDED[name], torch.float32))
    if why is None:
        assert compare(tiny(name, PADDED[name]), groups(6, 3), 40)[0] < 1e-9
    else:
        assert isinstance(why, str) and why


def test_other_attention_and_leaks_are_seen(monkeypatch):
    assert "'eager'" in _why_not_packed(tiny("Llama", GROUPED, attn_implementation="eager"))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny("Llama", GROUPED, dtype)
        assert _why_not_packed(model) is None
        with monkeypatch.context() as m:  # plain causal: everything before is seen
            m.setattr(
                "slpo.packing.packed_mask",
                lambda group, part: (
                    torch.ones(group.shape[1], group.shape[1]).tril().bool()[None, None]
                ),
            )
            assert "leak" in _why_not_packed(model)
        with monkeypatch.context() as m:  # positions that run on
            forward = model.forward
            m.setattr(
                model,
                "forward",
                lambda **k: forward(**{key: v for key, v in k.items() if key != "position_ids"}),
            )
            assert dtype == torch.bfloat16 or "differ" in _why_not_packed(model)


def test_a_head_that_is_not_plain_keeps_its_work(monkeypatch):
    from peft import LoraConfig, get_peft_model

    model = (
        get_peft_model(
            tiny("Llama", GROUPED),
            LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False),
        )
        .double()
        .eval()
    )
    assert _why_not_packed(model) is None and "head is a" in _why_not_in_chunks(model)
    model = tiny("Granite", PACKED["Granite"])
    monkeypatch.setattr("slpo.packing._after_head", lambda config: {})
    assert "unknown" in _why_not_in_chunks(model)


@pytest.mark.parametrize("name", ["GPTNeoX", "Llama"])
@torch.compiler.set_stance("force_eager")
def test_flex_attention_sees_what_sdpa_sees(name):
    """Forward only, and not compiled: PyTorch has no backward pass of flex_attention on a CPU,
    and compiling takes a compiler."""
    settings = {**PACKED[name], "hidden_size": 64}
    flex, sdpa = (
        tiny(name, settings, torch.float32, attn_implementation=a)
        for a in ("flex_attention", "sdpa")
    )
    assert _why_not_packed(flex) is None
    with torch.no_grad():
        batch = PreferenceCollator(0, pad_to_multiple_of=128, row_length=60)(groups(6, 2))
        torch.testing.assert_close(batch_logps(flex, batch), one_by_one(sdpa, groups(6, 2)))
