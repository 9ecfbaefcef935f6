"""The memory of real processes: whatever a file claims, and whatever a legal one asks for."""

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.adapter.files import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.safetensors_file import encode_header
from nola_edge.synthetic import trained_adapter
from tests.conftest import write_safetensors
from tests.gguf import encode
from tests.gguf.test_merge import llama_pairs

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

#: What any command may take beyond what importing it takes, in MB.
ALLOWED = 100
MEBI = 1 << 20
_PROGRAM = """
import sys
from nola_edge.__main__ import main
if {gguf}:
    import gguf.quants
try:
    main()
finally:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", line.split()[1], file=sys.stderr)
"""


def run(*arguments, gguf=False):
    """Run a command; return its exit status, what it said, and its peak of memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(gguf=gguf), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    said, _, peak = done.stderr.rpartition("peak ")
    return done.returncode, said, int(peak) / 1024


@pytest.fixture(scope="module")
def baseline():
    """The peak of a command that does nothing."""
    return {gguf: run("--version", gguf=gguf)[2] for gguf in (False, True)}


def sparse(path, entries, fill=b""):
    """Write a safetensors file whose tensors are zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.write(encode_header(entries) + fill)
        file.truncate(file.tell() - len(fill) + sum(nbytes for *_, nbytes in entries))


def many(member, most):
    """A JSON object of numbered members, of just below so many bytes."""
    size = len(member % 0) + 8
    return b"{" + b",".join(member % number for number in range(most // size)) + b"}"


MOST = 16 * MEBI
HEADERS = {
    "as large as the format allows": None,
    "tensors without number": many(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', MOST),
    "other members": many(b'"%d":[]', MOST),
    "a list of lists": b'{"a":[' + b"[]," * (MOST // 3 - 9) + b"[]]}",
    "metadata": b'{"__metadata__":' + many(b'"%d":""', MOST - 99) + b"}",
    "nested": b'{"a":' * 100_000,
    "nested lists": b'{"a":' + b"[" * (MOST - 99),
    "a long name": b'{"' + b"a" * (MOST - 99) + b'":1}',
    "a long number": b'{"a":' + b"1" * (MOST - 99) + b"}",
    "one wide character": b'{"' + "\N{SNOWMAN}\N{GRINNING FACE}".encode() + b"a" * (MOST - 99),
    "spaces": b"{" + b" " * (MOST - 2) + b"}",
    "not JSON": b"{" + b'"' * (MOST - 2),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header(tmp_path, baseline, name):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    header = HEADERS[name]
    with (tmp_path / "base").open("wb") as file:
        length = 99_000_000 if header is None else len(header)
        file.write(length.to_bytes(8, "little") + (header or b"{"))
        file.truncate(8 + length)
    check_refused(baseline, "merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


INDICES = {
    "a hundred megabytes": None,
    "names without number": b'{"weight_map":' + many(b'"%d":"a"', MOST - 99) + b"}",
    "shards without number": b'{"weight_map":' + many(b'"%d":"%%d"', MOST - 99) + b"}",
    "other members": many(b'"%d":{}', MOST),
    "a list": b'{"weight_map":[' + b"[]," * (MOST // 3 - 99) + b"[]]}",
    "metadata": b'{"metadata":' + many(b'"%d":{}', MOST - 99) + b',"weight_map":{"a":"b"}}',
}


@pytest.mark.parametrize("name", INDICES)
def test_a_hostile_index(tmp_path, baseline, name):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "model.safetensors.index.json").open("wb") as file:
        file.write(INDICES[name] or b"{")
        file.truncate(99_000_000 if INDICES[name] is None else file.tell())
    check_refused(baseline, "merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


@pytest.mark.parametrize("size", [999_000, 10_000_000])
@pytest.mark.parametrize("member", [b'"%d":{}', b'"%d":[[],[],[],[]]'])
def test_a_hostile_configuration(tmp_path, baseline, size, member):
    write_safetensors(tmp_path / "base", {"m.weight": np.zeros((4, 4), np.float32)})
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    text = json.dumps(config)[:-1].encode() + b',"unknown":' + many(member, size - 2000) + b"}"
    (tmp_path / "adapter" / CONFIG_NAME).write_bytes(text)
    check_refused(baseline, "merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


def packed(path, about, count):
    """Write a packed adapter of one coefficient for each of two factors."""
    text = np.frombuffer(zlib.compress(about, 9), np.uint8)
    entries = [
        ("coefficients", "F32", (2 * count,), 8 * count),
        ("about", "U8", text.shape, text.size),
    ]
    header = encode_header(entries, {"format": "nola-packed-1"})
    path.write_bytes(header + bytes(8 * count) + text.tobytes())


@pytest.mark.parametrize(
    ("name", "count"),
    [('"%x"', 100_000), ('"%x"', 1 << 20), ("[]", 1 << 20), ('{"%x":0}', 1 << 20)],
)
def test_a_packed_file_of_many_modules(tmp_path, baseline, name, count):
    adapter = trained_adapter({"m": (4, 4)}, r=1, num_basis=1)
    config = dataclasses.replace(
        adapter.config, modules_fingerprint=None, shapes_fingerprint=None, bookkeeping={}
    )
    names = (name % n if "%" in name else name for n in range(min(count, 500_000)))
    text = f'{{"config":{json.dumps(config.to_json())},"modules":[{",".join(names)}]}}'
    packed(tmp_path / "adapter", text[:3_990_000].encode(), count)
    if count == 100_000:
        check_done(baseline, "inspect", tmp_path / "adapter")
    write_safetensors(tmp_path / "base", {"m.weight": np.zeros((4, 4), np.float32)})
    check_refused(baseline, "merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


def check_refused(baseline, *arguments, output=None, gguf=False):
    options = ["-o", output / "out"] if output is not None else []
    status, said, peak = run(*arguments, *options, gguf=gguf)
    assert status == 2, said
    assert said.count("\n") == 1
    assert peak - baseline[gguf] < ALLOWED
    assert output is None or not (output / "out").exists()


def check_done(baseline, *arguments, gguf=False):
    status, said, peak = run(*arguments, gguf=gguf)
    assert status == 0, said
    assert peak - baseline[gguf] < ALLOWED


def test_a_header_of_as_many_tensors_as_may_be(tmp_path, baseline):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    names = [f"{number:0100}" for number in range(99_999)]
    sparse(tmp_path / "base", [("m.weight", "F32", (4, 4), 64), *((n, "U8", (), 1) for n in names)])
    paths = [tmp_path / "base", tmp_path / "adapter"]
    check_done(baseline, "merge", *paths, "-q", "-o", tmp_path / "out")


def gguf_header(kind, count):
    """A header of many entries; what follows it does not matter."""
    pairs = [encode.pair("general.architecture", encode.STRING, "llama")]
    tensors = []
    if kind == "keys":
        pairs += [encode.pair(f"{n:060}", encode.UINT64, 2**60 + n) for n in range(count)]
    elif kind == "texts":
        pairs += [encode.pair(f"{n:05}", encode.STRING, "x" * 4096) for n in range(count)]
    elif kind == "lists":
        values = encode.UINT64, [2**60] * 4096
        pairs += [encode.pair(f"{n:05}", encode.ARRAY, values) for n in range(count // 64)]
    elif kind == "strings":
        values = encode.STRING, [""] * (count * 32)
        pairs += [encode.pair("tokens", encode.ARRAY, values)]
    else:
        tensors = [encode.tensor(f"{n:063}", (1, 1, 1, 1), 1, 32 * n) for n in range(count)]
    data = encode.padded(encode.header(pairs, tensors))
    return data + bytes(32 * len(tensors))


@pytest.mark.parametrize("kind", ["keys", "texts", "lists", "strings", "tensors"])
def test_a_gguf_header(tmp_path, baseline, kind):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    (tmp_path / "base").write_bytes(gguf_header(kind, 60_000 if kind != "texts" else 10_000))
    check_refused(
        baseline, "merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path, gguf=True
    )


@pytest.mark.parametrize(("kind", "outtype"), [("F16", None), ("F16", "q8_0"), ("Q8_0", None)])
def test_a_large_factor_in_gguf(tmp_path, baseline, kind, outtype):
    pytest.importorskip("gguf")
    module, shape = "model.layers.0.self_attn.q_proj", (512, 512)
    adapter = trained_adapter({module: shape}, r=8192, num_basis=2)
    adapter.save(tmp_path / "adapter")
    rows = np.zeros(shape, np.float16)
    array = rows if kind == "F16" else (kind, shape, bytes(shape[0] * shape[1] // 32 * 34))
    data = encode.encode(llama_pairs(4, 4), {"blk.0.attn_q.weight": array})
    (tmp_path / "base.gguf").write_bytes(data)
    paths = [tmp_path / "base.gguf", tmp_path / "adapter"]
    options = ["--outtype", outtype] if outtype else []
    check_done(baseline, "merge", *paths, "-q", *options, "-o", tmp_path / "out.gguf", gguf=True)
    arguments = ["--base", paths[0], "--adapter", paths[1]]
    check_done(baseline, "verify", tmp_path / "out.gguf", *arguments, gguf=True)
    if kind == "Q8_0":
        arguments = [paths[1], "--base", paths[0], "-o", tmp_path / "lora.gguf"]
        check_done(baseline, "export", "gguf-lora", *arguments, gguf=True)


RANKS = {
    "beyond the weight": ((128, 192), 16384, 3),
    "as large as the weight": ((1536, 2048), 1536, 1),
    "one row": ((1, 20_000_000), 1, 1),
    "one column": ((3_000_000, 1), 1, 1),
}


@pytest.mark.parametrize("threads", [2, 16])
@pytest.mark.parametrize("name", RANKS)
def test_a_large_factor(tmp_path, baseline, name, threads):
    shape, rank, count = RANKS[name]
    modules = {f"m{number}": shape for number in range(count)}
    nbytes = 2 * shape[0] * shape[1]
    sparse(tmp_path / "base", [(f"{m}.weight", "F16", shape, nbytes) for m in modules])
    adapter = trained_adapter(modules, r=rank, num_basis=2)
    adapter.save(tmp_path / "adapter")
    paths = [tmp_path / "base", tmp_path / "adapter"]
    options = ["-q", "--threads", threads]
    check_done(baseline, "merge", *paths, "-o", tmp_path / "out", *options)
    if threads == 2 and shape[1] > 1:
        compare = ["--base", paths[0], "--adapter", paths[1], "--threads", threads]
        check_done(baseline, "verify", tmp_path / "out", *compare)
        check_done(baseline, "export", "lora", paths[1], "--base", paths[0], "-o", tmp_path / "l")


def test_many_adapters_at_once(tmp_path, baseline):
    shape = (1024, 1024)
    sparse(tmp_path / "base", [("m.weight", "F16", shape, 2 * MEBI)])
    (tmp_path / "adapters").mkdir()
    for seed in range(40):
        adapter = trained_adapter({"m": shape}, r=256, num_basis=2, seed=seed)
        adapter.save(tmp_path / "adapters" / f"a{seed}")
    folders = sorted((tmp_path / "adapters").iterdir())
    check_done(baseline, "merge", tmp_path / "base", *folders, "--each", "-q", "-o", tmp_path / "o")


def test_whole_tensors(tmp_path, baseline):
    """One takes the place of the base's tensor, in its dtype; another is new."""
    shape, rows = (4, 4), 1 << 16
    embedding = (rows, 512)
    base = [("m.weight", "F32", shape, 64), ("embed.weight", "F16", embedding, 1024 * rows)]
    sparse(tmp_path / "base", base)
    adapter = trained_adapter({"m": shape}, r=1, num_basis=1)
    config = dataclasses.replace(adapter.config, modules_to_save=("embed", "head"))
    Adapter(config, adapter.modules).save(tmp_path / "adapter")
    weights = tmp_path / "adapter" / WEIGHTS_NAME
    coefficients = [(f"base_model.model.m.nola_{f}", "F32", (1,), 4) for f in ("alpha", "beta")]
    nbytes = rows * 512 * 4
    whole = [(f"base_model.model.{n}.weight", "F32", embedding, nbytes) for n in ("embed", "head")]
    sparse(weights, coefficients + whole)
    paths = [tmp_path / "base", tmp_path / "adapter"]
    check_done(baseline, "merge", *paths, "-q", "-o", tmp_path / "out")
    compare = ["--base", paths[0], "--adapter", paths[1]]
    check_done(baseline, "verify", tmp_path / "out", *compare)
    check_done(baseline, "export", "lora", paths[1], "--base", paths[0], "-o", tmp_path / "lora")
    check_done(baseline, "pack", paths[1], "-o", tmp_path / "packed")
    check_done(baseline, "unpack", tmp_path / "packed", "-o", tmp_path / "unpacked")
