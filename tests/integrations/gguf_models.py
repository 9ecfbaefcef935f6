"""Small models of each architecture, as transformers has them and as GGUF files.

The files are written with the gguf package, and named by its own map; the row order of LLaMA's
query and key layers is spelled out row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
GPT2_SIZES = {
    "vocab_size": 96, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA_SIZES = {
    **SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "llama": (transformers.LlamaConfig, SIZES),
    "mistral": (transformers.MistralConfig, {**SIZES, "sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, SIZES),
    "qwen3": (transformers.Qwen3Config, {**SIZES, "head_dim": 16}),
    "gemma2": (transformers.Gemma2Config, GEMMA_SIZES),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA_SIZES),
    "phi3": (transformers.Phi3Config, SIZES),
    "gpt2": (transformers.GPT2Config, GPT2_SIZES),
}
GGUF_NAMES = {"mistral": "llama"}


def make_model(kind: str, **options) -> transformers.PreTrainedModel:
    """Return a model with random weights that differ from layer to layer."""
    config_class, sizes = CONFIGS[kind]
    torch.manual_seed(7)
    config = config_class(**{**sizes, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(torch.float32)


def linear_shapes(model: transformers.PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return module name -> (out_features, in_features) of every layer within the blocks."""
    shapes = {}
    for name, module in model.named_modules():
        if name == "lm_head":
            continue
        if isinstance(module, torch.nn.Linear):
            shapes[name] = tuple(module.weight.shape)
        elif isinstance(module, transformers.pytorch_utils.Conv1D):
            shapes[name] = tuple(module.weight.shape)[::-1]
    return shapes


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring rows into the order of llama.cpp's LLaMA: pairs of a head one after the other."""
    size = len(rows) // heads
    order = [
        head * size + half * (size // 2) + pair
        for head in range(heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return rows[order]


def gguf_tensors(model: transformers.PreTrainedModel, kind: str) -> dict[str, np.ndarray]:
    """Return a model's tensors under their names in GGUF, in float32."""
    architecture = GGUF_NAMES.get(kind, kind)
    config = model.config
    code = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1  # GGUF holds what is multiplied by
        if kind == "gpt2" and values.ndim == 2 and ".c_" in name:
            values = values.T
        if architecture == "llama" and ".q_proj." in name:
            values = interleaved(values, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            values = interleaved(values, config.num_key_value_heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        tensors[stored] = np.ascontiguousarray(values)
    return tensors


def write_gguf(
    path: Path, tensors: dict[str, np.ndarray], kind: str, config, dtype: str = "F32"
) -> None:
    """Write a GGUF file; matrices of blocks in the given type, all else in F32."""
    architecture = GGUF_NAMES.get(kind, kind)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 10000.0))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([1] * config.vocab_size)
    for name, values in tensors.items():
        kept = values.ndim < 2 or not name.startswith("blk.")
        code = gguf.GGMLQuantizationType[("F32" if kept else dtype)]
        if code in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(name, values.astype(np.float16 if code.name == "F16" else np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
