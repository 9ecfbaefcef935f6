"""Every entry point refuses what is no path by the argument's name, before anything happens."""

import os
import sys

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.convert import convert_checkpoint
from nola_edge.errors import ArgumentError, ArgumentTypeError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.vllm.cache import LoraCache
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter

FRESH = {"r": 2, "num_basis_a": 3, "num_basis_b": 3, "seed": 1, "lora_alpha": 1.0}


def create(base):
    return ne.Adapter.create(MODULES, base=base, **FRESH)


def save(path):
    tiny_adapter().save(path, force=True)


def pack(path):
    tiny_adapter().pack(path, force=True)


def add(base, adapter):
    with ne.ArraySwitch(load_all("base"), base) as switch:
        switch.add("name", adapter)


def each(base, adapter, output):
    ne.merge_each(base, {"name": adapter}, output)


def cache(adapters, directory):
    LoraCache(adapters, directory, max_bytes=1)


def get(base):
    LoraCache(".", "base", max_bytes=1).get("adapter", base)


#: The public functions, and what they may be given for each argument that is a path.
ENTRY_POINTS = [
    (ne.merge_checkpoint, {"base": "base", "adapter": "adapter", "output": "out"}),
    (each, {"base": "base", "adapter": "adapter", "output": "out"}),
    (ne.open_merged, {"base": "base", "adapter": "adapter"}),
    (ne.verify_checkpoint, {"merged": "base", "base": "base", "adapter": "adapter"}),
    (add, {"base": "base", "adapter": "adapter"}),
    (ne.Adapter.load, {"path": "adapter"}),
    (create, {"base": "base"}),
    (save, {"path": "out"}),
    (pack, {"path": "out"}),
    (ne.export_lora, {"adapter": "adapter", "base": "base", "output": "out"}),
    (export_gguf_lora, {"adapter": "adapter", "base": "base", "output": "out"}),
    (merge_gguf, {"base": "base", "adapter": "adapter", "output": "out"}),
    (verify_gguf, {"merged": "base", "base": "base", "adapter": "adapter"}),
    (convert_checkpoint, {"path": "adapter", "output": "out", "check": "base"}),
    (cache, {"adapters": ".", "directory": "cache"}),
    (get, {"base": "base"}),
]
ARGUMENTS = [(entry_point, given, name) for entry_point, given in ENTRY_POINTS for name in given]


@pytest.mark.parametrize(
    ("entry_point", "given", "name"),
    ARGUMENTS,
    ids=[f"{d.__qualname__}-{n}" for d, _, n in ARGUMENTS],
)
@pytest.mark.parametrize("value", [5, b"out", np.float32(1), object(), "", "a\0b", "\ud800"])
def test_what_is_no_path(entry_point, given, name, value, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match=f"^{name}: ") as caught:
        entry_point(**given | {name: value})
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("value", [None, 5, b"out"])
def test_a_wrong_type_is_a_type_error_too(value):
    with pytest.raises(ArgumentTypeError, match=f"^path: {value!r} is not a path$"):
        ne.Adapter.load(value)


def test_whatever_names_a_file_will_do(tiny, tmp_path, monkeypatch):
    """An object with a path, and names that are no text."""
    monkeypatch.chdir(tmp_path)

    class Named(os.PathLike):
        def __fspath__(self):
            return os.fsdecode(b"out-\xff") if sys.platform == "linux" else "out"

    ne.merge_checkpoint("base", "adapter", Named())
    assert ne.verify_checkpoint(Named(), "base", "adapter")
