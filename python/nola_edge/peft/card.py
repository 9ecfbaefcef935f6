"""The model card that is saved beside an adapter: what it is, and four ways to use it that run.

PEFT's own is a template to be filled in, and the snippet that the Hub shows for it does not know
NOLA. A card that is there already is its author's: its metadata alone is brought up to date.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import PreTrainedModel

from nola_edge.peft.adapted import adapted_layers

CARD = "README.md"
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


def write_missing_card(folder: Path, text: str) -> None:
    """Write a card into a folder that has none; PEFT then adds the metadata that it knows of."""
    if not (folder / CARD).exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(f"---\n{{}}\n---\n\n{text}\n", encoding="utf-8")


def complete_metadata(model: PeftModel, folder: Path) -> None:
    """Add NOLA's tags to a card, and drop the base's name where the model has none."""
    card = ModelCard.load(folder / CARD)
    tags = [*(card.data.tags or ()), *_TAGS]
    card.data["tags"] = sorted({tag for tag in tags if tag != "base_model:adapter:"})
    if base := _base_name(model):
        card.data["base_model"] = base
    else:
        card.data.pop("base_model", None)
    card.save(folder / CARD)


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
