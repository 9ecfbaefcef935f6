"""A base checkpoint: one safetensors file, or a Hugging Face folder, sharded or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.errors import ChangedError, CheckpointError, printable
from nola_edge.jsonio import loads_object
from nola_edge.paths import inside
from nola_edge.safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from nola_edge.safetensors_file import TensorInfo

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 100_000_000
#: Weights in other formats: stale beside merged ones, so never carried over.
_OTHER_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data",
    ".safetensors", ".tflite", ".ot", ".npz", ".pkl",
)  # fmt: skip


class Checkpoint:
    """All tensors of a base, by name, with every header checked.

    Attributes
    ----------
    path : Path
    is_folder : bool
    shards : list of SafetensorsFile
        In the order of their names.
    tensors : dict
        Name -> (file, entry), in the order of the files.
    index : dict or None
        The parsed index of a sharded folder.
    index_bytes : bytes or None
        The index as it stands in its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.shards: list[SafetensorsFile] = []
        self.tensors: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
        self.index: dict[str, Any] | None = None
        self.index_bytes: bytes | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a safetensors file or a folder and check every header.

        Raises
        ------
        CheckpointError
            If there is nothing to open, or shards and index disagree.
        FormatError
            If a file is not what it claims.
        """
        return cls(Path(path))

    def _open(self) -> None:
        if not self.path.exists():
            raise CheckpointError("does not exist", file=self.path)
        if not self.is_folder:
            self._refuse_gguf()
            self._add_shard(self.path)
            return
        if os.path.lexists(self.path / WEIGHTS_NAME):
            self._add_shard(inside(self.path, WEIGHTS_NAME))
        elif os.path.lexists(self.path / INDEX_NAME):
            self._open_index()
        else:
            self._add_shard(inside(self.path, self._only_weights()))

    def _refuse_gguf(self) -> None:
        from nola_edge.gguf.file import is_gguf

        if is_gguf(self.path):
            raise CheckpointError(
                "is a GGUF file, which merge, verify and export gguf-lora take; here a safetensors "
                "file or a Hugging Face folder is needed",
                file=self.path,
            )

    def _only_weights(self) -> str:
        names = sorted(entry.name for entry in os.scandir(self.path) if not entry.is_dir())
        weights = [name for name in names if name.endswith(".safetensors")]
        if len(weights) == 1:
            return weights[0]
        if len(weights) > 1:
            raise CheckpointError(
                f"has {len(weights)} safetensors files but no {INDEX_NAME}; "
                "give the path of one of them",
                file=self.path,
            )
        gguf = [name for name in names if name.endswith(".gguf")]
        if gguf:
            raise CheckpointError(
                f"has no safetensors weights, but {printable(gguf[0])}; to merge into a GGUF file, "
                "give its own path",
                file=self.path,
            )
        others = [name for name in names if name.endswith(_OTHER_WEIGHTS)]
        if others:
            raise CheckpointError(
                f"has no safetensors weights, only {printable(', '.join(others))}; only "
                "safetensors is read, save the model with safe_serialization=True first",
                file=self.path,
            )
        raise CheckpointError(f"has neither {WEIGHTS_NAME} nor {INDEX_NAME}", file=self.path)

    def _open_index(self) -> None:
        self.index_bytes = self._read_index()
        path = self.path / INDEX_NAME
        self.index = loads_object(self.index_bytes, file=path)
        weight_map = self.index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("must map tensor names to files", file=path, field="weight_map")
        for name, shard in weight_map.items():
            if not _is_plain_name(shard):
                raise CheckpointError(
                    f"tensor {printable(name)!r} is said to be in {printable(shard)!r}, which is "
                    "not the plain name of a .safetensors file",
                    file=path,
                    field="weight_map",
                    value=shard,
                )
        for shard in sorted(set(weight_map.values())):
            if not os.path.lexists(self.path / shard):
                raise CheckpointError(
                    f"shard {printable(shard)!r} is missing; download it again",
                    file=path,
                    field="weight_map",
                )
            self._add_shard(inside(self.path, shard))
        self._check_index(weight_map, path)

    def _read_index(self) -> bytes:
        path = inside(self.path, INDEX_NAME)
        if path.stat().st_size > _MAX_INDEX_BYTES or not path.is_file():
            raise CheckpointError("is no index file of a credible size", file=path)
        return path.read_bytes()

    def _check_index(self, weight_map: dict[str, str], path: Path) -> None:
        for name, shard in weight_map.items():
            if name not in self.tensors or self.tensors[name][0].path.name != shard:
                raise CheckpointError(
                    f"tensor {printable(name)!r} is not in {printable(shard)!r}",
                    file=path,
                    field="weight_map",
                )
        for name, (file, _) in self.tensors.items():
            if name not in weight_map:
                raise CheckpointError(
                    f"does not name tensor {printable(name)!r} of {file.path.name!r}",
                    file=path,
                    field="weight_map",
                )

    def _add_shard(self, path: Path) -> None:
        file = SafetensorsFile.open(path)
        self.shards.append(file)
        for name, info in file.tensors.items():
            if name in self.tensors:
                raise CheckpointError(
                    f"is also in {self.tensors[name][0].path.name!r}", file=path, field=name
                )
            self.tensors[name] = (file, info)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)

    def companions(self) -> list[Path]:
        """Return the relative paths of the files to carry over: configuration, tokenizer, ….

        Everything that is not a weight and not hidden, in subfolders too. Links that lead out of
        the folder are refused.
        """
        return self._files()[0]

    def left_behind(self) -> list[Path]:
        """Return the relative paths of weights in other formats, which are not carried over."""
        return self._files()[1]

    def _files(self) -> tuple[list[Path], list[Path]]:
        if not self.is_folder:
            return [], []
        companions: list[Path] = []
        left: list[Path] = []
        own = {Path(shard.path.name) for shard in self.shards}
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                if Path(folder, name).is_symlink():
                    raise CheckpointError(
                        "is a link to a folder, which would be lost; put the folder itself there, "
                        "or remove the link",
                        file=Path(folder, name),
                    )
            for name in sorted(names):
                relative = Path(folder, name).relative_to(self.path)
                if relative in own or name.startswith("."):
                    continue
                if relative == Path(INDEX_NAME) and self.index is not None:
                    continue
                if name.endswith(_OTHER_WEIGHTS) or name.endswith(
                    tuple(f"{suffix}.index.json" for suffix in _OTHER_WEIGHTS)
                ):
                    left.append(relative)
                elif inside(self.path, str(relative)).is_file():
                    companions.append(relative)
        return companions, left

    def check_unchanged(self) -> None:
        """Compare every file with what it was when it was opened.

        Raises
        ------
        ChangedError
        """
        for shard in self.shards:
            shard.check_unchanged()
        if self.index_bytes is not None and self._read_index() != self.index_bytes:
            raise ChangedError(
                "changed while the base was read; run again when nothing writes to it",
                file=self.path / INDEX_NAME,
            )

    def close(self) -> None:
        """Close all files."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and not any(c in name for c in "/\\\0")
        and name.isprintable()
    )
