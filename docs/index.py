"""What index.ipynb prints from other files: claims, reading times, figures, the ladder."""

import json
import re
import subprocess
import sys
from pathlib import Path

from IPython.display import Markdown

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
import notebooks  # noqa: E402

ROOT = DOCS.parent
RESULTS = ROOT / "nbs" / "results"

# what a reader learns, notebook by notebook
LEARN = {
    "The derivation": {
        "01_logps": "log-probabilities of completions",
        "02_dpo": "DPO from its Eq. 7 to a cross-entropy, and what its target leaves open",
        "03_mass": "soft targets; preferences as moved probability mass; groups, rankings",
        "04_ybar": "all the other sequences: the tree walk, its telescoping, its cost; "
        "`log1mexp` to the last bits",
        "05_loss": "the SLPO loss in its forms, its gradient and limits, the versions of its "
        "author's code",
        "06_sample_mass": "sampled pairs count the reference twice; the repair: DPO plus an anchor",
        "07_family": "IPO, NCA, SPPO; what SLPO-sample is called elsewhere and how far it goes; "
        "the losses as one family",
    },
    "The engine": {
        "08_world": "HH's format, and a built-in world with known truth",
        "09_files": "which files a name means, and what their lines say",
        "10_data": "layouts of preference data; bad rows named",
        "11_tokens": "texts and conversations as token ids; what is cut",
        "12_packing": "groups in shared rows, the head on scored positions, the check that it is "
        "exact",
        "13_settings": "`SLPOConfig`: what can be set, and what goes together",
        "14_models": "models and tokenizers by name; what would train wrongly is refused",
        "15_reference": "reference log-probabilities: once, under the right key",
        "16_stopping": "what stops a run before it does harm; resuming; the model card",
        "17_trainer": "`SLPOTrainer` on `transformers.Trainer`",
        "18_evaluate": "samples, intervals, KL",
        "19_judge": "a win rate by an LLM judge",
        "20_flags": "recipes and flags become settings",
        "21_cli": "`slpo_train`, and what the built-in world shows",
        "22_eval": "`slpo_eval`",
        "23_bench": "`slpo_bench`: speed and memory beside TRL, padded rows, a walk after the "
        "author's and a floor",
        "24_runlog": "a log of runs that is stopped, goes on, and names what is wrong with it",
    },
    "The evidence": {
        "30_markov": "two exact worlds: nine losses at the same distance from the reference, "
        "against the best policy there is; where the defaults come from",
        "31_endpoint": "does training stop by itself: end points over learning rates, λ from "
        "conservative DPO to SLPO-sample; registered, running",
        "32_sentiment": "the DPO paper's controlled sentiment on a CPU: film reviews, a small GPT, "
        "a known reward",
        "33_hh_small": "real HH pairs and a real 135M model, on a CPU",
        "34_pythia28_hh": "the preprint's Pythia-2.8B experiment: recipes, what the original code "
        "does, cost, all of it at small size (it has not run yet)",
    },
    "Guides": {
        "40_own_data": "formats, what bad rows look like and how to mend or drop them; from a "
        "jsonl file to a trained checkpoint",
        "41_own_loss": "write a loss, test it, train with it",
        "42_lora": "adapters: what is trained, what the reference is, what is saved",
        "43_many_gpus": "`torchrun` in front of the same command; recipes; what has not been run",
        "44_logs": "every log key; a healthy run and seven kinds of sick one, with pictures",
        "45_choosing": "α, β, anchor, temperature and learning rate: what was best, how flat, what "
        "is unknown",
        "46_from_trl": "a TRL script before and after, every argument of both, the same numbers "
        "step by step",
    },
    "Tools": {
        "90_plot": "one look for every figure",
        "91_paper": "every number and table of the paper, from where it was measured into LaTeX",
    },
}

# experiment -> the file that it wrote; the command that makes it again
RESULT = {
    "23_bench": "bench",
    "30_markov": "markov",
    "31_endpoint": "endpoint_W3",
    "32_sentiment": "sentiment",
    "33_hh_small": "hh_small",
}
RERUN = "jupyter nbconvert --to notebook --execute --inplace nbs/{}.ipynb"
COMMAND = {
    "23_bench": "slpo_bench",
    "31_endpoint": "slpo_endpoint W3",
    "34_pythia28_hh": "slpo_train --config pythia28-hh-sft",
    **{name: RERUN.format(name) for name in ("30_markov", "32_sentiment", "33_hh_small")},
}


def table(head: list[str], rows: list, align: str = "") -> str:
    "Rows as a Markdown table."
    lines = [head, [align or "---"] + ["---"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def commit(experiment: str) -> str:
    "The commits that a result file names, or the last that changed the file."
    if experiment not in RESULT:
        return "every"
    file = RESULT[experiment]
    log = RESULTS / f"{file}.jsonl"
    if log.exists():
        runs = log.read_text(encoding="utf-8").splitlines()[1:]
        commits = dict.fromkeys(json.loads(run)["commit"].rstrip("+") for run in runs)
        return ", ".join(f"`{c}`" for c in commits)
    named = _result(file).get("commit")
    if not named:
        log = ["git", "log", "-1", "--format=%h", "--", RESULTS / f"{file}.json"]
        named = subprocess.run(log, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return ", ".join(f"`{c[:7]}`" for c in named.split(", "))


def claims() -> Markdown:
    "One row for each claim: what was measured, the verdict, how to make it again."
    packed = _result("numbers/91_paper")["numbers"]
    speed = _result("numbers/23_bench")["numbers"]
    rows = [
        (
            "DPO is a cross-entropy whose target has no finite optimum",
            "02_dpo",
            "asserted",
            "holds",
        ),
        (
            "The probability of all other sequences is exact and costs one `log1mexp`",
            "04_ybar",
            "equal to enumeration and to 50 digits, asserted",
            "holds",
        ),
        (
            "Packed, prompt-shared rows give what separate rows give",
            "12_packing",
            f"to {packed['packedTolerance']} in float64 for {packed['packedArchitectures']} "
            "architectures, tested",
            "holds",
        ),
        (
            "Faster than TRL",
            "23_bench",
            f"reference known to both: {speed['benchTrlKnownBody']} times (a model heavy in its "
            f"body), {speed['benchTrlKnownVocabulary']} times (in its vocabulary); reference in "
            f"each step of both: {speed['benchTrlOnlineBody']} and "
            f"{speed['benchTrlOnlineVocabulary']} times; two CPU cores",
            "holds on a CPU; open on a GPU",
        ),
    ]
    for path in sorted((RESULTS / "claims").glob("*.json")):
        for c in json.loads(path.read_text(encoding="utf-8")):
            rows.append((c["claim"], c["experiment"], c["number"], c["verdict"]))
    open_claim = "SLPO aligns Pythia-2.8B on HH as well as DPO"
    rows.append((open_claim, "34_pythia28_hh", "not yet run", "open"))
    shown = []
    for claim, experiment, number, verdict in rows:
        again = COMMAND.get(experiment, f"nbdev_test --path nbs/{experiment}.ipynb")
        made = "–" if number == "not yet run" else commit(experiment)
        link = f"[{experiment}]({experiment}.ipynb)"
        shown.append((claim, link, number, verdict, f"`{again}`", made))
    head = ["claim", "experiment", "what was measured", "verdict", "command", "commit"]
    return Markdown(table(head, shown))


def reading() -> Markdown:
    "Every notebook: what a reader learns, and how long it takes."
    books = notebooks.books()
    listed = {name for names in LEARN.values() for name in names}
    if missing := set(books) - listed - {"index"}:
        raise ValueError(f"docs/index.py does not say what {sorted(missing)} teach")
    tables = []
    for part, names in LEARN.items():
        rows = []
        for name, text in names.items():
            rows.append((f"[{name}]({name}.ipynb)", text, notebooks.minutes(books[name])))
        tables.append(table([part, "what you learn", "minutes"], rows))
    return Markdown("\n\n".join(tables))


def figures() -> Markdown:
    "The figures of the paper, and where each is drawn."
    home = {}
    for name, cells in notebooks.books().items():
        home |= {figure: name for figure in notebooks.figures(cells)}
    tex = (ROOT / "paper" / "slpo.tex").read_text(encoding="utf-8")
    rows = []
    for i, figure in enumerate(re.findall(r"\\plot{(\w+)}", tex), 1):
        where = f"[{home[figure]}]({home[figure]}.ipynb)" if figure in home else "–"
        rows.append((i, figure, where))
    return Markdown(table(["figure", "file", "notebook"], rows))
