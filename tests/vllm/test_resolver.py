"""What vLLM calls, against a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.vllm import RESOLVER, register
from nola_edge.vllm.cache import LoraCache
from tests.conftest import load_all, snapshot, tiny_adapter
from tests.vllm import standin

ROOT = Path(__file__).parents[2]
P = "NOLA_EDGE_VLLM_"


@pytest.fixture
def vllm(monkeypatch):
    """The registry of a vLLM that asks resolvers."""
    monkeypatch.delitem(sys.modules, "nola_edge.vllm.resolver", raising=False)
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    yield standin.install(monkeypatch)
    sys.modules.pop("nola_edge.vllm.resolver", None)


@pytest.fixture
def environment(adapters, tmp_path, monkeypatch):
    monkeypatch.setenv(P + "ADAPTERS", str(adapters))
    monkeypatch.setenv(P + "CACHE", str(tmp_path / "cache"))
    return monkeypatch


@pytest.fixture
def resolver(vllm, environment):
    register()
    made = vllm.get_resolver(RESOLVER)
    yield made
    made._cache.close()


def resolve(resolver, base, name):
    return asyncio.run(resolver.resolve_lora(str(base), name))


def test_nothing_happens_where_nothing_is_configured(vllm, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "vllm.nola_edge")
    register()
    assert not vllm.resolvers
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "nola_edge.vllm.resolver" not in sys.modules


def test_vllm_is_not_imported_before_it_is_needed():
    code = (
        "import sys, nola_edge.vllm, nola_edge.vllm.cache; nola_edge.vllm.register()\n"
        "print({'vllm', 'torch', 'nola_edge.vllm.resolver'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_registering(vllm, environment):
    register()
    first = vllm.get_resolver(RESOLVER)
    register()
    assert vllm.get_resolver(RESOLVER) is first
    assert not vllm.overwritten
    first._cache.close()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CACHE_BYTES", "lots", "NOLA_EDGE_VLLM_CACHE_BYTES: is 'lots', not a size"),
        ("ADAPTERS", "/no\n/where", "NOLA_EDGE_VLLM_ADAPTERS: /no\\n/where is not a folder"),
        ("CACHE", "/proc/self/mem", "/proc/self/mem: cannot be used: File exists"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_the_end(
    vllm, environment, tmp_path, name, value, message
):
    environment.setenv(P + name, value)
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as caught:
        register()
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert not vllm.resolvers
    assert snapshot(tmp_path) == before


def test_a_server_with_a_wrong_configuration_ends_with_one_line(tmp_path):
    """In a process as vLLM starts them: its plug-ins are called unguarded."""
    code = (
        "from importlib.metadata import EntryPoint\n"
        "EntryPoint('nola_edge', 'nola_edge.vllm:register', 'vllm.general_plugins').load()()\n"
        "print('serving')"
    )
    environment = {**os.environ, P + "ADAPTERS": str(tmp_path), P + "DTYPE": "float64"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "nola-edge: NOLA_EDGE_VLLM_DTYPE: is 'float64', must be one of F32, F16, BF16\n"
    )


def test_a_vllm_without_resolvers(vllm, environment, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm.lora.resolver", None)
    with pytest.raises(SystemExit, match="has no resolvers for LoRA; upgrade it"):
        register()
    assert not (tmp_path / "cache").exists()


def test_a_vllm_that_does_not_ask(vllm, environment, caplog):
    environment.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0")
    register()
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING is not 1" in caplog.text
    vllm.get_resolver(RESOLVER)._cache.close()


def test_it_has_vllms_interface(resolver):
    assert isinstance(resolver, standin.LoRAResolver)
    ours, theirs = type(resolver).resolve_lora, standin.LoRAResolver.resolve_lora
    assert inspect.iscoroutinefunction(ours)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


@pytest.mark.parametrize("name", ["a", "d", "d.nola"])
def test_an_adapter_is_found(resolver, tiny, tmp_path, name):
    request = resolve(resolver, tiny[0], name)
    assert isinstance(request, standin.LoRARequest)
    assert request.lora_name == name
    path = Path(request.lora_path)
    assert path.parent == tmp_path / "cache"
    config = json.loads((path / "adapter_config.json").read_text())
    assert not standin.complaints(config)
    assert standin.complaints(config, max_lora_rank=8) == ["r is out of range"]
    for tensor, values in load_all(path / "adapter_model.safetensors").items():
        assert tensor.startswith("base_model.model.")
        assert tensor.endswith((".lora_A.weight", ".lora_B.weight"))
        assert values.dtype == np.float32


def test_the_served_dtype_halves_the_bytes_and_is_the_same_numbers(vllm, environment, tiny):
    """Casting F32 to the served dtype is what vLLM does while it loads."""
    import ml_dtypes

    found = {}
    for dtype in ("F32", "BF16"):
        environment.setenv(P + "DTYPE", dtype)
        vllm.resolvers.clear()
        register()
        request = resolve(vllm.get_resolver(RESOLVER), tiny[0], "a")
        found[dtype] = load_all(Path(request.lora_path) / "adapter_model.safetensors")
        vllm.get_resolver(RESOLVER)._cache.close()
    assert found["F32"].keys() == found["BF16"].keys()
    for name, values in found["F32"].items():
        assert np.array_equal(values.astype(ml_dtypes.bfloat16), found["BF16"][name])


@pytest.mark.parametrize("name", ["absent", "../secret", "org/adapter", "/etc/passwd", ".", "\0"])
def test_other_names_are_left_to_other_resolvers(resolver, tiny, tmp_path, caplog, name):
    caplog.set_level(logging.INFO, "vllm.nola_edge")
    tiny_adapter().save(tmp_path / "secret")
    before = snapshot(tmp_path)
    assert resolve(resolver, tiny[0], name) is None
    assert resolve(resolver, "no/such-base", name) is None
    assert snapshot(tmp_path) == before
    if name == "absent":
        assert not caplog.records
    else:
        assert "is not the plain name of an adapter" in caplog.text
        assert {record.levelname for record in caplog.records} == {"INFO"}
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_an_adapter_that_cannot_be_served(resolver, adapters, tiny, tmp_path, caplog):
    adapter = tiny_adapter()
    config = type(adapter.config)(**{**vars(adapter.config), "modules_to_save": ("norm",)})
    Adapter(config, adapter.modules, {"norm.weight": np.ones(40, np.float32)}).save(
        adapters / "whole"
    )
    (adapters / "link").symlink_to(tmp_path)
    (adapters / "broken").mkdir()
    before = snapshot(tmp_path)
    for name, reason in (
        ("whole", "which vLLM does not load"),
        ("link", "leads out of the folder"),
        ("broken", "has no adapter_config.json"),
    ):
        caplog.clear()
        assert resolve(resolver, tiny[0], name) is None
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.getMessage().startswith(f"NOLA adapter {name} is not served: ")
        assert reason in record.getMessage()
        assert record.getMessage().isprintable()
    assert snapshot(tmp_path) == before


def test_where_the_base_is(vllm, environment, tiny, caplog):
    """What is configured, else the model that vLLM serves if it is a local folder."""
    register()
    resolver = vllm.get_resolver(RESOLVER)
    assert resolve(resolver, "some-org/some-model", "a") is None
    assert "NOLA_EDGE_VLLM_BASE: is not set, and some-org/some-model" in caplog.text
    request = resolve(resolver, tiny[0], "a")
    resolver._cache.close()
    vllm.resolvers.clear()
    environment.setenv(P + "BASE", str(tiny[0]))
    register()
    resolver = vllm.get_resolver(RESOLVER)
    for served in ("some-org/some-model", str(tiny[1]), "\0"):
        assert resolve(resolver, served, "a").lora_path == request.lora_path
    resolver._cache.close()


def test_the_server_is_not_blocked(resolver, tiny, monkeypatch):
    """While one adapter is expanded, the loop goes on, and other adapters are served."""
    resolve(resolver, tiny[0], "b")
    go_on = threading.Event()
    real = LoraCache.get
    threads = []

    def slow(self, name, base):
        threads.append(threading.current_thread())
        if name == "a":
            assert go_on.wait(60)
        return real(self, name, base)

    monkeypatch.setattr(LoraCache, "get", slow)

    async def serve():
        waiting = asyncio.create_task(resolver.resolve_lora(str(tiny[0]), "a"))
        other = await resolver.resolve_lora(str(tiny[0]), "b")
        assert other is not None
        assert not waiting.done()
        go_on.set()
        return await waiting

    assert asyncio.run(serve()).lora_name == "a"
    assert threading.main_thread() not in threads


def test_numbers(vllm, environment, adapters, tiny):
    """The same in another server; another for another adapter, and after a change."""
    numbers = []
    for _ in range(2):
        vllm.resolvers.clear()
        register()
        resolver = vllm.get_resolver(RESOLVER)
        numbers.append([resolve(resolver, tiny[0], name).lora_int_id for name in "abcda"])
        tiny_adapter(seed=50, r=16).save(adapters / "c", force=True)
        numbers[-1].append(resolve(resolver, tiny[0], "c").lora_int_id)
        resolver._cache.close()
        tiny_adapter(seed=2, r=18).save(adapters / "c", force=True)
    assert numbers[0] == numbers[1]
    assert numbers[0][0] == numbers[0][4]
    assert len(set(numbers[0])) == 5
    assert all(1 <= number < 2**31 for number in numbers[0])


def test_a_number_is_the_same_in_every_process(resolver):
    assert resolver._number("french", "nola-lora-0") == 1262589095
    assert resolver._number("french", "nola-lora-1") != 1262589095


def test_numbers_that_collide(resolver, monkeypatch):
    module = sys.modules["nola_edge.vllm.resolver"]
    monkeypatch.setattr(module, "_MAX_ID", 5)
    numbers = {name: resolver._number(name, "entry") for name in "abcde"}
    assert sorted(numbers.values()) == [1, 2, 3, 4, 5]
    assert numbers == {name: resolver._number(name, "entry") for name in "abcde"}


def test_the_entry_point_of_the_project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["vllm.general_plugins"]["nola_edge"]
    assert metadata.EntryPoint("nola_edge", value, "vllm.general_plugins").load() is register


def test_the_entry_point_that_is_installed():
    points = metadata.distribution("nola-edge").entry_points
    found = list(points.select(group="vllm.general_plugins"))
    if not found:
        pytest.skip("installed before there was one; install again")
    assert [(point.name, point.load()) for point in found] == [("nola_edge", register)]
