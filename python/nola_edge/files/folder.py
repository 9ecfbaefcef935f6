"""The files of a model's folder: its weights, what goes along with them, and what does not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nola_edge.errors import CheckpointError, printable
from nola_edge.files.input_file import Identity, identity
from nola_edge.files.paths import cache_hint, inside, read_inside, subfolders_hint, subfolders_with
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.strict_json import loads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

SAFETENSORS = ".safetensors"
INDEX_NAME = "model.safetensors.index.json"
#: What the weights are called, transformers' way and diffusers'; the first that is there is taken.
_WEIGHTS_NAMES = (
    "model.safetensors",
    INDEX_NAME,
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
#: Weights of any format. At the top they are another copy of those that are merged.
_WEIGHTS = (
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data",
    SAFETENSORS, ".tflite", ".ot", ".npz", ".pkl",
)  # fmt: skip
_INDEX = re.compile(
    rf"(?:{'|'.join(map(re.escape, _WEIGHTS))})\.index(?:\.[\w-]+)?\.json", re.ASCII
)
_SHARD = r"(.+)-[0-9]{5}-of-[0-9]{5}\.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: At the top these tell of an adapter or a training run. Loaders take a folder with the first for
#: an adapter.
_NOT_THE_MODELS = (_ADAPTER_CONFIG, "trainer_state.json")
#: What a Trainer goes on from.
_TRAINER_CHECKPOINT = r"checkpoint-[0-9]+"
#: Where publishers put the same weights under other names.
_ORIGINAL = "original"
_MODULES_NAME = "modules.json"
#: Far more than any model's index has.
MAX_INDEX_BYTES = 16 << 20


def is_index(name: str) -> bool:
    """Tell whether a file's name is that of an index of safetensors files, variants included."""
    return SAFETENSORS in name and _is_index(name)


def is_own_weights(name: str) -> bool:
    """Tell whether a file of a merged folder, by its path, is of its weights or their index."""
    return "/" not in name and (is_index(name) or name.endswith(SAFETENSORS))


def _is_index(name: str) -> bool:
    found = _INDEX.search(name)
    return found is not None and found.end() == len(name)


def _is_weights(name: str) -> bool:
    return name.endswith(_WEIGHTS) or _is_index(name)


def weights_among(names: Iterable[str]) -> str | None:
    """Return which of a folder's files are its weights, or their index; None if that is unclear."""
    top = [name for name in names if "/" not in name]
    for name in _WEIGHTS_NAMES:
        if name in top:
            return name
    for found in _candidates(top):
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _candidates(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what may be the index of a folder's weights, and what may be these themselves."""
    indices = [name for name in names if is_index(name)]
    weights = [name for name in names if name.endswith(SAFETENSORS) and name != _ADAPTER_WEIGHTS]
    return indices, weights


def find_weights(folder: Path) -> str:
    """Return the name of a folder's weights: a safetensors file, or the index of several.

    Raises
    ------
    CheckpointError
        If there are none, or it is not clear which.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    name = weights_among(names)
    if name is not None:
        return name
    indices, weights = _candidates(names)
    for found, what in ((indices, "indices of safetensors files"), (weights, "safetensors files")):
        if found:
            raise CheckpointError(f"has {len(found)} {what}{_which(found)}", file=folder)
    cached = cache_hint(folder)
    if cached:
        raise CheckpointError(f"is {cached}", file=folder)
    raise CheckpointError(f"has {_nothing_to_merge_into(folder, names)}", file=folder)


def _which(names: Sequence[str]) -> str:
    """Say what to do about several files, none of which has a name that decides."""
    shards = {found[1] for name in names if (found := re.fullmatch(_SHARD, name))}
    if len(shards) == 1:
        return f" but no {printable(shards.pop())}{SAFETENSORS}.index.json; download that too"
    if is_index(names[0]):
        return f", {printable(', '.join(names))}; keep only the one you want"
    return f" but no {INDEX_NAME}; give the path of one of them"


def _nothing_to_merge_into(folder: Path, names: Sequence[str]) -> str:
    """Say what there is instead of weights, and what to do."""
    if _ADAPTER_CONFIG in names:
        return "an adapter but no model; give the model that the adapter was trained on"
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return (
            f"no safetensors weights, but {printable(gguf[0])}; to merge into a GGUF file, give "
            "its own path"
        )
    others = [name for name in names if name.endswith(_WEIGHTS)]
    if others:
        return (
            f"no safetensors weights, only {printable(', '.join(others))}; only safetensors is "
            "read, save the model with safe_serialization=True first"
        )
    parts = subfolders_with(folder, lambda name: name.endswith(SAFETENSORS))
    if parts:
        trained = all(re.fullmatch(_TRAINER_CHECKPOINT, part) for part in parts)
        rest = "" if trained else ", and put the output in its place in a copy of the whole folder"
        return f"no weights itself{subfolders_hint(folder, parts)}{rest}"
    return f"neither {_WEIGHTS_NAMES[0]} nor {INDEX_NAME}"


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the relative path of every file below a folder, hidden ones apart.

    Raises
    ------
    CheckpointError
        If a folder in it is a link, or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise CheckpointError(
            f"cannot be read: {error.strerror}", file=error.filename or folder
        ) from None

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(place, name).is_symlink():
                raise CheckpointError(
                    "is a link to a folder, which would be lost; put the folder itself there, "
                    "or remove the link",
                    file=Path(place, name),
                )
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder)


class Companions(NamedTuple):
    """What stands beside the weights, as paths relative to the folder.

    Attributes
    ----------
    carried : tuple of Path
        What belongs to the model: configuration, tokenizer, weights of its other parts, ….
    weights : tuple of Path
        Of these, the weights.
    identities : tuple
        Of what is carried, to notice changes.
    left : tuple of Path
        What does not: other copies of the weights, adapters, and what a training run left.
    """

    carried: tuple[Path, ...] = ()
    weights: tuple[Path, ...] = ()
    identities: tuple[Identity, ...] = ()
    left: tuple[Path, ...] = ()


def find_companions(
    folder: Path, own: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> Companions:
    """Tell what stands beside a folder's weights.

    At the top, weights are other copies. In a subfolder they are carried over if sentence-
    transformers' ``modules.json`` names it, in whatever format; else if they are safetensors and
    not the model's own tensors once more.

    Parameters
    ----------
    folder : Path
    own : collection of str
        Names of the weights and their index, which are left out.
    shapes : mapping
        Tensor name -> shape, of the weights.

    Raises
    ------
    NolaEdgeError
        If a link leads out of the folder, or a subfolder's safetensors file is broken.
    """
    files = [path for path in visible_files(folder) if str(path) not in own]
    modules = _module_folders(folder) if Path(_MODULES_NAME) in files else set()
    others = {path.parent for path in files if _may_be_of_another_part(path)}
    parts = {place for place in others if not _is_copy(folder, place, files, shapes)}

    def belongs(path: Path) -> bool:
        if not _is_weights(path.name):
            return str(path) not in _NOT_THE_MODELS
        return _is_named(path, modules) or (SAFETENSORS in path.name and path.parent in parts)

    carried: list[Path] = []
    left: dict[Path, None] = {}  # in order, each once
    for path in files:
        if _is_of_trainer(path):
            left[Path(path.parts[0])] = None
        elif belongs(path) and inside(folder, str(path)).is_file():
            carried.append(path)
        else:
            left[path] = None
    weights = tuple(path for path in carried if _is_weights(path.name))
    identities = tuple(identity(os.stat(folder / path)) for path in carried)
    return Companions(tuple(carried), weights, identities, tuple(left))


def needed_files(names: Iterable[str], weights: str | None, folder: Path) -> list[str]:
    """Return which files of a model's folder a merge may want to read, by their names alone.

    Parameters
    ----------
    names : iterable of str
        Of all files, relative to the folder.
    weights : str or None
        What :func:`weights_among` found.
    folder : Path
        Holds the index, if that is what was found, and ``modules.json``, if there is one.
    """
    own = {weights}
    if weights is not None and is_index(weights):
        index = loads(read_inside(folder, weights, MAX_INDEX_BYTES), file=folder / weights)
        named = index.get("weight_map") if isinstance(index, dict) else None
        own |= {name for name in named.values() if isinstance(name, str)} if named else set()
    modules = _module_folders(folder) if (folder / _MODULES_NAME).exists() else set()

    def is_needed(path: Path) -> bool:
        if any(part.startswith(".") for part in path.parts) or _is_of_trainer(path):
            return False
        if not _is_weights(path.name):
            return str(path) not in _NOT_THE_MODELS
        return _is_named(path, modules) or _may_be_of_another_part(path)

    return [name for name in names if name in own or is_needed(Path(name))]


def _is_named(path: Path, modules: Collection[Path]) -> bool:
    """Tell whether ``modules.json`` names a folder that a file lies in."""
    return any(place in modules for place in (path.parent, *path.parent.parents))


def _is_of_trainer(path: Path) -> bool:
    """Tell whether a file lies in a checkpoint of a Trainer's run, or is of its curves."""
    if len(path.parts) == 1:
        return False
    curve = path.parts[0] == "runs" and path.name.startswith("events.out.tfevents.")
    return curve or re.fullmatch(_TRAINER_CHECKPOINT, path.parts[0]) is not None


def _may_be_of_another_part(path: Path) -> bool:
    if not path.name.endswith(SAFETENSORS) or path.parent == Path():
        return False
    return path.parts[0] != _ORIGINAL and not _is_of_trainer(path)


def _module_folders(folder: Path) -> set[Path]:
    """Return the folders, apart from the top, that ``modules.json`` names."""
    modules = loads(read_inside(folder, _MODULES_NAME), file=folder / _MODULES_NAME)
    if not isinstance(modules, list):
        return set()
    named: list[Any] = [module.get("path") for module in modules if isinstance(module, dict)]
    return {Path(path) for path in named if isinstance(path, str)} - {Path()}


def _is_copy(
    folder: Path, place: Path, files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Tell whether most tensors below a subfolder have name and shape of the model's own."""
    total = same = 0
    for path in files:
        if path.parent == place and path.name.endswith(SAFETENSORS):
            with SafetensorsFile.open(inside(folder, str(path))) as file:
                total += len(file.tensors)
                same += sum(shapes.get(n) == info.shape for n, info in file.tensors.items())
    return 2 * same > total
