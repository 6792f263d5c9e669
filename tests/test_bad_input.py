"""Every kind of bad input in one table: what is wrong with which row, and the finding it gives."""

import gzip
import json
import logging
import math
import pickle
import random

import datasets
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from slpo.cli import train_main
from slpo.files import BadRows, Finding
from slpo.tokens import _encode, _setup, tokenize_preferences, train_tokenizer
from slpo.data import load_preferences

datasets.disable_progress_bars()

TEMPLATE = """{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}[{{ m.role }}]{{ m.content | replace('NOTHING', '') }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""  # noqa: E501
EOS = "<|endoftext|>"


def tokenizer_with(template=TEMPLATE):
    tokenizer = train_tokenizer(["yes no question"] * 9, vocab_size=270)
    tokenizer.chat_template = template
    return tokenizer


def letters(known):
    "A tokenizer that knows these letters, in lower case, and drops all others."
    table = Tokenizer(models.BPE({w: i for i, w in enumerate([EOS, *known])}, []))
    table.normalizer, table.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=table, eos_token=EOS)


TOKENIZER, LETTERS = tokenizer_with(), letters("questionyhw:012")


def say(role, content, **more):
    return [{"role": role, "content": content, **more}]


def hh(reply, ask="Hi.", turn="\n\nAssistant:"):
    return f"\n\nHuman: {ask}{turn}{reply}"


# Three good rows of every layout. A bad row is the second of them with a change; `...` takes a
# column away.
ASKED = [say("system", "Be kind.") + say("user", f"Question {i}?") for i in range(3)]
GOOD = {
    "text": [
        dict(prompt=f"Question {i}:", chosen=f" yes {i}", rejected=f" no {i}") for i in range(3)
    ],
    "many": [
        dict(prompt=f"Question {i}:", chosen=f" yes {i}", rejected=[f" no {i}", f" why {i}"])
        for i in range(3)
    ],
    "ranked": [
        dict(prompt=f"Question {i}:", completions=[f" no {i}", f" yes {i}", " hm"], ranks=[1, 0, 1])
        for i in range(3)
    ],
    "hh": [dict(chosen=hh(f" yes {i}"), rejected=hh(f" no {i}")) for i in range(3)],
    "chat": [
        dict(
            prompt=ASKED[i],
            chosen=say("assistant", f"yes {i}"),
            rejected=say("assistant", f"no {i}"),
        )
        for i in range(3)
    ],
    "chat many": [
        dict(
            prompt=ASKED[i],
            chosen=say("assistant", f"yes {i}"),
            rejected=[say("assistant", f"no {i}"), say("assistant", "why")],
        )
        for i in range(3)
    ],
    "chat ranked": [
        dict(
            prompt=ASKED[i],
            completions=[say("assistant", f"no {i}"), say("assistant", f"yes {i}")],
            ranks=[1, 0],
        )
        for i in range(3)
    ],
    "talks": [
        dict(
            chosen=ASKED[i] + say("assistant", f"yes {i}"),
            rejected=ASKED[i] + say("assistant", f"no {i}"),
        )
        for i in range(3)
    ],
    "ids": [
        dict(prompt_ids=[9, 10 + i], chosen_ids=[11, 12, 0], rejected_ids=[13, 0]) for i in range(3)
    ],
    "ids with refs": [
        dict(
            prompt_ids=[9, 10 + i],
            chosen_ids=[11, 12, 0],
            rejected_ids=[13, 0],
            ref_chosen_logps=-3.5,
            ref_rejected_logps=-2.0,
        )
        for i in range(3)
    ],
}
P = "\n\nHuman: Hi.\n\nAssistant:"

# name, layout, change, column, reason: seen in the rows alone, so `load_preferences` must find it,
# and `tokenize_preferences` too
ROWS = [
    ("prompt None", "text", dict(prompt=None), "prompt", "missing"),
    (
        "prompt absent",
        "text",
        dict(prompt=...),
        "chosen",
        "no column 'prompt'",
    ),  # in Arrow it is there, and None
    ("prompt NaN", "text", dict(prompt=math.nan), "prompt", "missing"),
    ("prompt a number", "text", dict(prompt=3), "prompt", "expected a string, got int"),
    ("prompt a bool", "text", dict(prompt=True), "prompt", "expected a string, got bool"),
    ("prompt bytes", "text", dict(prompt=b"Q"), "prompt", "expected a string, got bytes"),
    ("prompt a dict", "text", dict(prompt={"text": "Q"}), "prompt", "expected a string, got dict"),
    (
        "prompt a list of strings",
        "text",
        dict(prompt=["Q"]),
        "prompt",
        "message 0: expected a 'role' and a 'content', got str",
    ),
    (
        "prompt half a character",
        "text",
        dict(prompt="Q\ud83d"),
        "prompt",
        "lone surrogate '\\ud83d') at character 2",
    ),
    ("chosen None", "text", dict(chosen=None), "chosen", "missing"),
    ("chosen absent", "text", dict(chosen=...), "chosen", "missing"),
    ("chosen NaN", "text", dict(chosen=math.nan), "chosen", "missing"),
    ("chosen a number", "text", dict(chosen=1.5), "chosen", "expected a string, got float"),
    ("chosen a dict", "text", dict(chosen={"a": "b"}), "chosen", "expected a string, got dict"),
    ("chosen a list", "text", dict(chosen=[" yes"]), "chosen", "expected a string, got list"),
    ("chosen empty", "text", dict(chosen=""), "chosen", "empty completion"),
    ("chosen blank", "text", dict(chosen=" \n\t\u00a0\u2003"), "chosen", "empty completion"),
    (
        "chosen half a character",
        "text",
        dict(chosen="\udc00"),
        "chosen",
        "lone surrogate '\\udc00') at character 1",
    ),
    (
        "chosen messages after text",
        "text",
        dict(chosen=say("assistant", "yes")),
        "chosen",
        "messages after a prompt of plain text",
    ),
    ("rejected None", "text", dict(rejected=None), "rejected", "missing"),
    ("rejected absent", "text", dict(rejected=...), "rejected", "missing"),
    ("rejected empty", "text", dict(rejected=""), "rejected", "empty completion"),
    ("rejected a bool", "text", dict(rejected=False), "rejected", "expected a string, got bool"),
    ("rejected identical", "text", dict(rejected=" yes 1"), "rejected", "identical to 'chosen'"),
    (
        "rejected a dict",
        "text",
        dict(rejected={"role": "assistant"}),
        "rejected",
        "expected a string, got dict",
    ),
    (
        "rejected messages after text",
        "text",
        dict(rejected=say("assistant", "no")),
        "rejected",
        "messages after a prompt of plain text",
    ),
    (
        "transcript beside its prompt",
        "text",
        dict(prompt=P, chosen=P + " yes"),
        "chosen",
        "repeats the prompt",
    ),
    ("no rejected in the list", "many", dict(rejected=[]), "rejected", "an empty list"),
    (
        "None in the list",
        "many",
        dict(rejected=[" no", None]),
        "rejected",
        "expected a string, got NoneType",
    ),
    (
        "an empty one in the list",
        "many",
        dict(rejected=[" no", ""]),
        "rejected",
        "empty completion",
    ),
    (
        "a number in the list",
        "many",
        dict(rejected=[" no", 4]),
        "rejected",
        "expected a string, got int",
    ),
    (
        "a list in the list",
        "many",
        dict(rejected=[" no", [" why"]]),
        "rejected",
        "expected a string, got list",
    ),
    (
        "twice in the list",
        "many",
        dict(rejected=[" no", " no"]),
        "rejected",
        "holds the same completion twice",
    ),
    (
        "chosen in the list",
        "many",
        dict(rejected=[" no", " yes 1"]),
        "rejected",
        "identical to 'chosen'",
    ),
    ("completions None", "ranked", dict(completions=None), "completions", "missing"),
    (
        "completions a string",
        "ranked",
        dict(completions=" no"),
        "ranks",
        "completions and ranks must be lists",
    ),
    ("completions none", "ranked", dict(completions=[], ranks=[]), "completions", "an empty list"),
    (
        "completions one",
        "ranked",
        dict(completions=[" no"], ranks=[0]),
        "ranks",
        "nothing is preferred",
    ),
    (
        "completions None inside",
        "ranked",
        dict(completions=[" no", None, " hm"]),
        "completions",
        "expected a string, got NoneType",
    ),
    (
        "completions an empty one",
        "ranked",
        dict(completions=[" no", " ", " hm"]),
        "completions",
        "empty completion",
    ),
    (
        "completions twice the same",
        "ranked",
        dict(completions=[" no", " hm", " hm"]),
        "completions",
        "holds the same completion twice",
    ),
    (
        "completions nested",
        "ranked",
        dict(completions=[[" no"], [" yes"], [" hm"]]),
        "completions",
        "expected a string, got list",
    ),
    ("ranks None", "ranked", dict(ranks=None), "ranks", "missing"),
    ("ranks absent", "ranked", dict(ranks=...), "ranks", "missing"),
    ("ranks too few", "ranked", dict(ranks=[0, 1]), "ranks", "2 ranks for 3 completions"),
    ("ranks floats", "ranked", dict(ranks=[1.0, 0.0, 1.0]), "ranks", "expected integers"),
    ("ranks NaN", "ranked", dict(ranks=[1, math.nan, 0]), "ranks", "expected integers"),
    ("ranks strings", "ranked", dict(ranks=["1", "0", "1"]), "ranks", "expected integers"),
    ("ranks bools", "ranked", dict(ranks=[True, False, True]), "ranks", "expected integers"),
    ("ranks None inside", "ranked", dict(ranks=[1, None, 0]), "ranks", "expected integers"),
    (
        "ranks too large",
        "ranked",
        dict(ranks=[1, 0, 2**40]),
        "ranks",
        "expected integers (of 32 bits)",
    ),
    (
        "ranks beyond 64 bits",
        "ranked",
        dict(ranks=[1, 0, 2**80]),
        "ranks",
        "expected integers (of 32 bits)",
    ),
    ("ranks all equal", "ranked", dict(ranks=[1, 1, 1]), "ranks", "nothing is preferred"),
    ("no assistant in chosen", "hh", dict(chosen="Hello."), "chosen", r"no '\n\nAssistant:' turn"),
    (
        "no assistant in rejected",
        "hh",
        dict(rejected=hh(" no", turn="\nAssistant:")),
        "rejected",
        r"no '\n\nAssistant:' turn",
    ),
    (
        "no assistant in either",
        "hh",
        dict(chosen="Hello.", rejected="No."),
        "chosen",
        "no column 'prompt'",
    ),
    (
        "another question",
        "hh",
        dict(rejected=hh(" no", "Hey.")),
        "rejected",
        "its prompt differs from that of 'chosen'",
    ),
    (
        "part before the last turn",
        "hh",
        dict(chosen=hh(" yes") + hh(" ok"), rejected=hh(" no") + hh(" ok")),
        "rejected",
        "its prompt differs",
    ),
    ("transcript without reply", "hh", dict(chosen=hh(" ")), "chosen", "empty completion"),
    (
        "transcripts identical",
        "hh",
        dict(rejected=hh(" yes 1")),
        "rejected",
        "identical to 'chosen'",
    ),
    ("transcript None", "hh", dict(rejected=None), "rejected", "missing"),
    ("transcript a number", "hh", dict(chosen=7), "chosen", "expected a string, got int"),
    ("transcript half a character", "hh", dict(chosen=hh(" \ud800")), "chosen", "lone surrogate"),
    ("no messages in prompt", "chat", dict(prompt=[]), "prompt", "an empty list"),
    (
        "message without role",
        "chat",
        dict(prompt=[{"content": "Hi."}]),
        "prompt",
        "message 0: no 'role'",
    ),
    (
        "message without content",
        "chat",
        dict(chosen=[{"role": "assistant"}]),
        "chosen",
        "message 0: no 'content'",
    ),
    (
        "message a string",
        "chat",
        dict(chosen=["yes"]),
        "chosen",
        "message 0: expected a 'role' and a 'content', got str",
    ),
    (
        "message None",
        "chat",
        dict(chosen=[None]),
        "chosen",
        "message 0: expected a 'role' and a 'content', got NoneType",
    ),
    (
        "role a number",
        "chat",
        dict(prompt=say(1, "Hi.")),
        "prompt",
        "message 0: 'role': expected a string, got int",
    ),
    (
        "content an image",
        "chat",
        dict(prompt=say("user", [{"type": "image"}])),
        "prompt",
        "message 0: 'content': a part of type 'image': only text can be trained on",
    ),
    (
        "content half a character",
        "chat",
        dict(rejected=say("assistant", "\ud800")),
        "rejected",
        "message 0: 'content': half a character",
    ),
    (
        "ShareGPT keys",
        "chat",
        dict(chosen=[{"from": "gpt", "value": "yes"}]),
        "chosen",
        "message 0: has 'from' and 'value': call them 'role'",
    ),
    (
        "a tool speaks in a completion",
        "chat",
        dict(chosen=say("assistant", "", tool_calls=[{"name": "f"}]) + say("tool", "4")),
        "chosen",
        "holds a message of role 'tool'",
    ),
    (
        "no content and no tool calls",
        "chat",
        dict(chosen=say("assistant", None, tool_calls=[])),
        "chosen",
        "message 0: no 'content'",
    ),
    (
        "half a character in a tool call",
        "chat",
        dict(chosen=say("assistant", "yes", tool_calls=[{"name": "f\ud800"}])),
        "chosen",
        "message 0: tool_calls: half a character",
    ),
    (
        "tools that are no list",
        "chat",
        dict(tools={"name": "f"}),
        "tools",
        "expected a list, or a list as JSON, got dict",
    ),
    (
        "tools that are no JSON",
        "chat",
        dict(tools="[{"),
        "tools",
        "expected a list, or a list as JSON (Expecting",
    ),
    (
        "chat_template_kwargs that are no dict",
        "chat",
        dict(chat_template_kwargs=["x"]),
        "chat_template_kwargs",
        "expected a dict, or a dict as JSON, got list",
    ),
    (
        "a picture beside messages",
        "chat",
        dict(images=["a.png"]),
        "images",
        "holds a value, and only text can be trained on",
    ),
    (
        "a picture beside text",
        "text",
        dict(image={"bytes": None, "path": "a.png"}),
        "image",
        "only text can be trained on",
    ),
    ("sound", "hh", dict(audio={"path": "a.wav"}), "audio", "only text can be trained on"),
    *(
        (f"messages as text: {name}", "text", {column: value}, column, reason)
        for name, column, value, reason in [
            (
                "JSON prompt",
                "prompt",
                json.dumps(say("user", "Hi.")),
                "messages written as text: read them first, with json.loads",
            ),
            (
                "JSON over lines",
                "chosen",
                json.dumps(say("assistant", "yes"), indent=1),
                "with json.loads",
            ),
            ("one message", "rejected", json.dumps(say("assistant", "no")[0]), "with json.loads"),
            (
                "Python's repr",
                "chosen",
                str(say("assistant", "yes")),
                "messages written as text: read them first, with ast.literal_eval",
            ),
            (
                "numpy's repr",
                "chosen",
                "[{'content': 'yes', 'role': 'assistant'}\n {'content': 'so', 'role': 'assistant'}]",  # noqa: E501
                "messages written as text",
            ),
            (
                "JSON in JSON",
                "prompt",
                json.dumps(json.dumps(say("user", "Hi."))),
                "messages written as text: read them first, with json.loads",
            ),
            (
                "other keys first",
                "chosen",
                json.dumps([{"id": 1, **say("assistant", "yes")[0]}]),
                "messages written as text",
            ),
            ("ShareGPT", "prompt", '[{"from": "human", "value": "Hi."}]', "with json.loads"),
        ]
    ),
    (
        "messages as text in a list",
        "many",
        dict(rejected=[" no", json.dumps(say("assistant", "no"))]),
        "rejected",
        "messages written as text",
    ),
    (
        "messages as text among ranked ones",
        "ranked",
        dict(completions=[" no", str(say("assistant", "yes")), " hm"]),
        "completions",
        "messages written as text",
    ),
    (
        "conversations as text",
        "talks",
        {c: json.dumps(ASKED[1] + say("assistant", c)) for c in ("chosen", "rejected")},
        "chosen",
        "messages written as text",
    ),
    (
        "completions and ranks as text",
        "ranked",
        dict(completions='[" no", " yes"]', ranks="[1, 0]"),
        "ranks",
        "completions and ranks must be lists (read the text in completions and ranks first",
    ),
    (
        "all completions repeat the prompt",
        "text",
        dict(
            prompt="What is 1 plus 1?",
            chosen="What is 1 plus 1? yes",
            rejected="What is 1 plus 1? no",
        ),
        "rejected",
        "repeats the prompt, as all completions of the row do",
    ),
    (
        "second message bad",
        "chat",
        dict(prompt=ASKED[1] + say("user", None)),
        "prompt",
        "message 2: no 'content'",
    ),
    ("chosen no messages", "chat", dict(chosen=[]), "chosen", "an empty list"),
    (
        "chosen a string after messages",
        "chat",
        dict(chosen="yes"),
        "chosen",
        "expected a list of messages, got str",
    ),
    (
        "chosen a list of lists",
        "chat",
        dict(chosen=[say("assistant", "yes")]),
        "chosen",
        "message 0: expected a 'role' and a 'content', got list",
    ),
    (
        "chosen says nothing",
        "chat",
        dict(chosen=say("assistant", " ")),
        "chosen",
        "empty completion",
    ),
    (
        "chosen by the user",
        "chat",
        dict(chosen=say("user", "yes")),
        "chosen",
        "holds a message of role 'user'",
    ),
    (
        "several turns in a completion",
        "chat",
        dict(chosen=say("assistant", "yes") + say("user", "so?") + say("assistant", "so")),
        "chosen",
        "holds a message of role 'user'",
    ),
    (
        "completion repeats the prompt",
        "chat",
        dict(chosen=ASKED[1] + say("assistant", "yes")),
        "chosen",
        "repeats the prompt",
    ),
    (
        "messages identical",
        "chat",
        dict(rejected=say("assistant", "yes 1")),
        "rejected",
        "identical to 'chosen'",
    ),
    (
        "messages after a text prompt",
        "chat",
        dict(prompt="Question?"),
        "rejected",
        "messages after a prompt of plain text",
    ),
    (
        "several, one by the user",
        "chat many",
        dict(rejected=[say("assistant", "no"), say("user", "why")]),
        "rejected",
        "holds a message of role 'user'",
    ),
    (
        "several, one twice",
        "chat many",
        dict(rejected=[say("assistant", "no"), say("assistant", "no")]),
        "rejected",
        "holds the same completion twice",
    ),
    (
        "several, one empty",
        "chat many",
        dict(rejected=[say("assistant", "no"), []]),
        "rejected",
        "an empty list",
    ),
    (
        "one conversation as completions",
        "chat ranked",
        dict(completions=say("assistant", "no") + say("assistant", "yes")),
        "completions",
        "expected a list of messages, got dict",
    ),
    (
        "ranked messages without role",
        "chat ranked",
        dict(completions=[[{"content": "no"}], say("assistant", "yes")]),
        "completions",
        "message 0: no 'role'",
    ),
    (
        "nothing in common",
        "talks",
        dict(rejected=say("user", "Other?") + say("assistant", "no")),
        "rejected",
        "no first messages in common",
    ),
    (
        "one message alone",
        "talks",
        dict(chosen=say("assistant", "yes")),
        "rejected",
        "no first messages in common",
    ),
    (
        "conversations identical",
        "talks",
        dict(rejected=ASKED[1] + say("assistant", "yes 1")),
        "rejected",
        "identical to 'chosen'",
    ),
    (
        "conversation ends with the user",
        "talks",
        dict(rejected=ASKED[1] + say("user", "Hello?")),
        "rejected",
        "holds a message of role 'user'",
    ),
    (
        "conversations part too early",
        "talks",
        dict(rejected=ASKED[1][:1] + say("user", "Other?") + say("assistant", "no")),
        "chosen",
        "holds a message of role 'user'",
    ),
    (
        "conversation beside text",
        "talks",
        dict(rejected="no"),
        "rejected",
        "expected a list of messages, got str",
    ),
    (
        "conversation with a broken message",
        "talks",
        dict(chosen=[*ASKED[1], {"role": "assistant", "content": None}]),
        "chosen",
        "message 2: no 'content'",
    ),
]

OTHER = tokenizer_with("{{ messages[-1].content }}")
LONG = dict(prompt="long " * 30)

# name, layout, change, column, reason, options of `tokenize_preferences`: seen once there are
# tokens
TOKENS = [
    (
        "EOS in prompt",
        "text",
        dict(prompt=f"Question{EOS}:"),
        "prompt",
        f"the EOS token '{EOS}' inside the text",
        {},
    ),
    ("EOS before the prompt", "text", dict(prompt=f"{EOS}Question:"), "prompt", "EOS token", {}),
    ("EOS after the prompt", "text", dict(prompt=f"Question:{EOS}"), "prompt", "EOS token", {}),
    ("EOS after chosen, and more", "text", dict(chosen=f" yes{EOS} so"), "chosen", "EOS token", {}),
    ("EOS twice after chosen", "text", dict(chosen=f" yes{EOS}{EOS}"), "chosen", "EOS token", {}),
    ("nothing but EOS", "text", dict(chosen=f" {EOS}\n"), "chosen", "empty completion", {}),
    (
        "text of a chat template",
        "text",
        dict(prompt=f"[user]Question{EOS}\n[assistant]"),
        "prompt",
        "a text that a chat template wrote? Then give messages",
        {},
    ),
    (
        "tool calls that the template does not write",
        "chat",
        dict(chosen=say("assistant", "yes", tool_calls=[{"name": "f"}])),
        "chosen",
        "the chat template does not write 'tool_calls'",
        {},
    ),
    (
        "unwritten tool calls before",
        "chat",
        dict(
            prompt=ASKED[1]
            + say("assistant", "hm", tool_calls=[{"name": "f"}])
            + say("user", "So?")
        ),
        "prompt",
        "the chat template does not write 'tool_calls'",
        {},
    ),
    ("EOS in a transcript", "hh", dict(rejected=hh(f" no{EOS} way")), "rejected", "EOS token", {}),
    (
        "EOS in one of many",
        "many",
        dict(rejected=[" no", f" why{EOS}?"]),
        "rejected",
        "EOS token",
        {},
    ),
    (
        "EOS in ranked completions",
        "ranked",
        dict(completions=[" no", f" yes{EOS}s", " hm"]),
        "completions",
        "EOS token",
        {},
    ),
    (
        "EOS in a message",
        "chat",
        dict(chosen=say("assistant", f"yes{EOS}")),
        "chosen",
        "EOS token",
        {},
    ),
    (
        "EOS in a message of the prompt",
        "talks",
        {c: say("user", f"Hi{EOS}") + say("assistant", c) for c in ("chosen", "rejected")},
        "prompt",
        "EOS token",
        {},
    ),
    (
        "template refuses a role",
        "chat",
        dict(prompt=say("tool", "4")),
        "prompt",
        "the chat template refuses it: no tools here",
        {},
    ),
    (
        "template leaves nothing",
        "chat",
        dict(chosen=say("assistant", "NOTHING")),
        "chosen",
        "empty completion, once written by the chat template",
        {},
    ),
    (
        "template makes them equal",
        "chat",
        dict(chosen=say("assistant", "yes"), rejected=say("assistant", "yesNOTHING")),
        "rejected",
        "equal to it",
        {},
    ),
    (
        "two answers in one completion",
        "chat",
        dict(chosen=say("assistant", "yes") + say("assistant", "so")),
        "chosen",
        "EOS token",
        {},
    ),
    (
        "no room",
        "text",
        LONG,
        "prompt",
        "leave no room for a completion in max_length=24",
        dict(max_length=24),
    ),
    (
        "no room after cutting the prompt",
        "text",
        LONG,
        "prompt",
        "24 tokens leave no room",
        dict(max_length=24, max_prompt_length=24),
    ),
    (
        "equal once cut",
        "text",
        dict(chosen=" " * 30 + "yes", rejected=" " * 30 + "no"),
        "rejected",
        "equal to it, once cut to max_length",
        dict(max_length=24),
    ),
    (
        "words that the tokenizer drops",
        "text",
        dict(chosen="zzz"),
        "chosen",
        "no tokens: the tokenizer knows nothing of it",
        dict(tokenizer=LETTERS),
    ),
    (
        "the same to the tokenizer",
        "text",
        dict(chosen=" yes", rejected=" YES"),
        "rejected",
        "a prefix of another, or equal to it",
        dict(tokenizer=LETTERS),
    ),
]
for c in ("prompt_ids", "chosen_ids", "rejected_ids"):
    TOKENS += [
        (f"{c} {name}", "ids", {c: value}, c, reason, {})
        for name, value, reason in [
            ("None", None, "missing"),
            ("none", [], "no tokens"),
            ("text", "9 10", "expected a list of token ids, got str"),
            ("negative", [9, -1], "token id -1 is not in"),
            (
                "too large",
                [9, 10**6],
                f"token id 1000000 is not in the tokenizer's vocabulary of {len(TOKENIZER)}",
            ),
            ("floats", [9.0, 0.0], "expected token ids, got float"),
            ("bools", [True], "expected token ids, got bool"),
            ("nested", [[9, 0]], "expected token ids, got list"),
            ("None inside", [9, None], "expected token ids, got NoneType"),
        ]
    ]
TOKENS += [
    ("ids equal", "ids", dict(rejected_ids=[11, 12, 0]), "rejected_ids", "equal to it", {}),
    ("ids a prefix", "ids", dict(rejected_ids=[11, 12]), "rejected_ids", "a prefix of another", {}),
    (
        "ids with EOS inside",
        "ids",
        dict(chosen_ids=[11, 0, 12, 0]),
        "chosen_ids",
        "before the end",
        {},
    ),
    (
        "ids without room",
        "ids",
        dict(prompt_ids=[9] * 30),
        "prompt_ids",
        "leave no room",
        dict(max_length=24),
    ),
    (
        "ids equal once cut",
        "ids",
        dict(chosen_ids=[9] * 30 + [0], rejected_ids=[9] * 40 + [0]),
        "rejected_ids",
        "once cut",
        dict(max_length=24),
    ),
    (
        "ids cut under their reference",
        "ids with refs",
        dict(chosen_ids=[9] * 30),
        "rejected_ids",
        "its reference log-prob is that of all of it",
        dict(max_length=24),
    ),
    *(
        (
            f"reference {name}",
            "ids with refs",
            dict(ref_chosen_logps=value),
            "ref_chosen_logps",
            reason,
            {},
        )
        for name, value, reason in [
            ("None", None, "missing"),
            ("NaN", math.nan, "nan is not a log-probability"),
            ("minus infinity", -math.inf, "-inf is not"),
            ("infinity", math.inf, "inf is not"),
            ("above 0", 0.5, "0.5 is not a log-probability"),
            ("text", "-3", "expected a log-probability, got str"),
            ("bool", False, "expected a log-probability, got bool"),
        ]
    ),
]


def three(layout, change):
    "Two good rows and, between them, the bad one."
    good = GOOD[layout]
    return [good[0], {k: v for k, v in {**good[1], **change}.items() if v is not ...}, good[2]]


def expect(findings, column, reason):
    assert {f.row for f in findings} == {1}, findings
    assert any(f.column == column and reason in f.reason for f in findings), findings


def check(run, rows_of, column, reason, caplog):
    "`run(on_bad_rows)` must name row 1, and leave the other two when told to drop."
    with pytest.raises(BadRows) as e:
        run("raise")
    expect(e.value.findings, column, reason)
    assert f"row 1: column '{column}': " in str(e.value) and reason in str(e.value)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="slpo"):
        left = run("drop")
    assert rows_of(left) == [0, 2]
    said = "\n".join(r.getMessage() for r in caplog.records)
    assert f"row 1: column '{column}': " in said and reason in said, said


def in_arrow(rows):
    "These rows as a `Dataset`, where Arrow can hold them unchanged."
    try:
        dataset = Dataset.from_list(rows)
    except Exception:
        return None

    def plain(x):
        return (
            {k: plain(v) for k, v in sorted(x.items()) if v is not None}
            if isinstance(x, dict)
            else [plain(y) for y in x]
            if isinstance(x, list)
            else x
        )

    return dataset if repr(plain(list(dataset))) == repr(plain(rows)) else None


@pytest.mark.parametrize(
    "layout, change, column, reason, options",
    [c[1:] + (({},) if len(c) == 5 else ()) for c in ROWS + TOKENS],
    ids=[c[0] for c in ROWS + TOKENS],
)
def test_row_is_found_when_tokenising(layout, change, column, reason, options, caplog):
    rows, options = three(layout, change), {"tokenizer": TOKENIZER, **options}

    def stream(on_bad_rows):
        return list(
            tokenize_preferences(
                IterableDataset.from_generator(lambda: iter(rows)),
                on_bad_rows=on_bad_rows,
                **options,
            )
        )

    check(stream, lambda left: [g["row"] for g in left], column, reason, caplog)
    if change.get("prompt") is not ... and (dataset := in_arrow(rows)):
        check(
            lambda on_bad_rows: tokenize_preferences(dataset, on_bad_rows=on_bad_rows, **options),
            lambda left: left["row"][:],
            column,
            reason,
            caplog,
        )


def as_json(rows):
    try:
        return "\n".join(map(json.dumps, rows))
    except TypeError:
        return None


def number(row):
    "Which of the three good rows it was."
    return next(int(c) for c in json.dumps(row) if c.isdigit())


@pytest.mark.parametrize(
    "layout, change, column, reason", [c[1:] for c in ROWS], ids=[c[0] for c in ROWS]
)
def test_row_of_a_file_is_found(layout, change, column, reason, tmp_path, caplog, capsys):
    rows, files = three(layout, change), []
    if text := as_json(rows):
        (tmp_path / "rows.jsonl").write_text(text)
        files.append("rows.jsonl")
    if None in change.values() and (dataset := in_arrow(rows)):
        dataset.to_parquet(tmp_path / "rows.parquet")
        files.append("rows.parquet")  # slower, so not every row
    for file in files:
        check(
            lambda on_bad_rows: load_preferences(tmp_path / file, on_bad_rows=on_bad_rows),
            lambda left: list(map(number, left)),
            column,
            reason,
            caplog,
        )
        command(capsys, tmp_path, file, f"row 1: column '{column}': ", reason)


def command(capsys, folder, file, *messages, model="none", more=()):
    status = train_main(
        [
            "--dataset_name",
            str(folder / file),
            "--model_name_or_path",
            str(model),
            "--output_dir",
            str(folder / "out"),
            "--report_to",
            "none",
            *more,
        ]
    )
    said = capsys.readouterr().err
    assert status == 2 and "Traceback" not in said and all(m in said for m in messages), said
    assert not (folder / "out").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A model that `slpo_train` can load."
    folder = tmp_path_factory.mktemp("model")
    TOKENIZER.save_pretrained(folder)
    GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    ).save_pretrained(folder)
    return folder


FOR_COMMAND = [
    c for c in TOKENS if c[1] in ("text", "many", "ranked", "hh") and "tokenizer" not in c[5]
]


@pytest.mark.parametrize(
    "layout, change, column, reason, options",
    [c[1:] for c in FOR_COMMAND],
    ids=[c[0] for c in FOR_COMMAND],
)
def test_row_of_a_file_stops_the_command_when_tokenising(
    layout, change, column, reason, options, tmp_path, capsys, model
):
    rows = [
        {**row, "prompt": f"{i} {row['prompt']}"} if "prompt" in row else row
        for i, row in enumerate(three(layout, change))
    ]
    if "prompt" not in rows[0]:
        rows = [{c: row[c].replace("Hi.", f"Hi {i}.") for c in row} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text(as_json(rows))
    flags = [x for k, v in options.items() for x in (f"--{k}", str(v))]
    command(
        capsys,
        tmp_path,
        "rows.jsonl",
        f"column '{column}': ",
        reason.split(" tokens leave")[-1],
        model=model,
        more=["--eval_size", "1", *flags],
    )


LINE = json.dumps(GOOD["text"][0]).encode()
# name, file, its bytes (None: not there), message
FILES = [
    ("a broken line", "rows.jsonl", LINE + b'\n{"prompt": "Q', "rows.jsonl: line 2: not JSON"),
    (
        "two objects in a line",
        "rows.jsonl",
        LINE + LINE,
        "rows.jsonl: line 1: not JSON (Extra data",
    ),
    ("single quotes", "rows.jsonl", LINE + b"\n\n{'prompt': 'Q'}", "rows.jsonl: line 3: not JSON"),
    (
        "a list",
        "rows.jsonl",
        b"[" + LINE + b"]",
        "rows.jsonl: line 1: expected a JSON object, got list",
    ),
    (
        "a string",
        "rows.jsonl",
        LINE + b'\n"Q"',
        "rows.jsonl: line 2: expected a JSON object, got str",
    ),
    (
        "null",
        "rows.jsonl",
        LINE + b"\nnull",
        "rows.jsonl: line 2: expected a JSON object, got NoneType",
    ),
    (
        "one JSON document over lines",
        "rows.jsonl",
        b"[\n" + LINE + b"\n]",
        "rows.jsonl: line 1: not JSON",
    ),
    (
        "bytes that are no text",
        "rows.jsonl",
        LINE + b"\n\xff\xfe",
        "rows.jsonl: line 2: not UTF-8 (byte 1",
    ),
    (
        "another encoding",
        "rows.jsonl",
        json.dumps({"prompt": "é"}, ensure_ascii=False).encode("latin-1"),
        "rows.jsonl: line 1: not UTF-8 (byte 13",
    ),
    ("UTF-16", "rows.jsonl", LINE.decode().encode("utf-16"), "rows.jsonl: line 1: not UTF-8"),
    (
        "a byte-order mark inside",
        "rows.jsonl",
        LINE + b"\n\xef\xbb\xbf" + LINE,
        "rows.jsonl: line 2: not JSON (Unexpected UTF-8 BOM",
    ),
    (
        "half an array",
        "rows.json",
        b"[" + LINE + b",",
        "rows.json: not JSON (Expecting value at line 1",
    ),
    (
        "an array of strings",
        "rows.json",
        b'["Q"]',
        "rows.json: element 0 of the array: expected a JSON object, got str",
    ),
    ("lines in .json, one broken", "rows.json", LINE + b"\n{", "rows.json: line 2: not JSON"),
    ("an array of other bytes", "rows.json", b'["\xff"]', "rows.json: not UTF-8"),
    (
        "cells without a name",
        "rows.csv",
        b"prompt,chosen,rejected\nQ,a,b\nQ,a,b,c\n",
        "rows.csv: line 3: more cells than the header",
    ),
    ("a header alone", "rows.csv", b"prompt,chosen,rejected\n", "no rows in split 'train'"),
    (
        "CSV in another encoding",
        "rows.csv",
        b"prompt,chosen,rejected\nQ,\xff\xfe,b\n",
        "rows.csv: after line",
    ),
    *(
        (
            f"a pointer for {name}",
            name,
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            f"{name}: a Git LFS pointer, not the data",
        )
        for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv", "rows.json")
    ),
    (
        "a number of 5,000 digits",
        "rows.jsonl",
        LINE + b'\n{"prompt": ' + b"1" * 5000 + b"}",
        "rows.jsonl: line 2: not JSON that can be read",
    ),
    (
        "100,000 brackets",
        "rows.jsonl",
        LINE + b'\n{"prompt": ' + b"[" * 100_000,
        "rows.jsonl: line 2: not JSON that can be read",
    ),
    ("nothing", "rows.jsonl", b"", "no rows in split 'train'"),
    ("blank lines", "rows.jsonl", b"\n \n", "no rows in split 'train'"),
    (
        "half a gzip file",
        "rows.jsonl.gz",
        gzip.compress(LINE)[:-9],
        "rows.jsonl.gz: after line 0: broken gzip data",
    ),
    (
        "a broken line in gzip",
        "rows.jsonl.gz",
        gzip.compress(LINE + b"\n{"),
        "rows.jsonl.gz: line 2: not JSON",
    ),
    (
        "gzip with a wrong checksum",
        "rows.jsonl.gz",
        gzip.compress(LINE + b"\n")[:-8] + b"\0" * 8,
        "rows.jsonl.gz: after line 1: broken gzip data",
    ),
    (
        "gzip with garbage inside",
        "rows.jsonl.gz",
        gzip.compress(LINE)[:12] + b"\xff" * 60,
        "rows.jsonl.gz: after line 0: broken gzip data",
    ),
    ("no gzip at all", "rows.jsonl.gz", LINE, "rows.jsonl.gz: after line 0: broken gzip data"),
    (
        "no Parquet at all",
        "rows.parquet",
        LINE,
        "rows.parquet: not a Parquet file that can be read",
    ),
    (
        "an empty Parquet file",
        "rows.parquet",
        b"",
        "rows.parquet: not a Parquet file that can be read",
    ),
    ("another ending", "rows.tsv", b"prompt\tchosen", "rows.tsv: expected a file that ends in"),
    ("no such file", "rows.jsonl", None, "no such file"),
]


@pytest.mark.parametrize(
    "file, content, message", [c[1:] for c in FILES], ids=[c[0] for c in FILES]
)
@pytest.mark.parametrize("on_bad_rows", ["raise", "drop"])
def test_file_is_named(file, content, message, on_bad_rows, tmp_path, capsys):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        load_preferences(tmp_path / file, on_bad_rows=on_bad_rows)
    assert message in str(e.value) and not isinstance(e.value, BadRows), e.value
    command(capsys, tmp_path, file, message, more=["--on_bad_rows", on_bad_rows])


def test_empty_cells_of_pandas_are_missing(tmp_path, caplog):
    frame = pd.DataFrame([{**row, "extra": math.nan} for row in GOOD["text"]])
    frame.loc[1, "chosen"] = math.nan
    frame.to_parquet(tmp_path / "rows.parquet")
    check(
        lambda on_bad_rows: load_preferences(tmp_path / "rows.parquet", on_bad_rows=on_bad_rows),
        lambda left: list(map(number, left)),
        "chosen",
        "missing",
        caplog,
    )


def test_layouts_do_not_mix(tmp_path, caplog):
    for first, second in [
        ("text", "ranked"),
        ("text", "chat"),
        ("hh", "talks"),
        ("chat", "chat ranked"),
    ]:
        (tmp_path / "rows.jsonl").write_text(
            as_json([GOOD[first][0], GOOD[second][1], GOOD[first][2]])
        )
        check(
            lambda on_bad_rows: load_preferences(tmp_path / "rows.jsonl", on_bad_rows=on_bad_rows),
            lambda left: list(map(number, left)),
            "completions" if "ranked" in second else "chosen",
            "another layout than row 0",
            caplog,
        )


@pytest.mark.parametrize("layout", GOOD)
def test_good_rows_pass(layout, tmp_path, caplog):
    "Nothing is found where nothing is wrong; files, `Dataset`s and streams give the same groups."
    rows, groups = (
        GOOD[layout],
        [
            list(tokenize_preferences(make(GOOD[layout]), TOKENIZER))
            for make in (
                Dataset.from_list,
                lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
            )
        ],
    )
    if not layout.startswith("ids"):
        (tmp_path / "rows.jsonl").write_text(as_json(rows))
        groups.append(
            list(tokenize_preferences(load_preferences(tmp_path / "rows.jsonl"), TOKENIZER))
        )
    assert (
        groups[0] == groups[1] == groups[-1]
        and [g["row"] for g in groups[0]] == [0, 1, 2]
        and not caplog.records
    )


TEXT = Dataset.from_list(GOOD["text"])
NO_EOS = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(["a"]).backend_tokenizer)
CALLS = [
    ("no rows", lambda: tokenize_preferences(TEXT.select([]), TOKENIZER), "the data set is empty"),
    (
        "no rows in a stream",
        lambda: tokenize_preferences(IterableDataset.from_generator(lambda: iter(())), TOKENIZER),
        "the data set is empty",
    ),
    (
        "a list",
        lambda: tokenize_preferences(GOOD["text"], TOKENIZER),
        "argument 'dataset': expected a datasets.Dataset or IterableDataset, got list: datasets.Dataset.from_list(rows)",  # noqa: E501
    ),
    (
        "a path",
        lambda: tokenize_preferences("rows.jsonl", TOKENIZER),
        "got str: load_preferences(path)",
    ),
    (
        "a data set to load",
        lambda: load_preferences(TEXT),
        "argument 'name_or_path': expected a path, a list of paths or a hub id, got Dataset",
    ),
    (
        "a frame",
        lambda: tokenize_preferences(TEXT.to_pandas(), TOKENIZER),
        "got DataFrame: datasets.Dataset.from_pandas(frame)",
    ),
    (
        "columns",
        lambda: tokenize_preferences(TEXT.to_dict(), TOKENIZER),
        "got dict: datasets.Dataset.from_dict(columns)",
    ),
    (
        "all splits",
        lambda: tokenize_preferences(DatasetDict(train=TEXT), TOKENIZER),
        "argument 'dataset': expected a datasets.Dataset",
    ),
    (
        "no column chosen",
        lambda: tokenize_preferences(TEXT.remove_columns("chosen"), TOKENIZER),
        "column 'chosen': missing (the columns are prompt, rejected)",
    ),
    (
        "no column rejected",
        lambda: tokenize_preferences(
            TEXT.remove_columns("rejected"), TOKENIZER, on_bad_rows="drop"
        ),
        "column 'rejected': missing",
    ),
    (
        "no column prompt",
        lambda: tokenize_preferences(TEXT.remove_columns("prompt"), TOKENIZER, on_bad_rows="drop"),
        "no column 'prompt'",
    ),
    (
        "no column ranks",
        lambda: tokenize_preferences(
            Dataset.from_list(GOOD["ranked"]).remove_columns("ranks"), TOKENIZER
        ),
        "column 'ranks': missing",
    ),
    (
        "no column rejected_ids",
        lambda: tokenize_preferences(
            Dataset.from_list(GOOD["ids"]).remove_columns("rejected_ids"), TOKENIZER
        ),
        "column 'rejected_ids': missing",
    ),
    (
        "no column prompt_ids",
        lambda: tokenize_preferences(
            Dataset.from_list(GOOD["ids"]).remove_columns("prompt_ids"), TOKENIZER
        ),
        "column 'prompt_ids': missing",
    ),
    (
        "one column of reference log-probs",
        lambda: tokenize_preferences(
            Dataset.from_list(GOOD["ids with refs"]).remove_columns("ref_rejected_logps"), TOKENIZER
        ),
        "column 'ref_rejected_logps': missing",
    ),
    ("no EOS", lambda: tokenize_preferences(TEXT, NO_EOS), "the tokenizer has no EOS token"),
    (
        "no chat template",
        lambda: tokenize_preferences(Dataset.from_list(GOOD["chat"]), tokenizer_with(None)),
        "the tokenizer has no chat template: set tokenizer.chat_template",
    ),
    (
        "another writing of the prompt",
        lambda: tokenize_preferences(Dataset.from_list(GOOD["talks"]), OTHER, on_bad_rows="drop"),
        "the chat template writes the prompt another way",
    ),
    (
        "truncation_mode",
        lambda: tokenize_preferences(TEXT, TOKENIZER, truncation_mode="middle"),
        "argument 'truncation_mode': 'middle'",
    ),
    (
        "on_bad_rows",
        lambda: tokenize_preferences(TEXT, TOKENIZER, on_bad_rows="ignore"),
        "argument 'on_bad_rows': 'ignore'",
    ),
    (
        "on_bad_rows when loading",
        lambda: load_preferences("world", on_bad_rows="ignore"),
        "argument 'on_bad_rows': 'ignore'",
    ),
    *(
        (
            f"max_length {n}",
            lambda n=n: tokenize_preferences(TEXT, TOKENIZER, max_length=n),
            f"argument 'max_length': expected a positive integer or None, got {n}",
        )
        for n in (0, -4, 2.5, True)
    ),
    (
        "completion_tokens",
        lambda: tokenize_preferences(TEXT, TOKENIZER, completion_tokens="both"),
        "argument 'completion_tokens': 'both' is not 'joint' or 'apart'",
    ),
    (
        "max_prompt_length 0",
        lambda: tokenize_preferences(TEXT, TOKENIZER, max_length=9, max_prompt_length=0),
        "argument 'max_prompt_length'",
    ),
    ("a split that the world lacks", lambda: load_preferences("world", split="dev"), "'dev'"),
    (
        "nothing left",
        lambda: tokenize_preferences(
            Dataset.from_list([{**row, "chosen": " "} for row in GOOD["text"]]),
            TOKENIZER,
            on_bad_rows="drop",
        ),
        "3 of 3 rows are bad (3 × empty completion)",
    ),
]


@pytest.mark.parametrize("call, message", [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_call_is_refused(call, message):
    with pytest.raises(ValueError) as e:
        call()
    assert message in str(e.value), e.value


def test_a_folder_without_the_split_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(LINE)
    with pytest.raises(
        FileNotFoundError,
        match=r"no test\.jsonl, nor any other file of the split 'test' .*There is: train\.jsonl",
    ):
        load_preferences(tmp_path, split="test")


def test_findings_of_several_rows_are_all_reported(caplog):
    rows = (
        [{**GOOD["text"][0], "chosen": " "}] * 12
        + GOOD["text"]
        + [{**GOOD["text"][0], "prompt": None}]
    )
    with pytest.raises(BadRows) as e:
        tokenize_preferences(Dataset.from_list(rows), TOKENIZER)
    assert (
        [f.row for f in e.value.findings] == [*range(12), 15]
        and "13 of 16 rows are bad (12 × empty completion, 1 × missing)" in str(e.value)
        and "… and 3 more" in str(e.value)
    )
    assert tokenize_preferences(Dataset.from_list(rows), TOKENIZER, on_bad_rows="drop")["row"][
        :
    ] == [12, 13, 14]


def test_what_is_cut_or_odd_is_counted(caplog):
    "No finding, but one line each."

    def said(rows, **options):
        caplog.clear()
        tokenize_preferences(Dataset.from_list(rows), **{"tokenizer": TOKENIZER, **options})
        return [r.getMessage() for r in caplog.records]

    long = [{**GOOD["text"][0], "chosen": " yes" * 30}] * 2
    assert said(long + GOOD["text"], max_length=24) == [
        "2 completions were cut to max_length=24 and lost their EOS"
    ]
    for how, start in (
        ("joint", "3 rows have a token in which prompt and completion meet"),
        ("apart", "3 rows would have other tokens where prompt and completion meet"),
    ):
        assert said(
            [{"prompt": "so yes ", "chosen": "no", "rejected": "yes"}] * 3 + GOOD["text"],
            completion_tokens=how,
        )[0].startswith(start)
    with_bos = tokenizer_with()
    with_bos.add_special_tokens({"bos_token": "<s>"})
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", with_bos.bos_token_id)]
    )
    assert said(
        [{**row, "prompt": "<s>" + row["prompt"]} for row in GOOD["text"][:2]] + GOOD["text"],
        tokenizer=with_bos,
    ) == ["2 prompts begin with BOS, which the tokenizer adds as well: one was left out"]
    groups = list(
        tokenize_preferences(
            Dataset.from_list(
                [GOOD["text"][0], {**GOOD["text"][0], "prompt": "<s>" + GOOD["text"][0]["prompt"]}]
            ),
            with_bos,
        )
    )
    assert (
        groups[0]["prompt_ids"] == groups[1]["prompt_ids"]
        and groups[0]["prompt_ids"].count(with_bos.bos_token_id) == 1
    )
    assert said([{**GOOD["ids"][0], "rejected_ids": [13]}] + GOOD["ids"]) == [
        "1 already tokenised completions do not end in EOS"
    ]


def test_the_edge_is_judged_as_the_whole_would_be():
    "Other tokens where prompt and completion meet: the last and first 32 characters tell."
    rng = random.Random(0)
    tokenizer = train_tokenizer(["yes no question so then: "] * 9, vocab_size=290)
    setup = _setup(tokenizer, completion_tokens="apart")
    seen = set()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for _ in range(300):
        prompt, chosen, rejected = (
            rng.choice(["", " "])
            + " ".join(
                rng.choices(["yes", "no", "question", "so", "then:"], k=rng.randrange(1, 20))
            )
            + rng.choice(["", " ", "\n"])
            for _ in range(3)
        )
        whole = any(ids(prompt + text) != ids(prompt) + ids(text) for text in (chosen, rejected))
        assert (
            "apart"
            in _encode(
                prompt,
                [chosen, rejected],
                ["prompt", "chosen", "rejected"],
                False,
                setup,
            )[3]
        ) == whole
        seen.add(whole)
    assert seen == {True, False}


@pytest.mark.parametrize("layout", GOOD)
def test_streams_of_files_shards_and_formats_give_the_same(layout, tmp_path):
    dataset = Dataset.from_list(GOOD[layout])
    want = list(tokenize_preferences(dataset, TOKENIZER))
    for other in (
        dataset.to_iterable_dataset(num_shards=3),
        dataset.with_format("torch"),
        dataset.to_iterable_dataset().with_format("numpy"),
    ):
        got = tokenize_preferences(other, TOKENIZER)
        assert list(got) == want and got.column_names == list(want[0])


def test_an_empty_prompt_is_one_token():
    "Something must predict the first token of a completion."
    group = tokenize_preferences(Dataset.from_list([{**GOOD["text"][0], "prompt": ""}]), TOKENIZER)[
        0
    ]
    assert group["prompt_ids"] == [TOKENIZER.eos_token_id]


def test_bad_rows_survive_a_pickle():
    e = BadRows([Finding(3, "chosen", "missing")], 9)
    again = pickle.loads(pickle.dumps(e))
    assert again.findings == e.findings and str(again) == str(e)


def test_bad_rows_of_a_stream_are_reported_ever_more_rarely(caplog):
    rows = [{**GOOD["text"][0], "chosen": ""}] * 1500 + GOOD["text"]
    groups = tokenize_preferences(
        IterableDataset.from_generator(lambda: iter(rows)), TOKENIZER, on_bad_rows="drop"
    )
    for _ in range(2):  # the second pass as the first
        caplog.clear()
        assert [g["row"] for g in groups] == [1500, 1501, 1502]
        assert (
            len(caplog.records) == 12
            and "row 999: column 'chosen': empty completion (1000 bad rows so far)"
            in caplog.records[-1].getMessage()
        )


@pytest.mark.parametrize(
    "layout, column",
    [("text", "rejected"), ("ranked", "ranks"), ("ids with refs", "ref_rejected_logps")],
)
def test_a_stream_that_does_not_know_its_columns_may_begin_badly(layout, column, caplog):
    rows = [{k: v for k, v in GOOD[layout][0].items() if k != column}, *GOOD[layout][1:]]

    def groups(on_bad_rows):
        return list(
            tokenize_preferences(
                IterableDataset.from_generator(lambda: iter(rows)),
                TOKENIZER,
                on_bad_rows=on_bad_rows,
            )
        )

    with pytest.raises(BadRows, match=f"row 0: column '{column}': missing"):
        groups("raise")
    assert [g["row"] for g in groups("drop")] == [
        1,
        2,
    ] and f"row 0: column '{column}': missing" in caplog.text


def test_templates_own_bos_and_end(caplog):
    "A template writes BOS; what follows its last EOS is cut off; a template without EOS gets one."
    tokenizer = tokenizer_with("<s>" + TEMPLATE)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    open_end = tokenizer_with(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501
    )
    for t, end in ((tokenizer, ""), (open_end, "\n")):
        group = tokenize_preferences(Dataset.from_list(GOOD["talks"]), t)[1]
        assert group["prompt_ids"].count(t.bos_token_id) == (t is tokenizer)
        assert [t.decode(c) for c in group["completion_ids"]] == [
            f"yes 1{end}{EOS}",
            f"no 1{end}{EOS}",
        ]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "role": 3}',
        '[{"a": 1}]',
        "[1, 2]",
        "{}",
        'Say [{"role": "user", "content": "Hi."}]',
        '{"roles": [{"role": "x", "content": "y"}]}',
        "role: user, content: hi",
        "['a', 'b']",
        "{% for m in messages %}",
    ],
)
def test_a_text_that_only_looks_like_messages_is_a_text(text):
    row = dict(prompt="Question:", chosen=text, rejected="no")
    assert len(tokenize_preferences(Dataset.from_list([row]), TOKENIZER)) == 1


def test_completions_may_begin_as_a_short_prompt_does_or_one_of_them_may_repeat_it():
    for prompt, chosen, rejected in (
        ("Hello", "Hello, you", "Hello there"),
        ("What is 1 plus 1?", "What is 1 plus 1? 2", "2"),
        ("", "a", "b"),
        (" " * 20, " " * 20 + "a", " " * 20 + "b"),
    ):
        assert (
            len(
                tokenize_preferences(
                    Dataset.from_list([dict(prompt=prompt, chosen=chosen, rejected=rejected)]),
                    TOKENIZER,
                )
            )
            == 1
        )
