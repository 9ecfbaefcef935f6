"""The shipped base as a GGUF file, as llama.cpp's converter would write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.files.gguf_writer import write_gguf
from nola_edge.gguf.model import model_of_config
from nola_edge.merge.row_order import interleaved_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_MOSTLY_BF16 = 32  # LLAMA_FTYPE_MOSTLY_BF16
_NORMAL, _CONTROL = 1, 3  # LLAMA_TOKEN_TYPE
_OUTSIDE_BLOCKS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def write_llama(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> None:
    """Write a LLaMA with tied embeddings: matrices as they are, norms in F32.

    Parameters
    ----------
    path : Path
        A new file.
    tensors : mapping
        Name in the Hugging Face model -> array.
    config, tokenizer : mapping
        The contents of ``config.json`` and ``tokenizer.json``, a byte-level BPE.
    """
    model = model_of_config(dict(config), path)
    stored = {}
    for name, array in tensors.items():
        module = name.removesuffix(".weight")
        if name in _OUTSIDE_BLOCKS:
            stored[_OUTSIDE_BLOCKS[name]] = array
        elif module.endswith("layernorm"):
            _, _, block, norm = module.split(".")
            stored[f"blk.{block}.{_NORMS[norm]}.weight"] = array
        else:
            place = model.place(module, path)
            head_rows = place.head_rows(len(array), path)
            stored[place.tensor] = _interleaved(array, head_rows) if head_rows else array
    for name, array in stored.items():
        if array.ndim == 1:
            stored[name] = array.astype(np.float32)
    write_gguf(path, {**_model_metadata(config), **_tokenizer_metadata(config, tokenizer)}, stored)


def _interleaved(matrix: NDArray[Any], head_rows: int) -> NDArray[Any]:
    return interleaved_rows(lambda start, stop: matrix[start:stop], head_rows, 0, len(matrix))


def _model_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    head_size = config["hidden_size"] // config["num_attention_heads"]
    return {
        "general.architecture": "llama",
        "general.name": "nola-edge demo",
        "general.file_type": _MOSTLY_BF16,
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": head_size,
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }


def _tokenizer_metadata(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vocabulary as llama.cpp wants it: its "gpt2" is any byte-level BPE."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = tokenizer["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            _CONTROL if token in special else _NORMAL for token in range(len(tokens))
        ],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        "tokenizer.ggml.add_bos_token": False,
    }
