"""Outputs are absent or complete, never overwrite, and honour the umask."""

import os
import shutil
import socket
import stat
from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.packed import packed_obstacle
from nola_edge.adapters.peft_folder import adapter_obstacle
from nola_edge.errors import OutputError
from nola_edge.files import atomic, mounts, written
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.copying import copy_range
from nola_edge.files.gguf import gguf_lora_obstacle, gguf_model_obstacle
from nola_edge.files.safetensors import safetensors_obstacle
from nola_edge.merge.layout import checkpoint_obstacle
from tests.conftest import snapshot, write_safetensors
from tests.files.test_temporary import dead_temporary

OURS = checkpoint_obstacle([])


def write(target, directory=True, **options):
    options.setdefault("replaces", OURS if directory else safetensors_obstacle)
    output = AtomicOutput(target, directory=directory, **options)
    with output as out, out.file("a.safetensors" if directory else "") as path:
        path.write_bytes(b"content")


@pytest.mark.parametrize("directory", [True, False])
def test_appears_complete_and_alone(tmp_path, directory):
    target = tmp_path / "out"
    with AtomicOutput(target, directory=directory) as out:
        with out.file("a" if directory else "") as path:
            path.write_bytes(b"content")
        assert not target.exists()
    assert (target / "a" if directory else target).read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
@pytest.mark.parametrize("force", [True, False])
def test_an_exception_leaves_what_was_there(tmp_path, error, force):
    if force:
        write(tmp_path / "out")
    before = snapshot(tmp_path)

    def fail():
        with AtomicOutput(tmp_path / "out", directory=True, force=force, replaces=OURS) as out:
            (out.path / "half").write_bytes(b"half")
            raise error

    with pytest.raises(OutputError if error is OSError else error):
        fail()
    assert snapshot(tmp_path) == before


def test_force_replaces_in_one_step(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.safetensors").write_text("old")
    write(tmp_path / "out", force=True)
    assert set(snapshot(tmp_path)) == {"out", "out/a.safetensors"}


@pytest.mark.parametrize("names", [["main.py"], ["model.safetensors", ".git"]])
def test_force_spares_a_folder_that_is_no_output(tmp_path, names):
    (tmp_path / "out").mkdir()
    for name in names:
        (tmp_path / "out" / name).write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="--force does not replace it"):
        write(tmp_path / "out", force=True)
    assert snapshot(tmp_path) == before


def test_force_spares_a_file_that_is_no_output(tmp_path):
    (tmp_path / "out").write_text("precious text")
    with (
        pytest.raises(OutputError, match="--force does not replace it"),
        AtomicOutput(
            tmp_path / "out",
            directory=False,
            force=True,
            replaces=safetensors_obstacle,
        ),
    ):
        pass
    assert (tmp_path / "out").read_text() == "precious text"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file", "is a file already, but the output is not; choose another name, or remove it"),
        ("folder", "exists already; choose another name or pass --force"),
        ("other folder", "exists already, and holds config.json, which is not part of such an"),
        ("dangling link", "is a symbolic link, and never replaced; choose another name"),
    ],
)
def test_an_existing_output_is_refused(tmp_path, kind, message):
    """--force is advised only where it would help."""
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
    if kind == "other folder":
        (target / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=message):
        write(target)
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_appears_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "out"

    def race():
        with AtomicOutput(target, directory=False) as out:
            with out.file() as path:
                path.write_text("ours")
            target.write_text("theirs")

    with pytest.raises(OutputError, match="appeared while"):
        race()
    assert target.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


def tidied(monkeypatch, name, what):
    """Let a job that tidies up be quicker than what comes after a rename."""
    real = getattr(atomic, name)

    def renamed(source, target):
        done = real(source, target)
        what(source, target)
        return done

    monkeypatch.setattr(atomic, name, renamed)


@pytest.mark.parametrize("whole", [False, True])
def test_what_loses_files_while_it_is_moved_is_taken_back(tmp_path, monkeypatch, whole):
    """A job that had begun with the temporary goes on with what was in it."""

    def tidy(source, target):
        (target / "a.safetensors").unlink()
        if whole:
            shutil.rmtree(source.parent)

    tidied(monkeypatch, "rename_new", tidy)
    with pytest.raises(OutputError, match="is now gone or another file"):
        write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["thesis.txt", "a.safetensors"])
def test_what_somebody_puts_into_a_new_output_stays(tmp_path, monkeypatch, name):
    """Even where it lacks a file."""

    def put(_, target):
        (target / "a.safetensors").unlink()
        (target / name).write_text("precious")

    tidied(monkeypatch, "rename_new", put)
    with pytest.raises(OutputError, match="is now gone or another file"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "precious"


@pytest.mark.parametrize("whole", [False, True])
def test_an_old_output_that_loses_files_makes_no_odds(tmp_path, monkeypatch, whole):
    """It was to be replaced, and the new one is complete."""
    write(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_text("old")

    def tidy(source, _):
        shutil.rmtree(source.parent if whole else source)
        if not whole:
            source.mkdir()
            (source / "model.safetensors").mkdir()

    tidied(monkeypatch, "exchange", tidy)
    write(tmp_path / "out", force=True)
    assert set(snapshot(tmp_path)) == {"out", "out/a.safetensors"}


def test_another_file_of_the_same_size_is_not_published(tmp_path):
    def swap():
        with AtomicOutput(tmp_path / "out", directory=False) as out:
            with out.file() as path:
                path.write_bytes(b"content")
            other = path.with_name("other")
            other.write_bytes(b"tnetnoc")
            other.rename(path)

    with pytest.raises(OutputError, match="is now gone or another file"):
        swap()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [False, True])
def test_inodes_that_a_file_system_makes_up(tmp_path, monkeypatch, kept):
    """FAT's, or those of FUSE, may be others once the kernel has forgotten a file."""
    monkeypatch.setattr(written, "keeps_inodes", lambda _: kept)

    def forget():
        with AtomicOutput(tmp_path / "out", directory=False) as out:
            with out.file() as path:
                path.write_bytes(b"content")
            shutil.copy2(path, path.with_name("copy"))
            path.with_name("copy").rename(path)

    if kept:
        with pytest.raises(OutputError, match="is now gone or another file"):
            forget()
    else:
        forget()
    assert (tmp_path / "out").exists() != kept


def test_the_type_of_a_file_system():
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("needs Linux")
    assert mounts.file_system(Path("/proc/self")) == "proc"
    assert mounts.keeps_inodes(Path("/proc/self"))


def test_what_cannot_be_put_back_is_kept(tmp_path, monkeypatch):
    """Without an exchange, the old output was taken away, and then there was another."""
    target = tmp_path / "out"
    write(target)
    real = os.rename

    def busy(source, place):
        if Path(source) == target:
            (target / "thesis.txt").write_text("precious")
        real(source, place)
        if Path(source) == target:
            target.mkdir()
            (target / "theirs").write_text("theirs")

    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(OutputError, match=r"which is out\.replaced-\w+ now; both were left alone"):
        write(target, force=True)
    assert [path.name for path in target.iterdir()] == ["theirs"]
    (kept,) = tmp_path.glob("out.replaced-*")
    assert (kept / "thesis.txt").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("place", ["in", "in/out", "in/sub/out", "."])
def test_inputs_and_outputs_are_apart(tmp_path, place):
    (tmp_path / "x" / "in" / "sub").mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError):
        write(tmp_path / "x" / place, inputs=[tmp_path / "x" / "in"], force=True)
    assert snapshot(tmp_path) == before


def test_an_output_inside_an_input_through_a_link(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "alias").symlink_to("in")
    with pytest.raises(OutputError, match="lies inside the input"):
        write(tmp_path / "alias" / "out", inputs=[tmp_path / "in"])
    assert not any((tmp_path / "in").iterdir())


def test_stale_temporaries_are_swept_and_held_ones_kept(tmp_path):
    stale = dead_temporary(tmp_path / "out")
    other = dead_temporary(tmp_path / "out-another")
    with AtomicOutput(tmp_path / "out", directory=False) as held:
        with held.file() as path:
            path.write_text("first")
        assert not stale.exists()
        write(tmp_path / "out2", directory=False)
        with pytest.raises(OutputError, match="exists already"):
            write(tmp_path / "out2", directory=False)
        write_same = AtomicOutput(tmp_path / "out", directory=False)
        with write_same as second:
            with second.file() as path:
                path.write_text("second")
            assert held.path.exists()
        assert (tmp_path / "out").read_text() == "second"
        (tmp_path / "out").unlink()
    assert (tmp_path / "out").read_text() == "first"
    assert other.exists()


def test_modes_honour_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(OutputError, match="the disk has"):
        write(tmp_path / "out", expected_bytes=2**60)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kernel", [True, False])
def test_copies_ranges(tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    source = os.open(tmp_path / "a", os.O_RDONLY)
    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    copy_range(source, 5, target, 100, 2_500_000)
    os.close(source)
    os.close(target)
    assert (tmp_path / "b").read_bytes() == bytes(100) + data[5:2_500_005]


def test_force_follows_no_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="is a symbolic link"):
        write(tmp_path / "out", force=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("directory", [True, False])
def test_force_does_not_turn_a_file_into_a_folder(tmp_path, directory):
    write(tmp_path / "out", directory=not directory)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=r"is a (file|folder) already"):
        write(tmp_path / "out", directory=directory, force=True)
    assert snapshot(tmp_path) == before


CHECKPOINT = {"model.safetensors": b"x", "config.json": b"{}"}
ADAPTER = {"adapter_model.safetensors": b"x", "adapter_config.json": b'{"peft_type": "NOLA"}'}
LORA = {**ADAPTER, "adapter_config.json": b'{"peft_type": "LORA"}'}


@pytest.mark.parametrize(
    ("files", "checkpoint", "kind"),
    [
        (CHECKPOINT, True, None),
        ({**CHECKPOINT, "optimizer.pt": b""}, False, None),
        ({**CHECKPOINT, "data/thesis.txt": b""}, False, None),
        ({**CHECKPOINT, "sub/more.safetensors": b""}, False, None),
        ({**CHECKPOINT, ".git/HEAD": b""}, False, None),
        ({"model-1-of-1.safetensors": b"", "model.safetensors.index.json": b""}, True, None),
        ({"config.json": b"{}"}, False, None),
        (ADAPTER, False, "NOLA"),
        (LORA, False, "LORA"),
        ({**ADAPTER, "adapter_config.json": b"mine"}, False, None),
        ({**ADAPTER, "README.md": b""}, False, None),
        ({**ADAPTER, "thesis.tex": b""}, False, None),
        ({**ADAPTER, "sub/x": b""}, False, None),
    ],
)
def test_what_force_may_replace_in_folders(files, checkpoint, kind, tmp_path):
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    own = checkpoint_obstacle([Path("config.json"), Path("tokenizer/vocabulary.txt")])
    assert (own(folder) is None) == checkpoint
    assert (adapter_obstacle("NOLA")(folder) is None) == (kind == "NOLA")
    assert (adapter_obstacle("LORA")(folder) is None) == (kind == "LORA")


def test_what_force_may_replace_in_files(tiny, tmp_path):
    gguf = pytest.importorskip("gguf")
    for name, kind in (("model", gguf.GGUFType.MODEL), ("lora", gguf.GGUFType.ADAPTER)):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_type(kind)
        writer.add_tensor("x", np.ones(3, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    Adapter.load(tiny[1]).pack(tmp_path / "packed")
    write_safetensors(tmp_path / "plain", {"a": np.ones(3, np.float32)})
    (tmp_path / "text").write_text('{"text": {"mine": "with a brace at its ninth letter"}}')
    allowed = {
        "model": [gguf_model_obstacle],
        "lora": [gguf_lora_obstacle],
        "packed": [packed_obstacle, safetensors_obstacle],
        "plain": [safetensors_obstacle],
        "text": [],
    }
    for name, tests in allowed.items():
        for test in (
            gguf_model_obstacle, gguf_lora_obstacle, packed_obstacle,
            safetensors_obstacle,
        ):  # fmt: skip
            assert (test(tmp_path / name) is None) == (test in tests), (name, test.__name__)


def test_commands_replace_only_what_they_write(tiny, tmp_path):
    base, path = tiny
    adapter = Adapter.load(path)
    ne.merge_checkpoint(base, path, tmp_path / "merged")
    ne.export_lora(path, base, tmp_path / "lora")
    adapter.pack(tmp_path / "packed")
    (tmp_path / "merged" / "optimizer.pt").write_bytes(b"mine")
    before = snapshot(tmp_path)
    for call in (
        lambda: ne.merge_checkpoint(base, path, tmp_path / "merged", force=True),
        lambda: ne.merge_checkpoint(base, path, tmp_path / "lora", force=True),
        lambda: ne.export_lora(path, base, tmp_path / "merged", force=True),
        lambda: adapter.save(tmp_path / "merged", force=True),
        lambda: adapter.pack(base / "model-00001-of-00003.safetensors", force=True),
    ):
        with pytest.raises(OutputError, match="--force does not replace it"):
            call()
    assert snapshot(tmp_path) == before
    (tmp_path / "merged" / "optimizer.pt").unlink()
    ne.merge_checkpoint(base, path, tmp_path / "merged", force=True)
    ne.export_lora(path, base, tmp_path / "lora", force=True)
    adapter.pack(tmp_path / "packed", force=True)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_force_replaces_no_other_kind_of_file(tmp_path, kind, monkeypatch):
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, monkeypatch.context() as patched:
            patched.chdir(tmp_path)  # for a short name
            made.bind("out")
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices")
    before = path.lstat()
    message = f"out: is a {kind}, and never replaced; choose another name$"
    for directory in (True, False):
        for force in (True, False):
            with pytest.raises(OutputError, match=message):
                write(path, directory=directory, force=force)
    assert os.path.samestat(path.lstat(), before)


def test_force_from_a_folder_that_was_deleted(tmp_path, monkeypatch):
    """There is no current folder then that could be replaced."""
    write(tmp_path / "out")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    write(tmp_path / "out", force=True)
    assert set(snapshot(tmp_path)) == {"out", "out/a.safetensors"}


def test_force_does_not_replace_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path / "out")
    (tmp_path / "out" / "sub").mkdir()
    before = snapshot(tmp_path)
    for place in ("out", "out/sub"):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(OutputError, match="is or holds the current folder"):
            write(tmp_path / "out", force=True)
    assert snapshot(tmp_path) == before
