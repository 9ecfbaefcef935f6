"""Checkpoints of the GPT-2 code.

``gpt/src/model_nola.py`` and ``gpt/src/gpt2_ft.py``: a file of ``torch.save`` with
``model_state_dict``, either the tensors of :mod:`~nola_edge.adapters.public_nola.seeded` alone
(those saved on the way) or with the frozen base (the last one), named
``module.transformer.h.<i>.attn.nola_query`` and ``attn.nola_value`` (with ``--lora_qv``),
``mlp.p1_nola`` and ``mlp.p2_nola`` (with ``--lora_mlp``), then ``.lora_A.seed`` and so on. All
blocks are copies of one, so they share seeds. The weights of both factors are normal numbers
(``_init_weights``), so that B is not zero at first. ``lora_alpha`` is an argument of the script and
is not saved.

In the forward the query's pair is added to the first third of ``c_attn``'s output and the value's
to the last; p1 and p2 are added to ``mlp.c_fc`` and ``mlp.c_proj``. Here query and value become
one update of twice the rank of ``c_attn``, with zeros where they do not act. The module names are
those of transformers' ``GPT2LMHeadModel``, whose ``Conv1D`` stores (in, out).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.public_nola.contents import Contents, Factor, Layer, Part, factors_of
from nola_edge.adapters.public_nola.recognise import GPT2
from nola_edge.adapters.public_nola.seeded import (
    check_counts,
    given_alpha,
    read_pair,
    sort_names,
)

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile
    from nola_edge.adapters.public_nola.seeded import Names

    Pairs = dict[str, tuple[Factor, Factor]]

_QUERY, _VALUE = "attn.nola_query", "attn.nola_value"
_TARGETS = {"mlp.p1_nola": "mlp.c_fc", "mlp.p2_nola": "mlp.c_proj"}
_MODULE = re.compile(
    r"(?:module\.)?(?P<block>.+)\."
    r"(?P<layer>attn\.nola_query|attn\.nola_value|mlp\.p1_nola|mlp\.p2_nola)"
)


def read_gpt2(file: CheckpointFile, lora_alpha: float | None) -> Contents:
    """Read a checkpoint of the GPT-2 code.

    Raises
    ------
    NolaEdgeError
    """
    modules, others = sort_names(file)
    for name in others:
        if "lora_" in name or "nola" in name:
            raise file.refusal(name, "is not part of a NOLA layer, so its effect is unknown")
    alpha = given_alpha(file, lora_alpha)
    layers: dict[str, Layer] = {}
    for block, pairs in _blocks(file, modules).items():
        if _QUERY in pairs or _VALUE in pairs:
            layers[f"{block}.attn.c_attn"] = _attention(file, block, pairs, alpha)
        for name, target in _TARGETS.items():
            if name in pairs:
                a, b = pairs[name]
                layers[f"{block}.{target}"] = Layer.of_pair(a, b, alpha / a.shape[0])
    check_counts(file, factors_of(layers))
    return Contents(
        GPT2,
        layers,
        fan_in_fan_out=True,
        bookkeeping={"task_type": "CAUSAL_LM"},
        base_tensors=len(others),
    )


def _blocks(file: CheckpointFile, modules: Names) -> dict[str, Pairs]:
    """Read the pairs of each block, by the names that the public code gives them."""
    blocks: dict[str, Pairs] = {}
    for module, names in modules.items():
        match = _MODULE.fullmatch(module)
        if match is None:
            raise file.refusal(module, "is not a layer to which the public GPT-2 code adds NOLA")
        pairs = blocks.setdefault(match["block"], {})
        if match["layer"] in pairs:
            raise file.refusal(module, "occurs twice, with and without a prefix")
        pairs[match["layer"]] = read_pair(file, names)
    return blocks


def _attention(file: CheckpointFile, block: str, pairs: Pairs, alpha: float) -> Layer:
    for name in (_QUERY, _VALUE):
        if name not in pairs:
            raise file.refusal(
                block, f"has no {name}; the public code has query and value together"
            )
    shapes = [tuple(factor.shape for factor in pairs[name]) for name in (_QUERY, _VALUE)]
    (rank, inputs), (width, _) = shapes[0]
    if shapes[0] != shapes[1]:
        raise file.refusal(
            block,
            f"query has shapes {shapes[0]}, value {shapes[1]}; in the public code they are the "
            "same",
        )
    if inputs != width:
        raise file.refusal(
            block,
            f"{_QUERY} has {inputs} inputs and {width} outputs; in GPT-2 the two numbers are equal",
        )
    parts = (Part(*pairs[_QUERY]), Part(*pairs[_VALUE], row=2 * width))
    return Layer(3 * width, width, parts, alpha / rank)
