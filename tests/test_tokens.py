"""Which tokens a row of text or messages becomes: the prompt's, the completions', and where each of them ends."""
import datasets
import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from slpo.data import encode_prompt, tokenize_preferences, train_tokenizer

datasets.disable_progress_bars()

TEMPLATE = """{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def adding(bos=False, eos=False):
    "A byte-level tokenizer that puts BOS before every text, or EOS after it."
    tokenizer = train_tokenizer(["yes no question"]*9, vocab_size=270)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ids = {"<s>": tokenizer.bos_token_id, tokenizer.eos_token: tokenizer.eos_token_id}
    pieces = ["<s>"]*bos + ["$A"] + [tokenizer.eos_token]*eos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=" ".join(pieces), special_tokens=list(ids.items()))
    return tokenizer


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("prompt", ["Question:", "<s>Question:", "", [say("user", "Question?")]])
def test_a_prompt_is_the_same_in_training_and_in_sampling(bos, eos, prompt):
    tokenizer = adding(bos, eos)
    ends = ([[say("assistant", x)] if isinstance(prompt, list) else x for x in ("yes", "no")])
    row = dict(prompt=prompt, chosen=ends[0], rejected=ends[1])
    trained = tokenize_preferences(Dataset.from_list([row]), tokenizer)[0]["prompt_ids"]
    text = f"[user]Question?{tokenizer.eos_token}\n[assistant]" if isinstance(prompt, list) else prompt
    alone = tokenizer(text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
    with_bos = not isinstance(prompt, list) and (bos or prompt.startswith("<s>"))
    want = [tokenizer.bos_token_id]*with_bos + alone
    assert encode_prompt(prompt, tokenizer) == trained == (want or [tokenizer.bos_token_id])
