"""What the script of another method says: LoRA's spellings taken over, options NOLA lacks refused.

All of it is about the constructor of ``NolaConfig``. A file has NOLA's own names, and a name that
is unknown there may be of a version to come.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection
from typing import Any

from peft import LoraConfig

#: LoRA's name -> NOLA's, of what both have.
_SAME = {"lora_dropout": "nola_dropout", "init_lora_weights": "init_weights"}

#: A name of another method, or a likely guess -> what it is called here.
_CALLED = {
    "alpha": "`lora_alpha`",
    "bits": "`coefficient_bits`",
    "dropout": "`nola_dropout`",
    "init_nola_weights": "`init_weights`",
    "k": "`num_basis_a`",
    "l": "`num_basis_b`",
    "lora_r": "`r`",
    "nola_alpha": "`lora_alpha`",
    "num_basis": "`num_basis_a` and `num_basis_b`",
    "projection_prng_key": "`seed`",
    "projection_seed": "`seed`",
    "proj_seed": "`seed`",
    "random_seed": "`seed`",
    "random_state": "`seed`",
    "randlora_alpha": "`lora_alpha`",
    "randlora_dropout": "`nola_dropout`",
    "rank": "`r`",
    "vera_dropout": "`nola_dropout`",
}

#: An option of LoRA -> why NOLA lacks it, or what serves instead.
_LACKED = {
    "alpha_pattern": "NOLA has no alpha_pattern: every layer has the scaling lora_alpha / r",
    "alora_invocation_tokens": "NOLA has no activated LoRA (aLoRA)",
    "arrow_config": "NOLA has no Arrow routing",
    "corda_config": "NOLA has no CorDA: A and B start as combinations of random matrices",
    "d_initial": "NOLA has no vector d: beta starts at zero, alpha as `start` says",
    "ensure_weight_tying": "NOLA refuses layers whose weights are tied; untie them first",
    "eva_config": "NOLA has no EVA: A and B start as combinations of random matrices",
    "init_lora_weights": "A and B are combinations of random matrices and cannot start as given "
    "ones. `start` says how alpha begins",
    "kasa_config": "NOLA has no KaSA",
    "layer_replication": "NOLA has no layer_replication: each layer is adapted where it is",
    "loftq_config": "NOLA has no LoftQ: A and B start as combinations of random matrices",
    "lora_bias": "B has no bias of its own; `bias='nola_only'` trains those of the layers",
    "lora_ga_config": "NOLA has no LoRA-GA: A and B start as combinations of random matrices",
    "megatron_config": "NOLA does not adapt Megatron's layers",
    "megatron_core": "NOLA does not adapt Megatron's layers",
    "monteclora_config": "NOLA has no MonteCLoRA",
    "qalora_group_size": "NOLA has no QA-LoRA",
    "rank_pattern": "NOLA has no rank_pattern: every layer has rank r, which costs no parameters",
    "runtime_config": "NOLA has no ephemeral_gpu_offload",
    "save_projection": "the seed regenerates the random matrices, so they are never saved",
    "target_parameters": "NOLA adapts layers, not single parameters such as stacked experts",
    "trainable_token_indices": "NOLA trains no single tokens; `modules_to_save=['embed_tokens']` "
    "trains the embedding whole",
    "use_bdlora": "NOLA has no block-diagonal LoRA",
    "use_dora": "NOLA has no DoRA: it trains no magnitudes",
    "use_qalora": "NOLA has no QA-LoRA",
    "velora_config": "NOLA has no VeLoRA",
}


def take_over(fields: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the constructor's arguments under NOLA's names alone.

    Parameters
    ----------
    fields : dict
        As they were given.
    known : collection of str
        The names of NOLA's own fields.

    Raises
    ------
    ValueError
        If LoRA's spelling contradicts NOLA's, an option that NOLA lacks is not off (None, False,
        empty, or what ``LoraConfig`` has by default), or nobody knows the name.
    """
    taken = {name: value for name, value in fields.items() if name in known}
    if taken.get("bias") == "lora_only":
        taken["bias"] = "nola_only"
    for name, value in fields.items():
        if name in known:
            continue
        if name in _SAME and value is not None and not isinstance(value, str):
            own = _SAME[name]
            if taken.setdefault(own, value) != value:
                raise ValueError(
                    f"`{name}` is {value!r} and `{own}` {taken[own]!r}, which mean the same: "
                    "give one of them."
                )
        elif not _is_excused(name, value):
            raise ValueError(f"`{name}` is {value!r}: {_explanation(name, known)}")
    return taken


def is_off(value: object) -> bool:
    """Tell whether a value asks for nothing, whatever the option may be."""
    return value is None or value is False or value in ("", [], {})


def _is_excused(name: str, value: object) -> bool:
    """Tell whether an option is one that NOLA lacks, and not asked for."""
    if name in _CALLED:
        return value is None
    defaults = _lora_defaults()
    if name not in defaults and name not in _LACKED:
        return False  # a slip, of which "off" may say the opposite of what it does
    return is_off(value) or (name in defaults and value == defaults[name])


def _lora_defaults() -> dict[str, object]:
    return {
        option.name: option.default
        if option.default_factory is dataclasses.MISSING
        else option.default_factory()
        for option in dataclasses.fields(LoraConfig)
    }


def _explanation(name: str, known: Collection[str]) -> str:
    if name in _CALLED:
        return f"NolaConfig calls it {_CALLED[name]}."
    if name == "lora_dropout":
        return "must be a number in [0, 1)."
    if name in _LACKED:
        return f"{_LACKED[name]}. Leave it out."
    close = difflib.get_close_matches(name, [*known, *_SAME], n=1)
    return "NolaConfig has no such field" + (f"; did you mean `{close[0]}`?" if close else ".")
