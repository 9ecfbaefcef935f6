"""What tells an earlier output of a merge from anything else, without reading its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import CheckpointError, NolaEdgeError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.folder import SAFETENSORS
from nola_edge.files.obstacles import foreign, other_tensors
from nola_edge.files.safetensors import safetensors_obstacle
from nola_edge.merge.layout import checkpoint_obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.merge.plan import MergePlan

#: A tensor's dtype, as safetensors names it, and its shape.
Kind = tuple[str, tuple[int, ...]]


class EarlierOutput(NamedTuple):
    """What an earlier output of a merge is like; small, for there may be thousands of outputs.

    Attributes
    ----------
    base : Checkpoint
    added : dict
        Tensor name -> kind, of those that the base lacks.
    """

    base: Checkpoint
    added: Mapping[str, Kind]

    @classmethod
    def of(cls, plan: MergePlan) -> EarlierOutput:
        """Return what the outputs of a plan are like."""
        added = plan.added.items()
        return cls(plan.base, {n: (safetensors_dtype(v.dtype), tuple(v.shape)) for n, v in added})

    def obstacle(self, path: Path) -> str | None:
        """Say what keeps a path from being replaced: no merge into such a base has written it.

        Dtypes and header metadata may differ, as they do after the base was saved again, and
        tensors that an adapter adds may be missing.
        """
        if self.base.is_folder:
            in_the_way = checkpoint_obstacle(self.base.companions())(path)
        else:
            in_the_way = _adapter_obstacle(path) or safetensors_obstacle(path)
        return in_the_way or self._other_model(path)

    def _other_model(self, path: Path) -> str | None:
        try:
            with Checkpoint.open(path) as found:
                shards = {shard.path.name for shard in found.shards}
                shapes = {name: str(list(info.shape)) for name, (_, info) in found.tensors.items()}
        except NolaEdgeError as error:
            return f"is not a checkpoint ({error.message})"
        wanted = {name: str(list(info.shape)) for name, (_, info) in self.base.tensors.items()}
        added = self.added.items()  # another adapter's output need not have them
        wanted |= {name: str(list(shape)) for name, (_, shape) in added if name in shapes}
        return other_tensors(wanted, shapes) or (_stray(path, shards) if path.is_dir() else None)

    def check_like(self, path: Path) -> None:
        """Refuse a path that cannot be an earlier output of this very merge.

        All that headers say is compared; contents are not.

        Raises
        ------
        NolaEdgeError
        """
        with Checkpoint.open(path) as found:
            difference = self._difference(found)
        if difference is not None:
            raise CheckpointError(difference, file=path)

    def _difference(self, found: Checkpoint) -> str | None:
        base = self.base
        if base.is_folder != found.is_folder:
            return f"it is a {'folder' if found.is_folder else 'file'}"
        if base.is_folder and _names(base) != _names(found):
            return f"its weights are in {len(found.shards)} files of other names"
        for number, (own, other) in enumerate(zip(base.shards, found.shards, strict=True), 1):
            added = self.added if number == len(base.shards) else {}
            difference = other_tensors(
                {name: _said(kind) for name, kind in {**_kinds(own), **added}.items()},
                {name: _said(kind) for name, kind in _kinds(other).items()},
            )
            if difference is not None:
                return f"it {difference}"
            if own.metadata != other.metadata:
                return "its header has other metadata"
        return None


def _adapter_obstacle(path: Path) -> str | None:
    """Say that a single file is the weights of an adapter, by its name and what is beside it."""
    if path.name == WEIGHTS_NAME:
        return "has the name of an adapter's weights"
    if os.path.lexists(path.with_name(CONFIG_NAME)):
        return f"lies beside an {CONFIG_NAME}"
    return None


def _stray(folder: Path, shards: set[str]) -> str | None:
    """Say that a folder holds safetensors files that its model does not consist of."""
    names = {name for name in os.listdir(folder) if name.endswith(SAFETENSORS)}
    return foreign(names - shards)


def _names(checkpoint: Checkpoint) -> list[str]:
    return [shard.path.name for shard in checkpoint.shards]


def _kinds(file: SafetensorsFile) -> dict[str, Kind]:
    return {info.name: (info.dtype, tuple(info.shape)) for info in file.tensors.values()}


def _said(kind: Kind) -> str:
    return f"{kind[0]} {list(kind[1])}"
