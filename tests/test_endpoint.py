"""The endpoint experiment: what its notebook says, computed again from the log in plain numpy, and
logs that cannot be trusted."""

import json
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest

from slpo.endpoint import (
    ARMS,
    DPO_ARMS,
    EXACT_RATES,
    GRIDS,
    SIZES,
    _T95,
    block,
    endpoint_main,
    log_of,
    planned,
)

RESULTS = Path(__file__).parent.parent / "nbs" / "results"


def t_quantile(freedom):
    "One-sided 95 % quantile of Student's t, from its distribution function."

    def below(t):
        x = freedom / (freedom + t**2)
        return 1 - mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True) / 2 - 0.95

    return float(mpmath.findroot(below, 2))


@pytest.mark.parametrize("freedom", _T95)
def test_quantiles(freedom):
    assert round(t_quantile(freedom), 3) == _T95[freedom]


@pytest.fixture(scope="module")
def exact():
    "reward[kind][world] = (start, {arm: (rates, epochs)}) of the log's lines"
    text = (RESULTS / "endpoint_W3.jsonl").read_text(encoding="utf-8").splitlines()
    found = {"bigram": {}, "trigram": {}}
    for line in map(json.loads, text[1:]):
        rewards = {arm: np.array(x["reward"]) for arm, x in line["arms"].items()}
        found[line["kind"]][line["world"]] = line["start"], rewards
    return found


def in_points(exact, value):
    "Two lists of ten: value(rewards) in per cent of tuned DPO's gain."
    out = []
    for worlds in exact.values():
        assert sorted(worlds) == list(range(10))
        rows = []
        for number in sorted(worlds):
            start, rewards = worlds[number]
            gain = max(rewards[arm].max() for arm in DPO_ARMS) - start
            rows.append(100 * value(rewards) / gain)
        out.append(rows)
    return out


def interval(two):
    "Mean of two strata of ten and its one-sided bounds."
    a, b = map(np.array, two)
    variance = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / 18
    mean = (a.mean() + b.mean()) / 2
    half = t_quantile(18) * np.sqrt(variance / 20)
    return mean, mean - half, mean + half


def test_the_claim_of_the_exact_worlds_is_what_the_log_says(exact):
    core = [EXACT_RATES.index(rate) for rate in GRIDS["W3"].rates]

    def regret_less(beta):
        # the best tuned reward is the same in both, and goes out
        return lambda r: r[f"DPO β = {beta}"][core].mean() - r["λ = 1"][core].mean()

    def tuned_less(r):
        return r["λ = 1"].max() - max(r[arm].max() for arm in DPO_ARMS)

    wanted = [
        *(interval(in_points(exact, regret_less(beta))) for beta in ("0.1", "0.3", "1", "3")),
        interval(in_points(exact, tuned_less)),
    ]
    claim = json.loads((RESULTS / "claims" / "31_endpoint.json").read_text(encoding="utf-8"))[0]
    number = r"([+-][\d.]+)"
    printed = re.findall(rf"{number} \[{number}, {number}\]", claim["number"])
    assert len(printed) == len(wanted)
    for found, want in zip(printed, wanted):
        mean, low, high = map(float, found)
        assert mean == round(want[0], 1)
        assert abs(low - want[1]) < 0.15 and abs(high - want[2]) < 0.15


def test_every_line_of_a_log_is_a_planned_run():
    for world in ("W1", "W3"):
        log = log_of(world, RESULTS)
        lines = log.read()
        assert set(lines) <= set(planned(world, list(lines.values())))


def test_the_plan_is_the_registered_grid():
    keys = planned("W1", [])
    assert len(keys) == len(set(keys)) == 4 * (1 + 4 * len(ARMS)) == 260
    assert len(planned("W3", [])) == 20


def test_what_a_seed_draws_is_shared_and_another_seed_draws_other_pairs(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, again = block("small", 0), block("small", 0)
    assert one.rows[:] == again.rows[:] and one.reference == again.reference
    assert one.validation == again.validation and one.test == again.test
    assert len(one.rows) == SIZES["small"].pairs and not set(one.validation) & set(one.test)
    assert not {*one.rows["prompt"]} & {*one.validation, *one.test, *one.held_out["prompt"]}
    other = block("small", 1)
    assert other.rows[:] != one.rows[:] and other.reference != one.reference


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"arm":"λ = 1","rate":3e-05,"se', ["line 3", "cut off"]),
        ('{"arm":"λ = 1","rate":3e-05,"seed":1}\n', ["line 3", "that of line 2"]),
        ('{"arm":"λ = 1","rate":3e-05}\n', ["line 3", "'seed'"]),
        (None, ["line 1", "other settings", "alpha"]),
    ],
)
def test_the_command_names_a_log_that_it_cannot_trust(tmp_path, capsys, line, words):
    log = log_of("W1", tmp_path)
    log.add(("λ = 1", 3e-5, 1), {"readings": []})
    text = log.path.read_text(encoding="utf-8")
    spoilt = text + line if line else text.replace('"alpha":0.5', '"alpha":0.4')
    log.path.write_text(spoilt, encoding="utf-8")
    with pytest.raises(SystemExit) as e:
        endpoint_main(["W1", "--folder", str(tmp_path), "--processes", "2"])
    said = capsys.readouterr().err
    assert e.value.code == 2 and "endpoint_W1.jsonl" in said
    assert all(word in said for word in words)
    assert log.path.read_text(encoding="utf-8") == spoilt


def test_the_noisy_world_waits_for_the_one_that_names_its_arms(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        endpoint_main(["W1n", "--folder", str(tmp_path)])
    assert e.value.code == 2 and "run W1 first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
