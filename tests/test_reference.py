"""The reference: one meaning under adapters, kept numbers of no other one, training that starts
there."""

import json
import logging
import math
import os
import subprocess

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import slpo.reference
from slpo import SLPOConfig, SLPOTrainer
from slpo.tokens import train_tokenizer

ROWS = Dataset.from_list(
    [
        dict(prompt=f"Question {i}?", chosen=f" Yes, {i}.", rejected=f" No, not {i}!")
        for i in range(12)
    ]
)
TOKENIZER = train_tokenizer(
    [r["prompt"] + r["chosen"] + r["rejected"] for r in ROWS], vocab_size=280
)
SHAPE = dict(
    vocab_size=280,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=48,
    initializer_range=0.2,
)


def tiny(seed=0, **config):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | config))


def make(folder, model=None, trainer=SLPOTrainer, rows=ROWS, eval_dataset=None, **settings):
    peft_config, ref_model, seed = (
        settings.pop(k, v)
        for k, v in (("peft_config", None), ("ref_model", None), ("adapter_seed", 0))
    )
    settings = (
        dict(
            output_dir=str(folder / "run"),
            ref_cache_dir=str(folder / "cache"),
            per_device_train_batch_size=12,
            max_steps=1,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        | settings
    )
    model = tiny() if model is None else model
    torch.manual_seed(seed)
    made = trainer(
        model,
        ref_model=ref_model,
        args=SLPOConfig(**settings),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def lora(**settings):
    from peft import LoraConfig

    return LoraConfig(**dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]) | settings)


def prefix():
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")


def wrapped(strength=8, **settings):
    "A model with an adapter that was trained before."
    from peft import get_peft_model

    torch.manual_seed(1)
    return get_peft_model(tiny(), lora(init_lora_weights=False, lora_alpha=strength, **settings))


def numbers(trainer) -> torch.Tensor:
    return torch.tensor(trainer.train_dataset["ref_logps"])


@pytest.fixture
def passes(monkeypatch):
    "What the passes over data sets were called."
    seen, group_logps = [], SLPOTrainer.group_logps

    def counted(self, dataset, model=None, desc="log-probs"):
        seen.append(desc)
        return group_logps(self, dataset, model, desc)

    monkeypatch.setattr(SLPOTrainer, "group_logps", counted)
    return seen


STARTS = {
    "new": lambda: dict(peft_config=lora()),
    "new, at random": lambda: dict(peft_config=lora(init_lora_weights=False)),
    "pissa": lambda: dict(peft_config=lora(init_lora_weights="pissa")),
    "olora": lambda: dict(peft_config=lora(init_lora_weights="olora")),
    "dora": lambda: dict(peft_config=lora(use_dora=True)),
    "dropout": lambda: dict(peft_config=lora(init_lora_weights=False, lora_dropout=0.3)),
    "embeddings trained": lambda: dict(
        peft_config=lora(init_lora_weights=False, modules_to_save=["lm_head"])
    ),
    "trained before": lambda: dict(model=wrapped()),
    "prefix": lambda: dict(peft_config=prefix()),
}


@pytest.mark.parametrize("start", STARTS)
def test_precomputed_or_not_the_reference_is_the_policy_at_the_start(tmp_path, start):
    "Both ways agree at each of three steps, which move the policy and leave the reference."
    history, references = {}, {}
    for precompute in (True, False):
        trainer = make(
            tmp_path / str(precompute),
            precompute_ref_log_probs=precompute,
            max_steps=3,
            **STARTS[start](),
        )
        references[precompute] = (
            trainer._with_reference(trainer.train_dataset) if precompute else None
        )
        trainer.train()
        history[precompute] = [h for h in trainer.state.log_history if "logratios/chosen" in h][:3]
        with trainer._reference() as model:
            after = torch.tensor(trainer.group_logps(trainer.train_dataset, model))
        if precompute:
            first = numbers(trainer)
        torch.testing.assert_close(after, first, rtol=1e-4, atol=1e-4)
    for one, other in zip(*history.values()):
        for key in ("loss", "grad_norm", "logratios/chosen", "rewards/margins"):
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-3), key
    assert (
        abs(history[True][0]["logratios/chosen"]) < 1e-3 < abs(history[True][2]["logratios/chosen"])
    )


def test_after_a_resume_the_reference_is_the_one_of_before(tmp_path):
    "In each step, from the weights that the adapter started with, not from the checkpoint's."

    def run(folder, steps):
        trainer = make(
            folder,
            peft_config=lora(init_lora_weights=False),
            precompute_ref_log_probs=False,
            max_steps=steps,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(resume_from_checkpoint=True)
        return trainer

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "broken", 2)
    resumed = run(tmp_path / "broken", 4)
    ends = [t.state.log_history[-2] for t in (whole, resumed)]
    for key in ("loss", "logratios/chosen", "logps/chosen"):
        assert ends[1][key] == ends[0][key], key


def test_bf16_sees_the_adapter_of_the_start(tmp_path):
    "Autocast keeps 16-bit copies of weights, which must not be those of the policy."
    one, other = (
        make(tmp_path / str(p), model=wrapped(), bf16=True, precompute_ref_log_probs=p, max_steps=3)
        for p in (True, False)
    )
    one.train()
    other.train()
    for a, b in zip(one.state.log_history[:3], other.state.log_history[:3]):
        assert b["logratios/chosen"] == pytest.approx(a["logratios/chosen"], abs=0.3)
    assert abs(one.state.log_history[2]["logratios/chosen"]) > 1


def stronger(model):
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= 3
    return model


def merged(model):
    model.merge_adapter()
    return model


def second_adapter():
    model = wrapped()
    model.add_adapter("other", lora(init_lora_weights=False))
    model.set_adapter("other")
    return model


def other_rope():
    return tiny(rope_parameters={"rope_type": "default", "rope_theta": 50.0})


def nudged_buffer():
    model = tiny()
    model.model.rotary_emb.inv_freq[3] *= 2  # lies in no checkpoint
    return model


CHANGES = {
    "another strength": lambda: (
        dict(peft_config=lora(init_lora_weights=False)),
        dict(peft_config=lora(init_lora_weights=False, lora_alpha=16)),
    ),
    "another seed": lambda: (
        dict(peft_config=lora(init_lora_weights=False)),
        dict(peft_config=lora(init_lora_weights=False), adapter_seed=1),
    ),
    "another strength, wrapped": lambda: (dict(model=wrapped()), dict(model=wrapped(16))),
    "strength set by hand": lambda: (dict(model=wrapped()), dict(model=stronger(wrapped()))),
    "rank-stabilised": lambda: (dict(model=wrapped()), dict(model=wrapped(use_rslora=True))),
    "another adapter on": lambda: (dict(model=wrapped()), dict(model=second_adapter())),
    "base rewritten": lambda: (
        dict(peft_config=lora()),
        dict(peft_config=lora(init_lora_weights="pissa")),
    ),
    "rope": lambda: (dict(), dict(model=other_rope())),
    "a buffer": lambda: (dict(), dict(model=nudged_buffer())),
    "bf16": lambda: (dict(), dict(bf16=True)),
    "weights in bf16": lambda: (dict(), dict(model=tiny().bfloat16())),
    "padded": lambda: (dict(), dict(packing=False)),
    "the model's own head": lambda: (dict(bf16=True), dict(bf16=True, head_budget_mb=math.inf)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_numbers_is_in_the_key(tmp_path, passes, change):
    "The second trainer has the numbers that it has without a cache."
    before, after = CHANGES[change]()
    make(tmp_path, **before)
    got, wanted = make(tmp_path, **after), make(tmp_path, ref_cache_dir="", **after)
    assert numbers(got).equal(numbers(wanted)) and len(passes) == 3


@pytest.mark.parametrize(
    "again",
    [
        dict(adapter_seed=1),
        dict(peft_config=lora(lora_alpha=32)),
        dict(peft_config=lora(r=2, target_modules=["k_proj"])),
        dict(peft_config=None),
    ],
    ids=["another seed", "another strength", "another size and place", "no adapter"],
)
def test_an_adapter_that_adds_nothing_yet_is_not(tmp_path, passes, again):
    make(tmp_path, peft_config=lora())
    make(tmp_path, **dict(peft_config=lora()) | again)
    assert len(passes) == 1


def test_the_key_is_the_same_in_every_process():
    "PEFT's settings hold a set of names, which is in another order in each process."
    assert json.loads(slpo.reference._canonical([{"target_modules": set("hgabfe"), "n": 1}])) == [
        {"target_modules": list("abefgh"), "n": 1}
    ]


class Packing4Bit(torch.nn.Linear):
    """As bitsandbytes' Linear4bit on a CPU: a pass without gradients repacks it, and ends its
    gradients."""

    support_avx512bf16_for_cpu, packed = True, False

    def forward(self, x):
        if self.support_avx512bf16_for_cpu and not self.training and not x.requires_grad:
            self.packed = True
        return super().forward(x.detach() if self.packed else x)

    def _save_to_state_dict(self, *args):
        self.packed = False
        super()._save_to_state_dict(*args)


def four_bit():
    model = tiny(num_hidden_layers=2)
    for layer in model.model.layers:
        for block, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            old = getattr(block, name)
            new = Packing4Bit(old.in_features, old.out_features, bias=False)
            new.load_state_dict(old.state_dict())
            setattr(block, name, new)
    return model


@pytest.mark.parametrize(
    "settings, used_before",
    [
        ({}, False),
        ({}, True),
        (dict(precompute_ref_log_probs=False), False),
        (dict(eval_strategy="steps", eval_steps=1, eval_on_start=True), False),
    ],
    ids=["precomputed", "used before", "each step", "evaluated"],
)
def test_our_passes_leave_four_bit_layers_their_gradients(tmp_path, settings, used_before):
    "Adapters get the gradients of a model of ordinary layers; in a model that has generated, too."
    norms = []
    for model in (tiny(num_hidden_layers=2), four_bit()):
        if used_before:
            with torch.no_grad():
                model.eval()(torch.tensor([[1, 2, 3]]))
        trainer = make(
            tmp_path / type(model.model.layers[0].self_attn.o_proj).__name__,
            model,
            peft_config=lora(),
            max_steps=3,
            eval_dataset=ROWS if "eval_strategy" in settings else None,
            **settings,
        )
        trainer.train()
        norms.append([float(h["grad_norm"]) for h in trainer.state.log_history if "grad_norm" in h])
    assert norms[0] == norms[1] and min(norms[1]) > 0


def pack(model, how):
    "Linear weights of a model as another kind of tensor."
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
            module.weight = torch.nn.Parameter(how(module.weight.detach()), requires_grad=False)
    return model


class Quantised(torch.Tensor):
    "As torchao's: a shape and a dtype, made of two tensors with bytes, and no view of its own."

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype)

    def __init__(self, data, scale):
        self.data_, self.scale_ = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale_"], None

    def dequantize(self):
        return self.data_.to(self.scale_.dtype) * self.scale_

    @classmethod
    def of(cls, x):
        scale = x.abs().amax(-1, keepdim=True) / 127
        return cls((x / scale).round().to(torch.int8), scale)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].data_, args[0].scale_)
        if function in (
            torch.ops.aten.view.dtype,
            torch.ops.aten.flatten.using_ints,
            torch.ops.aten.view.default,
        ):
            raise NotImplementedError(f"Quantised: no {function}")
        return function(
            *(x.dequantize() if isinstance(x, cls) else x for x in args), **(kwargs or {})
        )


class Opaque(Quantised):
    "One that does not say what it is made of."

    __tensor_flatten__ = property(lambda self: (_ for _ in ()).throw(AttributeError("no parts")))


def test_quantised_weights_are_read_as_what_they_are_made_of(tmp_path, passes):
    one, other = (
        make(tmp_path, pack(tiny(seed), Quantised.of), peft_config=lora()) for seed in (0, 1)
    )
    assert numbers(make(tmp_path, pack(tiny(), Quantised.of), peft_config=lora())).equal(
        numbers(one)
    )
    assert len(passes) == 2 and not numbers(one).equal(numbers(other))
    one.train()


def test_weights_without_bytes_are_not_cached_and_a_line_says_so(tmp_path, passes, caplog):
    with caplog.at_level(logging.WARNING, logger="slpo"):
        for _ in range(2):
            make(tmp_path, pack(tiny(), Opaque.of), peft_config=lora()).train()
    assert len(passes) == 2 and not list(tmp_path.glob("cache/*"))
    assert [r.getMessage() for r in caplog.records if "not kept" in r.getMessage()] == [
        "reference log-probabilities are not kept: the weights cannot be read as bytes "
        "(NotImplementedError: Quantised: no aten.view.default)"
    ] * 2


BIG = Dataset.from_list([ROWS[i % 12] for i in range(400)])


def unwritable(kind, folder):
    "A folder that cannot be written, and the bytes that a file may have."
    if kind == "a file":
        (folder / "cache").write_text("in the way")
    if kind == "below a file":
        (folder / "file").write_text("")
        return folder / "file" / "cache"
    if kind == "read-only":
        (folder / "cache").mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder / "cache"],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("only root may mount a folder that is read-only for root")
    return folder / "cache"


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_a_line_before_the_pass(
    tmp_path, passes, caplog, kind, monkeypatch
):
    folder = unwritable(kind, tmp_path)
    computed, said = SLPOTrainer.group_logps, []
    monkeypatch.setattr(
        SLPOTrainer,
        "group_logps",
        lambda self, *args: said.append(len(caplog.records)) or computed(self, *args),
    )
    try:
        with caplog.at_level(logging.WARNING, logger="slpo"):
            trainer = make(
                tmp_path,
                eval_dataset={"one": ROWS.select(range(5)), "two": ROWS.select(range(7))},
                ref_cache_dir=str(folder),
            )
    finally:
        if kind == "read-only":
            subprocess.run(["umount", folder], check=True)
    lines = [r.getMessage() for r in caplog.records]
    assert (
        len(lines) == 1
        and str(folder) in lines[0]
        and "--ref_cache_dir" in lines[0]
        and said == [1, 1, 1]
    )
    assert numbers(trainer).equal(numbers(make(tmp_path, ref_cache_dir="")))
    trainer.train()


@pytest.mark.parametrize("full", ["before the pass", "during the pass"])
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, caplog, monkeypatch, full):
    "A limit on the size of files fails as a full disk does. No part of a file is left behind."
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))

    write = slpo.reference._write_kept

    def write_then_fill(*args):
        write(*args)
        fill()

    wanted = numbers(make(tmp_path, rows=BIG, ref_cache_dir=""))
    if full == "during the pass":
        monkeypatch.setattr(slpo.reference, "_write_kept", write_then_fill)
    train, evals = BIG, ROWS  # the second would find room
    try:
        if full == "before the pass":
            fill()
        with caplog.at_level(logging.WARNING, logger="slpo"):
            trainer = make(tmp_path, rows=train, eval_dataset=evals)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len([r for r in caplog.records if "cannot be kept" in r.getMessage()]) == 1 and numbers(
        trainer
    ).equal(wanted)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"PK\x03\x04 not a zip", b"text", "shape", "type", "nan", "unreadable"],
    ids=str,
)
def test_a_file_that_is_no_reference_is_replaced_and_a_line_says_so(tmp_path, caplog, content):
    wanted = numbers(make(tmp_path))
    (file,) = (tmp_path / "cache").glob("*.npy")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "unreadable":
        file.unlink()
        os.symlink(file, file)  # a loop
    else:
        np.save(
            file,
            {
                "shape": np.zeros(3),
                "type": np.array(["no numbers"] * 24),
                "nan": np.full(24, np.nan),
            }[content],
        )
    with caplog.at_level(logging.WARNING, logger="slpo"):
        got = numbers(make(tmp_path))
    assert [
        str(file) in r.getMessage() and "computed anew" in r.getMessage() for r in caplog.records
    ] == [True] and got.equal(wanted)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="slpo"):
        assert numbers(make(tmp_path)).equal(wanted) and not caplog.records


def test_what_was_computed_is_kept_whatever_comes_after(tmp_path, passes, monkeypatch):
    "A pass that fails does not cost the numbers of the data sets before it."
    counted = SLPOTrainer.group_logps

    def fails(self, dataset, *args):
        if len(dataset) == 7:
            raise KeyboardInterrupt
        return counted(self, dataset, *args)

    sets = {"good": ROWS.select(range(5)), "bad": ROWS.select(range(7))}
    monkeypatch.setattr(SLPOTrainer, "group_logps", fails)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, eval_dataset=sets)
    assert len(passes) == 2 and len(list((tmp_path / "cache").glob("*"))) == 2
    monkeypatch.setattr(SLPOTrainer, "group_logps", counted)
    make(tmp_path, eval_dataset=sets)
    assert len(passes) == 3


class Noise(torch.nn.Module):
    "Random in training, and no dropout."

    def forward(self, x):
        return x + 0.3 * torch.randn_like(x) if self.training else x


def with_layer(module):
    model = tiny()
    model.model.norm = torch.nn.Sequential(model.model.norm, module)
    return model


def said(trainer, caplog) -> list:
    with caplog.at_level(logging.WARNING, logger="slpo"):
        trainer.train()
    return [r.getMessage() for r in caplog.records if "training is random" in r.getMessage()]


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        dict(neftune_noise_alpha=50.0),
        dict(disable_dropout=False, model=tiny(attention_dropout=0.5)),
    ],
    ids=["NEFTune", "dropout"],
)
def test_noise_that_was_asked_for_is_no_alarm(tmp_path, caplog, settings, precompute):
    assert said(make(tmp_path, precompute_ref_log_probs=precompute, **settings), caplog) == []


def test_noise_that_was_not_is_a_line_that_names_it(tmp_path, caplog):
    (line,) = said(
        make(
            tmp_path,
            with_layer(Noise()),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
        ),
        caplog,
    )
    assert "a layer that draws random numbers" in line and "nats" in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(disable_dropout=False),
        dict(neftune_noise_alpha=50.0),
        dict(peft_config=lora(init_lora_weights=False)),
    ],
    ids=["plain", "dropout on", "NEFTune", "adapter"],
)
def test_a_start_that_is_not_the_reference_is_refused(tmp_path, settings):
    "With noise in training, too; the knob takes the responsibility."
    for check in (True, False):
        trainer = make(tmp_path, check_start=check, **settings)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        with torch.no_grad():
            next(
                p
                for n, p in trainer.model.named_parameters()
                if "layers.0" in n and p.requires_grad
            ).mul_(-3)
        if not check:
            trainer.train()
            continue
        with pytest.raises(
            ValueError,
            match="before the first step .* nats, in rows .*Were weights loaded.*check_start=False",
        ):
            trainer.train()
        assert (
            sum(not a.equal(b) for a, b in zip(before, trainer.model.parameters())) == 1
        )  # no step was taken


def test_rows_that_come_later(tmp_path, passes):
    "Known at the start and where a reference is kept; refused where it is gone."
    from slpo.tokens import tokenize_preferences

    later = tokenize_preferences(ROWS.select([3, 1]), TOKENIZER)
    online, adapter, trainer = (
        make(tmp_path, precompute_ref_log_probs=False),
        make(tmp_path, model=wrapped()),
        make(tmp_path),
    )
    wanted = torch.tensor(trainer.train_dataset["ref_logps"])[[3, 1]]
    torch.testing.assert_close(
        torch.tensor(trainer._with_reference(later)["ref_logps"]), wanted, rtol=1e-5, atol=1e-5
    )
    for t in (online, adapter, trainer):
        t.train()
    torch.testing.assert_close(
        torch.tensor(adapter._with_reference(later)["ref_logps"]),
        numbers(adapter)[[3, 1]],
        rtol=1e-5,
        atol=1e-5,
    )
    assert (
        online._with_reference(later) is later
        and trainer._with_reference(trainer.train_dataset) is trainer.train_dataset
    )
    with pytest.raises(
        ValueError,
        match="no reference is kept .*eval_dataset.*ref_logps.*precompute_ref_log_probs=False",
    ):
        trainer._with_reference(later)
