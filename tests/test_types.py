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
def errors(tmp_path_factory):
    """What mypy says, as the repository configures it, of the package and of two scripts: file ->
    lines. One run for all, since most of its time goes into reading torch and transformers."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("types")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "mistakes.py").write_text(MISTAKES)
    files = ["slpo", str(folder / "script.py"), str(folder / "mistakes.py")]
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {"slpo": [], "script.py": [], "mistakes.py": []}
    for line in done.stdout.splitlines():
        if ": error: " in line:
            path = Path(line.split(":")[0])
            found["slpo" if path.parts[0] == "slpo" else path.name].append(line)
    return found


def test_the_package_has_no_type_errors(errors):
    assert errors["slpo"] == []


def test_a_users_script_has_no_type_errors(errors):
    assert errors["script.py"] == []


def test_a_users_mistakes_are_seen(errors):
    alfa, group_logp, setting = errors["mistakes.py"]
    assert '"alfa" for "SLPOConfig"' in alfa
    assert 'has no attribute "group_logp"' in group_logp
    assert '"SLPOConfig" has no attribute "alfa"' in setting
