"""Missing parents of an output are made with it, and are gone where it does not come."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.packed import packed_obstacle
from nola_edge.errors import NotFiniteError, OutputError
from nola_edge.files.atomic import AtomicOutput
from tests.cli.test_cli import run
from tests.conftest import snapshot, tiny_adapter

F = np.float32


def write(target, error=None, beside=None, **options):
    with AtomicOutput(target, directory=False, **options) as out, out.file() as path:
        path.write_text("written")
        if beside is not None:
            beside.write_text("another's")
        if error is not None:
            raise error


def test_parents_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a/b/out")
    write("a/b/other")
    assert list(snapshot(tmp_path)) == ["a", "a/b", "a/b/other", "a/b/out"]
    assert (tmp_path / "a" / "b" / "out").read_text() == "written"


def test_parents_honour_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a" / "b" / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("there", ["", "a"])
def test_a_failure_removes_what_was_made_and_nothing_else(tmp_path, error, there):
    (tmp_path / there).mkdir(exist_ok=True)
    with pytest.raises((OutputError, KeyboardInterrupt, ValueError)):
        write(tmp_path / "a" / "b" / "out", error)
    assert os.listdir(tmp_path) == [there] * bool(there)
    assert not os.listdir(tmp_path / there)


def test_what_others_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(ValueError, match="ours"):
        write(tmp_path / "a" / "b" / "out", ValueError("ours"), tmp_path / "a" / "theirs")
    assert os.listdir(tmp_path / "a") == ["theirs"]


def test_a_failed_neighbour_takes_no_parent_away_for_good(tmp_path, monkeypatch):
    """The neighbour made it, and removes it between our look and our write."""
    (tmp_path / "a").mkdir()
    output = AtomicOutput(tmp_path / "a" / "out", directory=False)
    monkeypatch.setattr(
        "nola_edge.files.atomic.temporary_path",
        lambda target: shutil.rmtree(tmp_path / "a") or target.with_name("temporary"),
    )
    with output, output.file() as path:
        path.write_text("written")
    assert (tmp_path / "a" / "out").read_text() == "written"


def test_many_make_the_same_parents_at_once(tmp_path):
    def work(number):
        write(tmp_path / "a" / "b" / str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [str(number) for number in range(8)]


@pytest.mark.parametrize(
    ("target", "message"),
    [("file/out", "file is not a folder"), ("link/a/out", "link is a broken link")],
)
def test_what_is_no_folder_is_in_the_way(tmp_path, target, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nothing")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=message):
        write(tmp_path / target)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_parents_that_may_not_be_made(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write(tmp_path / "a" / "out")
    finally:
        tmp_path.chmod(0o700)
    assert not os.listdir(tmp_path)


def test_a_refusal_makes_no_parents(tmp_path):
    with pytest.raises(OutputError, match="the disk has"):
        write(tmp_path / "a" / "out", expected_bytes=2**60)
    AtomicOutput(tmp_path / "a" / "out", directory=False).check()
    assert not os.listdir(tmp_path)


def test_python_and_the_command_line_make_them(tiny, tmp_path):
    base, adapter = tiny
    ne.merge_checkpoint(base, adapter, tmp_path / "p" / "q" / "merged")
    assert run("merge", base, adapter, "-o", tmp_path / "c" / "q" / "merged").returncode == 0
    assert snapshot(tmp_path / "p") == snapshot(tmp_path / "c")
    ne.merge_each(base, {"one": adapter}, tmp_path / "e" / "q")
    assert (tmp_path / "e" / "q" / "one" / "config.json").exists()
    tiny_adapter().pack(tmp_path / "n" / "a.nola")
    assert packed_obstacle(tmp_path / "n" / "a.nola") is None


def test_a_merge_that_fails_late_leaves_no_parents(tiny, tmp_path):
    """What is not finite is known only when it is merged."""
    base, adapter = tiny[0], tiny_adapter()
    modules = {m: (c.alpha * F(1e25), c.beta * F(1e25)) for m, c in adapter.modules.items()}
    loud = adapter.replace(modules)
    before = snapshot(tmp_path)
    for merge, adapters in ((ne.merge_checkpoint, loud), (ne.merge_each, {"one": loud})):
        with pytest.raises(NotFiniteError):
            merge(base, adapters, tmp_path / "a" / "out")
    assert snapshot(tmp_path) == before


_FAIL_OFTEN = """
import sys
from nola_edge.files.atomic import AtomicOutput

for number in range(int(sys.argv[2])):
    try:
        with AtomicOutput(f"{sys.argv[1]}/{number % 2}", directory=bool(number % 2)):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
"""


def at_once(count, code, *arguments):
    """Return what processes that run at the same time say of errors."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    return [process.communicate()[1] for process in started]


def test_processes_that_fail_in_one_new_folder_leave_nothing(tmp_path):
    assert at_once(4, _FAIL_OFTEN, tmp_path / "a" / "b" / "c", 100) == [""] * 4
    assert not os.listdir(tmp_path)


def test_the_last_who_fails_removes_what_the_first_has_made(tmp_path):
    outputs = [AtomicOutput(tmp_path / "a" / "b" / str(n), directory=False) for n in range(3)]
    for output in outputs:
        output.__enter__()
    for output in outputs:
        assert (tmp_path / "a" / "b").is_dir()
        output.__exit__(ValueError, ValueError(), None)
    assert not os.listdir(tmp_path)


def test_a_folder_that_was_there_stays_when_all_fail(tmp_path):
    (tmp_path / "a").mkdir()
    assert at_once(3, _FAIL_OFTEN, tmp_path / "a", 20) == [""] * 3
    assert os.listdir(tmp_path) == ["a"]


def test_one_who_succeeds_keeps_the_folder_of_one_who_failed(tmp_path):
    folder = tmp_path / "a"
    with AtomicOutput(folder / "good", directory=True):
        pass
    shutil.rmtree(folder)
    first = AtomicOutput(folder / "bad", directory=True)
    first.__enter__()
    with AtomicOutput(folder / "good", directory=True):
        first.__exit__(ValueError, ValueError(), None)
    assert list(snapshot(tmp_path)) == ["a", "a/good"]
