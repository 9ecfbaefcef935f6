"""Whether an architecture's files are merged as the model in memory is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import nola_edge as ne
from nola_edge.adapters.load import load_adapter
from nola_edge.errors import NolaEdgeError
from nola_edge.peft import NolaConfig
from nola_edge.peft.stored import stored_tensors
from nola_edge.torch import merge_
from tests.sweep.tiny_models import class_name, make

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 300
#: What an exception says of a merge; any other, that PEFT makes no such adapter.
_RESULTS = {NolaEdgeError: "refused", AssertionError: "wrong"}
_CONFIGS = {
    "NOLA": lambda: NolaConfig(
        r=2, num_basis_a=4, num_basis_b=4, target_modules="all-linear", init_weights=False
    ),
    "LoRA": lambda: LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
}


def check(kind: str, folder: Path) -> dict[str, Any]:
    """Return what became of an architecture's two adapters, one word and a reason."""
    found: dict[str, Any] = {"architecture": kind, "class": class_name(kind)}
    try:
        made = make(kind)
        made.save_pretrained(folder / "made")
        loaded = type(made).from_pretrained(folder / "made")
        loaded.save_pretrained(folder / "base")  # loading may have changed it, as padding's row
        base = type(made).from_pretrained(folder / "base")
    except Exception as error:
        return {**found, "result": "not made", "reason": _line(error, folder)}
    for method, config in _CONFIGS.items():
        try:
            found[method], found[f"{method}_reason"] = _check(base, config(), folder / method)
        except Exception as error:
            result = next(
                (r for kind, r in _RESULTS.items() if isinstance(error, kind)), "not made"
            )
            found[method], found[f"{method}_reason"] = result, _line(error, folder)
    return found


def _check(base: Any, config: Any, folder: Path) -> tuple[str, str]:
    torch.manual_seed(1)
    tuned = get_peft_model(copy.deepcopy(base), config)
    tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    if isinstance(config, NolaConfig):
        merged = tuned.merge_and_unload()
    else:
        merged = copy.deepcopy(base)
        merge_(merged, folder / "adapter")
        _check_close(merged, tuned.merge_and_unload())
    merged.save_pretrained(folder / "wanted")
    inputs = folder.parent / "base", folder / "adapter"
    try:
        _merge(*inputs, folder / "merged")
    except NolaEdgeError as error:
        # A LoRA records no names; the model that is at hand knows them.
        names = stored_tensors(base, load_adapter(inputs[1]).modules)
        if isinstance(config, NolaConfig) or not names:
            return "refused", _line(error, folder.parent)
        try:
            _merge(*inputs, folder / "merged", rename=names)
        except NolaEdgeError as again:
            return "refused", _line(again, folder.parent)
        result, reason = _compare(folder / "merged", folder / "wanted", inputs[0])
        return f"{result} with rename", reason
    return _compare(folder / "merged", folder / "wanted", inputs[0])


def _merge(base: Path, adapter: Path, output: Path, **options: Any) -> None:
    ne.merge_checkpoint(base, adapter, output, **options)
    assert ne.verify_checkpoint(output, base, adapter, **options).identical


def _check_close(one: Any, other: Any) -> None:
    wanted = other.state_dict()
    for name, values in one.state_dict().items():
        torch.testing.assert_close(values, wanted[name], rtol=1e-4, atol=1e-5)


def _compare(merged: Path, wanted: Path, base: Path) -> tuple[str, str]:
    have, want, before = (_tensors(folder) for folder in (merged, wanted, base))
    if have.keys() != want.keys():
        return "wrong", f"names differ: {sorted(have.keys() ^ want.keys())[:3]}"
    bad = [name for name in want if not _same(have[name], want[name])]
    if bad:
        return "wrong", f"{len(bad)} of {len(want)} tensors differ, {bad[0]} first"
    changed = sum(not _same(have[name], before[name]) for name in have)
    return "right", f"{changed} of {len(have)} tensors merged"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
        if one.dim()
        else torch.equal(one, other)
    )


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def _line(error: Exception, folder: Path) -> str:
    """Return what was said, without the folder that it was said of."""
    said = f"{type(error).__name__}: {error}".replace(f"{folder}/", "")
    return " ".join(said.split())[:_LONGEST]
