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
one LoRA of twice the rank on ``c_attn``, with zeros where they do not act. The module names are
those of transformers' ``GPT2LMHeadModel``, whose ``Conv1D`` stores (in, out).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nola_edge.adapters.public_nola.contents import Factor, Layer, Part, Plan
from nola_edge.adapters.public_nola.llama import require_alpha
from nola_edge.adapters.public_nola.seeded import check_counts, read_pair, sort_names
from nola_edge.errors import AdapterError

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import Source

_QUERY, _VALUE = "attn.nola_query", "attn.nola_value"
_TARGETS = {"mlp.p1_nola": "mlp.c_fc", "mlp.p2_nola": "mlp.c_proj"}
_MODULE = re.compile(
    r"(?:module\.)?(?P<block>.+)\."
    r"(?P<layer>attn\.nola_query|attn\.nola_value|mlp\.p1_nola|mlp\.p2_nola)"
)


def plan_gpt2(source: Source, lora_alpha: float | None) -> Plan:
    """Plan the conversion of a checkpoint of the GPT-2 code.

    Raises
    ------
    NolaEdgeError
    """
    modules, others = sort_names(source.tensors, source)
    unknown = [name for name in others if "lora_" in name or "nola" in name]
    if unknown:
        raise AdapterError(
            "is not part of a NOLA layer, so what it does is not known",
            file=source.path,
            field=unknown[0],
        )
    alpha = require_alpha(lora_alpha, source)
    blocks: dict[str, dict[str, tuple[Factor, Factor]]] = {}
    for module, names in modules.items():
        match = _MODULE.fullmatch(module)
        if match is None:
            raise AdapterError(
                "is no layer to which the public GPT-2 code adds NOLA",
                file=source.path,
                field=module,
            )
        blocks.setdefault(match["block"], {})[match["layer"]] = read_pair(source, names)
    layers = []
    for block, pairs in blocks.items():
        if _QUERY in pairs or _VALUE in pairs:
            layers.append(_attention(source, block, pairs, alpha))
        for name, target in _TARGETS.items():
            if name in pairs:
                a, b = pairs[name]
                layers.append(Layer(f"{block}.{target}", b.shape[0], (Part(a, b),), alpha))
    plan = Plan(
        "GPT-2",
        tuple(layers),
        fan_in_fan_out=True,
        kept={"task_type": "CAUSAL_LM"},
        left_out=len(others),
    )
    check_counts(source, plan.factors)
    return plan


def _attention(
    source: Source, block: str, pairs: dict[str, tuple[Factor, Factor]], alpha: float
) -> Layer:
    for name in (_QUERY, _VALUE):
        if name not in pairs:
            raise AdapterError(
                f"has no {name}; the public code has query and value together",
                file=source.path,
                field=block,
            )
    (a, b), (other_a, other_b) = pairs[_QUERY], pairs[_VALUE]
    if (a.shape, b.shape) != (other_a.shape, other_b.shape):
        raise AdapterError(
            f"query has shapes {a.shape} and {b.shape}, value {other_a.shape} and {other_b.shape}; "
            "in the public code they are alike",
            file=source.path,
            field=block,
        )
    width = b.shape[0]
    if a.shape[1] != width:
        raise AdapterError(
            f"{_QUERY} has {a.shape[1]} inputs and {width} outputs; in GPT-2 they are as many",
            file=source.path,
            field=block,
        )
    parts = (Part(a, b), Part(other_a, other_b, row=2 * width))
    return Layer(f"{block}.attn.c_attn", 3 * width, parts, alpha)
