"""Rankings with and without ties: every loss and every metric compares the pairs that the ranking orders, and no others."""
import itertools

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from small_run import make
from slpo import dpo_loss, ipo_loss, preference_accuracy

RANKINGS = [(0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 2), (1, 0, 2), (0, 0, 1, 1), (0, 1, 1, 2), (3, 0, 0, 1)]


def group_of(ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps, ref_logps = -90*torch.rand(2, 5, len(ranks), generator=generator, dtype=torch.float64)
    return logps, ref_logps, torch.tensor([ranks]*5)


def pairs_of(ranks): return [(j, k) for j, k in itertools.permutations(range(len(ranks)), 2) if ranks[j] < ranks[k]]


@pytest.mark.parametrize("smoothing", [0, .1])
def test_without_ties_a_pair_is_equation_7_to_the_last_bit(smoothing):
    "As before `ranks`: cross-entropy with the target [1-ε, ε], which a given ranking does not change."
    logps, ref_logps, ranks = group_of((0, 1))
    target = torch.tensor([1 - smoothing, smoothing], dtype=torch.float64)
    want = -(target*(.1*(logps - ref_logps)).log_softmax(-1)).sum(-1)
    for given in (None, ranks, ranks.int()*7 - 3):
        assert dpo_loss(logps, ref_logps, label_smoothing=smoothing, ranks=given, reduction="none").equal(want)
    gap = (logps - ref_logps)[:, 0] - (logps - ref_logps)[:, 1]
    assert ipo_loss(logps, ref_logps, ranks=ranks, reduction="none").equal((gap - 5)**2)


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
def test_a_ranking_is_a_series_of_choices(ranks):
    "Each completion against those below it, averaged within a rank, summed over ranks; written out in loops."
    logps, ref_logps, given = group_of(ranks)
    scores, want = .1*(logps - ref_logps), torch.zeros(5, dtype=torch.float64)
    for rank in set(ranks):
        same, below = [j for j, r in enumerate(ranks) if r == rank], [k for k, r in enumerate(ranks) if r > rank]
        if below: want += sum(F.cross_entropy(scores[:, [j, *below]], torch.zeros(5).long(), reduction="none") for j in same)/len(same)
    torch.testing.assert_close(dpo_loss(logps, ref_logps, ranks=given, reduction="none"), want)
    ratios = logps - ref_logps
    squares = [(ratios[:, j] - ratios[:, k] - 5)**2 for j, k in pairs_of(ranks)]
    torch.testing.assert_close(ipo_loss(logps, ref_logps, ranks=given, reduction="none"), sum(squares)/len(squares))
    wins = [(ratios[:, j] > ratios[:, k]).double() for j, k in pairs_of(ranks)]
    torch.testing.assert_close(preference_accuracy(logps, ref_logps, given), sum(wins)/len(wins))


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss])
def test_the_order_of_the_columns_does_not_matter(loss):
    logps, ref_logps, ranks = group_of((0, 0, 1, 2))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(loss(logps[:, order], ref_logps[:, order], ranks=ranks[:, order]), loss(logps, ref_logps, ranks=ranks))


@pytest.mark.parametrize("function", [lambda p, r, ranks: dpo_loss(p, r, ranks=ranks), lambda p, r, ranks: ipo_loss(p, r, ranks=ranks), preference_accuracy])
@pytest.mark.parametrize("ranks", [torch.tensor([[0, 1]]), torch.tensor([[0., 1, 2]]), torch.tensor([[False, True, True]])])
def test_ranks_that_are_none_are_refused(function, ranks):
    with pytest.raises(ValueError, match=r"argument 'ranks': expected integers of shape \(1, 3\)"): function(-torch.ones(1, 3), -torch.ones(1, 3), ranks)
