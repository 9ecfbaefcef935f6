"""examples/peft_method_comparison: NOLA in PEFT's own comparison, whose script needs a GPU.

The folder of PEFT's that the example runs in is stood in for by a script that reads a
configuration as theirs does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import transformers

from nola_edge.peft import NolaConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves

EXAMPLE = Path(__file__).parents[2] / "examples" / "peft_method_comparison"
EXPERIMENT = "experiments/nola/llama-3.2-3B-rank32-quarter"
THEIRS = """
import sys
from helper import read
from peft import PeftConfig

assert __name__ == "__main__", __name__
print(sys.argv, read(PeftConfig, sys.argv[-1]))
"""
HELPER = """
def read(config, path):
    return config.from_pretrained(path).peft_type.value
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "run.py"), "-v", str(EXAMPLE / EXPERIMENT)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_their_script_knows_nola_and_gets_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(THEIRS)
    (tmp_path / "helper.py").write_text(HELPER)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("[", 1)[1] == f"'run.py', '-v', '{EXAMPLE / EXPERIMENT}'] NOLA\n"


def test_elsewhere_it_says_where_it_belongs(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "method_comparison/MetaMathQA" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_experiment_has_a_quarter_of_the_parameters_of_lora_of_rank_one() -> None:
    # Attention as in the model of the comparison; only its queries and values are adapted.
    config = transformers.LlamaConfig(
        hidden_size=3072, num_attention_heads=24, num_key_value_heads=8, intermediate_size=64,
        num_hidden_layers=1, vocab_size=16,
    )  # fmt: skip

    def trained(adapter: peft.PeftConfig) -> int:
        model = transformers.AutoModelForCausalLM.from_config(config)
        return peft.get_peft_model(model, adapter).get_nb_trainable_parameters()[0]

    experiment = peft.PeftConfig.from_pretrained(str(EXAMPLE / EXPERIMENT))
    assert isinstance(experiment, NolaConfig)
    assert trained(experiment) * 4 == trained(peft.LoraConfig(r=1, task_type="CAUSAL_LM"))
