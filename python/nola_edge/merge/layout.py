"""The files of a merged checkpoint: those of the base, with headers and an index to match."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nola_edge.adapters.peft_folder import CONFIG_NAME as ADAPTER_CONFIG
from nola_edge.adapters.peft_folder import WEIGHTS_NAME as ADAPTER_WEIGHTS
from nola_edge.dtypes import safetensors_dtype
from nola_edge.errors import printable
from nola_edge.files.copying import copy_file
from nola_edge.files.folder import SAFETENSORS, is_own_weights
from nola_edge.files.obstacles import foreign, names_below
from nola_edge.files.paths import in_hub_cache, inside
from nola_edge.files.safetensors import encode_header
from nola_edge.files.strict_json import encode
from nola_edge.merge.tied import CONFIG_NAME, untied_config

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nola_edge.files.atomic import AtomicOutput
    from nola_edge.files.obstacles import Obstacle
    from nola_edge.files.safetensors import SafetensorsFile
    from nola_edge.files.tensors import Tensor
    from nola_edge.merge.plan import MergePlan


class OutputFile(NamedTuple):
    """One output file: the base's file behind a header, then tensors that the base lacks.

    Attributes
    ----------
    source : SafetensorsFile
        The base's file.
    header : bytes
    added : dict
        Tensor name -> tensor, in the order in which they follow the base's tensors.
    """

    source: SafetensorsFile
    header: bytes
    added: dict[str, Tensor]

    @property
    def name(self) -> str:
        """Return its plain name, which is the base's."""
        return self.source.path.name

    @property
    def shift(self) -> int:
        """How much further back the tensors lie than in the base, in bytes."""
        return len(self.header) - self.source.header_size

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.source.size + self.shift + sum(v.nbytes for v in self.added.values())


def output_files(plan: MergePlan) -> list[OutputFile]:
    """Keep every header as it is; added tensors go to the end of the last file."""
    files = [OutputFile(file, file.read_header(), {}) for file in plan.base.shards]
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


def companion_contents(
    plan: MergePlan, companions: Sequence[Path], files: Sequence[OutputFile]
) -> dict[Path, bytes | Path]:
    """Return what stands beside the weight files: a file's bytes, or the file that is copied.

    Configuration and tokenizer files are the base's, and so is the index, except where an adapter
    adds tensors.
    """
    base = plan.base
    contents: dict[Path, bytes | Path] = {path: inside(base.path, str(path)) for path in companions}
    untied = untied_config(plan)
    if untied is not None and Path(CONFIG_NAME) in contents:
        contents[Path(CONFIG_NAME)] = untied
    if base.index_name is not None:
        contents[Path(base.index_name)] = _index(plan, files)
    return contents


def _index(plan: MergePlan, files: Sequence[OutputFile]) -> bytes:
    base = plan.base
    if not plan.added or base.index is None:
        return bytes(base.index_bytes or b"")
    index = dict(base.index)
    weight_map = dict(index["weight_map"])
    weight_map.update(dict.fromkeys(plan.added, files[-1].name))
    metadata = dict(index.get("metadata") or {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += sum(values.nbytes for values in plan.added.values())
    index.update(metadata=metadata, weight_map=weight_map)
    return encode(index, file=base.index_name, indent=2, sort_keys=True) + b"\n"


def write_companions(
    plan: MergePlan, companions: Sequence[Path], files: Sequence[OutputFile], output: AtomicOutput
) -> None:
    """Carry over configuration and tokenizer files, and the index of the weight files."""
    for relative, content in companion_contents(plan, companions, files).items():
        with output.file(str(relative)) as target:
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                copy_file(content, target)


def checkpoint_obstacle(companions: Collection[Path]) -> Obstacle:
    """Make a test for a folder with weights and nothing but these and files of given names."""
    own = {str(path) for path in companions}

    def is_own(name: str) -> bool:
        return name in own or is_own_weights(name)

    def test(path: Path) -> str | None:
        names = os.listdir(path)
        adapter = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}.intersection(names)
        if adapter:
            return foreign([min(adapter)])
        if in_hub_cache(path):
            return "lies in the Hugging Face cache"
        below = names_below(path)
        links = [name for name in below if (path / name).is_symlink()]
        if links:
            return f"holds the link {printable(min(links))}, and an output holds none"
        others = [name for name in below if not is_own(name)]
        if not others and not any(name.endswith(SAFETENSORS) for name in names):
            return f"holds {printable(min(names))} but no weights"
        return foreign(others)

    return test
