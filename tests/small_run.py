"""A training run of a second or two, for tests that start it, stop it, or start it twice at once:
`python small_run.py OUT [name=value …]`."""

import json
import os
import sys
from pathlib import Path

import torch


def make(out, rows=24, model_seed=0, **settings):
    "A trainer of a tiny Pythia on pairs of the built-in world; everything it writes goes to `out`."
    import datasets
    import transformers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from slpo import SLPOConfig, SLPOTrainer, preference_world
    from slpo.data import _split_row
    from slpo.tokens import train_tokenizer

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    world = datasets.Dataset.from_list([_split_row(row)[0] for row in preference_world(rows)])
    tokenizer = train_tokenizer(
        [r["prompt"] + r[c] for r in world for c in ("chosen", "rejected")], vocab_size=400
    )
    torch.manual_seed(model_seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.2,
        )
    )
    settings = (
        dict(
            per_device_train_batch_size=4,
            max_steps=8,
            learning_rate=1e-2,
            logging_steps=3,
            save_steps=1,
            save_total_limit=3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            ref_cache_dir=str(Path(out) / "cache"),
            loss_type="slpo_sample",
        )
        | settings
    )
    trainer = SLPOTrainer(
        model,
        args=SLPOConfig(output_dir=str(Path(out) / "run"), **settings),
        train_dataset=world,
        eval_dataset=world.select(range(min(13, rows))),
        processing_class=tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def weights(trainer) -> torch.Tensor:
    return torch.cat(
        [p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]
    )


if __name__ == "__main__":
    out, *pairs = sys.argv[1:]
    torch.set_num_threads(1)
    settings = {k: json.loads(v) for k, v in (p.split("=", 1) for p in pairs)}
    evaluate_first = settings.pop("evaluate_first", False)
    streamed, more = settings.pop("streamed_eval", False), {}
    if streamed:
        settings["precompute_ref_log_probs"] = False
    trainer = make(out, **settings)
    if streamed:  # in one shard, in five, and fewer rows than a batch
        rows, seen = trainer.eval_dataset, []
        trainer.compute_metrics = lambda p: (
            seen.append(len(p.predictions)) or {"predictions": len(p.predictions)}
        )
        trainer.eval_dataset = {
            "one": rows.to_iterable_dataset(),
            "five": rows.to_iterable_dataset(num_shards=5),
            "few": rows.select(range(3)).to_iterable_dataset(),
        }
        more["predicted"] = len(trainer.predict(trainer.eval_dataset["one"]).predictions)
    if evaluate_first:
        trainer.evaluate()
    trained = trainer.train(resume_from_checkpoint=True)
    evaluated = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(weights(trainer), Path(out) / "weights.pt")
        (Path(out) / "result.json").write_text(
            json.dumps(
                {
                    "loss": trained.training_loss,
                    "eval": evaluated,
                    "history": trainer.state.log_history,
                    **more,
                    "world_size": int(os.environ.get("WORLD_SIZE", 1)),
                }
            )
        )
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # threads of gloo that are left can end the interpreter badly (pytorch#190489)
