"""Make the files that fuzzing begins with: ``python -m tests.fuzz.seeds FOLDER``.

Each reader gets a folder of small files with every feature that it knows, and a dictionary of the
words that a mutation would hardly spell.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nola_edge import Adapter
from nola_edge.adapters import ExpectedResult
from nola_edge.adapters.nola_config import BOOKKEEPING
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import BITS
from nola_edge.files.content_hash import hash_of_list
from nola_edge.files.gguf_types import TENSOR_TYPES
from nola_edge.files.safetensors import encode_header
from tests.fuzz.readers import PARTS
from tests.gguf import encode as gguf

_MODULES = {"layers.0.q": (24, 40), "layers.1.q": (40, 24)}
_HALVES = np.arange(6, dtype=np.float16)


def seeds(reader: str) -> Iterator[bytes]:
    """Yield the files that one reader's fuzzing begins with, all of them accepted."""
    return {
        "safetensors": _safetensors,
        "packed": _packed,
        "gguf": _gguf,
        "configuration": _configurations,
    }[reader]()


def words(reader: str) -> list[str]:
    """Return a reader's words."""
    config = _adapter().config.to_json()
    return {
        "safetensors": [
            "__metadata__",
            "dtype",
            "shape",
            "data_offsets",
            *BITS,
            "\\ud800",
            "1e400",
        ],
        "packed": [
            *config,
            "about",
            "scales",
            "config",
            "modules",
            "expected",
            *ExpectedResult._fields,
            "coefficient_bits",
            "exact_first_alpha",
            "\\ud800",
        ],
        "gguf": ["GGUF", "general.alignment", "general.architecture", "llama"],
        "configuration": [*config, *sorted(BOOKKEEPING), "nola_only", "1e400", "\\ud800", "NaN"],
    }[reader]


def _safetensors() -> Iterator[bytes]:
    yield encode_header([])
    yield encode_header([], {"format": "pt"})
    for dtype, bits in BITS.items():
        yield encode_header([("a.weight", dtype, (4, 2), bits)]) + bytes(bits)
    entries = [("é", "F32", (), 4), ("b", "BF16", (1, 3), 6), ("c", "I8", (0, 7), 0)]
    yield encode_header(entries, {"format": "pt", "": "x"}) + bytes(10)
    header = {
        "late": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]},
        "early": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    text = json.dumps(header).encode()
    yield len(text).to_bytes(8, "little") + text + b"12345"


def _adapter(**options: object) -> Adapter:
    return trained_adapter(_MODULES, **{"r": 4, "num_basis": 5, "seed": 1, **options})


def _packed() -> Iterator[bytes]:
    plain = _adapter(use_rslora=True)
    config = {**plain.config.to_json(), "modules_to_save": ["head"]}
    factors = [values for c in plain.modules.values() for values in (c.alpha, c.beta)]
    names = list(plain.modules)
    about = json.dumps({"config": config, "modules": names}).encode()
    yield PARTS.join([about, np.concatenate(factors).tobytes()])
    yield PARTS.join([about, np.concatenate(factors).tobytes(), b"", _HALVES.tobytes()])
    plain_config, entries = plain.config.to_json(), [result.to_json() for result in _expected()]
    about = json.dumps({"config": plain_config, "modules": names, "expected": entries}).encode()
    yield PARTS.join([about, np.concatenate(factors).tobytes()])
    for bits in (3, 4, 8):
        tensors = _adapter(basis="uniform").quantize(bits)
        yield _packed_file(tensors)
        config = tensors.config.to_json()
        about = json.dumps({"config": config, "modules": names}).encode()
        size = (5 * bits + 7) // 8
        zero = np.packbits(
            [b for _ in range(5) for b in [0] * (bits - 1) + [1]], bitorder="little"
        ).tobytes()
        assert len(zero) == size
        yield PARTS.join([about, zero * 4, np.full(6, 0.5, "<f4").tobytes()])
    yield _packed_file(plain)
    yield _packed_file(plain, _expected())


def _expected() -> list[ExpectedResult]:
    files = {"config.json": "0" * 64, "sub/é.txt": "f" * 64}
    return [
        ExpectedResult("base", "folder", "1" * 32, hash_of_list(files), files),
        ExpectedResult("base.gguf", "gguf", "2" * 32, "a" * 64),
        ExpectedResult("é", "safetensors", "3" * 32, "b" * 64),
    ]


def _packed_file(adapter: Adapter, expect: Iterable[ExpectedResult] = ()) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "packed.nola")
        adapter.pack(path, expect=expect)
        return path.read_bytes()


def _gguf() -> Iterator[bytes]:
    floats = np.arange(6, dtype=np.float32).reshape(2, 3)
    yield gguf.encode([], {})
    yield gguf.encode(gguf.llama_pairs(), {"a": floats, "b": _HALVES})
    for alignment, version in itertools.product((1, 8, 64), (2, 3)):
        pairs = [
            gguf.pair("general.alignment", gguf.UINT32, alignment),
            gguf.pair("x", gguf.FLOAT32, float("nan")),
            gguf.pair("big", gguf.UINT64, 2**64 - 1),
            gguf.pair("list", gguf.ARRAY, (gguf.UINT8, [1, 2])),
            gguf.pair("none", gguf.ARRAY, (gguf.STRING, [])),
        ]
        data = gguf.encode(pairs, {"a": floats, "empty": floats[:0]}, alignment)
        yield data[:4] + version.to_bytes(4, "little") + data[8:]
    blocks = {f"t.{name}": (name, (1, TENSOR_TYPES[name].block)) for name in ("Q4_0", "Q4_K")}
    arrays = {
        name: (kind, shape, bytes(TENSOR_TYPES[kind].nbytes))
        for name, (kind, shape) in blocks.items()
    }
    yield gguf.encode([], arrays)


def _configurations() -> Iterator[bytes]:
    config = _adapter().config.to_json()
    changes: list[dict[str, object]] = [
        {},
        {"use_rslora": True, "basis": "uniform", "seed": 2**63 - 1, "fan_in_fan_out": True},
        {"coefficient_bits": 4, "exact_first_alpha": True, "lora_alpha": 0.1},
        {"coefficient_bits": 4, "lora_alpha": 0.1, "bias": "nola_only", "modules_to_save": ["é"]},
        {"unknown": None, "also": [], "r": 65536, "num_basis_a": 2**20},
        {name: {"x": [1, 2.5, None, True]} for name in sorted(BOOKKEEPING)},
    ]
    for change in changes:
        yield json.dumps({**config, **change}, indent=1).encode()


def write(folder: Path) -> None:
    """Write every reader's files and words below a folder."""
    for reader in ("safetensors", "packed", "gguf", "configuration"):
        corpus = folder / reader
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds(reader)):
            (corpus / f"seed-{number:02d}").write_bytes(data)
        lines = [json.dumps(word) for word in words(reader)]
        (folder / f"{reader}.dict").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
