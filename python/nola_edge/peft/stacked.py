"""Matrices that several experts stack in one parameter, which "all-linear" does not reach."""

from __future__ import annotations

import warnings

from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)


def warn_of_stacked(model: nn.Module) -> None:
    """Warn of the parameters of a model that hold several matrices, and so are not adapted.

    Parameters
    ----------
    model : nn.Module
        Into which an adapter for "all-linear" was put.
    """
    convolutions = [module for module in model.modules() if isinstance(module, _CONVOLUTIONS)]
    # A parametrised one, as weight normalisation makes it, has its matrices in modules within.
    passed_over = {id(part) for convolution in convolutions for part in convolution.modules()}
    found = {
        f"{name}.{own}".lstrip("."): tuple(parameter.shape)
        for name, module in model.named_modules()
        if id(module) not in passed_over
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    }
    if not found:
        return
    first, shape = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    warnings.warn(
        f"'all-linear' leaves out {first!r} ({' x '.join(map(str, shape))}){more}: parameters that "
        "hold several matrices, as those of a mixture of experts do, are not linear layers. They "
        "are not adapted.",
        stacklevel=4,
    )
