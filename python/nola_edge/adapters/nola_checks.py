"""What holds for every NOLA adapter, loaded or made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.adapters.fingerprints import basis_fingerprint, modules_fingerprint
from nola_edge.adapters.quantize import fits
from nola_edge.errors import AdapterError, NotFiniteError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nola_edge.adapters.nola_config import AdapterConfig
    from nola_edge.adapters.nola_files import Coefficients


def check_contents(
    config: AdapterConfig, modules: Mapping[str, Coefficients], path: Path | None
) -> None:
    """Refuse coefficients that are not there, not as many as announced, or not representable.

    Raises
    ------
    AdapterError, NotFiniteError
    """
    if not modules:
        raise AdapterError("has no coefficients (no *.nola_alpha tensor)", file=path)
    for module, coefficients in modules.items():
        if not module or not module.isprintable():
            raise AdapterError("is not a module name", file=path, field=module)
        bits = config.coefficient_bits
        counts = (("alpha", config.num_basis_a), ("beta", config.num_basis_b))
        for name, count in counts:
            values = getattr(coefficients, name)
            if values.shape != (count,):
                raise AdapterError(
                    f"{name} has shape {list(values.shape)}, the configuration says [{count}]",
                    file=path,
                    field=module,
                )
            if not np.isfinite(values).all():
                raise NotFiniteError(
                    f"{name} holds an infinite or NaN coefficient", file=path, field=module
                )
            exact_first = config.exact_first_alpha and name == "alpha"
            if bits is not None and not fits(values, bits, exact_first=exact_first):
                raise AdapterError(
                    f"{name} holds coefficients that do not fit in {bits} bits; quantize the "
                    "adapter",
                    file=path,
                    field=module,
                )


def still_true(config: AdapterConfig, modules: Mapping[str, Coefficients]) -> AdapterConfig:
    """Drop what is recorded of another set of modules: it says nothing of this one."""
    if config.modules_fingerprint in (None, modules_fingerprint(modules)):
        return config
    return dataclasses.replace(
        config,
        modules_fingerprint=None,
        shapes_fingerprint=None,
        base_fingerprint=None,
        tensors={},
    )


def check_fingerprints(
    config: AdapterConfig, modules: Mapping[str, Coefficients], path: Path
) -> None:
    """Refuse fingerprints of another generator, or of other modules than those that are there.

    Raises
    ------
    AdapterError
    """
    found = basis_fingerprint(config.seed)
    if config.basis_fingerprint not in (None, found):
        raise AdapterError(
            f"is {printable(config.basis_fingerprint)}, but the seed gives {found}: the adapter "
            "was made with another generator",
            file=path,
            field="basis_fingerprint",
        )
    found = modules_fingerprint(modules)
    if config.modules_fingerprint not in (None, found):
        raise AdapterError(
            f"is {printable(config.modules_fingerprint)}, but the tensors' names give {found}: "
            "modules were renamed, added or lost since it was made",
            file=path,
            field="modules_fingerprint",
        )
