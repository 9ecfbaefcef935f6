"""An entry is the exact LoRA of its adapter, made once, complete or not trusted."""

from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    ChangedError,
    MismatchError,
    OutputError,
)
from nola_edge.files.temporary import temporary_path
from nola_edge.vllm import cache as cache_module
from nola_edge.vllm.cache import LoraCache
from nola_edge.vllm.locks import try_lock
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.files.test_temporary import dead_temporary
from tests.vllm.checks import PLENTY, entries, refused, size


@pytest.fixture
def exports(monkeypatch):
    """Every expansion, as (adapter's path, target)."""
    calls = []
    real = cache_module.export_lora

    def counted(adapter, base, output, **options):
        calls.append((adapter.path, output))
        return real(adapter, base, output, **options)

    monkeypatch.setattr(cache_module, "export_lora", counted)
    return calls


@pytest.mark.parametrize("name", ["a", "d", "d.nola"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_an_entry_is_the_exported_lora(make_cache, adapters, tiny, tmp_path, name, dtype):
    before = snapshot(adapters), snapshot(tiny[0])
    cache = make_cache(dtype=dtype)
    path = cache.get(name, tiny[0])
    source = adapters / ("a" if name == "a" else "d.nola")
    ne.export_lora(source, tiny[0], tmp_path / "exported", dtype=dtype)
    assert snapshot(path) == snapshot(tmp_path / "exported")
    assert entries(cache) == {path.name}
    assert path.is_absolute()
    assert (snapshot(adapters), snapshot(tiny[0])) == before


def test_the_factors_merge_to_the_merged_weights(make_cache, adapters, tiny, tmp_path):
    """To rounding, with vLLM's own formula for the scaling."""
    path = make_cache().get("b", tiny[0])
    lora = load_all(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    base = load_all(tiny[0])
    ne.merge_checkpoint(tiny[0], adapters / "b", tmp_path / "merged")
    merged = load_all(tmp_path / "merged")
    for module in MODULES:
        a, b = (lora[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        update = b.astype(np.float64) @ a * (config["lora_alpha"] / config["r"])
        weight = base[f"{module}.weight"].astype(np.float64)
        expected = merged[f"{module}.weight"].astype(np.float64)
        assert np.abs(expected - weight).max() > 0.01
        assert np.abs(weight + update - expected).max() <= np.abs(expected).max() * 2**-8


def test_it_is_expanded_once(make_cache, tiny, exports):
    cache = make_cache()
    path = cache.get("a", tiny[0])
    made = (path / "adapter_model.safetensors").stat()
    assert cache.get("a", tiny[0]) == path
    assert make_cache().get("a", str(tiny[0])) == path
    again = (path / "adapter_model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert len(exports) == 1


def test_threads_expand_once(make_cache, tiny, exports):
    caches = [make_cache(), make_cache()]
    start = threading.Barrier(20)

    def get(number):
        start.wait()
        return caches[number % 2].get("abcd"[number // 5], tiny[0])

    with ThreadPoolExecutor(20) as pool:
        paths = list(pool.map(get, range(20)))
    assert len(set(paths)) == 4
    assert len(exports) == 4
    assert entries(caches[0]) == {path.name for path in paths}


def test_no_such_adapter(make_cache, tiny, exports):
    cache = make_cache()
    assert cache.get("absent", tiny[0]) is None
    assert not exports
    assert not entries(cache)


def test_a_changed_adapter_is_another_entry(make_cache, adapters, tiny):
    cache = make_cache()
    old = cache.get("a", tiny[0])
    tiny_adapter(seed=77).save(adapters / "a", force=True)
    new = cache.get("a", tiny[0])
    assert new != old
    assert snapshot(new) != snapshot(old)
    one = Adapter.load(adapters / "a")
    first = next(iter(one.modules))
    alpha = one.modules[first].alpha.copy()
    alpha[-1] = np.nextafter(alpha[-1], np.float32(1))
    changed = one.replace({first: (alpha, one.modules[first].beta)})
    changed.save(adapters / "a", force=True)
    assert cache.get("a", tiny[0]) not in (old, new)


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 1.0}, {"use_rslora": True}, {"seed": 12}, {"basis": "uniform"}]
)
def test_another_configuration_is_another_entry(make_cache, adapters, tiny, change):
    """Of the same coefficients."""
    cache = make_cache()
    path = cache.get("a", tiny[0])
    adapter = Adapter.load(adapters / "a")
    config = type(adapter.config)(**{**vars(adapter.config), "basis_fingerprint": None, **change})
    Adapter(config, adapter.modules).save(adapters / "a", force=True)
    other = cache.get("a", tiny[0])
    assert other != path
    assert snapshot(other) != snapshot(path)


def test_what_determines_the_files_names_the_entry(make_cache, adapters, tiny, tmp_path):
    """The same coefficients packed, copied or on a copy of the base: the same entry."""
    cache = make_cache()
    path = cache.get("a", tiny[0])
    Adapter.load(adapters / "a").pack(adapters / "packed.nola")
    shutil.copytree(adapters / "a", adapters / "copy")
    shutil.copytree(tiny[0], tmp_path / "other-base")
    assert cache.get("packed", tiny[0]) == path
    assert cache.get("copy", tmp_path / "other-base") == path
    assert make_cache(dtype="BF16").get("a", tiny[0]) != path
    Adapter.load(adapters / "a").quantize(8).save(adapters / "a8")
    assert cache.get("a8", tiny[0]) != path


def test_other_shapes_are_another_entry(make_cache, adapters, tiny, tmp_path):
    """An adapter that records no shapes fits more than one base."""
    config = json.loads((adapters / "a" / "adapter_config.json").read_text())
    del config["shapes_fingerprint"]
    (adapters / "a" / "adapter_config.json").write_text(json.dumps(config))
    cache = make_cache()
    path = cache.get("a", tiny[0])
    weights = {f"{name}.weight": np.ones((32, 48), np.float32) for name in MODULES}
    write_safetensors(tmp_path / "wide.safetensors", weights)
    wide = cache.get("a", tmp_path / "wide.safetensors")
    assert wide != path
    lora = load_all(wide / "adapter_model.safetensors")
    assert {values.shape for values in lora.values()} == {(16, 48), (32, 16)}


def test_the_base_is_checked_at_every_call(make_cache, adapters, tiny, tmp_path):
    tiny_adapter(base=tiny[0]).save(adapters / "a", force=True)
    cache = make_cache()
    cache.get("a", tiny[0])
    ne.merge_checkpoint(tiny[0], adapters / "b", tmp_path / "merged")
    refused(
        tmp_path,
        lambda: cache.get("a", tmp_path / "merged"),
        "was made for a base with fingerprint",
        MismatchError,
    )


def test_a_base_that_changes_meanwhile(make_cache, adapters, tiny, tmp_path, monkeypatch):
    """Between the look at its shapes and the expansion: what comes of it is not kept."""
    config = json.loads((adapters / "a" / "adapter_config.json").read_text())
    del config["shapes_fingerprint"]
    (adapters / "a" / "adapter_config.json").write_text(json.dumps(config))
    cache = make_cache()
    real = cache_module.export_lora

    def with_another_base(adapter, base, output, **options):
        return real(adapter, tmp_path / "wide.safetensors", output, **options)

    weights = {f"{name}.weight": np.ones((32, 48), np.float32) for name in MODULES}
    write_safetensors(tmp_path / "wide.safetensors", weights)
    monkeypatch.setattr(cache_module, "export_lora", with_another_base)
    refused(tmp_path, lambda: cache.get("a", tiny[0]), "changed while it was read", ChangedError)


def cut(path):
    weights = path / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)


def other_rank(path):
    config = path / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 16', '"r": 17'))


def another_adapters(path):
    for file in path.iterdir():
        file.unlink()
    weights = np.zeros((4, 40), np.float32)
    write_safetensors(path / "adapter_model.safetensors", {"x.lora_A.weight": weights})
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def linked_out(path):
    weights = path / "adapter_model.safetensors"
    weights.rename(path.parent.parent / "elsewhere")
    weights.symlink_to("../../elsewhere")


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        other_rank,
        another_adapters,
        linked_out,
        lambda path: (path / "adapter_config.json").unlink(),
        lambda path: (path / "adapter_model.safetensors").unlink(),
        lambda path: (path / "adapter_config.json").write_text("{"),
        lambda path: os.truncate(path / "adapter_config.json", 100_000_000),
        shutil.rmtree,
    ],
)
@pytest.mark.parametrize("again", ["the same process", "another"])
def test_what_is_not_complete_is_made_again(make_cache, tiny, harm, again):
    cache = make_cache()
    path = cache.get("a", tiny[0])
    good = snapshot(path)
    harm(path)
    other = cache if again == "the same process" else make_cache()
    assert other.get("a", tiny[0]) == path
    assert snapshot(path) == good
    assert entries(cache) == {path.name}


def test_an_entry_that_was_put_there_anew_is_the_one_in_use(make_cache, tiny, tmp_path):
    cache = make_cache()
    path = cache.get("a", tiny[0])
    path.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", path)
    for _ in range(2):
        assert cache.get("a", tiny[0]) == path
    assert try_lock(path, shared=False) is None
    unused = try_lock(tmp_path / "before", shared=False)
    assert unused is not None
    os.close(unused)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_an_entrys_place(make_cache, tiny, tmp_path, kind):
    path = make_cache().get("a", tiny[0])
    good = snapshot(path)
    path.rename(tmp_path / "moved")
    if kind == "file":
        path.write_text("not a folder")
    else:
        path.symlink_to(tmp_path / "moved")
    assert make_cache().get("a", tiny[0]) == path
    assert not path.is_symlink()
    assert snapshot(path) == good == snapshot(tmp_path / "moved")


def test_whole_tensors_are_refused(make_cache, adapters, tiny, tmp_path):
    cache = make_cache()
    adapter = tiny_adapter()
    norm = {"norm.weight": np.ones(40, np.float32)}
    for field, value, whole in (
        ("modules_to_save", ("norm",), norm),
        ("bias", "all", {"layers.0.q.bias": np.ones(24, np.float32)}),
        ("bias", "nola_only", {}),
    ):
        config = type(adapter.config)(**{**vars(adapter.config), field: value})
        Adapter(config, adapter.modules, whole).save(adapters / "whole", force=True)
        refused(
            tmp_path,
            lambda: cache.get("whole", tiny[0]),
            f"whole: {field}: is .*trained whole, which vLLM does not load; merge the adapter",
            AdapterError,
        )


def test_what_is_no_nola_adapter(make_cache, adapters, tiny, tmp_path):
    cache = make_cache()
    ne.export_lora(adapters / "a", tiny[0], adapters / "lora")
    (adapters / "notes.txt").write_text("notes")
    for name, message in (("lora", "must be 'NOLA'"), ("notes.txt", "notes.txt")):
        refused(tmp_path, lambda name=name: cache.get(name, tiny[0]), message)


def test_factors_that_a_dtype_cannot_hold(make_cache, adapters, tiny, tmp_path):
    adapter = tiny_adapter()
    huge = {m: (np.full(10, 1e6, np.float32), c.beta) for m, c in adapter.modules.items()}
    adapter.replace(huge).save(adapters / "huge")
    cache = make_cache(dtype="F16")
    refused(tmp_path, lambda: cache.get("huge", tiny[0]), "lora_A is not finite in F16")


def test_a_base_of_another_kind(make_cache, tiny, tmp_path):
    cache = make_cache()
    refused(tmp_path, lambda: cache.get("a", tmp_path / "nowhere"), "does not exist")
    refused(tmp_path, lambda: cache.get("a", tiny[1]), "has an adapter but no model")
    other = tmp_path / "other.safetensors"
    write_safetensors(other, {"head.weight": np.ones((2, 3), np.float32)})
    refused(tmp_path, lambda: cache.get("a", other), "have no weight here")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float64"}, "dtype: is 'float64'"), ({"max_bytes": 0}, "max_bytes: is 0")],
)
def test_arguments(tmp_path, options, message):
    refused(
        tmp_path,
        lambda: LoraCache(tmp_path, tmp_path / "cache", **{"max_bytes": PLENTY, **options}),
        message,
        ArgumentError,
    )


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/cache"):
        refused(
            tmp_path,
            lambda place=place: LoraCache(tmp_path, tmp_path / place, max_bytes=PLENTY),
            "cannot be used",
            OutputError,
        )


def test_a_new_folder_is_for_its_user_alone(make_cache):
    assert make_cache().directory.stat().st_mode & 0o777 == 0o700


def test_names_that_are_not_the_checkpoints_are_mentioned(make_cache, tiny, tmp_path, caplog):
    cache = make_cache()
    cache.get("a", tiny[0])
    assert not caplog.records
    tensors = {f"model.{name}": values for name, values in load_all(tiny[0]).items()}
    write_safetensors(tmp_path / "prefixed.safetensors", tensors)
    cache.get("a", tmp_path / "prefixed.safetensors")
    assert "calls layers.0.q what the base calls model.layers.0.q.weight" in caplog.text


def test_the_bytes_that_are_reserved_are_enough(make_cache, adapters, tiny, monkeypatch):
    reserved = []
    real = cache_module.Entry.of

    def noted(*arguments):
        reserved.append(real(*arguments).nbytes)
        return real(*arguments)

    monkeypatch.setattr(cache_module.Entry, "of", noted)
    for name in "abcd":
        path = make_cache().get(name, tiny[0])
        assert size(path) <= reserved[-1] <= size(path) + 4096


def test_an_entry_that_vanished_while_another_could_not_be_made(
    make_cache, adapters, tiny, monkeypatch
):
    cache = make_cache()
    shutil.rmtree(cache.get("a", tiny[0]))

    def full(*_, **__):
        raise OutputError("no space left on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "export_lora", full)
        with pytest.raises(OutputError, match="no space"):
            cache.get("a", tiny[0])
    shutil.rmtree(adapters / "a")
    tiny_adapter(seed=99).save(adapters / "a")
    assert cache.get("a", tiny[0]).is_dir()


def test_what_is_not_a_dead_process_s_is_left_alone(make_cache, tiny):
    """A merge may be writing to the folder at the same time, and people put things anywhere."""
    cache = make_cache()
    writing = temporary_path(cache.directory / "merged")
    writing.mkdir()
    (writing / "model.safetensors").write_bytes(b"half")
    (cache.directory / ".nola-edge-notes").write_text("mine")
    (cache.directory / ".nola-edge-old.partial").mkdir()
    dead = dead_temporary(cache.directory / "other")
    kept = entries(cache) - {dead.name}
    path = cache.get("a", tiny[0])
    assert entries(cache) == kept | {path.name}
    assert (writing / "model.safetensors").read_bytes() == b"half"
