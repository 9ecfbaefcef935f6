"""Temporaries say whose they are, and are removed only where that one is provably dead."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.files import temporary
from nola_edge.files.obstacles import nothing_yet
from nola_edge.files.temporary import EXCHANGED, NEW, REPLACED, sweep, sweep_folder, temporary_path

WEEK = 7 * 24 * 3600
OTHER = "0" * 8


def dead_temporary(target):
    """Make a temporary, with a file in it, whose maker has ended."""
    code = (
        "import sys, pathlib; from nola_edge.files.temporary import temporary_path\n"
        "path = temporary_path(pathlib.Path(sys.argv[1])); path.mkdir(); print(path)"
    )
    command = [sys.executable, "-c", code, target]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path = Path(said.rstrip("\n"))
    (path / "half").write_text("half")
    return path


def renamed(path, **changes):
    """Give a temporary another owner."""
    owner = re.search(temporary._OWNER, path.name)
    words = owner.groupdict() | changes
    name = ".".join(words[key] for key in ("host", "boot", "namespace", "process", "started"))
    tail = re.search(r"-[0-9a-f]{8}\.partial$", path.name)[0]
    return path.rename(path.with_name(path.name[: owner.start()] + name + tail))


def age(path, seconds):
    """Let everything in a folder have changed last so long ago."""
    for item in [*path.rglob("*"), path]:
        then = item.stat().st_mtime - seconds
        os.utime(item, (then, then))


def swept(path, target):
    sweep(target, nothing_yet)
    return not path.exists()


def test_a_dead_writers_temporary_is_removed(tmp_path):
    assert swept(dead_temporary(tmp_path / "out"), tmp_path / "out")


def test_a_living_writers_temporary_is_kept(tmp_path):
    """However long ago it wrote last: it may be stopped, or the clock have been set."""
    mine = temporary_path(tmp_path / "out")
    mine.mkdir()
    assert not swept(mine, tmp_path / "out")
    age(mine, 2 * WEEK)
    assert not swept(mine, tmp_path / "out")
    assert not swept(renamed(mine, started="0"), tmp_path / "out")


def test_machines_without_an_id_are_not_taken_for_one(tmp_path, monkeypatch):
    """Containers often have none; another's is not this one before it was started anew."""
    text = temporary._text
    monkeypatch.setattr(temporary, "_text", lambda path: "" if "machine-id" in path else text(path))
    path = renamed(dead_temporary(tmp_path / "out"), boot=OTHER, host=OTHER)
    age(path, WEEK - 3600)
    monkeypatch.setattr(temporary, "_boot_time", lambda: time.time() - 3600)
    assert not swept(path, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [{"host": OTHER}, {"boot": OTHER}, {"namespace": "1"}, {"host": OTHER, "boot": OTHER}],
)
def test_a_process_that_cannot_be_asked_after(tmp_path, changes, monkeypatch):
    """Of another machine, or another container: only what a week has not touched is removed."""
    monkeypatch.setattr(temporary, "_boot_time", lambda: time.time() - 3600)
    target = tmp_path / "out"
    path = renamed(dead_temporary(target), **changes)
    assert not swept(path, target)
    age(path, WEEK - 3600)
    # Before this machine was started: then a former boot's process is dead.
    assert swept(path, target) == (set(changes) == {"boot"})
    if path.exists():
        age(path, 2 * 3600)
        assert swept(path, target)


def test_another_process_of_the_same_number(tmp_path):
    """Numbers are given out again; when a process was started tells them apart."""
    path = temporary_path(tmp_path / "out")
    path.mkdir()
    path = renamed(path, started="1")
    assert swept(path, tmp_path / "out")


def test_who_is_ending_is_dead(tmp_path):
    """Killed, and giving back its memory: others may have its locks before it is a zombie."""
    target = tmp_path / "out"
    code = (
        "import sys, pathlib; from nola_edge.files.temporary import temporary_path\n"
        "temporary_path(pathlib.Path(sys.argv[1])).mkdir(); kept = bytearray(b'1') * 2**28\n"
        "print('made', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, target], **pipes) as process:
        assert process.stdout.readline() == b"made\n"
        (path,) = tmp_path.iterdir()
        process.kill()
        while not is_ending(process.pid):
            pass
        assert swept(path, target)


def is_ending(process):
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[6]) & 4 != 0


@pytest.fixture
def zombie(tmp_path):
    """A process that was killed, with its parent not having looked yet, and its temporary."""
    code = (
        "import sys, os, pathlib; from nola_edge.files.temporary import temporary_path\n"
        "path = temporary_path(pathlib.Path(sys.argv[1])); path.mkdir()\n"
        "print(path, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        path = Path(child.stdout.read().rstrip("\n"))
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        yield child, path


def test_a_zombie_is_dead(tmp_path, zombie):
    """As in a container without an init."""
    assert swept(zombie[1], tmp_path / "out")


def test_a_zombie_that_goes_while_it_is_asked_after_is_dead(tmp_path, zombie, monkeypatch):
    """Its parent looks just then: what is not to be read of it is no sign of life."""
    child, path = zombie
    text = temporary._text

    def reaped_first(path):
        if path == f"/proc/{child.pid}/stat":
            child.wait()
        return text(path)

    monkeypatch.setattr(temporary, "_text", reaped_first)
    assert swept(path, tmp_path / "out")


def test_targets_whose_names_begin_alike(tmp_path):
    longer = dead_temporary(tmp_path / "french-canadian")
    assert not swept(longer, tmp_path / "french")
    assert not swept(longer, tmp_path / "french-canadia")
    assert swept(longer, tmp_path / "french-canadian")


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@given(one=NAMES, other=NAMES)
def test_a_temporary_belongs_to_one_target(one, other):
    path = temporary_path(Path("/folder", one))
    assert len(os.fsencode(path.name)) <= 255
    prefix = temporary._prefix(Path("/folder", other))
    owner = path.name.removeprefix(prefix)
    found = owner != path.name and re.fullmatch(temporary._OWNER, owner)
    assert bool(found) == (one == other)


def beside(target):
    return [path.read_text() for path in target.parent.glob("out.replaced-*")]


def test_a_replaced_output_is_put_back(tmp_path):
    """The new one did not come in its place."""
    target = tmp_path / "out"
    path = dead_temporary(target)
    (path / NEW).write_text("new")
    (path / REPLACED).write_text("old")
    assert swept(path, target)
    assert target.read_text() == "old"
    assert not beside(target)


@pytest.mark.parametrize("came", ["new", "theirs"])
def test_a_replaced_output_where_another_stands(tmp_path, came):
    """It goes where the new one came in its place, and is kept where somebody else's did."""
    target = tmp_path / "out"
    path = dead_temporary(target)
    (path / REPLACED).write_text("old")
    if came == "theirs":
        (path / NEW).write_text("new")
    target.write_text(came)
    assert swept(path, target)
    assert target.read_text() == came
    assert beside(target) == (["old"] if came == "theirs" else [])


@pytest.mark.parametrize("content", ["precious", ""])
def test_what_came_out_of_an_exchange_is_looked_at(tmp_path, content):
    """The writer died before it had looked whether that may be lost."""
    target = tmp_path / "out"
    path = dead_temporary(target)
    (path / NEW).write_text("new")
    (path / EXCHANGED).write_text(str((path / NEW).stat().st_ino))
    (path / NEW).rename(target)
    (path / NEW).write_text(content)
    assert swept(path, target)
    assert target.read_text() == "new"
    assert beside(target) == ([content] if content else [])


def test_a_new_output_that_was_not_exchanged_goes(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    path = dead_temporary(target)
    (path / NEW).write_text("new")
    (path / EXCHANGED).write_text(str((path / NEW).stat().st_ino))
    assert swept(path, target)
    assert target.read_text() == "old"
    assert not beside(target)


def test_what_is_no_temporary_is_left_alone(tmp_path):
    target = tmp_path / "out"
    path = dead_temporary(target)
    name = path.name
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").joinpath("precious").write_text("x")
    (tmp_path / name).symlink_to("elsewhere")
    (tmp_path / ".nola-edge-out-mine.partial").mkdir()
    sweep(target, nothing_yet)
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert (tmp_path / ".nola-edge-out-mine.partial").exists()


def test_a_folder_is_swept_of_what_dead_writers_left_for_any_target(tmp_path):
    dead = [dead_temporary(tmp_path / name) for name in ("a", "two\nlines", "b" * 200)]
    living = temporary_path(tmp_path / "a")
    living.mkdir()
    replacing = dead_temporary(tmp_path / "c")
    (replacing / NEW).write_text("never put in place")
    (replacing / REPLACED).write_text("the only one")
    (tmp_path / ".nola-edge-out-mine.partial").mkdir()
    (tmp_path / ".nola-edge-notes").write_text("x")
    (tmp_path / "a").mkdir()
    kept = set(tmp_path.iterdir()) - set(dead)
    sweep_folder(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    assert swept(replacing, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "the only one"
