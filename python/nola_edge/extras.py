"""What parts of the package need beyond an ordinary installation of it."""

from __future__ import annotations


def explained(error: ModuleNotFoundError, part: str, extra: str) -> ImportError:
    """Return the error of an import, saying what to install.

    Parameters
    ----------
    error : ModuleNotFoundError
    part : str
        The module of this package that was imported.
    extra : str
        The extra, in pyproject.toml, that brings what the part needs.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "nola_edge"):
        return error
    return ImportError(f"{part} needs {package}: pip install 'nola-edge[{extra}]'", name=package)
