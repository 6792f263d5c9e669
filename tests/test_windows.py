"""Attention that does not see everything: packed rows are vouched for on the longest groups of
the data, or they are padded."""

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from test_packing import GROUPED, groups, one_by_one, tiny

from slpo import SLPOConfig, SLPOTrainer
from slpo.tokens import tokenize_preferences, train_tokenizer
from slpo.packing import batch_logps

datasets.disable_progress_bars()

WORDS = train_tokenizer(["a", "b"], vocab_size=257)
KINDS = {  # how a model is told n, the tokens that its attention sees
    "window": lambda n: ("Mistral", dict(GROUPED, sliding_window=n)),
    "window in some layers": lambda n: (
        "Gemma3Text",
        dict(
            GROUPED,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=n,
            layer_types=["sliding_attention", "full_attention"],
            num_hidden_layers=2,
        ),
    ),
    "window of Qwen": lambda n: (
        "Qwen2",
        dict(GROUPED, use_sliding_window=True, sliding_window=n, max_window_layers=1),
    ),
    "chunk": lambda n: (
        "Llama4Text",
        dict(
            GROUPED,
            head_dim=8,
            attention_chunk_size=n,
            num_local_experts=1,
            intermediate_size_mlp=64,
            pad_token_id=0,
        ),
    ),
}


def model_that_sees(kind, n, dtype=torch.float32):
    name, how = KINDS[kind](n)
    return tiny(name, dict(how, vocab_size=257), dtype)


def rows_of_text(K, n=8):
    "Rows of bytes; the longest has 40 of them, and an end of text."
    return Dataset.from_list(
        [
            dict(
                prompt="a" * (i + 4),
                chosen="b" * 3 + "xyz" * i,
                rejected=["c" * (k + 1) + "vw" * (2 * i - k) for k in range(K - 1)],
            )
            for i in range(n)
        ]
    )


def trainer(model, folder, train, eval_dataset=None, ref_model=None, **more):
    how = dict(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        ref_cache_dir="",
        max_steps=1,
        max_length=None,
        loss_type="slpo_sample",
    )
    t = SLPOTrainer(
        model,
        ref_model,
        args=SLPOConfig(**how | more),
        train_dataset=train,
        eval_dataset=eval_dataset,
        processing_class=WORDS,
    )
    t.remove_callback(transformers.PrinterCallback)
    return t


def off(t, dataset, model=None):
    "Largest difference to separate rows, nats."
    model = t.model if model is None else model
    with torch.no_grad():
        want = one_by_one(model.eval(), list(dataset))
    got = torch.tensor([x for row in t.group_logps(dataset, model) for x in row])
    return (got - want).abs().max().item()


def longest(dataset):
    return max(len(g["prompt_ids"]) + max(map(len, g["completion_ids"])) for g in dataset)


@pytest.mark.parametrize("K,tokenised", [(2, False), (4, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_boundary(kind, K, tokenised, tmp_path):
    """The last token predicts nothing, so that all is seen while the longest row has one token
    more than the window or chunk."""
    text = rows_of_text(K)
    groups = tokenize_preferences(text, WORDS)
    n = longest(groups)
    for sees in (n, n - 1, n - 2):
        t = trainer(model_that_sees(kind, sees), tmp_path, groups if tokenised else text)
        assert t.data_collator.packed == (sees >= n - 1), sees
        assert off(t, t.train_dataset) < 1e-3


@pytest.mark.parametrize("kind", ["window", "chunk"])
def test_without_the_trial_packed_rows_would_be_far_off(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(SLPOTrainer, "_why_not_these", lambda *a, **k: [])
    t = trainer(model_that_sees(kind, 16), tmp_path, rows_of_text(2))
    assert t.data_collator.packed and off(t, t.train_dataset) > 0.1


@pytest.mark.parametrize("kind", ["window", "chunk"])
def test_what_no_setting_names_is_seen_in_the_numbers(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("slpo.reference._out_of_reach", lambda *a: None)
    t = trainer(model_that_sees(kind, 16), tmp_path, rows_of_text(2))
    assert (
        not t.data_collator.packed
        and "log-probabilities of row 7, 41 tokens long, differ by" in caplog.text
    )


def test_what_the_noise_of_16_bits_would_hide_is_seen_in_the_settings(tmp_path, caplog):
    t = trainer(model_that_sees("window", 39, torch.bfloat16), tmp_path, None, rows_of_text(2))
    assert (
        not t.data_collator.packed
        and "looks back 39 tokens (sliding_window), and rows have up to 41 tokens" in caplog.text
    )


@pytest.mark.parametrize("where", ["train", "eval", "one of several", "ref_model"])
def test_every_data_set_and_every_model_counts(where, tmp_path, caplog):
    short, long = rows_of_text(2, n=3), rows_of_text(2, n=8)
    narrow, wide = model_that_sees("window", 25), model_that_sees("window", 4096)
    made = {
        "train": lambda: trainer(narrow, tmp_path, long, short),
        "eval": lambda: trainer(narrow, tmp_path, short, long),
        "one of several": lambda: trainer(narrow, tmp_path, short, {"a": short, "b": long}),
        "ref_model": lambda: trainer(wide, tmp_path, long, ref_model=narrow),
    }
    assert not made[where]().data_collator.packed
    assert (
        "the reference model" if where == "ref_model" else "the model"
    ) + " cannot be packed, its attention looks back 25 tokens" in caplog.text
    narrow = model_that_sees("window", 25)  # the other one is frozen where it was a reference
    assert (
        trainer(narrow, tmp_path, short, short).data_collator.packed
        and trainer(wide, tmp_path, long).data_collator.packed
    )


@pytest.mark.parametrize("kind", ["window", "chunk"])
def test_of_a_stream_max_length_is_known(kind, tmp_path, caplog):
    text = rows_of_text(2)
    groups = tokenize_preferences(text, WORDS).to_iterable_dataset()
    for data, max_length, packed in (
        (text, 26, True),
        (text, 27, False),
        (text, None, False),
        (groups, 26, True),
        (groups, None, False),
    ):
        stream = data if data is groups else data.to_iterable_dataset()
        assert (
            trainer(
                model_that_sees(kind, 25), tmp_path, stream, max_length=max_length
            ).data_collator.packed
            == packed
        ), max_length
    assert "rows have up to 27 tokens" in caplog.text and "rows have any length" in caplog.text


def test_data_that_come_later_are_tried_where_they_are_longer(tmp_path, monkeypatch, caplog):
    t = trainer(model_that_sees("window", 25), tmp_path, rows_of_text(2, n=3))
    later = tokenize_preferences(rows_of_text(2, n=4), WORDS)
    tried = []
    monkeypatch.setattr("slpo.reference._why_not_long", lambda *a, **k: tried.append(a))
    t._check_layout(t.train_dataset)
    assert not tried  # no longer than before
    t._check_layout(later)
    assert len(tried) == 1 and t.data_collator.packed
    t._check_layout(later)
    assert len(tried) == 1
    monkeypatch.undo()
    t._check_layout(tokenize_preferences(rows_of_text(2), WORDS))
    assert not t.data_collator.packed and "looks back 25 tokens" in caplog.text
    assert off(t, tokenize_preferences(rows_of_text(2), WORDS)) < 1e-3


def test_the_trial_leaves_the_head_without_work(tmp_path, monkeypatch):
    "All logits of the longest rows at once could be more than training ever needs."
    model = model_that_sees("window", 4096)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    t = trainer(model, tmp_path, rows_of_text(2))
    few = 4 * 24  # the small trial, before
    assert t.data_collator.packed and max(seen) <= few and seen[-1] == 0


def test_the_longest_groups_are_found(tmp_path):
    from slpo.packing import _extent_of

    one, two = Dataset.from_list(groups(40, 3, seed=1)), Dataset.from_list(groups(30, 2, seed=2))
    found = _extent_of([one, two], 0)
    every = [*one, *two]

    def row(g):
        return len(g["prompt_ids"]) + max(map(len, g["completion_ids"]))

    def size(g):
        return len(g["prompt_ids"]) + sum(map(len, g["completion_ids"]))

    assert found.row == max(map(row, every)) == max(map(row, found.groups))
    assert found.group == max(map(size, every)) == max(map(size, found.groups))
    assert (
        max(len(g["prompt_ids"]) for g in found.groups) == max(len(g["prompt_ids"]) for g in every)
        and 1 <= len(found.groups) <= 3
    )


def test_a_soft_cap_is_kept_when_the_head_works_in_chunks(monkeypatch):
    from slpo.packing import _why_not_in_chunks, _why_not_packed

    model = tiny(
        "Gemma3Text",
        dict(
            GROUPED,
            head_dim=8,
            query_pre_attn_scalar=8,
            final_logit_softcapping=2.0,
            tie_word_embeddings=False,
        ),
    )
    assert _why_not_packed(model) is None and _why_not_in_chunks(model) is None
    from slpo.packing import PreferenceCollator

    many = groups(6, 3)
    with torch.no_grad():
        want = one_by_one(model, many)
        for budget in (1e9, 0.002):
            torch.testing.assert_close(
                batch_logps(model, PreferenceCollator(0)(many), budget),
                want,
                rtol=1e-5,
                atol=1e-4,
            )
    monkeypatch.setattr("slpo.packing._after_head", lambda config: {"scale": 1.0, "softcap": None})
    assert "unknown" in _why_not_in_chunks(model)  # the trial sees one that is left out
