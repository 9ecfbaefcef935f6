"""Files of torch.save are refused unread, whatever they hold, with two commands to convert them."""

import io
import os
import pickle
import re
import sys
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.convert import convert_checkpoint
from nola_edge.errors import FormatError
from tests.adapters.public_nola.checkpoints import gpt2_tensors, write_folder
from tests.cli.test_cli import run
from tests.conftest import snapshot, write_safetensors


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def archive(member, data, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr(member, data)
    return buffer.getvalue()


def nested_pairs(steps):
    """Return the pickle of a dictionary whose key takes 2 ** steps to hash."""
    return b"\x80\x02})q\x000" + b"h\x00h\x00\x86q\x000" * steps + b"h\x00K\x01s."


HOSTILE = {
    "endless": archive("x/data.pkl", nested_pairs(60)),
    "upper case": archive(
        "x/DATA.PKL", b"\x80\x02c__builtin__\nbytearray\nJ\x00\x5e\xd0\xb2\x85R."
    ),
    "a pickle of 60 MB": archive("x/data.pkl", b"\x80\x02" + b"N0" * 30_000_000 + b"}."),
    "compressed": archive("x/data.pkl", bytes(10_000_000), zipfile.ZIP_DEFLATED),
    "before zip": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "cut": archive("x/data.pkl", b"\x80\x02}.")[:30],
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("folder", [False, True])
def test_none_is_read(tmp_path, monkeypatch, hostile, folder):
    if folder:
        write_folder(tmp_path / "in")
        (tmp_path / "in" / "adapter_model.safetensors").unlink()
    path = tmp_path / "in" / "adapter_model.bin" if folder else tmp_path / "model.pt"
    path.write_bytes(HOSTILE[hostile])
    before = snapshot(tmp_path)
    taken = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: taken.append(a[1]) or pread(*a))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(pickle, "load", None)
    with pytest.raises(
        FormatError, match=r"is a file written by torch\.save, which can run code"
    ) as caught:
        convert_checkpoint(path.parent if folder else path, tmp_path / "out", drawn_on="cpu")
    assert str(caught.value).isprintable()
    assert sum(taken) < 100
    assert snapshot(tmp_path) == before


def test_the_command_line_prints_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"x": Bomb(mark)}))
    before = snapshot(tmp_path)
    done = run("convert", "model.pt", "-o", "out", "--drawn-on", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "nola-edge: model.pt: is a file written by torch.save, which can run co"
    )
    assert "run: python -c 'import sys, torch; " in done.stderr
    assert done.stderr.endswith("' model.pt; then: give model.safetensors\n")
    assert snapshot(tmp_path) == before


def test_what_was_made_already_is_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04" + bytes(30))
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(
        FormatError, match=r"if model\.safetensors beside it was made from it, give th"
    ):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "out")


@given(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=60),
    st.integers(1, 200),
)
def test_the_line_is_whole_for_any_name(tmp_path_factory, name, length):
    folder = tmp_path_factory.mktemp("in") / ("f" * length)
    folder.mkdir()
    (folder / f"{name}.pt").write_bytes(b"PK\x03\x04" + bytes(30))
    with pytest.raises(FormatError) as caught:
        convert_checkpoint(folder / f"{name}.pt", folder / "out")
    text = str(caught.value)
    assert text.isprintable()
    assert re.search(r"; then: give .+\.safetensors'?$", text)
    assert '.open("xb").write(d)\' ' in text


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path):
    """Its first byte is part of a length; none that is read begins like a zip file."""
    write_safetensors(tmp_path / "x.pt", gpt2_tensors())
    data = (tmp_path / "x.pt").read_bytes()
    length = int.from_bytes(data[:8], "little")
    wanted = 0x80
    while wanted < length:
        wanted += 1 << 8
    padding = b" " * (wanted - length)
    (tmp_path / "x.pt").write_bytes(
        wanted.to_bytes(8, "little") + data[8 : 8 + length] + padding + data[8 + length :]
    )
    convert_checkpoint(tmp_path / "x.pt", tmp_path / "out", drawn_on="cpu", lora_alpha=1.0)
