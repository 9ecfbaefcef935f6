"""Folders of adapters and bases, written by the tests themselves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.adapters.peft_folder import write_tensors as write_safetensors
from nola_edge.files.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.testing.reference import Product

    Tensors = Mapping[str, NDArray[Any]]
    #: Module name -> (out_features, in_features).
    Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class AdapterFiles:
    """What stands in the folder of an adapter.

    Attributes
    ----------
    config : dict
        ``adapter_config.json``.
    tensors : dict
        ``adapter_model.safetensors``, with the names as they are in the file.
    """

    config: Mapping[str, Any]
    tensors: Tensors

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Read a folder."""
        return cls(
            json.loads((folder / CONFIG_NAME).read_text()), read_tensors(folder / WEIGHTS_NAME)
        )

    def write(self, folder: Path) -> Path:
        """Write a new folder, and return it."""
        folder.mkdir(parents=True)
        write_safetensors(folder / WEIGHTS_NAME, self.tensors)
        (folder / CONFIG_NAME).write_text(json.dumps(self.config))
        return folder

    def with_fields(self, **fields: Any) -> AdapterFiles:
        """Return the same with some fields changed; ``...`` takes one out."""
        config = {**self.config, **fields}
        return replace(self, config={k: v for k, v in config.items() if v is not ...})

    def with_tensors(self, tensors: Mapping[str, Any]) -> AdapterFiles:
        """Return the same with some tensors changed; ``...`` takes one out."""
        changed = {**self.tensors, **tensors}
        return replace(self, tensors={k: v for k, v in changed.items() if v is not ...})


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return tensor name -> array of a safetensors file, or of a folder of them."""
    with Checkpoint.open(path) as checkpoint:
        return {name: np.array(file.array(name)) for name, (file, _) in checkpoint.tensors.items()}


def base_tensors(
    shapes: Shapes, dtype: np.dtype[Any], *, transposed: bool = False
) -> dict[str, NDArray[Any]]:
    """Return a model's tensors: a weight and a bias for each module, a head, an embedding."""
    rng = np.random.default_rng(3)
    found: dict[str, NDArray[Any]] = {"embed.weight": rng.standard_normal((50, 40)).astype(dtype)}
    for module, (out, into) in shapes.items():
        stored = (into, out) if transposed else (out, into)
        found[f"{module}.weight"] = rng.standard_normal(stored).astype(dtype)
        found[f"{module}.bias"] = rng.standard_normal(out).astype(np.float32)
    return {**found, "head.weight": np.ones((2, 3), np.float32)}


def write_base(folder: Path, tensors: Tensors) -> Path:
    """Write a folder of one safetensors file and a configuration, and return it."""
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder


def plain_lora(shapes: Shapes, seed: int = 77) -> tuple[AdapterFiles, dict[str, Product]]:
    """Return a LoRA, and its product by module: the other adapter of a merge of two."""
    rng = np.random.default_rng(seed)
    tensors, products = {}, {}
    for module, (out, into) in shapes.items():
        a, b = (
            rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)
            for shape in ((3, into), (out, 3))
        )
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        products[module] = (b, a, 5 / 3)
    return AdapterFiles({"peft_type": "LORA", "r": 3, "lora_alpha": 5}, tensors), products


def digests(folder: Path) -> dict[str, str]:
    """Digest every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
