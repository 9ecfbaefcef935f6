"""The SHA-256 of a result: what coreutils print, and a merge that is refused by it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.errors import ArgumentError, ChangedError, MismatchError, NolaEdgeError
from nola_edge.gguf import merge_gguf
from tests.conftest import snapshot
from tests.gguf.test_merge import adapter_of, arrays_of, write

NAMES = st.text("ab.- é0Z", min_size=1, max_size=4).filter(lambda name: name.strip(". "))
RECIPE = "find -L . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nola_edge", *map(str, arguments)],
        capture_output=True, text=True, **options,
    )  # fmt: skip


@given(
    files=st.dictionaries(NAMES, st.binary(max_size=9), min_size=1, max_size=5),
    below=st.dictionaries(NAMES, st.binary(max_size=9), max_size=3),
)
def test_it_is_what_coreutils_print(files, below, tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    inner = folder / "inner folder"
    for place, contents in ((folder, files), (inner, below)):
        place.mkdir(exist_ok=True)
        for name, content in contents.items():
            (place / name).write_bytes(content)
    printed = subprocess.run(RECIPE, shell=True, cwd=folder, capture_output=True, text=True)
    found = ne.content_hash(folder)
    assert found.sha256 == printed.stdout.split()[0]
    assert found.nbytes == sum(map(len, [*files.values(), *below.values()]))
    for name, content in files.items():
        assert found.files[name] == hashlib.sha256(content).hexdigest()
        assert ne.content_hash(folder / name).sha256 == found.files[name]


def test_threads_and_links_change_nothing(tiny, tmp_path):
    base, _ = tiny
    wanted = ne.content_hash(base, num_threads=1)
    linked = tmp_path / "linked"
    shutil.copytree(base, linked, copy_function=os.symlink)
    done = []
    assert ne.content_hash(linked, num_threads=4, progress=done.append) == wanted
    assert sum(done) == wanted.nbytes


def test_every_bit_counts(tiny, tmp_path):
    base, _ = tiny
    wanted = ne.content_hash(base).sha256
    path = next(base.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    for place in np.linspace(0, 8 * len(data) - 1, 50).astype(int):
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        assert ne.content_hash(base).sha256 != wanted
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    assert ne.content_hash(base).sha256 == wanted
    path.rename(path.with_name("other.safetensors"))
    assert ne.content_hash(base).sha256 != wanted


def spoil(folder, kind):
    if kind == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "missing":
        shutil.rmtree(folder)
    elif kind == "fifo":
        os.mkfifo(folder / "pipe")
    elif kind == "link":
        (folder / "linked").symlink_to(folder.parent)
    elif kind == "newline":
        (folder / "a\nb").touch()
    else:
        (folder / "a\\b").touch()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is a folder without files"),
        ("missing", "cannot be opened: No such file"),
        ("fifo", "pipe: is not a regular file"),
        ("link", "linked: is a link to a folder"),
        ("newline", "has a name that lists of hashes cannot hold"),
        ("backslash", "has a name that lists of hashes cannot hold"),
    ],
)
def test_what_has_no_hash(tiny, kind, message):
    spoil(tiny[0], kind)
    with pytest.raises(NolaEdgeError, match=message) as caught:
        ne.content_hash(tiny[0])
    assert str(caught.value).isprintable()
    done = command("hash", tiny[0])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_merge_that_is_expected(tiny, tmp_path):
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "first")
    wanted = command("hash", tmp_path / "first").stdout.strip()
    assert wanted == ne.content_hash(tmp_path / "first").sha256
    found = json.loads(command("hash", tmp_path / "first", "--json").stdout)
    assert (found["sha256"], found["bytes"]) == (wanted, ne.content_hash(tmp_path / "first").nbytes)
    done = command("merge", base, adapter, "-o", tmp_path / "out", "--expect", wanted.upper())
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "first")


def test_another_result_is_refused_before_it_is_in_place(tiny, tmp_path):
    """Also where --force would replace an earlier one."""
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "out")
    wanted = ne.content_hash(tmp_path / "out").sha256
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match=f"would have the SHA-256 .*, not {wanted} as expect"):
        ne.merge_checkpoint(base, [(adapter, 0.5)], tmp_path / "new", expect=wanted)
    assert snapshot(tmp_path) == before
    done = command(
        "merge", base, f"{adapter}=0.5", "-o", tmp_path / "out", "--force", "--expect", wanted
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expect" in done.stderr
    assert snapshot(tmp_path) == before


def test_a_gguf_file(tmp_path):
    base, adapter = tmp_path / "base.gguf", adapter_of()
    write(base, arrays_of("Q4_1"))
    merge_gguf(base, adapter, tmp_path / "first.gguf")
    wanted = hashlib.sha256((tmp_path / "first.gguf").read_bytes()).hexdigest()
    merge_gguf(base, adapter, tmp_path / "again.gguf", expect=wanted)
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match="as expected"):
        merge_gguf(base, [(adapter, 2.0)], tmp_path / "other.gguf", expect=wanted)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("expect", ["", "12", "g" * 64, "0" * 63, "0" * 65, 3, b"0" * 64])
def test_what_is_no_hash(tiny, tmp_path, expect):
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match=r"^expect: .* is not a "):
        ne.merge_checkpoint(*tiny, tmp_path / "out", expect=expect)
    assert snapshot(tmp_path) == before


def test_a_hash_is_for_one_output(tiny, tmp_path):
    done = command("merge", *tiny, "--each", "-o", tmp_path / "out", "--expect", "0" * 64)
    assert done.returncode == 2
    assert "--expect is for one output" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_meanwhile(tiny):
    path = next(tiny[0].glob("*.safetensors"))
    with pytest.raises(ChangedError, match="changed while it was read"):
        ne.content_hash(path, progress=lambda _: os.utime(path, ns=(0, 1)))
