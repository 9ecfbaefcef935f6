"""Names of modules, without those of the wrappers around them.

A compiled block, one under activation checkpointing or a model inside DDP keeps the module that it
wraps under a name of its own. Streams follow from names, and so do the tensors of a file: neither
may depend on how a model was run.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: Where torch.compile, activation checkpointing and FSDP keep what they wrap.
_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def plain_name(name: str) -> str:
    """Drop the wrappers that are known by their name alone."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


class PlainNames:
    """Names in a model, and in a state dictionary of a wrapper around it, without wrappers.

    ``module`` is where DDP keeps a model, and a name that a model may use itself: it is dropped
    only where it leads into such a wrapper.

    Parameters
    ----------
    model : nn.Module
        The model itself, not the wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parallel = {
            plain_name(f"{name}.module".lstrip("."))
            for name, module in model.named_modules()
            if isinstance(module, DataParallel | DistributedDataParallel)
        }
        self._has_module = "module" in dict(model.named_children())

    def __call__(self, name: str) -> str:
        """Return a module's or a tensor's name without wrappers."""
        name = plain_name(name)
        while not self._has_module and name.startswith("module."):
            name = name.removeprefix("module.")
        for wrapped in self._parallel:
            if f"{name}.".startswith(f"{wrapped}."):
                return (wrapped.removesuffix("module") + name[len(wrapped) + 1 :]).strip(".")
        return name
