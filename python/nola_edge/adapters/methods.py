"""Methods by ``peft_type``: our own, and those that other packages bring as entry points.

A package adds a method by an entry point of the group ``nola_edge.adapters``, whose name is the
``peft_type`` and whose value is called with a folder and its parsed ``adapter_config.json``, and
returns a :class:`~nola_edge.adapters.base.LowRankAdapter`. Nobody is asked about our own methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nola_edge.adapters.base import LowRankAdapter
from nola_edge.errors import AdapterError, NolaEdgeError, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint
    from pathlib import Path

    Reader = Callable[[Path, dict[str, Any]], LowRankAdapter]

GROUP = "nola_edge.adapters"
#: As entry points are written. NOLA is apart: its adapters are files too.
_OWN = {
    "LORA": "nola_edge.adapters.lora:LoraAdapter.from_folder",
    "TINYLORA": "nola_edge.adapters.tinylora:TinyLoraAdapter",
    "VERA": "nola_edge.adapters.vera:VeraAdapter",
}
#: Errors that are not a package's mistake.
_OURS = (NolaEdgeError, MemoryError)


def reader_of(method: object, file: Path) -> Reader | None:
    """Return what reads a folder of a method; None where no package brings one.

    Parameters
    ----------
    method : object
        The ``peft_type`` of a configuration.
    file : Path
        The configuration, named in errors.

    Raises
    ------
    AdapterError
        If a package that brings the method cannot be imported, or several bring it.
    """
    if not isinstance(method, str):
        return None
    if method in _OWN:
        from pkgutil import resolve_name

        own: Reader = resolve_name(_OWN[method])
        return own
    found = [point for point in _entry_points() if point.name == method]
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise _refusal(method, file, f"is read by more than one package, {packages}; remove one")
    return _Plugin(found[0], file) if found else None


def known_methods() -> list[str]:
    """Return every ``peft_type`` that is read here, those of other packages last."""
    own = ["NOLA", *_OWN]
    return own + sorted({point.name for point in _entry_points()} - set(own))


class _Plugin:
    """Reads a folder by what another package brings; its mistakes become one line that names it."""

    def __init__(self, point: EntryPoint, file: Path) -> None:
        self._point = point
        self._file = file
        self._read = self._guarded(point.load)

    def __call__(self, folder: Path, config: dict[str, Any]) -> LowRankAdapter:
        adapter = self._guarded(lambda: self._read(folder, config), (*_OURS, OSError))
        if not isinstance(adapter, LowRankAdapter):
            raise self._broken(f"returned {type(adapter).__name__}, not a LowRankAdapter")
        return adapter

    def _guarded(self, work: Callable[[], Any], passed: tuple[type[Exception], ...] = _OURS) -> Any:
        try:
            return work()
        except passed:
            raise
        except Exception as error:
            raise self._broken(f"failed: {type(error).__name__}: {printable(error)}") from error

    def _broken(self, what: str) -> AdapterError:
        package, value = _package(self._point), printable(self._point.value)
        return _refusal(
            self._point.name,
            self._file,
            f"is read by the package {package}, whose {value} {what}; update {package}, or tell "
            "its authors",
        )


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return list(entry_points(group=GROUP))


def _package(point: EntryPoint) -> str:
    dist = point.dist
    return printable(point.module if dist is None else f"{dist.name} {dist.version}")


def _refusal(method: str, file: Path, message: str) -> AdapterError:
    text = f"is {printable(repr(method))}, which {message}"
    return AdapterError(text, file=file, field="peft_type", value=method)
