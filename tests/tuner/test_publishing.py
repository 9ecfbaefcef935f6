"""An adapter is published with its card; a stand-in takes the upload."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import LoraConfig, get_peft_model

from nola_edge.peft import NolaConfig
from tests.tuner.models import SMALL, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that stands for the repository "me/my-adapter", and what was asked of the Hub."""
    folder, asked = tmp_path / "repository", []
    folder.mkdir()

    def create_repo(self, repo_id, **options):
        asked.append(("create", self.token, options["private"]))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id, *, branch, exist_ok):
        asked.append(("branch", repo_id, branch))

    def download(self, repo_id, filename, revision):
        if not (folder / filename).exists():
            response = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("none", response=response)
        return str(folder / filename)

    def upload(self, *, repo_id, folder_path, commit_message, **options):
        asked.append(("upload", repo_id, commit_message, options["revision"]))
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)

    for name, stand_in in (
        ("create_repo", create_repo), ("create_branch", create_branch),
        ("hf_hub_download", download), ("upload_folder", upload),
    ):  # fmt: skip
        monkeypatch.setattr(HfApi, name, stand_in)
    return SimpleNamespace(folder=folder, asked=asked)


def test_the_card_is_published(repository):
    model = get_peft_model(llama(), NolaConfig(**SMALL))
    model.add_adapter("other", NolaConfig(**{**SMALL, "seed": 3}))
    model.push_to_hub("my-adapter", private=True, token="secret", tags=["french"])
    card = ModelCard.load(repository.folder / "README.md")
    assert "a seed (77)" in card.text
    assert {"french", "nola", "peft"} <= set(card.data.tags)
    assert (repository.folder / "adapter_model.safetensors").exists()
    assert "a seed (3)" in (repository.folder / "other" / "README.md").read_text()
    assert repository.asked == [
        ("create", "secret", True), ("upload", "me/my-adapter", "Upload NOLA adapter", None)
    ]  # fmt: skip


def test_a_later_adapter_has_its_own_card_and_an_author_keeps_theirs(repository):
    for seed in (42, 7):
        get_peft_model(llama(), NolaConfig(**{**SMALL, "seed": seed})).push_to_hub("my-adapter")
    card = (repository.folder / "README.md").read_text()
    assert "a seed (7)" in card
    assert "a seed (42)" not in card
    (repository.folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    model = get_peft_model(llama(), NolaConfig(**SMALL), "other")
    (repository.folder / "other").mkdir()
    (repository.folder / "other" / "README.md").write_text("---\nlicense: mit\n---\n# Other\n")
    model.push_to_hub("my-adapter", commit_message="Again", revision="next")
    assert ModelCard.load(repository.folder / "other" / "README.md").text == "# Other\n"
    card = ModelCard.load(repository.folder / "README.md")
    assert (card.text, card.data.license) == ("# Mine\n", "mit")
    assert repository.asked[-2:] == [
        ("branch", "me/my-adapter", "next"), ("upload", "me/my-adapter", "Again", "next")
    ]  # fmt: skip


def test_other_methods_are_published_as_before(repository, monkeypatch):
    model = get_peft_model(llama(), LoraConfig())
    monkeypatch.setattr(type(model), "_upload_modified_files", lambda *_, **__: "uploaded")
    monkeypatch.setattr("transformers.utils.hub.hf_api", HfApi)
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: ModelCard("# LoRA")
    )
    assert model.push_to_hub("my-adapter") == "uploaded"
    assert [name for name, *_ in repository.asked] == ["create"]
