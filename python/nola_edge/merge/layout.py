"""The files of a merged checkpoint: those of the base, with headers and an index to match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.copying import copy_file
from nola_edge.dtypes import safetensors_dtype
from nola_edge.jsonio import encode
from nola_edge.merge.tied import CONFIG_NAME, untied_config
from nola_edge.safetensors_file import encode_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from nola_edge.merge.plan import MergePlan
    from nola_edge.output import AtomicOutput
    from nola_edge.safetensors_file import SafetensorsFile


@dataclass(frozen=True)
class OutputFile:
    """One output file: the base's file behind a header, then tensors that the base lacks.

    Attributes
    ----------
    source : SafetensorsFile
        The base's file.
    header : bytes
    added : dict
        Tensor name -> values, in the order in which they follow the base's tensors.
    """

    source: SafetensorsFile
    header: bytes
    added: dict[str, NDArray[Any]]

    @property
    def name(self) -> str:
        """Return its plain name, which is the base's."""
        return self.source.path.name

    @property
    def shift(self) -> int:
        """How much further back the tensors lie than in the base, in bytes."""
        return len(self.header) - len(self.source.header_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.source.size + self.shift + sum(v.nbytes for v in self.added.values())


def output_files(plan: MergePlan) -> list[OutputFile]:
    """Keep every header as it is; added tensors go to the end of the last file."""
    files = [OutputFile(file, bytes(file.header_bytes), {}) for file in plan.base.shards]
    if plan.added:
        last = plan.base.shards[-1]
        entries = [
            (info.name, info.dtype, tuple(info.shape), info.nbytes)
            for info in sorted(last.tensors.values(), key=lambda info: (info.start, info.stop))
        ]
        entries += [
            (name, safetensors_dtype(values.dtype), tuple(values.shape), values.nbytes)
            for name, values in plan.added.items()
        ]
        header = encode_header(entries, last.metadata)
        files[-1] = OutputFile(last, header, dict(plan.added))
    return files


def write_companions(
    plan: MergePlan, companions: Sequence[Path], files: Sequence[OutputFile], output: AtomicOutput
) -> None:
    """Carry over configuration and tokenizer files, and the index of the weight files."""
    base = plan.base
    untied = untied_config(plan)
    for relative in companions:
        with output.file(str(relative)) as target:
            if untied is not None and relative == Path(CONFIG_NAME):
                target.write_bytes(untied)
            else:
                copy_file(base.path / relative, target)
    if base.index is None or base.index_name is None:
        return
    data = bytes(base.index_bytes or b"")
    if plan.added:
        index = dict(base.index)
        weight_map = dict(index["weight_map"])
        weight_map.update(dict.fromkeys(plan.added, files[-1].name))
        metadata = dict(index.get("metadata") or {})
        if isinstance(metadata.get("total_size"), int):
            metadata["total_size"] += sum(values.nbytes for values in plan.added.values())
        index.update(metadata=metadata, weight_map=weight_map)
        data = encode(index, file=base.index_name, indent=2, sort_keys=True) + b"\n"
    with output.file(base.index_name) as target:
        target.write_bytes(data)
