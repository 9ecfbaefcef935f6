"""Publishing an adapter with its card: ``model.push_to_hub("me/my-adapter")``.

What transformers does puts the card of the repository, or an empty template, over the saved one.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import PeftModel

from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.peft.card import CARD


def publish(
    model: PeftModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Collection[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """Upload a model's adapters, and their cards.

    A card that the repository has is treated as one in a folder that is saved into: its author's
    text stays.

    Parameters
    ----------
    model : PeftModel
    repo_id : str
        Made if it is not there.
    commit_message, commit_description, private, token, revision, create_pr, tags
        As for ``PushToHubMixin.push_to_hub`` of transformers.
    **options
        For ``save_pretrained``.

    Returns
    -------
    CommitInfo
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    is_branch = revision is not None and not revision.startswith("refs/")
    if is_branch and not create_pr:
        api.create_branch(repo_id, branch=str(revision), exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        others = [f"{adapter}/{CARD}" for adapter in model.peft_config if adapter != "default"]
        for path in (CARD, CONFIG_NAME, *others):
            _fetch(api, repo_id, revision, folder / path, path)
        model.save_pretrained(name, **options)
        _add_tags(folder / CARD, tags or ())
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload NOLA adapter",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _fetch(api: HfApi, repo_id: str, revision: str | None, to: Path, path: str) -> None:
    try:
        fetched = api.hf_hub_download(repo_id, path, revision=revision)
    except RemoteEntryNotFoundError:
        return
    to.parent.mkdir(exist_ok=True)
    shutil.copyfile(fetched, to)


def _add_tags(path: Path, tags: Collection[str]) -> None:
    card = ModelCard.load(path)
    card.data["tags"] = sorted({*(card.data.tags or ()), *tags})
    card.save(path)
