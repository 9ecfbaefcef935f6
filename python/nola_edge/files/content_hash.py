"""SHA-256 of a result, which whoever has the same result can compute with any tool."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nola_edge import arguments
from nola_edge.errors import ArgumentError, FormatError, MismatchError, printable
from nola_edge.files.input_file import InputFile
from nola_edge.pacing import check_stopped
from nola_edge.workers import Buffers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_AT_ONCE = 4 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class ContentHash(NamedTuple):
    """What :func:`content_hash` found.

    Attributes
    ----------
    sha256 : str
        Of the whole, 64 hexadecimal digits.
    files : dict
        Path within the folder -> SHA-256 of the file, in the order of the paths' bytes. For a file,
        its own name.
    nbytes : int
        Of all files.
    """

    sha256: str
    files: dict[str, str]
    nbytes: int


def content_hash(
    path: str | Path,
    *,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ContentHash:
    """Return the SHA-256 of a file, or of a folder with all that is in it.

    A folder's is that of the lines that coreutils' ``sha256sum`` prints of its files, as ``find .``
    names them, in the order of their paths' bytes. Empty folders, times and permissions do not
    count.

    Parameters
    ----------
    path : path
        Links are followed.
    num_threads : int, optional
        That hash files of a folder. Default: the processors this process may use.
    progress : callable, optional
        Called, from any thread, with the number of bytes hashed since the last call.

    Returns
    -------
    ContentHash

    Raises
    ------
    NolaEdgeError
        If it cannot be read, changes meanwhile, or holds something that is neither file nor folder.
    """
    place = arguments.path("path", path)
    told = progress or (lambda _: None)
    if not place.is_dir():
        sha256, nbytes = _hash_file(place, memoryview(bytearray(_AT_ONCE)), told)
        return ContentHash(sha256, {place.name: sha256}, nbytes)
    names = sorted(_files_below(place), key=os.fsencode)
    if not names:
        raise FormatError("is a folder without files", file=place)
    found: dict[str, tuple[str, int]] = {}
    buffers = Buffers()

    def hash_one(name: str) -> None:
        found[name] = _hash_file(place / name, buffers.get(_AT_ONCE), told)

    with Workers(num_threads) as workers:
        for name in names:
            workers.submit(hash_one, name, nbytes=_AT_ONCE)
    files = {name: found[name][0] for name in names}
    return ContentHash(hash_of_list(files), files, sum(nbytes for _, nbytes in found.values()))


def hash_of_list(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of a folder whose files, by their paths in it, have these."""
    lines = "".join(f"{sha256}  ./{name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all files, relative to the folder."""

    def refuse(error: OSError) -> None:
        raise FormatError(f"cannot be read: {error.strerror}", file=error.filename) from None

    for here, folders, names in os.walk(folder, onerror=refuse):
        linked = [name for name in folders if os.path.islink(os.path.join(here, name))]
        if linked:
            raise FormatError(
                "is a link to a folder; a result has none", file=os.path.join(here, linked[0])
            )
        for name in names:
            path = os.path.relpath(os.path.join(here, name), folder)
            check_listable(path, folder)
            yield path


def check_listable(path: str, folder: Path) -> None:
    """Refuse a path that ``sha256sum`` would write otherwise, and not everybody alike.

    Raises
    ------
    FormatError
    """
    if not path.isprintable() or "\\" in path:
        raise FormatError(
            f"{printable(path)} has a name that lists of hashes cannot hold", file=folder
        )


def hash_file(path: Path, progress: Callable[[int], None]) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    NolaEdgeError
        If it cannot be read, or changes meanwhile.
    """
    return _hash_file(path, memoryview(bytearray(_AT_ONCE)), progress)[0]


def _hash_file(path: Path, buffer: memoryview, told: Callable[[int], None]) -> tuple[str, int]:
    """Return the SHA-256 of a file, and its bytes."""
    file = InputFile(path)
    try:
        digest = hashlib.sha256()
        for start in range(0, file.size, len(buffer)):
            check_stopped()
            part = buffer[: min(len(buffer), file.size - start)]
            file.read_into(part, start)
            digest.update(part)
            told(len(part))
        file.check_unchanged()
        return digest.hexdigest(), file.size
    finally:
        file.close()


def expected_hash(value: str | None) -> str | None:
    """Return a hash that a caller gives, in small letters.

    Raises
    ------
    ArgumentError
        If it is no SHA-256.
    """
    if value is None:
        return None
    text = arguments.text("expect", value).lower()
    if not _HASH.fullmatch(text):
        raise ArgumentError(
            f"{printable(value, 80)} is not a SHA-256 of 64 hexadecimal digits",
            field="expect",
            value=value,
        )
    return text


def check_hash(found: str, expected: str | None, output: Path) -> None:
    """Refuse a result that is not in place yet, if another was expected.

    Parameters
    ----------
    found : str
        Its SHA-256.
    expected : str or None
        From :func:`expected_hash`.
    output : Path
        Where it was to go, for the error.

    Raises
    ------
    MismatchError
    """
    if expected not in (None, found):
        raise MismatchError(
            f"would have the SHA-256 {found}, not {expected} as expected: base, adapters, weights "
            "or options are others than those that hash was made with",
            file=output,
            field="expect",
        )
