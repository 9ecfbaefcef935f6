"""A packed adapter is what it was when it was packed, or is refused."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.demo.scoring import DATA
from nola_edge.errors import AdapterError, NolaEdgeError
from tests.conftest import snapshot, tiny_adapter, with_whole


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """An adapter with a whole tensor, in some kilobytes."""
    path = tmp_path_factory.mktemp("packed") / "a.nola"
    adapter = tiny_adapter()
    with_whole(adapter, **{"norm.weight": np.ones(40, np.float32)}).pack(path)
    return path


def parts(path: Path) -> tuple[dict, bytes]:
    """Return header and data, read as the format's document says."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


def test_the_hash_is_that_of_the_document(packed):
    header, data = parts(packed)
    metadata = header.pop("__metadata__")
    digest = hashlib.sha256()
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        shape = "x".join(map(str, header[name]["shape"]))
        digest.update(f"{name} {header[name]['dtype']} {shape}\n".encode() + data[begin:end])
    assert metadata == {"format": "nola-packed-2", "sha256": digest.hexdigest()}


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
def test_no_bit_may_change(packed, place, bit, tmp_path_factory):
    data = bytearray(packed.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "a.nola").write_bytes(data)
    before = snapshot(folder)
    with pytest.raises(NolaEdgeError) as caught:
        ne.Adapter.load(folder / "a.nola")
    assert str(caught.value).isprintable()
    assert snapshot(folder) == before


def test_the_last_bit_of_a_coefficient(packed, tmp_path):
    """Which no other check could notice."""
    data = bytearray(packed.read_bytes())
    header, _ = parts(packed)
    begin = 8 + int.from_bytes(data[:8], "little") + header["coefficients"]["data_offsets"][0]
    data[begin] ^= 1
    (tmp_path / "a.nola").write_bytes(data)
    with pytest.raises(AdapterError, match=r"a.nola: sha256: is .* the file was damaged or edited"):
        ne.Adapter.load(tmp_path / "a.nola")


def test_an_edited_rank(packed, tmp_path):
    header, data = parts(packed)
    begin, end = header["about"]["data_offsets"]
    about = zlib.decompress(data[begin:end])
    edited = about.replace(b'"r":4', b'"r":5')
    assert edited != about
    for level in range(10):  # of just as many bytes, so that nothing else changes
        new = zlib.compress(edited, level)
        if len(new) <= end - begin:
            break
    new += zlib.compress(b"")[: end - begin - len(new)]
    raw = packed.read_bytes()
    start = len(raw) - len(data)
    (tmp_path / "a.nola").write_bytes(raw[: start + begin] + new + raw[start + begin + len(new) :])
    with pytest.raises(AdapterError, match=r"sha256: is .* the contents have"):
        ne.Adapter.load(tmp_path / "a.nola")


@pytest.mark.parametrize("stated", [None, "", "0" * 64])
def test_a_hash_that_is_missing_or_another(packed, stated, tmp_path):
    header, data = parts(packed)
    header["__metadata__"].pop("sha256")
    if stated is not None:
        header["__metadata__"]["sha256"] = stated
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "a.nola").write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(AdapterError, match="sha256: is "):
        ne.Adapter.load(tmp_path / "a.nola")


def test_the_first_format_is_read_and_written_again_as_the_second(tmp_path):
    path = DATA / "read.nola"
    assert parts(path)[0]["__metadata__"] == {"format": "nola-packed-1"}
    adapter = ne.Adapter.load(path)
    adapter.pack(tmp_path / "again.nola")
    again = ne.Adapter.load(tmp_path / "again.nola")
    assert again.config == adapter.config
    for name, coefficients in adapter.modules.items():
        assert again.modules[name].alpha.tobytes() == coefficients.alpha.tobytes()
        assert again.modules[name].beta.tobytes() == coefficients.beta.tobytes()
