"""What vLLM calls when it is asked for an adapter that it does not know."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
from vllm.lora.resolver import LoRAResolver  # type: ignore[import-not-found]

from nola_edge.errors import ArgumentError, NolaEdgeError, printable
from nola_edge.vllm.cache import LoraCache
from nola_edge.vllm.log import LOGGER
from nola_edge.vllm.names import check_name
from nola_edge.vllm.settings import BASE

if TYPE_CHECKING:
    from nola_edge.vllm.settings import Settings

#: Older versions keep the numbers of adapters in arrays of int32.
_MAX_ID = 2**31 - 1


class NolaResolver(LoRAResolver):  # type: ignore[misc]
    """Finds NOLA adapters by name and gives vLLM their exact LoRA.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    NolaEdgeError
        If the cache's folder cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache = LoraCache(
            settings.adapters,
            settings.cache,
            max_bytes=settings.max_bytes,
            dtype=settings.dtype,
        )
        self._numbered: dict[int, tuple[str, str]] = {}

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the LoRA of a NOLA adapter, expanded if need be, without blocking the server.

        Parameters
        ----------
        base_model_name : str
            The model that vLLM serves: a path or a Hub id.
        lora_name : str
            Whatever a client wrote.

        Returns
        -------
        LoRARequest or None
            None if there is no such adapter here, or it cannot be served; the log says why, and
            vLLM asks its other resolvers.
        """
        try:
            check_name(lora_name)
        except ArgumentError as error:
            LOGGER.info("%s", error)
            return None
        try:
            path = await asyncio.to_thread(self._expand, base_model_name, lora_name)
        except (NolaEdgeError, OSError) as error:
            reason = printable(error, 1000)
            LOGGER.error("NOLA adapter %s is not served: %s", printable(lora_name), reason)
            return None
        if path is None:
            return None
        number = self._number(lora_name, path.name)
        return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(path))

    def _expand(self, base_model_name: str, lora_name: str) -> Path | None:
        if self._cache.find(lora_name) is None:
            return None
        return self._cache.get(lora_name, self._base(base_model_name))

    def _base(self, base_model_name: str) -> Path:
        """Return the checkpoint: what was configured, else what vLLM serves if that is local."""
        if self._settings.base is not None:
            return self._settings.base
        path = Path(base_model_name)
        if not path.exists():
            raise ArgumentError(
                f"is not set, and {printable(base_model_name)}, which vLLM serves, is not a local "
                "folder; set it to the folder of that checkpoint",
                field=BASE,
            )
        return path

    def _number(self, name: str, entry: str) -> int:
        """Return a positive number for an adapter: the same in every process, its own in this one.

        It differs when the adapter has changed, so that an engine does not take the old for it.
        """
        digest = hashlib.sha256(f"{entry} {name}".encode()).digest()
        number = int.from_bytes(digest[:8], "big") % _MAX_ID + 1
        while self._numbered.setdefault(number, (name, entry)) != (name, entry):
            number = number % _MAX_ID + 1
        return number
