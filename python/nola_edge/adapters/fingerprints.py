"""Short digests that catch a foreign generator, renamed or reshaped modules, the wrong base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge import _core, ops

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nola_edge.adapters.tensor_parts import TensorPart
    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo

_WINDOWS = 64
_WINDOW_BYTES = 64
_WHOLE_BYTES = _WINDOWS * _WINDOW_BYTES


def basis_fingerprint(seed: int) -> str:
    """Return eight words of the generator for a seed, as 64 hexadecimal digits.

    The blocks at counters (0, 0, stream) and (0, 1, stream), with the stream of factor A of a
    module named ``nola_edge.fingerprint``.
    """
    stream = ops.stream_id("nola_edge.fingerprint", "A")
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words: list[int] = []
    for draw in (0, 1):
        words += ops.philox((0, draw, stream & 0xFFFFFFFF, stream >> 32), key)
    return "".join(f"{word:08x}" for word in words)


def modules_fingerprint(modules: Iterable[str]) -> str:
    """Return FNV-1a-64 over the sorted module names joined by newlines, as 16 digits."""
    return _fnv1a("\n".join(sorted(modules)))


def shapes_fingerprint(shapes: Mapping[str, tuple[int, int]]) -> str:
    """Return FNV-1a-64 over the sorted lines ``"<module> <out>x<in>"``, as 16 digits.

    An element's place in a matrix says which random number it gets, so an adapter is for one
    shape, though coefficients would fit any.

    Parameters
    ----------
    shapes : mapping
        Module name -> (out_features, in_features).
    """
    lines = (f"{module} {out}x{into}" for module, (out, into) in shapes.items())
    return _fnv1a("\n".join(sorted(lines)))


def _fnv1a(text: str) -> str:
    return f"{_core.fnv1a(text):016x}"


def base_fingerprint(targets: Iterable[tuple[str, Source, TensorInfo]]) -> str:
    r"""Return BLAKE2b-128 over the base's target tensors, as 32 digits.

    For every module in sorted order: the line ``"<module> <dtype> <shape joined by x>\\n"`` in
    UTF-8, then the tensor's bytes if there are at most 4096, else 64 windows of 64 bytes, window i
    beginning at floor(i * (nbytes - 64) / 63). A sample, quick to take of a large model: it tells
    bases apart, it does not prove them equal.

    Parameters
    ----------
    targets : iterable of (module, file, entry)
        Of a GGUF file, whose tensors have names of their own, the name in place of the module.
    """
    from hashlib import blake2b

    digest = blake2b(digest_size=16)
    for module, file, info in sorted(targets, key=lambda target: target[0]):
        shape = "x".join(map(str, info.shape))
        digest.update(f"{module} {info.dtype} {shape}\n".encode())
        for begin, count in _windows(info.nbytes):
            window = bytearray(count)
            file.read_into(memoryview(window), info.start + begin)
            digest.update(window)
    return digest.hexdigest()


def _windows(nbytes: int) -> list[tuple[int, int]]:
    if nbytes <= _WHOLE_BYTES:
        return [(0, nbytes)]
    last = nbytes - _WINDOW_BYTES
    return [(i * last // (_WINDOWS - 1), _WINDOW_BYTES) for i in range(_WINDOWS)]


def checkpoint_fingerprint(
    base: str | Path, modules: Iterable[str], parts: Mapping[str, TensorPart]
) -> str:
    """Open a checkpoint and return the :func:`base_fingerprint` of some of its modules.

    Parameters
    ----------
    base : path
    modules : iterable of str
    parts : mapping
        Module -> stored tensor, where its name does not say it.

    Raises
    ------
    NolaEdgeError
        If the checkpoint cannot be used, or lacks a module.
    """
    from nola_edge.adapters.module_names import match_parts
    from nola_edge.adapters.stored_names import StoredNames
    from nola_edge.files.checkpoint import Checkpoint

    with Checkpoint.open(base) as checkpoint:
        matches = match_parts(
            list(modules),
            checkpoint.tensors,
            StoredNames(parts),
            adapter=Path("<adapter>"),
            base=checkpoint.path,
        )
        return base_fingerprint(
            (module, *checkpoint.tensors[part.tensor]) for module, part in matches.parts.items()
        )
