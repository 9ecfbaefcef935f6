"""A base checkpoint: one safetensors file, or a Hugging Face folder, sharded or not."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge.errors import ChangedError, CheckpointError, FormatError, printable
from nola_edge.files.folder import (
    MAX_INDEX_BYTES,
    SAFETENSORS,
    Companions,
    find_companions,
    find_weights,
    is_index,
)
from nola_edge.files.input_file import identity, is_here, opening
from nola_edge.files.json_cursor import Cursor
from nola_edge.files.paths import inside
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.signature import is_gguf
from nola_edge.files.strict_json import MAX_CONFIG_BYTES

if TYPE_CHECKING:
    from nola_edge.files.tensor_info import TensorInfo

_MAX_NAMES = 1 << 18
_MAX_SHARD_NAME = 4096
_MAX_FIELDS = 64
_SAVE_AGAIN = (
    "; save the model again with save_pretrained, which writes shards and index that agree"
)


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
    index_name : str or None
        The name of a sharded folder's index.
    index : dict or None
        The parsed index.
    index_bytes : bytes or None
        The index as it stands in its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.shards: list[SafetensorsFile] = []
        self.tensors: dict[str, tuple[SafetensorsFile, TensorInfo]] = {}
        self.index_name: str | None = None
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
            If a file is not what it claims, or cannot be read.
        """
        with opening(path):
            return cls(Path(path))

    def _open(self) -> None:
        if not is_here(self.path):
            raise CheckpointError("does not exist", file=self.path)
        if not self.is_folder:
            self._refuse_gguf()
            self._add_shard(self.path)
            return
        name = find_weights(self.path)
        if is_index(name):
            self.index_name = name
            self._open_index(name)
        else:
            self._add_shard(inside(self.path, name))

    def _refuse_gguf(self) -> None:
        if is_gguf(self.path):
            raise CheckpointError(
                "is a GGUF file, which merge, verify and export gguf-lora take; here a safetensors "
                "file or a Hugging Face folder is needed",
                file=self.path,
            )

    def _open_index(self, name: str) -> None:
        path = self.path / name
        self.index_bytes = self._read_index(name)
        self.index = _parse_index(self.index_bytes, path)
        weight_map = self.index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("must map tensor names to files", file=path, field="weight_map")
        for tensor, shard in weight_map.items():
            if not _is_plain_name(shard):
                raise CheckpointError(
                    f"tensor {printable(tensor)!r} is said to be in {printable(shard)!r}, which is "
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
            self._check_named(self.shards[-1], weight_map, path)
        self._check_index(weight_map, path)

    def _read_index(self, name: str) -> bytes:
        path = inside(self.path, name)
        with opening(path):
            if path.stat().st_size > MAX_INDEX_BYTES or not path.is_file():
                raise CheckpointError(
                    f"is not an index file of at most {MAX_INDEX_BYTES} bytes", file=path
                )
            return path.read_bytes()

    def _check_index(self, weight_map: dict[str, str], path: Path) -> None:
        for name, shard in weight_map.items():
            if name not in self.tensors or self.tensors[name][0].path.name != shard:
                raise CheckpointError(
                    f"tensor {printable(name)!r} is not in {printable(shard)!r}{_SAVE_AGAIN}",
                    file=path,
                    field="weight_map",
                )

    def _check_named(self, shard: SafetensorsFile, weight_map: dict[str, str], path: Path) -> None:
        for name in shard.tensors:
            if name not in weight_map:
                raise CheckpointError(
                    f"does not name tensor {printable(name)!r} of {shard.path.name!r}{_SAVE_AGAIN}",
                    file=path,
                    field="weight_map",
                )

    def _add_shard(self, path: Path) -> None:
        file = SafetensorsFile.open(path)
        self.shards.append(file)
        for name, info in file.tensors.items():
            if name in self.tensors:
                raise CheckpointError(
                    f"is also in {self.tensors[name][0].path.name!r}{_SAVE_AGAIN}",
                    file=path,
                    field=name,
                )
            self.tensors[name] = (file, info)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)

    def companions(self) -> list[Path]:
        """Return the relative paths of the files to carry over: configuration, tokenizer, ….

        Everything that belongs to the model, is not merged and not hidden, in subfolders too; see
        :func:`~nola_edge.files.folder.find_companions`. Links that lead out of the folder are
        refused.
        """
        return list(self._companions.carried)

    def companion_weights(self) -> list[Path]:
        """Return which of these are weights, those of another part of the model."""
        return list(self._companions.weights)

    def left_behind(self) -> list[Path]:
        """Return the relative paths of what is not carried over, since it is not the model's."""
        return list(self._companions.left)

    @cached_property
    def _companions(self) -> Companions:
        if not self.is_folder:
            return Companions()
        own = {shard.path.name for shard in self.shards} | {self.index_name or ""}
        shapes = {name: info.shape for name, (_, info) in self.tensors.items()}
        return find_companions(self.path, own, shapes)

    def check_unchanged(self) -> None:
        """Compare every file with what it was when it was opened, companions when they were found.

        Raises
        ------
        ChangedError
        """
        for shard in self.shards:
            shard.check_unchanged()
        name = self.index_name
        if name is not None and self._read_index(name) != self.index_bytes:
            raise _changed(self.path / name)
        # Where nobody asked for them, nothing was copied.
        found = self.__dict__.get("_companions", Companions())
        for path, before in zip(found.carried, found.identities, strict=True):
            try:
                now = identity(os.stat(self.path / path))
            except OSError:
                raise _changed(self.path / path) from None
            if now != before:
                raise _changed(self.path / path)

    def close(self) -> None:
        """Close all files."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _changed(path: Path) -> ChangedError:
    return ChangedError(
        "changed while the base was read; run again when nothing writes to it", file=path
    )


def _parse_index(data: bytes, path: Path) -> dict[str, Any]:
    """Parse an index; tensors that are in one shard share its name in memory."""
    cursor = Cursor(data, file=path)
    if cursor.peek() != "{":
        raise FormatError("is not a JSON object", file=path)
    index: dict[str, Any] = {}
    shards: dict[str, str] = {}
    for key in cursor.keys(_MAX_FIELDS):
        if key != "weight_map" or cursor.peek() != "{":
            index[key] = cursor.value(MAX_CONFIG_BYTES)
            continue
        names: dict[str, Any] = {}
        for name in cursor.keys(_MAX_NAMES):
            value = cursor.value(_MAX_SHARD_NAME)
            names[name] = shards.setdefault(value, value) if isinstance(value, str) else value
        index[key] = names
    cursor.end()
    return index


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(SAFETENSORS)
        and not name.startswith(".")
        and not any(c in name for c in "/\\\0")
        and name.isprintable()
    )
