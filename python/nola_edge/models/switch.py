"""Switch a torch model in memory between adapters, exactly."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nola_edge.adapters.module_names import match_parts
from nola_edge.adapters.stored_names import StoredNames
from nola_edge.adapters.tensor_parts import WEIGHT
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import MismatchError, printable
from nola_edge.merge.switch import Switch
from nola_edge.models.mapped_memory import byte_view, find_shared
from nola_edge.models.plan import tensors_of
from nola_edge.models.resident import check_resident
from nola_edge.torch.arrays import tensor_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import nn


class AdapterSwitch(Switch):
    """Switch a model in memory between adapters, and back to none, without drift.

    >>> switch = AdapterSwitch(model, "base")       # doctest: +SKIP
    >>> switch.add("french", "adapters/french")     # doctest: +SKIP
    >>> switch.use("french")                        # doctest: +SKIP
    >>> with switch.running():                      # doctest: +SKIP
    ...     model(**inputs)
    >>> switch.use(None)                            # doctest: +SKIP

    Each switch rewrites the weights that change, merged from the base's file; other parameters are
    never touched. The weights have the same bits as a checkpoint written by ``merge_checkpoint``
    and loaded by ``from_pretrained`` in the model's dtypes. Threads that use the model while others
    switch do so inside :meth:`running`.

    Parameters
    ----------
    model : nn.Module
        Loaded from `base`, with nothing merged; parameters on any device.
    base, check_base, rename, num_threads, keep_bytes
        See :class:`nola_edge.merge.switch.Switch`.
    """

    def __init__(self, model: nn.Module, base: str | Path, **options: Any) -> None:
        super().__init__(base, **options)
        self.model = model
        self._names: dict[str, str] = {}

    def _check(self, names: list[str], called: Mapping[str, str]) -> None:
        # Every time: parameters may have been offloaded, split or tied since the last.
        parameters = tensors_of(self.model)
        where = Path(f"<{type(self.model).__name__}>")
        fresh = [name for name in names if name not in self._names]
        found = self._match(fresh, called, parameters, where) if fresh else {}
        matched = self._names | found
        for name in names:
            if matched[name] not in parameters:
                raise MismatchError("is not in the model", file=where, field=matched[name])
        check_resident(parameters, [matched[name] for name in names], where)
        shared = find_shared(parameters)
        for name in names:
            self._check_parameter(name, matched[name], parameters[matched[name]], where)
            if matched[name] in shared:
                raise MismatchError(
                    f"shares its tensor with {printable(shared[matched[name]])}, which would "
                    "change too; load the base with tie_word_embeddings=False",
                    file=where,
                    field=matched[name],
                )
        self._names = matched

    def _match(
        self,
        tensors: list[str],
        called: Mapping[str, str],
        parameters: Mapping[str, torch.Tensor],
        where: Path,
    ) -> dict[str, str]:
        """Return the parameter of each of the base's tensors that was not found before.

        By its name in the file or, if files name layers in another way than the model, by the
        adapter's, which was trained on such a model; weights say how all are named, those that
        were found before too, if they were named in the same way.
        """
        for these in ([*self._names, *tensors], tensors):
            for names in ({name: name for name in these}, called):
                with suppress(MismatchError):
                    found = _matched(these, names, parameters, self._base.path, where)
                    return {name: found[name] for name in tensors}
        absent = next((name for name in tensors if name not in parameters), tensors[0])
        raise MismatchError(
            "of the base has no parameter here: the files name or join layers in another way than "
            "the model and the adapter, which a switch cannot follow; load the model with each "
            "adapter merged in (nola_edge.transformers.NolaMergeConfig), or merge into files "
            "(nola-edge merge)",
            file=where,
            field=absent,
        )

    def _check_parameter(
        self, tensor: str, name: str, parameter: torch.Tensor, where: Path
    ) -> None:
        info = self._base.tensors[tensor][1]
        if hasattr(parameter, "device_mesh") or not parameter.is_floating_point():
            raise MismatchError("is split or quantised", file=where, field=name)
        if tuple(parameter.shape) != info.shape:
            raise MismatchError(
                f"is {list(parameter.shape)}, the base has {list(info.shape)}",
                file=where,
                field=name,
            )

    def _parameter(self, tensor: str) -> torch.Tensor:
        # Looked up each time: a parameter may have been moved to another device.
        owner, _, last = self._names[tensor].rpartition(".")
        parameter: torch.Tensor = getattr(self.model.get_submodule(owner), last)
        return parameter.data

    def _holds(self, name: str, values: NDArray[Any]) -> bool:
        parameter = self._parameter(name)
        wanted = tensor_view(values).to(parameter.dtype)
        # In a row: torch views neither a scalar nor elements that lie apart as bytes.
        mine, wanted = parameter.cpu().reshape(-1), wanted.reshape(-1)
        return torch.equal(mine.view(torch.uint8), wanted.view(torch.uint8))

    def _memory(self, name: str) -> memoryview | None:
        parameter, info = self._parameter(name), self._base.tensors[name][1]
        if (
            parameter.device.type != "cpu"
            or not parameter.is_contiguous()
            or str(parameter.dtype) != f"torch.{numpy_dtype(info.dtype).name}"
        ):
            return None
        return byte_view(parameter)

    def _store(self, name: str, values: NDArray[Any]) -> None:
        self._parameter(name).copy_(tensor_view(values))


def _matched(
    tensors: list[str],
    called: Mapping[str, str],
    parameters: Mapping[str, torch.Tensor],
    base: Path,
    model: Path,
) -> dict[str, str]:
    """Return the parameter of each tensor, which is called so, or so below a prefix."""
    names = {name: called.get(name, name) for name in tensors}
    weights = [name.removesuffix(WEIGHT) for name in names.values() if name.endswith(WEIGHT)]
    prefix = match_parts(weights, parameters, StoredNames({}), adapter=base, base=model).prefix
    return {tensor: prefix.apply(name) for tensor, name in names.items()}
