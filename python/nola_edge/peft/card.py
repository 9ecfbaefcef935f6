"""The model card that is saved beside an adapter: what it is, and four ways to use it that run.

PEFT's own is a template to be filled in, and the snippet that the Hub shows for it does not know
NOLA. A card that is there already is its author's, and its metadata alone is brought up to date,
unless it is an earlier one of ours that nobody has altered.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from transformers import PreTrainedModel

from nola_edge.adapters.peft_folder import CONFIG_NAME
from nola_edge.peft.adapted import adapted_layers

CARD = "README.md"
_MARK = "<!-- Written by nola-edge, which replaces it as long as it is unaltered: {} -->"
_BASE_TAG = "base_model:adapter:"
_TAGS = ("nola", "peft")
#: Task -> the class of transformers that loads a base for it.
_LOADERS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}


def save_with_cards(
    model: PeftModel, folder: Path, names: list[str], save: Callable[[], Any]
) -> None:
    """Save adapters, and write the card of each, or bring it up to date.

    Parameters
    ----------
    model : PeftModel
    folder : Path
        Of the adapter named "default"; the others lie in folders of their names within.
    names : list of str
        The adapters that are saved.
    save : callable
        Saves them, and lets PEFT write `folder`'s card.
    """
    with _keeping_text(model, folder, _text(model, folder, names)):
        save()
    for name in names:
        if name != "default":
            with _keeping_text(model, folder / name, adapter_card(model, name)):
                model.create_or_update_model_card(str(folder / name))


def _text(model: PeftModel, folder: Path, names: list[str]) -> str | None:
    """Return what the card above all adapters says; None if it is of one that is not saved now."""
    if "default" in names:
        return adapter_card(model, "default")
    if (folder / CONFIG_NAME).exists() and (folder / CARD).exists():
        return None
    return contents_card(
        sorted({*names, *(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))})
    )


@contextmanager
def _keeping_text(model: PeftModel, folder: Path, text: str | None) -> Iterator[None]:
    """Have PEFT update a card's metadata, and keep its text if it is its author's."""
    path = folder / CARD
    earlier = ModelCard.load(path) if path.exists() else ModelCard("---\n{}\n---\n")
    before = earlier.data.to_dict()
    is_ours = text is not None and (not path.exists() or _is_unaltered(earlier.text))
    if is_ours:
        card = ModelCard(f"---\n{{}}\n---\n\n{text}\n")
        card.data = earlier.data
        card.save(path)
    try:
        yield
    finally:  # of a save that fails too, or the card would pass for another's
        updated = ModelCard.load(path)
        card = updated if is_ours else earlier
        card.data = _completed(updated.data, before, _base_name(model))
        if is_ours:
            card.text = _marked(updated.text)
        card.save(path)


def _completed(data: ModelCardData, before: Mapping[str, Any], base: str) -> ModelCardData:
    """Add NOLA's tags and those of before, and drop a base's name that PEFT made up."""
    earlier = [tag for tag in map(str, before.get("tags") or ()) if not tag.startswith(_BASE_TAG)]
    tags = {*earlier, *(data.tags or ()), *_TAGS}
    data["tags"] = sorted(tag for tag in tags if tag != _BASE_TAG)
    if named := base or before.get("base_model"):
        data["base_model"] = named
    else:
        data.pop("base_model", None)
    return data


def _marked(text: str) -> str:
    """Add a comment that says whose a text is as long as it stays what it is."""
    return f"{text.strip()}\n\n{_MARK.format(_digest(text))}\n"


def _is_unaltered(text: str) -> bool:
    """Tell whether a card's text is, but for blank lines at its ends, one that was made here."""
    body, _, mark = text.strip().rpartition("\n")
    return mark == _MARK.format(_digest(body))


def _digest(text: str) -> str:
    lines = "\n".join(text.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _base_name(model: PeftModel) -> str:
    return str(getattr(model.get_base_model(), "name_or_path", None) or "")


def contents_card(names: Iterable[str]) -> str:
    """Return the text of the card of a folder that holds folders of adapters."""
    lines = [f"- [`{name}`]({name}/{CARD})" for name in names]
    return "\n".join(["# NOLA adapters", "", "Each in a folder of its own:", "", *lines, ""])


def adapter_card(model: PeftModel, adapter: str) -> str:
    """Return the text of the card of an adapter."""
    base, loader = _base_name(model), _loader(model, adapter)
    sections = [
        "# NOLA adapter",
        _description(model, adapter, base),
        "## Use it",
        "In what follows `adapter` is this folder"
        + ("" if base else ", and `base` the model that it was trained on")
        + ". Install `pip install 'nola-edge[peft]'`; the command line needs `nola-edge` alone.",
    ]
    names = {"loader": loader, "base": json.dumps(base or "base")}
    if loader is None:
        sections += ["With PEFT, on the model that it was trained on:", _python(_CUSTOM)]
    else:
        sections += [
            "With PEFT; without the first import, as in the snippet that the Hub shows, PEFT says "
            "`KeyError: 'NOLA'`:",
            _python(_PEFT.format(**names)),
            "With transformers, merged while the model loads:",
            _python(_TRANSFORMERS.format(**names)),
        ]
    merge = _MERGE.format(base=shlex.quote(base or "base"))
    sections += ["Merged into a checkpoint:", _shell(merge)]
    if loader == _LOADERS["CAUSAL_LM"]:
        sections += [
            "Merged into a GGUF file of the base, or beside it in llama.cpp:",
            _shell(_GGUF),
        ]
    return "\n\n".join(sections) + "\n"


def _description(model: PeftModel, adapter: str, base: str) -> str:
    config: Any = model.peft_config[adapter]
    layers = len(adapted_layers(model, adapter))
    count = layers * (config.num_basis_a + config.num_basis_b)
    return (
        "A [NOLA](https://arxiv.org/abs/2310.02556) adapter"
        + (f" of `{base}`" if base else "")
        + f" for {layers} layers: a seed ({config.seed}) and {count:,} coefficients "
        f"({config.num_basis_a} + {config.num_basis_b} in each layer). From these "
        f"nola-edge makes updates of rank {config.r}, scaled by {config.scaling:g}."
    )


def _loader(model: PeftModel, adapter: str) -> str | None:
    """Return the class of transformers that loads the base, if it is one of its models."""
    base = type(model.get_base_model())
    if not issubclass(base, PreTrainedModel) or not base.__module__.startswith("transformers."):
        return None
    if base.__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return _LOADERS["CAUSAL_LM"]
    return _LOADERS.get(str(model.peft_config[adapter].task_type or ""), base.__name__)


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _shell(code: str) -> str:
    return f"```sh\n{code}\n```"


_PEFT = """\
import nola_edge.peft
from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained({base})
model = PeftModel.from_pretrained(base, "adapter")"""
_CUSTOM = """\
import nola_edge.peft
from peft import PeftModel

model = PeftModel.from_pretrained(model, "adapter")"""
_TRANSFORMERS = """\
from nola_edge.transformers import NolaMergeConfig
from transformers import {loader}

model = {loader}.from_pretrained({base}, quantization_config=NolaMergeConfig("adapter"))"""
_MERGE = "nola-edge merge {base} adapter -o merged"
_GGUF = """\
nola-edge merge base.gguf adapter -o merged.gguf
nola-edge export gguf-lora adapter --base base.gguf -o lora.gguf    # llama-cli --lora lora.gguf"""
