"""LoRA: the factors themselves are in the file, and each module has its own rank and scaling."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from nola_edge.adapters.base import with_rslora_mistaken
from nola_edge.adapters.lora_config import LoraConfig
from nola_edge.adapters.lora_files import LoraModule, container_of, read_lora
from nola_edge.adapters.peft_folder import CONFIG_NAME, kept_open
from nola_edge.adapters.stored import StoredAdapter
from nola_edge.adapters.tensor_parts import check_owners
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from nola_edge.files.tensors import Tensor
    from nola_edge.ops import Range


class LoraAdapter(StoredAdapter[LoraModule]):
    """A LoRA whose factors stay in their file, and are read as they are merged.

    Attributes
    ----------
    config : LoraConfig
    """

    config: LoraConfig

    def __init__(
        self,
        config: LoraConfig,
        modules: Mapping[str, LoraModule],
        whole_tensors: Mapping[str, Tensor],
        path: Path,
        kept_bytes: int = 0,
    ) -> None:
        self._kept_bytes = kept_bytes
        self._in_other_layout: Callable[[], LoraAdapter] | None = None
        self.config = config
        self.modules = dict(modules)
        self.whole_tensors = TensorMapping(whole_tensors)
        self.path = path

    @classmethod
    def from_folder(cls, folder: Path, data: dict[str, Any]) -> LoraAdapter:
        """Read a folder of PEFT, whose parsed ``adapter_config.json`` is `data`.

        Raises
        ------
        NolaEdgeError
            If a file is missing or is not what it claims, or a field or tensor is not understood.
        """
        config = LoraConfig.from_json(data, file=folder / CONFIG_NAME)
        with kept_open(folder) as file:
            modules, whole = read_lora(file, config)
        check_owners(config.tensors, modules, whole, folder / CONFIG_NAME)
        return cls(config, modules, whole, folder)

    @property
    def needs_base(self) -> bool:
        """Whether it is of stacks of experts, whose modules only a base says."""
        return any(map(self._is_stack, self.modules))

    def _is_stack(self, module: str) -> bool:
        return container_of(module, self.config.target_parameters) is not None

    def for_base(self, shapes: Mapping[str, tuple[int, ...]], base: Path) -> LoraAdapter:
        """Return the adapter with the modules that its stacks of experts are in a base.

        Raises
        ------
        MismatchError
            If the base has no such stacks, or it is not certain which is which.
        """
        if not self.needs_base:
            return self
        found = self._with_experts(self.config, shapes, base)
        found._in_other_layout = partial(
            self._with_experts, self.config.in_other_layout(), shapes, base
        )
        return found

    def _with_experts(
        self, config: LoraConfig, shapes: Mapping[str, tuple[int, ...]], base: Path
    ) -> LoraAdapter:
        from nola_edge.adapters.experts import expert_modules, kept_bytes

        plain = {module: m for module, m in self.modules.items() if not self._is_stack(module)}
        stacks = {module: m for module, m in self.modules.items() if module not in plain}
        experts = expert_modules(stacks, config, shapes, self.path, base)
        whole = self.whole_tensors.tensors
        modules = {**plain, **experts}
        return LoraAdapter(config, modules, whole, self.path, kept_bytes(stacks))

    @cached_property
    def other_layout(self) -> LoraAdapter | None:
        """The adapter with the factors of its stacks of experts laid out in the other way."""
        return None if self._in_other_layout is None else self._in_other_layout()

    @property
    def method(self) -> str:
        """Return ``"LoRA"``, or ``"DoRA"`` if weights are scaled to trained norms."""
        return (
            "DoRA" if any(self.magnitude(module) is not None for module in self.modules) else "LoRA"
        )

    def rank(self, module: str) -> int:
        """Return r of a module."""
        return self.find(module).a.shape[0]

    def scaling_of(self, module: str) -> float:
        """Return s of a module, in double."""
        return self.find(module).scaling

    def mistaken_scaling(self, module: str) -> float:
        """Return s of a module where rsLoRA is mistaken, in double."""
        scaling, used = self.scaling_of(module), self.config.use_rslora
        return with_rslora_mistaken(scaling, self.rank(module), used)

    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: Range | None = None,
        num_threads: int | None = None,
        *,
        rows: Range | None = None,
    ) -> NDArray[np.float32]:
        """Read A, (r, in_features), or the columns, or rows, (start, stop) of it: float32."""
        return self.find(module).a.window(rows, cols)

    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: Range | None = None,
        num_threads: int | None = None,
        *,
        cols: Range | None = None,
    ) -> NDArray[np.float32]:
        """Read B, (out_features, r), or the rows, or columns, (start, stop) of it: float32."""
        return self.find(module).b.window(rows, cols)

    def is_embedding(self, module: str) -> bool:
        """Tell whether a module is an embedding, whose weight is (tokens, features) = (in, out)."""
        return self.find(module).is_embedding

    def shape(self, module: str) -> tuple[int, int]:
        """Return the (out_features, in_features) of the stored factors."""
        return self.find(module).shape

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory, with what it may keep of stacks of experts."""
        return self._kept_bytes + super().held_bytes

    def magnitude(self, module: str) -> Tensor | None:
        """Return DoRA's norms of the merged weights, (out_features,); None where there are none."""
        return self.find(module).magnitude

    @property
    def added_biases(self) -> dict[str, Tensor]:
        """Return module -> (out_features,) that is added to the bias, times s as B A is."""
        return {name: m.bias for name, m in self.modules.items() if m.bias is not None}
