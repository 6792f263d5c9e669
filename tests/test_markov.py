"""The exact worlds: many tables in one loop train as each would alone, and what notebook 30 claims
comes out of its log again in plain numpy."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from slpo.dpo import dpo_loss
from slpo.markov import make_world, measured_at, pairs, train_tables
from slpo.sample_mass import slpo_sample_loss

RESULTS = Path(__file__).parents[1] / "nbs" / "results"
T_9 = 2.262  # Student's t, 9 degrees of freedom, two-sided 95 %


def dpo(logps, ref, lengths):
    return dpo_loss(logps, ref, beta=0.5, reduction="none")


def sample(logps, ref, lengths):
    return slpo_sample_loss(logps, ref, alpha=0.5, reduction="none")


@pytest.fixture(scope="module")
def world():
    return make_world("trigram", 31, 32)


def test_a_loss_trains_as_if_it_were_alone(world):
    "Neither the other losses, nor their rates, nor the other draws have a part in it."
    how = dict(steps=12, n=128, at=[3, 12])
    together = train_tables(world, {"dpo": dpo, "sample": sample}, (0.01, 0.1), (4, 5), **how)
    assert together.shape == (2, 5, 2, 2, 2)
    for i, loss in enumerate((dpo, sample)):
        alone = train_tables(world, {"": loss}, (0.1,), (5,), **how)
        np.testing.assert_allclose(together[:, :, 1, i, 1], alone[:, :, 0, 0, 0], atol=2e-5)
    assert together[1, 0].min() > together[0, 0].max() * 0.1 > 0


def test_it_starts_at_the_reference_and_measures_where_it_is_told(world):
    curves = train_tables(world, {"dpo": dpo}, (0.01,), (0,), 4, n=64)
    assert len(curves) == len(measured_at(4)) == 5
    start = curves[0, :, 0, 0, 0]  # kl, reward, tokens, chosen, rejected
    assert abs(start[[0, 3, 4]]).max() < 1e-6


def test_pairs_are_drawn_by_their_seed(world):
    once, again, other = (pairs(world, 64, seed) for seed in (1, 1, 2))
    assert (once == again).all() and (once != other).any()
    assert (once.sum(-1) >= 1).all() and once.shape == (64, 2, 16 * 17)


@pytest.mark.parametrize("wrong", [dict(at=[5]), dict(at=[-1]), dict(n=63)])
def test_what_cannot_be_is_refused_by_name(world, wrong):
    with pytest.raises(ValueError, match=f"argument '{next(iter(wrong))}'"):
        train_tables(world, {"dpo": dpo}, (0.01,), (0,), 4, **({"n": 64} | wrong))


def test_a_kind_of_world_is_one_of_two():
    with pytest.raises(ValueError, match="'kind': 'unigram'"):
        make_world("unigram", 0, 0)


@pytest.fixture(scope="module")
def scores():
    "A function: (kind, family) -> ten worlds' points at KL 0.25, best setting on tuning draws."
    head, *lines = map(json.loads, (RESULTS / "markov.jsonl").read_text("utf-8").splitlines())
    names = head["settings"]["names"]

    def points(kind, belongs):
        out = []
        for line in sorted((x for x in lines if x["kind"] == kind), key=lambda x: x["world"]):
            there = [x for s, x in zip(names, line["at"]["0.25"]) if x and belongs(s)]
            won = max(there, key=lambda x: x[1])
            out.append(100 * (won[2] + won[3]) / 2)
        assert len(out) == 10
        return np.array(out)

    return points


FAMILIES = {
    "listing": lambda s: s[:5] == ["SLPO", "halves", "mass", "length", False],
    "branch": lambda s: s[:2] == ["SLPO", "squared"],
    "default": lambda s: s == ["SLPO-sample", 0.1, 0.5, 1.0],
    "tuned": lambda s: s[0] == "SLPO-sample",
    "DPO": lambda s: s[0] == "DPO",
    "tenth": lambda s: s == ["DPO", 0.1],
}
CLAIMED = [[("listing", "DPO"), ("branch", "DPO")], [("default", "DPO"), ("default", "tenth")]]
CLAIMED += [[("tuned", "DPO")]]


def test_the_claims_come_out_of_the_log(scores):
    "Every difference and interval in the claims, to the last digit shown."
    claims = json.loads((RESULTS / "claims" / "30_markov.json").read_text("utf-8"))
    assert len(claims) == len(CLAIMED)
    for claim, contrasts in zip(claims, CLAIMED):
        told = re.findall(
            r"(bigram|trigram) worlds ([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", claim["number"]
        )
        wanted = [(kind, *pair) for pair in contrasts for kind in ("bigram", "trigram")]
        assert len(told) == len(wanted)
        for (kind, *shown), (other_kind, a, b) in zip(told, wanted):
            assert kind == other_kind
            gaps = scores(kind, FAMILIES[a]) - scores(kind, FAMILIES[b])
            half = T_9 * gaps.std(ddof=1) / 10**0.5
            found = [gaps.mean(), gaps.mean() - half, gaps.mean() + half]
            np.testing.assert_allclose([*map(float, shown)], found, atol=0.0501)
