"""One marked word, followed from a line of a file to the loss.

Every value that a function of the package returns on the way is looked at. The modules in which the
mark appears come in the order of the ladder, and none is met before an earlier one.
"""

import json
import sys

import datasets
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import ladder
from slpo.data import load_preferences
from slpo.packing import PreferenceCollator, batch_logps
from slpo.sample_mass import slpo_sample_loss
from slpo.tokens import tokenize_preferences, train_tokenizer

WORD, UNLIKELY = "zebra", -5000.0  # nats: the mark of the word, once it is a number


class Mark:
    "Is the mark in a value? As text, as its token, or as a log-probability that nothing else has."

    def __init__(self, token: int):
        self.token = token

    def is_in(self, x, depth=0) -> bool:
        if depth > 4:
            return False
        if isinstance(x, str):
            return WORD in x
        if isinstance(x, (bool, type(None))):
            return False
        if isinstance(x, int):
            return x == self.token
        if isinstance(x, float):
            return abs(x) > -UNLIKELY / 100
        if isinstance(x, torch.Tensor):
            if x.is_floating_point():
                return x.numel() > 0 and x.detach().abs().max().item() > -UNLIKELY / 100
            return bool((x == self.token).any())
        if isinstance(x, datasets.Dataset):
            return any(self.is_in(row, depth + 1) for row in x)
        if isinstance(x, dict):
            return any(self.is_in(value, depth + 1) for value in x.values())
        if isinstance(x, (list, tuple)):
            return any(self.is_in(value, depth + 1) for value in x)
        return False


def follow(function, mark: Mark):
    "(what the function returns, modules of slpo in which a returned value has the mark, in order)."
    met = []

    def look(frame, event, value):
        module = frame.f_globals.get("__name__", "")
        if event == "return" and module.startswith("slpo.") and module not in met:
            sys.setprofile(None)
            if mark.is_in(value):
                met.append(module)
            sys.setprofile(look)

    sys.setprofile(look)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return result, [module.removeprefix("slpo.") for module in met]


def test_a_marked_word_passes_the_modules_in_their_order(tmp_path):
    tokenizer = train_tokenizer(["Say a word. It is no or yes."], vocab_size=300)
    tokenizer.add_tokens([WORD])
    token = tokenizer.convert_tokens_to_ids(WORD)
    mark = Mark(token)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval()
    head = torch.nn.Linear(16, len(tokenizer))
    with torch.no_grad():
        head.bias[token] = UNLIKELY
    model.set_output_embeddings(head)

    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "Say a word.", "chosen": f" It is {WORD}.", "rejected": " It is no."},
        {"prompt": "Say a word.", "chosen": " yes", "rejected": " no"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    read, in_reading = follow(lambda: load_preferences(str(path)), mark)
    groups, in_tokens = follow(lambda: tokenize_preferences(read, tokenizer), mark)
    collate = PreferenceCollator(tokenizer.pad_token_id)
    batch, in_batch = follow(lambda: collate(list(groups)), mark)
    logps, in_logps = follow(lambda: batch_logps(model, batch), mark)
    ref_logps = torch.full_like(logps, -20.0).view(2, 2)
    loss, in_loss = follow(
        lambda: slpo_sample_loss(logps.view(2, 2), ref_logps, alpha=0.5, reduction="none"), mark
    )

    assert [mark.is_in(x) for x in (read, groups, batch, logps, loss)] == [True] * 5
    met = list(dict.fromkeys([*in_reading, *in_tokens, *in_batch, *in_logps]))
    assert met == ["files", "data", "tokens", "packing"]
    assert in_tokens[0] == "tokens" and in_batch == in_logps == ["packing"]
    assert in_loss[-1] == "sample_mass"  # a function of numbers, which knows of no module above
    # the mark is in one row of two, at every stage
    assert [mark.is_in(row) for row in read] == [True, False]
    assert [mark.is_in(row) for row in groups] == [True, False]
    assert [mark.is_in(x) for x in logps.view(2, 2)] == [True, False]
    assert [mark.is_in(x) for x in logps] == [True, False, False, False]
    assert [mark.is_in(x) for x in loss] == [True, False]
    # and this is the order of the ladder
    order = list(ladder.graph()[0])
    assert sorted(met, key=order.index) == met


@pytest.mark.parametrize("value", [f"a {WORD}", 7, [[7]], {"ids": [1, 7]}, torch.tensor([7, 1])])
def test_the_mark_is_seen(value):
    assert Mark(7).is_in(value) and not Mark(8).is_in(value) or WORD in str(value)
