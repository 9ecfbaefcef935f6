"""A LLaMA-style decoder in numpy, to let merged weights speak without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]


class Decoder:
    """Forward pass and greedy generation for a small model, one sequence at a time.

    RMSNorm, rotary positions, SwiGLU, as many key heads as query heads, tied embeddings (Touvron
    et al., arXiv 2302.13971).

    Parameters
    ----------
    tensors : mapping
        Tensor name, as transformers stores it -> array of any float dtype.
    config : mapping
        The fields of ``config.json``.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> None:
        self._tensors = {name: np.asarray(tensors[name], np.float32) for name in tensors}
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config["rms_norm_eps"]
        width = config["hidden_size"] // self._heads
        theta = (config.get("rope_parameters") or config)["rope_theta"]
        self._frequencies = (theta ** (-np.arange(0, width, 2) / width)).astype(np.float32)

    def generate(
        self, prompt: Sequence[int], stop: int, limit: int = 60, least: int = 0
    ) -> list[int]:
        """Return the likeliest next tokens, one after the other, up to `stop`, which is left out.

        Parameters
        ----------
        prompt : sequence of int
        stop : int
            Token that ends the text.
        limit : int
            Most tokens to generate.
        least : int
            Tokens before `stop` may come.
        """
        cache: list[tuple[Array, Array]] = []
        said: list[int] = []
        tokens = list(prompt)
        while len(said) < limit:
            logits = self.forward(tokens, cache)[-1]
            if len(said) < least:
                logits[stop] = -np.inf
            token = int(logits.argmax())
            if token == stop:
                break
            said.append(token)
            tokens = [token]
        return said

    def forward(
        self, tokens: Sequence[int], cache: list[tuple[Array, Array]] | None = None
    ) -> Array:
        """Return logits (tokens, vocabulary).

        Parameters
        ----------
        tokens : sequence of int
            Those that follow what is in the cache.
        cache : list
            Keys and values of each layer, empty at first; extended in place.
        """
        cache = [] if cache is None else cache
        x = self._tensors["model.embed_tokens.weight"][list(tokens)]
        start = cache[0][0].shape[1] if cache else 0
        for layer in range(self._layers):
            prefix = f"model.layers.{layer}"
            h = self._norm(x, f"{prefix}.input_layernorm")
            x = x + self._attend(h, f"{prefix}.self_attn", layer, start, cache)
            h = self._norm(x, f"{prefix}.post_attention_layernorm")
            gate = self._linear(h, f"{prefix}.mlp.gate_proj")
            up = self._linear(h, f"{prefix}.mlp.up_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"{prefix}.mlp.down_proj")
        head = self._tensors["model.embed_tokens.weight"]
        return self._norm(x, "model.norm") @ head.T

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._tensors[f"{name}.weight"].T

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self._eps))
        normed: Array = x / scale * self._tensors[f"{name}.weight"]
        return normed

    def _attend(
        self, x: Array, name: str, layer: int, start: int, cache: list[tuple[Array, Array]]
    ) -> Array:
        count = len(x)
        q, k, v = (
            self._linear(x, f"{name}.{which}_proj")
            .reshape(count, self._heads, -1)
            .transpose(1, 0, 2)
            for which in "qkv"
        )
        q, k = self._rotate(q, start), self._rotate(k, start)
        if layer < len(cache):
            k = np.concatenate([cache[layer][0], k], axis=1)
            v = np.concatenate([cache[layer][1], v], axis=1)
            cache[layer] = k, v
        else:
            cache.append((k, v))
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(q.shape[-1]))
        future = np.arange(k.shape[1])[None] > start + np.arange(count)[:, None]
        scores = np.where(future, np.float32(-np.inf), scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        return self._linear(mixed.transpose(1, 0, 2).reshape(count, -1), f"{name}.o_proj")

    def _rotate(self, x: Array, start: int) -> Array:
        """Turn pairs of channels, half a head apart, by the position's angles."""
        positions = np.arange(start, start + x.shape[1], dtype=np.float32)
        angles = np.outer(positions, self._frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        turned: Array = np.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        )
        return turned
