"""Our losses beside the numbers that TRL's DPOTrainer printed (tests/trl_fixture.py says how they
were recorded)."""

import json
from pathlib import Path

import pytest
import torch

from slpo import SLPOConfig, SLPOTrainer, dpo_loss, ipo_loss, slpo_sample_loss
from trl_fixture import train

RECORDED = json.loads(Path(__file__).with_name("trl_losses.json").read_text())
RECORDS = RECORDED["records"]


@pytest.fixture(params=RECORDS, ids=range(len(RECORDS)))
def record(request):
    return {k: torch.tensor([v]) if isinstance(v, list) else v for k, v in request.param.items()}


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_equals_trl(record, beta):
    want = record[f"sigmoid {beta}"]
    assert dpo_loss(record["logps"], record["ref_logps"], beta=beta).item() == pytest.approx(
        want, rel=1e-5
    )
    assert slpo_sample_loss(
        record["logps"], record["ref_logps"], alpha=1.0, anchor=0.0, beta=beta
    ).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.3])
def test_ipo_on_token_averages_equals_trl(record, beta):
    n = record["lengths"]
    assert ipo_loss(
        record["logps"] / n, record["ref_logps"] / n, beta=beta
    ).item() == pytest.approx(record[f"ipo {beta}"], rel=1e-5)


def test_a_run_logs_what_trl_logged():
    """The same rows, tokenizer, model and arguments, with two names changed: loss, gradient and
    rewards of every step."""

    class Config(SLPOConfig):
        def __init__(self, **kwargs):
            super().__init__(ref_cache_dir="", **kwargs)

    ours = train(Config, SLPOTrainer)
    assert len(ours) == len(RECORDED["history"]) == 8 and ours[-1]["rewards/margins"] > 0.1
    for step, (a, b) in enumerate(zip(ours, RECORDED["history"])):
        for key, value in b.items():
            assert a[key] == pytest.approx(value, rel=2e-3, abs=1e-4), (step, key)
