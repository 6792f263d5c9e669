"""Records what TRL's DPOTrainer computes, for tests/test_trl.py. Run in an environment of its own:

    pip install torch==2.13.0 trl==1.16.0 && python tests/trl_fixture.py

Two small random models are policy and reference; for every pair it writes TRL's log-
probabilities, the lengths, and TRL's loss for one batch that holds this pair alone. Then it
trains, and writes what TRL logged at every step. And the arguments that DPOConfig adds to
TrainingArguments or gives another default, with their defaults, and those of DPOTrainer.
"""

import dataclasses
import inspect
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

ROWS = [
    ("Q: 2 plus 2?\nA:", " four", " five, I think"),
    ("Say hello.\n", "Hello there, how are you today?", "No."),
    ("Name a colour.\n", "Green", "Greenland is an island"),
    ("Count:", " one two three four five six seven", " one two"),
]


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(["<eos>", *alphabet])}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer, tok.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<eos>", pad_token="<eos>")


def model(seed):
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=257,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.1,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


TRAINING = dict(
    per_device_train_batch_size=2,
    max_steps=8,
    learning_rate=2e-3,
    warmup_steps=2,
    logging_steps=1,
    beta=0.3,
    label_smoothing=0.0,
    loss_type="sigmoid",
    max_length=512,
    precompute_ref_log_probs=True,
    gradient_checkpointing=False,
    gradient_accumulation_steps=2,
    seed=3,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
)
LOGGED = (
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def rows():
    return Dataset.from_list(
        [
            dict(zip(("prompt", "chosen", "rejected"), (f"{i}. {p}", c, r)))
            for i in range(3)
            for p, c, r in ROWS
        ]
    )


def train(Config, Trainer):
    "What a trainer logs in a short run; for TRL's classes and for ours."
    t = Trainer(
        model(0),
        args=Config(output_dir=tempfile.mkdtemp(), **TRAINING),
        train_dataset=rows(),
        processing_class=tokenizer(),
    )
    t.train()
    return [{k: h[k] for k in LOGGED} for h in t.state.log_history if "loss" in h]


def defaults(cls):
    "name -> default of a dataclass's fields."
    return {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(cls)
    }


def own_arguments(Config):
    """The fields that a configuration adds to TrainingArguments or gives another default, with
    their defaults."""
    base = defaults(TrainingArguments)
    return {k: v for k, v in defaults(Config).items() if k not in base or v != base[k]}


def main():
    import trl
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row)) for row in ROWS])
    records = [{} for _ in ROWS]
    for loss_type, beta, smoothing in (
        ("sigmoid", 0.1, 0.0),
        ("sigmoid", 0.5, 0.0),
        ("ipo", 0.1, 0.0),
        ("ipo", 0.3, 0.0),
        ("sigmoid", 0.1, 0.2),
    ):
        args = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            loss_type=loss_type,
            beta=beta,
            label_smoothing=smoothing,
            per_device_train_batch_size=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        t = DPOTrainer(
            model=model(0),
            ref_model=model(1),
            args=args,
            train_dataset=data,
            processing_class=tokenizer(),
        )
        t.model.eval()
        for i, record in enumerate(records):
            batch = t.data_collator([t.train_dataset[i]])
            with torch.no_grad():
                record[
                    f"{loss_type} {beta}" + f", label_smoothing {smoothing}" * (smoothing > 0)
                ] = t.compute_loss(t.model, dict(batch)).item()
                record["logps"] = [x.item() for x in t.compute_ref_log_probs(t.model, dict(batch))]
                record["ref_logps"] = [
                    x.item() for x in t.compute_ref_log_probs(t.ref_model, dict(batch))
                ]
            record["lengths"] = batch["completion_mask"].sum(-1).tolist()
    path = Path(__file__).with_name("trl_losses.json")
    path.write_text(
        json.dumps(
            {
                "trl": trl.__version__,
                "torch": torch.__version__,
                "records": records,
                "history": train(DPOConfig, DPOTrainer),
                "config": own_arguments(DPOConfig),
                "trainer": list(inspect.signature(DPOTrainer.__init__).parameters)[1:],
            },
            indent=1,
        )
        + "\n"
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
