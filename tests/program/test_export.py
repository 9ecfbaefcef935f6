"""`nola export gguf-lora` writes the bytes of the Python tool's, or says what that says."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.files.gguf import GgufFile
from tests.conftest import ISAS
from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import seeds
from tests.gguf.encode import ARRAY, BOOL, FLOAT32, STRING, UINT32, encode, llama_pairs, pair
from tests.gguf.test_file import BAD
from tests.gguf.test_merge import BLOCK, HEADS, KEY_HEADS, MODULES, adapter_of, arrays_of, write
from tests.program.conftest import Both

pytest.importorskip("gguf")

ARCHITECTURE = "general.architecture"
#: A block that GPT-2 and Phi-3 have in one tensor each; sizes (out, in).
FUSED = {
    "gpt2": {"transformer.h.0.attn.c_attn": ("attn_qkv", (48, 16)),
             "transformer.h.0.mlp.c_fc": ("ffn_up", (64, 16))},
    "phi3": {"model.layers.0.self_attn.qkv_proj": ("attn_qkv", (48, 16)),
             "model.layers.0.mlp.gate_up_proj": ("ffn_up", (64, 16)), "lm_head": (None, (50, 16))},
}  # fmt: skip


class Export(Both):
    """Exports with both tools."""

    def __call__(self, base, *adapters, options=(), **variables):
        """Return what both write, having compared what they say."""
        command = ["export", "gguf-lora", *adapters, "--base", base, *options]
        content, said = self.written(*command, output="lora.gguf", **variables)
        assert said[0] == said[1]
        return content

    def refuse(self, base, *adapters, options=(), output="lora.gguf"):
        """Return what both say."""
        command = [*adapters, "--base", base, "-o", self.folder / output, *options]
        return self.refused("export", "gguf-lora", *command)


@pytest.fixture
def export(nola, python_tool, tmp_path):
    return Export(nola, python_tool, tmp_path)


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base.gguf", arrays_of("Q8_0"))


def packed(adapter, path):
    adapter.pack(path)
    return path


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "beta_unit": 3.5}, {"r": 16},
                                     {"basis": "uniform"}])  # fmt: skip
@pytest.mark.parametrize("dtype", ["f32", "F16", "torch.half", "Float32"])
def test_one_adapter(export, base, tmp_path, options, dtype):
    adapter = packed(adapter_of(**options), tmp_path / "a.nola")
    data = export(base, adapter, options=("--dtype", dtype))
    (tmp_path / "lora.gguf").write_bytes(data)
    with GgufFile.open(tmp_path / "lora.gguf") as file:
        assert len(file.tensors) == 2 * len(MODULES)
        assert file.metadata["general.type"] == "adapter"


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_and_number_of_threads(export, base, tmp_path, isa):
    adapter = packed(adapter_of(r=8, num_basis=60), tmp_path / "a.nola")
    found = {
        export(base, adapter, options=options, NOLA_EDGE_ISA=isa)
        for options in ((), ("--dtype", "f16"))
    }
    assert len(found) == 2
    for threads in ("1", "3"):
        out = tmp_path / "out.gguf"
        done = export.nola("export", "gguf-lora", adapter, "--base", base, "-o", out,
                               "--threads", threads, NOLA_EDGE_ISA=isa)  # fmt: skip
        assert done.returncode == 0
        assert out.read_bytes() in found
        out.unlink()


def test_several_adapters_of_different_ranks_and_reach(export, base, tmp_path):
    q = BLOCK.format(0) + "self_attn.q_proj"
    some = trained_adapter({q: MODULES[q]}, r=6, num_basis=20, seed=8)
    a, b, c = (
        packed(adapter, tmp_path / f"{name}.nola")
        for name, adapter in {"a": adapter_of(), "b": adapter_of(r=2, seed=6, use_rslora=True),
                              "c": some}.items()
    )  # fmt: skip
    for dtype in ("f32", "f16"):
        export(base, f"{a}=0.5", f"{b}=-1.5", f"{c}=2", options=("--dtype", dtype))
    export(base, a, a)
    export(base, c, a)
    export(base, f"{a}=0.1")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(
    r=st.integers(1, 40),
    alpha=st.floats(1e-30, 1e30) | st.floats(1e-3, 1e3) | st.integers(1, 4096),
    weight=st.sampled_from(["1", "-1", "0.1", "1e-38", "1e10", "3.3333333"]),
)
def test_the_alpha_of_any_scaling(nola, python_tool, tmp_path_factory, r, alpha, weight):
    """Its last bit too, where s r is no float; and B where no alpha says it."""
    folder = tmp_path_factory.mktemp("alpha")
    module = BLOCK.format(0) + "self_attn.v_proj"
    adapter = trained_adapter({module: MODULES[module]}, r=r, num_basis=2)
    adapter = ne.Adapter(dataclasses.replace(adapter.config, lora_alpha=alpha), adapter.modules)
    path = packed(adapter, folder / "a.nola")
    base = write(folder / "base.gguf", arrays_of("F16"))
    results = []
    for number, tool in enumerate((python_tool, nola)):
        out = folder / f"{number}.gguf"
        done = tool("export", "gguf-lora", f"{path}={weight}", "--base", base, "-o", out)
        results.append((done.returncode, out.read_bytes() if done.returncode == 0 else b""))
    assert results[0] == results[1]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_rows_in_the_models_order(export, tmp_path, architecture, prefix):
    names = {module: prefix + module.removeprefix("model.") for module in MODULES}
    adapter = trained_adapter({names[m]: shape for m, shape in MODULES.items()}, r=4, num_basis=9)
    base = write(tmp_path / "base.gguf", arrays_of("F16"),
                 [pair(ARCHITECTURE, STRING, architecture)])  # fmt: skip
    export(base, packed(adapter, tmp_path / "a.nola"))


@pytest.mark.parametrize("architecture", FUSED)
def test_layers_that_hold_several_modules(export, tmp_path, architecture):
    modules = FUSED[architecture]
    shapes = {module: shape for module, (_, shape) in modules.items()}
    flag = architecture == "gpt2"  # (in, out) in the checkpoint, (out, in) in GGUF
    adapter = trained_adapter(shapes, r=4, num_basis=9, fan_in_fan_out=flag)
    arrays = {
        f"blk.0.{name}.weight" if name else "output.weight": np.ones(shape, np.float16)
        for name, shape in modules.values()
    }
    base = write(tmp_path / "base.gguf", arrays, [pair(ARCHITECTURE, STRING, architecture)])
    export(base, packed(adapter, tmp_path / "a.nola"))


def test_heads_of_each_block(export, tmp_path):
    adapter = packed(adapter_of(), tmp_path / "a.nola")

    def with_heads(*counts):
        keys = ("llama.attention.head_count", "llama.attention.head_count_kv")
        pairs = [pair(ARCHITECTURE, STRING, "llama")]
        pairs += [pair(key, *value) for key, value in zip(keys, counts, strict=False) if value]
        return write(tmp_path / "heads.gguf", arrays_of("F16"), pairs)

    each = (ARRAY, (UINT32, [HEADS, HEADS])), (ARRAY, (UINT32, [KEY_HEADS] * 2))
    one = export(with_heads((UINT32, HEADS), (UINT32, KEY_HEADS)), adapter)
    assert export(with_heads(*each), adapter) == one
    assert export(with_heads(each[0], None), adapter) != one
    for bad in [(), ((UINT32, 0),), ((UINT32, 7),), ((ARRAY, (UINT32, [4])),),
                ((STRING, "four"),), ((FLOAT32, 4.0),), ((BOOL, 1),), ((BOOL, 0),),
                ((UINT32, 1 << 20),), ((ARRAY, (STRING, ["4"])),), ((ARRAY, (UINT32, [])),),
                ((ARRAY, (UINT32, [4] * 5000)),), (each[0], (UINT32, 5))]:  # fmt: skip
        export.refuse(with_heads(*bad), adapter)


def test_bases_that_are_none(export, base, tmp_path):
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    arrays = arrays_of("F16")
    of = {
        "type": [pair("general.type", STRING, "adapter"), *llama_pairs()],
        "split": [*llama_pairs(), pair("split.count", UINT32, 2)],
        "other": [pair(ARCHITECTURE, STRING, "mamba")],
        "number": [pair(ARCHITECTURE, UINT32, 3)],
        "nothing": [],
        "quotes": [pair(ARCHITECTURE, STRING, "it's")],
        "both": [pair(ARCHITECTURE, STRING, 'it\'s "x" \\ y')],
        "long": [pair("general.type", STRING, "x" * 3000)],
        "odd": [pair("general.type", UINT32, 1)],
        "text": [*llama_pairs(), pair("split.count", STRING, "1")],
    }
    for name, pairs in of.items():
        export.refuse(write(tmp_path / f"{name}.gguf", arrays, pairs), adapter)
    for value in ((BOOL, 1), (BOOL, 0), (FLOAT32, 1.0), (FLOAT32, -0.0), (UINT32, 0)):
        pairs = [*llama_pairs(), pair("split.count", *value)]
        export(write(tmp_path / "whole.gguf", arrays, pairs), adapter)
    lacking = {name: array for name, array in arrays.items() if "blk.1.ffn_down.w" not in name}
    export.refuse(write(tmp_path / "lacking.gguf", lacking), adapter)
    for name, array in {"vector": np.ones(64, np.float32), "empty": np.ones((0, 64), np.float32),
                        "shape": np.ones((64, 64), np.float32)}.items():  # fmt: skip
        other = {**arrays, "blk.1.ffn_down.weight": array}
        export.refuse(write(tmp_path / f"{name}.gguf", other), adapter)
    export.refuse(tmp_path / "missing.gguf", adapter)
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    assert "git lfs pull" in export.refuse(tmp_path / "lfs.gguf", adapter)
    (tmp_path / "broken.gguf").write_bytes(base.read_bytes()[:400])
    export.refuse(tmp_path / "broken.gguf", adapter)


def test_adapters_that_do_not_fit(export, base, tmp_path):
    q = BLOCK.format(0) + "self_attn.q_proj"
    names = ["model.layers.0.self_attn.rotary", "model.layers.x.mlp.up_proj", "wte",
             "model.layers.00.mlp.up_proj", "model.layers.1234567.mlp.up_proj", "lm_head",
             "model.layers.9.self_attn.q_proj"]  # fmt: skip
    for number, name in enumerate(names):
        adapter = trained_adapter({name: (64, 64)}, r=2, num_basis=4)
        export.refuse(base, packed(adapter, tmp_path / f"{number}.nola"))
    twice = trained_adapter({q: (64, 64), q.removeprefix("model."): (64, 64)}, r=2, num_basis=4)
    export.refuse(base, packed(twice, tmp_path / "twice.nola"))
    whole = adapter_of()
    whole.whole_tensors["model.norm.weight"] = np.ones(4, np.float32)
    config = dataclasses.replace(whole.config, modules_to_save=("norm",))
    whole = ne.Adapter(config, whole.modules, whole.whole_tensors)
    export.refuse(base, packed(whole, tmp_path / "whole.nola"))
    large = adapter_of()
    large = large.replace({m: (c.alpha * 1e6, c.beta) for m, c in large.modules.items()})
    path = packed(large, tmp_path / "large.nola")
    assert "is not finite in F16" in export.refuse(base, path, options=("--dtype", "f16"))
    larger = adapter_of()
    for factor in "ab":
        infinite = {
            m: (c.alpha * 0 + 3e38, c.beta) if factor == "a" else (c.alpha, c.beta * 0 + 3e38)
            for m, c in larger.modules.items()
        }
        path = packed(larger.replace(infinite), tmp_path / f"infinite-{factor}.nola")
        for dtype in ("f32", "f16"):
            said = export.refuse(base, path, options=("--dtype", dtype))
            assert f"lora_{factor}: is not finite in F32" in said
    path = packed(large, tmp_path / "larger.nola")
    export.refuse(base, f"{path}=1e39")
    export.refuse(base, f"{path}=x")
    export.refuse(base, tmp_path / "missing.nola")
    export.refuse(base, base)
    (tmp_path / "broken.gguf").write_bytes(base.read_bytes()[:400])
    export.refuse(tmp_path / "broken.gguf", tmp_path / "whole.nola")
    biased = dataclasses.replace(large.config, bias="all")
    with_bias = write(tmp_path / "b.gguf", {**arrays_of("F16"), "blk.0.attn_q.bias": np.ones(64)
                                            .astype(np.float32)})  # fmt: skip
    path = packed(ne.Adapter(biased, large.modules), tmp_path / "biased.nola")
    assert "announces trained biases" in export.refuse(with_bias, path)


def test_outputs_and_options(export, base, tmp_path):
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    for output in ("lora.bin", "lora", "new/", "-", "a.nola", "base.gguf", "base.gguf/x.gguf"):
        export.refuse(base, adapter, output=output)
    for options in (["--dtype", "bf16"], ["--check-base"], ["--dtype"], ["-o"]):
        export.refuse(base, adapter, options=options)
    (tmp_path / "lora.gguf").write_bytes(base.read_bytes())
    export.refuse(base, adapter)
    export.refuse(base, adapter, options=["--force"])
    (tmp_path / "lora.gguf").write_bytes(export(base, adapter))
    export.refuse(base, adapter)
    for tool in (export.python_tool, export.nola):
        done = tool("export", "gguf-lora", adapter, "--base", base, "--force", "--no-check-base",
                    "-o", tmp_path / "lora.gguf", "--json")  # fmt: skip
        found = json.loads(done.stdout)
        assert (found["dtype"], found["base_checked"]) == ("F32", False)
        assert found["bytes"] == (tmp_path / "lora.gguf").stat().st_size
        assert "no fingerprint of a GGUF file" in found["notes"][0]


def test_the_group(nola):
    done = nola("export")
    assert (done.returncode, done.stdout) == (2, "")
    assert "gguf-lora  Write an exact LoRA file" in done.stderr
    assert nola("export", "--help").stdout == done.stderr
    assert "use nola-edge export lora of the Python package" in nola.refused("export", "lora", "x")
    assert nola.refused("export", "x") == "No such command 'x'. (see nola export --help)"
    assert "Usage: nola export gguf-lora " in nola("export", "gguf-lora", "-h").stdout
    assert "use nola-edge export gguf-lora of the Python package" in nola.refused(
        "export", "gguf-lora", "x", "--base", "x", "-o", "x", "--drawn-on", "a100"
    )


@pytest.mark.parametrize("case", BAD)
def test_headers_that_lie(export, tmp_path, case):
    (tmp_path / "bad.gguf").write_bytes(BAD[case][0])
    with pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path)
        adapter = packed(adapter_of(), tmp_path / "a.nola")
        if BAD[case][0][:4] == b"GGUF":
            export.refuse("bad.gguf", adapter)
        else:  # to Python it might be a folder, or an id of the Hub
            assert "is not a GGUF file" in export.nola.refused(
                "export", "gguf-lora", adapter, "--base", "bad.gguf", "-o", "o.gguf"
            )


@pytest.mark.parametrize("seed", range(8))
def test_any_damage(export, base, tmp_path, seed):
    """Both refuse a file in the same words, or write the same bytes."""
    rng = random.Random(seed)
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    found = [base.read_bytes(), encode(llama_pairs(), arrays_of("F16")), *seeds("gguf")]
    damaged = tmp_path / "damaged.gguf"
    for _ in range(30):
        data = bytearray(rng.choice(found[:2] if rng.random() < 0.8 else found))
        data = bytearray(mutate("gguf", bytes(data), rng) or data)
        header = min(len(data), 2400)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(4, header)] = rng.choice([0, 1, 255, rng.randrange(256)])
        damaged.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(24, 3000)])])
        ends = []
        for number, tool in enumerate((export.python_tool, export.nola)):
            out = tmp_path / f"{number}.gguf"
            done = tool("export", "gguf-lora", adapter, "--base", damaged, "-o", out)
            said = done.stderr.removeprefix(f"{tool.name}: ").replace("\ufffd", "")
            ends.append((done.returncode, said, out.read_bytes() if out.exists() else b""))
            out.unlink(missing_ok=True)
        assert ends[0] == ends[1]
