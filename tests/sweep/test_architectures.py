"""Files of transformers' architectures are merged as the models in memory are."""

import json
from pathlib import Path

import pytest

from tests.sweep.check import check
from tests.sweep.table import table

RESULTS = Path("benchmarks/results/2026-11-architectures.jsonl")
PAGE = Path("docs/architectures.md")
ROOT = Path(__file__).parents[2]
#: One of each kind: names as they are, Conv1D, encoder and decoder, an embedding that is tied,
#: renamed towers, names renamed inside, joined layers, experts, a recurrent model.
SAMPLE = (
    "llama", "gpt2", "t5", "bert", "qwen2_5_vl", "vit", "nomic_bert", "molmo2", "phimoe", "rwkv",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (ROOT / RESULTS).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_sample_is_right(architecture, tmp_path):
    """All of them: ``python -m tests.sweep.run``, a quarter of an hour."""
    found = check(architecture, tmp_path)
    assert found["NOLA"] == "right", found
    assert (
        found["LoRA"].removesuffix(" with rename") == "right" or "experts" in found["LoRA_reason"]
    )


def test_none_was_found_wrong(rows):
    results = [row.get(method) for row in rows for method in ("NOLA", "LoRA")]
    assert "wrong" not in results
    assert sum(row.get("NOLA") == "right" for row in rows) >= 375
    assert len({row["architecture"] for row in rows}) == len(rows)


def test_the_page_is_what_was_found(rows):
    assert (ROOT / PAGE).read_text() == table(rows)
