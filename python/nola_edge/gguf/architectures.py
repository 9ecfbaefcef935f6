"""How the weights of a model are named and laid out in GGUF, for each architecture.

Names are those of llama.cpp's converters (the ``conversion`` folder and ``gguf.TensorNameMap``).
Only what stands here is merged into; nothing is guessed from a likeness of names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from nola_edge.errors import ArgumentError, MismatchError, printable

_QKV = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_DECODER = r"(?:model\.|language_model\.model\.|model\.language_model\.)?"
_LAYERS = _DECODER + "layers"
_EMBEDDING = _DECODER + "embed_tokens"


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``.

    Attributes
    ----------
    name : str
    model_types : tuple of str
        ``model_type`` in ``config.json`` of the Hugging Face models that become this.
    blocks : str
        Regular expression of the module that holds the blocks.
    embedding : str
        Regular expression of the module that is the input embedding.
    modules : dict
        Module within a block -> tensor within a block.
    interleaved : bool
        The rows of ``attn_q`` and ``attn_k`` are in another order than in the Hugging Face model:
        within a head, its two halves alternate.
    """

    name: str
    model_types: tuple[str, ...]
    modules: dict[str, str] = field(default_factory=lambda: _QKV)
    blocks: str = _LAYERS
    embedding: str = _EMBEDDING
    interleaved: bool = False


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        Architecture("llama", ("llama", "mistral"), interleaved=True),
        Architecture("qwen2", ("qwen2",)),
        Architecture("qwen3", ("qwen3",)),
        Architecture("gemma", ("gemma",)),
        Architecture("gemma2", ("gemma2",)),
        Architecture("gemma3", ("gemma3", "gemma3_text")),
        Architecture("phi3", ("phi3",), modules=_FUSED),
        Architecture(
            "gpt2",
            ("gpt2",),
            modules=_GPT2,
            blocks=r"(?:transformer\.)?h",
            embedding=r"(?:transformer\.)?wte",
        ),
    )
}


@dataclass(frozen=True)
class Model:
    """An architecture and its numbers of attention heads.

    Attributes
    ----------
    architecture : Architecture
    heads, key_heads : int or list of int
        Of every block, or of each.
    """

    architecture: Architecture
    heads: int | list[int]
    key_heads: int | list[int]

    def place(self, module: str, adapter: object) -> Place:
        """Return the tensor that holds a module's weight.

        Parameters
        ----------
        module : str
            Name in the Hugging Face model.
        adapter
            Named in errors.

        Raises
        ------
        MismatchError
            If the architecture has no such module, or its heads are not known.
        """
        if module == "lm_head":
            return Place("output.weight")
        found = re.fullmatch(rf"{self.architecture.blocks}\.(0|[1-9][0-9]{{0,5}})\.(.+)", module)
        part = self.architecture.modules.get(found[2]) if found else None
        if found is None or part is None:
            known = ", ".join(self.architecture.modules)
            raise MismatchError(
                f"is not a module of the architecture {self.architecture.name}, whose layers have "
                f"{known}",
                file=adapter,
                field=module,
            )
        heads = None
        if self.architecture.interleaved and part in ("attn_q", "attn_k"):
            heads = self._heads(part, int(found[1]), module, adapter)
        return Place(f"blk.{found[1]}.{part}.weight", heads)

    def embedding(self, module: str, adapter: object) -> Place:
        """Return the tensor of an input embedding.

        Raises
        ------
        MismatchError
            If the architecture's is another module.
        """
        if re.fullmatch(self.architecture.embedding, module) is None:
            raise MismatchError(
                f"is not the input embedding of the architecture {self.architecture.name}",
                file=adapter,
                field=module,
            )
        return Place("token_embd.weight")

    def _heads(self, part: str, block: int, module: str, adapter: object) -> int:
        heads = self.heads if part == "attn_q" else self.key_heads
        if isinstance(heads, list):
            heads = heads[block] if block < len(heads) else 0
        if heads < 1:
            raise MismatchError(
                "the base does not state its number of attention heads", file=adapter, field=module
            )
        return heads


@dataclass(frozen=True)
class Place:
    """The tensor that holds a module's weight, and the heads that share its rows.

    Attributes
    ----------
    tensor : str
    heads : int or None
        Attention heads among which the rows are reordered; None: rows are in the model's order.
    """

    tensor: str
    heads: int | None = None

    def head_rows(self, rows: int, file: object) -> int | None:
        """Return the rows of one head, None where rows are in the model's order.

        Raises
        ------
        MismatchError
            If the heads do not share the rows evenly.
        """
        if self.heads is None:
            return None
        if rows % (2 * self.heads):
            raise MismatchError(
                f"{rows} rows cannot be divided into {self.heads} heads of two halves",
                file=file,
                field=self.tensor,
            )
        return rows // self.heads


def known_architecture(name: object, file: object, key: str) -> Architecture:
    """Look up an architecture by its GGUF name.

    Raises
    ------
    MismatchError
        If there is none of that name.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise MismatchError(
            f"{printable(repr(name))} is not supported (only {', '.join(ARCHITECTURES)} are). "
            "Merge into the Hugging Face checkpoint and convert that",
            file=file,
            field=key,
            value=name,
        )
    return ARCHITECTURES[name]


def architecture_of_model_type(model_type: object, file: object) -> Architecture:
    """Look up an architecture by the ``model_type`` of ``config.json``.

    Raises
    ------
    MismatchError
        If none supports it.
    """
    for entry in ARCHITECTURES.values():
        if model_type in entry.model_types:
            return entry
    types = ", ".join(name for entry in ARCHITECTURES.values() for name in entry.model_types)
    raise MismatchError(
        f"{printable(repr(model_type))} is not supported (only {types} are)",
        file=file,
        field="model_type",
        value=model_type,
    )


def head_counts(value: object, file: object, key: str) -> int | list[int]:
    """Check a number of heads, or one for each block.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 20 for n in numbers):
        return value  # type: ignore[return-value]
    raise ArgumentError(f"{printable(repr(value))} is not a number of heads", file=file, field=key)
