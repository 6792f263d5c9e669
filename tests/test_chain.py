"""The trainer is a link of a chain of classes: what users put above or below it sees all calls."""

import inspect

import pytest
from transformers import Trainer

import slpo.trainer
from small_run import make
from slpo import SLPOTrainer

CHAIN = SLPOTrainer.__mro__[: SLPOTrainer.__mro__.index(Trainer)]


class Listening(Trainer):
    "Notes which methods were called, and passes every call on."

    def log(self, *args, **kwargs):
        self.calls.append("log")
        return super().log(*args, **kwargs)

    def save_model(self, *args, **kwargs):
        self.calls.append("save_model")
        return super().save_model(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        self.calls.append("evaluation_loop")
        return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        self.calls.append("compute_loss")
        return super().compute_loss(*args, **kwargs)


class Above(Listening, SLPOTrainer):
    calls: list = []


class Below(SLPOTrainer, Listening):
    calls: list = []


@pytest.mark.parametrize("kind", [Above, Below])
def test_a_class_beside_the_trainer_sees_every_call(kind, tmp_path, monkeypatch):
    "Two micro-batches a step and two steps, each logged and saved; one evaluation of four batches."
    monkeypatch.setattr("slpo.SLPOTrainer", kind, raising=False)
    settings = dict(max_steps=2, logging_steps=1, gradient_accumulation_steps=2)
    trainer = make(tmp_path, per_device_eval_batch_size=4, **settings)
    kind.calls = calls = []
    trainer.train()
    trained = {name: calls.count(name) for name in calls}
    calls.clear()
    trainer.evaluate()
    trainer.save_model()
    evaluated = {name: calls.count(name) for name in calls}
    losses = (
        {"compute_loss": 4} if kind is Above else {}
    )  # below, our loss takes transformers' place
    assert trained == {"log": 3, "save_model": 2, **losses}
    assert evaluated == {"log": 1, "save_model": 1, "evaluation_loop": 1, **losses}


def test_both_orders_train_as_the_trainer_alone(tmp_path, monkeypatch):
    from small_run import weights

    plain = make(tmp_path / "plain", max_steps=2)
    plain.train()
    for kind in (Above, Below):
        monkeypatch.setattr("slpo.SLPOTrainer", kind, raising=False)
        trainer = make(tmp_path / kind.__name__, max_steps=2)
        trainer.train()
        assert type(trainer) is kind and weights(trainer).equal(weights(plain))


def test_overridden_methods_call_what_they_override():
    "Those that take the place of transformers' own are named; all others pass the call on."
    ours = {"compute_loss", "prediction_step", "create_model_card"}
    ours |= {"_get_num_items_in_batch", "_load_best_model"}
    for kind in CHAIN:
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and hasattr(Trainer, name) and name not in ours:
                assert "super()." in inspect.getsource(method), f"{kind.__name__}.{name}"


def test_each_class_of_the_chain_says_what_it_adds():
    docs = [kind.__doc__ for kind in CHAIN]
    assert all(docs) and len(set(docs)) == len(docs)
    assert all(kind.__module__.startswith("slpo.") for kind in CHAIN)
    assert not hasattr(slpo.trainer, "patch")
