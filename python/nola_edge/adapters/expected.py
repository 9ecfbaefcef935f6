"""What merging an adapter into a base must give, as its publisher recorded it.

A packed adapter has an entry for each base that its publisher named (docs/adapter-format.md,
*Expected results*). Whoever merges it compares the result before it is in place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from nola_edge.arguments import wrong_type
from nola_edge.errors import AdapterError, ArgumentError, printable
from nola_edge.files.strict_json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from nola_edge.files.json_cursor import Cursor

#: Kinds of results: what ``merge`` writes for a base of the kind.
FOLDER = "folder"
ONE_FILE = "safetensors"
GGUF = "gguf"
_KINDS = (FOLDER, ONE_FILE, GGUF)
#: The key of a packed adapter's JSON.
FIELD = "expected"
_MAX_RESULTS = 64
#: Ten times as many as the largest models have.
_MAX_FILES = 4096
_MAX_NAME = 200
_MAX_PATH = 1024
_MAX_ENTRY = 1_000_000
_FINGERPRINT = "[0-9a-f]{32}"
_SHA256 = "[0-9a-f]{64}"


class ExpectedResult(NamedTuple):
    """What an adapter, alone and with weight 1, must give with a base.

    Attributes
    ----------
    name : str
        What the publisher calls the base.
    kind : {"folder", "safetensors", "gguf"}
        What the base and the result are.
    base_fingerprint : str
        Of the base's tensors that the adapter changes, 32 hexadecimal digits.
    sha256 : str
        Of the whole result, as ``nola-edge hash`` prints it.
    files : mapping
        Path in the result -> SHA-256, for every file of a folder; empty for other kinds.
    """

    name: str
    kind: str
    base_fingerprint: str
    sha256: str
    files: Mapping[str, str] = {}

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a file."""
        entry = self._asdict()
        entry["files"] = dict(self.files)
        if self.kind != FOLDER:
            del entry["files"]
        return entry

    @classmethod
    def from_json(cls, entry: Any, *, field: str, file: object) -> ExpectedResult:
        """Check the entry of a file.

        Parameters
        ----------
        entry : object
        field : str
            Its name, for errors.
        file : path
            Named in errors.

        Raises
        ------
        AdapterError
        """
        return _Reader(entry, field, file).result()


class _Reader:
    """Checks one entry; every refusal names the field and what it is."""

    def __init__(self, entry: Any, field: str, file: object) -> None:
        self._entry = entry
        self._field = field
        self._file = file

    def result(self) -> ExpectedResult:
        if not isinstance(self._entry, dict):
            self._refuse("", self._entry, "an object")
        kind = self._entry.get("kind")
        if kind not in _KINDS:
            self._refuse("kind", kind, f"one of {', '.join(_KINDS)}")
        self._check_fields({*ExpectedResult._fields} - ({"files"} if kind != FOLDER else set()))
        name = self._entry["name"]
        if not _is_name(name):
            self._refuse("name", name, f"printable text of 1 to {_MAX_NAME} characters")
        fingerprint = self._digits("base_fingerprint", _FINGERPRINT, 32)
        sha256 = self._digits("sha256", _SHA256, 64)
        files = self._files(sha256) if kind == FOLDER else {}
        return ExpectedResult(name, kind, fingerprint, sha256, files)

    def _check_fields(self, wanted: set[str]) -> None:
        for field in sorted(wanted ^ self._entry.keys()):
            problem = "is missing" if field in wanted else "is not understood"
            raise AdapterError(problem, file=self._file, field=f"{self._field}.{field}")

    def _digits(self, field: str, pattern: str, count: int) -> str:
        value = self._entry[field]
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            self._refuse(field, value, f"{count} hexadecimal digits in small letters")
        return str(value)

    def _files(self, sha256: str) -> dict[str, str]:
        from nola_edge.files.content_hash import hash_of_list

        files = self._entry["files"]
        if not isinstance(files, dict) or not 0 < len(files) <= _MAX_FILES:
            self._refuse("files", files, f"an object of 1 to {_MAX_FILES} paths")
        for path, found in files.items():
            if not _is_path(path):
                self._refuse("files", path, "the path of a file in a folder")
            if not isinstance(found, str) or not re.fullmatch(_SHA256, found):
                self._refuse(f"files.{path}", found, "64 hexadecimal digits in small letters")
        whole = hash_of_list(files)
        if whole != sha256:
            self._refuse("sha256", sha256, f"{whole}, which its files have")
        return {path: files[path] for path in sorted(files)}

    def _refuse(self, field: str, value: object, wanted: str) -> NoReturn:
        raise AdapterError(
            f"is {printable(repr(value), 80)}, must be {wanted}",
            file=self._file,
            field=f"{self._field}.{field}" if field else self._field,
            value=value,
        )


def check_name(name: str) -> str:
    """Return what a publisher calls a base, if it can be that.

    Raises
    ------
    ArgumentError
    """
    if not _is_name(name):
        raise ArgumentError(
            f"{printable(repr(name))} is not printable text of 1 to {_MAX_NAME} characters; give "
            "the base another",
            field="name",
            value=name,
        )
    return name


def _is_name(value: object) -> bool:
    """Tell whether a value can be what a publisher calls a base."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()


def _is_path(path: str) -> bool:
    """Tell whether a path is that of a file within a folder, as lists of hashes have it."""
    if not path.isprintable() or "\\" in path or len(path) > _MAX_PATH:
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))


def read_expected(cursor: Cursor, file: Path) -> tuple[ExpectedResult, ...]:
    """Read the entries of a packed adapter.

    Raises
    ------
    NolaEdgeError
        If one is not as it must be, or there are more than there may be.
    """
    if cursor.peek() != "[":
        found = printable(repr(cursor.value(_MAX_ENTRY)), 80)
        raise AdapterError(f"is {found}, must be a list", file=file, field=FIELD)
    return checked(cursor.items(_MAX_RESULTS, _MAX_ENTRY), file)


def checked(entries: Iterable[Any], file: object) -> tuple[ExpectedResult, ...]:
    """Return entries as they are in a file as results; refuse two of one name.

    Raises
    ------
    AdapterError
    """
    results: dict[str, ExpectedResult] = {}
    for number, entry in enumerate(entries):
        result = ExpectedResult.from_json(entry, field=f"{FIELD}[{number}]", file=file)
        if results.setdefault(result.name, result) is not result:
            raise AdapterError(
                f"is {printable(result.name)!r}, as that of an entry before it; give each base a "
                "name of its own",
                file=file,
                field=f"{FIELD}[{number}].name",
                value=result.name,
            )
    return tuple(results.values())


def to_json(results: Iterable[ExpectedResult], file: object) -> list[dict[str, Any]]:
    """Return what a packed adapter has for results, which is read again.

    Raises
    ------
    AdapterError
        If it would not be.
    """
    entries = [result.to_json() for result in results]
    if len(entries) > _MAX_RESULTS:
        raise AdapterError(
            f"would be of {len(entries)} bases, more than the limit of {_MAX_RESULTS}",
            file=file,
            field=FIELD,
        )
    for number, entry in enumerate(entries):
        if len(dumps(entry)) > _MAX_ENTRY:
            raise AdapterError(
                f"would have more than {_MAX_ENTRY} characters, for {len(entry['files'])} files; "
                "expect nothing of this base",
                file=file,
                field=f"{FIELD}[{number}]",
            )
    checked(entries, file)
    return entries


def together(
    earlier: Iterable[ExpectedResult], new: Iterable[ExpectedResult]
) -> tuple[ExpectedResult, ...]:
    """Return earlier results and new ones, these in the place of earlier ones of the same name.

    Raises
    ------
    ArgumentTypeError
        If a new one is something else, such as a path.
    """
    new = tuple(new)
    for result in new:
        if not isinstance(result, ExpectedResult):
            raise wrong_type("expect", result, "an ExpectedResult, as expect_checkpoint returns")
    names = {result.name for result in new}
    return (*(result for result in earlier if result.name not in names), *new)
