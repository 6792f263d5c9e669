"""Type checkers see what users see: every public method of the trainer, and no error of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SCRIPT = """
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from slpo import SLPOConfig, SLPOTrainer, slpo_loss


class Own(SLPOTrainer):
    def preference_loss(self, logps, ref_logps, lengths, ranks) -> torch.Tensor:
        return slpo_loss(logps, ref_logps, alpha=self.args.alpha, reduction="none")


rows = Dataset.from_list([dict(prompt="2 + 2 =", chosen=" 4", rejected=" 5")])
model = AutoModelForCausalLM.from_pretrained("EleutherAI/pythia-70m")
trainer = Own(model, args=SLPOConfig(alpha=0.9, loss_type="slpo"), train_dataset=rows)
loss: float = trainer.train(resume_from_checkpoint=True).training_loss
logps: list = trainer.group_logps(trainer.train_dataset)
metrics: dict = trainer.evaluate(rows)
trainer.predict(rows).predictions
trainer.save_model("out")
trainer.create_model_card("out", model_name="mine")
"""

MISTAKES = """
from slpo import SLPOConfig, SLPOTrainer

trainer = SLPOTrainer("EleutherAI/pythia-70m", args=SLPOConfig(alfa=1))
trainer.group_logp()
trainer.args.alfa
"""


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    "A function that runs mypy as the repository configures it; what it says, line by line."
    pytest.importorskip("mypy")
    cache = tmp_path_factory.mktemp("mypy")

    def run(*arguments) -> list:
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "error:" in line]

    return run


def test_the_package_has_no_type_errors(mypy):
    assert mypy() == []


def test_a_users_script_has_no_type_errors(mypy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert mypy("--follow-imports", "silent", script) == []


def test_a_users_mistakes_are_seen(mypy, tmp_path):
    script = tmp_path / "mistakes.py"
    script.write_text(MISTAKES)
    errors = mypy("--follow-imports", "silent", script)
    assert len(errors) == 3, errors
    assert '"alfa" for "SLPOConfig"' in errors[0]
    assert 'has no attribute "group_logp"' in errors[1]
    assert '"SLPOConfig" has no attribute "alfa"' in errors[2]
