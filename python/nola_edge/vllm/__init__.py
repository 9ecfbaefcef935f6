"""Serving NOLA adapters with vLLM, which reads LoRA: each is expanded when it is first asked for.

vLLM asks its *resolvers* for an adapter that it does not know by name. The one here looks for a
NOLA adapter of that name in a folder, expands it to an exact LoRA in a cache on the local disk, and
hands vLLM the folder. It is an entry point of the group ``vllm.general_plugins`` and does nothing
until environment variables configure it (``settings.py``).

``names.py`` finds an adapter by a name from a stranger, ``entries.py`` says what belongs in the
cache, ``cache.py`` keeps it; none of these knows vLLM. ``resolver.py`` is what vLLM calls.
"""

from __future__ import annotations

import os

from nola_edge.errors import NolaEdgeError
from nola_edge.vllm.log import LOGGER
from nola_edge.vllm.settings import ADAPTERS, Settings

__all__ = ["register"]

#: The resolver's name in vLLM's registry.
RESOLVER = "NOLA Edge Resolver"
_RUNTIME_UPDATING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def register() -> None:
    """Register the resolver with vLLM if the environment configures it; vLLM calls this.

    Safe to call again, and in every process of a server.

    Raises
    ------
    SystemExit
        With one line that says why, if the configuration is wrong, or vLLM is too old to have
        resolvers. vLLM calls its plug-ins unguarded: any other exception would be a traceback.
    """
    try:
        _register()
    except NolaEdgeError as error:
        raise SystemExit(f"nola-edge: {error}") from None


def _register() -> None:
    settings = Settings.from_environment(os.environ)
    if settings is None:
        LOGGER.debug("%s is not set: no NOLA adapters are served", ADAPTERS)
        return
    try:
        from vllm.lora.resolver import LoRAResolverRegistry  # type: ignore[import-not-found]
    except ImportError:
        raise NolaEdgeError(
            "this vLLM has no resolvers for LoRA; upgrade it to 0.9 or newer", field=ADAPTERS
        ) from None
    from nola_edge.vllm.resolver import NolaResolver

    if RESOLVER in LoRAResolverRegistry.get_supported_resolvers():
        return
    LoRAResolverRegistry.register_resolver(RESOLVER, NolaResolver(settings))
    if os.environ.get(_RUNTIME_UPDATING, "").strip().lower() not in ("1", "true"):
        LOGGER.warning("%s is not 1, so vLLM will ask for no NOLA adapter", _RUNTIME_UPDATING)
