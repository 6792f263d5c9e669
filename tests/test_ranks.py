"""Rankings with and without ties: every loss and every metric compares the pairs that the ranking
orders, and no others."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from small_run import make
from slpo import dpo_loss, ipo_loss, preference_accuracy

RANKINGS = [
    (0, 1),
    (0, 0, 1),
    (0, 1, 1),
    (0, 1, 2),
    (1, 0, 2),
    (0, 0, 1, 1),
    (0, 1, 1, 2),
    (3, 0, 0, 1),
]


def group_of(ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps, ref_logps = -90 * torch.rand(2, 5, len(ranks), generator=generator, dtype=torch.float64)
    return logps, ref_logps, torch.tensor([ranks] * 5)


def pairs_of(ranks):
    return [(j, k) for j, k in itertools.permutations(range(len(ranks)), 2) if ranks[j] < ranks[k]]


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_without_ties_a_pair_is_equation_7_to_the_last_bit(smoothing):
    """As before `ranks`: cross-entropy with the target [1-ε, ε], which a given ranking does not
    change."""
    logps, ref_logps, ranks = group_of((0, 1))
    target = torch.tensor([1 - smoothing, smoothing], dtype=torch.float64)
    want = -(target * (0.1 * (logps - ref_logps)).log_softmax(-1)).sum(-1)
    for given in (None, ranks, ranks.int() * 7 - 3):
        assert dpo_loss(
            logps, ref_logps, label_smoothing=smoothing, ranks=given, reduction="none"
        ).equal(want)
    gap = (logps - ref_logps)[:, 0] - (logps - ref_logps)[:, 1]
    assert ipo_loss(logps, ref_logps, ranks=ranks, reduction="none").equal((gap - 5) ** 2)


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
def test_a_ranking_is_a_series_of_choices(ranks):
    """Each completion against those below it, averaged within a rank, summed over ranks; written
    out in loops."""
    logps, ref_logps, given = group_of(ranks)
    scores, want = 0.1 * (logps - ref_logps), torch.zeros(5, dtype=torch.float64)
    for rank in set(ranks):
        same, below = (
            [j for j, r in enumerate(ranks) if r == rank],
            [k for k, r in enumerate(ranks) if r > rank],
        )
        if below:
            want += sum(
                F.cross_entropy(scores[:, [j, *below]], torch.zeros(5).long(), reduction="none")
                for j in same
            ) / len(same)
    torch.testing.assert_close(dpo_loss(logps, ref_logps, ranks=given, reduction="none"), want)
    ratios = logps - ref_logps
    squares = [(ratios[:, j] - ratios[:, k] - 5) ** 2 for j, k in pairs_of(ranks)]
    torch.testing.assert_close(
        ipo_loss(logps, ref_logps, ranks=given, reduction="none"), sum(squares) / len(squares)
    )
    wins = [(ratios[:, j] > ratios[:, k]).double() for j, k in pairs_of(ranks)]
    torch.testing.assert_close(preference_accuracy(logps, ref_logps, given), sum(wins) / len(wins))


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss])
def test_the_order_of_the_columns_does_not_matter(loss):
    logps, ref_logps, ranks = group_of((0, 0, 1, 2))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        loss(logps[:, order], ref_logps[:, order], ranks=ranks[:, order]),
        loss(logps, ref_logps, ranks=ranks),
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda p, r, ranks: dpo_loss(p, r, ranks=ranks),
        lambda p, r, ranks: ipo_loss(p, r, ranks=ranks),
        preference_accuracy,
    ],
)
@pytest.mark.parametrize(
    "ranks",
    [torch.tensor([[0, 1]]), torch.tensor([[0.0, 1, 2]]), torch.tensor([[False, True, True]])],
)
def test_ranks_that_are_none_are_refused(function, ranks):
    with pytest.raises(ValueError, match=r"argument 'ranks': expected integers of shape \(1, 3\)"):
        function(-torch.ones(1, 3), -torch.ones(1, 3), ranks)


WORDS = [" yes indeed", " surely", " no", " never mind"]
LOSSES = ("slpo", "slpo_sample", "dpo", "ipo", "nca", "sppo")


def ranked_rows(*rankings, n=8):
    return Dataset.from_list(
        [
            dict(prompt=f"Question {i}:", completions=WORDS[: len(r)], ranks=list(r))
            for i in range(n)
            for r in rankings
        ]
    )


def trainer_of(tmp_path, data, **settings):
    "The trainer of small_run.py on other rows."
    from slpo import SLPOConfig, SLPOTrainer

    base = make(tmp_path, rows=24, max_steps=1)
    how = (
        dict(
            output_dir=str(tmp_path / "ranked"),
            per_device_train_batch_size=len(data),
            learning_rate=1e-3,
            max_steps=30,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            ref_cache_dir="",
        )
        | settings
    )
    trainer = SLPOTrainer(
        base.model,
        args=SLPOConfig(**how),
        train_dataset=data,
        eval_dataset=data,
        processing_class=base.processing_class,
    )
    trainer.callback_handler.callbacks = [
        c for c in trainer.callback_handler.callbacks if type(c).__name__ != "PrinterCallback"
    ]
    return trainer


@pytest.mark.parametrize("loss_type", LOSSES)
def test_equally_good_completions_do_not_fall_below_worse_ones(tmp_path, loss_type):
    """In mean log-ratio after 30 steps; and the logs say so: where every pair is in order, the
    accuracy is 1."""
    rankings = ((0, 0, 1), (0, 1, 1), (0, 1, 2), (0, 0, 1, 1), (1, 0, 0, 2))
    said = [
        ["apple", "pear", "plum", "fig"],
        ["red", "blue", "green", "grey"],
        ["one", "two", "nine", "ten"],
        ["north", "south", "east", "west"],
        ["iron", "lead", "zinc", "gold"],
    ]
    rows = [
        dict(
            prompt=f"{words[0][0]}{i}:",
            completions=[f" {w}" for w in words[: len(ranks)]],
            ranks=list(ranks),
        )
        for ranks, words in zip(rankings, said)
        for i in range(2)
    ]
    trainer = trainer_of(tmp_path, Dataset.from_list(rows), loss_type=loss_type)
    trainer.train()
    after = trainer.group_logps(trainer.train_dataset)
    metrics = []
    for i in range(0, len(rows), 2):
        gained, in_column = (
            torch.tensor(after[i : i + 2])
            - torch.tensor(trainer.train_dataset["ref_logps"][i : i + 2]),
            trainer.train_dataset["ranks"][i],
        )
        mean, best = gained.mean(0), torch.tensor(in_column) == min(in_column)
        # A completion between the best and the worst is given mass as well, which may be much for
        # the little that it had.
        promised = [
            (j, k)
            for j, k in pairs_of(in_column)
            if loss_type != "slpo" or (best[j] and in_column[k] == max(in_column))
        ]
        assert all(mean[j] > mean[k] for j, k in promised), (in_column, mean)
        order = torch.stack([(gained[:, j] > gained[:, k]).float() for j, k in pairs_of(in_column)])
        metrics.append([order.mean(), gained[:, best].mean(), gained[:, ~best].mean()])
    accuracy, chosen, rejected = torch.tensor(metrics).mean(0).tolist()
    beta = 1.0 if loss_type == "slpo" else 0.1
    want = {
        "rewards/accuracies": accuracy,
        "logratios/chosen": chosen,
        "logratios/rejected": rejected,
        "displacement": chosen,
        "rewards/margins": beta * (chosen - rejected),
    }
    measured = trainer.evaluate()
    for key, value in want.items():
        assert measured[f"eval_{key}"] == pytest.approx(value, abs=1e-3), key


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_batch_of_groups_of_several_sizes_is_each_group_alone(tmp_path, loss_type):
    """K = 2, 3 and 4 in one batch: loss, gradient and metrics are the means of those of batches of
    one group."""
    data = ranked_rows((0, 1), (0, 0, 1), (1, 0, 2, 2), n=2)
    trainer = trainer_of(tmp_path, data, loss_type=loss_type, seed=3)
    rows, model = list(trainer.train_dataset), trainer.model.eval()
    assert sorted(len(r["ranks"]) for r in rows) == [2, 2, 3, 3, 4, 4]
    for p in model.parameters():
        p.data += 0.02 * torch.randn(
            p.shape, generator=torch.Generator().manual_seed(p.numel())
        )  # away from the reference

    def of(groups):
        trainer._sums["eval"].clear()
        model.zero_grad()
        trainer.compute_loss(
            model, trainer._prepare_inputs(trainer.data_collator(groups))
        ).backward()
        return torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        ), trainer._take_means("eval")

    together, alone = of(rows), [of([row]) for row in rows]
    torch.testing.assert_close(
        together[0], sum(gradient for gradient, _ in alone) / len(rows), rtol=1e-4, atol=1e-5
    )
    for key, value in together[1].items():
        assert value == pytest.approx(
            sum(means[key] for _, means in alone) / len(rows), rel=1e-4, abs=1e-5
        ), key
