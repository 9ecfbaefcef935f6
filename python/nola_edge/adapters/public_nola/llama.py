"""Adapters of the LLaMA code, which has a PEFT of 2023 with NOLA inside its LoRA.

``llama/peft/tuners/lora.py`` and ``llama/qlora.py``: a PEFT folder whose ``adapter_config.json``
says ``peft_type: LORA``, ``use_nola``, ``nola_num_basis``, ``r`` and ``lora_alpha``; its tensors
are those of :mod:`~nola_edge.adapters.public_nola.seeded`, named
``base_model.model.<module>.lora_A.seed`` and so on, in ``adapter_model.bin``, which
:mod:`~nola_edge.files.torch_file` refuses, and says what to do. ``lora_B.weight`` is zero at first
and stays so. With ``--bf16`` the layers are bfloat16, and so are the basis and every step of the
matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.adapters.peft_fields import BOOKKEEPING, is_off
from nola_edge.adapters.public_nola.contents import Contents, Layer
from nola_edge.adapters.public_nola.recognise import LLAMA
from nola_edge.adapters.public_nola.seeded import alpha_of, read_pairs
from nola_edge.errors import printable

if TYPE_CHECKING:
    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile

#: Fields that are read, or say how the adapter was trained or found.
_UNDERSTOOD = BOOKKEEPING | {
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "nola_num_basis",
    "r",
    "use_nola",
}


def read_llama(file: CheckpointFile, lora_alpha: float | None) -> Contents:
    """Read an adapter of the LLaMA code; `lora_alpha` where no configuration says it.

    Raises
    ------
    NolaEdgeError
    """
    _check_fields(file)
    pairs, _ = read_pairs(file, with_base=False)
    alpha = alpha_of(file, lora_alpha)
    return Contents(
        LLAMA,
        {module: Layer.of_pair(a, b, alpha / a.shape[0]) for module, (a, b) in pairs.items()},
        fan_in_fan_out=file.fields.get("fan_in_fan_out", False) is True,
        bookkeeping={name: file.fields[name] for name in BOOKKEEPING & file.fields.keys()},
    )


def _check_fields(file: CheckpointFile) -> None:
    for name, value in file.fields.items():
        if name not in _UNDERSTOOD and not (is_off(value) or value in (0, "none")):
            raise file.field_refusal(name, f"is {printable(value)}, which is not understood")
    for name, wanted in (("peft_type", "LORA"), ("use_nola", True)):
        found = file.fields.get(name)
        if file.fields and found != wanted:
            raise file.field_refusal(
                name, f"is {printable(found)}, the public code writes {wanted}"
            )
