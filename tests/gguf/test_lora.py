"""LoRA into GGUF files, and as GGUF files: layers, the input embedding, mixed with NOLA."""

from __future__ import annotations

import numpy as np
import pytest

from nola_edge.errors import AdapterError, MismatchError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.gguf import merge_gguf, verify_gguf
from tests.conftest import snapshot
from tests.gguf.encode import encode, llama_pairs
from tests.gguf.test_export import base_file, base_folder, delta, read
from tests.gguf.test_merge import (
    BLOCK,
    DTYPES,
    HEADS,
    HIDDEN,
    KEY_HEADS,
    MODULES,
    adapter_of,
    arrays_of,
    stored_name,
    values_of,
    write,
)
from tests.gguf.test_merge import (
    factors as nola_factors,
)
from tests.lora_folders import factors, read_factors, with_magnitudes, write_lora
from tests.reference import merge as reference

F = np.float32
EMBEDDING = "model.embed_tokens"
TOKENS = "token_embd.weight"
ALL = {**MODULES, EMBEDDING: (HIDDEN, 50)}


def lora(tmp_path, modules=MODULES, **fields):
    tensors = factors(modules, seed=3, embeddings=(EMBEDDING,))
    return write_lora(tmp_path / "lora", tensors, **fields)


def with_output(kind="F32"):
    """Return the tensors of a model whose output layer is one of its own."""
    return {**arrays_of(kind), "output.weight": np.ones((50, HIDDEN), F)}


def interleaved(b, module):
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(module.rpartition(".")[2])
    if heads is None:
        return b
    halves = b.reshape(heads, 2, len(b) // heads // 2, -1)
    return halves.transpose(0, 2, 1, 3).reshape(b.shape)


@pytest.mark.parametrize("kind", DTYPES)
def test_the_bits_of_the_reference(kind, tmp_path):
    arrays, folder = with_output(kind), lora(tmp_path, ALL, lora_alpha=5)
    base = write(tmp_path / "base.gguf", arrays)
    merge_gguf(base, folder, tmp_path / "out.gguf")
    expected = dict(arrays)
    for module in MODULES:
        a, b = read_factors(folder, module)
        name = stored_name(module)
        expected[name] = reference.merge(arrays[name], interleaved(b, module), a, 1.25)
    a, b = read_factors(folder, EMBEDDING)
    expected[TOKENS] = reference.merge(arrays[TOKENS], a.T, b.T, 1.25)
    assert (tmp_path / "out.gguf").read_bytes() == encode(llama_pairs(HEADS, KEY_HEADS), expected)
    assert verify_gguf(tmp_path / "out.gguf", base, folder).identical


def test_quantised_and_together_with_nola(tmp_path):
    arrays, folder, nola = arrays_of("Q8_0"), lora(tmp_path, lora_alpha=5), adapter_of()
    base = write(tmp_path / "base.gguf", arrays)
    report = merge_gguf(base, [nola, (folder, 0.5)], tmp_path / "out.gguf")
    assert len(report.survival) == len(MODULES)
    assert verify_gguf(tmp_path / "out.gguf", base, [nola, (folder, 0.5)]).identical
    for module in MODULES:
        a, b = read_factors(folder, module)
        a1, b1 = nola_factors(nola, module)
        wanted = values_of(base, stored_name(module))[1]
        wanted = wanted + nola.scaling * b1 @ a1 + 0.625 * interleaved(b, module) @ a
        found = values_of(tmp_path / "out.gguf", stored_name(module))[1]
        step = np.abs(wanted).max() / 127
        assert np.abs(found - wanted).max() <= 0.51 * step


def test_as_a_lora_for_llama_cpp(tmp_path):
    """Ranks and scalings of their own; of the embedding, llama.cpp looks up rows of A."""
    ranks = {BLOCK.format(0) + "self_attn.v_proj": 3, EMBEDDING: 2}
    folder = write_lora(
        tmp_path / "lora",
        factors(ALL, ranks, embeddings=(EMBEDDING,)),
        rank_pattern=ranks,
        use_rslora=True,
    )
    export_gguf_lora([(folder, 0.5)], base_file_with_output(tmp_path), tmp_path / "lora.gguf")
    metadata, tensors = read(tmp_path / "lora.gguf")
    for module in MODULES:
        a, b = (x.astype(float) for x in read_factors(folder, module))
        wanted = interleaved(b, module) @ a * (0.5 * 8 / np.sqrt(len(a)))
        found = delta(metadata, tensors, stored_name(module))
        assert np.allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    a, b = read_factors(folder, EMBEDDING)
    rows, features = tensors[f"{TOKENS}.lora_a"], tensors[f"{TOKENS}.lora_b"]
    assert np.array_equal(rows, a.T)
    alpha = metadata["adapter.lora.alpha"]
    found = rows.astype(float) @ features.T * (alpha / features.shape[1])
    assert np.allclose(found, (b @ a).T * (0.5 * 8 / np.sqrt(2)), rtol=0, atol=1e-5)


def base_file_with_output(tmp_path):
    return write(tmp_path / "base.gguf", with_output("F16"))


def test_a_folder_and_a_file_give_the_same_lora(tmp_path):
    folder = lora(tmp_path)
    for name, base in (("a", base_file(tmp_path)), ("b", base_folder(tmp_path))):
        export_gguf_lora(folder, base, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("work", [merge_gguf, export_gguf_lora])
def test_what_does_not_fit_is_refused(tmp_path, work):
    modules = {BLOCK.format(0) + "self_attn.v_proj": (HIDDEN // 2, HIDDEN)}
    biased = factors(modules)
    name = next(iter(biased)).replace("lora_A.weight", "lora_B.bias")
    biased[name] = np.zeros(HIDDEN // 2, F)
    base = base_file(tmp_path)
    cases = [
        (lora(tmp_path, ALL), MismatchError, "is the output layer too"),
        (write_lora(tmp_path / "bias", biased, lora_bias=True), AdapterError, "(lora_bias)"),
        (
            write_lora(
                tmp_path / "other", factors({"model.wpe": (HIDDEN, 50)}, embeddings=("model.wpe",))
            ),
            MismatchError,
            "is not the input embedding of the architecture llama",
        ),
        (
            write_lora(tmp_path / "shape", factors({next(iter(modules)): (HIDDEN, HIDDEN)})),
            MismatchError,
            "is 32 x 64 here (out x in)",
        ),
    ]
    before = snapshot(tmp_path)
    for folder, error, message in cases:
        arguments = (base, folder) if work is merge_gguf else (folder, base)
        with pytest.raises(error) as caught:
            work(*arguments, tmp_path / "out.gguf")
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_dora(kind, tmp_path):
    """The norms go with their rows, where those are in another order."""
    arrays = arrays_of(kind)
    base = write(tmp_path / "base.gguf", arrays)
    tensors = with_magnitudes(factors(MODULES))
    folder = write_lora(tmp_path / "lora", tensors, use_dora=True)
    merge_gguf(base, folder, tmp_path / "out.gguf")
    assert verify_gguf(tmp_path / "out.gguf", base, folder).identical
    for module in MODULES:
        a, b = read_factors(folder, module)
        wanted = values_of(base, stored_name(module))[1] + 2 * interleaved(b, module) @ a
        norms = tensors[f"base_model.model.{module}.lora_magnitude_vector"][:, None]
        wanted *= interleaved(norms, module) / np.linalg.norm(wanted, axis=1, keepdims=True)
        found = values_of(tmp_path / "out.gguf", stored_name(module))[1]
        step = np.abs(wanted).max() / 127 if kind == "Q8_0" else 1e-5
        assert np.abs(found - wanted).max() <= 0.51 * step
    with pytest.raises(AdapterError, match=r"llama\.cpp does not"):
        export_gguf_lora(folder, base, tmp_path / "x.gguf")
