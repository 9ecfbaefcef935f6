"""The saved model card: whose adapter it is, and snippets that run."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

import nola_edge as ne
from nola_edge.peft import NolaConfig
from tests.integrations.gguf_models import gguf_tensors, write_gguf
from tests.tuner.models import SMALL, llama, logits, stored, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```", card.text, re.S | re.M)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A base and an adapter of it, saved side by side in the working folder."""
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("base")
    model = trained(AutoModelForCausalLM.from_pretrained("base"))
    model.save_pretrained("adapter")
    return model


def test_what_it_says(saved):
    card = ModelCard.load("adapter/README.md")
    assert card.data.base_model == "base"
    assert {"nola", "peft", "base_model:adapter:base"} <= set(card.data.tags)
    assert card.data.library_name == "peft"
    assert "for 14 layers: a seed (77) and 616 coefficients (24 + 20 in each layer)" in card.text
    assert "More Information Needed" not in card.text
    assert [len(blocks(card, language)) for language in ("python", "sh")] == [2, 2]


def test_the_snippets_of_python_run(saved):
    expected = logits(saved)
    for code in blocks(ModelCard.load("adapter/README.md"), "python"):
        names = {}
        exec(code, names)
        torch.testing.assert_close(logits(names["model"]), expected, rtol=1e-4, atol=1e-4)
    assert not isinstance(names["model"], PeftModel)  # the last one merges


def test_the_snippets_of_the_shell_run(saved):
    base = AutoModelForCausalLM.from_pretrained("base")
    write_gguf("base.gguf", gguf_tensors(base, "llama"), "llama", base.config)
    for code in blocks(ModelCard.load("adapter/README.md"), "sh"):
        subprocess.run(["sh", "-ec", code], check=True, capture_output=True)
    ne.merge_checkpoint("base", "adapter", "expected")
    for name, values in stored("expected").items():
        assert np.array_equal(stored("merged")[name], values), name
    reader = AutoModelForCausalLM.from_pretrained(".", gguf_file="merged.gguf")
    torch.testing.assert_close(logits(reader), logits(saved), rtol=1e-3, atol=1e-3)


def test_each_of_several_adapters_has_its_own(tmp_path):
    model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules=["q_proj"]), "french")
    model.add_adapter("german", NolaConfig(**{**SMALL, "seed": 3}, target_modules=["o_proj"]))
    model.save_pretrained(tmp_path)
    assert "(german/README.md)" in (tmp_path / "README.md").read_text()
    for name, seed in (("french", 77), ("german", 3)):
        card = ModelCard.load(tmp_path / name / "README.md")
        assert f"for 2 layers: a seed ({seed})" in card.text
        assert {"nola", "peft"} <= set(card.data.tags)
        assert card.data.base_model is None  # it was never loaded from anywhere


def test_the_card_of_the_first_adapter_lies_above_the_others(tmp_path):
    model = get_peft_model(llama(), NolaConfig(**SMALL))
    model.add_adapter("other", NolaConfig(**{**SMALL, "seed": 3}))
    model.save_pretrained(tmp_path)
    assert "seed (77)" in (tmp_path / "README.md").read_text()
    assert "seed (3)" in (tmp_path / "other" / "README.md").read_text()
    model.save_pretrained(tmp_path / "again", selected_adapters=["other"])
    assert "seed (77)" not in (tmp_path / "again" / "README.md").read_text()


def test_the_card_of_an_author_stays(tmp_path):
    text = "---\nlicense: mit\n---\n\n# Mine\n\nTrained by hand.\n"
    (tmp_path / "README.md").write_text(text)
    get_peft_model(llama(), NolaConfig(**SMALL)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip().startswith("# Mine\n\nTrained by hand.")
    assert "NOLA adapter" not in card.text
    assert card.data.license == "mit"
    assert {"nola", "peft"} <= set(card.data.tags)


def readme(folder):
    return (folder / "README.md").read_bytes()


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_later_adapter_in_the_same_folder_replaces_our_card(tmp_path, name):
    folder = tmp_path if name == "default" else tmp_path / name
    for seed in (42, 7):
        get_peft_model(llama(), NolaConfig(**{**SMALL, "seed": seed}), name).save_pretrained(
            tmp_path
        )
        assert readme(folder).count(b"a seed (") == 1
        assert f"a seed ({seed})".encode() in readme(folder)
        assert readme(folder).count(b"### Framework versions") == 1
    card = ModelCard.load(folder / "README.md")
    card.data["license"] = "mit"
    card.text = card.text.replace("\n", "\r\n")
    card.save(folder / "README.md")
    get_peft_model(llama(), NolaConfig(**SMALL), name).save_pretrained(tmp_path)
    assert b"a seed (77)" in readme(folder)
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_our_card_with_a_word_of_the_author_is_the_authors(tmp_path):
    get_peft_model(llama(), NolaConfig(**SMALL)).save_pretrained(tmp_path)
    text = readme(tmp_path).replace(b"# NOLA adapter", b"# My adapter")
    (tmp_path / "README.md").write_bytes(text)
    get_peft_model(llama(), NolaConfig(**{**SMALL, "seed": 7})).save_pretrained(tmp_path)
    assert readme(tmp_path) == text


def test_what_lies_beside_is_still_in_the_card(tmp_path):
    model = get_peft_model(llama(), NolaConfig(**SMALL), "french")
    model.save_pretrained(tmp_path)
    model.add_adapter("german", NolaConfig(**SMALL))
    model.save_pretrained(tmp_path, selected_adapters=["german"])
    assert {b"french", b"german"} <= set(re.findall(rb"\((\w+)/README", readme(tmp_path)))
    alone = get_peft_model(llama(), NolaConfig(**SMALL))
    alone.save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "alone", selected_adapters=["german"])
    assert b"a seed (77)" in readme(tmp_path / "alone")


@pytest.mark.parametrize(
    "body",
    [b"", b"\n# Mine\n\n\n", b"# Mine  \r\n\r\n\x0c No end of line", "# \u00fc\u2028\n".encode()],
)
def test_a_foreign_card_keeps_its_body_and_metadata(tmp_path, body):
    end = b"\r\n" if b"\r\n" in body else b"\n"
    head = [b"---", b"license: mit", b"base_model: org/base", b"tags:", b"- medical", b"---", b""]
    (tmp_path / "README.md").write_bytes(end.join(head) + body)
    for _ in range(2):
        get_peft_model(llama(), NolaConfig(**SMALL)).save_pretrained(tmp_path)
        assert readme(tmp_path).split(end + b"---" + end, 1)[1] == body
        data = ModelCard.load(tmp_path / "README.md").data
        assert (data.base_model, data.license) == ("org/base", "mit")
        assert {"medical", "nola", "peft"} <= set(data.tags)


def test_a_foreign_card_keeps_its_body_where_saving_fails(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (tmp_path / "adapter_model.safetensors").mkdir()  # in the way of the file
    with pytest.raises(Exception, match="directory"):
        get_peft_model(llama(), NolaConfig(**SMALL)).save_pretrained(tmp_path)
    assert readme(tmp_path).endswith(b"---\n# Mine\n")


def test_adapters_that_are_not_there_leave_no_card(tmp_path):
    with pytest.raises(ValueError, match="invalid `selected_adapters`"):
        get_peft_model(llama(), NolaConfig(**SMALL)).save_pretrained(
            tmp_path / "saved", selected_adapters=["other"]
        )
    assert not (tmp_path / "saved").exists()


def test_a_base_that_is_not_of_transformers(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    get_peft_model(model, NolaConfig(**SMALL, target_modules=["0"])).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    (code,) = blocks(card, "python")
    names = {"model": nn.Sequential(nn.Linear(4, 4))}
    exec(code.replace('"adapter"', repr(str(tmp_path))), names)
    assert isinstance(names["model"], PeftModel)
