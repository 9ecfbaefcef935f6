"""A LLaMA-style decoder in numpy, to let merged weights speak without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Tokens = NDArray[np.int64]


class Cache:
    """Keys and values of every layer for the tokens so far, with room for those to come.

    Parameters
    ----------
    padding : array of int, (batch,)
        How many tokens at the beginning of each row are to be ignored.
    capacity : int
        Most tokens of a row, padding included.
    """

    def __init__(self, padding: Sequence[int], capacity: int) -> None:
        self.ignored = np.arange(capacity) < np.asarray(padding)[:, None]
        self.capacity = capacity
        self.length = 0
        self.layers: list[tuple[Array, Array]] = []

    def extend(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Add (batch, heads, tokens, width) to a layer and return all that it holds now."""
        batch, heads, count, width = keys.shape
        if layer == len(self.layers):
            shape = (batch, heads, self.capacity, width)
            self.layers.append((np.empty(shape, np.float32), np.empty(shape, np.float32)))
        stop = self.length + count
        for held, new in zip(self.layers[layer], (keys, values), strict=True):
            held[:, :, self.length : stop] = new
        held_keys, held_values = self.layers[layer]
        return held_keys[:, :, :stop], held_values[:, :, :stop]


class Decoder:
    """Forward pass and greedy generation for a small model.

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
        self, prompts: Sequence[Sequence[int]], stop: int, limit: int = 64
    ) -> list[list[int]]:
        """Return the likeliest next tokens of each prompt, one after the other, up to `stop`.

        Parameters
        ----------
        prompts : sequence of sequence of int
        stop : int
            Token that ends a text; left out.
        limit : int
            Most tokens to generate.
        """
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        cache = Cache(padding, longest + limit)
        tokens = np.array(
            [[stop] * count + [*p] for count, p in zip(padding, prompts, strict=True)]
        )
        said = np.empty((len(prompts), 0), np.int64)
        while said.shape[1] < limit and not (said == stop).any(1).all():
            tokens = self.forward(tokens, cache, last=True).argmax(-1)
            said = np.concatenate([said, tokens], axis=1)
        return [row[: [*row, stop].index(stop)] for row in said.tolist()]

    def forward(self, tokens: Tokens, cache: Cache | None = None, last: bool = False) -> Array:
        """Return logits (batch, tokens, vocabulary).

        Parameters
        ----------
        tokens : array of int, (batch, tokens)
            Those that follow what is in the cache.
        cache : Cache
            Extended in place. Default: an empty one, with no padding.
        last : bool
            Return logits of the last token alone.
        """
        batch, count = tokens.shape
        cache = Cache([0] * batch, count) if cache is None else cache
        x = self._tensors["model.embed_tokens.weight"][tokens]
        for layer in range(self._layers):
            prefix = f"model.layers.{layer}"
            h = self._norm(x, f"{prefix}.input_layernorm")
            x = x + self._attend(h, f"{prefix}.self_attn", layer, cache)
            h = self._norm(x, f"{prefix}.post_attention_layernorm")
            gate = self._linear(h, f"{prefix}.mlp.gate_proj")
            up = self._linear(h, f"{prefix}.mlp.up_proj")
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"{prefix}.mlp.down_proj")
        cache.length += count
        x = self._norm(x[:, -1:] if last else x, "model.norm")
        return self._linear(x, "model.embed_tokens")

    def _linear(self, x: Array, name: str) -> Array:
        weight = self._tensors[f"{name}.weight"]
        # One product for the whole batch; numpy would make one for each row of it.
        product: Array = x.reshape(-1, x.shape[-1]) @ weight.T
        return product.reshape(*x.shape[:-1], -1)

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self._eps))
        normed: Array = x / scale * self._tensors[f"{name}.weight"]
        return normed

    def _attend(self, x: Array, name: str, layer: int, cache: Cache) -> Array:
        batch, count, _ = x.shape
        q, k, v = (
            self._linear(x, f"{name}.{which}_proj")
            .reshape(batch, count, self._heads, -1)
            .transpose(0, 2, 1, 3)
            for which in "qkv"
        )
        start = cache.length
        q, k = self._rotate(q, start), self._rotate(k, start)
        k, v = cache.extend(layer, k, v)
        scores = q @ k.swapaxes(2, 3) / np.float32(math.sqrt(q.shape[-1]))
        mixed = self._weights(scores, cache, start) @ v
        return self._linear(mixed.swapaxes(1, 2).reshape(batch, count, -1), f"{name}.o_proj")

    def _weights(self, scores: Array, cache: Cache, start: int) -> Array:
        """Return the softmax of scores (batch, heads, tokens, keys) over what may be seen."""
        count, total = scores.shape[2:]
        future = np.arange(total) > start + np.arange(count)[:, None]
        hidden = future | cache.ignored[:, None, None, :total]
        # Finite, so that a padding token, which sees nothing, yields no NaN.
        scores = np.where(hidden, np.float32(-1e30), scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        normed: Array = weights / weights.sum(-1, keepdims=True)
        return normed

    def _rotate(self, x: Array, start: int) -> Array:
        """Turn pairs of channels, half a head apart, by the position's angles."""
        positions = np.arange(start, start + x.shape[2], dtype=np.float32)
        angles = np.outer(positions, self._frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        turned: Array = np.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        )
        return turned
