"""Models: what a name may stand for, what is looked at before anything is loaded, and what a
model must be to be trained."""

import json
import re
import shutil

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM

from slpo import SLPOConfig, SLPOTrainer
from slpo.tokens import train_tokenizer
from slpo.models import (
    check_model_files,
    check_tokenizer_files,
    load_model,
    load_tokenizer,
    torch_dtype,
)
from slpo.packing import model_positions

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

WORDS = train_tokenizer(["Is 3 more than 2? yes no"] * 9, vocab_size=270)
ROWS = Dataset.from_list(
    [
        dict(prompt=f"Is {i} more than 7?", chosen=f" {i} yes", rejected=f" no {i}")
        for i in range(12)
    ]
)
SMALL = dict(
    vocab_size=280,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)
SIZES = {
    "GPT2": dict(n_embd=32, n_layer=2, n_head=4),
    "OPT": dict(ffn_dim=64, word_embed_proj_dim=32),
    "XGLM": dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64),
}


def tiny(kind="Llama", cls=None, seed=0, **more):
    """A causal language model of a few thousand weights, of a configuration's defaults but for
    its size."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **SIZES.get(kind, {}), **more})
    return cls(config) if cls else AutoModelForCausalLM.from_config(config)


def settings(folder, **more):
    return SLPOConfig(
        **dict(
            output_dir=str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            max_steps=2,
            ref_cache_dir="",
            save_strategy="no",
            per_device_train_batch_size=4,
            logging_steps=1,
        )
        | more
    )


def trainer(
    model,
    folder,
    rows=ROWS,
    words=WORDS,
    ref_model=None,
    peft_config=None,
    eval_dataset=None,
    **more,
):
    t = SLPOTrainer(
        model,
        ref_model,
        args=settings(folder, **more),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=words,
        peft_config=peft_config,
    )
    t.remove_callback(transformers.PrinterCallback)
    return t


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A folder with a model and its tokenizer."
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny().save_pretrained(folder)
    WORDS.save_pretrained(folder)
    return folder


# ------------------------------------------------------------ names and folders
def take(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def only_checkpoints(folder):
    inside = folder / "checkpoint-8"
    inside.mkdir()
    for path in list(folder.iterdir()):
        if path != inside:
            shutil.move(path, inside)


def adapter(folder):
    take("config.json", "model.safetensors")(folder)
    (folder / "adapter_config.json").write_text(
        json.dumps(dict(base_model_name_or_path="some/base", peft_type="LORA"))
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")


def cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def a_shard_is_missing(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "weight_map": {
                    "a": "model-00001-of-00002.safetensors",
                    "b": "model-00002-of-00002.safetensors",
                }
            }
        )
    )
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456789\n"

# what happened to the folder, and what the message must say beside the folder's name
MODELS = {
    "nothing in it": (
        lambda folder: [p.unlink() for p in folder.iterdir()],
        ["no config.json", "it is empty"],
    ),
    "no configuration": (
        take("config.json"),
        ["no config.json", "it holds generation_config.json, model.safetensors"],
    ),
    "a configuration that is not JSON": (write("config.json", "{"), ["config.json is not JSON"]),
    "models in sub-folders": (
        only_checkpoints,
        ["no config.json", "models are in", "checkpoint-8"],
    ),
    "an adapter": (adapter, ["is an adapter of some/base", "merge_and_unload"]),
    "weights that are a pointer": (
        write("model.safetensors", POINTER),
        ["model.safetensors is a Git LFS pointer", "git lfs pull"],
    ),
    "no weights": (take("model.safetensors"), ["no weights", "it holds config.json"]),
    "weights of an adapter alone": (
        lambda folder: [
            take("model.safetensors")(folder),
            write("adapter_config.json", "{}")(folder),
            write("adapter_model.safetensors", "")(folder),
        ],
        ["no weights", "It is an adapter beside"],
    ),
    "what a trainer keeps, without weights": (
        lambda folder: [
            take("model.safetensors")(folder),
            write("training_args.bin", "")(folder),
            write("optimizer.bin", "")(folder),
        ],
        ["no weights"],
    ),
    "weights cut short": (cut_short, ["model.safetensors is broken", "bytes"]),
    "a shard missing": (
        a_shard_is_missing,
        ["1 of the 2 files of weights that its index names", "model-00002-of-00002.safetensors"],
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_folder_that_is_not_whole(case, saved, tmp_path, monkeypatch):
    change, wanted = MODELS[case]
    folder = shutil.copytree(saved, tmp_path / "mine")
    change(folder)
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *a, **k: pytest.fail("loaded before it was looked at"),
    )
    for call in (
        lambda: check_model_files(folder),
        lambda: load_model(str(folder)),
        lambda: trainer(str(folder), tmp_path / "out"),
        lambda: trainer(tiny(), tmp_path / "out", ref_model=str(folder)),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            call()
        for words in (str(folder), *wanted):
            assert words in str(e.value), str(e.value)


def test_of_a_clone_only_what_is_read_must_be_there(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    for name in (
        "pytorch_model.bin",
        "flax_model.msgpack",
        "figure.png",
        "consolidated.safetensors",
    ):
        write(name, POINTER)(folder)
    load_model(folder)
    load_tokenizer(folder)
    write("tokenizer.json", POINTER)(folder)
    for call in (
        lambda: load_tokenizer(folder),
        lambda: trainer(str(folder), tmp_path / "out", words=None),
    ):
        with pytest.raises(
            ValueError, match="mine: tokenizer.json is a Git LFS pointer.*git lfs pull"
        ):
            call()
    load_model(folder)


@pytest.mark.parametrize(
    "name,wanted",
    [
        ("/nowhere/llama", "no such folder"),
        ("./mine", "no such folder"),
        ("~/no-such-model", "no such folder"),
        ("runs/mine/sft", "no such folder"),
        ("mine/", "no such folder"),
        ("a model", "no such folder"),
        ("runs/stf", "; did you mean runs/sft?"),
        ("stf", "neither a folder here"),
        ("./runs/stf", "no such folder; did you mean runs/sft?"),
        ("", "expected a folder or a hub id"),
    ],
)
def test_a_name_that_is_nowhere(name, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    for call in (load_model, check_model_files):
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            call(name, what="--model_name_or_path")
        assert wanted in str(e.value) and "--model_name_or_path" in str(e.value), str(e.value)
    if name in ("stf", "runs/stf"):
        assert "neither a folder here nor found on the" in str(
            e.value
        ) and "Hugging Face hub" in str(e.value)


def test_weights_of_other_shapes_and_a_tokenizer_that_lacks_parts(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    write("config.json", json.dumps({**config, "intermediate_size": 48}))(folder)
    with pytest.raises(ValueError) as e:
        load_model(folder, what="--baseline")
    assert (
        "--baseline" in str(e.value)
        and "(64, 32) in the files and (48, 32) by config.json" in str(e.value)
        and "ignore_mismatched" not in str(e.value)
    )
    for name, text, words in (
        ("tokenizer.json", "{}", "tokenizer.json has no 'model' and no 'added_tokens' (2 bytes)"),
        ("tokenizer.json", "[1]", "tokenizer.json has no 'model'"),
        ("tokenizer.json", '{"a": ', "tokenizer.json is not JSON"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
    ):
        broken = shutil.copytree(saved, tmp_path / f"{name}{len(text)}")
        write(name, text)(broken)
        with pytest.raises(
            ValueError, match="its tokenizer could not be read: " + re.escape(words)
        ):
            load_tokenizer(broken)


def test_a_file_is_not_a_folder(saved, tmp_path):
    with pytest.raises(ValueError, match="is a file: expected the folder"):
        load_model(saved / "config.json")
    (tmp_path / "small.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="gguf_file='small.gguf'"):
        load_model(tmp_path / "small.gguf")
    with pytest.raises(FileNotFoundError, match="no other.gguf in it"):
        load_model(tmp_path, gguf_file="other.gguf")
    with pytest.raises(FileNotFoundError, match="give gguf_file as well, here small.gguf"):
        load_model(tmp_path)


def test_weights_that_would_be_random_are_refused(tmp_path):
    "A base model without its head loads, and its head is drawn at random."
    tiny(tie_word_embeddings=False).model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match="1 weights of LlamaForCausalLM are not in its files and would be random, "
        "lm_head.weight",
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["GPTNeoX", "GPT2", "Llama", "Qwen2", "OPT", "Gemma"])
def test_a_folder_without_a_tokenizer(kind, tmp_path):
    "For some kinds transformers would make one without words of the configuration alone."
    tiny(kind).save_pretrained(tmp_path / "mine")
    for call in (
        lambda: load_tokenizer(tmp_path / "mine"),
        lambda: check_tokenizer_files(tmp_path / "mine"),
        lambda: trainer(str(tmp_path / "mine"), tmp_path / "out", words=None),
    ):
        with pytest.raises(FileNotFoundError) as e:
            call()
        assert (
            "has no tokenizer files" in str(e.value)
            and str(tmp_path / "mine") in str(e.value)
            and "model.safetensors" in str(e.value)
        )


def test_tokenizers_that_are_there(saved, tmp_path):
    assert len(load_tokenizer(saved)) == len(WORDS)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "bytes")  # knows its words by heart
    assert load_tokenizer(tmp_path / "bytes")("ab").input_ids[:2] == [100, 101]
    (saved.parent / "broken").mkdir()
    (saved.parent / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="broken: its tokenizer could not be read"):
        load_tokenizer(saved.parent / "broken")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_tokenizer("/nowhere/words")
    with pytest.raises(ValueError, match="processing_class is missing"):
        trainer(tiny(), tmp_path / "out", words=None)


def test_the_reference_model_is_looked_at_before_the_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "slpo.trainer.tokenize_preferences",
        lambda *a, **k: pytest.fail("tokenised before the names were looked at"),
    )
    with pytest.raises(FileNotFoundError, match="ref_model /nowhere/reference: no such folder"):
        trainer(tiny(), tmp_path, ref_model="/nowhere/reference")


# ------------------------------------------------------------ precision
@pytest.mark.parametrize(
    "word,want",
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("BF16", torch.bfloat16),
        ("torch.bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("half", torch.float16),
        (torch.float64, torch.float64),
        ("auto", "auto"),
    ],
)
def test_words_for_a_precision(word, want):
    assert torch_dtype(word) == want


@pytest.mark.parametrize("word", ["int8", "bfloat", "16", "nn", "", None, True])
def test_other_words_for_a_precision(word, saved, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"--dtype=.*: expected one of float32, bfloat16, float16, .*bf16.* or auto",
    ):
        torch_dtype(word, "--dtype")
    if word:
        with pytest.raises(ValueError, match="model_init_kwargs' dtype=.*: expected one of"):
            trainer(str(saved), tmp_path, model_init_kwargs={"dtype": word})


# ------------------------------------------------------------ generation settings
UNSAVABLE = {
    "greedy, with a temperature": dict(do_sample=False, temperature=0.9, top_p=0.6),
    "neither said": dict(temperature=0.9),
    "beams' settings without beams": dict(length_penalty=2.0),
    "a padding token below 0": dict(pad_token_id=-1),
    "scores without a dictionary": dict(output_scores=True),
}


@pytest.mark.parametrize(
    "case,by_name", [*((case, True) for case in UNSAVABLE), ("greedy, with a temperature", False)]
)
def test_generation_settings_that_could_not_be_saved_are_mended(
    case, by_name, saved, tmp_path, caplog
):
    folder = shutil.copytree(saved, tmp_path / "mine")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, **UNSAVABLE[case]}))
    model = str(folder) if by_name else AutoModelForCausalLM.from_pretrained(folder)
    t = trainer(model, tmp_path / "out", save_strategy="steps", save_steps=1)
    assert [
        r.message
        for r in caplog.records
        if "generation settings" in r.message
        and all(k in r.message for k in UNSAVABLE[case] if k != "do_sample")
    ]
    t.train()
    t.save_model(str(tmp_path / "end"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "end").generation_config
    assert again.eos_token_id == 0 and again.temperature in (None, 1.0)


def test_sampling_settings_that_mean_something_stay(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "mine")
    (folder / "generation_config.json").write_text(
        json.dumps(dict(do_sample=True, temperature=0.7, top_p=0.8, eos_token_id=[0, 5]))
    )
    config = load_model(folder).generation_config
    assert (config.temperature, config.top_p, config.eos_token_id) == (0.7, 0.8, [0, 5])


def test_generation_settings_that_cannot_be_mended_are_refused_before_training(tmp_path):
    model = tiny()
    model.generation_config.num_return_sequences = 3
    with pytest.raises(ValueError, match="could not be saved after training"):
        trainer(model, tmp_path)
    model = tiny()
    model.config.temperature = 0.5
    with pytest.raises(ValueError, match="could not be saved after training"):
        trainer(model, tmp_path)


# ------------------------------------------------------------ weights that can move
class Watch(transformers.TrainerCallback):
    "Which weights have had a gradient."

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        now = {name: p.grad != 0 for name, p in model.named_parameters() if p.grad is not None}
        self.seen = {
            name: x | getattr(self, "seen", {}).get(name, False) for name, x in now.items()
        }


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def narrow(request, tmp_path_factory):
    "A checkpoint in 16 bits."
    folder = tmp_path_factory.mktemp(request.param) / "model"
    tiny().to(getattr(torch, request.param)).save_pretrained(folder)
    WORDS.save_pretrained(folder)
    return folder


def test_thirty_steps_at_the_default_rate_move_a_16_bit_checkpoint(narrow, tmp_path):
    t, watch = (
        trainer(str(narrow), tmp_path, words=None, max_steps=30, lr_scheduler_type="constant"),
        Watch(),
    )
    assert t.args.learning_rate == 1e-6
    t.add_callback(watch)
    before = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    t.train()
    moved = sum(
        (before[name] != p).logical_and(watch.seen[name]).sum().item()
        for name, p in t.model.named_parameters()
    )
    assert moved > 0.5 * sum(x.sum().item() for x in watch.seen.values())


def test_a_name_is_loaded_in_float32_and_the_reference_as_the_policy(narrow, tmp_path):
    t = trainer(str(narrow), tmp_path, ref_model=str(narrow), precompute_ref_log_probs=False)
    assert t.model.dtype == t.ref_model.dtype == torch.float32
    for how in ({"dtype": "float64"}, {"torch_dtype": "float64"}, '{"dtype": "float64"}'):
        t = trainer(
            str(narrow),
            tmp_path,
            ref_model=str(narrow),
            precompute_ref_log_probs=False,
            model_init_kwargs=how,
        )
        assert t.model.dtype == t.ref_model.dtype == torch.float64
    t = trainer(tiny().double(), tmp_path, ref_model=str(narrow), precompute_ref_log_probs=False)
    assert t.ref_model.dtype == torch.float64
    assert (
        load_model(narrow, dtype="auto").dtype
        == load_model(narrow, dtype="auto").dtype
        != torch.float32
    )


def test_weights_too_coarse_for_the_rate_are_refused(narrow, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "slpo.trainer.tokenize_preferences",
        lambda *a, **k: pytest.fail("tokenised before the weights were looked at"),
    )
    for rate in (1e-6, 1e-9) if narrow.parent.name.startswith("bf") else (1e-9,):
        with pytest.raises(
            ValueError,
            match=r"at learning_rate=1e-0\d a step can change [0-4]\.\d% of them.* "
            "load the model in float32",
        ):
            trainer(str(narrow), tmp_path, model_init_kwargs={"dtype": "auto"}, learning_rate=rate)
    with pytest.raises(ValueError, match="fp16=True scales gradients"):
        trainer(
            str(narrow),
            tmp_path,
            model_init_kwargs={"dtype": "auto"},
            fp16=True,
            learning_rate=1e-2,
        )
    monkeypatch.undo()
    assert trainer(str(narrow), tmp_path, model_init_kwargs={"dtype": "auto"}, learning_rate=3e-5)
    (said,) = [r.message for r in caplog.records if "rounded back" in r.message]
    assert "a step can change" in said and "dtype='float32'" in said and "bf16=True" in said


def test_only_trainable_weights_must_be_able_to_move(narrow, tmp_path, caplog):
    from peft import LoraConfig

    model = load_model(narrow, dtype="auto")
    t = trainer(model, tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert t.model.dtype != torch.float32 and not [
        r for r in caplog.records if "rounded back" in r.message
    ]
    assert SLPOTrainer(
        load_model(narrow, dtype="auto"),
        args=settings(tmp_path),
        eval_dataset=ROWS,
        processing_class=WORDS,
    )  # nothing is trained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1e-6, 1e-5, 1e-4])
def test_the_share_that_moves_is_that_of_numbers_further_than_half_their_spacing(dtype, step):
    from slpo.models import _share_that_moves

    w = torch.randn(5000).mul(0.02).to(dtype)
    gap = torch.finfo(dtype).eps * 2.0 ** w.double().abs().log2().floor()
    if dtype == torch.float16:
        gap = gap.clamp(min=2.0**-24)  # below 2**-14 they are evenly spaced
    want = (step > gap / 2).double().mean()
    assert abs(_share_that_moves([torch.nn.Parameter(w)], step) - want) < 0.01


# ------------------------------------------------------------ nothing random in training
MOST = dict(n_embd=32, n_layer=2, n_head=4)
DROPPED = {
    "GPT2": MOST,
    "GPTBigCode": MOST,
    "OpenAIGPT": MOST,
    "CTRL": dict(MOST, dff=64),
    "GPTNeo": dict(
        num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], resid_dropout=0.1
    ),
    "OPT": SIZES["OPT"],
    "XGLM": dict(SIZES["XGLM"], layerdrop=0.2),
    "BioGpt": dict(hidden_dropout_prob=0.1),
    "Bloom": dict(hidden_dropout=0.1, attention_dropout=0.1),
    "Starcoder2": dict(num_key_value_heads=2, residual_dropout=0.1, attention_dropout=0.1),
    "Bert": dict(is_decoder=True),
    "Falcon": dict(hidden_dropout=0.1, attention_dropout=0.1),
    "Llama": dict(attention_dropout=0.1),
    "GPTNeoX": dict(hidden_dropout=0.1, attention_dropout=0.1),
    "Mixtral": dict(num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.3),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_two_forwards_in_training_are_equal(kind, tmp_path):
    model = tiny(kind, **DROPPED[kind])
    ids = torch.arange(3, 15)[None]

    def twice(model):
        with torch.no_grad():
            return [model(input_ids=ids, use_cache=False).logits for _ in range(2)]

    (calm, _), (first, second) = twice(model.eval()), twice(model.train())
    assert kind == "GPTNeo" or not torch.equal(first, second)  # it is random as it comes
    t = trainer(
        model, tmp_path, ref_model=tiny(kind, **DROPPED[kind]), precompute_ref_log_probs=False
    )
    for model in (t.model, t.ref_model):
        first, second = twice(model.train())
        assert torch.equal(first, second)
        assert torch.equal(calm, twice(model.eval())[0]) and torch.allclose(first, calm, atol=1e-6)


@pytest.mark.parametrize(
    "kind,with_reference",
    [("OPT", False), ("OPT", True), ("XGLM", False), ("Mixtral", False), ("Bloom", True)],
)
def test_training_starts_at_its_reference_with_default_settings(kind, with_reference, tmp_path):
    t = trainer(
        tiny(kind, **DROPPED[kind]),
        tmp_path,
        ref_model=tiny(kind, **DROPPED[kind]) if with_reference else None,
        loss_type="dpo",
        learning_rate=1e-9,
        max_steps=3,
    )
    t.train()
    for log in t.state.log_history[:3]:
        assert abs(log["loss"] - 0.6931) < 1e-3 and abs(log["logratios/chosen"]) < 1e-2, log


def test_dropout_of_an_adapter_is_dropout(tmp_path):
    from peft import LoraConfig

    t = trainer(
        tiny(),
        tmp_path,
        peft_config=LoraConfig(
            r=2, lora_dropout=0.3, target_modules=["q_proj"], init_lora_weights=False
        ),
    )
    assert not [m for m in t.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]


def test_what_a_router_computes_with_in_evaluation_stays():
    from slpo.models import _disable_dropout

    model = tiny(
        "Phimoe",
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.2,
        input_jitter_noise=0.0,
    ).eval()
    ids = torch.arange(3, 15)[None]
    before = model(input_ids=ids).logits
    _disable_dropout(model)
    assert torch.equal(before, model(input_ids=ids).logits)


def test_dropout_stays_where_it_is_wanted(tmp_path):
    t = trainer(tiny("OPT", **SIZES["OPT"]), tmp_path, disable_dropout=False)
    assert t.model.config.dropout == 0.1


# ------------------------------------------------------------ what a model is, and what it is not
@pytest.mark.parametrize(
    "given,found",
    [
        (None, "got nothing"),
        (3, "got a int"),
        (transformers.LlamaForCausalLM, "got the class LlamaForCausalLM"),
        (tiny, "got a function"),
        (transformers.LlamaConfig(), "got a LlamaConfig"),
        ({"model": 1}, "got a dict"),
    ],
)
def test_what_is_no_model(given, found, tmp_path):
    with pytest.raises(
        ValueError,
        match="model: expected a causal language model, its hub id or its folder, "
        f"{found}.*model_init",
    ):
        trainer(given, tmp_path)
    if given is not None:
        with pytest.raises(ValueError, match=f"ref_model: expected .* {found}$"):
            trainer(tiny(), tmp_path, ref_model=given)


def test_a_reference_that_is_the_policy(tmp_path):
    import copy
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"])
    model, base = tiny(), tiny()
    adapted, shares = get_peft_model(base, lora), copy.copy(tiny())
    shares.lm_head.weight.data = model.lm_head.weight.data
    for policy, reference, said in (
        (model, model, "are the same model"),
        (model, copy.copy(model), "share .* weights"),
        (model, shares, "share 1 weights"),
        (adapted, adapted, "are the same model"),
        (adapted, base, "share .* weights"),
    ):
        with pytest.raises(ValueError, match=f"model and ref_model {said}.* leave ref_model out"):
            trainer(policy, tmp_path, ref_model=reference)
    with pytest.raises(ValueError, match="leave ref_model out"):
        trainer(model, tmp_path, ref_model=model, peft_config=lora)
    assert all(p.requires_grad for p in model.parameters())  # nothing was frozen on the way
    trainer(model, tmp_path, ref_model=copy.deepcopy(model)).train()


def test_adapters_that_lengthen_rows_are_refused_and_those_that_do_not_train(tmp_path):
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    for config in (
        PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        PromptEncoderConfig(num_virtual_tokens=7, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    ):
        with pytest.raises(
            ValueError,
            match=r"(PROMPT_TUNING|P_TUNING) puts 7 tokens of its own in front of every row",
        ):
            trainer(tiny(), tmp_path, peft_config=config)
    trainer(
        tiny("GPT2", **MOST),
        tmp_path,
        peft_config=PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
    ).train()


@pytest.mark.parametrize(
    "how",
    [
        dict(target_modules=["embed_tokens"]),
        dict(target_modules=["q_proj"], trainable_token_indices=WORDS(" yes no").input_ids),
        dict(target_modules=["embed_tokens", "lm_head"]),
        dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    ],
)
def test_adapters_of_the_embedding(how, tmp_path):
    from peft import LoraConfig
    from test_packing import one_by_one

    t = trainer(
        tiny(tie_word_embeddings=False),
        tmp_path,
        peft_config=LoraConfig(r=2, **how),
        learning_rate=1e-2,
    )
    assert t.data_collator.packed
    before = {n: p.detach().clone() for n, p in t.model.named_parameters() if p.requires_grad}
    t.train()
    assert any(
        (before[n] != p).any()
        for n, p in t.model.named_parameters()
        if n in before and ("embed" in n or "token" in n)
    )
    with torch.no_grad():
        want = one_by_one(t.model.eval(), list(t.train_dataset))
    assert (torch.tensor(sum(t.group_logps(t.train_dataset), [])) - want).abs().max() < 1e-4


def test_a_tokenizer_with_more_words_than_the_model(tmp_path):
    with pytest.raises(ValueError, match="the tokenizer has 270 tokens, the model only 99"):
        trainer(tiny(vocab_size=99), tmp_path)


TEXT = dict(
    vocab_size=280,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    head_dim=8,
    pad_token_id=0,
    eos_token_id=0,
    bos_token_id=0,
)
SEES = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)


def multimodal(kind):
    "Checkpoints that also see, for text."
    c = transformers
    torch.manual_seed(0)
    if kind == "Gemma3":
        config = c.Gemma3Config(
            text_config=dict(TEXT, query_pre_attn_scalar=8),
            vision_config=SEES,
            mm_tokens_per_image=4,
            image_token_index=270,
        )
    elif kind == "Mistral3":
        config = c.Mistral3Config(
            text_config=c.MistralConfig(**TEXT),
            vision_config=c.PixtralVisionConfig(**SEES | dict(head_dim=16)),
            image_token_index=270,
        )
    elif kind == "Llava":
        config = c.LlavaConfig(
            text_config=c.LlamaConfig(**TEXT),
            vision_config=c.CLIPVisionConfig(**SEES),
            image_token_index=270,
        )
    else:
        rope = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4)
        sees = dict(
            depth=1,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=32,
            deepstack_visual_indexes=[0],
            num_position_embeddings=16,
        )
        config = c.Qwen3VLConfig(
            text_config=dict(TEXT, rope_parameters=rope),
            vision_config=sees,
            image_token_id=270,
            video_token_id=271,
            vision_start_token_id=272,
            vision_end_token_id=273,
        )
    return getattr(c, f"{kind}ForConditionalGeneration")(config)


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava", "Qwen3VL"])
def test_multimodal_checkpoints_train_on_text(kind, tmp_path):
    from test_packing import one_by_one

    t = trainer(multimodal(kind), tmp_path, learning_rate=1e-3, loss_type="dpo")
    assert t.data_collator.packed
    with torch.no_grad():
        want = one_by_one(t.model.eval(), list(t.train_dataset))
    assert (torch.tensor(sum(t.group_logps(t.train_dataset), [])) - want).abs().max() < 1e-4
    t.train()
    first, second = [log["loss"] for log in t.state.log_history if "loss" in log]
    assert abs(first - 0.6931) < 1e-3 and second != first


def test_a_compiled_model_has_the_losses_of_the_plain_one(tmp_path):
    """The other backends compile to code that is not ours; what asks a compiled model for its
    truth fails with any."""

    def losses(**more):
        t = trainer(
            tiny("GPTNeoX", num_hidden_layers=1),
            tmp_path,
            rows=ROWS.select(range(4)),
            eval_dataset=ROWS.select(range(4)),
            learning_rate=1e-3,
            precompute_ref_log_probs=False,
            **more,
        )
        t.train()
        return [
            *(log["loss"] for log in t.state.log_history if "loss" in log),
            t.evaluate()["eval_loss"],
            *sum(t.group_logps(t.train_dataset), []),
        ]

    torch.testing.assert_close(
        losses(torch_compile=True, torch_compile_backend="eager"), losses(), rtol=1e-5, atol=1e-5
    )


# ------------------------------------------------------------ positions
LEARNED = {
    "GPT2": dict(MOST, n_positions=24),
    "GPTBigCode": dict(MOST, n_positions=24),
    "CTRL": dict(MOST, dff=64, n_positions=24),
    "GPTJ": dict(MOST, rotary_dim=4, n_positions=24),
    "GPTNeo": dict(DROPPED["GPTNeo"], max_position_embeddings=24),
    "CodeGen": dict(MOST, rotary_dim=4, n_positions=24),
    "OPT": dict(SIZES["OPT"], max_position_embeddings=24),
    "BioGpt": dict(max_position_embeddings=24),
    "Bert": dict(is_decoder=True, max_position_embeddings=24),
    "Mpt": dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=24),
    "Roberta": dict(is_decoder=True, max_position_embeddings=26, pad_token_id=1),
}
COMPUTED = {"Llama": {}, "GPTNeoX": {}, "Bloom": {}, "XGLM": SIZES["XGLM"], "Mamba": {}}


@pytest.mark.parametrize("kind", [*LEARNED, *COMPUTED])
def test_positions_are_found_in_the_model(kind):
    model = tiny(
        kind, **LEARNED.get(kind) or dict(COMPUTED[kind], max_position_embeddings=24)
    ).eval()

    def takes(n):
        return model(
            input_ids=torch.full((1, n), 5),
            attention_mask=torch.ones(1, n, dtype=torch.long),
            use_cache=False,
        )

    takes(24)
    if kind in COMPUTED:
        assert model_positions(model) is None and takes(60)
    else:
        assert model_positions(model) == 24
        with pytest.raises((IndexError, RuntimeError)):
            takes(25)


@pytest.mark.parametrize("packing", [True, False])
def test_rows_longer_than_the_positions_are_refused_before_anything_is_computed(
    packing, tmp_path, monkeypatch
):
    rows, long = (
        ROWS,
        Dataset.from_list([dict(prompt="x" * i, chosen=" y", rejected=" n") for i in range(9, 40)]),
    )
    monkeypatch.setattr(SLPOTrainer, "group_logps", lambda *a, **k: pytest.fail("computed"))

    def make(**more):
        return trainer(tiny("GPT2", **LEARNED["GPT2"]), tmp_path, packing=packing, **more)

    for how in (
        dict(rows=long),
        dict(rows=rows, eval_dataset=long),
        dict(rows=rows, eval_dataset={"a": rows, "b": long}),
    ):
        with pytest.raises(
            ValueError,
            match="the model has 24 positions, and rows have up to 42 tokens: "
            "set max_length to 24 or less",
        ):
            make(**how)
    with pytest.raises(ValueError, match="the reference model has 24 positions"):
        trainer(tiny(), tmp_path, rows=long, ref_model=tiny("GPT2", **LEARNED["GPT2"]))
    with pytest.raises(ValueError, match="24 positions, and rows have up to 1024 tokens"):
        make(rows=rows.to_iterable_dataset())
    monkeypatch.undo()
    make(rows=long, max_length=24, on_bad_rows="drop").train()
    t = make(rows=long.select(range(8)))
    with pytest.raises(ValueError, match="24 positions"):
        t._check_layout(trainer(tiny(), tmp_path, rows=long).train_dataset)


def test_rows_longer_than_a_model_was_made_for_are_said(tmp_path, caplog):
    trainer(tiny(max_position_embeddings=16), tmp_path)
    (said,) = [r.message for r in caplog.records if "max_position_embeddings" in r.message]
    assert "up to 16 tokens" in said


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    """By what it does: a tiny untrained one, whose earlier tokens hardly see the later ones, as
    well."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GPTNeoXForSequenceClassification,
    )
    from slpo.trainer import _check_causal

    neox = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    bert = BertConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    whole = GPTNeoXForCausalLM(neox)
    _check_causal(whole)
    _check_causal(whole.bfloat16())
    for other, words in (
        (BertForMaskedLM(bert), "earlier tokens see the later ones"),
        (whole.gpt_neox, "GPTNeoXModel"),
        (GPTNeoXForSequenceClassification(neox), "GPTNeoXForSequenceClassification"),
    ):
        with pytest.raises(ValueError, match=words):
            _check_causal(other)


def test_what_cannot_be_trained_or_compared_is_said_first(tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from slpo.trainer import _check_trainable
    from slpo.models import _check_vocabulary

    tokenizer = train_tokenizer(["a"], vocab_size=257)
    small = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=200,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    with pytest.raises(ValueError, match="257 tokens, ref_model only 200"):
        _check_vocabulary(small, tokenizer, "ref_model")
    _check_trainable(small)
    with pytest.raises(ValueError, match="no weight of the model is trainable"):
        _check_trainable(small.requires_grad_(False))
