"""Which tokens a row of text or messages becomes: prompt, completions, and their ends."""

import copy
import json
import math
import random

import datasets
import pytest
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from slpo import SLPOConfig, SLPOTrainer
from slpo.files import ROW, BadRows
from slpo.tokens import encode_prompt, tokenize_preferences, train_tokenizer
from slpo.data import load_preferences

datasets.disable_progress_bars()

EOS = "<|endoftext|>"
TEMPLATE = """{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
# writes tools, a switch, reasoning, a name and calls
FULL = """{% if tools %}TOOLS:{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% if shout %}LOUD{% endif %}{% for m in messages %}[{{ m.role }}
{%- if m.name %} {{ m.name }}{% endif %}]{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}
{%- for c in m.tool_calls or [] %}<call>{{ c | tojson }}{% endfor %}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""  # noqa: E501
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "the time"}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def adding(bos=False, eos=False, template=TEMPLATE):
    "A byte-level tokenizer that puts BOS before every text, or EOS after it."
    tokenizer = train_tokenizer(["yes no question so then: maybe"] * 9, vocab_size=290)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = {"<s>": tokenizer.bos_token_id, tokenizer.eos_token: tokenizer.eos_token_id}
    pieces = ["<s>"] * bos + ["$A"] + [tokenizer.eos_token] * eos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(pieces), special_tokens=list(ids.items())
    )
    return tokenizer


def marking(scheme="first", template=None):
    "A tokenizer that begins a text with a mark of space, and BOS before it, as SentencePiece does."
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    words = ["yes no maybe question so then\n: "] * 20
    inner.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=140,
            special_tokens=["<unk>", "<s>", EOS, "<|u|>", "<|a|>"],
            show_progress=False,
        ),
    )
    inner.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token=EOS, unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def one(row, tokenizer, **options):
    return tokenize_preferences(Dataset.from_list([row]), tokenizer, **options)[0]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("prompt", ["Question:", "<s>Question:", "", [say("user", "Question?")]])
def test_a_prompt_is_the_same_in_training_and_in_sampling(bos, eos, prompt):
    tokenizer = adding(bos, eos)
    chat = isinstance(prompt, list)
    chosen, rejected = ([say("assistant", x)] if chat else x for x in ("yes", "no"))
    trained = one(dict(prompt=prompt, chosen=chosen, rejected=rejected), tokenizer)["prompt_ids"]
    text = f"[user]Question?{tokenizer.eos_token}\n[assistant]" if chat else prompt
    alone = tokenizer(text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
    with_bos = not chat and (bos or prompt.startswith("<s>"))
    want = [tokenizer.bos_token_id] * with_bos + alone
    assert encode_prompt(prompt, tokenizer) == trained == (want or [tokenizer.bos_token_id])


WORDS = ["yes", " no", "maybe", " question", "\n", " ", ":", "so", "  ", "then\n"]
MAKERS = {
    "byte-level": lambda: train_tokenizer(["yes no question so then: maybe"] * 9, vocab_size=290),
    "with BOS": lambda: adding(bos=True),
    "with BOS and EOS": lambda: adding(True, True),
    "space mark, first": marking,
    "space mark, always": lambda: marking("always"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_joint_tokens_are_those_of_the_whole_text(name):
    "Of 2 to 5 completions: the prompt has the tokens that stand wholly in its text, and no others."
    tokenizer, rng, straddling = MAKERS[name](), random.Random(0), 0

    def text(n):
        return "".join(rng.choices(WORDS, k=rng.randrange(1, n)))

    for _ in range(120):
        prompt, start = text(8), text(3) if rng.random() < 0.5 else ""
        completions = list(dict.fromkeys(start + text(5) for _ in range(rng.randrange(2, 6))))
        if (
            not all(c.strip() for c in completions)
            or len(completions) < 2
            or any(a == b for a in completions for b in completions if a is not b)
        ):
            continue
        row = dict(prompt=prompt, completions=completions, ranks=list(range(len(completions))))
        try:
            group = one(row, tokenizer)
        except BadRows as e:  # the tokenizer may not tell them apart
            assert "prefix of another" in str(e)
            continue
        for completion, ids in zip(completions, group["completion_ids"]):
            whole = tokenizer(prompt + completion, return_offsets_mapping=True)
            tokens, spans = whole["input_ids"], whole["offset_mapping"]
            if tokens[-1] == tokenizer.eos_token_id:
                tokens, spans = tokens[:-1], spans[:-1]
            n = len(group["prompt_ids"])
            if group["prompt_ids"] == [tokenizer.eos_token_id]:
                n = 0  # nothing of the prompt is left, and one token must be
            assert group["prompt_ids"][:n] + ids == tokens + [tokenizer.eos_token_id]
            assert all(end <= len(prompt) for _, end in spans[:n])
        alone = encode_prompt(prompt, tokenizer)
        straddling += alone != group["prompt_ids"]
        if alone != group["prompt_ids"]:
            # then the next token is not common to all, or begins in the prompt and ends after it
            assert len({ids[0] for ids in group["completion_ids"]}) > 1 or spans[n][1] > len(prompt)
    assert straddling > 3 or "space mark, always" in name


def test_completions_of_a_marking_tokenizer_are_as_its_text_has_them():
    template = "{% for m in messages %}<|{{ m.role[0] }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|a|>\n{% endif %}"  # noqa: E501
    tokenizer = marking(template=template)
    row = dict(
        prompt=[say("user", "question")],
        completions=[[say("assistant", x)] for x in ("yes", "yes no", "no", "maybe")],
        ranks=[0, 1, 2, 2],
    )
    group = one(row, tokenizer)
    for talk, ids in zip(row["completions"], group["completion_ids"]):
        whole = tokenizer.apply_chat_template(row["prompt"] + talk)["input_ids"]
        n = len(group["prompt_ids"] + ids)
        assert whole[:n] == group["prompt_ids"] + ids and tokenizer.decode(whole[n:]).strip() == ""
    assert tokenizer.convert_ids_to_tokens(group["completion_ids"][0]) == ["yes", EOS]
    apart = one(row, tokenizer, completion_tokens="apart")
    assert (
        tokenizer.convert_ids_to_tokens(apart["completion_ids"][0])[0] == "▁yes"
        and apart["prompt_ids"] == group["prompt_ids"]
    )


def test_a_tokenizer_without_offsets_takes_the_tokens_that_prompt_and_whole_have_in_common():
    tokenizer = train_tokenizer(["yes no question"] * 9, vocab_size=290)
    group = one(dict(prompt="question ", chosen="yes", rejected="no"), tokenizer)

    class Slow:  # what the package uses of a tokenizer written in Python
        is_fast = False

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, add_special_tokens=True):
            return {
                "input_ids": tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            }

        def __len__(self):
            return len(tokenizer)

    from slpo.tokens import _joint, _setup

    prompt, completions, changed = _joint(
        "question ", tokenizer("question ")["input_ids"], ["yes", "no"], False, _setup(Slow())
    )
    assert changed
    assert prompt == group["prompt_ids"]
    assert completions == [ids[:-1] for ids in group["completion_ids"]]


def ends_in(mark, special=True):
    "A chat template that ends every turn in this mark and a line break; EOS may be another token."
    tokenizer = train_tokenizer(["yes no question"] * 9, vocab_size=270)
    if mark != EOS and special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", mark]})
    tokenizer.chat_template = (
        "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}"
        + mark
        + "\n{% endfor %}{% if add_generation_prompt %}<start>assistant\n{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize(
    "mark, special, end",
    [(EOS, True, EOS), ("<end>", True, "<end>"), ("<end>", False, "<end>\n" + EOS)],
)
@pytest.mark.parametrize("how", ["joint", "apart"])
def test_a_turn_ends_where_the_template_ends_it(mark, special, end, how):
    tokenizer = ends_in(mark, special)
    row = dict(
        prompt=[say("user", "question")],
        chosen=[say("assistant", "yes")],
        rejected=[say("assistant", "yes yes")],
    )
    group = one(row, tokenizer, completion_tokens=how)
    assert [tokenizer.decode(ids) for ids in group["completion_ids"]] == [
        "yes" + end,
        "yes yes" + end,
    ]
    if special:
        for bad in (f"no{mark}", f"no{mark}yes"):
            with pytest.raises(
                BadRows,
                match=r"row 0: column 'rejected': the (EOS|end-of-turn) token '.*' inside the text",
            ):
                one({**row, "rejected": [say("assistant", bad)]}, tokenizer, completion_tokens=how)


@pytest.mark.parametrize(
    "after, end",
    [
        ("<end>\n" + EOS, "<end>"),
        ("<calls><end>" + EOS, "<calls><end>"),
        ("<end>" + EOS, "<end>"),
        (EOS + "<end>", EOS),
    ],
)
def test_of_several_special_tokens_the_one_that_ends_every_turn_is_the_end(after, end):
    "Phi-3's template writes EOS again after the last turn; DeepSeek's ends a call before the turn."
    tokenizer = ends_in("<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<end>", "<calls>"]})
    calls = after.partition("<end>")[0] if "<calls>" in after else ""
    turn = "<end>" if end.endswith("<end>") else EOS
    tokenizer.chat_template = (
        "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}{{ '"
        + calls
        + "' if m.call }}"
        + turn
        + "\n{% endfor %}"
        "{% if add_generation_prompt %}<start>assistant\n{% else %}"
        + ("<end>" if turn == EOS else EOS)
        + "{% endif %}"
    )
    row = dict(
        prompt=[say("user", "question")],
        chosen=[say("assistant", "yes", call=1)],
        rejected=[say("assistant", "no", call=1)],
    )
    assert [tokenizer.decode(ids) for ids in one(row, tokenizer)["completion_ids"]] == [
        "yes" + end,
        "no" + end,
    ]


@pytest.mark.parametrize("end", [EOS, EOS + "\n", EOS + " \n\n"])
def test_eos_at_the_end_of_a_text_is_the_end(end):
    tokenizer = train_tokenizer(["yes no question"] * 9, vocab_size=270)
    for how in ("joint", "apart"):
        plain = one(
            dict(prompt="question", chosen=" yes", rejected=" no"), tokenizer, completion_tokens=how
        )
        assert (
            one(
                dict(prompt="question", chosen=" yes" + end, rejected=" no" + end),
                tokenizer,
                completion_tokens=how,
            )
            == plain
        )


def test_a_template_that_rewrites_the_prompt_is_shown():
    tokenizer = train_tokenizer(["yes no question"] * 9, vocab_size=270)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{% if loop.last %}LAST {% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501
    with pytest.raises(BadRows) as e:
        one(
            dict(
                prompt=[say("user", "question")],
                chosen=[say("assistant", "yes")],
                rejected=[say("assistant", "no")],
            ),
            tokenizer,
        )
    assert (
        "another way when a completion follows: '[user]LAST question[assistant]' alone, '[user]question[assistant]LAST yes' with it"  # noqa: E501
        in str(e.value)
    )


CHAT = dict(
    prompt=[say("user", "question")],
    chosen=[say("assistant", "yes")],
    rejected=[say("assistant", "no")],
)
CALL = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1.5}}}]
# what a row has beside role and content, and what the prompt, or else a completion, must then say
MORE = {
    "tools": (dict(tools=[TOOL, CLOCK]), "prompt"),
    "tools as JSON": (dict(tools=json.dumps([TOOL])), "prompt"),
    "a switch": (dict(chat_template_kwargs={"shout": True}), "prompt"),
    "a switch as JSON": (dict(chat_template_kwargs='{"shout": true}'), "prompt"),
    "reasoning": (dict(chosen=[say("assistant", "yes", reasoning_content="hm")]), "chosen"),
    "reasoning alone differs": (
        dict(chosen=[say("assistant", "no", reasoning_content="hm")]),
        "chosen",
    ),
    "a call without content": (
        dict(tools=[TOOL], chosen=[{"role": "assistant", "tool_calls": CALL}]),
        "chosen",
    ),
    "a call with content None": (
        dict(tools=[TOOL], rejected=[say("assistant", None, tool_calls=CALL)]),
        "rejected",
    ),
    "a call and its result in the prompt": (
        dict(
            tools=[CLOCK],
            prompt=[
                say("user", "question"),
                {"role": "assistant", "tool_calls": CALL},
                say("tool", "4", name="add", tool_call_id="1"),
            ],
        ),
        "prompt",
    ),
}


def without_none(x):
    if isinstance(x, dict):
        return {k: without_none(v) for k, v in x.items() if v is not None}
    return [without_none(y) for y in x] if isinstance(x, list) else x


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("way", ["a data set", "a stream", "a file", "parquet", "a trainer"])
def test_everything_reaches_the_chat_template(name, way, tmp_path):
    change, where = MORE[name]
    none = {k: None for k in change if k not in CHAT}  # `from_list` takes the first row's columns
    rows = [{**CHAT, **none}, {**CHAT, **change}, {**CHAT, **none}]
    tokenizer = adding(template=FULL)
    if way == "a data set":
        groups = tokenize_preferences(Dataset.from_list(rows), tokenizer)
    elif way == "a stream":
        groups = tokenize_preferences(IterableDataset.from_generator(lambda: iter(rows)), tokenizer)
    else:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        if way == "parquet":
            Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        loaded = load_preferences(tmp_path / ("rows.parquet" if way == "parquet" else "rows.jsonl"))
        if way == "a trainer":
            args = SLPOConfig(
                output_dir=str(tmp_path / "o"), use_cpu=True, report_to="none", ref_cache_dir=""
            )
            model = GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=8,
                )
            )
            groups = SLPOTrainer(
                model, args=args, train_dataset=loaded, processing_class=tokenizer
            ).train_dataset
        else:
            groups = tokenize_preferences(loaded, tokenizer)
    for row, group in zip(rows, groups):
        row = without_none(row)
        tools, switches = (
            json.loads(x) if isinstance(x, str) else x
            for x in (row.get("tools"), row.get("chat_template_kwargs"))
        )

        def written(messages, **how):
            return tokenizer.apply_chat_template(
                copy.deepcopy(messages), tools=tools, tokenize=False, **how, **(switches or {})
            )

        before = written(row["prompt"], add_generation_prompt=True)
        assert tokenizer.decode(group["prompt_ids"]) == before
        for c, ids in zip(("chosen", "rejected"), group["completion_ids"]):
            assert before + tokenizer.decode(ids) + "\n" == written(row["prompt"] + row[c])
        assert (
            encode_prompt(
                row["prompt"],
                tokenizer,
                tools=row.get("tools"),
                chat_template_kwargs=row.get("chat_template_kwargs"),
            )
            == group["prompt_ids"]
        )
    first, second = list(groups)[:2]
    changed = {
        "prompt": first["prompt_ids"] != second["prompt_ids"],
        "chosen": first["completion_ids"][0] != second["completion_ids"][0],
        "rejected": first["completion_ids"][1] != second["completion_ids"][1],
    }
    assert changed[where]


def test_completions_that_differ_in_another_key_are_two_and_parts_of_text_are_one_text(
    tmp_path, caplog
):
    tokenizer = adding(template=FULL)
    rows = [
        {**CHAT, "rejected": [say("assistant", "yes", reasoning_content="no")]},
        dict(
            chosen=CHAT["prompt"] + CHAT["chosen"],
            rejected=[say("user", "question", name="Bo"), *CHAT["rejected"]],
        ),
    ]
    assert len(tokenize_preferences(Dataset.from_list(rows[:1]), tokenizer)) == 1
    with pytest.raises(BadRows, match="no first messages in common"):
        tokenize_preferences(Dataset.from_list(rows[1:]), tokenizer)
    parts = {
        c: [
            {
                **m,
                "content": [
                    dict(type="text", text=m["content"][:2]),
                    dict(type="text", text=m["content"][2:]),
                ],
            }
            for m in messages
        ]
        for c, messages in CHAT.items()
    }
    assert one(parts, tokenizer) == one(CHAT, tokenizer)
    (tmp_path / "rows.jsonl").write_text(json.dumps(parts))
    assert dict(load_preferences(tmp_path / "rows.jsonl")[0]) == CHAT


def test_what_the_template_leaves_out_is_counted(caplog):
    tokenizer = adding()  # writes role and content alone
    tokenize_preferences(Dataset.from_list([{**CHAT, "tools": [TOOL]}, CHAT]), tokenizer)
    tokenize_preferences(
        Dataset.from_list(
            [{**CHAT, "chosen": [say("assistant", "yes", reasoning_content="hm")]}, CHAT]
        ),
        tokenizer,
    )
    assert [
        "1 rows have tools that" in r.getMessage()
        or "1 rows have messages with keys" in r.getMessage()
        for r in caplog.records
    ] == [True, True]


def test_columns_without_influence_are_named_once(caplog, tmp_path):
    rows = [
        dict(
            prompt="question",
            chosen=" yes",
            rejected=" no",
            system="Be kind.",
            margin=0.5,
            row="A1",
        )
    ] * 3
    tokenizer = adding()
    assert tokenize_preferences(Dataset.from_list(rows), tokenizer)["row"][:] == [0, 1, 2]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    load_preferences(tmp_path / "rows.jsonl")
    assert [r.getMessage() for r in caplog.records] == [
        "columns that are not used: system, margin, row (what 'system' says belongs in the prompt)"
    ] * 2


@pytest.mark.parametrize(
    "values", [["A1", "A2", "A3"], [0.5, 1.5, 2.5], [None] * 3, [7, 8, 9], [[1], [2], [3]]]
)
def test_a_column_called_row_is_the_users_own(values):
    data = Dataset.from_list(
        [dict(prompt="question", chosen=f" yes {i}", rejected=" no") for i in range(3)]
    ).add_column("row", values)
    for rows in (data, data.to_iterable_dataset()):
        assert [g["row"] for g in tokenize_preferences(rows, adding())] == [0, 1, 2]
    moved = data.add_column(ROW, [5, 6, 7]).select([2, 0])
    assert tokenize_preferences(moved, adding())["row"][:] == [7, 5]


# groups that were tokenised before: a change to the second of three, column, reason, options
GROUPS = [
    dict(
        prompt_ids=[9, 10 + i],
        completion_ids=[[11, 12, 0], [13, 0], [14, 0]],
        ranks=[0, 1, 1],
        ref_logps=[-3.5, -2.0, -1.0],
    )
    for i in range(3)
]
BAD = [
    (dict(prompt_ids=[]), "prompt_ids", "no tokens", {}),
    (dict(prompt_ids=None), "prompt_ids", "missing", {}),
    (dict(prompt_ids=[10**6]), "prompt_ids", "token id 1000000 is not in", {}),
    (dict(completion_ids=[]), "completion_ids", "0 completions: a preference has two or more", {}),
    (
        dict(completion_ids=[[11, 0]], ranks=[0], ref_logps=[-1.0]),
        "completion_ids",
        "1 completion: a preference",
        {},
    ),
    (dict(completion_ids=None), "completion_ids", "missing", {}),
    (dict(completion_ids=[[11, 0], [], [12, 0]]), "completion_ids", "no tokens", {}),
    (dict(completion_ids=[[11, 0], [-1], [12, 0]]), "completion_ids", "token id -1", {}),
    (
        dict(completion_ids=[[11, 0], [12, 0], [11, 0]]),
        "completion_ids",
        "a prefix of another, or equal",
        {},
    ),
    (dict(completion_ids=[[11, 0], [11], [12, 0]]), "completion_ids", "a prefix of another", {}),
    (
        dict(completion_ids=[[11, 0, 11, 0], [13, 0], [12, 0]]),
        "completion_ids",
        "before the end",
        {},
    ),
    (dict(ranks=None), "ranks", "missing", {}),
    (dict(ranks=[0, 1]), "ranks", "2 ranks for 3 completions", {}),
    (dict(ranks=[1, 1, 1]), "ranks", "nothing is preferred", {}),
    (dict(ranks=[0, None, 1]), "ranks", "expected integers", {}),
    (dict(ref_logps=None), "ref_logps", "missing", {}),
    (dict(ref_logps=[-1.0]), "ref_logps", "expected one log-probability for each", {}),
    (dict(ref_logps=[-1.0, math.nan, -1.0]), "ref_logps", "nan is not a log-probability", {}),
    (dict(ref_logps=[-1.0, 2.0, -1.0]), "ref_logps", "2.0 is not", {}),
    (dict(prompt_ids=[9] * 30), "prompt_ids", "leave no room", dict(max_length=24)),
    (
        dict(completion_ids=[[11] * 40, [12, 0], [13, 0]]),
        "completion_ids",
        "its reference log-prob is that of all of it",
        dict(max_length=24),
    ),
]


@pytest.mark.parametrize("change, column, reason, options", BAD)
def test_groups_are_checked_like_text(change, column, reason, options, tmp_path):
    rows, tokenizer = [GROUPS[0], {**GROUPS[1], **change}, GROUPS[2]], adding()
    for make in (
        Dataset.from_list,
        lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
    ):
        with pytest.raises(BadRows) as e:
            list(tokenize_preferences(make(rows), tokenizer, **options))
        assert {f.row for f in e.value.findings} == {1} and any(
            f.column == column and reason in f.reason for f in e.value.findings
        ), e.value
        assert [
            g["prompt_ids"]
            for g in tokenize_preferences(make(rows), tokenizer, on_bad_rows="drop", **options)
        ] == [[9, 10], [9, 12]]


def test_groups_stay_what_they_are_best_first_and_cut():
    tokenizer = adding()
    data = (
        Dataset.from_list(GROUPS).add_column("mine", ["a", "b", "c"]).add_column("row", [4, 5, 6])
    )
    again = tokenize_preferences(data, tokenizer)
    assert (
        [{k: g[k] for k in GROUPS[0]} for g in again] == GROUPS
        and again["row"][:] == [4, 5, 6]
        and again["mine"][:] == ["a", "b", "c"]
    )
    turned = [
        {
            **g,
            "completion_ids": g["completion_ids"][::-1],
            "ranks": [1, 1, 0],
            "ref_logps": g["ref_logps"][::-1],
        }
        for g in GROUPS
    ]
    best = tokenize_preferences(Dataset.from_list(turned), tokenizer)[0]
    assert (best["completion_ids"][0], best["ranks"], best["ref_logps"][0]) == (
        [11, 12, 0],
        [0, 1, 1],
        -3.5,
    )
    assert tokenize_preferences(Dataset.from_list(GROUPS), tokenizer, sft=True)[0][
        "completion_ids"
    ] == [[11, 12, 0]]
    bare = Dataset.from_list(GROUPS).remove_columns("ref_logps")
    cut = tokenize_preferences(bare, tokenizer, max_length=4)[0]
    assert cut["completion_ids"] == [[11, 12], [13, 0], [14, 0]]
    with pytest.raises(BadRows, match="column 'ranks': missing"):
        tokenize_preferences(bare.remove_columns("ranks"), tokenizer)


def test_a_trainer_checks_and_cuts_groups(tmp_path):
    tokenizer = adding()
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )
    bare = Dataset.from_list(GROUPS).remove_columns("ref_logps")
    args = SLPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", ref_cache_dir="", max_length=4
    )
    trainer = SLPOTrainer(model, args=args, train_dataset=bare, processing_class=tokenizer)
    assert trainer.train_dataset[0]["completion_ids"] == [[11, 12], [13, 0], [14, 0]]
    with pytest.raises(BadRows, match="column 'ranks'"):
        SLPOTrainer(
            model,
            args=args,
            train_dataset=bare.map(lambda row: {"ranks": [1, 1, 1]}),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(
    "limits, prompt, completion",
    [
        (dict(max_prompt_length=3), 3, 7),
        (dict(max_completion_length=4), 6, 4),
        (dict(max_prompt_length=3, max_completion_length=4), 3, 4),
        (dict(max_prompt_length=9, max_completion_length=9), 6, 7),
    ],
)
def test_limits_hold_without_max_length(limits, prompt, completion, caplog):
    tokenizer = train_tokenizer([], vocab_size=257)  # a token is a byte
    group = one(dict(prompt="prompt", chosen="chosen", rejected="reject"), tokenizer, **limits)
    assert (
        len(group["prompt_ids"]) == prompt
        and [len(ids) for ids in group["completion_ids"]] == [completion] * 2
    )
    assert [r.getMessage() for r in caplog.records] == (
        ["2 completions were cut to max_completion_length=4 and lost their EOS"]
        if completion == 4
        else []
    )
    keep = one(
        dict(prompt="prompt", chosen="chosen", rejected="reject"),
        tokenizer,
        truncation_mode="keep_start",
        **limits,
    )
    assert tokenizer.decode(keep["prompt_ids"]) == "prompt"[:prompt]


def test_ultrafeedback_has_its_prompt_in_the_conversations(tmp_path):
    tokenizer = adding()
    talks = dict(chosen=CHAT["prompt"] + CHAT["chosen"], rejected=CHAT["prompt"] + CHAT["rejected"])
    for row in (
        dict(prompt="question", **talks),
        dict(
            prompt="question",
            **{c: [say("system", "Be kind."), *talk] for c, talk in talks.items()},
        ),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "score_chosen": 8.0}))
        want = one({c: row[c] for c in talks}, tokenizer)
        assert (
            one(row, tokenizer)
            == want
            == tokenize_preferences(load_preferences(tmp_path / "rows.jsonl"), tokenizer)[0]
        )
    with pytest.raises(BadRows, match="messages after a prompt of plain text"):
        one(dict(prompt="another", **talks), tokenizer)


FOREIGN = {
    "Llama 3": "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",  # noqa: E501
    "Gemma": "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "ChatML": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "Zephyr": "<|user|>\nHi</s>\n<|assistant|>\n",
    "Phi": "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "Mistral": "[INST] Hi [/INST]",
    "DeepSeek": "<｜User｜>Hi<｜Assistant｜>",
    "Cohere": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi",
}


def marked_rows(prompt, n=3):
    return [dict(prompt=prompt, chosen=f"yes {i}", rejected=f"no {i}") for i in range(n)] + [
        dict(prompt="so", chosen="yes", rejected="no")
    ]


@pytest.mark.parametrize("family", FOREIGN)
def test_marks_of_another_models_template_are_said_once(family, caplog):
    tokenizer, data = train_tokenizer(["yes no"]), Dataset.from_list(marked_rows(FOREIGN[family]))
    tokenize_preferences(data, tokenizer)
    said = [r.getMessage() for r in caplog.records if "chat template" in r.getMessage()]
    assert (
        len(said) == 1
        and said[0].startswith("3 rows ")
        and next(mark for mark in ("[INST]", "<") if mark in said[0])
    )
    caplog.clear()
    list(tokenize_preferences(data.to_iterable_dataset(), tokenizer))
    assert "chat template" in caplog.text and "up to row 0: 1 row" in caplog.text


def test_marks_in_completions_alone_are_seen(caplog):
    rows = [dict(prompt="so", chosen="yes<end_of_turn>", rejected="no<end_of_turn>")]
    tokenize_preferences(Dataset.from_list(rows), train_tokenizer(["yes no"]))
    assert "<end_of_turn>" in caplog.text


def test_marks_of_the_tokenizers_own_are_fine(caplog):
    for family in ("ChatML", "Gemma", "Phi"):
        tokenizer = train_tokenizer(["yes no"])
        tokenizer.add_special_tokens(
            {
                "additional_special_tokens": [
                    "<|im_start|>",
                    "<|im_end|>",
                    "<start_of_turn>",
                    "<end_of_turn>",
                    "<|user|>",
                    "<|assistant|>",
                    "<|end|>",
                ]
            }
        )
        tokenize_preferences(Dataset.from_list(marked_rows(FOREIGN[family])), tokenizer)
    tokenizer = train_tokenizer(["yes no"])  # letters, but its template writes them
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"  # noqa: E501
    tokenize_preferences(Dataset.from_list(marked_rows(FOREIGN["Mistral"])), tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"  # noqa: E501
    tokenize_preferences(Dataset.from_list(marked_rows(FOREIGN["Phi"])), tokenizer)
    plain = [dict(prompt="if a < b | c > d: x[1]", chosen="<b>yes</b>", rejected="[no]")]
    tokenize_preferences(Dataset.from_list(plain), train_tokenizer(["yes no"]))
    assert "chat template" not in caplog.text
