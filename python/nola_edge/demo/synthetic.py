"""Checkpoints and adapters of realistic shapes with random numbers, for demo, benchmarks, tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters import Adapter
from nola_edge.dtypes import numpy_dtype
from nola_edge.files.safetensors import encode_header
from nola_edge.files.strict_json import dumps

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_TILE = 1 << 20


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a LLaMA-style decoder."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return module name -> (out_features, in_features) of attention and MLP."""
        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name in attention:
                shapes[f"{prefix}self_attn.{name}"] = (self.hidden, self.hidden)
            for name in ("gate_proj", "up_proj"):
                shapes[f"{prefix}mlp.{name}"] = (self.intermediate, self.hidden)
            shapes[f"{prefix}mlp.down_proj"] = (self.hidden, self.intermediate)
        return shapes

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return tensor name -> shape of the whole model."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        shapes.update({f"{name}.weight": shape for name, shape in self.linears().items()})
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes


def llama_7b(layers: int = 32) -> DecoderShape:
    """Return the shapes of a 7B LLaMA (arXiv 2302.13971, table 2) with some of its layers."""
    return DecoderShape(layers, hidden=4096, intermediate=11008, vocabulary=32000)


def write_checkpoint(folder: Path, shape: DecoderShape, *, dtype: str = "BF16") -> int:
    """Write a folder with one safetensors file of random weights; return its bytes.

    One tile of random numbers is repeated, so that writing costs little more than the disk.
    """
    folder.mkdir()
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    tile: NDArray[Any] = (rng.standard_normal(_TILE, np.float32) * 0.02).astype(kind)
    tensors = shape.tensors()
    entries = [
        (name, dtype, sizes, int(np.prod(sizes)) * kind.itemsize) for name, sizes in tensors.items()
    ]
    with (folder / "model.safetensors").open("wb") as file:
        header = encode_header(entries, {"format": "pt"})
        file.write(header)
        for _, _, _, nbytes in entries:
            data = tile.view(np.uint8).data
            for start in range(0, nbytes, len(data)):
                file.write(data[: min(len(data), nbytes - start)])
    config = {"model_type": "llama", "num_hidden_layers": shape.layers, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(dumps(config, indent=2) + "\n")
    return len(header) + sum(nbytes for *_, nbytes in entries)


def trained_adapter(
    modules: dict[str, tuple[int, int]],
    *,
    r: int = 16,
    num_basis: int = 128,
    seed: int = 42,
    base: Path | None = None,
    **options: Any,
) -> Adapter:
    """Return an adapter whose coefficients are random, as after training.

    `options` go to :meth:`Adapter.create`; the unit of beta is one as trained adapters have.
    """
    fresh = Adapter.create(
        modules,
        r=r,
        num_basis_a=num_basis,
        num_basis_b=num_basis,
        seed=seed,
        lora_alpha=r,
        base=base,
        **{"beta_unit": 2.0, **options},
    )
    rng = np.random.default_rng(seed)

    def noise() -> NDArray[np.float32]:
        return rng.standard_normal(num_basis).astype(np.float32) * np.float32(0.02)

    return fresh.replace({m: (c.alpha + noise(), noise()) for m, c in fresh.modules.items()})
