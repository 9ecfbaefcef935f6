"""The memory of real processes: whatever a file claims, and whatever a legal one asks for."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.adapters.peft_folder import CONFIG_NAME, WEIGHTS_NAME
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.files.safetensors import encode_header
from tests.conftest import write_safetensors
from tests.gguf import encode
from tests.gguf.test_merge import llama_pairs

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")

#: What any command may take beyond what importing it takes, in MB.
ALLOWED = 100
MEBI = 1 << 20
#: Imports all that commands use, once, and runs each in a process forked from there.
_SERVER = """
import contextlib, importlib, json, os, pkgutil, signal, sys
import nola_edge.cli
from nola_edge.__main__ import main
for module in pkgutil.iter_modules(nola_edge.cli.__path__, "nola_edge.cli."):
    importlib.import_module(module.name)
import nola_edge.adapters.packed, nola_edge.export.gguf_lora, nola_edge.export.lora
import nola_edge.gguf.merge, nola_edge.gguf.verify, nola_edge.merge.verify, nola_edge.merge.write
with contextlib.suppress(ImportError):
    import gguf.quants

def run(arguments, said):
    signal.alarm(300)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(said, os.O_WRONLY), 2)
    os.dup2(0, 1)
    sys.argv = ["nola-edge", *arguments]
    try:
        main()
    finally:
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print("peak", line.split()[1], file=sys.stderr)

for line in sys.stdin:
    child = os.fork()
    if not child:
        run(*json.loads(line))
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """A function that runs a command; it returns the exit status, what was said, the peak in MB."""
    command = [sys.executable, "-c", _SERVER]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
        tempfile.NamedTemporaryFile("r+") as said,
    ):

        def run(*arguments):
            said.truncate(0)
            line = json.dumps([[str(argument) for argument in arguments], said.name])
            server.stdin.write(line.encode() + b"\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            said.seek(0)
            text, _, peak = said.read().rpartition("peak ")
            return status, text, int(peak) / 1024

        yield run


@pytest.fixture(scope="module")
def commands(run):
    """Runs commands, and knows the peak of one that does nothing."""
    return Commands(run, run("--version")[2])


@dataclasses.dataclass
class Commands:
    """Commands whose memory is looked at, beyond what one takes that does nothing."""

    run: Callable[..., tuple[int, str, float]]
    baseline: float

    def refused(self, *arguments, output=None):
        options = ["-o", output / named_as(arguments[1])] if output is not None else []
        status, said, peak = self.run(*arguments, *options)
        assert status == 2, said
        assert said.count("\n") == 1
        assert "; write -o" not in said
        assert peak - self.baseline < ALLOWED
        assert output is None or not (output / named_as(arguments[1])).exists()

    def done(self, *arguments, status=0):
        ended, said, peak = self.run(*arguments)
        assert ended == status, said
        assert peak - self.baseline < ALLOWED


def named_as(base):
    """A name for the output of a merge into a base."""
    if base.is_dir():
        return "out"
    return "out.gguf" if base.read_bytes()[:4] == b"GGUF" else "out.safetensors"


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
def test_a_hostile_header(tmp_path, commands, name):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    header = HEADERS[name]
    with (tmp_path / "base").open("wb") as file:
        length = 99_000_000 if header is None else len(header)
        file.write(length.to_bytes(8, "little") + (header or b"{"))
        file.truncate(8 + length)
    commands.refused("merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


INDICES = {
    "a hundred megabytes": None,
    "names without number": b'{"weight_map":' + many(b'"%d":"a"', MOST - 99) + b"}",
    "shards without number": b'{"weight_map":' + many(b'"%d":"%%d"', MOST - 99) + b"}",
    "other members": many(b'"%d":{}', MOST),
    "a list": b'{"weight_map":[' + b"[]," * (MOST // 3 - 99) + b"[]]}",
    "metadata": b'{"metadata":' + many(b'"%d":{}', MOST - 99) + b',"weight_map":{"a":"b"}}',
}


@pytest.mark.parametrize("name", INDICES)
def test_a_hostile_index(tmp_path, commands, name):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "model.safetensors.index.json").open("wb") as file:
        file.write(INDICES[name] or b"{")
        file.truncate(99_000_000 if INDICES[name] is None else file.tell())
    commands.refused("merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


@pytest.mark.parametrize("size", [999_000, 10_000_000])
@pytest.mark.parametrize("member", [b'"%d":{}', b'"%d":[[],[],[],[]]'])
def test_a_hostile_configuration(tmp_path, commands, size, member):
    write_safetensors(tmp_path / "base", {"m.weight": np.zeros((4, 4), np.float32)})
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    text = json.dumps(config)[:-1].encode() + b',"unknown":' + many(member, size - 2000) + b"}"
    (tmp_path / "adapter" / CONFIG_NAME).write_bytes(text)
    commands.refused("merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


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
def test_a_packed_file_of_many_modules(tmp_path, commands, name, count):
    adapter = trained_adapter({"m": (4, 4)}, r=1, num_basis=1)
    config = dataclasses.replace(
        adapter.config, modules_fingerprint=None, shapes_fingerprint=None, bookkeeping={}
    )
    names = (name % n if "%" in name else name for n in range(min(count, 500_000)))
    text = f'{{"config":{json.dumps(config.to_json())},"modules":[{",".join(names)}]}}'
    packed(tmp_path / "adapter", text[:3_990_000].encode(), count)
    if count == 100_000:
        commands.done("inspect", tmp_path / "adapter")
    write_safetensors(tmp_path / "base", {"m.weight": np.zeros((4, 4), np.float32)})
    commands.refused("merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


def test_a_header_of_as_many_tensors_as_may_be(tmp_path, commands):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    names = [f"{number:0100}" for number in range(99_999)]
    sparse(tmp_path / "base", [("m.weight", "F32", (4, 4), 64), *((n, "U8", (), 1) for n in names)])
    paths = [tmp_path / "base", tmp_path / "adapter"]
    commands.done("merge", *paths, "-q", "-o", tmp_path / "out.safetensors")


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
def test_a_gguf_header(tmp_path, commands, kind):
    trained_adapter({"m": (4, 4)}, r=1, num_basis=1).save(tmp_path / "adapter")
    (tmp_path / "base").write_bytes(gguf_header(kind, 60_000 if kind != "texts" else 10_000))
    commands.refused("merge", tmp_path / "base", tmp_path / "adapter", output=tmp_path)


@pytest.mark.parametrize(("kind", "outtype"), [("F16", None), ("F16", "q8_0"), ("Q8_0", None)])
def test_a_large_factor_in_gguf(tmp_path, commands, kind, outtype):
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
    commands.done("merge", *paths, "-q", *options, "-o", tmp_path / "out.gguf")
    commands.done("pack", paths[1], "--expect", paths[0], "-q", "-o", tmp_path / "a.nola")
    arguments = [paths[0], paths[1]]
    commands.done("verify", tmp_path / "out.gguf", *arguments)
    if kind == "Q8_0":
        arguments = [paths[1], "--base", paths[0], "-o", tmp_path / "lora.gguf"]
        commands.done("export", "gguf-lora", *arguments)


RANKS = {
    "beyond the weight": ((128, 192), 16384, 3),
    "as large as the weight": ((1536, 2048), 1536, 1),
    "one row": ((1, 20_000_000), 1, 1),
    "one column": ((3_000_000, 1), 1, 1),
}


@pytest.mark.parametrize("threads", [2, 16])
@pytest.mark.parametrize("name", RANKS)
def test_a_large_factor(tmp_path, commands, name, threads):
    shape, rank, count = RANKS[name]
    modules = {f"m{number}": shape for number in range(count)}
    nbytes = 2 * shape[0] * shape[1]
    sparse(tmp_path / "base", [(f"{m}.weight", "F16", shape, nbytes) for m in modules])
    adapter = trained_adapter(modules, r=rank, num_basis=2)
    adapter.save(tmp_path / "adapter")
    paths = [tmp_path / "base", tmp_path / "adapter"]
    options = ["-q", "--threads", threads]
    commands.done("merge", *paths, "-o", tmp_path / "out.safetensors", *options)
    commands.done("pack", paths[1], "--expect", paths[0], "-o", tmp_path / "a.nola", *options)
    if threads == 2 and shape[1] > 1:
        compare = [paths[0], paths[1], "--threads", threads]
        commands.done("verify", tmp_path / "out.safetensors", *compare)
        commands.done("verify", paths[0], *compare, status=1)
        commands.done("export", "lora", paths[1], "--base", paths[0], "-o", tmp_path / "l")


def test_many_adapters_at_once(tmp_path, commands):
    shape = (1024, 1024)
    sparse(tmp_path / "base", [("m.weight", "F16", shape, 2 * MEBI)])
    (tmp_path / "adapters").mkdir()
    for seed in range(40):
        adapter = trained_adapter({"m": shape}, r=256, num_basis=2, seed=seed)
        adapter.save(tmp_path / "adapters" / f"a{seed}")
    folders = sorted((tmp_path / "adapters").iterdir())
    commands.done("merge", tmp_path / "base", *folders, "--each", "-q", "-o", tmp_path / "o")


def test_whole_tensors(tmp_path, commands):
    """One takes the place of the base's tensor, in its dtype; another is new."""
    shape, rows = (4, 4), 52_000  # more than may be held at once
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
    commands.done("merge", *paths, "-q", "-o", tmp_path / "out.safetensors")
    compare = [paths[0], paths[1]]
    commands.done("verify", tmp_path / "out.safetensors", *compare)
    commands.done("export", "lora", paths[1], "--base", paths[0], "-o", tmp_path / "lora")
    commands.done("pack", paths[1], "--expect", paths[0], "-o", tmp_path / "packed.nola")
    commands.done("merge", paths[0], tmp_path / "packed.nola", "-o", tmp_path / "2.safetensors")
    commands.done("unpack", tmp_path / "packed.nola", "-o", tmp_path / "unpacked")
