"""The model card says what was done, in the words of the hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from small_run import make
from slpo import SLPOConfig, SLPOTrainer


def card_of(trainer, **how):
    trainer.create_model_card(**how)
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    return card.data.to_dict(), dict(
        line.strip("| ").split(" | ")
        for line in card.text.splitlines()
        if line.count("|") == 3 and " | " in line.strip("| ")
    )


def test_what_is_asked_for_is_in_the_head(tmp_path):
    "As `push_to_hub(license=…)` hands it on."
    trainer = make(tmp_path, max_steps=2)
    head, facts = card_of(
        trainer,
        model_name="bird",
        license="gpl-3.0",
        language="en",
        dataset_name="a/b",
        tags="small",
        finetuned_from="owner/base",
    )
    assert (
        head["license"] == "gpl-3.0"
        and head["language"] == "en"
        and head["datasets"] == ["a/b"]
        and head["tags"] == ["slpo", "slpo_sample", "small"]
    )
    assert (
        head["library_name"] == "transformers"
        and head["base_model"] == "owner/base"
        and facts["trained from"] == "owner/base"
    )
    assert (
        facts["groups in the training data"] == "24"
        and facts["lr_scheduler_type"] == "linear"
        and facts["optim"] == "adamw_torch_fused"
    )
    assert facts["max_steps"] == "2" and "num_train_epochs" not in facts
    head, facts = card_of(make(tmp_path / "epochs", max_steps=-1, num_train_epochs=2))
    assert (
        facts["num_train_epochs"] in ("2", "2.0")
        and "max_steps" not in facts
        and "license" not in head
    )


def test_an_adapter_belongs_to_peft(tmp_path):
    base = make(tmp_path)
    trainer = SLPOTrainer(
        base.model,
        args=SLPOConfig(
            output_dir=str(tmp_path / "lora"),
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            ref_cache_dir="",
            on_bad_rows="drop",
        ),
        train_dataset=base.train_dataset.remove_columns("ref_logps").select(range(5)),
        processing_class=base.processing_class,
        peft_config=LoraConfig(r=2, target_modules=["query_key_value"]),
    )
    trainer.save_model()
    head, facts = card_of(trainer)
    assert head["library_name"] == "peft" and facts["groups in the training data"] == "5"


@pytest.mark.parametrize(
    "settings,words",
    [
        (dict(loss_type="slpo_sample"), "SLPO-sample, derived from Ho 2025"),
        (dict(loss_type="slpo"), "SLPO (Ho 2025)"),
        (dict(loss_type="slpo", target="ratio", scale_t2=True), "SLPO-ratio, after Ho 2025"),
        (
            dict(loss_type="slpo", target="ratio"),
            "SLPO with form=halves, target=ratio, scale_t2=False, after Ho 2025",
        ),
        (
            dict(loss_type="slpo", scale_t2=True),
            "SLPO with form=halves, target=mass, scale_t2=True, after Ho 2025",
        ),
        (
            dict(loss_type="slpo", preset="branch"),
            "SLPO, as in version 'branch' of the author's code (Ho 2025)",
        ),
    ],
    ids=str,
)
def test_the_method_is_what_was_trained(tmp_path, settings, words):
    _, facts = card_of(make(tmp_path, max_steps=1, **settings))
    assert facts["method"] == words and facts.get("preset") == settings.get("preset")
