"""Whatever reads adapters gets the values that the format's text gives for few bits."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.quantize import BITS
from nola_edge.errors import NolaEdgeError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.vllm.cache import LoraCache
from tests.cli.in_process import call
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.few_bits import FORMS, save_both, values_of
from tests.gguf.test_merge import adapter_of, arrays_of, write

forms = pytest.mark.parametrize("form", FORMS)
few = pytest.mark.parametrize("bits", BITS)
MODULE = "layers.0.q"


@pytest.fixture
def saved(tiny, tmp_path):
    """A function that saves an adapter in few bits and as floats; and the base."""

    def save(form, bits):
        adapter = tiny_adapter(num_basis=60, base=tiny[0])
        return tiny[0], *save_both(adapter, tmp_path, form, bits)

    return save


def as_bytes(tensors):
    return {name: np.asarray(tensors[name]).tobytes() for name in tensors}


def loaded(base, adapter, out):
    modules = ne.load_adapter(adapter).modules
    return {name: (c.alpha.tobytes(), c.beta.tobytes()) for name, c in modules.items()}


def merged(base, adapter, out):
    ne.merge_checkpoint(base, adapter, out)
    return as_bytes(load_all(out))


def opened(base, adapter, out):
    with ne.open_merged(base, adapter) as tensors:
        return as_bytes(tensors)


def summed(base, adapter, out):
    with ne.open_merged(base, [(adapter, 0.7), (tiny_adapter(seed=5), 0.3)]) as tensors:
        return as_bytes(tensors)


def merged_each(base, adapter, out):
    ne.merge_each(base, {"one": adapter}, out)
    return as_bytes(load_all(out / "one"))


def packed(base, adapter, out):
    assert call("pack", adapter, "-o", f"{out}.nola").returncode == 0
    return merged(base, f"{out}.nola", out)


def unpacked(base, adapter, out):
    assert call("pack", adapter, "-o", f"{out}.nola").returncode == 0
    assert call("unpack", f"{out}.nola", "-o", f"{out}-folder").returncode == 0
    return merged(base, f"{out}-folder", out)


def exported(base, adapter, out):
    ne.export_lora(adapter, base, out)
    return as_bytes(load_all(out / "adapter_model.safetensors"))


def served(base, adapter, out):
    """What vLLM is given."""
    cache = LoraCache(adapter.parent, out, max_bytes=10_000_000)
    entry = cache.get(adapter.name, base)
    tensors = as_bytes(load_all(entry / "adapter_model.safetensors"))
    cache.close()
    return tensors


def inspected(base, adapter, out):
    said = json.loads(call("inspect", adapter, "--json").stdout)
    return {factor: said[factor] for factor in ("alpha", "beta")}


def switched(base, adapter, out):
    arrays = load_all(base)
    with ne.ArraySwitch(arrays, base) as switch:
        switch.add("one", adapter)
        switch.use("one")
    return as_bytes(arrays)


READERS = [
    loaded, merged, opened, summed, merged_each, packed, unpacked, exported, served, inspected,
    switched,
]  # fmt: skip


@few
@forms
@pytest.mark.parametrize("read", READERS)
def test_every_reader_gets_the_same_values(saved, read, form, bits, tmp_path):
    base, few, floats = saved(form, bits)
    assert read(base, few, tmp_path / "a") == read(base, floats, tmp_path / "b")


@few
@forms
def test_a_merge_of_one_verifies_against_the_other(saved, form, bits, tmp_path):
    base, few, floats = saved(form, bits)
    ne.merge_checkpoint(base, floats, tmp_path / "merged")
    assert call("verify", tmp_path / "merged", base, few).returncode == 0


@forms
def test_gguf(form, tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("F16"))
    few, floats = save_both(adapter_of(), tmp_path, form, 4)
    for name, adapter in (("a", few), ("b", floats)):
        merge_gguf(base, adapter, tmp_path / f"{name}.gguf")
        export_gguf_lora(adapter, base, tmp_path / f"{name}-lora.gguf")
    assert verify_gguf(tmp_path / "b.gguf", base, few).identical
    for end in (".gguf", "-lora.gguf"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


@forms
@few
def test_packing_keeps_every_byte(form, bits, tmp_path):
    source, _ = save_both(tiny_adapter(), tmp_path, form, bits)
    Adapter.load(source).pack(tmp_path / "a.nola")
    Adapter.load(tmp_path / "a.nola").save(tmp_path / "again")
    tensors, again = (
        load_all(p / "adapter_model.safetensors") for p in (source, tmp_path / "again")
    )
    assert as_bytes(tensors) == as_bytes(again)


def test_what_few_bits_cost_on_disk(tmp_path):
    """The exact coefficient of each module takes four bytes more, and nothing else."""
    adapter = tiny_adapter()
    for bits in BITS:
        adapter.quantize(bits).pack(tmp_path / f"{bits}.nola")
        with SafetensorsFile.open(tmp_path / f"{bits}.nola") as file:
            assert file.tensors["scales"].shape == (3 * len(adapter.modules),)
            assert file.tensors["coefficients"].shape == (
                len(adapter.modules) * 2 * ((10 * bits + 7) // 8),
            )


def with_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensor(folder, name, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_all(path)
    tensors[name] = change(tensors[name])
    write_safetensors(path, tensors)


ALPHA = f"base_model.model.{MODULE}.nola_alpha"


def cut_scale(folder):
    change_tensor(folder, f"{ALPHA}_scale", lambda scale: scale[:1])


def unannounced(folder):
    with_config(folder, exact_first_alpha=False)


def no_bits(folder):
    with_config(folder, coefficient_bits=None)


def no_truth_value(folder):
    with_config(folder, exact_first_alpha=1)


def two_first_coefficients(folder):
    change_tensor(folder, ALPHA, lambda packed: packed | np.uint8(1))


def infinite(folder):
    change_tensor(folder, f"{ALPHA}_scale", lambda scale: np.float32([scale[0], np.inf]))


BROKEN = {
    cut_scale: rf"{ALPHA}_scale: must be F32 \[2\]",
    unannounced: rf"{ALPHA}_scale: must be F32 \[1\]",
    no_bits: "exact_first_alpha: is 'True', must be false without coefficient_bits",
    no_truth_value: "exact_first_alpha: is '1', must be true or false",
    two_first_coefficients: f"{ALPHA}: holds a first coefficient beside the exact one",
    infinite: f"{ALPHA}: holds a coefficient that is not finite",
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.items())
def test_what_does_not_fit_together_is_refused(damage, message, tiny, tmp_path):
    tiny_adapter().quantize(4).save(tmp_path / "few")
    damage(tmp_path / "few")
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError, match=message) as caught:
        ne.merge_checkpoint(tiny[0], tmp_path / "few", tmp_path / "out")
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_a_field_that_is_off_may_be_there(tmp_path):
    """As PEFT writes it for an adapter without bits."""
    tiny_adapter().save(tmp_path / "a")
    for value in (None, False):
        with_config(tmp_path / "a", exact_first_alpha=value)
        assert Adapter.load(tmp_path / "a").config.exact_first_alpha is False


def test_the_first_coefficient_is_the_trained_one(tmp_path):
    adapter = tiny_adapter()
    adapter.quantize(3).save(tmp_path / "few")
    for module, (alpha, _) in values_of(tmp_path / "few").items():
        assert alpha[0] == adapter.modules[module].alpha[0]
