"""A stand-in for the part of vLLM that a resolver sees, which is not installed for these tests.

Facts as read in vLLM's sources (vllm/lora/resolver.py, request.py and peft_helper.py): the names
and signatures of the interface, and which requests and configurations of adapters are accepted.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType


@dataclass
class LoRARequest:
    """The fields that a resolver fills; the server gives it a number of its own later."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self):
        if self.lora_int_id < 1 or not self.lora_path:
            raise ValueError("a request needs a positive number and a path")


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Registry:
    def __init__(self):
        self.resolvers = {}
        self.overwritten = []

    def get_supported_resolvers(self):
        return self.resolvers.keys()

    def register_resolver(self, resolver_name, resolver):
        if resolver_name in self.resolvers:
            self.overwritten.append(resolver_name)
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name):
        return self.resolvers[resolver_name]


def install(monkeypatch) -> Registry:
    """Put the stand-in where ``import vllm`` finds it; returns its new registry."""
    registry = Registry()
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora")}
    for name, members in (
        ("vllm.lora.request", {"LoRARequest": LoRARequest}),
        (
            "vllm.lora.resolver",
            {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": registry},
        ),
    ):
        modules[name] = ModuleType(name)
        vars(modules[name]).update(members)
    for name, module in modules.items():
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    return registry


def complaints(config: dict, max_lora_rank: int = 16) -> list[str]:
    """What vLLM would hold against an ``adapter_config.json``; unknown fields are passed over."""
    found = [f"{name} is missing" for name in ("r", "lora_alpha", "target_modules")]
    found = [text for text in found if text.split()[0] not in config]
    if config.get("peft_type") != "LORA":
        found.append("peft_type is not LORA")
    if config.get("r", 1) <= 0 or config.get("r", 1) > max_lora_rank:
        found.append("r is out of range")
    for name in ("modules_to_save", "use_dora", "trainable_token_indices"):
        if config.get(name):
            found.append(f"{name} is not supported")
    if config.get("bias", "none") != "none":
        found.append("bias is not supported")
    if not isinstance(config.get("target_modules"), list | str):
        found.append("target_modules is neither a list nor a string")
    return found
