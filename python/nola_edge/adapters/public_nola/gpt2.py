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

from nola_edge.adapters.public_nola.contents import Contents, Layer, Part
from nola_edge.adapters.public_nola.recognise import GPT2
from nola_edge.adapters.public_nola.seeded import alpha_of, read_pairs

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile
    from nola_edge.adapters.public_nola.seeded import Pair

_QUERY, _VALUE = "attn.nola_query", "attn.nola_value"
_TARGETS = {"mlp.p1_nola": "mlp.c_fc", "mlp.p2_nola": "mlp.c_proj"}
_MODULE = re.compile(
    r"(?P<block>.+)\.(?P<layer>" + "|".join(map(re.escape, (_QUERY, _VALUE, *_TARGETS))) + ")"
)


def read_gpt2(file: CheckpointFile, lora_alpha: float | None) -> Contents:
    """Read a checkpoint of the GPT-2 code.

    Raises
    ------
    NolaEdgeError
    """
    pairs, base_tensors = read_pairs(file, with_base=True)
    alpha = alpha_of(file, lora_alpha)
    layers: dict[str, Layer] = {}
    for module, (a, b) in pairs.items():
        match = _MODULE.fullmatch(module)
        if match is None:
            raise file.refusal(module, "is not a layer to which the public GPT-2 code adds NOLA")
        block, target = match["block"], _TARGETS.get(match["layer"])
        if target is not None:
            layers[f"{block}.{target}"] = Layer.of_pair(a, b, alpha / a.shape[0])
        elif f"{block}.attn.c_attn" not in layers:
            layers[f"{block}.attn.c_attn"] = _attention(file, block, pairs, alpha)
    return Contents(
        GPT2,
        layers,
        fan_in_fan_out=True,
        bookkeeping={"task_type": "CAUSAL_LM"},
        base_tensors=base_tensors,
    )


def _attention(file: CheckpointFile, block: str, pairs: dict[str, Pair], alpha: float) -> Layer:
    for name in (_QUERY, _VALUE):
        if f"{block}.{name}" not in pairs:
            raise file.refusal(
                block, f"has no {name}; the public code has query and value together"
            )
    query, value = (pairs[f"{block}.{name}"] for name in (_QUERY, _VALUE))
    shapes = [tuple(factor.shape for factor in pair) for pair in (query, value)]
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
    return Layer((3 * width, width), (Part(*query), Part(*value, row=2 * width)), alpha / rank)
